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
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm/internal/object"
)

// socket implements conn.
//
// A descriptor from another process is dangerous. It can be of a file in a
// user-space file system, where a poll, a stat, and the flush of a close wait for
// that process, beyond SIGKILL. When a process exits, the kernel flushes all that it
// has open, so it does not help to leave a descriptor alone. Therefore:
//
//   - The protocol sends none to a server. On Linux the kernel refuses them
//     (SO_PASSRIGHTS of socket(7)). Before Linux 6.16 it cannot; there the server
//     looks before it reads (peek) and ends a connection on which there are some. The
//     kernel then releases them without a flush, and cutShort interrupts a release
//     that lingers. On darwin they do arrive, and also end the connection.
//   - A client uses a descriptor only if the kernel itself says that it is memory.
//   - Any other is closed by closeLater, and nothing else is done to it.
type socket struct {
	*net.UnixConn
	server bool
	peek   bool   // look for descriptors before reading
	oob    []byte // room for descriptors; nil where none can come
	fd     int    // the last memory that came, -1 if none
	lost   error  // why there is none although a descriptor came
}

// oobSize has room for all descriptors that one message can bring. The kernel of
// darwin does not close those for which there is no room (MCLBYTES: sockargs of
// bsd/kern/uipc_syscalls.c).
const oobSize = 2 << 10

// passing are the errors of isPassing.
var passing = []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS}

func dialOnce(ctx context.Context, addr string) (conn, error) {
	if err := checkAddr(addr); err != nil {
		return nil, err
	}
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unix", addr)
	if err != nil {
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
			err = fmt.Errorf("%w: %w", ErrGone, err)
		}
		return nil, err
	}
	return &socket{UnixConn: c.(*net.UnixConn), oob: make([]byte, oobSize), fd: -1}, nil
}

// busyFor returns for how long err can come from a server that is there and has not
// accepted other connections yet.
func busyFor(err error) time.Duration {
	switch {
	case errors.Is(err, syscall.EAGAIN):
		return stall
	case errors.Is(err, syscall.ECONNREFUSED):
		return refusedFor
	}
	return 0
}

// checkAddr returns the error for an address that the system does not have. darwin
// would take one without a file for the name of a file.
func checkAddr(addr string) error {
	if runtime.GOOS != "linux" && strings.HasPrefix(addr, "@") {
		return fmt.Errorf("%w: address without a file", errors.ErrUnsupported)
	}
	return nil
}

// accepted returns the server's end of a connection.
func accepted(c net.Conn) (conn, error) {
	unixConn, ok := c.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("%w: not a Unix socket", fs.ErrInvalid)
	}
	s := &socket{UnixConn: unixConn, server: true, fd: -1}
	s.guard()
	return s, s.SetWriteBuffer(sendBuffer)
}

func (s *socket) peer() (Peer, Access, error) {
	p, err := object.WithFD(s, credentials)
	if p.privileged() {
		return p, FullAccess, err
	}
	return p, NoAccess, err
}

// sendFile implements conn. The kernel bounds how many descriptors a user can have
// under way, and all that a server sends are of its own user. So each client has one
// at most.
func (s *socket) sendFile(r response, f *os.File) error {
	if s.unread() {
		return fmt.Errorf("%w: a descriptor before the last response was read", ErrQuota)
	}
	line := marshal(r)
	n, _, err := s.WriteMsgUnix(line, unix.UnixRights(int(f.Fd())), nil)
	if errors.Is(err, syscall.ETOOMANYREFS) { // under way from other processes of this user
		return fmt.Errorf("%w: %v", ErrQuota, err)
	}
	if err == nil && n < len(line) {
		_, err = s.Write(line[n:])
	}
	return err
}

func (s *socket) takeFile(_ response, req request) (*os.File, error) {
	fd, lost := s.fd, s.lost
	s.fd, s.lost = -1, nil
	if fd < 0 {
		return nil, lost
	}
	return os.NewFile(uintptr(fd), req.Name), nil
}

// hangUp implements conn by shutdown(2).
func (s *socket) hangUp() {
	s.CloseRead()
	s.CloseWrite()
}

var (
	errRights    = errors.New("client sends descriptors")
	errNotMemory = errors.New("a descriptor of something else than memory")
)

func (s *socket) Read(p []byte) (int, error) {
	n, oobn, flags, err := s.receive(p)
	fds := descriptors(s.oob[:max(oobn, 0)])
	switch {
	case s.server && len(fds) > 0:
		err = errRights
	case len(fds) > 0:
		s.lost = errNotMemory
	case flags&unix.MSG_CTRUNC != 0:
		s.lost = unix.EMFILE
	}
	for _, fd := range fds {
		if !s.server && object.Current.IsMemory(uintptr(fd)) {
			fd, s.fd = s.fd, fd
		}
		if fd >= 0 {
			closeLater(func() { unix.Close(fd) })
		}
	}
	if errors.Is(err, io.EOF) {
		err = io.EOF // itself, as a Reader must
	}
	return max(n, 0), err
}

// descriptors returns those that came in a message.
func descriptors(oob []byte) (fds []int) {
	messages, _ := unix.ParseSocketControlMessage(oob)
	for _, m := range messages {
		more, _ := unix.ParseUnixRights(&m)
		fds = append(fds, more...)
	}
	return fds
}
