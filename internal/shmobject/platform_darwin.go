package shmobject

import (
	"errors"
	"io"

	"golang.org/x/sys/unix"
)

var errNone = errors.New("not a shared memory object")

// Size returns the size of the object that fd is open on, 0 if it has none yet,
// or an error if that is no object. It does nothing that could wait for somebody
// else or have an effect.
func Size(fd uintptr) (int64, error) {
	// A file is found out without asking its file system, which can be in anybody's
	// hands: lseek of bsd/vfs/vfs_syscalls.c.
	if _, err := unix.Seek(int(fd), 0, io.SeekCurrent); err != unix.ESPIPE {
		return 0, errNone
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(fd), &st); err != nil {
		return 0, err
	}
	// Sockets, pipes and kernel queues have a type; an object has no more than
	// permissions, an owner and a size: pshm_stat of bsd/kern/posix_shm.c.
	if st.Mode&unix.S_IFMT != 0 || st.Ino != 0 || st.Dev != 0 || st.Nlink != 0 {
		return 0, errNone
	}
	return st.Size, nil
}
