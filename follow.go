package shm

import (
	"cmp"
	"context"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
)

// A Follower reads a block as a stream: at Size it waits for more, until the block is
// finished. It has an offset of its own. It implements [io.Reader], [io.WriterTo] and
// [io.Closer]. Its methods are safe for concurrent use.
type Follower struct {
	seg    *Segment
	ctx    context.Context
	cancel context.CancelFunc
	closed atomic.Bool

	mu         sync.Mutex
	off        int64
	generation uint64 // of the stream
	following  bool   // some of the stream was delivered, or its end
}

// Follow returns a Follower that reads the block from its beginning. It waits for a
// stream that nobody has begun yet: of a block whose Size was not raised, by writing or
// Truncate, since it was created or since a Truncate lowered it, nothing is delivered
// before Finish.
//
// A Read that has to wait returns ctx.Err() when ctx is done. A Segment on which Follow
// was called does not count as a writer until it writes; see [ErrAbandoned].
func (s *Segment) Follow(ctx context.Context) *Follower {
	ctx, cancel := context.WithCancel(ctx)
	s.use("follow", func(h *handle) error {
		h.stepAside()
		return nil
	})
	return &Follower{seg: s, ctx: ctx, cancel: cancel}
}

// Close ends the Follower, not the Segment. A Read that waits returns [fs.ErrClosed], as
// do later ones and a second Close.
func (f *Follower) Close() error {
	if f.closed.Swap(true) {
		return pathError("close", f.seg.Name(), fs.ErrClosed)
	}
	f.cancel()
	return nil
}

// Read implements [io.Reader]. It waits until there is a byte to read.
//
// At the end of a finished stream the error is [io.EOF]. Before that it is
// [ErrTruncated] once the block was truncated, which is final: Read never returns bytes
// of another stream, or its end. It is [ErrAbandoned] if no process that could write to
// the block is attached; the next Read looks again. Other errors are ctx.Err(),
// [fs.ErrClosed], [ErrFault], and [errors.ErrUnsupported] for a Headerless block.
//
// That a process was killed takes up to a quarter of a second to notice.
func (f *Follower) Read(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	err = f.seg.use("follow", func(h *handle) error {
		if f.closed.Load() {
			return pathError("follow", h.name, fs.ErrClosed)
		}
		err := h.wait(f.ctx, func(last bool) (done bool, err error) {
			n, err = f.look(h.attachment, p)
			if n == 0 && err == nil && last && f.following && h.abandoned() {
				// Its last bytes may have come since.
				if n, err = f.look(h.attachment, p); n == 0 && err == nil {
					err = ErrAbandoned
				}
			}
			return n > 0, err
		}, func() bool { return !f.following || !h.abandoned() })
		if f.closed.Load() && err == context.Canceled {
			err = fs.ErrClosed
		}
		return pathError("follow", h.name, err)
	})
	return n, err
}

// look reads what there is at the offset. It returns 0 and nil if that is nothing yet.
func (f *Follower) look(a *attachment, p []byte) (n int, err error) {
	guardErr := a.guard(func() error {
		n, err = f.lookUnguarded(a, p)
		return nil
	})
	return n, cmp.Or(guardErr, err)
}

func (f *Follower) lookUnguarded(a *attachment, p []byte) (n int, err error) {
	for {
		generation, size, gone := f.stream(a.head)
		switch {
		case gone:
			return 0, ErrTruncated
		case !size.has(begun | finished):
			return 0, nil
		}
		n, err := a.copyBelow(size, p, f.off)
		if err != nil || n == 0 && !size.has(finished) {
			return 0, err
		}
		// The bytes, or the end, are of the stream if that was not truncated meanwhile.
		if _, gone := a.head.stream(generation); gone {
			if f.following {
				return 0, ErrTruncated
			}
			continue
		}
		f.generation, f.following = generation, true
		f.off += int64(n)
		if n == 0 {
			err = io.EOF
		}
		return n, err
	}
}

// stream returns the generation of the stream that f reads, or can begin to read, its
// size, and whether it is gone.
func (f *Follower) stream(h header) (generation uint64, size sizeWord, gone bool) {
	if f.following {
		size, gone = h.stream(f.generation)
		return f.generation, size, gone
	}
	for {
		generation, size = h.generation().Load(), h.loadSize()
		if h.generation().Load() != generation {
			continue
		}
		if size.low() != generation&lowMask { // Truncate changes generation first
			generation--
		}
		return generation, size, false
	}
}

// stream returns size, and whether the stream of that generation is gone. The low bits in
// size tell of a Truncate at once, but repeat themselves. Generation does not, but is one
// ahead of size for a moment.
func (h header) stream(generation uint64) (size sizeWord, gone bool) {
	size = h.loadSize()
	return size, size.low() != generation&lowMask || h.generation().Load()-generation > 1
}

// copyBelow copies bytes below size from off on. The caller is under guard.
func (a *attachment) copyBelow(size sizeWord, p []byte, off int64) (n int, err error) {
	end := min(int64(size.length()), int64(len(a.data)))
	p = p[:max(min(int64(len(p)), end-off), 0)]
	if a.hollow {
		return a.readAround(p, off)
	}
	return copy(p, a.data[min(off, end):end]), nil
}

// WriteTo implements [io.WriterTo]. It writes the stream to w until its end, for which
// it returns nil. Otherwise the error is that of w or of Read. [io.Copy] from a Follower
// calls WriteTo.
func (f *Follower) WriteTo(w io.Writer) (n int64, err error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	return untilEOF(func() (int, error) {
		got, err := f.Read(*buf)
		if err != nil {
			return 0, err
		}
		put, err := w.Write((*buf)[:got])
		if put < 0 || put > got {
			return 0, errInvalidWrite
		}
		if err == nil && put < got {
			err = io.ErrShortWrite
		}
		return put, err
	})
}

var _ interface {
	io.ReadCloser
	io.WriterTo
} = (*Follower)(nil)
