// Package shm gives named shared memory the ways of a file.
//
// A block is a named piece of memory that every process of the machine can
// attach to. A [Segment] is one process's attachment: it reads, writes and
// seeks as an [os.File] does, but what it moves are bytes in memory that all
// attached processes see at once.
//
//	seg, err := shm.Create("frames", 16<<20)
//	if err != nil {
//		return err
//	}
//	defer seg.Close()
//	_, err = io.Copy(seg, file)
//
// Another process then reads what is there:
//
//	seg, err := shm.Open("frames", shm.ReadOnly())
//	if err != nil {
//		return err
//	}
//	defer seg.Close()
//	_, err = io.Copy(os.Stdout, seg)
//
// # Lifetime
//
// A block exists exactly as long as somebody is attached to it. The process
// that closes the last Segment of it takes its name away. A process that ends
// without Close, even by kill -9, is no longer attached either: the kernel
// vouches for that. If it was the last, the block stays behind dead until the
// next [Create], [Open] or [OpenOrCreate] of that name, or a [Reap], by any
// process: Open finds that it does not exist, Create makes a new one.
//
// A block created [Persistent] stays until [Unlink]. So does a [Headerless]
// one, the raw kind that other programs make, of which nobody keeps count.
//
// A Segment dropped without Close is detached when the garbage collector finds
// it, and reported; see [OnLeak]. If Bytes had been called, it stays attached
// until the process ends, because slices may be left that the collector does
// not know of. Neither is a substitute for Close.
//
// # Size
//
// A block has a fixed Cap, the number of bytes it can hold, and a Size, the
// number of bytes it holds, which all processes see change. A new block has
// Size == Cap and is zero. Reading ends at Size. Writing beyond Size raises it,
// up to Cap. So a block can be filled from a stream and read by somebody who
// finds [io.EOF] behind the last byte:
//
//	seg.Truncate(0)
//	io.Copy(seg, stream)
//
// # Concurrency
//
// All functions and methods are safe for concurrent use. Read, Write, Seek and
// the methods that build on them share one offset; ReadAt and WriteAt have none.
// Several readers at once, such as HTTP handlers, each need an offset of their
// own: give each an [io.NewSectionReader] of the Segment.
// Close takes effect at once while other calls are in progress. They finish, or
// return [fs.ErrClosed] if it overtakes them; a write may then have stored some
// of its bytes. Calls that begin later return fs.ErrClosed.
//
// Bytes are copied without any lock. A reader that looks while another
// goroutine or process writes the same range can see part of the old and part
// of the new. Size is raised after the bytes below it are in place, so a reader
// that stays below Size sees complete what was appended.
//
// # Names
//
// A name is 1 to 255 bytes (30 on darwin, 240 on Windows) of A-Z, a-z, 0-9, '.', '_' and '-',
// and does not begin with a dot. One leading slash, as users of shm_open write
// it, is dropped. All else is [fs.ErrInvalid].
//
// # Platforms
//
//   - On Linux a block is a file on the tmpfs at /dev/shm, held by open file
//     description locks; see fcntl(2). Elsewhere than on a tmpfs a block with a
//     header is [errors.ErrUnsupported], as it is on processors without 64-bit
//     atomic operations: linux/mips, linux/mipsle, and linux/arm with GOARM below 7.
//   - On darwin a block is a POSIX shared memory object, with a lock page in its
//     first 16 KiB that names the processes attached. Memory is not reserved: to
//     Create, [Sparse] makes no difference. Who may read a block but not write to
//     it cannot enter there, so the block does not wait for such a [ReadOnly]
//     Segment, whose memory stays valid all the same. A process keeps its place
//     across exec. [List] and [Reap] are [errors.ErrUnsupported], so that a dead
//     block goes when somebody next looks for its name. See docs/darwin.md.
//   - On Windows a block is a section (file mapping) that the page file backs,
//     with a name in the namespace of the session: services and the sessions of
//     different users do not see each other's. The system ends it with its last
//     attachment, even if that was killed, so there are no [Persistent] and no
//     dead blocks, and a [Headerless] one is no exception. Up to eight blocks of
//     one name can be in use at a time, all but one of them unlinked.
//   - On other systems every function returns [errors.ErrUnsupported].
package shm

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shmkit/shm/internal/blockname"
	"github.com/shmkit/shm/internal/gate"
	"github.com/shmkit/shm/internal/leaks"
	"github.com/shmkit/shm/internal/object"
)

