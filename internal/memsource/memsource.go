// Package memsource lets package manager have package shm build a block in memory
// that another process has created. It is what both know and users do not.
package memsource

import "os"

// Source is where the memory of an anonymous block comes from, instead of from
// the system.
type Source struct {
	// Create returns a file of length zero bytes, open for writing, whose size
	// cannot change. The block is built in it; the file is closed.
	Create func(length int64) (*os.File, error)
}

// Option returns a shm.Option for shm.Anonymous, which is shm.Label(label) as
// well. Package shm sets it.
var Option func(label string, s *Source) any
