package manager

import (
	"errors"
	"fmt"
	"os"
	"strings"
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

// checkAddr returns the error for an address that there cannot be: one without a
// file would be taken for the name of one.
func checkAddr(addr string) error {
	if strings.HasPrefix(addr, "@") {
		return fmt.Errorf("%w: address without a file", errors.ErrUnsupported)
	}
	return nil
}

// oobSize has room for all that one message can bring (MCLBYTES: sockargs of
// bsd/kern/uipc_syscalls.c), because the kernel does not close what has none.
const oobSize = 2 << 10

func createMemory(int64) (*os.File, error) { return nil, errors.ErrUnsupported }

func refuseRights(uintptr) error { return errors.ErrUnsupported }
func refusesRights(uintptr) bool { return false }

func (c *conn) receive(p []byte) (n, oobn, flags int, err error) {
	n, oobn, flags, _, err = c.ReadMsgUnix(p, c.oob)
	return n, oobn, flags, err
}
