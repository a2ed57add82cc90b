package shm

import (
	"fmt"
	"runtime/debug"

	"github.com/shmkit/shm/internal/raw"
)

// A mapping can lose its memory under our feet: a peer truncates the object, or
// a page of a Sparse block cannot be had. The kernel then raises SIGBUS, which
// ends a Go program unless the goroutine has asked for a panic instead. Every
// access to a mapping therefore runs between begin and end of a trap.

// trap turns a fault in one mapping into an error.
type trap struct {
	before bool // what SetPanicOnFault was
	done   bool // nothing faulted
	at     int  // where in the mapping it faulted
}

func (t *trap) begin() { t.before = debug.SetPanicOnFault(true) }

// end must be deferred right after begin. It sets *err to ErrFault if a fault
// in mem ended the function, and lets every other panic go on.
func (t *trap) end(mem []byte, err *error) {
	debug.SetPanicOnFault(t.before)
	if t.done {
		return
	}
	r := recover()
	if r == nil {
		return // runtime.Goexit
	}
	fault, ok := r.(interface{ Addr() uintptr }) // debug.SetPanicOnFault
	if !ok {
		panic(r)
	}
	if t.at = raw.Index(mem, fault.Addr()); t.at < 0 {
		panic(r)
	}
	*err = ErrFault
}

// guard runs f, which may touch the mapping, and returns an ErrFault where that
// was not possible, otherwise what f returns.
func (a *attachment) guard(f func() error) error {
	at, err := a.try(f)
	if err == ErrFault {
		err = a.faultReason(int64(at))
	}
	return err
}

func (a *attachment) try(f func() error) (at int, err error) {
	var t trap
	t.begin()
	defer func() { at = t.at }()
	defer t.end(a.mem, &err)
	err = f()
	t.done = true
	return 0, err
}

// readAround does what a read could not that ran into a fault: it reads by
// system calls, which end where the object ends, and find zeros where a page
// of a sparse block was never written.
func (a *attachment) readAround(p []byte, off int64) (n int, err error) {
	start := int64(a.layout.headerSize) + off
	for n < len(p) {
		got, err := a.obj.readAt(p[n:], start+int64(n))
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
	info, err := a.obj.stat()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrFault, err)
	}
	fits := int(min(max(info.size-start, 0), int64(len(p))))
	for n < fits {
		put, err := a.obj.writeAt(p[n:fits], start+int64(n))
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
	info, err := a.obj.stat()
	switch {
	case err != nil || info.size <= at:
		return fmt.Errorf("%w: the block has been truncated", ErrFault)
	case a.raw || a.layout.sparse():
		return fmt.Errorf("%w: %w", ErrFault, ErrNoSpace)
	}
	return ErrFault
}
