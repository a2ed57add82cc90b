//go:build linux || darwin

package shm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm/internal/raw"
)

// revoke gives back the memory and the object under a mapping, but keeps its
// addresses, where every access then faults, until munmap.
func revoke(mem []byte) error {
	_, err := unix.MmapPtr(-1, 0, raw.Pointer(mem), uintptr(len(mem)), unix.PROT_NONE,
		unix.MAP_FIXED|unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	return err
}

// revocable returns how many bytes of address space may be kept from use, for
// quick calls until the garbage collector runs and as many again for slices from
// Bytes: none where it is scarce, and otherwise an eighth of the smallest that
// 64-bit systems give a process (39 bits).
func revocable() int64 {
	var limit unix.Rlimit
	if math.MaxInt == math.MaxInt32 || unix.Getrlimit(unix.RLIMIT_AS, &limit) != nil || limit.Cur != unix.RLIM_INFINITY {
		return 0
	}
	return 1 << 36
}

// spaceErr adds ErrNoSpace to the errors that mean it.
func spaceErr(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT),
		errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EFBIG):
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// retry calls f until no signal interrupts it.
func retry(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, syscall.EINTR) {
			return n, err
		}
	}
}

// duplicate returns another descriptor of what fd is open on.
func duplicate(fd uintptr) (int, error) { return unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }

// accessMode returns for what fd is open: O_RDONLY, O_WRONLY or O_RDWR.
func accessMode(fd uintptr) (int, error) {
	flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
	return flags & unix.O_ACCMODE, err
}

// writableFD reports whether fd is open for writing as well as for reading, which
// it must be.
func writableFD(fd uintptr) (bool, error) {
	access, err := accessMode(fd)
	if err == nil && access == unix.O_WRONLY {
		err = fmt.Errorf("%w: file is open for writing only", fs.ErrPermission)
	}
	return access == unix.O_RDWR, err
}

// pollable reports whether reading from fd and writing to it never waits for
// somebody else: a regular file, or a descriptor in non-blocking mode.
func pollable(fd uintptr) bool {
	flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
	return err == nil && flags&unix.O_NONBLOCK != 0 || regular(fd)
}

func regular(fd uintptr) bool {
	var st unix.Stat_t
	return unix.Fstat(int(fd), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
}

// readFD reads from a descriptor of somebody else's into p, which may lie in a
// mapping: read(2) then returns EFAULT where memory would fault. At the end it
// returns io.EOF.
func readFD(fd uintptr, p []byte) (int, error) {
	n, err := retry(func() (int, error) { return unix.Read(int(fd), p) })
	switch {
	case errors.Is(err, unix.EFAULT):
		return 0, ErrFault
	case err != nil:
		return 0, ioErr("read", err)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// writeFD writes p, which may lie in a mapping, to a descriptor, or part of it.
func writeFD(fd uintptr, p []byte) (int, error) {
	n, err := retry(func() (int, error) { return unix.Write(int(fd), p) })
	switch {
	case errors.Is(err, unix.EFAULT):
		return 0, ErrFault
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
