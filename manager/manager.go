// Package manager keeps blocks of shared memory for the duration of a job, whether or
// not a process is attached to them.
//
// A block of package shm ends with its last attachment. If one process creates a
// block and exits before another attaches to it, something must keep the block in
// between. That is a manager. There are two kinds.
//
// [New] returns a [Manager] in this process. Its blocks have names that every process
// can pass to [shm.Open]. They exist until [Manager.Close].
//
// [Serve] is a manager for other processes, which connect to it by [Dial], over a Unix
// socket or a named pipe of Windows. The commands "shm serve" and "shm run" are such
// servers. Names of blocks are known to the server only, and nothing of them is in
// /dev/shm: the memory is passed as a file descriptor. If all processes are killed at
// once, the kernel frees all of it.
//
//	client, err := manager.Dial(ctx, "") // the manager of "shm run"
//	if err != nil {
//		return err
//	}
//	defer client.Close()
//	seg, created, err := client.OpenOrCreate("frames", 16<<20)
//
// Managers and clients return an ordinary [*shm.Segment].
//
// # Ownership
//
// A block belongs to the manager. It exists until Release, by any process, or until
// the manager ends, even if the process that created it has exited. A client dialled
// with [Lease] owns the blocks that it creates: the server releases them when the
// client closes its connection or exits.
//
// A process that is attached to a released block keeps the memory until it closes its
// Segment, as after [shm.Unlink].
//
// # Platforms
//
// New works wherever package shm does. Serve and Dial return [errors.ErrUnsupported]
// except on Linux, darwin and Windows.
//
// On darwin there are no addresses without a file, and a client that may only read
// cannot open blocks.
//
// On Windows the memory is a section with a random name, which is passed instead of a
// descriptor. The kernel frees it when no process has it open. The names of sections
// belong to a session: a client in another session, or of another user, cannot attach
// to the blocks of a server.
package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shmkit/shm"
)

// Info describes a block that a manager keeps.
type Info struct {
	Name    string    `json:"name"`
	Cap     int64     `json:"cap"` // bytes it can hold
	Created time.Time `json:"created"`
	Creator int       `json:"creator"`          // process id, as the manager sees it
	Leased  bool      `json:"leased,omitempty"` // released when its creator disconnects
}

// Manager keeps blocks for this process, and for others that know their names. Its
// methods are safe for concurrent use.
type Manager struct {
	closing sync.Once

	mu     sync.Mutex       // guards what follows
	blocks map[string]*kept // nil once closed
	stop   func() bool      // ends the wait for the context
}

// kept is an attachment of the manager's own.
type kept struct {
	seg     *shm.Segment
	info    shm.Info
	created bool // by the manager, which then unlinks it
}

// New returns a Manager without blocks. When ctx is done, the Manager is closed.
func New(ctx context.Context) *Manager {
	m := &Manager{blocks: make(map[string]*kept)}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stop = context.AfterFunc(ctx, func() { m.Close() })
	return m
}

// Create creates a block as [shm.Create] does and keeps it. The Segment is the
// caller's to close. The error is that of [shm.Create], [fs.ErrInvalid] for the options
// [shm.Persistent] and [shm.Headerless], whose blocks would outlive a manager that is
// killed, or [fs.ErrClosed] if the manager is closed.
func (m *Manager) Create(name string, size int64, opts ...shm.Option) (*shm.Segment, error) {
	if m.isClosed() {
		return nil, pathError("create", name, fs.ErrClosed)
	}
	seg, err := shm.Create(name, size, opts...)
	if err != nil {
		return nil, err
	}
	if err := m.keep(seg, true); err != nil {
		return nil, pathError("create", name, errors.Join(err, end(seg, true)))
	}
	return seg, nil
}

// attempts bounds how often OpenOrCreate retries because of other processes.
var attempts = 100 // a variable for tests alone

// OpenOrCreate attaches to the block called name, or creates it if there is none, as
// [shm.OpenOrCreate] does, and keeps it. It also keeps a block that another process has
// created, but Release and Close do not unlink that.
//
// The error is one of [Manager.Create] or [shm.OpenOrCreate], or [shm.ErrBusy] if
// other processes have unlinked the block a hundred times before it was kept.
func (m *Manager) OpenOrCreate(name string, size int64, opts ...shm.Option) (seg *shm.Segment, created bool, err error) {
	if m.isClosed() {
		return nil, false, pathError("open", name, fs.ErrClosed)
	}
	for range attempts {
		seg, created, err = shm.OpenOrCreate(name, size, opts...)
		if err != nil {
			return nil, false, err
		}
		err := m.keep(seg, created)
		if err == nil {
			return seg, created, nil
		}
		endErr := end(seg, created)
		if !errors.Is(err, fs.ErrNotExist) { // else unlinked before it was kept
			return nil, false, pathError("open", name, errors.Join(err, endErr))
		}
	}
	return nil, false, pathError("open", name, fmt.Errorf("%w: other processes unlink it", shm.ErrBusy))
}

