package shm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"

	"github.com/shmkit/shm/internal/blockname"
	"github.com/shmkit/shm/internal/leaks"
	"github.com/shmkit/shm/internal/object"
)

// Create creates the block called name, with a Cap and Size of size bytes, all
// zero, and attaches to it. An [Empty] block has Size 0. If name is empty, Create chooses a random name that no
// other block has; [Segment.Name] returns it. Create reserves the memory of the
// block unless it is [Sparse]. A stale block of the name is replaced.
//
// The error is [fs.ErrExist] if there is a block of that name, [fs.ErrInvalid] for
// a bad name or option or a size below 1, [ErrNoSpace] if the memory or the address
// space for the block cannot be allocated, [fs.ErrPermission], [ErrBusy], or
// [errors.ErrUnsupported]. A Create that fails leaves nothing behind.
//
// Options: [Empty], [Persistent], [Perm], [Headerless], [Sparse], [Prefault].
// Headerless with Persistent or Empty, and Sparse with Prefault, are fs.ErrInvalid.
func Create(name string, size int64, opts ...Option) (*Segment, error) {
	a, err := create(newAttempt(), name, size, opts)
	return newSegment(a, nameError("create", name, err))
}

// Open attaches to the block called name.
//
// The error is [fs.ErrNotExist] if there is no such block or it is stale,
// [ErrNotSegment] if it has no header (see [Headerless]), [ErrCorrupt] or
// [ErrVersion] if its header is damaged or of another version, [ErrFault] if
// another program truncates it at this moment, [ErrNoSpace] if there is no address
// space for it, [fs.ErrPermission], [fs.ErrInvalid] for a bad name or option,
// [ErrBusy], or [errors.ErrUnsupported]. An Open that fails does not change a block
// that is in use.
//
// Options: [ReadOnly], [Headerless], [Prefault].
func Open(name string, opts ...Option) (*Segment, error) {
	a, err := open(newAttempt(), name, opts)
	return newSegment(a, nameError("open", name, err))
}

// OpenOrCreate attaches to the block called name, or creates it if there is none,
// and reports whether it created it. An existing block keeps its Cap, permissions
// and other properties: size and options are always checked, but used only to
// create a block. If several processes call OpenOrCreate concurrently, one of them
// creates the block and the others attach to it. If name is empty, OpenOrCreate
// always creates a block, as Create does.
//
// The errors are those of [Create] and [Open], with two exceptions. [fs.ErrExist]
// means a stale block that this process is not permitted to remove. [ErrNoSpace] is
// returned after about two seconds, because another process may be allocating the
// memory to create the same block; it is returned immediately for a size that can
// never fit.
//
// Options: those of Create. [ReadOnly] does not apply.
func OpenOrCreate(name string, size int64, opts ...Option) (seg *Segment, created bool, err error) {
	a, created, err := openOrCreate(name, size, opts)
	seg, err = newSegment(a, nameError("open", name, err))
	return seg, created, err
}