// A Segment is an attachment to a block. It implements [io.Reader], [io.Writer],
// [io.Seeker], [io.Closer], [io.ReaderAt], [io.WriterAt], [io.ReaderFrom],
// [io.WriterTo], [io.ByteReader], [io.ByteWriter], [io.StringWriter] and
// [fs.File].
//
// Some functions close what they read, such as the transport of an
// [net/http.Request] its body, and that can be the last Close. Some read at the
// same time as others, such as [net/http.ServeContent] in a handler. Pass them
// io.NewSectionReader(seg, 0, seg.Size()), and set the ContentLength of a request.
//
// It can be embedded in other types. The methods of a nil Segment, and of the
// zero Segment, return [fs.ErrInvalid].
type Segment struct {
	h *handle
}

// handle is what a Segment and its copies share. It is apart from attachment so
// that the garbage collector can find it unreachable.
type handle struct {
	*attachment

	mu  sync.Mutex // guards off
	off int64

	id uint64 // in the register of leaks
}

// attachment is an object that this process has open and mapped, and takes part
// in the life of. It ends by close, once, from Segment.Close or from drop.
type attachment struct {
	name     string
	obj      object.Object
	layout   layout // zero if headerless
	mem      []byte // all of the object that is mapped
	data     []byte // mem behind the header
	raw      bool   // without header
	readOnly bool
	handed   bool // came by a file; no name need lead to the object

	gate gate.Gate     // keeps mem and obj while calls use them
	pass atomic.Uint32 // whether short copies go by the gate; see quick
	lent atomic.Bool   // Bytes has been called
	kept bool          // the addresses of mem are kept until drop, for quick calls; set by close

	warmed atomic.Uint64 // where in the data long writes have come to; see fresh

	life    sync.Mutex // held by the goroutine that holds the mutex of obj
	counted bool       // part of the count in the header; set by attach
}

// Create creates the block called name with a Cap and Size of size bytes, all
// zero, and attaches to it. If name is empty, Create makes up one that no other
// block has; see [Segment.Name]. The memory is reserved, unless the block is
// [Sparse].
//
// The error is [fs.ErrExist] if there is a block of that name (a stale one is
// replaced), [fs.ErrInvalid] for a bad name or option or a size below 1,
// [ErrNoSpace] if the memory or the address space for it cannot be allocated,
// [fs.ErrPermission], [ErrBusy], or [errors.ErrUnsupported]. A Create that fails leaves
// nothing behind.
//
// Options: [Persistent], [Perm], [Headerless], [Sparse], [Prefault].
// Headerless with Persistent and Sparse with Prefault are fs.ErrInvalid.
func Create(name string, size int64, opts ...Option) (*Segment, error) {
	a, err := create(newAttempt(), name, size, opts)
	if err != nil {
		return nil, nameError("create", name, err)
	}
	return &Segment{watch(a, 1)}, nil
}

// Open attaches to the block called name.
//
// The error is [fs.ErrNotExist] if there is none, or none that anybody is still
// attached to; [ErrNotSegment] if it has no header (see [Headerless]);
// [ErrCorrupt] or [ErrVersion] if the header is not to be relied on;
// [ErrFault] if it is truncated at this moment; [ErrBusy]; [ErrNoSpace] if
// there is no address space to map it;
// [fs.ErrPermission]; [fs.ErrInvalid] for a bad name or option; or
// [errors.ErrUnsupported]. An Open that fails changes nothing.
//
// Options: [ReadOnly], [Headerless], [Prefault].
func Open(name string, opts ...Option) (*Segment, error) {
	a, err := open(newAttempt(), name, opts)
	if err != nil {
		return nil, nameError("open", name, err)
	}
	return &Segment{watch(a, 1)}, nil
}

