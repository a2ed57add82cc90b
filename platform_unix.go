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

// readFD reads from a descriptor of somebody else's into p, which may lie in a
// mapping: read(2) then returns EFAULT where memory would fault. At the end it
// returns io.EOF.
func readFD(fd uintptr, p []byte) (int, error) {
	n, err := sysunix.Retry(func() (int, error) { return unix.Read(int(fd), p) })
	switch {
	case errors.Is(err, unix.EFAULT):
		return 0, object.ErrFault
	case err != nil:
		return 0, ioErr("read", err)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// writeFD writes p, which may lie in a mapping, to a descriptor, or part of it.
func writeFD(fd uintptr, p []byte) (int, error) {
	n, err := sysunix.Retry(func() (int, error) { return unix.Write(int(fd), p) })
	switch {
	case errors.Is(err, unix.EFAULT):
		return 0, object.ErrFault
	case err != nil:
		return 0, ioErr("write", err)
	case n == 0: // a driver that takes nothing would have us try for ever
		return 0, io.ErrShortWrite
	}
	return n, nil
}

func ioErr(call string, err error) error {
	if errors.Is(err, unix.EAGAIN) {
		return errWouldBlock
	}
	return os.NewSyscallError(call, err)
}
