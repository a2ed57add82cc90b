package shm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"reflect"
	"sync"
	"syscall"

	"github.com/shmkit/shm/internal/raw"
)

// ReadAt implements [io.ReaderAt]: it copies the bytes of the block from offset
// off on into p. It returns [io.EOF] if Size comes before the end of p,
// [fs.ErrInvalid] for a negative offset, [fs.ErrClosed], or [ErrFault] with the
// number of bytes that could be copied.
func (s *Segment) ReadAt(p []byte, off int64) (n int, err error) {
	h, token, err := s.enter("read")
	if err != nil {
		return 0, err
	}
	defer h.leave(token)
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
func (s *Segment) WriteAt(p []byte, off int64) (n int, err error) {
	h, token, err := s.enter("write")
	if err != nil {
		return 0, err
	}
	defer h.leave(token)
	n, err = h.writeAt(p, off)
	if err != nil {
		err = pathError("write", h.name, err)
	}
	return n, err
}

// Read implements [io.Reader], from the offset. Errors are those of
// [Segment.ReadAt].
func (s *Segment) Read(p []byte) (n int, err error) {
	h, token, err := s.enter("read")
	if err != nil {
		return 0, err
	}
	defer h.leave(token)
	n, err = h.readNext(p)
	if n > 0 && err == io.EOF {
		err = nil // the next call finds it
	}
	return n, pathError("read", h.name, err)
}

// Write implements [io.Writer], at the offset. Errors are those of
// [Segment.WriteAt].
func (s *Segment) Write(p []byte) (n int, err error) {
	h, token, err := s.enter("write")
	if err != nil {
		return 0, err
	}
	defer h.leave(token)
	n, err = h.writeNext(p)
	return n, pathError("write", h.name, err)
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

// WriteTo implements [io.WriterTo]: it writes the block to w from the offset
// on, until it reaches Size as it then is. [io.Copy] from a Segment comes here.
//
// A w that is an [*os.File], a [*net.TCPConn] or a [*net.UnixConn] is written
// to straight from the block's memory; any other gets the bytes in pieces, from
// a buffer, so that it need not be trusted with the memory itself. The block
// can be closed while w blocks; WriteTo then returns [fs.ErrClosed].
func (s *Segment) WriteTo(w io.Writer) (n int64, err error) {
	if c := rawConn(w); c != nil {
		n, err = s.writeToConn(c)
		if !errors.Is(err, errNotPollable) {
			return n, err
		}
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for {
		got, readErr := s.Read(*buf)
		if got > 0 {
			put, err := w.Write((*buf)[:got])
			if put < 0 || put > got {
				put, err = 0, errInvalidWrite
			}
			n += int64(put)
			if err == nil && put < got {
				err = io.ErrShortWrite
			}
			if err != nil {
				s.unread(got - put)
				return n, err
			}
		}
		if readErr == io.EOF {
			return n, nil
		}
		if readErr != nil {
			return n, readErr
		}
	}
}

// ReadFrom implements [io.ReaderFrom]: it writes what it reads from r at the
// offset, until r returns [io.EOF]. [io.Copy] to a Segment comes here. Size is
// raised as the bytes come in, so other processes can read along.
//
// An r that is an [*os.File], a [*net.TCPConn] or a [*net.UnixConn], or an
// [io.LimitedReader] of one, is read straight into the block's memory; from any
// other the bytes come in pieces, through a buffer. The block can be closed
// while r blocks; ReadFrom then returns [fs.ErrClosed].
//
// If r has more bytes than there is room for up to Cap, the error is [ErrFull];
// some of the bytes that did not fit have then been taken from r.
func (s *Segment) ReadFrom(r io.Reader) (n int64, err error) {
	h, token, err := s.enter("write")
	if err != nil {
		return 0, err
	}
	h.leave(token)
	if h.readOnly { // nothing must be taken from r
		return 0, pathError("write", h.name, ErrReadOnly)
	}
	limit := int64(-1)
	src := r
	lr, limited := r.(*io.LimitedReader)
	if limited {
		src, limit = lr.R, max(lr.N, 0)
	}
	if c := rawConn(src); c != nil {
		n, err = s.readFromConn(c, limit)
		if limited {
			lr.N -= n
			if errors.Is(err, ErrFull) {
				lr.N-- // the byte that told that there are more
			}
		}
		if !errors.Is(err, errNotPollable) {
			return n, err
		}
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for empty := 0; ; {
		got, err := r.Read(*buf)
		if got < 0 || got > len(*buf) {
			return n, errInvalidRead
		}
		if got > 0 {
			empty = 0
			put, werr := s.Write((*buf)[:got])
			n += int64(put)
			if werr != nil {
				return n, werr
			}
		} else if empty++; empty > 100 && err == nil {
			err = io.ErrNoProgress
		}
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

var (
	errInvalidRead  = errors.New("shm: reader returned invalid count from Read")
	errInvalidWrite = errors.New("shm: writer returned invalid count from Write")

	// errNotPollable is a descriptor that would block a whole thread, and the
	// memory with it, for as long as the other side likes.
	errNotPollable = errors.New("shm: descriptor is in blocking mode")

	// errWouldBlock is a descriptor without bytes, or without room for any.
	errWouldBlock = errors.New("shm: descriptor is not ready")
)

// buffers stand between the block and Readers and Writers that are not known to
// leave its memory alone. They fit the second-level cache of common processors.
var buffers = sync.Pool{New: func() any {
	b := make([]byte, 128<<10)
	return &b
}}

// rawConn returns the descriptor under v if nothing is known to stand between
// reading or writing v and it: v is a file or a stream of package os or net.
// io.Copy hides some methods of these in types that have no exported name, so
// it is the package that counts. A type of the program's own that embeds one can
// have methods of its own, so it is not of them.
func rawConn(v any) syscall.RawConn {
	conn, ok := v.(syscall.Conn)
	if !ok {
		return nil
	}
	t := reflect.TypeOf(v)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if p := t.PkgPath(); p != "os" && p != "net" {
		return nil
	}
	if c, ok := v.(net.Conn); ok {
		addr := c.LocalAddr() // nil if it is not connected
		if addr == nil || addr.Network() != "tcp" && addr.Network() != "unix" {
			return nil // datagrams: a read of none is not the end
		}
	}
	c, err := conn.SyscallConn()
	if err != nil {
		return nil // nil or closed; the ordinary way says so properly
	}
	return c
}

// mostAtOnce bounds one system call on a mapping, so that Size follows what is
// read and nobody waits for the offset too long.
const mostAtOnce = 1 << 20

// readFromConn reads from the descriptor into the mapping, limit bytes at most
// unless it is negative. The waiting for bytes is done in RawConn.Read, between
// calls of the function, so nothing of the Segment is held meanwhile.
func (s *Segment) readFromConn(c syscall.RawConn, limit int64) (n int64, err error) {
	for limit < 0 || n < limit {
		var got int
		var failure error
		err := c.Read(func(fd uintptr) bool {
			most := int64(mostAtOnce)
			if limit >= 0 {
				most = min(most, limit-n)
			}
			got, failure = s.fill(fd, most)
			return failure != errWouldBlock
		})
		n += int64(got)
		switch {
		case err != nil:
			return n, err
		case failure == io.EOF:
			return n, nil
		case failure != nil:
			return n, failure
		}
	}
	return n, nil
}

// fill reads at most most bytes from fd to the offset.
func (s *Segment) fill(fd uintptr, most int64) (n int, err error) {
	h, token, err := s.enter("write")
	if err != nil {
		return 0, err
	}
	defer h.leave(token)
	h.mu.Lock()
	defer h.mu.Unlock()
	if !pollable(fd) {
		return 0, errNotPollable
	}
	room := h.data[min(h.off, int64(len(h.data))):]
	if len(room) == 0 {
		// Only reading can tell whether this is the end.
		var one [1]byte
		if _, err = readFD(fd, one[:]); err == nil {
			err = pathError("write", h.name, ErrFull)
		}
		return 0, err
	}
	room = room[:min(int64(len(room)), most)]
	if err := h.announce(h.off + int64(len(room))); err != nil {
		return 0, pathError("write", h.name, err)
	}
	if n, err = readFD(fd, room); n > 0 {
		h.off += int64(n)
		err = h.publishSize(h.off)
	}
	if errors.Is(err, ErrFault) {
		err = pathError("write", h.name, h.faultReason(int64(h.layout.headerSize)+h.off))
	}
	return n, err
}

// writeToConn writes from the mapping to the descriptor, as readFromConn reads.
func (s *Segment) writeToConn(c syscall.RawConn) (n int64, err error) {
	for {
		var put int
		var failure error
		err := c.Write(func(fd uintptr) bool {
			put, failure = s.drain(fd)
			return failure != errWouldBlock
		})
		n += int64(put)
		switch {
		case err != nil:
			return n, err
		case failure == io.EOF:
			return n, nil
		case failure != nil:
			return n, failure
		}
	}
}

// drain writes bytes from the offset on to fd, io.EOF meaning that there are none.
func (s *Segment) drain(fd uintptr) (n int, err error) {
	h, token, err := s.enter("read")
	if err != nil {
		return 0, err
	}
	defer h.leave(token)
	h.mu.Lock()
	defer h.mu.Unlock()
	if !pollable(fd) {
		return 0, errNotPollable
	}
	size, err := h.size()
	if err != nil {
		return 0, pathError("read", h.name, err)
	}
	if h.off >= size {
		return 0, io.EOF
	}
	part := h.data[h.off:min(size, h.off+mostAtOnce)]
	n, err = writeFD(fd, part)
	if errors.Is(err, ErrFault) {
		n, err = h.drainAround(fd, part)
	}
	h.off += int64(n)
	return n, err
}

// drainAround is drain for bytes that faulted; see readAround.
func (h *handle) drainAround(fd uintptr, part []byte) (int, error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	got, err := h.readAround((*buf)[:min(len(*buf), len(part))], h.off)
	if got == 0 {
		return 0, pathError("read", h.name, err)
	}
	return writeFD(fd, (*buf)[:got])
}

// unread takes the offset back by n bytes that were read and not delivered.
func (s *Segment) unread(n int) {
	if h, token, err := s.enter("seek"); err == nil {
		h.mu.Lock()
		h.off = max(h.off-int64(n), 0)
		h.mu.Unlock()
		h.leave(token)
	}
}

func (h *handle) readNext(p []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, err = h.readAt(p, h.off)
	h.off += int64(n)
	return n, err
}

func (h *handle) writeNext(p []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, err = h.writeAt(p, h.off)
	h.off += int64(n)
	return n, err
}

// readAt is what all reading comes down to. One trap covers the header and the
// data, because setting it is what a short read costs most after the gate.
func (a *attachment) readAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("%w: offset %d", fs.ErrInvalid, off)
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, size, err := a.tryRead(p, off)
	if err == ErrFault {
		if size < 0 { // it was the header
			return 0, a.faultReason(0)
		}
		if n, err = a.readAround(p[:min(int64(len(p)), size-off)], off); err == nil && n < len(p) {
			err = io.EOF
		}
	}
	return n, err
}

func (a *attachment) tryRead(p []byte, off int64) (n int, size int64, err error) {
	size = -1
	var t trap
	t.begin()
	defer t.end(a.mem, &err)
	size = a.loadSize()
	if off < size {
		n = copy(p, a.data[off:size])
	}
	if n < len(p) {
		err = io.EOF
	}
	t.done = true
	return n, size, err
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
	if fault := a.tryWrite(room, p, off); fault != nil {
		n, fault = a.writeAround(p, off)
		if n > 0 {
			a.publishSize(off + int64(n))
		}
		if fault != nil {
			return n, fault
		}
	}
	return len(p), err
}

func (a *attachment) tryWrite(room, p []byte, off int64) (err error) {
	var t trap
	t.begin()
	defer t.end(a.mem, &err)
	if a.raw {
		copy(room, p)
	} else {
		header(a.mem).write(room, p, uint64(off)+uint64(len(p)))
	}
	t.done = true
	return nil
}

// write copies p to room, which it fills up to offset end of the data, and
// raises size to end. A truncation at the same time may have cleared what was
// copied: it has then lowered size already, or will find it raised and begin
// again. So size is raised only from what it was all the time, unless somebody
// lowers it again and again.
func (h header) write(room, p []byte, end uint64) {
	raise(h.written(), end)
	size := h.size().Load()
	for range 100 {
		copy(room, p)
		now := h.size().Load()
		for now >= size && now < end && !h.size().CompareAndSwap(now, end) {
			now = h.size().Load()
		}
		if now >= size {
			return
		}
		size = now
	}
	raise(h.size(), end)
}

// announce notes that bytes below end are about to be written.
func (a *attachment) announce(end int64) error {
	if a.raw {
		return nil
	}
	return a.words(func(h header) { raise(h.written(), uint64(end)) })
}

// publishSize makes bytes below end, which have been written, part of the block.
func (a *attachment) publishSize(end int64) error {
	if a.raw {
		return nil
	}
	return a.words(func(h header) { raise(h.size(), uint64(end)) })
}
