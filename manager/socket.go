//go:build linux || darwin

package manager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm/internal/object"
)

const supported = true

var errUnsupported error // of the other systems

// errBacklog is a server that has not come to accept others yet.
const errBacklog = syscall.EAGAIN

// passing are the reasons not to accept a connection that can pass.
var passing = []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.ECONNABORTED}

// What connecting to an address without a server returns. The second can come from
// a server that has not come to accept others yet: see refusedFor.
const (
	errNoSocket = syscall.ENOENT
	errRefused  = syscall.ECONNREFUSED
)

// errUnderWay is too many descriptors of this user that nobody has received yet.
const errUnderWay = syscall.ETOOMANYREFS

// conn is a connection. This is all that a process does with a descriptor that
// another process has sent:
//
//   - A server on Linux never has one. Polling a descriptor, asking for its size or
//     closing it can wait for the process that sent it, beyond SIGKILL: it can be a
//     file of a user-space file system. So can the exit of a process that has it
//     open, because exit flushes files. The protocol therefore sends none to the
//     server. If a client does, the kernel refuses (SO_PASSRIGHTS of socket(7)).
//     Before Linux 6.16 it does not; there the server looks before it reads (peek)
//     and closes the connection instead. The kernel then releases the descriptors
//     without a flush, and a release that lingers is interrupted (cutShort).
//   - A server on darwin and a client keep the last one, as a number until the
//     kernel itself says that it is memory (isMemory), and as an os.File, which can
//     be polled, from then on. Any other is closed, with nothing done to it, by a
//     goroutine that nobody waits for (unwanted).
type conn struct {
	*net.UnixConn
	oob  []byte // room for descriptors; without any the kernel drops them
	peek bool   // for descriptors, which would otherwise be dropped where we read
	last *os.File
	lost error   // why there is none
	want request // whose file comes next
}

func dialOnce(ctx context.Context, addr string) (*conn, error) {
	if err := checkAddr(addr); err != nil {
		return nil, err
	}
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unix", addr)
	if err != nil {
		return nil, err
	}
	return &conn{UnixConn: c.(*net.UnixConn), oob: make([]byte, oobSize)}, nil
}

// accepted returns the server's end of a connection.
func accepted(l net.Conn) (*conn, error) {
	socket, ok := l.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("%w: not a Unix socket", fs.ErrInvalid)
	}
	c := &conn{UnixConn: socket}
	if createsMemory() {
		control(socket, func(fd uintptr) error {
			c.peek = !refusesRights(fd)
			return nil
		})
	} else {
		c.oob = make([]byte, oobSize)
	}
	return c, socket.SetWriteBuffer(sendBuffer)
}

// hangUp ends the connection without closing it, which would wait for calls in
// progress and for what else is to be closed with it. They end.
func (c *conn) hangUp() {
	c.CloseRead()
	c.CloseWrite()
}

// unread reports whether the other side has not read all that was sent.
func (c *conn) unread() (unread bool) {
	control(c.UnixConn, func(fd uintptr) error {
		unread = queued(fd)
		return nil
	})
	return unread
}

// peer returns who connected.
func (c *conn) peer() (p Peer, err error) {
	err = control(c.UnixConn, func(fd uintptr) (err error) {
		p, err = credentials(int(fd))
		return err
	})
	return p, err
}

func (c *conn) sameUser(p Peer) Access {
	if p.privileged() {
		return FullAccess
	}
	return NoAccess
}

// send sends a line, with f unless it is nil.
func (c *conn) send(line []byte, f *os.File) error {
	if f != nil {
		n, _, err := c.WriteMsgUnix(line, rights(f), nil)
		if err != nil {
			return err
		}
		if line = line[n:]; len(line) == 0 {
			return nil
		}
	}
	_, err := c.Write(line)
	return err
}

