package shm_test

import (
	"archive/zip"
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"hash/adler32"
	"hash/crc32"
	"hash/crc64"
	"hash/fnv"
	"hash/maphash"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/shmkit/shm"
)

// noise returns n bytes that repeat nowhere.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// filled returns a block of the given cap that holds content.
func filled(t testing.TB, capacity int64, content []byte) *shm.Segment {
	t.Helper()
	seg := block(t, capacity)
	if err := seg.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if _, err := seg.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	return seg
}

type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

type writeFunc func(p []byte) (int, error)

func (f writeFunc) Write(p []byte) (int, error) { return f(p) }

func content(t testing.TB, seg *shm.Segment) []byte {
	t.Helper()
	got, err := io.ReadAll(io.NewSectionReader(seg, 0, math.MaxInt64))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestReader(t *testing.T) {
	for _, n := range []int{0, 1, 1000, 10000} {
		want := noise(n)
		if err := iotest.TestReader(filled(t, 20000, want), want); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
		// Without the methods that io.Copy prefers.
		if err := iotest.TestReader(struct{ io.ReadSeeker }{filled(t, 20000, want)}, want); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestReadAt(t *testing.T) {
	const size, capacity = 100, 200
	want := noise(size)
	seg := filled(t, capacity, want)
	for _, tt := range []struct {
		len int
		off int64
		n   int
		err error
	}{
		{0, 0, 0, nil}, {0, size, 0, nil}, {0, math.MaxInt64, 0, nil},
		{1, 0, 1, nil}, {size, 0, size, nil}, {10, size - 10, 10, nil},
		{size + 1, 0, size, io.EOF}, {11, size - 10, 10, io.EOF},
		{1, size, 0, io.EOF}, {1, capacity, 0, io.EOF}, {1, capacity + 1, 0, io.EOF}, {1, math.MaxInt64, 0, io.EOF},
		{1, -1, 0, fs.ErrInvalid}, {0, -1, 0, fs.ErrInvalid}, {1, math.MinInt64, 0, fs.ErrInvalid},
	} {
		p := make([]byte, tt.len)
		n, err := seg.ReadAt(p, tt.off)
		if n != tt.n || !errors.Is(err, tt.err) {
			t.Errorf("ReadAt(%d bytes, %d) = %d, %v; want %d, %v", tt.len, tt.off, n, err, tt.n, tt.err)
		}
		if n > 0 && !bytes.Equal(p[:n], want[tt.off:tt.off+int64(n)]) {
			t.Errorf("ReadAt(%d bytes, %d) has other bytes", tt.len, tt.off)
		}
	}
	if _, err := seg.ReadAt(make([]byte, 1), size); err != io.EOF {
		t.Errorf("io.EOF is wrapped: %#v", err)
	}
}

func TestWriteAt(t *testing.T) {
	const size, capacity = 100, 200
	for _, tt := range []struct {
		len  int
		off  int64
		n    int
		err  error
		size int64
	}{
		{0, 0, 0, nil, size}, {0, 150, 0, nil, size}, {0, math.MaxInt64, 0, nil, size},
		{10, 0, 10, nil, size}, {10, 90, 10, nil, 100}, {10, 95, 10, nil, 105}, {10, 150, 10, nil, 160},
		{200, 0, 200, nil, 200}, {201, 0, 200, shm.ErrFull, 200}, {10, 195, 5, shm.ErrFull, 200},
		{1, 200, 0, shm.ErrFull, size}, {1, 201, 0, shm.ErrFull, size}, {1, math.MaxInt64, 0, shm.ErrFull, size},
		{1, -1, 0, fs.ErrInvalid, size}, {0, -1, 0, fs.ErrInvalid, size},
	} {
		seg := filled(t, capacity, make([]byte, size))
		p := noise(tt.len)
		n, err := seg.WriteAt(p, tt.off)
		if n != tt.n || !errors.Is(err, tt.err) || seg.Size() != tt.size {
			t.Errorf("WriteAt(%d bytes, %d) = %d, %v, size %d; want %d, %v, %d", tt.len, tt.off, n, err, seg.Size(), tt.n, tt.err, tt.size)
		}
		if errors.Is(err, shm.ErrFull) && (!errors.Is(err, io.ErrShortWrite) || errors.Is(err, io.EOF)) {
			t.Errorf("%v is not io.ErrShortWrite, or is io.EOF", err)
		}
		got := make([]byte, n)
		if n > 0 && (second(seg.ReadAt(got, tt.off)) != nil || !bytes.Equal(got, p[:n])) {
			t.Errorf("WriteAt(%d bytes, %d): other bytes arrived", tt.len, tt.off)
		}
	}
}

func TestSeek(t *testing.T) {
	seg := filled(t, 200, make([]byte, 100))
	seg.Seek(50, io.SeekStart)
	for _, tt := range []struct {
		offset int64
		whence int
		want   int64 // -1: fs.ErrInvalid
	}{
		{0, io.SeekCurrent, 50}, {-50, io.SeekCurrent, 0}, {-1, io.SeekCurrent, -1}, {30, io.SeekCurrent, 30},
		{0, io.SeekEnd, 100}, {-100, io.SeekEnd, 0}, {-101, io.SeekEnd, -1}, {300, io.SeekEnd, 400},
		{math.MaxInt64, io.SeekStart, math.MaxInt64}, {1, io.SeekCurrent, -1}, {math.MaxInt64, io.SeekEnd, -1},
		{math.MinInt64, io.SeekCurrent, -1}, {-1, io.SeekStart, -1}, {0, 3, -1}, {0, -1, -1}, {7, io.SeekStart, 7},
	} {
		before, _ := seg.Seek(0, io.SeekCurrent)
		got, err := seg.Seek(tt.offset, tt.whence)
		switch {
		case tt.want < 0:
			mustFail(t, err, seg.Name(), fs.ErrInvalid)
			if now, _ := seg.Seek(0, io.SeekCurrent); now != before {
				t.Errorf("a Seek that failed moved the offset from %d to %d", before, now)
			}
		case err != nil || got != tt.want:
			t.Errorf("Seek(%d, %d) = %d, %v; want %d", tt.offset, tt.whence, got, err, tt.want)
		}
	}
	seg.Seek(1000, io.SeekStart)
	if n, err := seg.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("Read behind the end: %d, %v", n, err)
	}
	if n, err := seg.Write(make([]byte, 1)); n != 0 || !errors.Is(err, shm.ErrFull) {
		t.Errorf("Write behind the end: %d, %v", n, err)
	}
	if n, err := seg.WriteTo(io.Discard); n != 0 || err != nil {
		t.Errorf("WriteTo behind the end: %d, %v", n, err)
	}
}

func TestBytewise(t *testing.T) {
	seg := filled(t, 3, nil)
	for _, c := range []byte("abc") {
		if err := seg.WriteByte(c); err != nil {
			t.Fatal(err)
		}
	}
	mustFail(t, seg.WriteByte('d'), seg.Name(), shm.ErrFull)
	seg.Seek(0, io.SeekStart)
	for _, want := range []byte("abc") {
		if got, err := seg.ReadByte(); got != want || err != nil {
			t.Errorf("ReadByte: %q, %v", got, err)
		}
	}
	if _, err := seg.ReadByte(); err != io.EOF {
		t.Errorf("ReadByte at the end: %v", err)
	}
	seg.Truncate(0)
	seg.Seek(0, io.SeekStart)
	if n, err := seg.WriteString("xyzw"); n != 3 || !errors.Is(err, shm.ErrFull) {
		t.Errorf("WriteString: %d, %v", n, err)
	}
	if got := content(t, seg); string(got) != "xyz" {
		t.Errorf("content %q", got)
	}
}

// sources are all the ways that bytes can come to ReadFrom.
var sources = map[string]func(t *testing.T, data []byte) io.Reader{
	"bytes.Reader": func(_ *testing.T, data []byte) io.Reader { return bytes.NewReader(data) },
	"plain":        func(_ *testing.T, data []byte) io.Reader { return struct{ io.Reader }{bytes.NewReader(data)} },
	"one byte":     func(_ *testing.T, data []byte) io.Reader { return iotest.OneByteReader(bytes.NewReader(data)) },
	"data and EOF": func(_ *testing.T, data []byte) io.Reader { return iotest.DataErrReader(bytes.NewReader(data)) },
	"bufio":        func(_ *testing.T, data []byte) io.Reader { return bufio.NewReader(bytes.NewReader(data)) },
	"file": func(t *testing.T, data []byte) io.Reader {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	},
	"pipe": func(t *testing.T, data []byte) io.Reader {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		feed(t, w, data)
		t.Cleanup(func() { r.Close() })
		return r
	},
	"blocking pipe": func(t *testing.T, data []byte) io.Reader {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r.Fd() // makes it blocking
		feed(t, w, data)
		t.Cleanup(func() { r.Close() })
		return r
	},
	"tcp": func(t *testing.T, data []byte) io.Reader { return dial(t, "tcp", "127.0.0.1:0", data) },
	"unix": func(t *testing.T, data []byte) io.Reader {
		return dial(t, "unix", filepath.Join(t.TempDir(), "s"), data)
	},
	"segment": func(t *testing.T, data []byte) io.Reader {
		return filled(t, int64(max(len(data), 1)), data)
	},
}

func feed(t *testing.T, w io.WriteCloser, data []byte) {
	var fed sync.WaitGroup
	fed.Go(func() {
		w.Write(data)
		w.Close()
	})
	t.Cleanup(fed.Wait)
}

// winsock returns an error of Windows' sockets by its number.
var winsock = func(code uintptr) error { panic("not Windows") }

func dial(t *testing.T, network, addr string, data []byte) io.Reader {
	l, err := net.Listen(network, addr)
	if runtime.GOOS == "windows" && errors.Is(err, winsock(10047)) { // WSAEAFNOSUPPORT
		t.Skip("Wine 8 has no such sockets; Windows has")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	feed(t, peer, data)
	t.Cleanup(func() { c.Close() })
	return c
}

func TestReadFrom(t *testing.T) {
	const capacity = 3<<20 + 5
	for name, source := range sources {
		for _, n := range []int{0, 1, 100, 1 << 20, capacity - 1, capacity} {
			if name == "one byte" && n > 1000 {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d", name, n), func(t *testing.T) {
				seg := filled(t, capacity, []byte("head"))
				for _, state := range []string{"fresh", "warm"} {
					want := noise(n)
					seg.Truncate(0)
					seg.Seek(0, io.SeekStart)
					got, err := io.Copy(seg, source(t, want))
					if got != int64(n) || err != nil || seg.Size() != int64(n) || !bytes.Equal(content(t, seg), want) {
						t.Errorf("%s: copied %d bytes, %v, size %d", state, got, err, seg.Size())
					}
					if off, _ := seg.Seek(0, io.SeekCurrent); off != int64(n) {
						t.Errorf("%s: offset %d", state, off)
					}
				}
			})
		}
		t.Run(name+"/too many", func(t *testing.T) {
			want := noise(2000)
			seg := filled(t, 1999, nil)
			got, err := io.Copy(seg, source(t, want))
			if got != 1999 || !errors.Is(err, shm.ErrFull) || !bytes.Equal(content(t, seg), want[:1999]) {
				t.Errorf("copied %d bytes, %v", got, err)
			}
		})
		t.Run(name+"/CopyN", func(t *testing.T) {
			want := noise(2000)
			seg := filled(t, 5000, nil)
			src := source(t, want)
			for _, n := range []int64{1500, 0, 400} {
				if got, err := io.CopyN(seg, src, n); got != n || err != nil {
					t.Errorf("CopyN(%d) = %d, %v", n, got, err)
				}
			}
			if got, err := io.CopyN(seg, src, 400); got != 100 || err != io.EOF || !bytes.Equal(content(t, seg), want) {
				t.Errorf("CopyN at the end: %d, %v", got, err)
			}
		})
	}
}

// TestLimitedReaderCount has N of a LimitedReader go down by all that was taken
// from what it reads, also by what the block then had no room for: who frames
// messages by it goes on reading at the right place.
func TestLimitedReaderCount(t *testing.T) {
	for name, source := range sources {
		t.Run(name, func(t *testing.T) {
			want := noise(1000)
			src := source(t, want)
			seg := filled(t, 300, nil)
			lr := &io.LimitedReader{R: src, N: 600}
			if n, err := seg.ReadFrom(lr); n != 300 || !errors.Is(err, shm.ErrFull) {
				t.Fatalf("ReadFrom: %d, %v", n, err)
			}
			taken := 600 - lr.N
			rest, err := io.ReadAll(src)
			if err != nil || taken < 300 || !bytes.Equal(rest, want[taken:]) {
				t.Errorf("N says that %d bytes were taken; %d of 1000 are left, %v", taken, len(rest), err)
			}
		})
	}
}

// readFrom notes what io.Copy calls ReadFrom with.
type readFrom struct {
	io.Writer
	r io.Reader
}

func (w *readFrom) ReadFrom(r io.Reader) (int64, error) {
	w.r = r
	return 0, nil
}

// TestStraight has the descriptors found under what io.Copy makes of files and
// streams, but not under types that may do anything with the bytes.
func TestStraight(t *testing.T) {
	for name, source := range sources {
		t.Run(name, func(t *testing.T) {
			src := source(t, noise(10))
			w := readFrom{Writer: io.Discard}
			if _, err := io.Copy(&w, src); err != nil {
				t.Fatal(err)
			}
			switch name {
			case "file", "pipe", "blocking pipe", "tcp", "unix":
				if !shm.Straight(w.r) || !shm.Straight(src) {
					t.Errorf("%T takes the long way", w.r)
				}
			default:
				if w.r != nil && shm.Straight(w.r) || shm.Straight(src) {
					t.Errorf("%T is taken for a descriptor", w.r)
				}
			}
			if shm.Straight(struct{ io.Reader }{src}) {
				t.Error("embedded in another type")
			}
		})
	}
	type own struct{ *os.File }
	others := []any{own{os.Stdin}, &own{os.Stdin}, (*os.File)(nil), &net.TCPConn{}, &net.UnixConn{}, nil}
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	switch {
	case err == nil:
		defer udp.Close()
		others = append(others, udp)
	case runtime.GOOS == "windows" && errors.Is(err, winsock(10045)): // WSAEOPNOTSUPP
		t.Log("Wine 8 has no such sockets; Windows has")
	default:
		t.Fatal(err)
	}
	for _, v := range others {
		if shm.Straight(v) {
			t.Errorf("%T is taken for a stream", v)
		}
	}
}

type badReader int

func (r badReader) Read(p []byte) (int, error) {
	switch r {
	case 0:
		return -1, nil
	case 1:
		return len(p) + 1, nil
	}
	return 0, nil
}

func TestReadFromBadReader(t *testing.T) {
	seg := filled(t, 100, nil)
	for i := range 3 {
		if n, err := seg.ReadFrom(badReader(i)); n != 0 || err == nil {
			t.Errorf("reader %d: %d, %v", i, n, err)
		}
	}
	failure := errors.New("mine")
	n, err := seg.ReadFrom(io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(failure)))
	if n != 3 || err != failure || string(content(t, seg)) != "abc" {
		t.Errorf("failing reader: %d, %v", n, err)
	}
}

// sinks are all the ways that bytes can leave by WriteTo; the function returned
// says what has arrived.
var sinks = map[string]func(t *testing.T) (io.Writer, func() []byte){
	"buffer": func(t *testing.T) (io.Writer, func() []byte) {
		var b bytes.Buffer
		return &b, b.Bytes
	},
	"file": func(t *testing.T) (io.Writer, func() []byte) {
		path := filepath.Join(t.TempDir(), "file")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f, func() []byte {
			got, err := os.ReadFile(path)
			if err != nil {
				t.Error(err)
			}
			return got
		}
	},
	"pipe": func(t *testing.T) (io.Writer, func() []byte) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		return w, collect(t, r, w)
	},
	"blocking pipe": func(t *testing.T) (io.Writer, func() []byte) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		w.Fd() // makes it blocking
		return w, collect(t, r, w)
	},
	"tcp": func(t *testing.T) (io.Writer, func() []byte) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		peer, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return c, collect(t, peer, c)
	},
	"segment": func(t *testing.T) (io.Writer, func() []byte) {
		seg := filled(t, 4<<20, nil)
		return seg, func() []byte { return content(t, seg) }
	},
}

