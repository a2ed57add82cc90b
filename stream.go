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

	// errNotPollable is returned for a descriptor in blocking mode. A system call
	// on it could hold the memory of a closed Segment for as long as the peer likes.
	errNotPollable = errors.New("shm: descriptor is in blocking mode")
)

// buffers are for Readers and Writers that may not get the memory of the block
// itself. Their size fits the second-level cache of common processors.
var buffers = sync.Pool{New: func() any {
	b := make([]byte, 128<<10)
	return &b
}}

// WriteTo implements [io.WriterTo]. It writes the bytes of the block, from the
// offset to Size, to w, advances the offset and returns how many it has written.
// Bytes that are appended meanwhile are written as well. [io.Copy] from a Segment
// calls WriteTo.
//
// If w is an [*os.File], a [*net.TCPConn] or a [*net.UnixConn], the system copies
// from the block's memory; a hash of the standard library reads it directly. Any
// other Writer gets the bytes in pieces of up to 128 KiB from a buffer, because it
// could keep or change what it is given. The buffer of [io.CopyBuffer] is not used.
//
// The error is that of w, [io.ErrShortWrite], or one of [Segment.ReadAt] other than
// io.EOF. Nothing of the Segment is held while w blocks: it can be closed meanwhile,
// and WriteTo then returns [fs.ErrClosed] when w returns.
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

// ReadFrom implements [io.ReaderFrom]. It reads from r until r returns [io.EOF],
// writes the bytes at the offset, advances it and returns how many it has written.
// Size is raised as the bytes arrive, so other processes can read them. [io.Copy] to
// a Segment calls ReadFrom.
//
// If r is an [*os.File], a [*net.TCPConn] or a [*net.UnixConn], or an
// [io.LimitedReader] of one, the system copies into the block's memory. The bytes
// of any other Reader go through a buffer.
//
// If r has more bytes than fit below Cap, the error is [ErrFull]; some of the bytes
// that do not fit have then been read from r. It is [ErrTruncated] if the block is
// truncated while the system copies. Other errors are that of r, [io.ErrNoProgress], and
// those of [Segment.WriteAt]. If the Segment is [ReadOnly]
// nothing is read. Nothing of the Segment is held while r blocks: it can be closed
// meanwhile, and ReadFrom then returns [fs.ErrClosed] when r returns.
func (s *Segment) ReadFrom(r io.Reader) (n int64, err error) {
	h, token, err := s.enter("write")
	if err != nil {
		return 0, err
	}
	err = ErrReadOnly // before anything is read from r
	if !h.readOnly {
		err = h.beWriter()
	}
	h.leave(token)
	if err != nil {
		return 0, pathError("write", h.name, err)
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
				lr.N-- // the byte that was read to see that there are more
			}
		}
		if !errors.Is(err, errNotPollable) {
			return n, err
		}
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	empty := 0 // reads in a row that returned nothing
	return untilEOF(func() (int, error) {
		got, err := r.Read(*buf)
		if got < 0 || got > len(*buf) {
			return 0, errInvalidRead
		}
		if got == 0 {
			if empty++; empty > 100 && err == nil {
				err = io.ErrNoProgress
			}
			return 0, err
		}
		empty = 0
		put, writeErr := s.Write((*buf)[:got])
		return put, cmp.Or(writeErr, err)
	})
}

// rawConn returns the descriptor of v if v is a file or a stream of package os or
// net, and nil otherwise. It goes by the package of v's type, because io.Copy wraps
// these in unexported types. A type of the program that embeds one may have Read and
// Write methods of its own.
func rawConn(v any) syscall.RawConn {
	conn, ok := v.(syscall.Conn)
	if !ok {
		return nil
	}
	if p := packageOf(v); p != "os" && p != "net" {
		return nil
	}
	if c, ok := v.(net.Conn); ok {
		addr := c.LocalAddr() // nil without a connection
		if addr == nil || addr.Network() != "tcp" && addr.Network() != "unix" {
			return nil // datagrams, where a read of 0 bytes is not the end
		}
	}
	c, err := conn.SyscallConn()
	if err != nil {
		return nil // v is nil or closed; its own Read or Write returns the error
	}
	return c
}

// mostAtOnce bounds one system call on a mapping, so that Size follows the bytes
// that arrive and other calls do not wait for the offset too long.
const mostAtOnce = 1 << 20

// readFromConn reads from the descriptor into the mapping, at most limit bytes
// unless limit is negative.
func (s *Segment) readFromConn(c syscall.RawConn, limit int64) (n int64, err error) {
	return untilEOF(func() (int, error) {
		most := int64(mostAtOnce)
		if limit >= 0 {
			most = min(most, limit-n)
		}
		if most == 0 {
			return 0, io.EOF
		}
		got, err := s.poll(c.Read, "write", func(h *handle, fd uintptr) (int, error) { return h.fill(fd, most) })
		n += int64(got)
		return got, err
	})
}

// poll calls move, which moves bytes at the offset, when wait has found a descriptor
// ready. Nothing of the Segment is held while it waits.
func (s *Segment) poll(wait func(func(fd uintptr) bool) error, op string, move func(h *handle, fd uintptr) (int, error)) (n int, err error) {
	waitErr := wait(func(fd uintptr) bool {
		n, err = s.atOffset(op, func(h *handle) (int, error) { return move(h, fd) })
		return err != errWouldBlock
	})
	return n, cmp.Or(waitErr, err)
}

