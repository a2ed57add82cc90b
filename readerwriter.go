package shm

import (
	"fmt"
	"io"
	"io/fs"
	"math"
	"runtime"
	"runtime/debug"

	"github.com/shmkit/shm/internal/raw"
)

// ReadAt implements [io.ReaderAt]. It copies bytes of the block, from offset off
// on, into p and returns how many it has copied. If Size comes before the end of p,
// the error is [io.EOF].
//
// Other errors are [fs.ErrInvalid] for a negative offset, [fs.ErrClosed], and
// [ErrFault] if some of the memory is not there; the bytes before it are copied. If
// p is empty, ReadAt returns 0 and nil at any offset that is not negative.
func (s *Segment) ReadAt(p []byte, off int64) (n int, err error) {
	if s == nil {
		return s.readGated(p, off)
	}
	if h := s.h; h.quick() && len(p) <= short && off >= 0 {
		n, size := h.tryRead(p, off)
		runtime.KeepAlive(h)
		if n == len(p) {
			return n, nil
		}
		if size >= 0 {
			return n, io.EOF
		}
	}
	return s.readGated(p, off)
}

// short is the largest number of bytes that is copied without passing the gate.
// For longer copies the gate is some hundredths of the time, and it lets a copy
// complete that Close would otherwise interrupt.
const short = 16 << 10

// readGated is ReadAt through the gate. The first short read decides whether later
// ones need the gate.
func (s *Segment) readGated(p []byte, off int64) (n int, err error) {
	h, token, err := s.enter("read")
	if err != nil {
		return 0, err
	}
	defer h.leave(token)
	if len(p) <= short {
		h.decideQuick()
	}
	n, err = h.readAt(p, off)
	if err != nil {
		err = pathError("read", h.name, err)
	}
	return n, err
}

// WriteAt implements [io.WriterAt]. It copies p to the block, from offset off on,
// and returns how many bytes it has copied. It raises Size if the bytes end beyond
// it; bytes between the old Size and off are zero. Bytes that do not fit below Cap
// are not written, and the error is then [ErrFull]; if the block is finished, neither
// are those beyond Size, and the error is [ErrFinished].
//
// Other errors are [ErrReadOnly], [fs.ErrInvalid] for a negative offset,
// [fs.ErrClosed], [ErrBusy] if another process keeps truncating the block, and
// [ErrFault] if some of the memory is not there; the bytes before it are written. If p
// is empty, WriteAt changes nothing and does not raise
// Size; it returns [ErrReadOnly] and the error for a negative offset as otherwise.
func (s *Segment) WriteAt(p []byte, off int64) (n int, err error) {
	if s == nil {
		return s.writeGated(p, off)
	}
	if h := s.h; h.quick() && 0 < len(p) && len(p) <= short && off >= 0 && !h.readOnly && h.active.Load() {
		ok := off <= int64(len(h.data)-len(p)) && h.tryWrite(p, off, 0, 0) == nil
		runtime.KeepAlive(h)
		if ok {
			return len(p), nil
		}
	}
	return s.writeGated(p, off)
}

func (s *Segment) writeGated(p []byte, off int64) (n int, err error) {
	h, token, err := s.enter("write")
	if err != nil {
		return 0, err
	}
	defer h.leave(token)
	if len(p) <= short {
		h.decideQuick()
	}
	n, err = h.writeAt(p, off)
	if err != nil {
		err = pathError("write", h.name, err)
	}
	return n, err
}

