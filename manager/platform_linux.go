package manager

import (
	"syscall"
	"time"
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
