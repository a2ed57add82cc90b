// Package manager keeps blocks of shared memory for as long as a job takes, and
// not only for as long as somebody is attached.
//
// A block of package shm ends with its last attachment. Where one process makes
// a block, ends, and another comes later to read it, somebody must hold it in
// between: that is a manager. There are two kinds.
//
// [New] makes a [Manager] in this process. Its blocks have names that every
// process opens by [shm.Open]. They stay until [Manager.Close].
//
// [Serve] is a manager for other processes, which reach it by [Dial] over a Unix
// socket or a named pipe, as in "shm serve" and "shm run" of the command shm. Its
// blocks have names in this manager only, and nothing in /dev/shm: the memory
// travels as a file descriptor. If all processes die at once, the kernel frees it
// all.
//
//	client, err := manager.Dial(ctx, "") // the manager of "shm run"
//	if err != nil {
//		return err
//	}
//	defer client.Close()
//	seg, created, err := client.OpenOrCreate("frames", 16<<20)
//
// What they return is a [*shm.Segment] like any other.
//
// # Who owns a block
//
// The manager does. A block stays until Release by anybody, or until the manager
// ends, whatever becomes of the process that created it. A client that is
// dialled with [Lease] owns the blocks it creates: they go when it closes its
// connection or dies.
//
// A block that goes is gone for those who come later. Those who are attached
// keep the memory until they Close their Segments, as after [shm.Unlink].
//
// # Platforms
//
// New works wherever shm does. Serve and Dial are [errors.ErrUnsupported]
// elsewhere than on Linux, darwin and Windows.
//
// On darwin there are no addresses without a file, and clients that may only
// read cannot open blocks; see docs/manager.md.
//
// On Windows the memory is a section whose name, a random one, travels
// in place of a descriptor. It is the kernel that ends it, with the last process
// that has it open. Names of sections are those of a session: a client in
// another session, or of another user, cannot open the blocks of a server.
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
	Leased  bool      `json:"leased,omitempty"` // goes with the client that created it
}

// Manager keeps blocks for this process, and for others that know their names.
// All methods are safe for concurrent use.
type Manager struct {
	closing sync.Once

	mu     sync.Mutex       // guards what follows
	blocks map[string]*kept // nil once closed
	stop   func() bool      // no longer waits for the context
}

// kept is an attachment of the manager's own.
type kept struct {
	seg     *shm.Segment
	info    shm.Info
	created bool // by the manager, and so for it to unlink
}

// New returns a Manager that is closed when ctx is done, if not before.
func New(ctx context.Context) *Manager {
	m := &Manager{blocks: make(map[string]*kept)}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stop = context.AfterFunc(ctx, func() { m.Close() })
	return m
}

// Create creates a block as [shm.Create] does, keeps it, and returns a Segment
// for the caller to close. [shm.Persistent] and [shm.Headerless] are
// [fs.ErrInvalid], because such a block would outlive a manager that is killed.
// The error is [fs.ErrClosed] if the manager is closed.
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

// attempts is how often an OpenOrCreate begins anew, each time because another
// process was in between.
var attempts = 100 // a variable for tests alone

// OpenOrCreate attaches to the block called name, or creates it if there is
// none, as [shm.OpenOrCreate] does, and keeps it. A block that others created is
// kept as well, but Release and Close only detach from it.
//
// The error is that of [shm.OpenOrCreate], [fs.ErrClosed] if the manager is
// closed, or [shm.ErrBusy] if the block was unlinked before it was kept, a hundred
// times in succession.
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
		if !errors.Is(err, fs.ErrNotExist) { // released before it was kept
			return nil, false, pathError("open", name, errors.Join(err, endErr))
		}
	}
	return nil, false, pathError("open", name, fmt.Errorf("%w: others unlink it all the time", shm.ErrBusy))
}

// Open attaches to a block that the manager keeps. The error is
// [fs.ErrNotExist] if it does not, or if its name was taken away.
func (m *Manager) Open(name string, opts ...shm.Option) (*shm.Segment, error) {
	m.mu.Lock()
	k, closed := m.blocks[clean(name)], m.blocks == nil
	m.mu.Unlock()
	switch {
	case closed:
		return nil, pathError("open", name, fs.ErrClosed)
	case k == nil:
		return nil, pathError("open", name, fs.ErrNotExist)
	}
	seg, err := shm.Open(name, opts...)
	if err != nil {
		return nil, err
	}
	if info, err := infoOf(seg); err != nil || info.ID != k.info.ID {
		// Somebody unlinked it, and somebody made another one of that name.
		return nil, pathError("open", name, errors.Join(cmp.Or(err, fs.ErrNotExist), seg.Close()))
	}
	return seg, nil
}

// keep has the manager attach to the block of seg as well.
func (m *Manager) keep(seg *shm.Segment, created bool) error {
	info, err := infoOf(seg)
	if err != nil {
		return err
	}
	if info.Headerless || created && info.Persistent {
		return fmt.Errorf("%w: option Persistent or Headerless", fs.ErrInvalid)
	}
	own, err := shm.Open(seg.Name())
	if err != nil {
		return err
	}
	if ownInfo, err := infoOf(own); err != nil || ownInfo.ID != info.ID {
		return errors.Join(cmp.Or(err, fs.ErrNotExist), own.Close())
	}
	m.mu.Lock()
	before := m.blocks[seg.Name()]
	if m.blocks == nil {
		err, before = fs.ErrClosed, &kept{seg: own}
	} else {
		// One that is there is the same, opened anew, or has lost its name.
		created = created || before != nil && before.created && before.info.ID == info.ID
		m.blocks[seg.Name()] = &kept{seg: own, info: info, created: created}
	}
	m.mu.Unlock()
	if before != nil {
		err = errors.Join(err, before.seg.Close())
	}
	return err
}

// List returns the blocks that the manager keeps, by name.
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
	slices.SortFunc(list, byName)
	return list, nil
}

func byName(a, b Info) int { return strings.Compare(a.Name, b.Name) }

// Release ends a block that the manager keeps: it unlinks it if the manager
// created it, and detaches. That somebody else has unlinked it before is no
// error. The error is [fs.ErrNotExist] if the manager does not keep it, or that
// of [shm.Segment.Unlink]; the manager then no longer keeps it either.
func (m *Manager) Release(name string) error {
	name = clean(name)
	m.mu.Lock()
	k, closed := m.blocks[name], m.blocks == nil
	delete(m.blocks, name)
	m.mu.Unlock()
	switch {
	case closed:
		return pathError("release", name, fs.ErrClosed)
	case k == nil:
		return pathError("release", name, fs.ErrNotExist)
	}
	return end(k.seg, k.created)
}

// Close releases all blocks, and returns all that went wrong, by [errors.Join]:
// one block that cannot be released does not keep the others. A second Close
// does nothing, waits for the first, and returns nil.
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

// end closes seg, and takes the name of its block away if so asked.
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

// clean drops the leading slash that package shm drops.
func clean(name string) string { return strings.TrimPrefix(name, "/") }

// pathError makes err what package shm returns.
func pathError(op, name string, err error) error {
	var path *fs.PathError
	if err == nil || errors.As(err, &path) {
		return err
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}
