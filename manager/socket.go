//go:build !windows

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
	"syscall"
	"time"
)

// errBacklog is a server that has not come to accept others yet.
const errBacklog = syscall.EAGAIN

// errLost is a descriptor that did not arrive.
var errLost = ErrQuota

// passing are the reasons not to accept a connection that can pass.
var passing = []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.ECONNABORTED}

// conn is a connection that descriptors come along with. It keeps the last one
// until somebody takes it. It has room for no more: the rest is closed, by the
// kernel or here.
type conn struct {
	*net.UnixConn
	oob  [oobSize]byte
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
	return &conn{UnixConn: c.(*net.UnixConn)}, nil
}

// accepted returns the server's end of a connection.
func accepted(c net.Conn) (*conn, error) {
	socket, ok := c.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("%w: not a Unix socket", fs.ErrInvalid)
	}
	return &conn{UnixConn: socket}, socket.SetWriteBuffer(sendBuffer)
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
	if p.UID == os.Geteuid() || p.UID == 0 {
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
	n, oobn, flags, err := readMsg(c.UnixConn, p, c.oob[:])
	if f, err := received(c.oob[:max(oobn, 0)], flags, c.want.Name); f != nil || err != nil {
		c.last.Close() // if there is one
		c.last, c.lost = f, err
	}
	if errors.Is(err, io.EOF) {
		err = io.EOF // as a Reader must
	}
	return max(n, 0), err
}

// take returns the file that came last, nil if there is none.
func (c *conn) take(string) (*os.File, error) {
	f, err := c.last, c.lost
	c.last, c.lost = nil, nil
	return f, err
}

func sectionOf(*os.File) string { return "" }

func listen(addr string) (net.Listener, error) {
	if err := checkAddr(addr); err != nil {
		return nil, err
	}
	if strings.HasPrefix(addr, "@") {
		return net.Listen("unix", addr)
	}
	unlock, err := lockDir(addr)
	if err != nil {
		return nil, err
	}
	defer unlock()
	l, err := net.Listen("unix", addr)
	if errors.Is(err, syscall.EADDRINUSE) && abandoned(addr) {
		if err := os.Remove(addr); err != nil {
			return nil, err
		}
		l, err = net.Listen("unix", addr)
	}
	if err != nil {
		return nil, err
	}
	// Whoever connects in between is still looked at by Authorize.
	if err := os.Chmod(addr, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
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
