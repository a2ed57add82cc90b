//go:build linux || darwin

package manager

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const supported = true

var errUnsupported error // of the other systems

// rights returns the message that f travels in: SCM_RIGHTS of unix(7).
func rights(f *os.File) []byte { return unix.UnixRights(int(f.Fd())) }

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
