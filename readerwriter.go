package shm

import (
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"runtime/debug"

	"github.com/shmkit/shm/internal/raw"
)

// ReadAt implements [io.ReaderAt]: it copies the bytes of the block from offset
// off on into p. It returns [io.EOF] if Size comes before the end of p,
// [fs.ErrInvalid] for a negative offset, [fs.ErrClosed], or [ErrFault] with the
// number of bytes that could be copied. If p is empty, it returns 0 and nil for
// every other offset, also beyond Size.
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

// short is how many bytes are copied without passing the gate. Above it the gate
// is some hundredths of the time, and a copy that Close overtakes is better
// finished, as one inside the gate is, than given up.
const short = 16 << 10

// readGated is ReadAt for what is not quick, and for the first that could be.
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

// WriteAt implements [io.WriterAt]: it copies p to the bytes of the block from
// offset off on, and raises Size if it ends beyond it; bytes in between are
// zero. What does not fit Cap is not written, and the error is then [ErrFull].
// Other errors are [ErrReadOnly], [fs.ErrInvalid] for a negative offset,
// [fs.ErrClosed], and [ErrFault] with the number of bytes that could be copied.
//
// If p is empty, WriteAt changes nothing, at whatever offset: it does not raise
// Size. It still returns [ErrReadOnly] if the Segment is [ReadOnly].
func (s *Segment) WriteAt(p []byte, off int64) (n int, err error) {
	if s == nil {
		return s.writeGated(p, off)
	}
	if h := s.h; h.quick() && 0 < len(p) && len(p) <= short && off >= 0 && !h.readOnly {
		ok := off <= int64(len(h.data)-len(p)) && h.tryWrite(p, off, 0, 0)
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

// Read implements [io.Reader], from the offset. Errors are those of
// [Segment.ReadAt].
func (s *Segment) Read(p []byte) (n int, err error) {
	if s == nil || s.h == nil {
		return s.ReadAt(p, 0) // says so
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	n, err = s.ReadAt(p, s.h.off)
	s.h.off += int64(n)
	if n > 0 && err == io.EOF {
		err = nil // the next call finds it
	}
	return n, err
}

// Write implements [io.Writer], at the offset. Errors are those of
// [Segment.WriteAt].
func (s *Segment) Write(p []byte) (n int, err error) {
	if s == nil || s.h == nil {
		return s.WriteAt(p, 0) // says so
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	n, err = s.WriteAt(p, s.h.off)
	s.h.off += int64(n)
	return n, err
}

// WriteString implements [io.StringWriter]; it is Write without a copy of s.
func (s *Segment) WriteString(str string) (n int, err error) {
	return s.Write(raw.Bytes(str))
}

// ReadByte implements [io.ByteReader].
func (s *Segment) ReadByte() (byte, error) {
	var b [1]byte
	_, err := s.Read(b[:])
	return b[0], err
}

// WriteByte implements [io.ByteWriter].
func (s *Segment) WriteByte(c byte) error {
	_, err := s.Write([]byte{c})
	return err
}

// Seek implements [io.Seeker]. An offset beyond Size, even beyond Cap, is
// allowed; reading there finds [io.EOF]. [io.SeekEnd] counts from Size as it is
// at this moment. The error is [fs.ErrInvalid] for an offset below zero or an
// unknown whence, [ErrFault], or [fs.ErrClosed].
func (s *Segment) Seek(offset int64, whence int) (int64, error) {
	h, token, err := s.enter("seek")
	if err != nil {
		return 0, err
	}
	defer h.leave(token)
	off, err := h.seek(offset, whence)
	return off, pathError("seek", h.name, err)
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
		return 0, fmt.Errorf("%w: whence %d", fs.ErrInvalid, whence)
	}
	if base+offset < 0 { // also when the sum overflows, for base is not negative
		return 0, fmt.Errorf("%w: offset %d", fs.ErrInvalid, offset)
	}
	h.off = base + offset
	return h.off, nil
}

// readAt implements every read of a few bytes. One trap covers the header and the
// data, because setting it is what a short read costs most after the gate.
func (a *attachment) readAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("%w: offset %d", fs.ErrInvalid, off)
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
			return 0, err // there is no header
		}
		n, err = a.readAround(p[:max(min(int64(len(p)), size-off), 0)], off)
	}
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// writeAt is what all writing comes down to.
func (a *attachment) writeAt(p []byte, off int64) (n int, err error) {
	if a.readOnly {
		return 0, ErrReadOnly
	}
	if off < 0 {
		return 0, fmt.Errorf("%w: offset %d", fs.ErrInvalid, off)
	}
	if len(p) == 0 {
		return 0, nil
	}
	room := a.data[min(off, int64(len(a.data))):]
	if len(p) > len(room) {
		p, err = p[:len(room)], ErrFull
		if len(p) == 0 {
			return 0, err
		}
	}
	var size uint64
	if len(p) > short && a.fresh(off+int64(len(p))) {
		n, size = a.writeFresh(p, off)
	}
	if !a.tryWrite(p, off, n, size) {
		put, fault := a.writeAround(p[n:], off+int64(n))
		n += put
		if n > 0 {
			a.publishSize(off + int64(n))
		}
		if fault != nil {
			return n, fault
		}
	}
	return len(p), err
}

// writeFresh writes by the file, and returns how far it came and the size that
// the block had before.
func (a *attachment) writeFresh(p []byte, off int64) (n int, size uint64) {
	end := off + int64(len(p))
	if raw.Within(p, a.mem) || !a.reaches(end) || a.announce(end) != nil {
		return 0, 0
	}
	if before, err := a.size(); err == nil {
		size = uint64(before)
	}
	for n < len(p) {
		put, err := a.file.WriteAt(raw.Unkept(p[n:]), a.start+off+int64(n))
		if put <= 0 || err != nil {
			break
		}
		n += put
	}
	a.warm(off + int64(n))
	return n, size
}

// tryWrite copies p, which fits, and reports whether there was no fault. The
// first n bytes are there already, since the block had the size given.
func (a *attachment) tryWrite(p []byte, off int64, n int, size uint64) (done bool) {
	before := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(before)
		if !done {
			a.faultAt(recover())
		}
	}()
	room := a.data[off:]
	h, end := a.head, uint64(off)+uint64(len(p))
	if n == 0 {
		raise(h.written(), end)
		size = h.size().Load()
	}
	// A truncation at the same time may clear what was copied. It has then
	// lowered size, or will find it raised and begin again. So size is raised
	// only from what it was all the time, unless it is lowered again and again.
	for range 100 {
		copy(room[n:], p[n:])
		now := h.size().Load()
		for now >= size && now < end && !h.size().CompareAndSwap(now, end) {
			now = h.size().Load()
		}
		if now >= size {
			return true
		}
		size, n = now, 0
	}
	raise(h.size(), end)
	return true
}

// announce notes that bytes below end are about to be written.
func (a *attachment) announce(end int64) error {
	return a.words(func(h header) { raise(h.written(), uint64(end)) })
}

// publishSize makes bytes below end, which have been written, part of the block.
func (a *attachment) publishSize(end int64) error {
	return a.words(func(h header) { raise(h.size(), uint64(end)) })
}
