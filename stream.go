package shm

// ReadFrom and WriteTo, and their fast paths.

import (
	"cmp"
	"errors"
	"hash"
	"io"
	"net"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

var (
	errInvalidRead  = errors.New("shm: reader returned invalid count from Read")
	errInvalidWrite = errors.New("shm: writer returned invalid count from Write")

	// errNotPollable is a descriptor that would block a whole thread, and the
	// memory with it, for as long as the other side likes.
	errNotPollable = errors.New("shm: descriptor is in blocking mode")
)

// buffers stand between the block and Readers and Writers that are not known to
// leave its memory alone. They fit the second-level cache of common processors.
var buffers = sync.Pool{New: func() any {
	b := make([]byte, 128<<10)
	return &b
}}

// WriteTo implements [io.WriterTo]: it writes the block to w from the offset
// on, until it reaches Size as it then is. [io.Copy] from a Segment comes here.
//
// A w that is an [*os.File], a [*net.TCPConn] or a [*net.UnixConn] is written
// to straight from the block's memory, and a hash of the standard library reads
// that itself; any other gets the bytes in pieces of 128 KiB, from a buffer, so
// that it need not be trusted with the memory. The buffer given to [io.CopyBuffer]
// is not used. The block can be closed while w blocks; WriteTo then returns
// [fs.ErrClosed] when w is done.
func (s *Segment) WriteTo(w io.Writer) (n int64, err error) {
	if c := rawConn(w); c != nil {
		n, err = s.writeToConn(c)
		if !errors.Is(err, errNotPollable) {
			return n, err
		}
	}
	if isHash(w) {
		return s.writeToHash(w)
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
// while r blocks; ReadFrom then returns [fs.ErrClosed] when r is done.
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
	if p := packageOf(v); p != "os" && p != "net" {
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
	left, limited := limit, limit >= 0
	var got int
	var failure error
	read := func(fd uintptr) bool {
		most := int64(mostAtOnce)
		if limited {
			most = min(most, left)
		}
		got, failure = s.fill(fd, most)
		return failure != errWouldBlock
	}
	return untilEOF(func() (int, error) {
		if limited && left == 0 {
			return 0, io.EOF
		}
		got, failure = 0, nil // read may not be called
		err := c.Read(read)
		left -= int64(got)
		return got, cmp.Or(err, failure)
	})
}

// untilEOF has step move bytes until there are no more, which it says by io.EOF,
// and returns how many there were.
func untilEOF(step func() (int, error)) (n int64, err error) {
	for {
		moved, err := step()
		n += int64(moved)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
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
	if n, err = h.receive(fd, room); n > 0 {
		h.off += int64(n)
		if unpublished := h.publishSize(h.off); err == nil {
			err = unpublished
		}
	}
	if errors.Is(err, ErrFault) {
		err = pathError("write", h.name, h.faultReason(h.start+h.off))
	}
	return n, err
}

// receive reads from fd into room, the part of the data at the offset, by the
// road that is faster; see fresh.
func (h *handle) receive(fd uintptr, room []byte) (n int, err error) {
	end := h.off + int64(len(room))
	if !h.fresh(end) || !h.reaches(end) {
		return readFD(fd, room)
	}
	if n, err = h.file.ReceiveFrom(fd, h.start+h.off, len(room)); n > 0 {
		h.warm(h.off + int64(n))
		return n, nil
	}
	if err == nil { // it is a file, but that failed or found the end
		return readFD(fd, room)
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	got, err := readFD(fd, (*buf)[:min(len(*buf), len(room))])
	if got == 0 {
		return 0, err
	}
	return h.writeAt((*buf)[:got], h.off)
}

// writeToConn writes from the mapping to the descriptor, as readFromConn reads.
func (s *Segment) writeToConn(c syscall.RawConn) (n int64, err error) {
	var put int
	var failure error
	write := func(fd uintptr) bool {
		put, failure = s.drain(fd)
		return failure != errWouldBlock
	}
	return untilEOF(func() (int, error) {
		put, failure = 0, nil // write may not be called
		err := c.Write(write)
		return put, cmp.Or(err, failure)
	})
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
	part, err := h.next()
	if err != nil {
		return 0, err
	}
	write := func(p []byte) (int, error) { return writeFD(fd, p) }
	if err = ErrFault; !h.hollow {
		n, err = write(part)
	}
	if errors.Is(err, ErrFault) {
		n, err = h.aroundMapping(part, write)
	}
	h.off += int64(n)
	return n, err
}

// next returns bytes from the offset on, io.EOF meaning that there are none.
func (h *handle) next() ([]byte, error) {
	size, err := h.size()
	if err != nil {
		return nil, pathError("read", h.name, err)
	}
	if h.off >= size {
		return nil, io.EOF
	}
	return h.data[h.off:min(size, h.off+mostAtOnce)], nil
}

// isHash reports whether w is a hash of the standard library that is known to
// leave the bytes alone and not to keep them.
func isHash(w io.Writer) bool {
	if _, ok := w.(hash.Hash); !ok {
		return false
	}
	dir, name := path.Split(packageOf(w))
	return (strings.HasPrefix(dir, "hash/") || strings.HasPrefix(dir, "crypto/")) &&
		slices.Contains([]string{"adler32", "crc32", "crc64", "fnv", "maphash", "md5", "sha1", "sha256", "sha3", "sha512"}, name)
}

// writeToHash has w read from the mapping.
func (s *Segment) writeToHash(w io.Writer) (n int64, err error) {
	return untilEOF(func() (int, error) { return s.hashNext(w) })
}

// hashNext has w read bytes from the offset on, io.EOF meaning that there are none.
func (s *Segment) hashNext(w io.Writer) (n int, err error) {
	h, token, err := s.enter("read")
	if err != nil {
		return 0, err
	}
	defer h.leave(token)
	h.mu.Lock()
	defer h.mu.Unlock()
	part, err := h.next()
	if err != nil {
		return 0, err
	}
	// A fault in the middle of Write would spoil the hash. So all pages are
	// looked at before; one that is lost after that ends it with ErrFault.
	if err = ErrFault; !h.hollow {
		err = h.guard(func() error { return touch(part) })
	}
	if err != nil {
		n, err = h.aroundMapping(part, w.Write)
	} else if err = h.guard(func() error { n, err = w.Write(part); return err }); err != nil {
		err = pathError("read", h.name, err)
	}
	h.off += int64(n)
	return n, err
}

// touch reads a byte of every page of p.
func touch(p []byte) error {
	var sum byte
	for i := 0; i < len(p); i += minHeaderSize { // which no page is smaller than
		sum += p[i]
	}
	sum += p[len(p)-1]
	touched.Store(uint32(sum))
	return nil
}

var touched atomic.Uint32 // or the compiler would leave out the reading

// aroundMapping writes bytes of part, which faulted or could; see readAround.
func (h *handle) aroundMapping(part []byte, write func([]byte) (int, error)) (int, error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	got, err := h.readAround((*buf)[:min(len(*buf), len(part))], h.off)
	if got == 0 {
		return 0, pathError("read", h.name, err)
	}
	return write((*buf)[:got])
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