// OpenOrCreate attaches to the block called name, or creates it if there is
// none, and reports which. An existing block keeps its own Cap, permissions and
// other properties: size and options are checked, but only used to create one.
// If several processes call OpenOrCreate at once, one of them creates the block
// and the others attach to it. If name is empty, OpenOrCreate is Create.
//
// The errors are those of [Create] and [Open], with two exceptions.
// [fs.ErrExist] is returned for a stale block that this process may not remove,
// because it belongs to another user. [ErrNoSpace] is returned after about two
// seconds, because until then the memory can be what another process needs to
// create the block; for a size that can never fit it is returned at once.
//
// Options: those of Create. A block to be opened [ReadOnly] is not created.
func OpenOrCreate(name string, size int64, opts ...Option) (seg *Segment, created bool, err error) {
	a, created, err := openOrCreate(name, size, opts)
	if err != nil {
		return nil, false, nameError("open", name, err)
	}
	return &Segment{watch(a, 1)}, created, nil
}

func openOrCreate(name string, size int64, opts []Option) (a *attachment, created bool, err error) {
	c, err := newConfig(opts, createOptions)
	if err == nil {
		err = checkSize(size)
	}
	if err != nil {
		return nil, false, err
	}
	var openOpts []Option
	for _, o := range []optionSet{optHeaderless, optPrefault} {
		if c.has(o) {
			openOpts = append(openOpts, setting{option: o})
		}
	}
	t := newAttempt()
	err = t.retry(func() error {
		if name != "" {
			if a, err = open(t, name, openOpts); !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		a, err = create(t, name, size, opts)
		raced := errors.Is(err, fs.ErrExist) || errors.Is(err, ErrNoSpace) && !errors.As(err, new(never))
		if name != "" && raced {
			return again{err} // created by another process in the meantime, or about to be
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
	unique := name == ""
	if unique {
		name = blockname.Unique()
	}
	if name, err = checkName(name); err != nil {
		return nil, err
	}
	if err := checkSize(size); err != nil {
		return nil, err
	}
	firstReap()
	if !unique && taken(name) { // no memory need be found for nothing
		return nil, fs.ErrExist
	}
	a, err := newBlock(t, name, size, c)
	for unique && errors.Is(err, fs.ErrExist) {
		a, err = newBlock(t, blockname.Unique(), size, c)
	}
	if errors.Is(err, ErrNoSpace) && !unique && taken(name) {
		err = fs.ErrExist // somebody was faster, and has the memory
	}
	if err == nil && a.raw && !object.Current.Limits().NamesStay {
		leaks.CreatedRaw(a.name)
	}
	return a, err
}

// newBlock makes a block called name.
func newBlock(t *attempt, name string, size int64, c config) (*attachment, error) {
	a, err := prepare(t, name, size, c)
	if errors.Is(err, ErrNoSpace) && !errors.As(err, new(never)) && !t.reaped {
		t.reaped = true // once, for it reads the whole directory
		if names, _ := Reap(); len(names) > 0 {
			a, err = prepare(t, name, size, c)
		}
	}
	if err != nil {
		return nil, err
	}
	if err := claim(t, name, func() error { return a.obj.Publish() }); err != nil {
		a.discard()
		return nil, err
	}
	return a, nil
}

// claim calls f, which takes the name or finds that it is taken, until a dead
// block has made it free.
func claim(t *attempt, name string, f func() error) error {
	return t.retry(func() error {
		err := f()
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		reaped, reapErr := reap(name)
		if reaped || errors.Is(reapErr, fs.ErrNotExist) || errors.As(reapErr, new(again)) {
			return again{err}
		}
		return err
	})
}

// prepare makes a block that only publish is missing to. Where objects are
// bornNamed that is what takes the name, and publish has little left to do.
func prepare(t *attempt, name string, size int64, c config) (*attachment, error) {
	a := &attachment{name: name, raw: c.has(optHeaderless)}
	if !a.raw {
		a.layout = newLayout(size, c.flags())
	}
	length := int(size) + a.layout.headerSize
	var err error
	switch {
	case c.source != nil:
		a.obj, err = adopt(c.source, int64(length), c.has(optSparse))
	case c.has(optAnonymous):
		err = t.retry(func() (err error) {
			a.obj, err = object.Current.CreateAnonymous(int64(length), c.has(optSparse))
			return err
		})
	default:
		err = claim(t, name, func() (err error) {
			a.obj, err = object.Current.Create(name, int64(length), c.objectOptions())
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	if a.raw {
		if info, err := a.obj.Stat(); err == nil {
			length = int(info.Size) // some systems round it up
		}
	}
	if err = a.mmap(length, length, c); err == nil && !a.raw {
		err = a.found()
	}
	if err != nil {
		a.discard()
		return nil, err
	}
	return a, nil
}

// taken reports whether a block has the name that is in use, Persistent, or
// another user's. A dead one loses it.
func taken(name string) bool {
	reaped, err := reap(name)
	return !reaped && (err == nil || errors.Is(err, fs.ErrPermission))
}

func open(t *attempt, name string, opts []Option) (a *attachment, err error) {
	c, err := newConfig(opts, openOptions)
	if err != nil {
		return nil, err
	}
	if name, err = checkName(name); err != nil {
		return nil, err
	}
	err = t.retry(func() (err error) {
		a, err = openOnce(name, c)
		return err
	})
	return a, err
}

func openOnce(name string, c config) (*attachment, error) {
	a := &attachment{name: name, raw: c.has(optHeaderless), readOnly: c.has(optReadOnly)}
	var err error
	// Write permission is needed to be counted, so it is asked for even to read.
	a.obj, err = object.Current.Open(name, !a.raw || !a.readOnly)
	if a.readOnly && errors.Is(err, fs.ErrPermission) {
		a.obj, err = object.Current.Open(name, false)
	}
	if err != nil {
		return nil, soon(err)
	}
	if err := a.join(c); err != nil {
		a.discard()
		return nil, err
	}
	return a, nil
}

// join attaches to the object that is open.
func (a *attachment) join(c config) error {
	info, err := a.obj.Stat()
	if err != nil {
		return err
	}
	if a.raw {
		return a.openRaw(info, c)
	}
	return a.openManaged(info, c)
}

func (a *attachment) openManaged(info object.Stat, c config) (err error) {
	if a.layout, _, err = readHeader(a.obj, info.Size); err != nil {
		return err
	}
	if a.layout.anonymous() != a.obj.Sealed() {
		return errNotSealed
	}
	if !a.layout.anonymous() {
		if err := a.obj.Lockable(); err != nil {
			return err
		}
	}
	length := int64(a.layout.headerSize) + a.layout.capacity
	if length > math.MaxInt {
		return fmt.Errorf("%w: %d bytes do not fit the address space", ErrNoSpace, length)
	}
	writable := int(length)
	switch {
	case !a.obj.Writable():
		writable = 0
	case a.readOnly:
		writable = a.layout.headerSize // for the count
	}
	if err := a.mmap(int(length), writable, c); err != nil {
		return err
	}
	return a.attach()
}

func (a *attachment) openRaw(info object.Stat, c config) error {
	l, _, err := readHeader(a.obj, info.Size)
	if err == nil && !l.anonymous() { // a stale block is none: Create replaces it
		if err := a.obj.Lockable(); err != nil {
			return err
		}
		if _, err := a.inUse(l); err != nil {
			return err
		}
	}
	switch {
	case errors.As(err, new(again)): // it may be about to get one
		return err
	case err == nil, errors.Is(err, ErrCorrupt), errors.Is(err, ErrVersion):
		return fmt.Errorf("%w: option Headerless for a block with a header", fs.ErrInvalid)
	case !errors.Is(err, ErrNotSegment):
		return err
	case info.Size == 0: // its creator has not come to setting the size
		return fmt.Errorf("%w: empty", ErrNotSegment)
	case info.Size > math.MaxInt:
		return fmt.Errorf("%w: %d bytes do not fit the address space", ErrNoSpace, info.Size)
	}
	writable := int(info.Size)
	if a.readOnly {
		writable = 0
	}
	return a.mmap(int(info.Size), writable, c)
}

func (a *attachment) mmap(length, writable int, c config) error {
	mem, err := a.obj.Map(length, writable, c.has(optPrefault))
	if err != nil {
		return err
	}
	a.mem, a.data = mem, mem[a.layout.headerSize:]
	if c.has(optPrefault) {
		a.warm(int64(len(a.data)))
	}
	a.gate.Init(a.free)
	return nil
}

// discard gives up an attachment that has come to nothing.
func (a *attachment) discard() {
	a.obj.Leave()
	a.free()
}

// free gives back what an attachment without locks has of the system.
func (a *attachment) free() {
	switch {
	case a.kept:
		object.Current.Revoke(a.mem) // or else the memory stays until drop
	case a.lent.Load():
		retire(a.mem)
	case a.mem != nil:
		object.Current.Unmap(a.mem)
	}
	a.obj.Close()
}

// close detaches, and reports whether it was the first to. Calls in progress
// keep the memory until they are done.
func (a *attachment) close() bool {
	if !a.gate.Close() {
		return false
	}
	a.kept = a.pass.Swap(passGate) == passQuick
	if !a.raw {
		a.detach()
	}
	a.gate.Release()
	return true
}

// quick reports whether a call that only copies a few bytes may use the memory
// without passing the gate. Close then takes the memory away in the middle of
// the call, but not its addresses: the call gets a fault, which costs nothing to
// look out for as all access to the memory must, and then finds the gate closed.
// The addresses are kept until drop, which comes when the handle is
// unreachable: the call must keep it alive.
func (h *handle) quick() bool { return h != nil && h.pass.Load() == passQuick }

const (
	passUndecided = iota // they have, so far: Close need not keep addresses
	passQuick            // short copies do without the gate
	passGate             // they go by it, as all else does
)

// enter begins a call that uses the attachment; leave ends it.
func (s *Segment) enter(op string) (*handle, gate.Token, error) {
	if s == nil || s.h == nil {
		return nil, nil, pathError(op, "", fs.ErrInvalid)
	}
	token, ok := s.h.gate.Enter()
	if !ok {
		return nil, nil, pathError(op, s.h.name, fs.ErrClosed)
	}
	return s.h, token, nil
}

func (h *handle) leave(token gate.Token) {
	h.gate.Leave(token)
	runtime.KeepAlive(h) // a handle in use must not be found dropped
}

// Close detaches from the block. If nobody else is attached, the block is
// unlinked, unless it is [Persistent] or [Headerless]. Close does not wait for
// calls in progress, and waits for other processes no longer than two seconds
// even if one has been stopped at the worst moment. A second Close returns
// [fs.ErrClosed].
//
// Close gives the memory back at once. A slice from Bytes is invalid from then
// on, and using it crashes the program; see [Segment.Bytes].
func (s *Segment) Close() error {
	if s == nil || s.h == nil {
		return pathError("close", "", fs.ErrInvalid)
	}
	if !s.h.close() {
		return pathError("close", s.h.name, fs.ErrClosed)
	}
	leaks.Forget(s.h.id)
	runtime.KeepAlive(s.h) // for drop must come last
	return nil
}

// Name returns the name of the block, without a leading slash. That of an
// [Anonymous] block is its [Label], or the name of the file that was passed to
// [FromFile]. It is "" if FromFile attached to a block that had been unlinked, or
// whose name it could not determine.
func (s *Segment) Name() string {
	if s == nil || s.h == nil {
		return ""
	}
	return s.h.name
}

// String returns the name, Size, Cap and state of the Segment, for people to read.
// It does not wait for other calls, and works on a nil or closed Segment as well.
func (s *Segment) String() string {
	switch {
	case s == nil:
		return "Segment <nil>"
	case s.h == nil:
		return "Segment <zero>"
	}
	switch size, state := s.state(); state {
	case stateOpen:
		return fmt.Sprintf("Segment %q (%d of %d bytes)", s.Name(), size, s.Cap())
	case stateClosed:
		return fmt.Sprintf("Segment %q (%d bytes, %s)", s.Name(), s.Cap(), state)
	default:
		return fmt.Sprintf("Segment %q (%d of %d bytes, %s)", s.Name(), size, s.Cap(), state)
	}
}

// LogValue implements [slog.LogValuer]: a group of what String returns.
func (s *Segment) LogValue() slog.Value {
	if s == nil || s.h == nil {
		return slog.StringValue(s.String())
	}
	size, state := s.state()
	return slog.GroupValue(slog.String("name", s.Name()), slog.Int64("size", size),
		slog.Int64("cap", s.Cap()), slog.String("state", state))
}

// Of a Segment, as String and LogValue say it.
const (
	stateOpen     = "open"
	stateReadOnly = "read-only"
	stateClosed   = "closed"
)

func (s *Segment) state() (size int64, state string) {
	h, token, err := s.enter("string")
	if err != nil {
		return 0, stateClosed
	}
	defer h.leave(token)
	size, _ = h.size()
	if h.readOnly {
		return size, stateReadOnly
	}
	return size, stateOpen
}

// Cap returns how many bytes the block can hold, which never changes.
func (s *Segment) Cap() int64 {
	if s == nil || s.h == nil {
		return 0
	}
	return int64(len(s.h.data))
}

// Size returns how many bytes the block holds, 0 if the Segment is closed.
func (s *Segment) Size() int64 {
	if s == nil {
		return 0
	}
	if h := s.h; h.quick() {
		_, size := h.tryRead(nil, 0)
		runtime.KeepAlive(h)
		if size >= 0 {
			return size
		}
	}
	h, token, err := s.enter("size")
	if err != nil {
		return 0
	}
	defer h.leave(token)
	h.decideQuick()
	size, _ := h.size()
	return size
}

// size returns ErrFault if the header is gone.
func (a *attachment) size() (size int64, err error) {
	err = a.guard(func() error {
		size = a.loadSize()
		return nil
	})
	return size, err
}

// loadSize is size for those who stand guard themselves. A size beyond the
// capacity can only be a peer's scribble.
func (a *attachment) loadSize() int64 {
	if a.raw {
		return int64(len(a.data))
	}
	return int64(min(header(a.mem).size().Load(), uint64(len(a.data))))
}

// Refs returns how many Segments, in all processes, are attached to the block.
// It is for people to look at: processes that were killed are counted until the
// block ends, and those that may only read are not counted. It is 0 for a
// Headerless block and if the Segment is closed.
func (s *Segment) Refs() int {
	h, token, err := s.enter("refs")
	if err != nil {
		return 0
	}
	defer h.leave(token)
	if h.raw {
		return 0
	}
	refs := 0
	h.words(func(w header) { refs = refCount(w) })
	return refs
}

// Truncate sets the Size of the block to n bytes, 0 to Cap, for all processes.
// Bytes cut off read as zero if the block grows again; to that end they are
// cleared, which takes as long as writing them. Of a [Sparse] block their memory
// is given back instead.
//
// The error is [fs.ErrInvalid] for another n, [ErrReadOnly], [ErrFault],
// [fs.ErrClosed], [errors.ErrUnsupported] for a Headerless block, or [ErrBusy]
// if others keep changing Size for two seconds. Of bytes below the old Size
// that are written at the same time beyond n, some may be left, and what
// ReadFrom, View or Bytes puts there may be cleared.
func (s *Segment) Truncate(n int64) error {
	h, token, err := s.enter("truncate")
	if err != nil {
		return err
	}
	defer h.leave(token)
	return pathError("truncate", h.name, h.truncate(n))
}

func (a *attachment) truncate(n int64) error {
	switch {
	case a.readOnly:
		return ErrReadOnly
	case a.raw:
		return fmt.Errorf("%w: Truncate of a Headerless block", errors.ErrUnsupported)
	case n < 0 || n > int64(len(a.data)):
		return fmt.Errorf("%w: size %d of at most %d", fs.ErrInvalid, n, len(a.data))
	}
	return a.guard(func() error {
		// All bytes beyond size are zero, so that a block grows by nothing but
		// setting size. So they are cleared while they still are below size: a
		// writer that appends in the meantime makes the swap fail.
		h := header(a.mem)
		for end := time.Now().Add(patience); ; {
			size := h.size().Load()
			a.clear(n, int64(min(size, uint64(len(a.data)))), int64(min(h.written().Load(), uint64(len(a.data)))))
			if h.size().CompareAndSwap(size, uint64(n)) {
				return nil
			}
			if time.Now().After(end) {
				return ErrBusy
			}
		}
	})
}

// clear makes data[from:to] zero, of which nothing beyond written is anything
// else. The pages of a sparse block are given back, also those that have memory
// only because they were read. What lies beyond to, the size, is left alone: it
// can be what a writer is about to raise the size over.
func (a *attachment) clear(from, to, written int64) {
	if from >= to {
		return
	}
	if head := int64(a.layout.headerSize); a.hollow() && a.obj.Punch(head+from, to-from) == nil {
		return
	}
	if to = min(to, written); from < to {
		clear(a.data[from:to])
	}
}

// Bytes returns the memory of the block itself: its length is Size at this
// moment, its capacity Cap. What is stored in it is seen by all processes, and
// to share it in an orderly way is up to them.
//
// The slice is valid until Close. Using it later crashes the program. So does
// using it when another program has truncated the block or when memory has run
// out for a Sparse one, and writing to it if the Segment is [ReadOnly].
// [Segment.View] is without these dangers. Bytes returns nil if the Segment is
// closed.
//
// That a slice used after Close finds no other memory at its addresses is
// ensured for a limited time only: after Close the addresses stay unused, on
// 64-bit Linux and darwin, until later Segments with slices have been closed
// that take 64 GiB of address space or number 8,192. They do not stay unused for
// a Segment larger than that, in a process with a limit on its address space
// (RLIMIT_AS), on 32-bit systems, or on Windows. Once they are in use again, a
// slice that was kept reads and writes whatever is there then.
func (s *Segment) Bytes() []byte {
	h, token, err := s.enter("bytes")
	if err != nil {
		return nil
	}
	defer h.leave(token)
	var b []byte
	h.guard(func() error {
		b = h.lend()
		return nil
	})
	if b != nil {
		h.lent.Store(true)
	}
	return b
}

// lend returns the bytes of the block for somebody to do with as they like.
func (a *attachment) lend() []byte {
	if !a.raw && !a.readOnly {
		raise(header(a.mem).written(), uint64(len(a.data)))
	}
	return a.data[:a.loadSize():len(a.data)]
}

// View calls f with the memory of the block, as Bytes returns it, and returns
// what f returns. The memory stays until f is done, even if the Segment is
// closed in the meantime; f may close it itself. If memory cannot be accessed
// because another program has truncated the block, or has run out for a Sparse
// one, or if f writes to it and the Segment is [ReadOnly], f is ended there as
// by a panic and View returns [ErrFault]; that holds for what f does itself, not
// for goroutines that it starts. f must not keep the slice.
//
// View returns [fs.ErrClosed] without calling f if the Segment is closed.
func (s *Segment) View(f func(b []byte) error) error {
	h, token, err := s.enter("view")
	if err != nil {
		return err
	}
	defer h.leave(token)
	// What f returns is its own; only what went wrong here gets our name.
	var own error
	err = h.guard(func() error {
		own = f(h.lend())
		return nil
	})
	if err != nil {
		return pathError("view", h.name, err)
	}
	return own
}

// Unlink takes the block's name away at once, so that nobody can attach any
// more and a new block can have the name. Everybody who is attached, this
// Segment included, keeps the memory until they detach.
//
// The error is [fs.ErrNotExist] if the block has lost its name already,
// [fs.ErrPermission], [ErrBusy] or [fs.ErrClosed].
func (s *Segment) Unlink() error {
	h, token, err := s.enter("unlink")
	if err != nil {
		return err
	}
	defer h.leave(token)
	err = h.unlink()
	if err == nil {
		leaks.Unlinked(h.name)
	}
	return pathError("unlink", h.name, err)
}

func (a *attachment) unlink() error {
	if a.layout.anonymous() {
		return fs.ErrNotExist
	}
	if !a.obj.Writable() { // it cannot lock
		return unlink(a.name, a.obj)
	}
	if err := a.lockMutex(); err != nil {
		return err
	}
	defer a.unlockMutex()
	return unlinkIfLinked(a.obj)
}

// Unlink takes the name of a block away at once; see [Segment.Unlink]. It works
// on every kind of block, attached or not, and also on a damaged one. Somebody
// who may unlink a block but not open it has no means to keep another process
// from replacing it at the same moment; it is then the new one that goes.
//
// The error is [fs.ErrNotExist], [fs.ErrPermission], [fs.ErrInvalid] for a bad
// name, [ErrNotSegment] for what is not a regular file, [ErrBusy], or
// [errors.ErrUnsupported], which on Windows it is for a Headerless block.
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

// unlink takes the name away from whatever block it leads to, or, unless only
// is nil, from that one alone.
func unlink(name string, only object.Object) error {
	return patiently(func() error {
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
			return soon(err)
		}
		defer o.Close()
		info, err := o.Stat()
		if err != nil {
			return err
		}
		_, _, err = readHeader(o, info.Size)
		if errors.As(err, new(again)) {
			return err
		}
		if err == nil || errors.Is(err, errTruncated) {
			o.Lockable() // where it is not, TryLock does what it can
		}
		defer o.Leave()
		if err := o.TryLock(); err != nil {
			return soon(err)
		}
		if linked, err := o.Linked(); err == nil && !linked {
			return again{fs.ErrNotExist} // another block has the name now
		}
		if only != nil {
			return unlinkIfLinked(only)
		}
		return unlinkIfLinked(o)
	})
}

// List returns the blocks there are, Headerless ones included, in no order.
// Those that this process may not read or that have a damaged header are left
// out, and so is what has a name that no block can have. It takes no locks and
// disturbs nobody. With an error, such as syscall.EMFILE, it returns those
// blocks that it could look at. On darwin, whose kernel tells nobody what names
// there are, it is [errors.ErrUnsupported].
func List() ([]Info, error) {
	var list []Info
	var failed error
	err := object.Current.List(func(name string) bool {
		info, err := inspect(name)
		if err == nil {
			list = append(list, info)
		} else if !aboutBlock(err) {
			failed = err
		}
		return true
	})
	return list, pathError("list", "", cmp.Or(err, failed))
}

// aboutBlock reports whether err says something of one block alone. Any other
// means that this process cannot look at blocks, and so not that there are none.
func aboutBlock(err error) bool {
	return slices.ContainsFunc([]error{
		fs.ErrNotExist, fs.ErrPermission, fs.ErrInvalid, errors.ErrUnsupported,
		ErrNotSegment, ErrCorrupt, ErrVersion, ErrBusy,
	}, func(target error) bool { return errors.Is(err, target) })
}

// Reap unlinks all blocks that nobody is attached to and that are not
// Persistent, as far as this process may, and returns their names. Such blocks
// are what killed processes leave behind. Create does the same by itself when
// memory runs out, and for about 10 milliseconds the first time it is called.
// With an error, such as syscall.EMFILE, it returns those it could unlink.
// On Windows there are none, and on darwin it is [errors.ErrUnsupported], as
// [List] is.
func Reap() (names []string, err error) {
	names, err = reapUntil(time.Time{})
	return names, pathError("reap", "", err)
}

func reapUntil(end time.Time) (names []string, err error) {
	if object.Current.Limits().NamesStay { // with their objects, and go with them: nobody leaves a dead block
		return nil, nil
	}
	var failed error
	err = object.Current.List(func(name string) bool {
		if _, err := checkName(name); err == nil {
			reaped, err := reap(name)
			if reaped {
				names = append(names, name)
			} else if err != nil && !aboutBlock(err) {
				failed = err
			}
		}
		return end.IsZero() || time.Now().Before(end)
	})
	return names, cmp.Or(err, failed)
}

// firstReap cleans up after those who were killed, once in a process.
var firstReap = sync.OnceFunc(func() { reapUntil(time.Now().Add(10 * time.Millisecond)) })

// checkName returns name as the platform functions take it.
func checkName(name string) (string, error) {
	name = strings.TrimPrefix(name, "/")
	if most := object.Current.Limits().MaxName; !blockname.Valid(name, most) {
		return "", fmt.Errorf("%w: a name has 1 to %d of A-Z a-z 0-9 . _ - and does not begin with a dot", fs.ErrInvalid, most)
	}
	return name, nil
}

// checkSize returns the error for a size that no new block can have.
func checkSize(size int64) error {
	switch {
	case size <= 0:
		return fmt.Errorf("%w: size %d", fs.ErrInvalid, size)
	case size > math.MaxInt-maxHeaderSize:
		return never{fmt.Errorf("%w: %d bytes do not fit the address space", ErrNoSpace, size)}
	}
	return nil
}

var _ interface {
	io.ReadWriteSeeker
	io.Closer
	io.ReaderAt
	io.WriterAt
	io.ReaderFrom
	io.WriterTo
	io.ByteReader
	io.ByteWriter
	io.StringWriter
	fs.File
	fmt.Stringer
	slog.LogValuer
} = (*Segment)(nil)
