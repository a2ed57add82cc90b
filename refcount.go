package shm

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shmkit/shm/internal/leaks"
	"github.com/shmkit/shm/internal/object"
)

// A kind is how a block begins and ends.
type kind int

const (
	named    kind = iota // has a header and a name, and ends with its last attachment
	nameless             // has a header and no name, and ends with its last descriptor
	rawBlock             // has no header, and ends by Unlink
)

// member is an attachment's part in the life of a block.
type member struct {
	obj     object.Object
	kind    kind
	layout  layout     // zero for a raw block
	joined  bool       // others may have seen it; set while attaching, by its only user
	counted bool       // in the count of the header; likewise
	mutex   sync.Mutex // held by the goroutine that has a lock of obj, which is one holder to the system

	tag    uint64     // of a nameless block, for which the system has none; random
	sizing sync.Mutex // held by the goroutine that has the lock of Truncate
	role
}

// attachment is the memory of a block in this process, and the membership in the
// block. Segment.Close or drop ends it by close, once.
type attachment struct {
	mapping
	member

	name     string // of the Segment
	readOnly bool   // option ReadOnly
}

// initHeader makes a the first attachment of a block of that Size that is not published. It
// joins before: a block that is published had an attachment, and is stale once it
// has none.
func (a *attachment) initHeader(size int64) error {
	a.counted = true
	if a.kind == named {
		if err := a.obj.Lockable(); err != nil {
			return err
		}
		if err := a.obj.Join(true, nil); err != nil {
			return err
		}
		a.joined = true
	}
	a.initRole()
	_, err := a.obj.WriteAt(a.layout.marshal(size), 0) // a full file system is an error here, and no fault
	return err
}

// attach registers a with the block. On error the caller detaches: once a has
// joined, another process may have seen it and left the block to it.
func (a *attachment) attach(t *attempt) error {
	a.initRole()
	if a.kind == nameless {
		return a.addToCount(false)
	}
	held, err := inUse(t, a.obj, a.persists)
	if errors.Is(err, fs.ErrNotExist) && a.obj.Writable() {
		if err := a.obj.TryAlone(); err != nil {
			return retryIfBusy(err)
		}
		if a.persists() { // by one that has ended since
			return transient(err)
		}
		unlinkAndMarkStale(a.obj) // all that were attached have been killed
	}
	if err != nil {
		return err
	}
	if err := a.obj.Join(!a.readOnly, a.tagUsed); err != nil {
		return retryIfBusy(err)
	}
	a.joined = true
	// A block that came by a file need not have a name, but if it is abandoned it
	// ended when it lost its name.
	switch linked, err := a.obj.Linked(); {
	case err != nil:
		return err
	case !linked && a.obj.Name() != "":
		return transient(fs.ErrNotExist)
	case !linked && !held:
		return fs.ErrNotExist
	}
	stale := false
	if err := a.words(func(h header) { stale = h.state().Load() != stateLive }); err != nil {
		return err
	}
	if stale {
		return transient(fmt.Errorf("%w: marked stale under its name", ErrCorrupt))
	}
	return a.addToCount(!held)
}

// addToCount adds a to the count of the header, alone if it is the only attachment:
// the others in it were killed.
func (a *attachment) addToCount(alone bool) error {
	if !a.obj.Writable() {
		return nil
	}
	err := a.words(func(h header) {
		if alone {
			h.count().Store(0)
		}
		h.count().Add(1)
	})
	a.counted = err == nil
	return err
}

// inUse reports whether a process is attached to the block. It returns
// fs.ErrNotExist for a stale block; one that is not in use is kept. Whether it is
// kept must be looked at again by who is alone: a process can keep it and end.
func inUse(t *attempt, o object.Object, persists func() bool) (bool, error) {
	switch others, err := o.Others(); {
	case err != nil:
		return false, err
	case others == object.Deciding: // whether the block is stale
		return false, transient(ErrBusy)
	case others == object.Ending && t.awaitEnding():
		return false, transient(fs.ErrExist)
	case others == object.Nobody && !persists():
		return false, fs.ErrNotExist
	default:
		return others != object.Nobody, nil
	}
}

