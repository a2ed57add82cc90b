package manager

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/blockname"
	"github.com/shmkit/shm/internal/memsource"
)

// Env is the environment variable with the address that Dial uses where it is
// given none. "shm run" sets it.
const Env = "SHM_MANAGER"

// Client is a connection to a server. All methods are safe for concurrent use;
// requests are made one after the other.
//
// When the server is gone, requests fail with [ErrGone]. Segments stay usable.
type Client struct {
	conn   *conn
	lease  bool
	stop   func() bool // no longer waits for the context
	closed atomic.Bool // by Close

	creating sync.Mutex // held while the server has memory for a block to be
	mu       sync.Mutex // held for a request and its response
	buf      []byte
	gone     error // why no more requests can be made
}

// A DialOption changes how [Dial] connects.
type DialOption interface{ apply(*Client) }

type dialOption func(*Client)

func (f dialOption) apply(c *Client) { f(c) }

// Lease makes the blocks that the client creates its own: the server releases
// them when the connection ends, by Close or because the process does.
func Lease() DialOption { return dialOption(func(c *Client) { c.lease = true }) }

// Dial connects to the server at addr, as [Listen] takes it; "" is what the
// environment variable [Env] says. When ctx is done, the client is closed.
//
// The error is [ErrGone] if there is no server, [fs.ErrPermission] if it refuses
// this user or, on Windows, is another user's, [ErrQuota] if it has too many
// clients, or [errors.ErrUnsupported].
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
	hello, f, err := c.receive(request{})
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
func connect(ctx context.Context, addr string) (*conn, error) {
	refused := time.Now().Add(refusedFor)
	for pause, end := time.Millisecond, time.Now().Add(stall); ; pause = min(2*pause, 50*time.Millisecond) {
		conn, err := dialOnce(ctx, addr)
		switch {
		case err == nil:
			return conn, nil
		case errors.Is(err, errRefused) && time.Now().Before(refused):
		case errors.Is(err, errNoSocket), errors.Is(err, errRefused):
			return nil, fmt.Errorf("%w: %w", ErrGone, err)
		case !errors.Is(err, errBacklog) || time.Now().After(end):
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
// If name is empty, Create makes up one that no other block has. It is a name of
// this server's only; see package shm for what names there are.
//
// The error is [fs.ErrExist], [fs.ErrInvalid], [ErrQuota], [shm.ErrNoSpace],
// [fs.ErrPermission], [ErrGone], or [fs.ErrClosed] if the client is closed.
//
// Options: [shm.Sparse], [shm.Prefault].
func (c *Client) Create(name string, size int64, opts ...shm.Option) (*shm.Segment, error) {
	seg, err := c.create(name, size, opts)
	return seg, rename(err, "create", name)
}

func (c *Client) create(name string, size int64, opts []shm.Option) (*shm.Segment, error) {
	if err := checkOptions(opts, shm.Sparse(), shm.Prefault()); err != nil {
		return nil, err
	}
	if name == "" {
		name = blockname.Unique()
	}
	name = clean(name)
	label := shm.Label(name)
	given := false // memory of the server's
	if createsMemory() {
		c.creating.Lock()
		defer c.creating.Unlock()
		label = inMemoryOf(name, func(length int64) (*os.File, error) {
			f, err := c.memory(name, size, length)
			given = err == nil
			return f, err
		})
	}
	seg, err := shm.Anonymous(size, append(slices.Clip(opts), label)...)
	if err != nil {
		if given { // and part of it in use
			c.memory(name, 0, 0)
		}
		return nil, err
	}
	if err := c.keep(seg); err != nil {
		seg.Close()
		return nil, err
	}
	return seg, nil
}

// inMemoryOf returns an option to build a block in what create returns, which is
// shm.Label(name) as well.
func inMemoryOf(name string, create func(length int64) (*os.File, error)) shm.Option {
	return memsource.Option(name, &memsource.Source{Create: create}).(shm.Option)
}

// memory returns memory for a block.
func (c *Client) memory(name string, capacity, size int64) (*os.File, error) {
	resp, f, err := c.do(request{Op: opMemory, Name: name, Cap: capacity, Size: size}, nil)
	if err == nil && f == nil {
		err = cmp.Or(resp.lost, errProtocol)
	}
	return f, err
}

// keep has the server keep the block of seg, which nobody else has so far.
func (c *Client) keep(seg *shm.Segment) (err error) {
	var f *os.File
	if !createsMemory() {
		if f, err = seg.File(); err != nil {
			return err
		}
		defer f.Close()
	}
	_, _, err = c.do(request{Op: opCreate, Name: seg.Name(), Cap: seg.Cap(), Lease: c.lease}, f)
	return err
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

// OpenOrCreate attaches to the block called name, or creates it if there is
// none, and reports which. If several clients call it at once, one of them creates
// the block. Errors and options are those of [Client.Create], but the error is not
// [fs.ErrExist]; it is [shm.ErrBusy] if other clients have created and released
// the block a hundred times in between.
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
		if !errors.Is(err, fs.ErrExist) { // created by another client in the meantime
			return seg, created, rename(err, "open", name)
		}
	}
	return nil, false, pathError("open", name, fmt.Errorf("%w: others create and release it all the time", shm.ErrBusy))
}

// Open attaches to the block called name.
//
// The error is [fs.ErrNotExist], [fs.ErrInvalid], [fs.ErrPermission], [ErrQuota]
// if the server has no descriptors left, [ErrGone], [fs.ErrClosed], or one of
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
	req := request{Op: opOpen, Name: clean(name), ReadOnly: slices.Contains(opts, shm.ReadOnly())}
	resp, f, err := c.do(req, nil)
	if err != nil {
		return nil, err
	}
	if f == nil {
		return nil, cmp.Or(resp.lost, errProtocol)
	}
	defer f.Close()
	return shm.FromFile(f, opts...)
}

// rename makes err, which can have come from package shm, an error of ours.
func rename(err error, op, name string) error {
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		err = path.Err
	}
	return pathError(op, name, err)
}

