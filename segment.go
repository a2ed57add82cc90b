package shm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/shmkit/shm/internal/gate"
	"github.com/shmkit/shm/internal/leaks"
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

// quick reports whether a call that only copies a few bytes may do without the
// gate. It must keep the handle alive until it is done.
func (h *handle) quick() bool { return h != nil && h.pass.Load() == passQuick }

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
	refs := 0
	h.words(func(w header) { refs = w.refs() })
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
	case a.kind == rawBlock:
		return fmt.Errorf("%w: Truncate of a Headerless block", errors.ErrUnsupported)
	case n < 0 || n > int64(len(a.data)):
		return fmt.Errorf("%w: size %d of at most %d", fs.ErrInvalid, n, len(a.data))
	}
	return a.guard(func() error {
		// All bytes beyond size are zero, so that a block grows by nothing but
		// setting size. So they are cleared while they still are below size: a
		// writer that appends in the meantime makes the swap fail.
		h := a.head
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
	if a.hollow && a.file.Punch(a.start+from, to-from) == nil {
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
		b = h.expose()
		return nil
	})
	if b != nil {
		h.lent.Store(true)
	}
	return b
}

// expose returns the bytes of the block for the program to read and write.
func (a *attachment) expose() []byte {
	if !a.readOnly {
		raise(a.head.written(), uint64(len(a.data)))
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
		own = f(h.expose())
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
