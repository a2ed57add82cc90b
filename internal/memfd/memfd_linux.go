package memfd

import (
	"errors"

	"golang.org/x/sys/unix"
)

// FixedSize are the seals of memory whose size cannot change: see fcntl(2).
const FixedSize = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW

// Create returns a descriptor of size bytes of memory, all zero, whose size
// cannot change and to which no seal can be added. None of it is reserved.
func Create(size int64) (fd int, err error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err = unix.MemfdCreate("shm", flags|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("shm", flags)
	}
	if err != nil {
		return -1, err
	}
	if err := prepare(fd, size); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func prepare(fd int, size int64) error {
	// It is created 0666 or 0777, and a process that has a descriptor can open it
	// again: with this, a read-only descriptor gives no more to other users.
	if err := unix.Fchmod(fd, 0o644); err != nil {
		return err
	}
	err := unix.Ftruncate(fd, size)
	for errors.Is(err, unix.EINTR) {
		err = unix.Ftruncate(fd, size)
	}
	if err != nil {
		return err
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, FixedSize|unix.F_SEAL_SEAL)
	return err
}
