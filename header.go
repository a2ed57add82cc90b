package shm

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
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
//	     8    4  version of this layout, 2
//	    12    4  size of the header in bytes, where the data begins
//	    16    8  capacity: bytes of data
//	    24    4  flags: 1 persistent, 2 sparse, 4 anonymous
//	    28    4  process id of the creator, as the creator saw it
//	    32    8  time of creation, nanoseconds since 1970
//	    40   16  id, random
//	    56    4  zero
//	    60    4  CRC-32C of bytes 0 to 59
//	    64    4  state: 1 live, 2 stale
//	    68    4  keep: 1 if the block outlives its attachments
//	   128    4  count of attachments
//	   192    8  size: see sizeWord
//	   200    4  armed: 1 if a process may sleep on event
//	   208    8  generation: how often the block was truncated
//	   216    8  dirty: up to where a Truncate that is cut has bytes to clear
//	   256    8  written: no byte of the data from here on was ever written to
//	   320    4  event: changes when sleepers are woken
//	   384   20  the block's lock: see lockWords
//	   448   20  the lock of Truncate
//	   512  256  on Windows one word for each process that sleeps
//	   768       zero, up to the header's size, but for what the platform file keeps
//	             there: on Windows in the last 32 bytes of the page, on darwin the
//	             name from 4064 on and the lock page from 4096 on
//
// Bytes 0 to 63 are written before the block is published and never again, and
// their meaning is the same in every version. The words from 64 on are changed by
// all attached processes, only by atomic operations. What is not changed together
// is on cache lines of its own.
//
//   - state goes from live to stale once, by the process that unlinks the block
//     because no process is attached to it, just after it has.
//   - count is raised by an attachment that has joined, and lowered by one that
//     leaves. A process that is killed does not lower it, so it decides nothing: the
//     last Close starts from it, and a process that finds it wrong corrects it.
//   - keep is set by Keep, once.
//   - size is raised by a writer after the bytes are in place, and lowered by
//     Truncate before they are cleared.
//   - written is raised by a writer before it touches the bytes.
//   - generation is raised by the holder of the lock of Truncate, before size gets
//     its low bits.
//   - armed is set by a process before it looks whether it has to sleep, and cleared
//     by the process that wakes it.
//
// An anonymous block has no name, and its size cannot change. The kernel alone
// ends it, so it takes no locks and its state never changes.
//
// A process that may write to the block can put anything here, so everything read
// from it is checked before it is used.
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
	offKeep       = 68
	offCount      = 128
	offSize       = 192
	offArmed      = 200
	offGeneration = 208
	offDirty      = 216
	offWritten    = 256
	offEvent      = 320
	offLock       = 384
	offSizeLock   = 448
	headerUsed    = object.HeaderUsed

	magic         = "shmkit\x1a\n"
	layoutVersion = 2

	flagPersistent = 1 << 0
	flagSparse     = 1 << 1
	flagAnonymous  = 1 << 2

	stateLive  = 1
	stateStale = 2

	maxCapacity = lengthMask

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
	rand.Read(l.id[:])
	return l
}

func (l layout) persistent() bool { return l.flags&flagPersistent != 0 }
func (l layout) sparse() bool     { return l.flags&flagSparse != 0 }
func (l layout) anonymous() bool  { return l.flags&flagAnonymous != 0 }

// marshal returns the header of a new block of that Size that one process is attached
// to.
func (l layout) marshal(size int64) []byte {
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
	ne.PutUint64(b[offSize:], uint64(size))
	return b
}

// errTruncated is returned for a sound header of an object that is too short.
var errTruncated = fmt.Errorf("%w: shorter than it says", ErrCorrupt)

// parseLayout reads the header of an object of objectSize bytes that begins
// with b. It returns ErrNotSegment if there is no header, ErrVersion for another
// version of the layout, ErrCorrupt for a header that cannot be true, and
// errTruncated, with the layout, if only some of the data is missing.
func parseLayout(b []byte, objectSize int64) (layout, error) {
	ne := binary.NativeEndian
	if len(b) < offState || string(b[:len(magic)]) != magic {
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

// readHeader returns a copy of the header that o begins with and its layout. The
// copy is read past the mapping: nothing is mapped before the header is known to
// be sound, and no other process can change it between check and use.
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

// newRawHeader returns the words of a raw block of size bytes, in ordinary memory:
// its Size is its Cap, and no other process sees or changes them.
func newRawHeader(size int) header {
	h := make(header, headerUsed)
	h.size().Store(uint64(size))
	h.written().Store(uint64(size))
	return h
}

func (h header) state() *atomic.Uint32      { return raw.Uint32(h, offState) }
func (h header) keep() *atomic.Uint32       { return raw.Uint32(h, offKeep) }
func (h header) count() *atomic.Uint32      { return raw.Uint32(h, offCount) }
func (h header) size() *atomic.Uint64       { return raw.Uint64(h, offSize) }
func (h header) armed() *atomic.Uint32      { return raw.Uint32(h, offArmed) }
func (h header) generation() *atomic.Uint64 { return raw.Uint64(h, offGeneration) }
func (h header) dirty() *atomic.Uint64      { return raw.Uint64(h, offDirty) }
func (h header) written() *atomic.Uint64    { return raw.Uint64(h, offWritten) }
func (h header) event() *atomic.Uint32      { return raw.Uint32(h, offEvent) }

func (h header) loadSize() sizeWord { return sizeWord(h.size().Load()) }
func (h header) swapSize(old, new sizeWord) bool {
	return h.size().CompareAndSwap(uint64(old), uint64(new))
}

// refs returns the count of attachments, bounded because another program may have
// written to it.
func (h header) refs() int {
	return int(min(h.count().Load(), math.MaxInt32))
}

// raise sets w to v unless it is larger already.
func raise(w *atomic.Uint64, v uint64) {
	for old := w.Load(); old < v; old = w.Load() {
		if w.CompareAndSwap(old, v) {
			return
		}
	}
}

// A sizeWord is what the header says of the stream in a block. Appending, finishing
// and truncating are each one compare-and-swap of it.
//
//	bits  0 to 47  length: the Size
//	bits 48 to 60  the low bits of generation
//	bit        61  cut: the bytes that Truncate cut off are not cleared yet
//	bit        62  begun: the length was raised in this generation
//	bit        63  finished: the length does not grow any more
//
// The low bits make the swap of a writer fail that has copied its bytes before a
// Truncate, which may have cleared them.
type sizeWord uint64

const (
	lengthMask = 1<<48 - 1
	lowMask    = 1<<13 - 1

	cut      sizeWord = 1 << 61
	begun    sizeWord = 1 << 62
	finished sizeWord = 1 << 63
)

func newSizeWord(length, generation uint64, flags sizeWord) sizeWord {
	return sizeWord(length|generation&lowMask<<48) | flags
}

func (w sizeWord) length() uint64         { return uint64(w & lengthMask) }
func (w sizeWord) low() uint64            { return uint64(w>>48) & lowMask }
func (w sizeWord) has(flag sizeWord) bool { return w&flag != 0 }
