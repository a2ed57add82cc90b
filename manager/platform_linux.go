package manager

import (
	"io"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm/internal/object"
)

// credentials returns the process that connected: SO_PEERCRED of unix(7).
func credentials(fd uintptr) (Peer, error) {
	cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
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

// refusedFor is for how long ECONNREFUSED can come from a server that is there:
// never, because a full backlog is EAGAIN (connect(2)).
const refusedFor time.Duration = 0

// unread implements conn by SIOCOUTQ of unix(7).
func (s *socket) unread() bool {
	n, err := object.WithFD(s, func(fd uintptr) (int, error) { return unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return err == nil && n > 0
}

// cutShort calls f and interrupts it every few milliseconds if it takes long. The
// last close of a socket can wait for its peer as long as the process that has set
// SO_LINGER wants (socket(7)), but only until a signal. The signal is the one that
// the Go runtime uses to preempt goroutines.
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

// refuseRights makes the kernel refuse descriptors that are sent to a socket, and to
// the connections of a listener.
func refuseRights(fd uintptr) {
	if !acceptRights {
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 0)
	}
}

// acceptRights makes this a kernel before Linux 6.16, which has no such option.
var acceptRights bool // a variable for tests alone

// guard makes a server peek for descriptors unless the kernel has refused them since
// the connection was made, which it does for the listeners of Listen.
func (s *socket) guard() {
	s.peek, _ = object.WithFD(s, func(fd uintptr) (bool, error) {
		rights, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSRIGHTS)
		if err == nil && rights != 0 {
			refuseRights(fd)
		}
		return err != nil || rights != 0, nil
	})
}

// receive is ReadMsgUnix with two differences. It peeks if it has to: see
// receiveNow. And if there is nothing to read, it yields the processor once and
// looks again before it sleeps. What was written before has often woken the other
// side on the same processor. Its answer is then there, and no goroutine has to
// sleep and be woken, which takes longer than the answer.
func (s *socket) receive(p []byte) (n, oobn, flags int, err error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return 0, 0, 0, err
	}
	yielded := false
	waitErr := raw.Read(func(fd uintptr) bool {
		for {
			n, oobn, flags, err = s.receiveNow(int(fd), p)
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

// receiveNow reads nothing, and returns errRights, if s peeks and finds descriptors:
// with MSG_PEEK and no room for them the kernel says that there are some.
func (s *socket) receiveNow(fd int, p []byte) (n, oobn, flags int, err error) {
	if s.peek {
		n, _, flags, _, err = unix.Recvmsg(fd, p, nil, unix.MSG_PEEK)
		if err == nil && flags&unix.MSG_CTRUNC != 0 {
			err = errRights
		}
		if err != nil || n == 0 {
			return n, 0, flags, err
		}
		p = p[:n] // what has arrived since can have some
	}
	n, oobn, flags, _, err = unix.Recvmsg(fd, p, s.oob, unix.MSG_CMSG_CLOEXEC)
	return n, oobn, flags, err
}
