package manager

import (
	"bufio"
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
	"syscall"
	"time"

	"github.com/shmkit/shm/internal/blockname"
)

// Peer is the process at the other end of a connection, as the kernel knows it.
// The ids are those of the process that connected, at that time, but on darwin
// PID is the process that has used the connection last. On Windows, where users
// have no such numbers, UID and GID are -1.
type Peer struct{ PID, UID, GID int }

// Access is what a client may do.
type Access int

// The levels of access, each with what the one before has.
const (
	NoAccess   Access = iota // nothing: it is refused
	ReadAccess               // Open of blocks ReadOnly, and List
	FullAccess               // everything
)

// A ServeOption changes how [Serve] serves.
type ServeOption interface{ apply(*serveConfig) }

type serveOption func(*serveConfig)

func (f serveOption) apply(c *serveConfig) { f(c) }

type serveConfig struct {
	authorize  func(Peer) Access // nil: conn.sameUser
	maxClients int
	total      Quota
	perClient  Quota
}

// Quota bounds blocks. Zero is the default.
type Quota struct {
	Blocks int
	Bytes  int64 // of their Caps
}

func (q Quota) allows(u Quota, size int64) bool {
	return (q.Blocks == 0 || u.Blocks < q.Blocks) && (q.Bytes == 0 || size <= q.Bytes-u.Bytes)
}

func (q *Quota) add(blocks int, bytes int64) {
	q.Blocks += blocks
	q.Bytes += bytes
}

// Authorize makes f decide what each client may do. The default is FullAccess
// for the user of the server and for root, and NoAccess for others. A client
// with ReadAccess cannot write to the blocks of other users by any means; what
// his own user has created, he can come by otherwise. On darwin, where memory
// cannot be handed out to read only, he can List, and his Open is
// [errors.ErrUnsupported]. f is called for one connection after the other.
//
// On Windows the default is FullAccess for the user of the server alone, as the
// system says who connected. f has only a process id to go by, which can be that of
// another process by then, and whom [Listen] lets connect at all, f cannot change.
func Authorize(f func(Peer) Access) ServeOption {
	return serveOption(func(c *serveConfig) { c.authorize = f })
}

// MaxClients bounds the connections at one time. The default is 1,000.
func MaxClients(n int) ServeOption {
	return serveOption(func(c *serveConfig) { c.maxClients = n })
}

// Total bounds all blocks of the server together. The default is 10,000 blocks
// and half of the machine's memory, which is what a tmpfs has by default.
func Total(q Quota) ServeOption {
	return serveOption(func(c *serveConfig) { c.total = q })
}

// PerClient bounds the blocks that one connection has created and that have not
// been released. The default is no bound but those of Total.
func PerClient(q Quota) ServeOption {
	return serveOption(func(c *serveConfig) { c.perClient = q })
}

// stall bounds how long a client may take to complete a request that it has
// begun, and to take its response.
var stall = 10 * time.Second // a variable for tests alone

// sendBuffer bounds what waits for a client that does not read, descriptors in
// particular, of which a user can have no more under way than open.
const sendBuffer = 4 << 10

type server struct {
	serveConfig
	done sync.WaitGroup // of the clients' goroutines

	mu      sync.Mutex // guards what follows, and all clients and blocks
	clients map[*client]bool
	blocks  map[string]*block
	used    Quota
}

// client is a connection.
type client struct {
	conn   *conn
	peer   Peer
	access Access
	owned  map[*block]bool // what it has created and is still there
	used   Quota
}

// block is memory under a name.
type block struct {
	info  Info
	owner *client  // in whose quota it is; nil once it has gone
	file  *os.File // what keeps the memory
}

// Listen returns a listener for [Serve] at a path of the file system, as a
// socket that only this user and root can connect to, or, if addr begins with
// "@", at an address without a file, which every user can connect to; on darwin
// there are none, and that is [errors.ErrUnsupported]. A socket that a server
// which was killed has left behind is replaced.
//
// On Windows addr is that of a named pipe, \\.\pipe\NAME, or @NAME for the same,
// which only this user, the administrators and the system can connect to, and
// nobody from another machine.
//
// The error is [syscall.EADDRINUSE] if somebody listens there.
func Listen(addr string) (net.Listener, error) {
	if !supported {
		return nil, errUnsupported
	}
	return listen(addr)
}

