package shm_test

import (
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
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/shmkit/shm"
)

// TestWriteToPieces copies by a buffer of another size than that of WriteTo.
func TestWriteToPieces(t *testing.T) {
	seg := block(t, 300<<10)
	var pieces []int
	w := writeFunc(func(p []byte) (int, error) { pieces = append(pieces, len(p)); return len(p), nil })
	if _, err := io.CopyBuffer(w, seg, make([]byte, 512)); err != nil || fmt.Sprint(pieces) != "[131072 131072 45056]" {
		t.Errorf("pieces of %v, %v", pieces, err)
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

// TestStreamAcross has one process read a block while another fills it.
func TestStreamAcross(t *testing.T) {
	const size = 4 << 20
	a, b := newAgent(t), newAgent(t)
	for seed := range rounds(20) {
		seg := block(t, size)
		if err := seg.Truncate(0); err != nil {
			t.Fatal(err)
		}
		a.attach("open %s", seg.Name())
		b.attach("open %s readonly", seg.Name())
		b.Say("drain %d", size)
		want := a.do("fill %d %d", seed, size)
		if got := b.Hear(); got != want {
			t.Fatalf("read %s, written %s", got, want)
		}
		a.must("closed", "close")
		b.must("closed", "close")
		seg.Close()
		mustBeGone(t, seg.Name())
	}
}
