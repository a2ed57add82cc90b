//go:build linux && !standin

package manager

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/memfd"
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

// createsMemory is whether the server creates the memory of blocks, and not the
// client.
const createsMemory = true

// createMemory returns a file of size bytes of memory, whose size cannot change.
func createMemory(size int64) (*os.File, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err == nil && uint64(size) > limit.Cur {
		// The kernel would say so by a signal that ends the process.
		return nil, fmt.Errorf("%w: %d bytes: the limit for files of the manager is %d", ErrQuota, size, limit.Cur)
	}
	fd, err := memfd.Create(size)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "memory"), nil
}

// isMemory reports whether fd, which can be anything, is memory: only the kernel
// answers F_GET_SEALS of fcntl(2), and only for memory.
func isMemory(fd uintptr) bool {
	_, err := unix.FcntlInt(fd, unix.F_GET_SEALS, 0)
	return err == nil
}

// memorySize: a server knows the size of what it has created.
func memorySize(uintptr) (int64, error) { return 0, errors.ErrUnsupported }

// refuseRights has the kernel refuse descriptors that are sent to a socket, and
// to what is accepted from it.
func refuseRights(fd uintptr) error {
	if acceptRights {
		return unix.ENOPROTOOPT
	}
	return unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 0)
}

// acceptRights makes this a kernel before Linux 6.16, which has no such option.
var acceptRights bool // a variable for tests alone

// refusesRights reports whether the kernel has refused them from the beginning.
func refusesRights(fd uintptr) bool {
	rights, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSRIGHTS)
	if err == nil && rights != 0 { // of a listener that is none of Listen's
		refuseRights(fd)
	}
	return err == nil && rights == 0
}

var errRights = errors.New("client sends descriptors")

// receive is ReadMsgUnix, but for two things. If the kernel does not refuse
// descriptors, it looks first, and where there is one, which the kernel does not
// leave out of what MSG_PEEK says, it reads nothing, and returns errRights. And if there is nothing to read, it
// lets others have the processor once, and looks again, before it sleeps. The
// other side has mostly been woken on this processor, by what was written to it
// before; its answer is then there, and no goroutine has to be put to sleep and
// woken for it, which would take longer than the answer.
func (c *conn) receive(p []byte) (n, oobn, flags int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0, 0, err
	}
	yielded := false
	waitErr := raw.Read(func(fd uintptr) bool {
		for {
			n, oobn, flags, err = c.receiveNow(int(fd), p)
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

func (c *conn) receiveNow(fd int, p []byte) (n, oobn, flags int, err error) {
	if c.peek {
		n, _, flags, _, err = unix.Recvmsg(fd, p, nil, unix.MSG_PEEK)
		if err == nil && flags&unix.MSG_CTRUNC != 0 {
			err = errRights
		}
		if err != nil || n == 0 {
			return n, 0, flags, err
		}
		p = p[:n] // for what comes behind can have one
	}
	n, oobn, flags, _, err = unix.Recvmsg(fd, p, c.oob, unix.MSG_CMSG_CLOEXEC)
	return n, oobn, flags, err
}
