package manager

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/blockname"
	"github.com/shmkit/shm/internal/object"
)

// Env is the environment variable with the address that [Dial] uses if it is given
// none. The command "shm run" sets it.
const Env = "SHM_MANAGER"

// Client is a connection to a server. Its methods are safe for concurrent use; the
// requests are made one after the other.
//
// After the server has ended, requests fail with [ErrGone]. Segments stay usable.
type Client struct {
	conn   conn
	lease  bool
	stop   func() bool // ends the wait for the context
	closed atomic.Bool // by Close or the context

	creating sync.Mutex // held while the server has memory for a block that is not built
	mu       sync.Mutex // held for a request and its response
	buf      []byte
	gone     error // why no more requests can be made
}

// A DialOption changes how [Dial] connects.
type DialOption func(*Client)

// Lease makes the server release the blocks that the client creates when the
// connection ends, by Close or because the process ends.
func Lease() DialOption { return func(c *Client) { c.lease = true } }

// Dial connects to the server at addr, an address as [Listen] takes it. If addr is
// empty, it is the value of the environment variable [Env]. When ctx is done, the
// client is closed.
//
// The error is [ErrGone] if there is no server, [fs.ErrPermission] if it refuses this
// user or, on Windows, is of another user, [ErrQuota] if it has too many clients, or
// [errors.ErrUnsupported].
func Dial(ctx context.Context, addr string, opts ...DialOption) (*Client, error) {
	c := &Client{buf: make([]byte, maxResponse)}
	for _, o := range opts {
		o(c)
	}
	addr = cmp.Or(addr, os.Getenv(Env))
	if err := c.dial(ctx, addr); err != nil {
		return nil, pathError("dial", addr, err)
	}
	return c, nil
}

func (c *Client) dial(ctx context.Context, addr string) (err error) {
	if !supported {
		return errors.ErrUnsupported
	}
	if addr == "" {
		return fmt.Errorf("%w: no address, and no %s in the environment", ErrGone, Env)
	}
	if c.conn, err = connect(ctx, addr); err != nil {
		return err
	}
	c.stop = context.AfterFunc(ctx, c.hangUp)
	c.conn.SetReadDeadline(time.Now().Add(stall))
	hello, err := c.receive()
	c.conn.SetReadDeadline(time.Time{})
	f, _ := c.conn.takeFile(response{}, request{})
	f.Close() // no server sends one here
	switch {
	case err == nil:
		err = hello.err()
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	default:
		err = fmt.Errorf("%w: %v", ErrGone, err)
	}
	if err == nil && hello.Version != protocolVersion {
		err = fmt.Errorf("%w: manager speaks version %d", errors.ErrUnsupported, hello.Version)
	}
	if err != nil {
		c.Close()
	}
	return err
}

