//go:build linux || darwin

// Package sysunix has what implementations of package object on Unix systems
// share.
package sysunix

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/raw"
)

// Revoke implements [object.System].
func Revoke(mem []byte) error {
	_, err := unix.MmapPtr(-1, 0, raw.Pointer(mem), uintptr(len(mem)), unix.PROT_NONE,
		unix.MAP_FIXED|unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	return err
}

// Revocable returns [object.Limits].Revocable: nothing where address space is
// scarce, otherwise an eighth of the smallest that a 64-bit system gives a process
// (39 bits).
func Revocable() int64 {
	var limit unix.Rlimit
	if math.MaxInt == math.MaxInt32 || unix.Getrlimit(unix.RLIMIT_AS, &limit) != nil || limit.Cur != unix.RLIM_INFINITY {
		return 0
	}
	return 1 << 36
}

// SpaceError adds object.ErrNoSpace to the errors that mean it.
func SpaceError(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT),
		errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EFBIG):
		return fmt.Errorf("%w: %w", object.ErrNoSpace, err)
	}
	return err
}

// Retry calls f until no signal interrupts it.
func Retry(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, syscall.EINTR) {
			return n, err
		}
	}
}

// Duplicate returns another descriptor of what fd is open on.
func Duplicate(fd uintptr) (int, error) { return unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }

// AccessMode returns what fd is open for: O_RDONLY, O_WRONLY or O_RDWR.
func AccessMode(fd uintptr) (int, error) {
	flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
	return flags & unix.O_ACCMODE, err
}

// Writable reports whether fd is open for writing. It must be open for reading.
func Writable(fd uintptr) (bool, error) {
	access, err := AccessMode(fd)
	if err == nil && access == unix.O_WRONLY {
		err = fmt.Errorf("%w: file is open for writing only", fs.ErrPermission)
	}
	return access == unix.O_RDWR, err
}

// IsRegular reports whether fd is open on a regular file.
func IsRegular(fd uintptr) bool {
	var st unix.Stat_t
	return unix.Fstat(int(fd), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
}