// Open attaches to a block that the manager keeps. The error is one of [shm.Open],
// [fs.ErrNotExist] if the manager does not keep the block or it was unlinked, or
// [fs.ErrClosed].
func (m *Manager) Open(name string, opts ...shm.Option) (*shm.Segment, error) {
	m.mu.Lock()
	k, err := m.find(name)
	m.mu.Unlock()
	if err != nil {
		return nil, pathError("open", name, err)
	}
	seg, err := openSame(name, k.info.ID, opts...)
	return seg, pathError("open", name, err)
}

// find returns the block called name. The caller holds m.mu.
func (m *Manager) find(name string) (*kept, error) {
	k := m.blocks[clean(name)]
	switch {
	case m.blocks == nil:
		return nil, fs.ErrClosed
	case k == nil:
		return nil, fs.ErrNotExist
	}
	return k, nil
}

// openSame opens the block with the id, and no other that has its name meanwhile.
func openSame(name string, id [16]byte, opts ...shm.Option) (*shm.Segment, error) {
	seg, err := shm.Open(name, opts...)
	if err != nil {
		return nil, err
	}
	if info, err := infoOf(seg); err != nil || info.ID != id {
		return nil, errors.Join(cmp.Or(err, fs.ErrNotExist), seg.Close())
	}
	return seg, nil
}

// keep attaches the manager to the block of seg as well.
func (m *Manager) keep(seg *shm.Segment, created bool) error {
	info, err := infoOf(seg)
	if err != nil {
		return err
	}
	if info.Headerless || created && info.Persistent {
		return fmt.Errorf("%w: option Persistent or Headerless", fs.ErrInvalid)
	}
	own, err := openSame(seg.Name(), info.ID)
	if err != nil {
		return err
	}
	m.mu.Lock()
	before := m.blocks[seg.Name()]
	if m.blocks == nil {
		err, before = fs.ErrClosed, &kept{seg: own}
	} else {
		// A block that is there is the same one, or has been unlinked.
		created = created || before != nil && before.created && before.info.ID == info.ID
		m.blocks[seg.Name()] = &kept{seg: own, info: info, created: created}
	}
	m.mu.Unlock()
	if before != nil {
		err = errors.Join(err, before.seg.Close())
	}
	return err
}

// List returns the blocks that the manager keeps, sorted by name.
func (m *Manager) List() ([]Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.blocks == nil {
		return nil, pathError("list", "", fs.ErrClosed)
	}
	list := make([]Info, 0, len(m.blocks))
	for name, k := range m.blocks {
		list = append(list, Info{Name: name, Cap: k.info.Cap, Created: k.info.Created, Creator: k.info.Creator})
	}
	slices.SortFunc(list, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// Release detaches the manager from a block, and unlinks it if the manager has created
// it and no other process has unlinked it before. The error is [fs.ErrNotExist] if the
// manager does not keep the block, [fs.ErrClosed], or that of [shm.Segment.Unlink], in
// which case the manager does not keep the block any more either.
func (m *Manager) Release(name string) error {
	m.mu.Lock()
	k, err := m.find(name)
	delete(m.blocks, clean(name))
	m.mu.Unlock()
	if err != nil {
		return pathError("release", name, err)
	}
	return end(k.seg, k.created)
}

// Close releases all blocks. It returns the errors of all that it could not release,
// by [errors.Join]. A second Close waits for the first and returns nil.
func (m *Manager) Close() error {
	var errs []error
	m.closing.Do(func() {
		m.mu.Lock()
		blocks := m.blocks
		m.blocks = nil
		m.stop()
		m.mu.Unlock()
		for _, k := range blocks {
			errs = append(errs, end(k.seg, k.created))
		}
	})
	return errors.Join(errs...)
}

func (m *Manager) isClosed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.blocks == nil
}

// end closes seg, after unlinking its block if so asked.
func end(seg *shm.Segment, unlink bool) error {
	var err error
	if unlink {
		if err = seg.Unlink(); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return errors.Join(err, seg.Close())
}

func infoOf(seg *shm.Segment) (shm.Info, error) {
	stat, err := seg.Stat()
	if err != nil {
		return shm.Info{}, err
	}
	return *stat.Sys().(*shm.Info), nil
}

// clean removes the leading slash that package shm ignores.
func clean(name string) string { return strings.TrimPrefix(name, "/") }

// pathError returns err as an *fs.PathError, like the errors of package shm.
func pathError(op, name string, err error) error {
	var path *fs.PathError
	if err == nil || errors.As(err, &path) {
		return err
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}
