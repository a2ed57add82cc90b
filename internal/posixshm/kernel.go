//go:build linux || darwin

package posixshm

import (
	"sync/atomic"
	"time"
)

// A Kernel has POSIX shared memory objects as darwin's kernel does. Its methods
// are the system calls of those names, and return the errors of these. The tests of
// this package hold every Kernel to the facts that the package rests on.
type Kernel interface {
	// MaxName is how many bytes a name can have, the slash included.
	MaxName() int

	// PIDBits is how many bits the largest process id takes.
	PIDBits() int

	// ShmOpen is shm_open(2). The mode is not subject to the umask, and its sticky
	// bit is kept; the descriptor is closed on exec.
	ShmOpen(name string, flags int, mode uint32) (fd int, err error)

	// ShmUnlink is shm_unlink(2).
	ShmUnlink(name string) error

	// Truncate is ftruncate(2): EINVAL if the object has a size already.
	Truncate(fd int, size int64) error

	// Stat is fstat(2).
	Stat(fd int) (Stat, error)

	// Map is mmap(2) of the first length bytes with MAP_SHARED.
	Map(fd, length int, write bool) ([]byte, error)

	// Protect makes mem, of a mapping that is not, writable.
	Protect(mem []byte) error

	// Unmap is munmap(2).
	Unmap(mem []byte)

	// Close is close(2).
	Close(fd int)

	// StartTime returns a number that tells the process from all others that have,
	// had or will have its id: when it began. The error is ESRCH for a process that
	// has ended, also for one that its parent has not waited for.
	StartTime(pid int) (uint64, error)

	// ObjectSize returns the size of the object that fd is open on, 0 if it has
	// none yet, and an error if fd is open on something else. It does nothing that
	// could wait or have an effect.
	ObjectSize(fd uintptr) (int64, error)

	// Sleep returns nil at once if the word, of a mapping, is not equal to value.
	// Otherwise it returns nil after a Wake for the word by any process, after at most
	// most, or earlier. It returns an error at once if the system cannot do that, always
	// or just now. The goroutine sleeps in its thread.
	Sleep(word *atomic.Uint32, value uint32, most time.Duration) error

	// Wake wakes one that sleeps on the word, or all, in all processes.
	Wake(word *atomic.Uint32, all bool)

	// Step is called before every store to a lock page, with a word for it. Tests
	// stop processes there; otherwise it does nothing.
	Step(what string)
}

// Stat is what the kernel knows of an object. Nothing of it changes once the size
// is set.
type Stat struct {
	Mode uint32 // permission bits and the sticky bit
	UID  uint32
	Size int64 // rounded up to pages; 0 if it is not set
}