func collect(t *testing.T, r io.ReadCloser, w io.Closer) func() []byte {
	type result struct {
		b   []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		b, err := io.ReadAll(r)
		r.Close()
		done <- result{b, err}
	}()
	return func() []byte {
		w.Close()
		r := <-done
		if r.err != nil {
			t.Error(r.err)
		}
		return r.b
	}
}

func TestWriteTo(t *testing.T) {
	for name, sink := range sinks {
		for _, n := range []int{0, 1, 100, 1 << 20, 3<<20 + 5} {
			t.Run(fmt.Sprintf("%s/%d", name, n), func(t *testing.T) {
				want := noise(n + 7)
				seg := filled(t, 4<<20, want)
				seg.Seek(7, io.SeekStart)
				w, arrived := sink(t)
				if got, err := io.Copy(w, seg); got != int64(n) || err != nil {
					t.Errorf("copied %d bytes, %v", got, err)
				}
				if !bytes.Equal(arrived(), want[7:]) {
					t.Error("other bytes arrived")
				}
				if off, _ := seg.Seek(0, io.SeekCurrent); off != int64(n+7) {
					t.Errorf("offset %d", off)
				}
			})
		}
	}
}

// myHash is a hash that nothing is known of.
type myHash struct{ hash.Hash }

// TestHash hashes a block, by the hashes that are shown the memory itself and by
// those that are not.
func TestHash(t *testing.T) {
	const size = 2<<20 + 5
	want := noise(size)
	seg := filled(t, size, want)
	for _, tt := range []struct {
		h        hash.Hash
		straight bool
	}{
		{sha256.New(), true}, {sha256.New224(), true}, {sha512.New(), true}, {sha1.New(), true}, {sha3.New256(), true},
		{md5.New(), true}, {crc32.NewIEEE(), true}, {crc64.New(crc64.MakeTable(crc64.ISO)), true},
		{adler32.New(), true}, {fnv.New64a(), true}, {new(maphash.Hash), true},
		{hmac.New(func() hash.Hash { return myHash{sha256.New()} }, []byte("key")), false}, {myHash{sha256.New()}, false},
	} {
		what := fmt.Sprintf("%T", tt.h)
		if shm.Hash(tt.h) != tt.straight {
			t.Errorf("%s is shown the memory: %v", what, !tt.straight)
		}
		tt.h.Write(want[3:])
		sum := tt.h.Sum(nil)
		tt.h.Reset()
		seg.Seek(3, io.SeekStart)
		n, err := io.Copy(tt.h, seg)
		if n != size-3 || err != nil || !bytes.Equal(tt.h.Sum(nil), sum) {
			t.Errorf("%s: %d bytes, %v, or another sum", what, n, err)
		}
		if off, _ := seg.Seek(0, io.SeekCurrent); off != size {
			t.Errorf("%s: offset %d", what, off)
		}
	}
}

