package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/shmkit/shm/internal/section"
)

const supported = true

var errUnsupported error // of the other systems

const (
	restricts                = true // duplicate can make a handle to read only
	refusedFor time.Duration = 0    // see platform_darwin.go
)

// errBacklog is a server that has no instance of its pipe for us yet.
const errBacklog = windows.ERROR_PIPE_BUSY

// What connecting to an address without a server returns.
const (
	errNoSocket = syscall.ENOENT
	errRefused  = syscall.ECONNREFUSED
)

// passing are the reasons not to accept a connection that can pass.
var passing = []error{
	windows.ERROR_NO_SYSTEM_RESOURCES, windows.ERROR_NOT_ENOUGH_MEMORY, windows.ERROR_NOT_ENOUGH_QUOTA,
	windows.ERROR_COMMITMENT_LIMIT, windows.ERROR_TOO_MANY_OPEN_FILES,
}

const pipes = `\\.\pipe\`

// pipePath returns the name of the pipe at addr. Only pipes of this machine are
// taken: to others, a client would have to prove who it is.
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

// conn is an end of a pipe.
type conn struct {
	*os.File
	client uint32  // process id
	ours   bool    // the client is this user
	want   request // whose file comes next
}

func newConn(h windows.Handle) *conn {
	return &conn{File: os.NewFile(uintptr(h), "pipe")} // to be waited for, as it is overlapped
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.File.Read(p)
	return n, netError(err)
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.File.Write(p)
	return n, netError(err)
}

func (c *conn) Close() error { return netError(c.File.Close()) }

// netError makes the error of a file that of a connection.
func netError(err error) error {
	if errors.Is(err, fs.ErrClosed) {
		return net.ErrClosed
	}
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		return path.Err
	}
	return err
}

// dialOnce does not let the server act as this user, and talks to none of
// another: anybody can make a pipe where there is none.
func dialOnce(ctx context.Context, addr string) (*conn, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	path, err := pipePath(addr)
	if err != nil {
		return nil, err
	}
	const flags = windows.FILE_FLAG_OVERLAPPED | windows.SECURITY_SQOS_PRESENT | windows.SECURITY_IDENTIFICATION
	h, err := windows.CreateFile(path, windows.GENERIC_READ|windows.GENERIC_WRITE, 0, nil, windows.OPEN_EXISTING, flags, 0)
	if err != nil {
		return nil, err
	}
	if err := ownedByUs(h); err != nil {
		windows.CloseHandle(h)
		return nil, err
	}
	return newConn(h), nil
}

// ownedByUs returns the error for a pipe that this user has not made. The owner is
// the kernel's word; the id of the process that serves could be another's by now.
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
func accepted(c net.Conn) (*conn, error) {
	pipe, ok := c.(*conn)
	if !ok {
		return nil, fmt.Errorf("%w: not a pipe of Listen", fs.ErrInvalid)
	}
	return pipe, nil
}

// peer returns who connected; users of Windows have no such numbers.
func (c *conn) peer() (Peer, error) { return Peer{PID: int(c.client), UID: -1, GID: -1}, nil }

func (c *conn) sameUser(Peer) Access {
	if c.ours {
		return FullAccess
	}
	return NoAccess
}

// isUs reports whether user is who this process runs as.
func isUs(user *windows.SID) bool {
	us, err := windows.GetCurrentProcessToken().GetTokenUser()
	return err == nil && user != nil && user.Equals(us.User.Sid)
}

var impersonateNamedPipeClient = windows.NewLazySystemDLL("advapi32.dll").NewProc("ImpersonateNamedPipeClient")

// clientIsUs reports whether who connected to the pipe is this user. Who it was,
// the system remembers with the pipe. Of a client that does not let the server know
// it is false, whatever a process with the client's id may be by now.
func clientIsUs(pipe windows.Handle) bool {
	answer := make(chan bool)
	go func() {
		ours := false
		runtime.LockOSThread()
		if ok, _, _ := impersonateNamedPipeClient.Call(uintptr(pipe)); ok != 0 {
			ours = actingAsUs()
		}
		// A thread that goes on as the client must not be another goroutine's. But to
		// end a thread cancels what others have begun on it to read and write.
		if windows.RevertToSelf() == nil {
			runtime.UnlockOSThread()
		}
		answer <- ours
	}()
	return <-answer
}

// actingAsUs reports whether the user that this thread acts as is that of the
// process.
func actingAsUs() bool {
	var token windows.Token
	if err := windows.OpenThreadToken(windows.CurrentThread(), windows.TOKEN_QUERY, true, &token); err != nil {
		return false
	}
	defer token.Close()
	user, err := token.GetTokenUser()
	return err == nil && isUs(user.User.Sid)
}

// send sends a line, which has the name of the section already.
func (c *conn) send(line []byte, _ *os.File) error {
	_, err := c.Write(line)
	return err
}

// take opens the section, nil if there is no name of one.
func (c *conn) take(name string) (*os.File, error) {
	if name == "" {
		return nil, nil
	}
	h, err := section.OpenAnonymous(name, !c.want.ReadOnly)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(h), c.want.Name), nil
}

// sectionOf returns the name of the section that f is open on, "" if f is nil.
func sectionOf(f *os.File) (name string) {
	control(f, func(h uintptr) (err error) {
		name, err = section.Name(windows.Handle(h))
		return err
	})
	return name
}

// totalMemory returns how many bytes of memory the machine has.
func totalMemory() int64 {
	var status struct { // MEMORYSTATUSEX
		length, load uint32
		total        uint64
		others       [6]uint64
	}
	status.length = uint32(unsafe.Sizeof(status))
	globalMemoryStatus.Call(uintptr(unsafe.Pointer(&status)))
	return int64(status.total)
}

var globalMemoryStatus = windows.NewLazySystemDLL("kernel32.dll").NewProc("GlobalMemoryStatusEx")

type pipeAddr string

func (pipeAddr) Network() string  { return "pipe" }
func (a pipeAddr) String() string { return string(a) }

// LocalAddr and RemoteAddr are for net.Conn.
func (c *conn) LocalAddr() net.Addr  { return pipeAddr(c.Name()) }
func (c *conn) RemoteAddr() net.Addr { return pipeAddr(c.Name()) }

// listener always has an instance of the pipe that nobody is connected to, so
// that the pipe stays and is its own.
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
		// Who has a pipe there does not let others make instances of it.
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

// instance makes one more instance of the pipe.
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
			var c *conn
			if c, err = l.advance(); err == nil {
				return c, nil
			}
		}
		windows.DisconnectNamedPipe(l.next)
		if !errors.Is(err, errHungUp) {
			return nil, err
		}
	}
}

// errHungUp is a client that is gone already.
const errHungUp = windows.ERROR_NO_DATA

// connect waits until somebody is connected to the next instance.
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
func (l *listener) advance() (*conn, error) {
	var pid uint32
	if err := windows.GetNamedPipeClientProcessId(l.next, &pid); err != nil {
		return nil, errHungUp
	}
	h, err := l.instance(0)
	if err != nil {
		return nil, err
	}
	c := newConn(l.next)
	c.client, c.ours, l.next = pid, clientIsUs(l.next), h
	return c, nil
}

func (l *listener) Close() error {
	err := net.ErrClosed
	l.closing.Do(func() {
		windows.SetEvent(l.closed) // Accept lets go then
		l.mu.Lock()
		defer l.mu.Unlock()
		err = errors.Join(windows.CloseHandle(l.next), windows.CloseHandle(l.closed), windows.CloseHandle(l.pending.HEvent))
		l.next = 0
	})
	return err
}
