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

	"golang.org/x/sys/windows"

	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/section"
)

const pipes = `\\.\pipe\`

// pipePath returns the name of the pipe at addr. It must be a pipe of this machine: to
// another machine, a client would have to prove its identity.
func pipePath(addr string) (*uint16, error) {
	name, ok := strings.CutPrefix(addr, "@")
	if !ok {
		name, ok = strings.CutPrefix(addr, pipes)
	}
	if !ok || name == "" {
		return nil, fmt.Errorf("%w: not the address of a pipe", fs.ErrInvalid)
	}
	return windows.UTF16PtrFromString(pipes + name)
}

// pipe implements conn.
type pipe struct {
	*os.File
	client uint32 // process id
	access Access // by default
}

func newPipe(h windows.Handle) *pipe {
	return &pipe{File: os.NewFile(uintptr(h), "pipe")} // overlapped, so calls can have deadlines
}

// dialOnce does not let the server act as this user, and refuses a server of another
// user, because every process can create a pipe of a name that is free.
func dialOnce(ctx context.Context, addr string) (conn, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	path, err := pipePath(addr)
	if err != nil {
		return nil, err
	}
	const flags = windows.FILE_FLAG_OVERLAPPED | windows.SECURITY_SQOS_PRESENT | windows.SECURITY_IDENTIFICATION
	h, err := windows.CreateFile(path, windows.GENERIC_READ|windows.GENERIC_WRITE, 0, nil, windows.OPEN_EXISTING, flags, 0)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", ErrGone, err)
	}
	if err != nil {
		return nil, err
	}
	if err := ownedByUs(h); err != nil {
		windows.CloseHandle(h)
		return nil, err
	}
	return newPipe(h), nil
}

// ownedByUs returns the error for a pipe that this user has not created. The owner is
// known to the kernel; the id of the process that serves could be reused by now.
func ownedByUs(pipe windows.Handle) error {
	sd, err := windows.GetSecurityInfo(pipe, windows.SE_KERNEL_OBJECT, windows.OWNER_SECURITY_INFORMATION)
	if err != nil {
		return err
	}
	owner, _, err := sd.Owner()
	if err != nil {
		return err
	}
	if !isUs(owner) {
		return fmt.Errorf("%w: pipe of another user, %v", fs.ErrPermission, owner)
	}
	return nil
}

// accepted returns the server's end of a connection.
func accepted(c net.Conn) (conn, error) {
	p, ok := c.(*pipe)
	if !ok {
		return nil, fmt.Errorf("%w: not a pipe of Listen", fs.ErrInvalid)
	}
	return p, nil
}

func (p *pipe) peer() (Peer, Access, error) {
	return Peer{PID: int(p.client), UID: -1, GID: -1}, p.access, nil
}

// sendFile implements conn: it sends the name of the section that f is open on.
func (p *pipe) sendFile(r response, f *os.File) (err error) {
	r.Section, err = object.WithFD(f, func(h uintptr) (string, error) { return section.Name(windows.Handle(h)) })
	if err == nil {
		_, err = p.Write(marshal(r))
	}
	return err
}

func (p *pipe) takeFile(r response, req request) (*os.File, error) {
	if r.Section == "" {
		return nil, nil
	}
	h, err := section.OpenAnonymous(r.Section, !req.ReadOnly)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(h), req.Name), nil
}

func (p *pipe) unread() bool { return false } // nothing is charged to this user

func (p *pipe) hangUp() { p.Close() }

// LocalAddr and RemoteAddr are for net.Conn.
func (p *pipe) LocalAddr() net.Addr  { return pipeAddr(p.Name()) }
func (p *pipe) RemoteAddr() net.Addr { return pipeAddr(p.Name()) }

type pipeAddr string

func (pipeAddr) Network() string  { return "pipe" }
func (a pipeAddr) String() string { return string(a) }

// listener always has one instance of the pipe that no client is connected to. As long
// as it has, no other process can create the pipe.
type listener struct {
	addr     pipeAddr
	path     *uint16
	security *windows.SecurityAttributes
	closing  sync.Once
	closed   windows.Handle // event

	mu      sync.Mutex         // guards what follows, and is held by Accept
	next    windows.Handle     // 0 once closed
	pending windows.Overlapped // of next
}

func listen(addr string) (_ net.Listener, err error) {
	path, err := pipePath(addr)
	if err != nil {
		return nil, err
	}
	l := &listener{addr: pipeAddr(addr), path: path}
	if l.security, err = section.Security(); err != nil {
		return nil, err
	}
	if l.next, err = l.instance(windows.FILE_FLAG_FIRST_PIPE_INSTANCE); err != nil {
		// A process that has the pipe does not let others create instances of it.
		if errors.Is(err, windows.ERROR_ACCESS_DENIED) || errors.Is(err, windows.ERROR_PIPE_BUSY) {
			err = fmt.Errorf("%w: %v", syscall.EADDRINUSE, err)
		}
		return nil, err
	}
	// Wine 8 has no first instances.
	var instances uint32
	err = windows.GetNamedPipeHandleState(l.next, nil, &instances, nil, nil, nil, 0)
	if err == nil && instances > 1 {
		err = syscall.EADDRINUSE
	}
	if err != nil {
		windows.CloseHandle(l.next)
		return nil, err
	}
	const manualReset = 1
	if l.closed, err = windows.CreateEvent(nil, manualReset, 0, nil); err == nil {
		l.pending.HEvent, err = windows.CreateEvent(nil, manualReset, 0, nil)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// instance creates one more instance of the pipe.
func (l *listener) instance(flags uint32) (windows.Handle, error) {
	return windows.CreateNamedPipe(l.path, flags|windows.PIPE_ACCESS_DUPLEX|windows.FILE_FLAG_OVERLAPPED,
		windows.PIPE_TYPE_BYTE|windows.PIPE_REJECT_REMOTE_CLIENTS, windows.PIPE_UNLIMITED_INSTANCES,
		sendBuffer, maxRequest, 0, l.security)
}

func (l *listener) Addr() net.Addr { return l.addr }

func (l *listener) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if l.next == 0 {
			return nil, net.ErrClosed
		}
		err := l.connect()
		if err == nil {
			var p *pipe
			if p, err = l.advance(); err == nil {
				return p, nil
			}
		}
		windows.DisconnectNamedPipe(l.next)
		if !errors.Is(err, errHungUp) {
			return nil, err
		}
	}
}

// errHungUp is returned for a client that has disconnected already.
const errHungUp = windows.ERROR_NO_DATA

// connect waits until a client is connected to the next instance.
func (l *listener) connect() error {
	err := windows.ConnectNamedPipe(l.next, &l.pending)
	if err == windows.ERROR_IO_PENDING {
		var n uint32
		first, _ := windows.WaitForMultipleObjects([]windows.Handle{l.closed, l.pending.HEvent}, false, windows.INFINITE)
		if first == windows.WAIT_OBJECT_0 {
			windows.CancelIoEx(l.next, &l.pending)
			windows.GetOverlappedResult(l.next, &l.pending, &n, true)
			return net.ErrClosed
		}
		err = windows.GetOverlappedResult(l.next, &l.pending, &n, true)
	}
	switch err {
	case windows.ERROR_PIPE_CONNECTED:
		return nil
	case windows.ERROR_BROKEN_PIPE, windows.ERROR_PIPE_NOT_CONNECTED:
		return errHungUp
	}
	return err
}

// advance returns the connection of the next instance, and puts another in its
// place.
func (l *listener) advance() (*pipe, error) {
	var pid uint32
	if err := windows.GetNamedPipeClientProcessId(l.next, &pid); err != nil {
		return nil, errHungUp
	}
	h, err := l.instance(0)
	if err != nil {
		return nil, err
	}
	p := newPipe(l.next)
	p.client = pid
	if clientIsUs(l.next) {
		p.access = FullAccess
	}
	l.next = h
	return p, nil
}

func (l *listener) Close() error {
	err := net.ErrClosed
	l.closing.Do(func() {
		windows.SetEvent(l.closed) // Accept then releases the mutex
		l.mu.Lock()
		defer l.mu.Unlock()
		err = errors.Join(windows.CloseHandle(l.next), windows.CloseHandle(l.closed), windows.CloseHandle(l.pending.HEvent))
		l.next = 0
	})
	return err
}
