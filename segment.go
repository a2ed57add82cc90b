package shm

import (
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"runtime"
	"sync"

	"github.com/shmkit/shm/internal/gate"
	"github.com/shmkit/shm/internal/leaks"
)

// A Segment is an attachment to a block. It implements [io.Reader], [io.Writer],
// [io.Seeker], [io.Closer], [io.ReaderAt], [io.WriterAt], [io.ReaderFrom],
// [io.WriterTo], [io.ByteReader], [io.ByteWriter], [io.StringWriter] and
// [fs.File]. All methods are safe for concurrent use.
//
// Some functions close what they read: the transport of an [net/http.Request]
// closes its body, and that can be the last Close of the block. Others read
// concurrently, such as [net/http.ServeContent] in a handler. Pass to both
// io.NewSectionReader(seg, 0, seg.Size()), and set the ContentLength of a request.
//
// A Segment can be embedded in other types. The methods of a nil Segment and of
// the zero Segment return [fs.ErrInvalid], or a zero value if they have no error
// to return.
type Segment struct {
	h *handle
}

// handle is what a Segment and its copies share. It is separate from attachment,
// which its cleanup refers to, so that the garbage collector can find it
// unreachable.
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
	runtime.KeepAlive(h) // the collector must not find a handle in use dropped
}

// use calls f between enter and leave. It returns the error of f, or that of enter.
func (s *Segment) use(op string, f func(h *handle) error) error {
	h, token, err := s.enter(op)
	if err != nil {
		return err
	}
	defer h.leave(token)
	return f(h)
}

// quick reports whether a call that only copies a few bytes need not pass the gate.
// Such a call must keep the handle alive until it returns.
func (h *handle) quick() bool { return h != nil && h.pass.Load() == passQuick }

// Close detaches from the block. If no other Segment is attached to it, Close
// unlinks the block, unless it is [Persistent] or [Headerless]. A second Close
// returns [fs.ErrClosed].
//
// Close does not wait for calls in progress, but for a Truncate that clears bytes; calls
// that wait return [fs.ErrClosed]. It waits for two seconds at most if another process
// was stopped while it held the block's mutex; the block is then stale if no process is
// attached to it. Closing with the block's lock is as ending with it: see [Segment.Lock].
//
// Close releases the memory. Using a slice from Bytes after Close crashes the
// program; see [Segment.Bytes].
func (s *Segment) Close() error {
	if s == nil || s.h == nil {
		return pathError("close", "", fs.ErrInvalid)
	}
	if !s.h.close() {
		return pathError("close", s.h.name, fs.ErrClosed)
	}
	leaks.Forget(s.h.id)
	runtime.KeepAlive(s.h) // drop must run after close
	return nil
}

// Name returns the name of the block, without a leading slash. For an [Anonymous]
// block it returns the [Label], or the name of the file that was passed to
// [FromFile]. It returns "" if FromFile attached to a block that had been unlinked,
// or could not determine its name. Name works on a closed Segment.
func (s *Segment) Name() string {
	if s == nil || s.h == nil {
		return ""
	}
	return s.h.name
}

// String returns the name, Size, Cap and state of the Segment in a form for people.
// It does not wait for other calls. It works on a nil or closed Segment.
func (s *Segment) String() string {
	switch {
	case s == nil:
		return "Segment <nil>"
	case s.h == nil:
		return "Segment <zero>"
	}
	size, state := s.state()
	about := fmt.Sprintf("%d of %d bytes", size, s.Cap())
	switch state {
	case "closed":
		about = fmt.Sprintf("%d bytes, %s", s.Cap(), state)
	case "read-only":
		about += ", " + state
	}
	return fmt.Sprintf("Segment %q (%s)", s.Name(), about)
}

// LogValue implements [slog.LogValuer]. It returns a group of name, size, cap and
// state.
func (s *Segment) LogValue() slog.Value {
	if s == nil || s.h == nil {
		return slog.StringValue(s.String())
	}
	size, state := s.state()
	return slog.GroupValue(slog.String("name", s.Name()), slog.Int64("size", size),
		slog.Int64("cap", s.Cap()), slog.String("state", state))
}

// state returns the Size, and "open", "read-only" or "closed".
func (s *Segment) state() (size int64, state string) {
	state = "closed"
	s.use("string", func(h *handle) (err error) {
		size, err = h.size()
		if state = "open"; h.readOnly {
			state = "read-only"
		}
		return err
	})
	return size, state
}

// Cap returns the number of bytes that the block can hold, which never changes. It
// works on a closed Segment.
func (s *Segment) Cap() int64 {
	if s == nil || s.h == nil {
		return 0
	}
	return int64(len(s.h.data))
}

// Size returns the number of bytes that the block holds at this moment. It returns
// 0 if the Segment is closed, or if another program has truncated the block so far
// that the header is lost.
func (s *Segment) Size() (size int64) {
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
	s.use("size", func(h *handle) (err error) {
		h.decideQuick()
		size, err = h.size()
		return err
	})
	return size
}

// Refs returns the number of Segments, in all processes, that are attached to the
// block. It is exact if none attaches or detaches meanwhile: attachments of killed
// processes are not counted, those without permission to write are, but on darwin,
// where they leave no trace. For an [Anonymous] block the number is a hint: it comes
// from the header, where killed processes stay counted. Refs returns 0 for a
// Headerless block, and if the Segment is closed. It takes one system call for each
// attachment; see [Info] for who they are.
func (s *Segment) Refs() (n int) {
	s.use("refs", func(h *handle) (err error) {
		n, _, err = h.holders()
		return err
	})
	return n
}

