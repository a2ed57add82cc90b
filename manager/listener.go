//go:build linux || darwin

package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// listener listens at a socket with a file. Its Close removes the file.
type listener struct {
	*net.UnixListener
	socket fs.FileInfo
	once   sync.Once
}

func listen(addr string) (net.Listener, error) {
	if err := checkAddr(addr); err != nil {
		return nil, err
	}
	if strings.HasPrefix(addr, "@") {
		return bind(addr)
	}
	unlock, err := lock(addr, stall)
	if err != nil {
		return nil, err
	}
	defer unlock()
	l, err := bind(addr)
	if errors.Is(err, syscall.EADDRINUSE) && isStale(addr) {
		if err := os.Remove(addr); err != nil {
			return nil, err
		}
		l, err = bind(addr)
	}
	if err != nil {
		return nil, err
	}
	// A process that connects before this still has to pass Authorize.
	err = os.Chmod(addr, 0o600)
	socket, statErr := os.Lstat(addr)
	if err = errors.Join(err, statErr); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	l.SetUnlinkOnClose(false)
	return &listener{UnixListener: l, socket: socket}, nil
}

func bind(addr string) (*net.UnixListener, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(refuseRights)
	}}
	l, err := config.Listen(context.Background(), "unix", addr)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// Close removes the file before it closes the socket: until then the inode number
// is not reused.
func (l *listener) Close() error {
	l.once.Do(l.remove)
	return l.UnixListener.Close()
}

// remove removes the file if it is still this listener's: another server can have
// replaced it. If the file stays, the next Listen replaces it.
func (l *listener) remove() {
	path := l.Addr().String()
	unlock, err := lock(path, time.Second)
	if err != nil {
		return
	}
	defer unlock()
	if there, err := os.Lstat(path); err == nil && os.SameFile(there, l.socket) {
		os.Remove(path)
	}
}

// lock excludes other servers from addr, so that none of them removes a socket that
// is in use. It locks a file beside the socket, which other users cannot open, and
// which unlock removes. It waits no longer than most.
func lock(addr string, most time.Duration) (unlock func(), err error) {
	path := addr + ".lock"
	for end := time.Now().Add(most); ; time.Sleep(time.Millisecond) {
		f, err := tryLock(path)
		if err == nil {
			return func() {
				os.Remove(path)
				f.Close()
			}, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(end) {
			return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
		}
	}
}

// tryLock creates and locks the file at path. A file that a killed process has left
// behind is not locked, and is reused. The error is EWOULDBLOCK while another
// process has it, and fs.ErrPermission for a file of another user.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	held, err := f.Stat()
	if err == nil && (!held.Mode().IsRegular() || int(held.Sys().(*syscall.Stat_t).Uid) != os.Geteuid()) {
		err = fmt.Errorf("%w: it is not a file of this user", fs.ErrPermission)
	}
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		// The process that held it can have removed it between the open and the lock.
		if there, err := os.Lstat(path); err == nil && os.SameFile(there, held) {
			return f, nil
		}
		err = syscall.EWOULDBLOCK
	}
	f.Close()
	return nil, err
}

// isStale reports whether addr is a socket at which no process listens.
func isStale(addr string) bool {
	if info, err := os.Lstat(addr); err != nil || info.Mode().Type() != fs.ModeSocket {
		return false
	}
	for end := time.Now().Add(refusedFor); ; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("unix", addr)
		if err == nil {
			conn.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) || !time.Now().Before(end) {
			return errors.Is(err, syscall.ECONNREFUSED)
		}
	}
}