// detach ends the attachment, and the block if it was the last one. The locks
// decide that: killed processes can still be in the count, which only says which
// order to try first.
//
// If a process that was stopped while it was alone keeps others from the block,
// detach waits no longer than patience. If no other process is attached, the block
// is then stale, and left for the next process that opens, creates or reaps it.
func (a *attachment) detach() {
	a.sizing.Lock() // a Truncate ends before others can see that it has
	defer a.sizing.Unlock()
	a.mutex.Lock()
	defer a.mutex.Unlock()
	a.active.Store(true) // a call in progress does not make it a writer any more
	defer a.leave()
	a.abandonLock()
	last := false
	if a.counted {
		a.words(func(h header) { last = h.count().Add(^uint32(0)) == 0 })
	}
	if a.kind != named || !a.obj.Writable() || a.persists() {
		return
	}
	if last && a.obj.TryAlone() == nil {
		a.endBlock()
		return
	}
	// Having left, one of several that leave at once finds that it is the last.
	a.leave()
	retry(func() error {
		switch others, err := a.obj.Others(); {
		case err != nil:
			return err
		case others == object.Deciding:
			return transient(ErrBusy)
		case others != object.Nobody:
			return nil
		}
		if err := a.obj.TryAlone(); err != nil {
			return retryIfBusy(err)
		}
		return a.endBlock()
	})
}

// leave leaves the block, and lets those that wait for a writer look whether there is
// one left.
func (a *attachment) leave() {
	a.obj.Leave()
	if a.kind == named && !a.readOnly {
		a.words(func(header) { a.changed() })
	}
}

// endBlock unlinks the block. The caller is alone, so nobody can keep the block any
// more that has not.
func (a *attachment) endBlock() error {
	if a.persists() {
		return nil
	}
	return unlinkAndMarkStale(a.obj)
}

// persists reports whether the block outlives its attachments.
func (a *attachment) persists() (kept bool) {
	a.words(func(h header) { kept = h.keep().Load() != 0 })
	return kept || a.layout.persistent()
}

func (a *attachment) keep() error {
	switch {
	case a.kind == nameless:
		return fmt.Errorf("%w: the block has no name", errors.ErrUnsupported)
	case a.kind == named && a.readOnly:
		return ErrReadOnly
	case object.Current.Limits().NamesStay:
		return fmt.Errorf("%w: the system ends a block with its last attachment", errors.ErrUnsupported)
	case a.kind == rawBlock:
		return nil
	}
	return a.words(func(h header) { h.keep().Store(1) })
}

// close detaches, and reports whether this was the first close. Calls in progress
// keep the memory until they return.
func (a *attachment) close() bool {
	if !a.gate.Close() {
		return false
	}
	a.kept = a.pass.Swap(passGate) == passQuick
	a.wakeSleepers()
	if a.kind != rawBlock {
		a.detach()
	}
	a.gate.Release()
	return true
}

// lock locks the object and the member. It waits no longer than patience.
func (m *member) lock() error {
	return retry(func() error {
		m.mutex.Lock()
		err := m.obj.TryLock()
		if err != nil {
			m.mutex.Unlock()
		}
		return retryIfBusy(err)
	})
}

func (m *member) unlock() {
	m.obj.Unlock()
	m.mutex.Unlock()
}

// unlinkAndMarkStale removes a block without attachments, and returns why it could
// not be unlinked. The caller is alone. The system decides whether the caller may
// unlink it: in a directory with the sticky bit only its owner may. It then stays,
// stale, for its owner.
//
// The mark comes last: were a block marked under its name by a process that is then
// killed, and a child of that kept a lock, it could be neither opened nor removed.
func unlinkAndMarkStale(o object.Object) error {
	// Unlinking removes a name, not an object. Only a program that does not take the
	// locks can give the name to another object in between.
	err := unlinkIfLinked(o)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		stale := binary.NativeEndian.AppendUint32(nil, stateStale)
		o.WriteAt(stale, offState) // a full or truncated object does not matter any more
	}
	return err
}

// unlinkIfLinked unlinks the object if its name leads to it.
func unlinkIfLinked(o object.Object) error {
	linked, err := o.Linked()
	if err == nil && !linked {
		err = fs.ErrNotExist
	}
	if err != nil {
		return err
	}
	return o.Unlink()
}