// List returns the blocks of the server, by name. Blocks that come and go
// meanwhile may be in it or not.
func (c *Client) List() ([]Info, error) {
	list := []Info{}
	for req := (request{Op: opList}); ; {
		resp, f, err := c.do(req, nil)
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
	_, f, err := c.do(request{Op: opRelease, Name: clean(name)}, nil)
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

// do makes a request, with sent unless it is nil. If it returns a file, that is
// the caller's to close.
func (c *Client) do(req request, sent *os.File) (resp response, f *os.File, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if req.Op != opList && !blockname.Valid(req.Name, maxName) {
		return resp, nil, fmt.Errorf("%w: bad name", fs.ErrInvalid)
	}
	if c.gone == nil {
		req.Section = sectionOf(sent)
		if c.gone = c.conn.send(marshal(req), sent); c.gone == nil {
			resp, f, c.gone = c.receive(req)
		}
		if c.gone != nil {
			c.conn.Close() // a late response is nobody's
		}
	}
	switch {
	case c.gone != nil && c.closed.Load():
		err = fs.ErrClosed
	case c.gone != nil:
		err = fmt.Errorf("%w: %w", ErrGone, c.gone)
	default:
		err = resp.err()
	}
	if err != nil {
		f.Close() // if there is one
		return response{}, nil, err
	}
	return resp, f, nil
}

// receive reads one line, the response to req, and takes the file that comes
// with it, if any.
func (c *Client) receive(req request) (resp response, f *os.File, err error) {
	line := c.buf[:0]
	c.conn.want = req
	for err == nil && !bytes.HasSuffix(line, []byte("\n")) {
		if len(line) == cap(line) {
			err = errProtocol
			break
		}
		var n int
		n, err = c.conn.Read(line[len(line):cap(line)])
		line = line[:len(line)+n]
	}
	if err == nil && unmarshal(line, &resp) != nil {
		err = errProtocol
	}
	f, lost := c.conn.take(resp.Section)
	if err != nil {
		f.Close()
		return response{}, nil, err
	}
	resp.lost = lost
	return resp, f, nil
}
