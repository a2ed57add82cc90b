package shm

import (
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"time"

	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/raw"
)

// The header is the first page of a managed block, a page of the creator's
// size. All numbers are in the machine's own byte order.
//
//	offset size  field
//	     0    8  magic "shmkit\x1a\n"
//	     8    4  version of this layout, 1
//	    12    4  size of the header in bytes, where the data begins
//	    16    8  capacity: bytes of data
//	    24    4  flags: 1 persistent, 2 sparse, 4 anonymous
//	    28    4  process id of the creator, as the creator saw it
//	    32    8  time of creation, nanoseconds since 1970
//	    40   16  id, random
//	    56    4  zero
//	    60    4  CRC-32C of bytes 0 to 59
//	    64    4  state: 1 live, 2 dead
//	   128    4  count of attachments
//	   192    8  size: logical length of the data in bytes
//	   256    8  written: no byte of the data from here on was ever written to
//	   320       zero, up to the header's size, but for what the platform file
//	             keeps there: on Windows in the last 32 bytes of the page, on
//	             darwin the name from 4064 on and the lock page from 4096 on
//
// Bytes 0 to 63 are written before the block can be found and never again, and
// their meaning is the same in every version. Where a block has its name from
// birth, it is the magic, written last, that makes it one. The words from 64 on
// change under everyone's hands, each on cache lines of its own, only by atomic
// operations:
//
//   - state goes from live to dead once, by the process that unlinks the block
//     because nobody is attached to it, just before it does.
//   - count is raised and lowered under the mutex lane. It is what people see;
//     who unlinks is decided by the kernel's locks, because a process that is
//     killed cannot lower it.
//   - size is raised by a writer after the bytes are in place.
//   - written is raised by a writer before it touches the bytes.
//
// An anonymous block has no name, is in no directory and cannot change its
// size. Nobody ends it but the kernel, so it takes no locks and its state never
// changes.
//
// Any process that may write to the block can put anything here, so nothing
// read from it is believed before it is checked.
const (
	offVersion    = 8
	offHeaderSize = 12
	offCapacity   = 16
	offFlags      = 24
	offCreator    = 28
	offCreated    = 32
	offID         = 40
	offChecksum   = 60
	offState      = 64
	offCount      = 128
	offSize       = 192
	offWritten    = 256
	headerUsed    = 320

	magic         = "shmkit\x1a\n"
	layoutVersion = 1

	flagPersistent = 1 << 0
	flagSparse     = 1 << 1
	flagAnonymous  = 1 << 2

	stateLive = 1
	stateDead = 2

	// Page sizes of the systems Go runs on lie between these.
	minHeaderSize = 4 << 10
	maxHeaderSize = 64 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// layout is the part of a header that never changes.
type layout struct {
	headerSize int
	capacity   int64
	flags      uint32
	creator    int
	created    time.Time
	id         [16]byte
}

func newLayout(capacity int64, flags uint32) layout {
	l := layout{
		headerSize: object.Current.Limits().HeaderLength,
		capacity:   capacity,
		flags:      flags,
		creator:    os.Getpid(),
		created:    time.Unix(0, time.Now().UnixNano()), // as it will be read
	}
	crand.Read(l.id[:])
	return l
}

func (l layout) persistent() bool { return l.flags&flagPersistent != 0 }
func (l layout) sparse() bool     { return l.flags&flagSparse != 0 }
func (l layout) anonymous() bool  { return l.flags&flagAnonymous != 0 }

// marshal returns the header of a new block that one process is attached to.
func (l layout) marshal() []byte {
	b, ne := make([]byte, headerUsed), binary.NativeEndian
	copy(b, magic)
	ne.PutUint32(b[offVersion:], layoutVersion)
	ne.PutUint32(b[offHeaderSize:], uint32(l.headerSize))
	ne.PutUint64(b[offCapacity:], uint64(l.capacity))
	ne.PutUint32(b[offFlags:], l.flags)
	ne.PutUint32(b[offCreator:], uint32(l.creator))
	ne.PutUint64(b[offCreated:], uint64(l.created.UnixNano()))
	copy(b[offID:], l.id[:])
	ne.PutUint32(b[offChecksum:], crc32.Checksum(b[:offChecksum], castagnoli))
	ne.PutUint32(b[offState:], stateLive)
	ne.PutUint32(b[offCount:], 1)
	ne.PutUint64(b[offSize:], uint64(l.capacity))
	return b
}

// errTruncated is a header that is sound but for the size of its object.
var errTruncated = fmt.Errorf("%w: shorter than it says", ErrCorrupt)

// parseLayout reads the header of an object of objectSize bytes that begins
// with b. It returns ErrNotSegment where there is no header, ErrVersion for a
// layout of another version, ErrCorrupt for a header that cannot be true, and
// errTruncated, with the layout, where only the data is not all there.
func parseLayout(b []byte, objectSize int64) (layout, error) {
	ne := binary.NativeEndian
	if len(b) < headerUsed || string(b[:len(magic)]) != magic {
		return layout{}, ErrNotSegment
	}
	if crc32.Checksum(b[:offChecksum], castagnoli) != ne.Uint32(b[offChecksum:]) {
		return layout{}, fmt.Errorf("%w: wrong checksum", ErrCorrupt)
	}
	if v := ne.Uint32(b[offVersion:]); v != layoutVersion {
		return layout{}, fmt.Errorf("%w: %d", ErrVersion, v)
	}
	size, capacity := ne.Uint32(b[offHeaderSize:]), ne.Uint64(b[offCapacity:])
	if size < minHeaderSize || size > maxHeaderSize || size&(size-1) != 0 ||
		capacity == 0 || capacity > math.MaxInt64-maxHeaderSize {
		return layout{}, fmt.Errorf("%w: %d+%d bytes", ErrCorrupt, size, capacity)
	}
	l := layout{
		headerSize: int(size),
		capacity:   int64(capacity),
		flags:      ne.Uint32(b[offFlags:]),
		creator:    int(ne.Uint32(b[offCreator:])),
		created:    time.Unix(0, int64(ne.Uint64(b[offCreated:]))),
		id:         [16]byte(b[offID:]),
	}
	if objectSize < int64(size)+l.capacity {
		return l, errTruncated
	}
	return l, nil
}

// readHeader returns a copy of the header that o begins with and what it says.
// The copy is read past the mapping, so that nothing is mapped before it is
// known to be sound and the peer that changes it cannot change it in between.
func readHeader(o object.Object, objectSize int64) (layout, header, error) {
	b := make([]byte, headerUsed)
	n, err := o.ReadAt(b, 0)
	if err != nil {
		return layout{}, nil, err
	}
	l, err := parseLayout(b[:n], objectSize)
	return l, b, err
}

// header gives access to the words that change.
type header []byte

func (h header) magic() *atomic.Uint64   { return raw.Uint64(h, 0) }
func (h header) state() *atomic.Uint32   { return raw.Uint32(h, offState) }
func (h header) count() *atomic.Uint32   { return raw.Uint32(h, offCount) }
func (h header) size() *atomic.Uint64    { return raw.Uint64(h, offSize) }
func (h header) written() *atomic.Uint64 { return raw.Uint64(h, offWritten) }

// raise sets w to v unless it is larger already.
func raise(w *atomic.Uint64, v uint64) {
	for old := w.Load(); old < v; old = w.Load() {
		if w.CompareAndSwap(old, v) {
			return
		}
	}
}

// again marks an error that may go away by itself: whoever gets it lets go of
// the object and starts over from the name.
type again = object.RetryError

// never marks ErrNoSpace for a size that is too large whatever others release.
type never = object.TooLargeError

// soon marks ErrBusy, and no other error, with again.
func soon(err error) error {
	if errors.Is(err, ErrBusy) {
		return again{err}
	}
	return err
}

// found makes a the first attachment of a block that nobody can find yet. The
// life lane is held before they can: a block had somebody attached, and once
// nobody is, it is dead.
func (a *attachment) found() error {
	b := a.layout.marshal()
	a.counted = true
	if a.layout.anonymous() {
		_, err := a.obj.WriteAt(b, 0) // all at once, and without a page fault
		return err
	}
	if err := a.obj.Lockable(); err != nil {
		return err
	}
	if err := a.obj.Join(); err != nil {
		return err
	}
	if a.layout.sparse() { // the memory may not be there, which is then told as what it is
		if _, err := a.obj.WriteAt(b[len(magic):], int64(len(magic))); err != nil {
			return err
		}
	}
	return a.words(func(h header) {
		copy(h[len(magic):], b[len(magic):])
		h.magic().Store(binary.NativeEndian.Uint64(b))
	})
}

// attach makes a an attachment of the block, or leaves nothing behind but
// locks, which discard drops. It is the step that must not be half done: from
// here on the block lives until detach.
func (a *attachment) attach() error {
	if a.layout.anonymous() {
		return a.attachAnonymous()
	}
	if !a.obj.Writable() {
		return a.attachUncounted()
	}
	if err := a.obj.TryLock(); err != nil {
		return soon(err)
	}
	alone, err := a.obj.Alone()
	if err != nil {
		return err
	}
	if alone && !a.layout.persistent() {
		bury(a.obj) // whoever was attached was killed
		return fs.ErrNotExist
	}
	if err := a.share(alone); err != nil {
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

// attachUncounted attaches a process that may only read. It can take neither
// the mutex lane nor a part in the count, but the kernel lets it share the life
// lane, and that keeps the block alive.
//
// It must see somebody attached before it shares the lane. Two such processes
// that came to a dead block and looked afterwards would take each other for a
// reason to stay.
func (a *attachment) attachUncounted() error {
	held, err := a.inUse(a.layout)
	if err != nil {
		return err
	}
	return a.share(!held)
}

// inUse reports whether a process is attached to the block. It returns
// fs.ErrNotExist for a stale block; one that is not in use is Persistent.
func (a *attachment) inUse(l layout) (bool, error) {
	switch others, err := a.obj.Others(); {
	case err != nil:
		return false, err
	case others == object.Deciding: // whether the block is stale
		return false, again{ErrBusy}
	case others == object.Nobody && !l.persistent():
		return false, fs.ErrNotExist
	default:
		return others == object.Somebody, nil
	}
}

// share takes the life lane shared and makes sure that the block is still the
// one its name leads to. A block that came by a file need not have a name, but
// if it is abandoned it ended when it lost that.
func (a *attachment) share(abandoned bool) error {
	if err := a.obj.Join(); err != nil {
		return soon(err)
	}
	if linked, err := a.obj.Linked(); err != nil {
		return err
	} else if !linked && !a.handed {
		return again{fs.ErrNotExist}
	} else if !linked && abandoned {
		return fs.ErrNotExist
	}
	dead := false
	if err := a.words(func(h header) { dead = h.state().Load() != stateLive }); err != nil {
		return err
	}
	if dead {
		return again{fmt.Errorf("%w: marked dead under its name", ErrCorrupt)}
	}
	return nil
}

// detach ends the attachment, and the block if it was the last one, as the
// kernel's locks have it: the count may still hold processes that were killed.
//
// Where a peer that was stopped in the middle of its own attach or detach keeps
// the mutex lane, detach does not wait for it beyond patience: the block, if
// nobody else is attached, is then left for whoever comes next.
func (a *attachment) detach() {
	if !a.counted {
		a.obj.Leave()
		return
	}
	if a.layout.anonymous() {
		a.words(func(h header) { h.count().Add(^uint32(0)) })
		return
	}
	err := a.lockMutex()
	if err != nil {
		a.life.Lock()
	}
	defer a.life.Unlock()
	defer a.obj.Leave()
	a.words(func(h header) { h.count().Add(^uint32(0)) })
	if err != nil || a.layout.persistent() {
		return
	}
	if alone, _ := a.obj.Alone(); alone {
		bury(a.obj)
	}
}

// lockMutex takes the mutex lane, and a.life with it, because for the kernel
// all goroutines that use a.obj are one holder. It waits within patience.
func (a *attachment) lockMutex() error {
	return patiently(func() error {
		a.life.Lock()
		err := a.obj.TryLock()
		if err != nil {
			a.life.Unlock()
		}
		return soon(err)
	})
}

func (a *attachment) unlockMutex() {
	a.obj.Unlock()
	a.life.Unlock()
}

// words runs f on the header's words, and returns ErrFault if the header is no
// longer there because a peer has truncated the object.
func (a *attachment) words(f func(h header)) error {
	return a.guard(func() error {
		f(header(a.mem))
		return nil
	})
}

// bury ends a block that nobody is attached to, and returns why it could not be
// unlinked; the caller holds both lanes of it alone. Whether it may be unlinked
// is the system's to say: in a directory with the sticky bit only its owner can.
// It then stays, dead, for its owner.
func bury(o object.Object) error {
	dead := binary.NativeEndian.AppendUint32(nil, stateDead)
	o.WriteAt(dead, offState) // a full or truncated object does not change the verdict
	// Unlinking takes a name, not an object. Nobody but an outsider who does not
	// hold the mutex lane can bind the name to another object in between.
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

// reap unlinks the block called name if it is ours and nobody is attached to
// it, and reports whether it did.
func reap(name string) (bool, error) {
	o, err := object.Current.Open(name, true)
	if err != nil {
		return false, soon(err)
	}
	defer o.Close()
	info, err := o.Stat()
	if err != nil {
		return false, err
	}
	l, _, err := readHeader(o, info.Size)
	if err != nil && !errors.Is(err, errTruncated) || l.persistent() {
		return false, err
	}
	if err := o.Lockable(); err != nil {
		return false, err
	}
	// Asking first spares the living: the lock would make an opener wait.
	switch others, err := o.Others(); {
	case err != nil || others == object.Somebody:
		return false, err
	case others == object.Deciding:
		return false, again{ErrBusy}
	}
	defer o.Leave()
	if err := o.TryLock(); err != nil {
		return false, soon(err)
	}
	switch alone, err := o.Alone(); {
	case err != nil:
		return false, err
	case !alone: // attached in the meantime
		return false, again{ErrBusy}
	}
	err = bury(o)
	return err == nil, err
}

// patience bounds the pauses of one call that waits for other processes. They
// hold the mutex for microseconds, so a process that keeps it for longer has been
// stopped, or is hostile.
var patience = 2 * time.Second // a variable for tests alone

// attempt is the state of one call that may have to wait, shared by all loops in
// which it does.
type attempt struct {
	left   time.Duration // what its pauses may still come to
	reaped bool          // it has looked for stale blocks to make room
}

func newAttempt() *attempt { return &attempt{left: patience} }

// retry calls f until it returns an error that is not again, or nil, or the
// attempt has no patience left. It then returns what the last again was for.
//
// The pauses are added up, and how much longer than intended they took counts for
// a millisecond at most: while this process, its container or the machine is
// frozen, or too busy to run the process that holds the mutex, time passes in
// which nothing could change. The less patience is left, the shorter the pauses,
// so that a process that has waited for long comes before those that begin to.
func (t *attempt) retry(f func() error) error {
	const first, most, steps = 20 * time.Microsecond, 10 * time.Millisecond, 200
	for pause := first; ; pause = min(2*pause, most, max(t.left/steps, first)) {
		err := f()
		var transient again
		if !errors.As(err, &transient) {
			return err
		}
		if t.left <= 0 {
			return transient.Err
		}
		// Processes that begin to wait together do not go on together.
		start, jittered := time.Now(), pause/2+rand.N(pause)
		time.Sleep(jittered)
		t.left -= min(time.Since(start), jittered+time.Millisecond)
	}
}

// patiently is retry for a call that waits in one loop only.
func patiently(f func() error) error { return newAttempt().retry(f) }
