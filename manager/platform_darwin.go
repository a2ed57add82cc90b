package manager

import (
	"time"

	"golang.org/x/sys/unix"
)

// credentials returns the user that connected, by LOCAL_PEERCRED of unix(4), and the
// process that has last used the other end, by LOCAL_PEERPID of sys/un.h.
func credentials(fd uintptr) (Peer, error) {
	cred, err := unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	if err != nil {
		return Peer{}, err
	}
	pid, err := unix.GetsockoptInt(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERPID)
	return Peer{PID: pid, UID: int(cred.Uid), GID: int(cred.Groups[0])}, err
}

// totalMemory returns how many bytes of memory the machine has.
func totalMemory() int64 {
	n, _ := unix.SysctlUint64("hw.memsize")
	return int64(n)
}

// refusedFor is for how long ECONNREFUSED can come from a server that is there: it
// comes when the backlog is full. See unp_connect of bsd/kern/uipc_usrreq.c.
const refusedFor = 100 * time.Millisecond

// unread implements conn: the system does not say.
func (s *socket) unread() bool { return false }

func cutShort(f func()) { f() }

// The system cannot refuse descriptors, so they need room.
func refuseRights(uintptr) {}
func (s *socket) guard()   { s.oob = make([]byte, oobSize) }

func (s *socket) receive(p []byte) (n, oobn, flags int, err error) {
	n, oobn, flags, _, err = s.ReadMsgUnix(p, s.oob)
	return n, oobn, flags, err
}
