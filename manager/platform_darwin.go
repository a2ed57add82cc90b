package manager

import (
	"time"

	"golang.org/x/sys/unix"
)

// credentials returns who connected: LOCAL_PEERCRED of unix(4), and the process
// that has used the other end last, from LOCAL_PEERPID of sys/un.h.
func credentials(fd int) (Peer, error) {
	cred, err := unix.GetsockoptXucred(fd, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	if err != nil {
		return Peer{}, err
	}
	pid, err := unix.GetsockoptInt(fd, unix.SOL_LOCAL, unix.LOCAL_PEERPID)
	return Peer{PID: pid, UID: int(cred.Uid), GID: int(cred.Groups[0])}, err
}

// totalMemory returns how many bytes of memory the machine has.
func totalMemory() int64 {
	n, _ := unix.SysctlUint64("hw.memsize")
	return int64(n)
}

// refusedFor is for how long a server can refuse connections that is there: when
// more wait than it has come to accept. See unp_connect of bsd/kern/uipc_usrreq.c.
const refusedFor = 100 * time.Millisecond

// queued: that cannot be asked of a socket here.
func queued(uintptr) bool { return false }

func cutShort(f func()) { f() }
