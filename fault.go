package shm

import (
	"fmt"
	"runtime/debug"

	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/raw"
)

// A mapping can lose its memory under our feet: a peer truncates the object, or
// a page of a Sparse block cannot be had. The kernel then raises SIGBUS, which
// ends a Go program unless the goroutine has asked for a panic instead. Every
// access to a mapping therefore runs where that has been asked for.

// faultAt returns where in the mapping the fault was that r, from recover, came
// of. It lets all other panics go on, and returns -1 if r is nil.
func (a *attachment) faultAt(r any) int {
	if r == nil {
		return -1
	}
	// debug.SetPanicOnFault names no type; a program can have one that looks alike.
	if fault, ok := r.(interface{ Addr() uintptr }); ok && packageOf(r) == "runtime" {
		if at := raw.Index(a.mem, fault.Addr()); at >= 0 {
			return at
		}
	}
	panic(r)
}

// guard runs f, which may touch the mapping, and returns an ErrFault where that
// was not possible, otherwise what f returns.
func (a *attachment) guard(f func() error) error {
	at, err := a.try(f)
	if at < 0 { // f has panicked with nil: after runtime.Goexit nothing gets here
		panic(nil)
	}
	if err == ErrFault {
		err = a.faultReason(int64(at))
	}
	return err
}

// try is guard, with ErrFault for a fault and where it was, and at < 0 if f
// ended otherwise without a value to recover.
func (a *attachment) try(f func() error) (at int, err error) {
	before := debug.SetPanicOnFault(true)
	done := false
	defer func() {
		debug.SetPanicOnFault(before)
		if done {
			return
		}
		if at = a.faultAt(recover()); at >= 0 {
			err = ErrFault
		}
	}()
	err = f()
	done = true
	return 0, err
}

// hollow reports whether the block can have pages without memory. To read one
// through the mapping allocates it, so such a block is read by system calls.
func (a *attachment) hollow() bool { return object.Current.Limits().Files && a.layout.sparse() }

// readAround reads by system calls, which return an error where the mapping would
// fault: they end where the object ends, and find zeros, for which they take no
// memory, where a page of a sparse block was never written.
func (a *attachment) readAround(p []byte, off int64) (n int, err error) {
	start := int64(a.layout.headerSize) + off
	for n < len(p) {
		got, err := a.obj.ReadAt(raw.Unkept(p[n:]), start+int64(n))
		if got <= 0 || err != nil {
			return n, a.faultReason(start + int64(n))
		}
		n += got
	}
	return n, nil
}

// writeAround is readAround for a write. It leaves a truncated object as short
// as it is.
func (a *attachment) writeAround(p []byte, off int64) (n int, err error) {
	start := int64(a.layout.headerSize) + off
	info, err := a.obj.Stat()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrFault, err)
	}
	fits := int(min(max(info.Size-start, 0), int64(len(p))))
	for n < fits {
		put, err := a.obj.WriteAt(raw.Unkept(p[n:fits]), start+int64(n))
		if put <= 0 || err != nil {
			return n, a.faultReason(start + int64(n))
		}
		n += put
	}
	if n < len(p) {
		return n, a.faultReason(start + int64(n))
	}
	return n, nil
}

// faultReason says why the byte at offset at of the object could not be had.
func (a *attachment) faultReason(at int64) error {
	info, err := a.obj.Stat()
	switch {
	case err != nil || info.Size <= at:
		return fmt.Errorf("%w: the block has been truncated", ErrFault)
	case a.raw || a.layout.sparse():
		return fmt.Errorf("%w: %w", ErrFault, ErrNoSpace)
	}
	return ErrFault
}
