package manager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/shmkit/shm"
)

// Env is the environment variable with the address that Dial uses where it is
// given none. "shm run" sets it.
const Env = "SHM_MANAGER"

// Client is a connection to a server. All methods are safe for concurrent use;
// requests are made one after the other.
//
// When the server is gone, requests fail with [ErrGone]. Segments stay usable.
type Client struct {
	conn   *net.UnixConn
	lease  bool
	stop   func() bool // no longer waits for the context
	closed atomic.Bool // by Close

	mu   sync.Mutex // held for a request and its response
	buf  []byte
	gone error // why no more requests can be made
}

// A DialOption changes how [Dial] connects.
type DialOption interface{ apply(*Client) }

type dialOption func(*Client)

func (f dialOption) apply(c *Client) { f(c) }

// Lease makes the blocks that the client creates its own: the server releases
// them when the connection ends, by Close or because the process does.
func Lease() DialOption { return dialOption(func(c *Client) { c.lease = true }) }

// Dial connects to the server at addr, a path or an abstract address that begins
// with "@"; "" is what the environment variable [Env] says. When ctx is done,
// the client is closed.
//
// The error is [ErrGone] if there is no server, [fs.ErrPermission] if it refuses
// this user, [ErrQuota] if it has too many clients, or [errors.ErrUnsupported].
func Dial(ctx context.Context, addr string, opts ...DialOption) (*Client, error) {
	c := &Client{}
	for _, o := range opts {
		o.apply(c)
	}
	if addr == "" {
		addr = os.Getenv(Env)
	}
	if err := c.dial(ctx, addr); err != nil {
		return nil, pathError("dial", addr, err)
	}
	return c, nil
}

func (c *Client) dial(ctx context.Context, addr string) (err error) {
	if !supported {
		return errUnsupported
	}
	if addr == "" {
		return fmt.Errorf("%w: no address, and no %s in the environment", ErrGone, Env)
	}
	if c.conn, err = connect(ctx, addr); err != nil {
		return err
	}
	c.buf = make([]byte, 0, maxResponse)
	c.stop = context.AfterFunc(ctx, func() { c.hangUp() })
	c.conn.SetReadDeadline(time.Now().Add(stall))
	hello, f, err := c.receive()
	f.Close() // there is none, from a server that is one
	c.conn.SetReadDeadline(time.Time{})
	if err == nil {
		err = hello.err()
	} else if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else {
		err = fmt.Errorf("%w: %w", ErrGone, err)
	}
	if err == nil && hello.Version != protocolVersion {
		err = fmt.Errorf("%w: manager speaks version %d", errors.ErrUnsupported, hello.Version)
	}
	if err != nil {
		c.Close()
	}
	return err
}

