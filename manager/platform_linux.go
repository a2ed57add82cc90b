package manager

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm/internal/object"
)

// checkAddr returns the error for an address that there cannot be.
func checkAddr(string) error { return nil }

// oobSize has room for all that one message can bring.
const oobSize = 2 << 10

// createMemory returns a file of size bytes of memory, whose size cannot change.
func createMemory(size int64) (*os.File, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err == nil && uint64(size) > limit.Cur {
		// The kernel would say so by a signal that ends the process.
		return nil, fmt.Errorf("%w: %d bytes: the limit for files of the manager is %d", ErrQuota, size, limit.Cur)
	}
	fd, err := object.Current.CreateMemory(size)
	if err != nil {
		return nil, err
	}
	return os.NewFile(fd, "memory"), nil
}

// credentials returns who connected: SO_PEERCRED of unix(7).
func credentials(fd int) (Peer, error) {
	cred, err := syscall.GetsockoptUcred(fd, syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	if err != nil {
		return Peer{}, err
	}
	return Peer{PID: int(cred.Pid), UID: int(cred.Uid), GID: int(cred.Gid)}, nil
}

// totalMemory returns how many bytes of memory the machine has.
func totalMemory() int64 {
	var info syscall.Sysinfo_t
	if err := syscall.Sysinfo(&info); err != nil {
		return 0
	}
	return int64(info.Totalram) * int64(info.Unit)
}

// refusedFor is for how long a server can refuse connections that is there. Here
// it has one wait that it has no time for: connect(2).
const refusedFor time.Duration = 0

// queued reports whether the other side has not read all that was sent: SIOCOUTQ
// of unix(7).
func queued(fd uintptr) bool {
	n, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
	return err == nil && n > 0
}

// cutShort calls f, and interrupts it every few milliseconds if it takes long. The
// last close of a socket can wait for the other side as long as its user likes
// (SO_LINGER of socket(7)), but only until a signal. The signal is the one that
// the Go runtime has for itself.
func cutShort(f func()) {
	const long = 10 * time.Millisecond
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread, done := unix.Gettid(), make(chan struct{})
	slow := time.AfterFunc(long, func() {
		for {
			unix.Tgkill(os.Getpid(), thread, unix.SIGURG)
			select {
			case <-time.After(long):
			case <-done:
				return
			}
		}
	})
	f()
	slow.Stop()
	close(done)
}

// refuseRights has the kernel refuse descriptors that are sent to a socket, and
// to what is accepted from it.
func refuseRights(fd uintptr) error {
	if acceptRights || !createsMemory() {
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