// connect retries while the server has not accepted other connections yet.
func connect(ctx context.Context, addr string) (conn, error) {
	begun := time.Now()
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		conn, err := dialOnce(ctx, addr)
		if err == nil || time.Since(begun) >= busyFor(err) {
			return conn, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Create creates a block with a Cap of size bytes, all zero, and attaches to it. If
// name is empty, Create makes up one that no other block has. The name is known to
// this server only; package shm says which names are valid.
//
// The error is [fs.ErrExist], [fs.ErrInvalid], [ErrQuota], [shm.ErrNoSpace],
// [fs.ErrPermission], [ErrGone], or [fs.ErrClosed] if the client is closed.
//
// Options: [shm.Sparse], [shm.Prefault].
func (c *Client) Create(name string, size int64, opts ...shm.Option) (*shm.Segment, error) {
	seg, err := c.create(name, size, opts)
	return seg, rename(err, "create", name)
}

// inMemory is an option that makes shm.Anonymous build the block in memory from
// source, and an option of package shm besides.
type inMemory struct {
	shm.Option
	source object.MemorySource
}

func (m inMemory) MemorySource() object.MemorySource { return m.source }

func (c *Client) create(name string, size int64, opts []shm.Option) (*shm.Segment, error) {
	if err := checkOptions(opts, shm.Sparse(), shm.Prefault()); err != nil {
		return nil, err
	}
	if name == "" {
		name = blockname.Unique()
	}
	name = clean(name)
	c.creating.Lock()
	defer c.creating.Unlock()
	given := false
	seg, err := shm.Anonymous(size, append(slices.Clip(opts), inMemory{shm.Label(name), func(length int64) (*os.File, error) {
		_, f, err := c.do(request{Op: opMemory, Name: name, Cap: size, Size: length})
		given = err == nil
		return f, err
	}})...)
	if err != nil {
		if given { // and a part of it reserved
			c.do(request{Op: opMemory, Name: name})
		}
		return nil, err
	}
	if _, _, err := c.do(request{Op: opCreate, Name: name, Cap: size, Lease: c.lease}); err != nil {
		seg.Close()
		return nil, err
	}
	return seg, nil
}

// checkOptions returns the error for options that do not apply.
func checkOptions(opts []shm.Option, allowed ...shm.Option) error {
	for _, o := range opts {
		if !slices.Contains(allowed, o) {
			return fmt.Errorf("%w: option does not apply", fs.ErrInvalid)
		}
	}
	return nil
}

// OpenOrCreate attaches to the block called name, or creates it if there is none, and
// reports which. If several clients call it at once, one of them creates the block
// and the others attach to it. Errors and options are those of [Client.Create], except
// that the error is [shm.ErrBusy], not [fs.ErrExist], if other clients have created and
// released the block a hundred times meanwhile.
func (c *Client) OpenOrCreate(name string, size int64, opts ...shm.Option) (seg *shm.Segment, created bool, err error) {
	if err := checkOptions(opts, shm.Sparse(), shm.Prefault()); err != nil {
		return nil, false, pathError("open", name, err)
	}
	openOpts := slices.DeleteFunc(slices.Clone(opts), func(o shm.Option) bool { return o != shm.Prefault() })
	for range attempts {
		err = fs.ErrNotExist
		if name != "" {
			seg, err = c.open(name, openOpts)
		}
		if errors.Is(err, fs.ErrNotExist) {
			seg, err = c.create(name, size, opts)
			created = err == nil
		}
		if !errors.Is(err, fs.ErrExist) { // else another client has created it meanwhile
			return seg, created, rename(err, "open", name)
		}
	}
	return nil, false, pathError("open", name, fmt.Errorf("%w: other clients create and release it", shm.ErrBusy))
}

// Open attaches to the block called name.
//
// The error is [fs.ErrNotExist], [fs.ErrInvalid], [fs.ErrPermission], [ErrQuota] if
// the server has no descriptors left, [ErrGone], [fs.ErrClosed], or one of
// [shm.FromFile].
//
// Options: [shm.ReadOnly], [shm.Prefault].
func (c *Client) Open(name string, opts ...shm.Option) (*shm.Segment, error) {
	seg, err := c.open(name, opts)
	return seg, rename(err, "open", name)
}

func (c *Client) open(name string, opts []shm.Option) (*shm.Segment, error) {
	if err := checkOptions(opts, shm.ReadOnly(), shm.Prefault()); err != nil {
		return nil, err
	}
	_, f, err := c.do(request{Op: opOpen, Name: clean(name), ReadOnly: slices.Contains(opts, shm.ReadOnly())})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return shm.FromFile(f, opts...)
}

// rename returns err, which can be an error of package shm, with this operation and
// name.
func rename(err error, op, name string) error {
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		err = path.Err
	}
	return pathError(op, name, err)
}

// List returns the blocks of the server, sorted by name. It may or may not include
// blocks that are created or released meanwhile.
func (c *Client) List() ([]Info, error) {
	list := []Info{}
	for req := (request{Op: opList}); ; {
		resp, _, err := c.do(req)
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

// Release removes a block from the server, whichever client created it. No client can
// open it any more, and its memory is freed when none is attached. The error is
// [fs.ErrNotExist], [fs.ErrInvalid], [fs.ErrPermission], [ErrGone] or [fs.ErrClosed].
func (c *Client) Release(name string) error {
	_, _, err := c.do(request{Op: opRelease, Name: clean(name)})
	return pathError("release", name, err)
}

// Close ends the connection, and with [Lease] releases the client's blocks. A request
// in progress fails with [fs.ErrClosed]. Segments stay usable. Close returns nil; a
// second Close does nothing.
func (c *Client) Close() error {
	c.stop()
	c.hangUp()
	return nil
}

func (c *Client) hangUp() {
	if !c.closed.Swap(true) {
		c.conn.Close()
	}
}

var errProtocol = errors.New("manager does not keep to the protocol")

// do makes a request. If a file comes with the response, it is the caller's to close.
func (c *Client) do(req request) (resp response, f *os.File, err error) {
	if req.Op != opList && !blockname.Valid(req.Name, maxName) {
		return resp, nil, errBadName
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var lost error
	if c.gone == nil {
		if _, c.gone = c.conn.Write(marshal(req)); c.gone == nil {
			resp, c.gone = c.receive()
			f, lost = c.conn.takeFile(resp, req)
		}
		if c.gone != nil {
			c.conn.Close() // a late response must not be taken for another
		}
	}
	switch {
	case c.gone != nil && c.closed.Load():
		err = fs.ErrClosed
	case c.gone != nil:
		err = fmt.Errorf("%w: %v", ErrGone, c.gone)
	case resp.Code != "":
		err = resp.err()
	case req.wantsFile() && f == nil:
		err = cmp.Or(lost, errProtocol)
	}
	if err != nil || !req.wantsFile() {
		f.Close() // if there is one
		return resp, nil, err
	}
	return resp, f, nil
}

// receive reads a response.
func (c *Client) receive() (resp response, err error) {
	n := 0
	for err == nil && (n == 0 || c.buf[n-1] != '\n') {
		if n == len(c.buf) {
			return resp, errProtocol
		}
		var more int
		more, err = c.conn.Read(c.buf[n:])
		n += more
	}
	if err == nil && json.Unmarshal(c.buf[:n], &resp) != nil {
		err = errProtocol
	}
	return resp, err
}