// connect waits a little where the server has not come to accept others yet.
func connect(ctx context.Context, addr string) (*net.UnixConn, error) {
	var dialer net.Dialer
	for pause, end := time.Millisecond, time.Now().Add(stall); ; pause = min(2*pause, 50*time.Millisecond) {
		conn, err := dialer.DialContext(ctx, "unix", addr)
		switch {
		case err == nil:
			return conn.(*net.UnixConn), nil
		case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
			return nil, fmt.Errorf("%w: %w", ErrGone, err)
		case !errors.Is(err, syscall.EAGAIN) || time.Now().After(end):
			return nil, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Create creates a block with a Cap of size bytes, all zero, and attaches to it.
// If name is empty, the server makes up one. Its name is one of this server's
// only; see package shm for what names there are.
//
// The error is [fs.ErrExist], [fs.ErrInvalid], [ErrQuota], [shm.ErrNoSpace],
// [fs.ErrPermission], [ErrGone], or [fs.ErrClosed] if the client is closed.
//
// Options: [shm.Sparse], [shm.Prefault].
func (c *Client) Create(name string, size int64, opts ...shm.Option) (*shm.Segment, error) {
	seg, _, err := c.attach(opCreate, "create", name, size, opts)
	return seg, err
}

// OpenOrCreate attaches to the block called name, or creates it if there is
// none, and reports which. Errors and options are those of [Client.Create],
// without [fs.ErrExist]. If several clients call it at once, one of them creates
// the block.
func (c *Client) OpenOrCreate(name string, size int64, opts ...shm.Option) (seg *shm.Segment, created bool, err error) {
	return c.attach(opOpenOrCreate, "open", name, size, opts)
}

// Open attaches to the block called name.
//
// The error is [fs.ErrNotExist], [fs.ErrInvalid], [fs.ErrPermission], [ErrGone],
// [fs.ErrClosed], or one of [shm.FromFile].
//
// Options: [shm.ReadOnly], [shm.Prefault].
func (c *Client) Open(name string, opts ...shm.Option) (*shm.Segment, error) {
	seg, _, err := c.attach(opOpen, "open", name, 0, opts)
	return seg, err
}

func (c *Client) attach(op, verb, name string, size int64, opts []shm.Option) (*shm.Segment, bool, error) {
	req := request{Op: op, Name: clean(name), Size: size, Lease: c.lease && op != opOpen}
	var local []shm.Option // for FromFile
	for _, o := range opts {
		switch {
		case o == shm.Prefault():
			local = append(local, o)
		case o == shm.ReadOnly() && op == opOpen:
			req.ReadOnly = true
			local = append(local, o)
		case o == shm.Sparse() && op != opOpen:
			req.Sparse = true
		default:
			return nil, false, pathError(verb, name, fmt.Errorf("%w: option does not apply", fs.ErrInvalid))
		}
	}
	if req.Sparse && len(local) > 0 {
		return nil, false, pathError(verb, name, fmt.Errorf("%w: option Sparse with Prefault", fs.ErrInvalid))
	}
	if name != "" && !validName.MatchString(req.Name) || name == "" && op == opOpen {
		return nil, false, pathError(verb, name, fmt.Errorf("%w: bad name", fs.ErrInvalid))
	}
	resp, f, err := c.do(req)
	if err != nil {
		return nil, false, pathError(verb, name, err)
	}
	if f == nil {
		return nil, false, pathError(verb, name, errProtocol)
	}
	defer f.Close()
	seg, err := shm.FromFile(f, local...)
	if err != nil && resp.Created {
		c.Release(resp.Name)
	}
	return seg, resp.Created, err
}

// List returns the blocks of the server, by name. Blocks that come and go
// meanwhile may be in it or not.
func (c *Client) List() ([]Info, error) {
	list := []Info{}
	for req := (request{Op: opList}); ; {
		resp, f, err := c.do(req)
		f.Close() // as in dial
		if err != nil {
			return nil, pathError("list", "", err)
		}
		list = append(list, resp.Blocks...)
		if !resp.More || len(resp.Blocks) == 0 {
			return list, nil
		}
		req.Name = list[len(list)-1].Name
	}
}

// Release ends a block, whoever created it: nobody can open it any more, and
// its memory is free when nobody is attached. The error is [fs.ErrNotExist],
// [fs.ErrInvalid], [fs.ErrPermission], [ErrGone] or [fs.ErrClosed].
func (c *Client) Release(name string) error {
	_, f, err := c.do(request{Op: opRelease, Name: clean(name)})
	f.Close() // as in dial
	return pathError("release", name, err)
}

// Close ends the connection, and so the blocks of a client with [Lease]; a
// request in progress fails. Segments stay usable. A second Close does nothing
// and returns nil.
func (c *Client) Close() error {
	c.stop()
	return c.hangUp()
}

func (c *Client) hangUp() error {
	if c.closed.Swap(true) {
		return nil
	}
	if err := c.conn.Close(); !errors.Is(err, net.ErrClosed) { // as a request that failed has left it
		return err
	}
	return nil
}

var errProtocol = errors.New("manager does not keep to the protocol")

// do makes a request. If it returns a file, that is the caller's to close.
func (c *Client) do(req request) (resp response, f *os.File, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone == nil {
		if _, c.gone = c.conn.Write(marshal(req)); c.gone == nil {
			resp, f, c.gone = c.receive()
		}
		if c.gone != nil {
			c.conn.Close() // a late response is nobody's
		}
	}
	switch {
	case c.gone != nil && c.closed.Load():
		return resp, nil, fs.ErrClosed
	case c.gone != nil:
		return resp, nil, fmt.Errorf("%w: %w", ErrGone, c.gone)
	}
	if err := resp.err(); err != nil {
		if f != nil {
			f.Close()
		}
		return resp, nil, err
	}
	return resp, f, nil
}

// receive reads one line, and the descriptor that comes with it, if any.
func (c *Client) receive() (resp response, f *os.File, err error) {
	line, fds, err := c.receiveLine()
	if err == nil && unmarshal(line, &resp) != nil || len(fds) > 1 {
		err = errProtocol
	}
	if err != nil {
		closeAll(fds)
		return response{}, nil, err
	}
	if len(fds) == 1 {
		f = os.NewFile(uintptr(fds[0]), resp.Name)
	}
	return resp, f, nil
}

func (c *Client) receiveLine() (line []byte, fds []int, err error) {
	line, oob := c.buf[:0], make([]byte, rightsSpace)
	for !bytes.HasSuffix(line, []byte("\n")) {
		if len(line) == cap(line) {
			return nil, fds, errProtocol
		}
		n, oobn, _, _, err := c.conn.ReadMsgUnix(line[len(line):cap(line)], oob)
		fds = append(fds, received(oob[:oobn])...)
		if err != nil {
			return nil, fds, err
		}
		line = line[:len(line)+n]
	}
	return line, fds, nil
}
