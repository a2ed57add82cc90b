package shm_test

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
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

// serveBlock is a handler as the documentation recommends it.
func serveBlock(seg *shm.Segment) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		info, err := seg.Stat()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		http.ServeContent(w, r, "block.bin", info.ModTime(), io.NewSectionReader(seg, 0, info.Size()))
	}
}

// TestServeChanged changes a block that a client has a copy of, by every way to
// write: it is served anew.
func TestServeChanged(t *testing.T) {
	seg := block(t, 100)
	handler := serveBlock(seg)
	get := func(since string) *http.Response {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("If-Modified-Since", since)
		w := httptest.NewRecorder()
		handler(w, r)
		return w.Result()
	}
	before := get("")
	since := before.Header.Get("Last-Modified")
	if since == "" {
		since = time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)
	}
	for what, write := range map[string]func(p []byte){
		"WriteAt": func(p []byte) { seg.WriteAt(p, 0) },
		"Write":   func(p []byte) { seg.Seek(0, io.SeekStart); seg.Write(p) },
		"Bytes":   func(p []byte) { copy(seg.Bytes(), p) },
		"peer":    func(p []byte) { attach(t, seg.Name()).WriteAt(p, 0) },
	} {
		want := fmt.Appendf(nil, "%-100s", what)
		write(want)
		after := get(since)
		body, err := io.ReadAll(after.Body)
		if after.StatusCode != http.StatusOK || !bytes.Equal(body, want) || err != nil {
			t.Errorf("after %s: %s, %q, %v", what, after.Status, body, err)
		}
	}
}

// TestServeConcurrently serves one Segment to many at once.
func TestServeConcurrently(t *testing.T) {
	want := noise(300_000)
	seg := filled(t, 300_000, want)
	handler := serveBlock(seg)
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			r := httptest.NewRequest("GET", "/", nil)
			from := i * 1000
			r.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
			w := httptest.NewRecorder()
			handler(w, r)
			if !bytes.Equal(w.Body.Bytes(), want[from:]) {
				t.Errorf("from %d: %d bytes, and others", from, w.Body.Len())
			}
		})
	}
	all.Wait()
}

// TestRequestBody sends a block as a request as the documentation recommends it:
// the transport closes what it is given, and the Segment stays open.
func TestRequestBody(t *testing.T) {
	want := noise(300_000)
	seg := filled(t, 300_000, want)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if body, err := io.ReadAll(r.Body); r.ContentLength != int64(len(want)) || !bytes.Equal(body, want) || err != nil {
			t.Errorf("length %d, %d bytes, %v", r.ContentLength, len(body), err)
		}
	}))
	defer server.Close()
	body := io.NewSectionReader(seg, 0, seg.Size())
	r, err := http.NewRequest("PUT", server.URL, body)
	if err != nil {
		t.Fatal(err)
	}
	r.ContentLength = body.Size()
	response, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if n, err := seg.ReadAt(make([]byte, 1), 0); n != 1 || err != nil {
		t.Errorf("ReadAt after the request: %d, %v", n, err)
	}
}

// TestEmpty reads and writes no bytes at all.
func TestEmpty(t *testing.T) {
	seg := block(t, 100)
	seg.Truncate(10)
	readOnly := attach(t, seg.Name(), shm.ReadOnly())
	for _, off := range []int64{0, 10, 11, 100, 1000} {
		for _, s := range []*shm.Segment{seg, readOnly} {
			if n, err := s.ReadAt(nil, off); n != 0 || err != nil {
				t.Errorf("ReadAt %d: %d, %v", off, n, err)
			}
		}
		if n, err := seg.WriteAt(nil, off); n != 0 || err != nil {
			t.Errorf("WriteAt %d: %d, %v", off, n, err)
		}
		_, err := readOnly.WriteAt(nil, off)
		mustFail(t, err, seg.Name(), shm.ErrReadOnly)
	}
	for _, s := range []*shm.Segment{seg, readOnly} {
		_, err := s.ReadAt(nil, -1)
		mustFail(t, err, seg.Name(), fs.ErrInvalid)
	}
	if _, err := seg.WriteAt(nil, -1); !errors.Is(err, fs.ErrInvalid) {
		t.Error(err)
	}
	if seg.Size() != 10 {
		t.Errorf("Size %d", seg.Size())
	}
}

// TestGap writes behind the end of a block that has held other bytes there.
func TestGap(t *testing.T) {
	seg := block(t, 10000)
	seg.Write([]byte(strings.Repeat("x", 10000)))
	seg.Truncate(100)
	seg.WriteAt([]byte("y"), 8000)
	got, err := io.ReadAll(io.NewSectionReader(seg, 0, 10000))
	want := strings.Repeat("x", 100) + strings.Repeat("\x00", 7900) + "y"
	if err != nil || string(got) != want {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}
