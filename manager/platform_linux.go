package manager

import (
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

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