// untilEOF calls step, which moves bytes, until it returns an error. It returns the
// number of bytes moved, and nil for io.EOF.
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

// atOffset calls move, which moves bytes at the offset, and moves the offset by as
// many.
func (s *Segment) atOffset(op string, move func(h *handle) (int, error)) (n int, err error) {
	err = s.use(op, func(h *handle) error {
		h.mu.Lock()
		defer h.mu.Unlock()
		n, err = move(h)
		h.off += int64(n)
		return err
	})
	return n, err
}

// fill reads at most most bytes from fd to the offset.
func (h *handle) fill(fd uintptr, most int64) (n int, err error) {
	if !pollable(fd) {
		return 0, errNotPollable
	}
	room := h.data[min(h.off, int64(len(h.data))):]
	room = room[:min(int64(len(room)), most)]
	size, err := h.begin(h.off + int64(len(room)))
	if err == ErrFinished {
		room = room[:max(min(int64(size.length())-h.off, int64(len(room))), 0)]
	} else if err != nil {
		return 0, pathError("write", h.name, err)
	}
	if len(room) == 0 {
		// Only a read can tell whether r is at its end.
		var one [1]byte
		full := cmp.Or(err, ErrFull)
		if _, err = readFD(fd, one[:]); err == nil {
			err = pathError("write", h.name, full)
		}
		return 0, err
	}
	if err := h.announce(h.off + int64(len(room))); err != nil {
		return 0, pathError("write", h.name, err)
	}
	if n, err = h.receive(fd, room); n > 0 {
		err = cmp.Or(err, h.received(size, n))
	}
	if errors.Is(err, ErrFault) {
		err = pathError("write", h.name, h.faultReason(h.start+h.off+int64(n)))
	}
	return n, err
}

// received raises size after n bytes were received at the offset. What a Truncate has
// cleared meanwhile is lost: the reader has no copy.
func (h *handle) received(size sizeWord, n int) error {
	err := h.publish(size, h.off+int64(n))
	if err == errMoved {
		err = ErrTruncated
	}
	return pathError("write", h.name, err)
}

// receive reads from fd into room, the data at the offset, by the faster of two
// paths; see fresh.
func (h *handle) receive(fd uintptr, room []byte) (n int, err error) {
	end := h.off + int64(len(room))
	if !h.fresh(end) || !h.reaches(end) {
		return readFD(fd, room)
	}
	if n, err = h.file.ReceiveFrom(fd, h.start+h.off, len(room)); n > 0 {
		h.warm(h.off + int64(n))
		return n, nil
	}
	if err == nil { // fd is a file at its end, or one that cannot be moved this way
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

// writeToConn writes from the mapping to the descriptor.
func (s *Segment) writeToConn(c syscall.RawConn) (n int64, err error) {
	return untilEOF(func() (int, error) { return s.poll(c.Write, "read", (*handle).drain) })
}

// drain writes bytes at the offset to fd. It returns io.EOF if there are none.
func (h *handle) drain(fd uintptr) (n int, err error) {
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
	return n, err
}

// next returns bytes at the offset, or io.EOF if there are none.
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

// isHash reports whether w is a hash of the standard library that neither changes
// nor keeps the bytes that it is given.
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
	return untilEOF(func() (int, error) {
		return s.atOffset("read", func(h *handle) (int, error) { return h.hashNext(w) })
	})
}

// hashNext has w read bytes at the offset. It returns io.EOF if there are none.
func (h *handle) hashNext(w io.Writer) (n int, err error) {
	part, err := h.next()
	if err != nil {
		return 0, err
	}
	// A fault in the middle of Write would spoil the hash, so all pages are touched
	// first. A page that is lost after that ends the call with ErrFault.
	if err = ErrFault; !h.hollow {
		err = h.guard(func() error { return touch(part) })
	}
	if err != nil {
		n, err = h.aroundMapping(part, w.Write)
	} else if err = h.guard(func() error { n, err = w.Write(part); return err }); err != nil {
		err = pathError("read", h.name, err)
	}
	return n, err
}

// touch reads a byte of every page of p.
func touch(p []byte) error {
	var sum byte
	for i := 0; i < len(p); i += minHeaderSize { // no page is smaller
		sum += p[i]
	}
	sum += p[len(p)-1]
	touched.Store(uint32(sum))
	return nil
}

var touched atomic.Uint32 // keeps the compiler from removing the reads

// aroundMapping writes bytes of part, which has faulted or could take memory; see
// readAround.
func (h *handle) aroundMapping(part []byte, write func([]byte) (int, error)) (int, error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	got, err := h.readAround((*buf)[:min(len(*buf), len(part))], h.off)
	if got == 0 {
		return 0, pathError("read", h.name, err)
	}
	return write((*buf)[:got])
}

// unread moves the offset back by n bytes that were read and not delivered.
func (s *Segment) unread(n int) {
	s.atOffset("seek", func(h *handle) (int, error) { return -int(min(int64(n), h.off)), nil })
}