// Truncate sets the Size of the block to n bytes, 0 to Cap, for all processes, and
// wakes those that wait for it. Bytes that are cut off read as zero if the block grows
// again. Truncate clears them, which takes as long as writing them; for a [Sparse]
// block it releases their memory instead.
//
// A Truncate that lowers Size, or opens a block again after [Segment.Finish], begins
// another stream: followers of the one before get [ErrTruncated]. It does not wait for
// writers. Bytes that View, a slice from Bytes or a write below n puts there at the
// same time may be cleared or left.
//
// The error is [fs.ErrInvalid] for an n that is negative or larger than Cap,
// [ErrReadOnly], [ErrFault], [fs.ErrClosed], [errors.ErrUnsupported] for a
// Headerless block, or [ErrBusy] if another process that is truncating the block has
// been stopped.
func (s *Segment) Truncate(n int64) error {
	return s.use("truncate", func(h *handle) error { return pathError("truncate", h.name, h.truncate(n)) })
}

// Append writes p at Size, and returns where it begins. Several processes can append at
// the same time, in Go and in Python: each finds its bytes in one piece, and those of a
// process that is killed meanwhile are not there at all. It does not use the offset, and
// must not be mixed with other writes that raise Size.
//
// The error is [ErrFull] or [ErrFinished], with nothing written, or one of
// [Segment.Truncate].
func (s *Segment) Append(p []byte) (off int64, err error) {
	err = s.use("append", func(h *handle) (err error) {
		off, err = h.append(p)
		return pathError("append", h.name, err)
	})
	return off, err
}

// Finish declares that the block is complete: a Follower gets [io.EOF] at Size, and a
// write that would raise Size is [ErrFinished], in every process. Truncate opens the
// block again. Finishing a finished block does nothing.
//
// The error is [ErrReadOnly], [fs.ErrClosed], [ErrFault], [ErrBusy] as for Truncate, or
// [errors.ErrUnsupported] for a Headerless block.
func (s *Segment) Finish() error {
	return s.use("finish", func(h *handle) error { return pathError("finish", h.name, h.finish()) })
}

// Keep makes the block outlive its attachments, as [Persistent] does when a block is
// created: it stays until Unlink. It cannot be undone.
//
// The error is [ErrReadOnly], [fs.ErrClosed], [ErrFault], or [errors.ErrUnsupported] for
// an [Anonymous] block and on Windows. A Headerless block is kept always.
func (s *Segment) Keep() error {
	return s.use("keep", func(h *handle) error { return pathError("keep", h.name, h.keep()) })
}

// Bytes returns a slice of the block's memory. Its length is Size at this moment,
// its capacity Cap. All processes see what is stored in it; they must synchronize
// their accesses themselves. Bytes returns nil if the Segment is closed.
//
// The slice is valid until Close. Using it later crashes the program. So does
// using it after another program has truncated the block, using a page of a Sparse
// block for which there is no memory left, and writing to the slice of a
// [ReadOnly] Segment. In [Segment.View] the memory outlasts Close, and the other
// cases are errors.
//
// A slice that is used after Close cannot reach other memory for some time: on
// 64-bit Linux and darwin its addresses stay unused until the Segments with slices
// that are closed later add up to 64 GiB of address space or number 8,192. The
// addresses do not stay unused if the Segment alone is larger than that, if the
// process has a limit on its address space (RLIMIT_AS), on 32-bit systems, or on
// Windows. Once they are in use again, the slice reads and writes what is there.
func (s *Segment) Bytes() (b []byte) {
	s.use("bytes", func(h *handle) error {
		return h.guard(func() error {
			b = h.expose()
			h.lent.Store(true)
			return nil
		})
	})
	return b
}

// expose returns the bytes of the block for the program to read and write.
func (a *attachment) expose() []byte {
	if !a.readOnly {
		raise(a.head.written(), uint64(len(a.data)))
	}
	return a.data[:a.loadSize():len(a.data)]
}

// View calls f with a slice of the block's memory, as Bytes returns it, and returns
// the error of f. The memory stays valid until f returns, even if the Segment is
// closed in the meantime; f may close it itself. f must not keep the slice.
//
// If f accesses memory that is not there, because another program has truncated
// the block or there is no memory left for a page of a Sparse block, or if f writes
// to the memory of a [ReadOnly] Segment, then f ends there as by a panic and View
// returns [ErrFault]. This does not hold for goroutines that f starts. Other panics
// of f go on.
//
// View returns [fs.ErrClosed], without calling f, if the Segment is closed.
func (s *Segment) View(f func(b []byte) error) error {
	return s.use("view", func(h *handle) (own error) {
		err := h.guard(func() error {
			own = f(h.expose())
			return nil
		})
		if err != nil {
			return pathError("view", h.name, err)
		}
		return own // as it is: only errors of View are a PathError
	})
}

// Unlink removes the block's name immediately. No process can open the block any
// more, and a new block may take the name. Existing attachments, this Segment
// included, keep the memory until they are closed.
//
// The error is [fs.ErrNotExist] if the block has no name or has lost it,
// [fs.ErrPermission], [ErrBusy], [fs.ErrClosed], or [errors.ErrUnsupported] for a
// Headerless block on Windows.
func (s *Segment) Unlink() error {
	return s.use("unlink", func(h *handle) error {
		err := h.unlink()
		if err == nil {
			leaks.Unlinked(h.name)
		}
		return pathError("unlink", h.name, err)
	})
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