// reap unlinks the block called name if it has a header and is stale, and reports
// whether it did.
func reap(t *attempt, name string) (bool, error) {
	o, err := object.Current.Open(name, true)
	if err != nil {
		return false, retryIfBusy(err)
	}
	defer o.Close()
	st, err := o.Stat()
	if err != nil {
		return false, err
	}
	persists := func() bool {
		l, h, readErr := readHeader(o, st.Size)
		err = readErr
		return err != nil && !errors.Is(err, errTruncated) || l.persistent() || h.keep().Load() != 0
	}
	if persists() {
		return false, err
	}
	if err := o.Lockable(); err != nil {
		return false, err
	}
	held, err := inUse(t, o, persists)
	if held || !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	defer o.Leave()
	if err := o.TryAlone(); err != nil {
		return false, retryIfBusy(err) // another process may have attached in the meantime
	}
	if persists() {
		return false, err
	}
	err = unlinkAndMarkStale(o)
	return err == nil, err
}

// A Holder is an attachment to a block. That there is one is the system's word. What
// it says of itself is the word of its process, which it can forge. On darwin there is no
// Holder for an attachment without permission to write to the block.
type Holder struct {
	PID      int  `json:"pid"`      // process id, as the process saw it
	ReadOnly bool `json:"readOnly"` // opened so, or has only followed
	Here     bool `json:"here"`     // PID means that process here: it has the same namespace of process ids
	Gone     bool `json:"gone"`     // the process has ended, but a child of it has the attachment
}

// holders returns how many attachments o has beside its own, and who they are, nil
// if the system does not know.
func holders(o object.Object) (n int, list []Holder, err error) {
	found, err := o.Holders()
	if errors.Is(err, errors.ErrUnsupported) {
		n, err = o.Count()
		return n, nil, err
	}
	list = make([]Holder, 0, len(found)+1)
	for _, h := range found {
		list = append(list, Holder{PID: h.PID, ReadOnly: !h.Writer, Here: h.Here, Gone: h.Gone})
	}
	return len(list), list, err
}

// holders returns how many attachments the block has, and who they are. The locks
// know it, and where a block has none the header knows the number.
func (a *attachment) holders() (n int, list []Holder, err error) {
	switch a.kind {
	case rawBlock:
		return 0, nil, nil
	case nameless:
		err = a.words(func(h header) { n = h.refs() })
		return n, nil, err
	}
	n, list, err = holders(a.obj)
	if list != nil {
		list = append(list, Holder{PID: os.Getpid(), ReadOnly: a.readOnly, Here: true})
	}
	return n + 1, list, err
}

func (a *attachment) unlink() error {
	if a.kind == nameless {
		return fs.ErrNotExist
	}
	if !a.obj.Writable() { // it cannot lock
		return unlink(a.name, a.obj)
	}
	if err := a.lock(); err != nil {
		return err
	}
	defer a.unlock()
	return unlinkIfLinked(a.obj)
}

// Unlink removes the name of a block immediately; see [Segment.Unlink]. It works on
// every kind of block, whether it is in use, stale or damaged. If the process is
// permitted to unlink the block but not to open it, it cannot take the mutex: if
// another process replaces the block at the same moment, the new one may be unlinked.
//
// The error is [fs.ErrNotExist], [fs.ErrPermission], [fs.ErrInvalid] for a bad name,
// [ErrNotSegment] if the name is that of a file that is not regular, [ErrBusy], or
// [errors.ErrUnsupported], on Windows also for a Headerless block.
func Unlink(name string) error {
	clean, err := checkName(name)
	if err == nil {
		err = unlink(clean, nil)
	}
	if err == nil {
		leaks.Unlinked(clean)
	}
	return nameError("unlink", name, err)
}

