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
	"github.com/shmkit/shm/internal/object"
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

// refuses returns ErrQuota if a block of size bytes is more than q allows to whose
// blocks are used already.
func (q Quota) refuses(whose string, used Quota, size int64) error {
	switch {
	case q.Blocks != 0 && used.Blocks >= q.Blocks:
		return fmt.Errorf("%w: one more block: %d of at most %d blocks %s are in use", ErrQuota, used.Blocks, q.Blocks, whose)
	case q.Bytes != 0 && size > q.Bytes-used.Bytes:
		return fmt.Errorf("%w: %d more bytes: %d of at most %d bytes %s are in use", ErrQuota, size, used.Bytes, q.Bytes, whose)
	}
	return nil
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

// MaxClients bounds the connections at one time. The default is 1,000. The user
// of the server and root may have all of them. Of the other users that
// [Authorize] lets in, each may have a quarter, and all of them together three
// quarters, so that none of them can keep the others out, nor the server's own.
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
	done   sync.WaitGroup // of the clients' goroutines
	ending chan struct{}  // closed when Serve ends

	mu      sync.Mutex // guards what follows, and all clients and blocks
	clients map[*client]bool
	users   map[int]int // connections of each user but the server's own and root
	others  int         // sum of users
	blocks  map[string]*block
	names   []string // of blocks, sorted
	used    Quota
	ended   bool // no more blocks
}

// client is a connection.
type client struct {
	conn   *conn
	peer   Peer
	access Access
	owned  map[*block]bool // what it has created and is still there
	used   Quota

	memory memory // for its next opCreate; its goroutine's own
	gave   bool   // has been sent a descriptor; likewise
}

// memory is a file of memory and its size, which cannot change.
type memory struct {
	file *os.File
	size int64
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
// No process, allowed to connect or not, can make the server wait on behalf of
// another, nor keep Serve from returning within ten seconds of the end of ctx.
// Each client has a goroutine of its own, requests have a bounded length, and a
// client that does not complete one, or does not take its response, is dropped
// after ten seconds. The server never looks at the memory of blocks, so nothing
// that a client does to it can harm the server. On Linux it takes no descriptors
// from clients either. Before Linux 6.16 the kernel lets them send some all the
// same, and what is left open to them there is in docs/manager.md.
func Serve(ctx context.Context, l net.Listener, opts ...ServeOption) error {
	defer l.Close()
	if !supported {
		return errUnsupported
	}
	s := &server{
		serveConfig: serveConfig{
			maxClients: 1000,
		},
		ending:  make(chan struct{}),
		clients: make(map[*client]bool),
		users:   make(map[int]int),
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
		err = s.enter(c)
	}
	if err != nil {
		unwanted.add(func() {
			conn.SetWriteDeadline(time.Now().Add(stall))
			conn.Write(marshal(failure(err)))
			conn.Close()
		})
		return
	}
	s.done.Go(func() {
		defer s.leave(c)
		s.talk(c)
	})
}

// enter adds c to the clients. The error is ErrQuota if there may be no more.
func (s *server) enter(c *client) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, uid := s.maxClients, c.peer.UID
	if all := len(s.clients); all >= n {
		return fmt.Errorf("%w: one more client: there are %d of at most %d", ErrQuota, all, n)
	}
	if !c.peer.privileged() {
		if same, most := s.users[uid], max(n/4, 1); same >= most {
			return fmt.Errorf("%w: one more client of user %d: there are %d of at most %d", ErrQuota, uid, same, most)
		}
		if most := max(n-n/4, 1); s.others >= most {
			return fmt.Errorf("%w: one more client of other users: there are %d of at most %d", ErrQuota, s.others, most)
		}
		s.users[uid]++
		s.others++
	}
	s.clients[c] = true
	return nil
}

// exit removes c from the clients.
func (s *server) exit(c *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.clients, c)
	if uid := c.peer.UID; !c.peer.privileged() {
		s.others--
		if s.users[uid]--; s.users[uid] == 0 {
			delete(s.users, uid)
		}
	}
}

// privileged reports whether p is of the server's own user, or root.
func (p Peer) privileged() bool { return p.UID == os.Geteuid() || p.UID == 0 }

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
		err = c.reply(resp, f)
		f.Close() // if there is one
		if err != nil {
			return
		}
	}
}

