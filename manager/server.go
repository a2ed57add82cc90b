package manager

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"github.com/shmkit/shm/internal/blockname"
	"github.com/shmkit/shm/internal/object"
)

// Peer is the process at the other end of a connection, as the kernel knows it. The
// ids are those of the process that connected, at that time, but on darwin PID is the
// process that has used the connection last. On Windows, where users have no such
// numbers, UID and GID are -1.
type Peer struct{ PID, UID, GID int }

// privileged reports whether p is of the server's own user, or root.
func (p Peer) privileged() bool { return p.UID == os.Geteuid() || p.UID == 0 }

// Access is what a client may do.
type Access int

// The levels of access; each includes the one before.
const (
	NoAccess   Access = iota // nothing: the connection is refused
	ReadAccess               // Open of blocks ReadOnly, and List
	FullAccess               // everything
)

// A ServeOption changes how [Serve] serves.
type ServeOption func(*server)

// Authorize makes f decide what each client may do. The default is FullAccess for the
// user of the server and for root, and NoAccess for others. f is called for one
// connection after the other.
//
// A client with ReadAccess gets memory that is open for reading only, and cannot
// write to it unless it is of the server's user or root. On darwin, which has no such
// memory, its Open is [errors.ErrUnsupported].
//
// On Windows the default is FullAccess for the user of the server alone. f has only a
// process id to decide by, which can be that of another process by then. [Listen]
// determines which processes can connect at all.
func Authorize(f func(Peer) Access) ServeOption {
	return func(s *server) { s.authorize = f }
}

// MaxClients bounds the number of connections at one time. The default is 1,000. The
// user of the server and root may have all of them. Each other user that [Authorize]
// admits may have a quarter, and all of these users together three quarters.
func MaxClients(n int) ServeOption {
	return func(s *server) { s.maxClients = n }
}

// Total bounds all blocks of the server together. The default is 10,000 blocks and
// half of the machine's memory.
func Total(q Quota) ServeOption {
	return func(s *server) { s.total = q }
}

// PerClient bounds the blocks that one connection has created and that have not been
// released. The default is no bound but that of Total.
func PerClient(q Quota) ServeOption {
	return func(s *server) { s.perClient = q }
}

type server struct {
	authorize  func(Peer) Access // nil: conn.peer decides
	maxClients int
	total      Quota
	perClient  Quota

	serving sync.WaitGroup // the clients' goroutines
	ending  chan struct{}  // closed when Serve ends

	mu      sync.Mutex // guards what follows, and client.used
	clients map[*client]bool
	users   map[int]int // connections of each user but the server's own and root
	others  int         // sum of users
	blocks  []*block    // sorted by name
	used    Quota
	ended   bool // no block may be added
}

// client is a connection to a client. A field that is not constant and not guarded by
// server.mu belongs to the client's goroutine.
type client struct {
	conn   conn
	peer   Peer
	access Access
	used   Quota    // by its blocks that have not been released
	memory *os.File // for its next opCreate, or nil
	size   int64    // of memory, which cannot change
	gave   bool     // a file has been sent to it
}

// Listen returns a listener for [Serve]. If addr begins with "@", it is an address
// without a file, to which every process in the network namespace can connect; on
// darwin, which has none, the error is [errors.ErrUnsupported]. Otherwise it is the
// path of a socket to which only this user and root can connect. Listen replaces a
// socket that a killed server has left behind.
//
// On Windows addr is that of a named pipe, \\.\pipe\NAME or @NAME for short. Only
// processes of this user, the administrators and the system can connect to it, and
// none on another machine.
//
// The error is [syscall.EADDRINUSE] if another process listens there.
func Listen(addr string) (net.Listener, error) {
	if !supported {
		return nil, errors.ErrUnsupported
	}
	return listen(addr)
}