// unlink removes the name, from only if that is not nil, otherwise from the block
// that it leads to.
func unlink(name string, only object.Object) error {
	return retry(func() error {
		if only != nil {
			if linked, err := only.Linked(); err != nil || !linked {
				return cmp.Or(err, fs.ErrNotExist)
			}
		}
		o, err := object.Current.Open(name, true)
		if errors.Is(err, fs.ErrPermission) {
			return object.Current.UnlinkUnopened(name)
		}
		if err != nil {
			return retryIfBusy(err)
		}
		defer o.Close()
		info, err := o.Stat()
		if err != nil {
			return err
		}
		_, _, err = readHeader(o, info.Size)
		if err == nil || errors.Is(err, errTruncated) {
			o.Lockable() // where it is not, TryLock does what it can
		}
		defer o.Leave()
		if err := o.TryLock(); err != nil {
			return retryIfBusy(err)
		}
		switch linked, err := o.Linked(); {
		case err != nil:
			return err
		case !linked:
			return transient(fs.ErrNotExist) // another block has the name now
		case only != nil:
			return unlinkIfLinked(only)
		}
		return o.Unlink()
	})
}

// Reap unlinks all stale blocks that the process is permitted to unlink and returns
// their names. Stale blocks are what killed processes leave behind. Create does the
// same if memory runs out, and for about 10 milliseconds on the first call in a
// process. On error, such as syscall.EMFILE, Reap also returns the names of the blocks
// it has unlinked so far. On Windows there are no stale blocks. On darwin the error is
// [errors.ErrUnsupported], as for [List].
func Reap() (names []string, err error) {
	names, err = reapUntil(time.Time{})
	return names, pathError("reap", "", err)
}

func reapUntil(end time.Time) (names []string, err error) {
	if object.Current.Limits().NamesStay { // no stale block is ever left behind
		return nil, nil
	}
	err = eachName(func(name string) error {
		if !end.IsZero() && time.Now().After(end) {
			return errEnough
		}
		if _, err := checkName(name); err != nil {
			return err
		}
		reaped, err := reap(&attempt{}, name) // without waiting
		if reaped {
			names = append(names, name)
		}
		return err
	})
	return names, err
}

// errEnough ends eachName.
var errEnough = errors.New("enough")

// eachName calls f with the names of all objects. It returns an error of f that is
// not about one block alone, or that of listing.
func eachName(f func(name string) error) (failed error) {
	err := object.Current.List(func(name string) bool {
		err := f(name)
		if err != nil && err != errEnough && !isBlockError(err) {
			failed = err
		}
		return err != errEnough
	})
	return cmp.Or(err, failed)
}

// reapOnce removes stale blocks, once in a process.
var reapOnce = sync.OnceFunc(func() { reapUntil(time.Now().Add(10 * time.Millisecond)) })

// role is whether an attachment counts as a possible writer. One that has only
// followed does not, so that two followers that may write do not wait for each other.
type role struct {
	active atomic.Bool // it has written, or cannot be taken out of the writers
	aside  bool        // it is out of the writers; guarded by member.mutex
}

func (a *attachment) initRole() {
	a.active.Store(a.kind != named || a.readOnly)
	if a.kind == nameless {
		a.tag = 1 + rand.Uint64N(nobody-1)
	}
}

// beWriter makes the attachment a possible writer for good, before it writes.
func (a *attachment) beWriter() error {
	if a.active.Load() {
		return nil
	}
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if a.active.Load() {
		return nil
	}
	if a.aside {
		if err := a.obj.SetWriter(true); err != nil {
			return err
		}
		a.aside = false
	}
	a.active.Store(true)
	return nil
}

// stepAside takes the attachment out of the writers, unless it has written, and lets
// those that wait for a writer look whether there is one left.
func (a *attachment) stepAside() {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if !a.active.Load() && !a.aside && a.obj.SetWriter(false) == nil {
		a.aside = true
		a.words(func(header) { a.changed() })
	}
}

// abandoned reports whether no possible writer is attached.
func (a *attachment) abandoned() bool {
	if a.kind != named || a.active.Load() && !a.readOnly {
		return false
	}
	others, err := a.obj.Writers()
	return err == nil && !others
}

// abandonLock gives up the lock of an attachment that is closed with it, so that the
// next one that takes it learns of that.
func (a *attachment) abandonLock() {
	a.words(func(h header) { a.unlockWords(lockWords{h, offLock}, a.obj.Tag(), nobody<<1) })
}