// reply sends a response. A client never has more than one descriptor to read: the
// kernel bounds how many a user can have under way, and the server's user is the
// same for all clients.
func (c *client) reply(r response, f *os.File) error {
	if f == nil {
		return c.send(r, nil)
	}
	if c.conn.unread() {
		return c.send(failure(fmt.Errorf("%w: a descriptor before the last response was read", ErrQuota)), nil)
	}
	c.gave = true
	err := c.send(r, f)
	if errors.Is(err, errUnderWay) { // of other processes of this user; nothing was sent
		return c.send(failure(fmt.Errorf("%w: %v", ErrQuota, err)), nil)
	}
	return err
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
	if c.access < FullAccess && (req.Op == opMemory || req.Op == opCreate || req.Op == opRelease || req.Op == opOpen && !req.ReadOnly) {
		return resp, nil, fmt.Errorf("%w: %+v may only read", fs.ErrPermission, c.peer)
	}
	if c.access < FullAccess && req.Op == opOpen && !object.Current.Limits().Restricts {
		return resp, nil, fmt.Errorf("%w: memory cannot be handed out to read only", errors.ErrUnsupported)
	}
	if req.Op != opList && !blockname.Valid(req.Name, maxName) {
		return resp, nil, fmt.Errorf("%w: bad name", fs.ErrInvalid)
	}
	switch req.Op {
	case opMemory:
		f, err = s.create(c, req)
		return resp, f, err
	case opCreate:
		m, err := c.take(req.Section)
		if err != nil {
			return resp, nil, err
		}
		return resp, nil, s.keep(c, req, m)
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

// create creates the memory for a block of c and returns a file of it. Memory from
// an earlier call that no block was made of is released first, also on error; with
// a size of 0 that is all.
func (s *server) create(c *client, req request) (*os.File, error) {
	c.memory.file.Close() // if there is one
	c.memory = memory{}
	if req.Size == 0 {
		return nil, nil
	}
	err := checkSize(req.Size, req.Cap)
	if err == nil {
		s.mu.Lock()
		err = s.refuses(c, req.Name, req.Cap) // before there is the memory, too
		s.mu.Unlock()
	}
	if err != nil {
		return nil, err
	}
	f, err := createMemory(req.Size)
	if err != nil {
		return nil, quota(err)
	}
	c.memory = memory{f, req.Size}
	shared, err := share(f, false)
	return shared, quota(err)
}

// take returns the memory of the block that c has built.
func (c *client) take(section string) (m memory, err error) {
	if createsMemory() {
		if m, c.memory = c.memory, m; m.file == nil {
			err = fmt.Errorf("%w: no memory was asked for", fs.ErrInvalid)
		}
		return m, err
	}
	if m.file, err = c.conn.take(section); err == nil {
		m.size, err = sealedSize(m.file)
	}
	if err != nil {
		m.file.Close() // if there is one
		if err = quota(err); !errors.Is(err, ErrQuota) {
			err = fmt.Errorf("%w: not a block: %v", fs.ErrInvalid, err) // whatever it lacks
		}
	}
	return m, err
}

// keep keeps the memory as a new block.
func (s *server) keep(c *client, req request, m memory) error {
	err := checkSize(m.size, req.Cap)
	if err == nil {
		info := Info{Name: req.Name, Cap: req.Cap, Created: time.Now(), Creator: c.peer.PID, Leased: req.Lease}
		err = s.add(&block{info: info, owner: c, file: m.file})
	}
	if err != nil {
		m.file.Close()
	}
	return err
}

// checkSize checks that size bytes of memory have room for a block with a Cap of
// capacity bytes and its header, and no more. A client that attaches checks what is
// in the memory.
func checkSize(size, capacity int64) error {
	const mostHeader = 64 << 10 // of package shm
	if capacity <= 0 || size <= capacity || size-capacity > mostHeader {
		return fmt.Errorf("%w: %d bytes for a Cap of %d", fs.ErrInvalid, size, capacity)
	}
	return nil
}

// createsMemory reports whether the server creates the memory of blocks, and not
// the client.
func createsMemory() bool { return object.Current.Limits().SendsMemory }

// sealedSize returns how many bytes of memory f is, if their number cannot
// change. It does nothing to f, which can be anything, that could wait.
func sealedSize(f *os.File) (size int64, err error) {
	err = control(f, func(fd uintptr) (err error) {
		size, err = object.Current.MemorySize(fd)
		return err
	})
	return size, err
}

// quota makes a lack of descriptors, or of what else can pass, ErrQuota.
func quota(err error) error {
	if outOfDescriptors(err) {
		return fmt.Errorf("%w: %v", ErrQuota, err)
	}
	return err
}

// share returns a file of the memory that f is open on, to be sent to a client.
func share(f *os.File, readOnly bool) (shared *os.File, err error) {
	err = control(f, func(fd uintptr) error {
		own, err := object.Current.DuplicateMemory(fd, readOnly)
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

// refuses returns the error for a block that the server may not keep, or nil. The
// caller holds s.mu.
func (s *server) refuses(c *client, name string, capacity int64) error {
	switch {
	case s.ended:
		return ErrGone
	case s.blocks[name] != nil:
		return fs.ErrExist
	}
	err := s.perClient.refuses("of this client", c.used, capacity)
	if err == nil {
		err = s.total.refuses("of all clients", s.used, capacity)
	}
	return err
}

// add gives b a place, if there is one.
func (s *server) add(b *block) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, name, size := b.owner, b.info.Name, b.info.Cap
	if err := s.refuses(c, name, size); err != nil {
		return err
	}
	i, _ := slices.BinarySearch(s.names, name)
	s.names = slices.Insert(s.names, i, name)
	s.blocks[name] = b
	c.owned[b] = true
	s.used.add(1, size)
	c.used.add(1, size)
	return nil
}

// remove takes the place of b away. The caller holds s.mu, and closes the file of
// b without: to free much memory takes long.
func (s *server) remove(b *block) {
	delete(s.blocks, b.info.Name)
	i, _ := slices.BinarySearch(s.names, b.info.Name)
	s.names = slices.Delete(s.names, i, i+1)
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
	return f, quota(err)
}

// list returns the first blocks of those whose names come after the one given.
func (s *server) list(after string) (r response) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, found := slices.BinarySearch(s.names, after)
	if found {
		i++
	}
	page := s.names[i:]
	if len(page) > pageSize {
		page, r.More = page[:pageSize], true
	}
	for _, name := range page {
		r.Blocks = append(r.Blocks, s.blocks[name].info)
	}
	return r
}

// leave ends a connection and releases what belongs to it. The client counts as one
// until its connection is closed, which can take a thread, and until it has read the
// descriptor that was sent to it, which is charged to this user.
func (s *server) leave(c *client) {
	c.conn.hangUp()
	f, _ := c.conn.take("") // that nobody has asked for
	f.Close()
	c.memory.file.Close()
	var leased []*block
	s.mu.Lock()
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
	for pause := time.Millisecond; c.gave && c.conn.unread(); pause = min(2*pause, time.Second) {
		select {
		case <-time.After(pause):
			continue
		case <-s.ending:
		}
		break
	}
	cutShort(func() { c.conn.Close() })
	s.exit(c)
}

// shutdown ends all connections and releases all memory. It waits no longer than
// stall.
func (s *server) shutdown() {
	close(s.ending)
	s.mu.Lock()
	s.ended = true
	for c := range s.clients {
		c.conn.hangUp()
	}
	var blocks []*block
	for _, b := range s.blocks {
		blocks = append(blocks, b)
	}
	for _, b := range blocks {
		s.remove(b)
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		for _, b := range blocks {
			b.file.Close()
		}
		s.done.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(stall):
	}
}

// unwanted closes what other processes have made, which can take as long as they
// like. Nothing waits for it.
var unwanted queue

// queue calls functions in a few goroutines.
type queue struct {
	mu      sync.Mutex // guards what follows
	waiting []func()
	running int
}

func (q *queue) add(f func()) {
	const most = 64 // each can cost a thread
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, f)
	if q.running < most {
		q.running++
		go q.run()
	}
}

func (q *queue) run() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.waiting) > 0 {
		f := q.waiting[0]
		q.waiting = q.waiting[1:]
		q.mu.Unlock()
		cutShort(f)
		q.mu.Lock()
	}
	q.running--
}

// outOfDescriptors reports whether err is a lack of the server's that can pass.
func outOfDescriptors(err error) bool {
	return slices.ContainsFunc(passing, func(e error) bool { return errors.Is(err, e) })
}