func openOrCreate(name string, size int64, opts []Option) (a *attachment, created bool, err error) {
	c, err := newConfig(opts, createOptions)
	if err == nil {
		err = checkSize(size)
	}
	if err != nil {
		return nil, false, err
	}
	t := newAttempt()
	err = t.retry(func() error {
		if name != "" {
			if a, err = openConfig(t, name, c); !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		a, err = createConfig(t, name, size, c)
		raced := errors.Is(err, fs.ErrExist) || errors.Is(err, ErrNoSpace) && !isTooLarge(err)
		if name != "" && raced {
			return transient(err) // another process has created the block, or is about to
		}
		created = err == nil
		return err
	})
	return a, created, err
}

func create(t *attempt, name string, size int64, opts []Option) (*attachment, error) {
	c, err := newConfig(opts, createOptions)
	if err != nil {
		return nil, err
	}
	return createConfig(t, name, size, c)
}

func createConfig(t *attempt, name string, size int64, c config) (*attachment, error) {
	unique := name == ""
	if unique {
		name = blockname.Unique()
	}
	name, err := checkName(name)
	if err != nil {
		return nil, err
	}
	if err := checkSize(size); err != nil {
		return nil, err
	}
	reapOnce()
	if !unique && nameInUse(t, name) { // before any memory is allocated
		return nil, fs.ErrExist
	}
	a, err := newBlock(t, name, size, c)
	for unique && errors.Is(err, fs.ErrExist) {
		a, err = newBlock(t, blockname.Unique(), size, c)
	}
	if errors.Is(err, ErrNoSpace) && !unique && nameInUse(t, name) {
		err = fs.ErrExist // another process has created the block and got the memory
	}
	if err == nil && a.kind == rawBlock && !object.Current.Limits().NamesStay {
		leaks.CreatedRaw(a.name)
	}
	return a, err
}

// newBlock creates a block called name.
func newBlock(t *attempt, name string, size int64, c config) (*attachment, error) {
	a, err := prepare(t, name, size, c)
	if errors.Is(err, ErrNoSpace) && !isTooLarge(err) && !t.reaped {
		t.reaped = true // once, for it reads the whole directory
		if names, _ := Reap(); len(names) > 0 {
			a, err = prepare(t, name, size, c)
		}
	}
	if err != nil {
		return nil, err
	}
	if err := claimName(t, name, a.obj.Publish); err != nil {
		a.discard()
		return nil, err
	}
	return a, nil
}

// claimName calls f, which gives an object the name or returns fs.ErrExist. If a
// stale block has the name, claimName removes it and calls f again.
func claimName(t *attempt, name string, f func() error) error {
	return t.retry(func() error {
		err := f()
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		reaped, reapErr := reap(t, name)
		if reaped || errors.Is(reapErr, fs.ErrNotExist) || isTransient(reapErr) {
			return transient(err)
		}
		return err
	})
}

// prepare creates a block that is not yet published.
func prepare(t *attempt, name string, size int64, c config) (*attachment, error) {
	a := &attachment{name: name}
	a.kind = c.kind()
	if a.kind != rawBlock {
		a.layout = newLayout(size, c.flags())
	}
	length := size + int64(a.layout.headerSize)
	if err := a.createObject(t, length, c); err != nil {
		return nil, err
	}
	if a.kind == rawBlock {
		if st, err := a.obj.Stat(); err == nil {
			length = st.Size // some systems round it up
		}
	}
	err := a.mapAll(length, length, c)
	if err == nil && a.kind != rawBlock {
		if c.has(optEmpty) {
			size = 0
		}
		err = a.initHeader(size)
	}
	if err != nil {
		a.discard()
		return nil, err
	}
	return a, nil
}

func (a *attachment) createObject(t *attempt, length int64, c config) (err error) {
	switch {
	case c.source != nil:
		a.obj, err = adopt(c.source, length, c.has(optSparse))
	case a.kind == nameless:
		err = t.retry(func() (err error) {
			a.obj, err = object.Current.CreateAnonymous(length, c.has(optSparse))
			return err
		})
	default:
		err = claimName(t, a.name, func() (err error) {
			a.obj, err = object.Current.Create(a.name, length, c.objectOptions())
			return err
		})
	}
	return err
}

// adopt creates an anonymous object in memory from source.
func adopt(source object.MemorySource, size int64, sparse bool) (object.Object, error) {
	f, err := source(size)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	o, err := object.WithFD(f, object.Current.FromFD)
	if err != nil {
		return nil, err
	}
	st, err := o.Stat()
	if err == nil && (st.Size < size || !o.Sealed() || !o.Writable()) {
		err = fmt.Errorf("%w: memory of %d bytes, sealed %v, writable %v: want %d bytes", ErrCorrupt, st.Size, o.Sealed(), o.Writable(), size)
	}
	if err == nil && !sparse {
		err = o.Reserve(size)
	}
	if err != nil {
		o.Close()
		return nil, err
	}
	return o, nil
}

// nameInUse reports whether a block has the name that is in use, is Persistent, or
// belongs to another user. It removes a stale block.
func nameInUse(t *attempt, name string) bool {
	reaped, err := reap(t, name)
	return !reaped && (err == nil || errors.Is(err, fs.ErrPermission))
}

func open(t *attempt, name string, opts []Option) (*attachment, error) {
	c, err := newConfig(opts, openOptions)
	if err != nil {
		return nil, err
	}
	return openConfig(t, name, c)
}

func openConfig(t *attempt, name string, c config) (a *attachment, err error) {
	if name, err = checkName(name); err != nil {
		return nil, err
	}
	err = t.retry(func() (err error) {
		a, err = openOnce(t, name, c)
		return err
	})
	return a, err
}

// OpenWait is [Open] that waits until there is a block of that name which is not stale.
// The error is ctx.Err(), or one of Open but fs.ErrNotExist.
func OpenWait(ctx context.Context, name string, opts ...Option) (*Segment, error) {
	a, err := openWait(ctx, name, opts)
	return newSegment(a, nameError("open", name, err))
}

func openWait(ctx context.Context, name string, opts []Option) (*attachment, error) {
	var changes object.Watch
	for {
		a, err := open(newAttempt(), name, opts)
		if !errors.Is(err, fs.ErrNotExist) {
			return a, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if changes == nil { // and look again
			if changes, err = object.Current.Watch(); err != nil {
				changes = object.Looks{}
			}
			defer changes.Close()
			continue
		}
		if err := changes.Next(ctx); err != nil {
			return nil, err
		}
	}
}

func openOnce(t *attempt, name string, c config) (*attachment, error) {
	readOnly := c.has(optReadOnly)
	// To be counted takes permission to write, so even a ReadOnly Segment asks for it.
	o, err := object.Current.Open(name, !c.has(optHeaderless) || !readOnly)
	if readOnly && errors.Is(err, fs.ErrPermission) {
		o, err = object.Current.Open(name, false)
	}
	if err != nil {
		return nil, retryIfBusy(err)
	}
	return attachTo(t, o, name, c)
}

// attachTo attaches to the object, which it closes on error.
func attachTo(t *attempt, o object.Object, name string, c config) (*attachment, error) {
	a := &attachment{name: name, readOnly: c.has(optReadOnly)}
	a.obj = o
	st, err := o.Stat()
	if err == nil {
		if c.has(optHeaderless) {
			err = a.attachRaw(t, st, c)
		} else {
			err = a.attachManaged(t, st, c)
		}
	}
	if err != nil {
		if a.joined {
			a.detach()
		}
		a.discard()
		return nil, err
	}
	return a, nil
}

func (a *attachment) attachManaged(t *attempt, st object.Stat, c config) (err error) {
	if a.layout, _, err = readHeader(a.obj, st.Size); err != nil {
		return err
	}
	if a.layout.anonymous() != a.obj.Sealed() {
		return errNotSealed
	}
	if a.layout.anonymous() {
		a.kind = nameless
	} else if err := a.obj.Lockable(); err != nil {
		return err
	}
	length := int64(a.layout.headerSize) + a.layout.capacity
	writable := length
	switch {
	case !a.obj.Writable():
		writable = 0
	case a.readOnly:
		writable = int64(a.layout.headerSize) // for the count
	}
	if err := a.mapAll(length, writable, c); err != nil {
		return err
	}
	return a.attach(t)
}

// errNotSealed is returned for a header that does not fit its object: only anonymous
// blocks are sealed, and all of them are.
var errNotSealed = fmt.Errorf("%w: anonymous and not sealed, or sealed and not anonymous", ErrCorrupt)

func (a *attachment) attachRaw(t *attempt, st object.Stat, c config) error {
	a.kind = rawBlock
	l, h, err := readHeader(a.obj, st.Size)
	if err == nil && !l.anonymous() { // a stale block is fs.ErrNotExist: Create replaces it
		if err := a.obj.Lockable(); err != nil {
			return err
		}
		persists := func() bool { return l.persistent() || h.keep().Load() != 0 }
		if _, err := inUse(t, a.obj, persists); err != nil {
			return err
		}
	}
	switch {
	case err == nil, errors.Is(err, ErrCorrupt), errors.Is(err, ErrVersion):
		return fmt.Errorf("%w: the block has a header: use it without Headerless", fs.ErrInvalid)
	case !errors.Is(err, ErrNotSegment):
		return err
	case st.Size == 0: // its creator has not set the size yet
		return fmt.Errorf("%w: size 0", ErrNotSegment)
	}
	writable := st.Size
	if a.readOnly {
		writable = 0
	}
	return a.mapAll(st.Size, writable, c)
}

// mapAll maps length bytes of the object, the first writable ones of them for
// writing.
func (a *attachment) mapAll(length, writable int64, c config) error {
	a.file = a.obj
	a.gate.Init(a.free)
	if length > math.MaxInt {
		return errAddresses(length)
	}
	a.sparse = a.kind == rawBlock || a.layout.sparse()
	a.hollow = a.layout.sparse() && object.Current.Limits().Files
	return a.mapObject(a.obj, a.layout.headerSize, int(length), int(writable), c.has(optPrefault))
}

func errAddresses(size int64) error {
	err := fmt.Errorf("%w: size %d: larger than the address space", ErrNoSpace, size)
	return object.TooLargeError{Err: err}
}

// discard releases an attachment that was not handed out.
func (a *attachment) discard() {
	a.obj.Leave()
	a.file = a.obj
	a.free()
}

// checkSize returns the error for a size that no new block can have.
func checkSize(size int64) error {
	switch {
	case size <= 0:
		return fmt.Errorf("%w: size %d: must be at least 1", fs.ErrInvalid, size)
	case size > min(maxCapacity, math.MaxInt-maxHeaderSize):
		return errAddresses(size)
	}
	return nil
}