// Read implements [io.Reader]. It reads at the offset and advances it. The errors
// are those of [Segment.ReadAt]; io.EOF comes with no bytes.
func (s *Segment) Read(p []byte) (n int, err error) {
	if s == nil || s.h == nil {
		return s.ReadAt(p, 0) // returns the error
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	n, err = s.ReadAt(p, s.h.off)
	s.h.off += int64(n)
	if n > 0 && err == io.EOF {
		err = nil // the next call returns it
	}
	return n, err
}

// Write implements [io.Writer]. It writes at the offset and advances it. The errors
// are those of [Segment.WriteAt].
func (s *Segment) Write(p []byte) (n int, err error) {
	if s == nil || s.h == nil {
		return s.WriteAt(p, 0) // returns the error
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	n, err = s.WriteAt(p, s.h.off)
	s.h.off += int64(n)
	return n, err
}

// WriteString implements [io.StringWriter]. It is Write for the bytes of str, which
// it does not copy first. The errors are those of [Segment.WriteAt].
func (s *Segment) WriteString(str string) (n int, err error) {
	return s.Write(raw.Bytes(str))
}

// ReadByte implements [io.ByteReader]. It returns the byte at the offset and
// advances it. The errors are those of [Segment.ReadAt], [io.EOF] at Size among
// them; the byte is 0 then.
func (s *Segment) ReadByte() (byte, error) {
	var b [1]byte
	_, err := s.Read(b[:])
	return b[0], err
}

// WriteByte implements [io.ByteWriter]. It writes c at the offset and advances it.
// The errors are those of [Segment.WriteAt], [ErrFull] at Cap among them.
func (s *Segment) WriteByte(c byte) error {
	_, err := s.Write([]byte{c})
	return err
}

// Seek implements [io.Seeker]. It sets the offset of Read, Write and the methods
// that build on them, and returns it. [io.SeekEnd] counts from Size at this moment.
// An offset beyond Size, or beyond Cap, is allowed: a Read there returns [io.EOF].
// The error is [fs.ErrInvalid] if the new offset would be negative or too large, or
// for an unknown whence, [fs.ErrClosed], or [ErrFault] with SeekEnd.
func (s *Segment) Seek(offset int64, whence int) (off int64, err error) {
	err = s.use("seek", func(h *handle) error {
		off, err = h.seek(offset, whence)
		return pathError("seek", h.name, err)
	})
	return off, err
}

func (h *handle) seek(offset int64, whence int) (int64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var base int64
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		base = h.off
	case io.SeekEnd:
		var err error
		if base, err = h.size(); err != nil {
			return 0, err
		}
	default:
		return 0, fmt.Errorf("%w: whence %d: must be 0, 1 or 2", fs.ErrInvalid, whence)
	}
	if base+offset < 0 { // also if the sum overflows, because base is not negative
		return 0, fmt.Errorf("%w: offset %d from %d: must be 0 to %d", fs.ErrInvalid, offset, base, int64(math.MaxInt64))
	}
	h.off = base + offset
	return h.off, nil
}

// readAt implements ReadAt and Read. One deferred recover covers the header and the
// data: after the gate it is the largest cost of a short read.
func (a *attachment) readAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("%w: offset %d: must be at least 0", fs.ErrInvalid, off)
	}
	if len(p) == 0 {
		return 0, nil
	}
	size := int64(-1)
	if !a.hollow {
		n, size = a.tryRead(p, off)
	}
	if size < 0 {
		if size, err = a.size(); err != nil {
			return 0, err // the header is lost
		}
		n, err = a.readAround(p[:max(min(int64(len(p)), size-off), 0)], off)
	}
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// writeAt implements WriteAt and Write.
func (a *attachment) writeAt(p []byte, off int64) (n int, err error) {
	if a.readOnly {
		return 0, ErrReadOnly
	}
	if off < 0 {
		return 0, fmt.Errorf("%w: offset %d: must be at least 0", fs.ErrInvalid, off)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := a.beWriter(); err != nil {
		return 0, err
	}
	if room := int64(len(a.data)) - off; int64(len(p)) > room {
		p, err = p[:max(room, 0)], ErrFull
	}
	const tries = 100 // another process truncates all the time
	for range tries {
		if len(p) == 0 {
			return 0, err
		}
		n, tryErr := a.writeOnce(p, off)
		switch tryErr {
		case nil:
			return n, err
		case errMoved: // what was copied may have been cleared: again
		case errCut:
			if err := a.clearCut(); err != nil {
				return 0, err
			}
		case ErrFinished:
			p, err = p[:max(min(a.finalSize()-off, int64(len(p))), 0)], ErrFinished
		default:
			return n, tryErr
		}
	}
	return 0, ErrBusy
}

// writeOnce writes p, which fits, by the fastest way that works.
func (a *attachment) writeOnce(p []byte, off int64) (n int, err error) {
	var size sizeWord
	end := off + int64(len(p))
	if len(p) > short && a.fresh(end) {
		n, size = a.writeFresh(p, off)
	}
	if err := a.tryWrite(p, off, n, size); err != ErrFault {
		return len(p), err
	}
	if size, err = a.begin(end); err != nil {
		return 0, err
	}
	put, fault := a.writeAround(p[n:], off+int64(n))
	n += put
	if err := a.publish(size, off+int64(n)); err != nil && fault == nil {
		fault = err
	}
	return n, fault
}

// writeFresh writes by the file. It returns how many bytes it has written and the
// size that the block had before.
func (a *attachment) writeFresh(p []byte, off int64) (n int, size sizeWord) {
	end := off + int64(len(p))
	if raw.Within(p, a.mem) || !a.reaches(end) || a.announce(end) != nil {
		return 0, 0
	}
	size, err := a.begin(end)
	if err != nil {
		return 0, 0 // tryWrite finds the same
	}
	n, _ = a.around(p, a.start+off, a.file.WriteAt)
	a.warm(off + int64(n))
	return n, size
}

// tryWrite copies p, which fits, to the mapping. The caller has written the first n
// bytes, when the block had the given size. The error is ErrFault, ErrFinished, errCut,
// or errMoved if a concurrent Truncate may have cleared what was copied.
func (a *attachment) tryWrite(p []byte, off int64, n int, size sizeWord) (err error) {
	err = ErrFault
	before := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(before)
		if err == ErrFault {
			a.faultAt(recover())
		}
	}()
	h, end := a.head, uint64(off)+uint64(len(p))
	if n == 0 {
		raise(h.written(), end)
		size = h.loadSize()
		if err := size.raisable(end); err != nil {
			return err
		}
	}
	copy(a.data[off:][n:], p[n:])
	return a.raise(size, end)
}

// announce raises written to end, before bytes up to there are written.
func (a *attachment) announce(end int64) error {
	return a.words(func(h header) { raise(h.written(), uint64(end)) })
}
