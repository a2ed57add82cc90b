// Package memsource connects packages manager and shm: manager creates anonymous
// blocks in memory that another process has created. It is not for users.
package memsource

import "os"

// Source provides the memory of an anonymous block.
type Source struct {
	// Create returns a file of length zero bytes, open for writing, whose size
	// cannot change. The block is built in it; the file is closed.
	Create func(length int64) (*os.File, error)
}

// Option returns a shm.Option for shm.Anonymous that includes shm.Label(label). Package
// shm sets it.
var Option func(label string, s *Source) any