// Serve is a manager for the clients that connect to l, which must be a Unix
// stream socket, or on Windows what Listen returns. It serves until ctx is done,
// and then returns nil, or until l fails. It closes l. When it returns, all
// connections are closed and the server holds no memory any more; clients keep
// what they are attached to.
//
// No client can make the server wait on behalf of another: each has a goroutine
// of its own, requests have a bounded length, and a client that does not
// complete one, or does not take its response, is dropped after ten seconds. The
// server neither makes the memory of blocks nor looks at it, so nothing that a
// client does to it can harm the server.
func Serve(ctx context.Context, l net.Listener, opts ...ServeOption) error {
	defer l.Close()
	if !supported {
		return errUnsupported
	}
	s := &server{
		serveConfig: serveConfig{
			maxClients: 1000,
		},
		clients: make(map[*client]bool),
		blocks:  make(map[string]*block),
	}
	for _, o := range opts {
		o.apply(&s.serveConfig)
	}
	s.total.Blocks = cmp.Or(s.total.Blocks, 10000)
	s.total.Bytes = cmp.Or(s.total.Bytes, totalMemory()/2)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	err := s.accept(ctx, l)
	s.shutdown()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *server) accept(ctx context.Context, l net.Listener) error {
	const first, most = 5 * time.Millisecond, time.Second
	for pause := first; ; {
		conn, err := l.Accept()
		switch {
		case err == nil:
			pause = first
			s.admit(conn)
		case outOfDescriptors(err): // others may give some back
			select {
			case <-time.After(pause):
				pause = min(2*pause, most)
			case <-ctx.Done():
			}
		default:
			return err
		}
	}
}

func (s *server) admit(conn net.Conn) {
	c := &client{owned: make(map[*block]bool)}
	var err error
	if c.conn, err = accepted(conn); err == nil {
		if c.peer, err = c.conn.peer(); err == nil {
			authorize := s.authorize
			if authorize == nil {
				authorize = c.conn.sameUser
			}
			if c.access = authorize(c.peer); c.access == NoAccess {
				err = fmt.Errorf("%w: %+v", fs.ErrPermission, c.peer)
			}
		}
	}
	if err == nil {
		s.mu.Lock()
		if len(s.clients) >= s.maxClients {
			err = fmt.Errorf("%w: %d clients", ErrQuota, s.maxClients)
		} else {
			s.clients[c] = true
		}
		s.mu.Unlock()
	}
	if err != nil {
		conn.SetWriteDeadline(time.Now().Add(stall)) // it has room for a line
		conn.Write(marshal(failure(err)))
		conn.Close()
		return
	}
	s.done.Go(func() {
		defer s.leave(c)
		s.talk(c)
	})
}

// talk answers the requests of c until there are no more, or one is no request.
func (s *server) talk(c *client) {
	lines := bufio.NewReaderSize(c.conn, maxRequest)
	if c.send(response{Version: protocolVersion}, nil) != nil {
		return
	}
	for {
		line, err := c.readLine(lines)
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
		var req request
		if err == nil {
			err = unmarshal(line, &req)
		}
		if err != nil {
			c.send(failure(fmt.Errorf("%w: bad request", fs.ErrInvalid)), nil)
			return
		}
		resp, f, err := s.answer(c, req)
		if err != nil {
			resp = failure(err)
		}
		err = c.send(resp, f)
		f.Close() // if there is one
		if err != nil {
			return
		}
	}
}

// readLine waits for a line for as long as it takes to begin.
func (c *client) readLine(lines *bufio.Reader) ([]byte, error) {
	if _, err := lines.Peek(1); err != nil {
		return nil, err
	}
	if begun, _ := lines.Peek(lines.Buffered()); bytes.IndexByte(begun, '\n') < 0 {
		c.conn.SetReadDeadline(time.Now().Add(stall))
		defer c.conn.SetReadDeadline(time.Time{})
	}
	return lines.ReadSlice('\n')
}

func (c *client) send(r response, f *os.File) error {
	r.Section = sectionOf(f)
	c.conn.SetWriteDeadline(time.Now().Add(stall))
	return c.conn.send(marshal(r), f)
}

// answer does what is asked for. The file it returns goes with the response.
func (s *server) answer(c *client, req request) (resp response, f *os.File, err error) {
	if c.access < FullAccess && (req.Op == opCreate || req.Op == opRelease || req.Op == opOpen && !req.ReadOnly) {
		return resp, nil, fmt.Errorf("%w: %+v may only read", fs.ErrPermission, c.peer)
	}
	if c.access < FullAccess && req.Op == opOpen && !restricts {
		return resp, nil, fmt.Errorf("%w: memory cannot be handed out to read only", errors.ErrUnsupported)
	}
	if req.Op != opList && !blockname.Valid(req.Name, maxName) {
		return resp, nil, fmt.Errorf("%w: bad name", fs.ErrInvalid)
	}
	switch req.Op {
	case opCreate:
		f, err := c.conn.take(req.Section)
		if err != nil {
			return resp, nil, fmt.Errorf("%w: %v", errLost, err)
		}
		return resp, nil, s.create(c, req, f)
	case opOpen:
		f, err = s.open(req)
		return resp, f, err
	case opList:
		return s.list(req.Name), nil, nil
	case opRelease:
		return resp, nil, s.release(req.Name)
	}
	return resp, nil, fmt.Errorf("%w: unknown operation", fs.ErrInvalid)
}

// create keeps the memory in f as a new block.
func (s *server) create(c *client, req request, f *os.File) error {
	err := checkMemory(f, req.Cap)
	if err == nil {
		info := Info{Name: req.Name, Cap: req.Cap, Created: time.Now(), Creator: c.peer.PID, Leased: req.Lease}
		err = s.add(&block{info: info, owner: c, file: f})
	}
	if err != nil {
		f.Close()
	}
	return err
}