type badWriter struct {
	n   int
	err error
}

func (w badWriter) Write([]byte) (int, error) { return w.n, w.err }

func TestWriteToBadWriter(t *testing.T) {
	failure := errors.New("mine")
	for _, tt := range []struct {
		w   badWriter
		n   int64
		err error
	}{
		{badWriter{3, nil}, 3, io.ErrShortWrite}, {badWriter{3, failure}, 3, failure},
		{badWriter{0, failure}, 0, failure}, {badWriter{-1, nil}, 0, nil}, {badWriter{1 << 30, nil}, 0, nil},
	} {
		seg := filled(t, 10, []byte("0123456789"))
		n, err := seg.WriteTo(tt.w)
		if n != tt.n || err == nil || tt.err != nil && err != tt.err {
			t.Errorf("%v: %d, %v", tt.w, n, err)
		}
		if off, _ := seg.Seek(0, io.SeekCurrent); off != tt.n {
			t.Errorf("%v: offset %d", tt.w, off)
		}
	}
}

// TestDeadline waits for a descriptor that never gets ready, and closes the
// block meanwhile.
func TestDeadline(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	seg := block(t, 100)
	if err := r.SetReadDeadline(time.Now().Add(-time.Second)); errors.Is(err, os.ErrNoDeadline) {
		t.Skip("pipes of this system have no deadlines")
	}
	if _, err := io.Copy(seg, r); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	r.SetReadDeadline(time.Time{})
	copied := make(chan error)
	go func() {
		_, err := io.Copy(seg, r)
		copied <- err
	}()
	seg.Close()
	mustNotExist(t, seg.Name())
	w.Write([]byte("x"))
	if err := <-copied; !errors.Is(err, fs.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestConcurrentWriters(t *testing.T) {
	const writers, part = 8, 100_000
	want := noise(writers * part)
	seg := filled(t, writers*part, nil)
	var all sync.WaitGroup
	for i := range writers {
		all.Go(func() {
			// Out of order, as parts of a parallel download come in.
			off := int64((i * 5) % writers * part)
			w := io.NewOffsetWriter(seg, off)
			if _, err := io.Copy(w, bytes.NewReader(want[off:off+part])); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if !bytes.Equal(content(t, seg), want) {
		t.Error("bytes lost")
	}
}

// meet returns when two goroutines have called it.
func meet(a *atomic.Int32) {
	for a.Add(1); a.Load() < 2; {
		runtime.Gosched()
	}
}

// TestSizeNeverFalls has two goroutines raise Size at once: neither must put it
// back to less than the other has raised it to.
func TestSizeNeverFalls(t *testing.T) {
	const steps = 1 << 14
	seg := filled(t, 2*steps, nil)
	var ready, done [steps]atomic.Int32
	var all sync.WaitGroup
	for first := range int64(2) {
		all.Go(func() {
			for i := range int64(steps) {
				meet(&ready[i])
				seg.WriteAt([]byte{1}, 2*i+first)
				meet(&done[i])
				if size := seg.Size(); size < 2*i+2 {
					t.Errorf("Size is %d after writes at %d and %d", size, 2*i, 2*i+1)
				}
			}
		})
	}
	all.Wait()
}

// TestTruncateAgainstWrite has a goroutine write to a block that another one
// cuts off. Whichever comes first, a Size that says that what was written last
// is there must not lie.
func TestTruncateAgainstWrite(t *testing.T) {
	const size, cut = 1 << 16, 1 << 14
	steps := rounds(1 << 10)
	a, x := bytes.Repeat([]byte("a"), size), bytes.Repeat([]byte("x"), size)
	for name, at := range map[string]int64{"overwrite": 0, "append": size} {
		t.Run(name, func(t *testing.T) {
			seg := block(t, 2*size)
			ready, done := make([]atomic.Int32, steps), make([]atomic.Int32, steps)
			var all sync.WaitGroup
			all.Go(func() {
				for i := range steps {
					meet(&ready[i])
					seg.WriteAt(x, at)
					meet(&done[i])
				}
			})
			bad := 0
			for i := range steps {
				seg.Truncate(0)
				seg.WriteAt(a, 0)
				meet(&ready[i])
				for range rand.IntN(1 << 13) { // so that they meet at every point
					seg.Cap()
				}
				if err := seg.Truncate(cut); err != nil {
					t.Error(err)
				}
				meet(&done[i])
				got := content(t, seg)
				switch int64(len(got)) {
				case cut:
				case at + size:
					if !bytes.Equal(got[at:], x) {
						bad++
					}
				default:
					bad++
				}
				if at == size && i%8 == 0 { // no byte that was cut off is left, nor half of what was appended
					seg.Truncate(2 * size)
					if cuts := content(t, seg)[cut:size]; bytes.IndexByte(cuts, 'a') >= 0 {
						bad++
					}
					if len(got) == cut && bytes.IndexByte(content(t, seg)[size:], 'x') >= 0 {
						bad++
					}
				}
			}
			all.Wait()
			if bad > 0 {
				t.Errorf("wrong in %d of %d steps", bad, steps)
			}
		})
	}
}

// TestReadAlong reads a block while it is being filled: what is below Size is
// complete.
func TestReadAlong(t *testing.T) {
	want := noise(1 << 20)
	seg := filled(t, 1<<20, nil)
	peer := attach(t, seg.Name(), shm.ReadOnly())
	var all sync.WaitGroup
	all.Go(func() {
		for i := 0; i < len(want); i += 1000 {
			if _, err := seg.Write(want[i:min(i+1000, len(want))]); err != nil {
				t.Error(err)
			}
		}
	})
	got := make([]byte, 0, len(want))
	for len(got) < len(want) {
		n, err := peer.Read(got[len(got):cap(got)])
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		got = got[:len(got)+n]
	}
	all.Wait()
	if !bytes.Equal(got, want) {
		t.Error("read other bytes than were written")
	}
}

func TestStandardLibrary(t *testing.T) {
	want := noise(100_000)
	t.Run("zip", func(t *testing.T) {
		seg := filled(t, 1<<20, nil)
		zw := zip.NewWriter(seg)
		w, _ := zw.Create("noise")
		w.Write(want)
		if err := zw.Close(); err != nil {
			t.Fatal(err)
		}
		zr, err := zip.NewReader(seg, seg.Size())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := fs.ReadFile(zr, "noise"); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
	t.Run("ServeContent", func(t *testing.T) {
		seg := filled(t, 1<<20, want)
		rec := httptest.NewRecorder()
		req := httptest.NewRequest("GET", "/", nil)
		req.Header.Set("Range", "bytes=1000-1999")
		http.ServeContent(rec, req, "noise.bin", time.Time{}, seg)
		if rec.Code != http.StatusPartialContent || !bytes.Equal(rec.Body.Bytes(), want[1000:2000]) {
			t.Errorf("status %d, %d bytes", rec.Code, rec.Body.Len())
		}
	})
	t.Run("SectionReader", func(t *testing.T) {
		seg := filled(t, 1<<20, want)
		if err := iotest.TestReader(io.NewSectionReader(seg, 50, 1000), want[50:1050]); err != nil {
			t.Error(err)
		}
	})
	t.Run("MultiWriter", func(t *testing.T) {
		seg, hash := filled(t, 1<<20, nil), sha256.New()
		io.Copy(io.MultiWriter(seg, hash), bytes.NewReader(want))
		if !bytes.Equal(content(t, seg), want) || [32]byte(hash.Sum(nil)) != sha256.Sum256(want) {
			t.Error("other bytes")
		}
	})
	t.Run("TeeReader", func(t *testing.T) {
		from, to := filled(t, 1<<20, want), filled(t, 1<<20, nil)
		if got, err := io.ReadAll(io.TeeReader(from, to)); err != nil || !bytes.Equal(got, want) || !bytes.Equal(content(t, to), want) {
			t.Error("other bytes")
		}
	})
}

// Frame is a type as users build them around a Segment.
type Frame struct {
	*shm.Segment
	written int
}

// Write hides the method of the Segment.
func (f *Frame) Write(p []byte) (int, error) {
	n, err := f.Segment.Write(p)
	f.written += n
	return n, err
}

func TestEmbedded(t *testing.T) {
	want := noise(1000)
	f := &Frame{Segment: filled(t, 1000, nil)}
	// io.Copy finds ReadFrom of the Segment; without it, it calls Write.
	if _, err := io.Copy(struct{ io.Writer }{f}, bytes.NewReader(want)); err != nil || f.written != len(want) {
		t.Errorf("%d written, %v", f.written, err)
	}
	f.Seek(0, io.SeekStart)
	if err := iotest.TestReader(f, want); err != nil {
		t.Error(err)
	}
	var _ fs.File = f
}