func (c *conn) Read(p []byte) (int, error) {
	n, oobn, flags, err := c.receive(p)
	if c.oob != nil {
		if f, err := received(c.oob[:max(oobn, 0)], flags, c.want.Name); f != nil || err != nil {
			c.last.Close() // if there is one
			c.last, c.lost = f, err
		}
	}
	if errors.Is(err, io.EOF) {
		err = io.EOF // as a Reader must
	}
	return max(n, 0), err
}

// received returns the first file that came in a message, nil if there is none.
// The error is EMFILE if there was one and this process has no descriptor left, or
// errNotMemory.
func received(oob []byte, flags int, name string) (f *os.File, err error) {
	messages, _ := unix.ParseSocketControlMessage(oob)
	for _, m := range messages {
		fds, _ := unix.ParseUnixRights(&m)
		for _, fd := range fds {
			switch {
			case f == nil && isMemory(uintptr(fd)):
				f, err = os.NewFile(uintptr(fd), name), nil
			default:
				unwanted.add(func() { unix.Close(fd) })
				if f == nil {
					err = errNotMemory
				}
			}
		}
	}
	if f == nil && err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = unix.EMFILE
	}
	return f, err
}

// isMemory reports whether fd, which can be anything, is memory.
func isMemory(fd uintptr) bool {
	_, err := object.Current.MemorySize(fd)
	return err == nil
}

var errNotMemory = errors.New("a descriptor of something else than memory")

// take returns the file that came last, nil if there is none.
func (c *conn) take(string) (*os.File, error) {
	f, err := c.last, c.lost
	c.last, c.lost = nil, nil
	return f, err
}

func sectionOf(*os.File) string { return "" }

// rights returns the message that f travels in: SCM_RIGHTS of unix(7).
func rights(f *os.File) []byte { return unix.UnixRights(int(f.Fd())) }

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
	if errors.Is(err, syscall.EADDRINUSE) && abandoned(addr) {
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
		return c.Control(func(fd uintptr) { refuseRights(fd) }) // as connections will
	}}
	l, err := config.Listen(context.Background(), "unix", addr)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// listener listens at a socket with a file, and removes the file.
type listener struct {
	*net.UnixListener
	socket fs.FileInfo
	once   sync.Once
}

// Close removes the file only if it is still this socket's: another server can be
// listening there by now. It does so before it closes the socket, which keeps the
// inode number from being reused, and does not wait for it longer than a second. If
// the file stays, Listen replaces it.
func (l *listener) Close() error {
	l.once.Do(func() {
		done := make(chan struct{})
		go func() {
			l.remove()
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(time.Second):
		}
	})
	return l.UnixListener.Close()
}

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

// lock keeps other servers from addr, so that none of them removes a socket that
// is in use. It locks a file beside the socket, which other users cannot open, and
// unlock removes it. A file that a killed process has left behind is not locked, and
// is taken over. A file of another user is fs.ErrPermission.
func lock(addr string, most time.Duration) (unlock func(), err error) {
	path := addr + ".lock"
	for end := time.Now().Add(most); ; time.Sleep(time.Millisecond) {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
		if err != nil {
			return nil, err
		}
		held, err := f.Stat()
		if err == nil && (!held.Mode().IsRegular() || int(held.Sys().(*syscall.Stat_t).Uid) != os.Geteuid()) {
			err = fmt.Errorf("%w: it is not a file of this user", fs.ErrPermission)
		}
		if err == nil {
			err = flock(f)
		}
		if err == nil {
			// The holder before may have removed it between the open and the lock.
			if there, err := os.Lstat(path); err == nil && os.SameFile(there, held) {
				return func() {
					os.Remove(path)
					f.Close()
				}, nil
			}
		}
		f.Close()
		if err != nil && (!errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(end)) {
			return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
		}
	}
}

// flock takes an exclusive lock: flock(2).
func flock(f *os.File) error {
	return control(f, func(fd uintptr) error { return unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB) })
}

// abandoned reports whether addr is a socket that nobody listens at.
func abandoned(addr string) bool {
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