// checkMemory looks that f is memory whose size nobody can change, and no more
// of it than capacity bytes and a header. What is in it, those who attach look
// at.
func checkMemory(f *os.File, capacity int64) error {
	const mostHeader = 64 << 10 // of package shm
	size, err := sealedSize(f)
	switch {
	case err != nil:
		return fmt.Errorf("%w: not a block: %w", fs.ErrInvalid, err)
	case capacity <= 0 || size <= capacity || size-capacity > mostHeader:
		return fmt.Errorf("%w: %d bytes for a Cap of %d", fs.ErrInvalid, size, capacity)
	}
	return nil
}

// sealedSize returns how many bytes of memory f is, if their number cannot
// change. It does nothing to f, which can be anything, that could wait.
func sealedSize(f *os.File) (size int64, err error) {
	err = control(f, func(fd uintptr) (err error) {
		size, err = memorySize(fd)
		return err
	})
	return size, err
}

// share returns a file of the memory that f is open on, to be sent to a client,
// who gets to read only if restricts says that this is possible.
func share(f *os.File, readOnly bool) (shared *os.File, err error) {
	err = control(f, func(fd uintptr) error {
		own, err := duplicate(fd, readOnly)
		if err == nil {
			shared = os.NewFile(own, "")
		}
		return err
	})
	return shared, err
}

// control calls do with the descriptor of f, which stays open meanwhile.
func control(f syscall.Conn, do func(fd uintptr) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if controlErr := raw.Control(func(fd uintptr) { err = do(fd) }); controlErr != nil {
		return fs.ErrClosed
	}
	return err
}

// add gives b a place, if there is one.
func (s *server) add(b *block) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, size := b.owner, b.info.Cap
	switch {
	case s.blocks[b.info.Name] != nil:
		return fs.ErrExist
	case !s.perClient.allows(c.used, size):
		return fmt.Errorf("%w: this client has %d blocks, %d bytes", ErrQuota, c.used.Blocks, c.used.Bytes)
	case !s.total.allows(s.used, size):
		return fmt.Errorf("%w: there are %d blocks, %d bytes", ErrQuota, s.used.Blocks, s.used.Bytes)
	}
	s.blocks[b.info.Name] = b
	c.owned[b] = true
	s.used.add(1, size)
	c.used.add(1, size)
	return nil
}

// remove takes the place of b away. The caller holds s.mu, and closes the file of
// b without: to free much memory takes long.
func (s *server) remove(b *block) {
	delete(s.blocks, b.info.Name)
	s.used.add(-1, -b.info.Cap)
	if c := b.owner; c != nil {
		delete(c.owned, b)
		c.used.add(-1, -b.info.Cap)
	}
}

func (s *server) release(name string) error {
	s.mu.Lock()
	b := s.blocks[name]
	if b != nil {
		s.remove(b)
	}
	s.mu.Unlock()
	if b == nil {
		return fs.ErrNotExist
	}
	b.file.Close()
	return nil
}

func (s *server) open(req request) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock() // which keeps the file open
	b := s.blocks[req.Name]
	if b == nil {
		return nil, fs.ErrNotExist
	}
	f, err := share(b.file, req.ReadOnly)
	if outOfDescriptors(err) {
		err = fmt.Errorf("%w: %v", ErrQuota, err)
	}
	return f, err
}

// list returns blocks whose names come after the one given.
func (s *server) list(after string) (r response) {
	s.mu.Lock()
	for name, b := range s.blocks {
		if name > after {
			r.Blocks = append(r.Blocks, b.info)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(r.Blocks, byName)
	if len(r.Blocks) > pageSize {
		r.Blocks, r.More = r.Blocks[:pageSize], true
	}
	return r
}

// leave ends a connection, and gives back what goes with it.
func (s *server) leave(c *client) {
	c.conn.Close()
	f, _ := c.conn.take("") // that nobody has asked for
	f.Close()
	var leased []*block
	s.mu.Lock()
	delete(s.clients, c)
	for b := range c.owned {
		if b.info.Leased {
			s.remove(b)
			leased = append(leased, b)
		} else {
			b.owner = nil
		}
	}
	s.mu.Unlock()
	for _, b := range leased {
		b.file.Close()
	}
}

// shutdown ends all connections and lets go of all memory. It does not wait for
// a client for ever: one can have sent a file whose file system, in its own
// hands, does not let it be closed.
func (s *server) shutdown() {
	s.mu.Lock()
	for c := range s.clients {
		c.conn.Close()
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		s.done.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(stall):
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.blocks {
		s.remove(b)
		b.file.Close() // nobody waits any more
	}
}

// outOfDescriptors reports whether err is a lack of the server's that can pass.
func outOfDescriptors(err error) bool {
	return slices.ContainsFunc(passing, func(e error) bool { return errors.Is(err, e) })
}
