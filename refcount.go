package shm

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"sync"
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
	counted bool       // in the count of the header; set while attaching, by its only user
	mutex   sync.Mutex // held by the goroutine that holds the mutex of obj
}

// attachment is the memory of a block in this process, and the membership in the
// block. Segment.Close or drop ends it by close, once.
type attachment struct {
	mapping
	member

	name     string // of the Segment
	readOnly bool   // option ReadOnly
}

// initHeader makes a the first attachment of a block that is not published. It
// joins before: a block that is published had an attachment, and is stale once it
// has none.
func (a *attachment) initHeader() error {
	a.counted = true
	if a.kind == named {
		if err := a.obj.Lockable(); err != nil {
			return err
		}
		if err := a.obj.Join(); err != nil {
			return err
		}
	}
	_, err := a.obj.WriteAt(a.layout.marshal(), 0) // a full file system is an error here, and no fault
	return err
}

// attach registers a with the block. On error only locks remain, which discard
// releases. Once it has joined, the block lives until detach.
func (a *attachment) attach() error {
	switch {
	case a.kind == nameless && a.obj.Writable():
		a.counted = true
		return a.words(func(h header) { h.count().Add(1) })
	case a.kind == nameless:
		return nil
	case !a.obj.Writable():
		return a.attachUncounted()
	}
	if err := a.obj.TryLock(); err != nil {
		return retryIfBusy(err)
	}
	alone, err := a.obj.Alone()
	if err != nil {
		return err
	}
	if alone && !a.layout.persistent() {
		markStaleAndUnlink(a.obj) // all that were attached have been killed
		return fs.ErrNotExist
	}
	if err := a.join(alone); err != nil {
		return err
	}
	err = a.words(func(h header) {
		if alone {
			h.count().Store(0) // what killed processes left in it
		}
		h.count().Add(1)
	})
	if err != nil {
		return err
	}
	a.counted = true
	a.obj.Unlock()
	return nil
}

// attachUncounted attaches a process that may only read. It can neither take the
// mutex nor change the count, but it can join, and that keeps the block alive.
//
// It must see another attachment before it joins. Two such processes that came to
// a stale block and looked afterwards would each take the other for a reason to
// stay.
func (a *attachment) attachUncounted() error {
	held, err := inUse(a.obj, a.layout)
	if err != nil {
		return err
	}
	return a.join(!held)
}

// inUse reports whether a process is attached to the block. It returns
// fs.ErrNotExist for a stale block; one that is not in use is Persistent.
func inUse(o object.Object, l layout) (bool, error) {
	switch others, err := o.Others(); {
	case err != nil:
		return false, err
	case others == object.Deciding: // whether the block is stale
		return false, transient(ErrBusy)
	case others == object.Nobody && !l.persistent():
		return false, fs.ErrNotExist
	default:
		return others == object.Somebody, nil
	}
}

// join joins, and makes sure that the block is still the one its name leads to. A
// block that came by a file need not have a name, but if it is abandoned it ended
// when it lost its name.
func (a *attachment) join(abandoned bool) error {
	if err := a.obj.Join(); err != nil {
		return retryIfBusy(err)
	}
	switch linked, err := a.obj.Linked(); {
	case err != nil:
		return err
	case !linked && a.obj.Name() != "":
		return transient(fs.ErrNotExist)
	case !linked && abandoned:
		return fs.ErrNotExist
	}
	stale := false
	if err := a.words(func(h header) { stale = h.state().Load() != stateLive }); err != nil {
		return err
	}
	if stale {
		return transient(fmt.Errorf("%w: marked stale under its name", ErrCorrupt))
	}
	return nil
}

// detach ends the attachment, and the block if it was the last one. The locks
// decide that: killed processes can still be in the count.
//
// If a process that was stopped in its own attach or detach holds the mutex, detach
// waits no longer than patience. If no other process is attached, the block is then
// stale, and left for the next process that opens, creates or reaps it.
func (a *attachment) detach() {
	switch {
	case !a.counted:
		a.obj.Leave()
		return
	case a.kind == nameless:
		a.words(func(h header) { h.count().Add(^uint32(0)) })
		return
	}
	err := a.lock()
	if err != nil {
		a.mutex.Lock()
	}
	defer a.mutex.Unlock()
	defer a.obj.Leave()
	a.words(func(h header) { h.count().Add(^uint32(0)) })
	if err != nil || a.layout.persistent() {
		return
	}
	if alone, _ := a.obj.Alone(); alone {
		markStaleAndUnlink(a.obj)
	}
}

// close detaches, and reports whether this was the first close. Calls in progress
// keep the memory until they return.
func (a *attachment) close() bool {
	if !a.gate.Close() {
		return false
	}
	a.kept = a.pass.Swap(passGate) == passQuick
	if a.kind != rawBlock {
		a.detach()
	}
	a.gate.Release()
	return true
}

// lock takes the mutex of the object, and that of the member with it, because all
// goroutines that use the object are one holder to the system. It waits no longer
// than patience.
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

// markStaleAndUnlink removes a block without attachments, and returns why it could
// not be unlinked. The caller has the mutex and is alone. The system decides whether
// the caller may unlink it: in a directory with the sticky bit only its owner may.
// It then stays, stale, for its owner.
func markStaleAndUnlink(o object.Object) error {
	stale := binary.NativeEndian.AppendUint32(nil, stateStale)
	o.WriteAt(stale, offState) // a full or truncated object does not change the decision
	// Unlinking removes a name, not an object. Only a program that does not take the
	// mutex can give the name to another object in between.
	return unlinkIfLinked(o)
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
func reap(name string) (bool, error) {
	o, err := object.Current.Open(name, true)
	if err != nil {
		return false, retryIfBusy(err)
	}
	defer o.Close()
	st, err := o.Stat()
	if err != nil {
		return false, err
	}
	l, _, err := readHeader(o, st.Size)
	if err != nil && !errors.Is(err, errTruncated) || l.persistent() {
		return false, err
	}
	if err := o.Lockable(); err != nil {
		return false, err
	}
	// Asking first spares blocks in use: the lock would make an opener wait.
	if held, err := inUse(o, l); held || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	defer o.Leave()
	if err := o.TryLock(); err != nil {
		return false, retryIfBusy(err)
	}
	switch alone, err := o.Alone(); {
	case err != nil:
		return false, err
	case !alone: // another process has attached in the meantime
		return false, transient(ErrBusy)
	}
	err = markStaleAndUnlink(o)
	return err == nil, err
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
		reaped, err := reap(name)
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
