//go:build linux && !standin

package manager

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// checkAddr returns the error for an address that there cannot be.
func checkAddr(string) error { return nil }

// restricts is whether duplicate can make a descriptor to read only.
const restricts = true

// duplicate returns another descriptor of the memory that fd is open on. One to
// read only is a description of its own: there is no other way to have one that
// cannot be written to. Those who may write share the server's. What they could
// do to it, as to its offset, nobody who uses the memory looks at.
func duplicate(fd uintptr, readOnly bool) (int, error) {
	if !readOnly {
		return unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	}
	n, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return n, fmt.Errorf("%w: no /proc", errors.ErrUnsupported)
	}
	return n, err
}

// oobSize has room for one descriptor, or two where there is padding. The kernel
// closes those that have none: cmsg(3).
const oobSize = unix.SizeofCmsghdr + 8

// memorySize is sealedSize for a descriptor: only the kernel answers F_GET_SEALS
// of fcntl(2), and only for memory.
func memorySize(fd uintptr) (int64, error) {
	const sealed = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	seals, err := unix.FcntlInt(fd, unix.F_GET_SEALS, 0)
	if err == nil && seals&sealed != sealed {
		err = errors.New("not sealed")
	}
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstat(int(fd), &st)
	}
	return st.Size, err
}
