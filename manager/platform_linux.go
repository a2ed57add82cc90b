//go:build !standin

package manager

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const supported = true

var errUnsupported error // of the other systems

// peerOf returns who connected: SO_PEERCRED of unix(7).
func peerOf(conn *net.UnixConn) (p Peer, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return p, err
	}
	var cred *syscall.Ucred
	controlErr := raw.Control(func(fd uintptr) {
		cred, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err := errors.Join(controlErr, err); err != nil {
		return p, err
	}
	return Peer{PID: int(cred.Pid), UID: int(cred.Uid), GID: int(cred.Gid)}, nil
}

// share returns a file of the memory that f is open on, to be sent to a client.
// One to read only is a description of its own: there is no other way to have
// one that cannot be written to. Those who may write share the server's. What
// they could do to it, as to its offset, nobody who uses the memory looks at.
func share(f *os.File, readOnly bool) (shared *os.File, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		var n int
		if readOnly {
			n, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		} else {
			n, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		}
		if err == nil {
			shared = os.NewFile(uintptr(n), "")
		}
	})
	switch {
	case controlErr != nil:
		return nil, fs.ErrClosed
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: no /proc", errors.ErrUnsupported)
	case err != nil:
		return nil, err
	}
	return shared, nil
}

// rights returns the message that f travels in: SCM_RIGHTS of unix(7).
func rights(f *os.File) []byte { return unix.UnixRights(int(f.Fd())) }

// oobSize has room for one descriptor, or two where there is padding. The kernel
// closes those that have none: cmsg(3).
const oobSize = unix.SizeofCmsghdr + 8

// received returns the first file that came in a message, nil if there is none.
// The error is EMFILE if there was one and this process has no descriptor left.
func received(oob []byte, flags int, name string) (f *os.File, err error) {
	messages, _ := unix.ParseSocketControlMessage(oob)
	for _, m := range messages {
		fds, _ := unix.ParseUnixRights(&m)
		for _, fd := range fds {
			if f == nil {
				f = os.NewFile(uintptr(fd), name)
			} else {
				unix.Close(fd)
			}
		}
	}
	if f == nil && flags&unix.MSG_CTRUNC != 0 {
		err = unix.EMFILE
	}
	return f, err
}

// sealedSize returns how many bytes of memory f is, if their number cannot
// change. It does nothing to f, which can be anything, that could wait: only the
// kernel answers F_GET_SEALS of fcntl(2), and only for memory.
func sealedSize(f *os.File) (size int64, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		const sealed = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
		var seals int
		if seals, err = unix.FcntlInt(fd, unix.F_GET_SEALS, 0); err == nil && seals&sealed != sealed {
			err = errors.New("not sealed")
		}
		var st unix.Stat_t
		if err == nil {
			err = unix.Fstat(int(fd), &st)
		}
		size = st.Size
	})
	return size, errors.Join(controlErr, err)
}

// totalMemory returns how many bytes of memory the machine has.
func totalMemory() int64 {
	var info syscall.Sysinfo_t
	if err := syscall.Sysinfo(&info); err != nil {
		return 0
	}
	return int64(info.Totalram) * int64(info.Unit)
}

// lockDir keeps other servers from the directory that addr is in, so that of
// two that start at once neither removes the other's socket.
func lockDir(addr string) (unlock func(), err error) {
	dir, err := os.Open(filepath.Dir(addr))
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(stall); ; time.Sleep(time.Millisecond) {
		err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { dir.Close() }, nil
		}
		if time.Now().After(end) {
			dir.Close()
			return nil, &fs.PathError{Op: "lock", Path: dir.Name(), Err: err}
		}
	}
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
