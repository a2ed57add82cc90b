//go:build linux || darwin

package shm

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/sysunix"
)

// pollable reports whether reading from fd and writing to it never waits for
// somebody else: a regular file, or a descriptor in non-blocking mode.
func pollable(fd uintptr) bool {
	flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
	return err == nil && flags&unix.O_NONBLOCK != 0 || sysunix.IsRegular(fd)
}

// readFD reads from a descriptor of another package into p, which may lie in a
// mapping. At the end it returns io.EOF.
func readFD(fd uintptr, p []byte) (int, error) {
	n, err := callFD("read", unix.Read, fd, p)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

// writeFD writes p, which may lie in a mapping, to a descriptor, or part of it.
func writeFD(fd uintptr, p []byte) (int, error) {
	n, err := callFD("write", unix.Write, fd, p)
	if n == 0 && err == nil { // a driver that takes nothing: the caller would try without end
		err = io.ErrShortWrite
	}
	return n, err
}

// callFD is read(2) or write(2). They return EFAULT where memory would fault.
func callFD(name string, call func(fd int, p []byte) (int, error), fd uintptr, p []byte) (int, error) {
	n, err := sysunix.Retry(func() (int, error) { return call(int(fd), p) })
	switch {
	case errors.Is(err, unix.EFAULT):
		return 0, object.ErrFault
	case errors.Is(err, unix.EAGAIN):
		return 0, errWouldBlock
	case err != nil:
		return 0, os.NewSyscallError(name, err)
	}
	return n, nil
}
