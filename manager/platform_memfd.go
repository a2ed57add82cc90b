//go:build linux && !standin

package manager

import (
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
)

// checkAddr returns the error for an address that there cannot be.
func checkAddr(string) error { return nil }

// restricts is whether duplicate can make a descriptor to read only.
const restricts = true

// duplicate returns another descriptor of the memory that fd is open on. One to
// read only is a description of its own: there is no other way to have one that
// cannot be written to. Those who may write share the server's. What they could
// do to it, as to its offset, nobody who uses the memory looks at.
func duplicate(fd uintptr, readOnly bool) (uintptr, error) {
	if !readOnly {
		n, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		return uintptr(n), err
	}
	n, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return 0, fmt.Errorf("%w: no /proc", errors.ErrUnsupported)
	case errors.Is(err, unix.EAGAIN): // a client has a lease on it: F_SETLEASE of fcntl(2)
		return 0, fmt.Errorf("%w: %w", shm.ErrBusy, err)
	}
	return uintptr(n), err
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

// readMsg is conn.ReadMsgUnix, but for this: if there is nothing to read, it
// lets others have the processor once, and looks again, before it sleeps. The
// other side has mostly been woken on this processor, by what was written to it
// before; its answer is then there, and no goroutine has to be put to sleep and
// woken for it, which would take longer than the answer.
func readMsg(conn *net.UnixConn, p, oob []byte) (n, oobn, flags int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, 0, 0, err
	}
	yielded := false
	waitErr := raw.Read(func(fd uintptr) bool {
		for {
			n, oobn, flags, _, err = unix.Recvmsg(int(fd), p, oob, unix.MSG_CMSG_CLOEXEC)
			switch {
			case err == unix.EINTR:
			case err != unix.EAGAIN || yielded:
				return err != unix.EAGAIN
			default:
				unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
				yielded = true
			}
		}
	})
	switch {
	case waitErr != nil:
		return 0, 0, 0, waitErr
	case err == nil && n == 0:
		return 0, 0, 0, io.EOF
	}
	return n, oobn, flags, err
}