// Serve keeps blocks for the clients that connect to l, which must be a Unix stream
// socket, or on Windows what [Listen] returns. It serves until ctx is done, and then
// returns nil, or until l fails. It closes l. When Serve returns, all connections are
// closed and the server holds no memory; clients keep what they are attached to.
//
// No process, whether it may connect or not, can make the server wait on behalf of
// another, nor keep Serve from returning within ten seconds of the end of ctx. A
// client that does not complete a request, or does not read its response, is
// disconnected after ten seconds. The server never accesses the memory of blocks and
// accepts no descriptors. Before Linux 6.16 and on darwin this rule has exceptions, which
// docs/manager.md lists.
func Serve(ctx context.Context, l net.Listener, opts ...ServeOption) error {
	defer l.Close()
	if !supported {
		return errors.ErrUnsupported
	}
	s := &server{
		maxClients: 1000,
		ending:     make(chan struct{}),
		clients:    make(map[*client]bool),
		users:      make(map[int]int),
	}
	for _, o := range opts {
		o(s)
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
		case isPassing(err): // a client may close its connection
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
	c := &client{}
	var err error
	if c.conn, err = accepted(conn); err == nil {
		c.peer, c.access, err = c.conn.peer()
	}
	if err == nil && s.authorize != nil {
		c.access = s.authorize(c.peer)
	}
	if err == nil && c.access == NoAccess {
		err = fmt.Errorf("%w: %+v", fs.ErrPermission, c.peer)
	}
	if err == nil {
		err = s.enter(c)
	}
	if err != nil {
		closeLater(func() {
			conn.SetWriteDeadline(time.Now().Add(stall))
			conn.Write(marshal(failure(err)))
			conn.Close()
		})
		return
	}
	s.serving.Go(func() {
		defer s.leave(c)
		s.talk(c)
	})
}

// enter adds c to the clients. The error is ErrQuota if there are too many.
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

// talk answers the requests of c until the connection ends, or a line is no request.
func (s *server) talk(c *client) {
	lines := bufio.NewReaderSize(c.conn, maxRequest)
	err := c.reply(response{Version: protocolVersion}, nil, nil)
	for err == nil {
		var line []byte
		if line, err = c.readLine(lines); err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
		var req request
		if err != nil || json.Unmarshal(line, &req) != nil {
			c.reply(response{}, nil, fmt.Errorf("%w: bad request", fs.ErrInvalid))
			return
		}
		resp, f, failed := s.answer(c, req)
		err = c.reply(resp, f, failed)
		f.Close() // if there is one
	}
}

// readLine waits for a line to begin, and then no longer than stall for its end.
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

// reply sends resp, with f unless it is nil, or err if there is one.
func (c *client) reply(resp response, f *os.File, err error) error {
	c.conn.SetWriteDeadline(time.Now().Add(stall))
	if err == nil && f != nil {
		c.gave = true
		if err = c.conn.sendFile(resp, f); !errors.Is(err, ErrQuota) {
			return err
		}
	}
	if err != nil {
		resp = failure(err)
	}
	_, err = c.conn.Write(marshal(resp))
	return err
}

// answer executes a request. The file that it returns goes with the response.
func (s *server) answer(c *client, req request) (resp response, f *os.File, err error) {
	if c.access < FullAccess && (req.Op == opMemory || req.Op == opCreate || req.Op == opRelease || req.Op == opOpen && !req.ReadOnly) {
		return resp, nil, fmt.Errorf("%w: %+v may only read", fs.ErrPermission, c.peer)
	}
	if c.access < FullAccess && req.Op == opOpen && !object.Current.Limits().Restricts {
		return resp, nil, fmt.Errorf("%w: memory cannot be handed out for reading only", errors.ErrUnsupported)
	}
	if req.Op != opList && !blockname.Valid(req.Name, maxName) {
		return resp, nil, errBadName
	}
	switch req.Op {
	case opMemory:
		f, err = s.create(c, req)
	case opCreate:
		err = s.keep(c, req)
	case opOpen:
		f, err = s.open(req)
	case opList:
		resp = s.list(req.Name)
	case opRelease:
		err = s.release(req.Name)
	default:
		err = fmt.Errorf("%w: unknown operation", fs.ErrInvalid)
	}
	return resp, f, err
}

// leave ends a connection and releases what belongs to it. The client counts until its
// connection is closed, which can take a thread, and until it has read a descriptor
// that was sent to it, which is charged to this user.
func (s *server) leave(c *client) {
	c.conn.hangUp()
	c.memory.Close() // if there is one
	var leased []*block
	s.mu.Lock()
	if c.used.Blocks > 0 {
		leased = s.removeAll(func(b *block) bool { return b.owner == c && b.info.Leased })
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
	blocks := s.removeAll(func(*block) bool { return true })
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		for _, b := range blocks {
			b.file.Close()
		}
		s.serving.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(stall):
	}
}
