package shm_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/shmkit/shm"
)

// attach opens name for the time of the test.
func attach(t testing.TB, name string, opts ...shm.Option) *shm.Segment {
	t.Helper()
	seg, err := shm.Open(name, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { seg.Close() })
	return seg
}

func anonymous(t testing.TB, size int64, opts ...shm.Option) *shm.Segment {
	t.Helper()
	seg, err := shm.Anonymous(size, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { seg.Close() })
	return seg
}

// file returns a file of the Segment, which is closed at the end of the test.
func file(t testing.TB, seg *shm.Segment) *os.File {
	t.Helper()
	f, err := seg.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func take(t testing.TB, f *os.File, opts ...shm.Option) *shm.Segment {
	t.Helper()
	seg, err := shm.FromFile(f, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { seg.Close() })
	return seg
}

// unique returns a name that no block has.
func unique(t testing.TB) string {
	t.Helper()
	seg := block(t, 1)
	name := seg.Name()
	if err := seg.Close(); err != nil {
		t.Fatal(err)
	}
	return name
}

// mustFail checks that err is a *fs.PathError for name that is every one of want.
func mustFail(t testing.TB, err error, name string, want ...error) {
	t.Helper()
	var path *fs.PathError
	if !errors.As(err, &path) || path.Path != name {
		t.Errorf("error %v (%T) is not a *fs.PathError for %q", err, err, name)
	}
	for _, w := range want {
		if !errors.Is(err, w) {
			t.Errorf("error %q is not %q", err, w)
		}
	}
}

// needsList skips a test where the system tells nobody what names there are.
func needsList(t *testing.T) {
	t.Helper()
	if _, err := shm.List(); errors.Is(err, errors.ErrUnsupported) {
		t.Skip("blocks cannot be listed on this system")
	}
}

// needsPersistent skips a test where the system ends every block with its last
// attachment.
func needsPersistent(t *testing.T) {
	t.Helper()
	if shm.NamesStay() {
		_, err := shm.Create("", 10, shm.Persistent())
		mustFail(t, err, "", errors.ErrUnsupported)
		t.Skip("no Persistent blocks on this system")
	}
}

// mustSpare checks that Reap leaves a block alone.
func mustSpare(t testing.TB, name string) {
	t.Helper()
	names, err := shm.Reap()
	if err != nil && !errors.Is(err, errors.ErrUnsupported) || slices.Contains(names, name) {
		t.Errorf("Reap: %v, %v", names, err)
	}
}

func mustNotExist(t testing.TB, name string) {
	t.Helper()
	_, err := shm.Open(name)
	mustFail(t, err, name, fs.ErrNotExist)
	if _, err := shm.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat: %v", err)
	}
}

func TestCreateOpenClose(t *testing.T) {
	name := unique(t)
	seg, err := shm.Create(name, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if seg.Name() != name || seg.Size() != 1000 || seg.Cap() != 1000 || seg.Refs() != 1 {
		t.Errorf("new block: %q, size %d, cap %d, refs %d", seg.Name(), seg.Size(), seg.Cap(), seg.Refs())
	}
	peer := attach(t, name)
	if peer.Size() != 1000 || peer.Cap() != 1000 || peer.Refs() != 2 || seg.Refs() != 2 {
		t.Errorf("attached: size %d, cap %d, refs %d, %d", peer.Size(), peer.Cap(), peer.Refs(), seg.Refs())
	}
	_, err = shm.Create(name, 1)
	mustFail(t, err, name, fs.ErrExist)

	if _, err := seg.WriteAt([]byte("still here"), 990); err != nil {
		t.Fatal(err)
	}
	if err := seg.Close(); err != nil {
		t.Fatal(err)
	}
	mustFail(t, seg.Close(), name, fs.ErrClosed)
	if peer.Refs() != 1 {
		t.Errorf("refs %d after the creator left", peer.Refs())
	}
	late := attach(t, "/"+name)
	if late.Name() != name {
		t.Errorf("name %q", late.Name())
	}
	got := make([]byte, 10)
	if _, err := late.ReadAt(got, 990); err != nil || string(got) != "still here" {
		t.Errorf("read %q, %v", got, err)
	}
	for _, s := range []*shm.Segment{peer, late} {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	mustNotExist(t, name)
}

func TestCreateInventsNames(t *testing.T) {
	a, b := block(t, 1), block(t, 1)
	if a.Name() == b.Name() || a.Name() == "" || len(a.Name()) > 30 {
		t.Errorf("names %q and %q", a.Name(), b.Name())
	}
}

func TestOpenOrCreate(t *testing.T) {
	name := unique(t)
	seg, created, err := shm.OpenOrCreate(name, 100)
	if err != nil || !created {
		t.Fatal(created, err)
	}
	defer seg.Close()
	peer, created, err := shm.OpenOrCreate(name, 200, shm.Persistent(), shm.Perm(0o640), shm.Prefault())
	if err != nil || created || peer.Cap() != 100 {
		t.Fatal(created, err)
	}
	if err := peer.Close(); err != nil {
		t.Fatal(err)
	}
	fresh, created, err := shm.OpenOrCreate("", 100)
	if err != nil || !created {
		t.Fatal(created, err)
	}
	fresh.Close()
	_, _, err = shm.OpenOrCreate(name, 100, shm.ReadOnly())
	mustFail(t, err, name, fs.ErrInvalid)
}

func TestNames(t *testing.T) {
	for _, name := range []string{"a", "A.b_c-9", "-x", "_", strings.Repeat("n", shm.MaxName())} {
		for _, name := range []string{name, "/" + name} {
			seg, err := shm.Create(name, 1)
			if err != nil {
				t.Errorf("Create(%q): %v", name, err)
				continue
			}
			if want := strings.TrimPrefix(name, "/"); seg.Name() != want {
				t.Errorf("Create(%q) has the name %q", name, seg.Name())
			}
			seg.Close()
		}
	}
	for _, name := range []string{"/", "//a", ".", "..", ".a", "a/b", "../a", "a\x00", "a b", "ä", "a\n", "a\\b", strings.Repeat("n", shm.MaxName()+1)} {
		_, err := shm.Create(name, 1)
		mustFail(t, err, name, fs.ErrInvalid)
		_, err = shm.Open(name)
		mustFail(t, err, name, fs.ErrInvalid)
		_, _, err = shm.OpenOrCreate(name, 1)
		mustFail(t, err, name, fs.ErrInvalid)
		_, err = shm.Stat(name)
		mustFail(t, err, name, fs.ErrInvalid)
		mustFail(t, shm.Unlink(name), name, fs.ErrInvalid)
	}
	_, err := shm.Open("")
	mustFail(t, err, "", fs.ErrInvalid)
}

func TestSizes(t *testing.T) {
	for _, size := range []int64{1, 7, 4095, 4096, 4097, 1 << 20} {
		seg := block(t, size)
		if seg.Size() != size || seg.Cap() != size || len(seg.Bytes()) != int(size) || cap(seg.Bytes()) != int(size) {
			t.Errorf("size %d: Size %d, Cap %d, Bytes %d of %d", size, seg.Size(), seg.Cap(), len(seg.Bytes()), cap(seg.Bytes()))
		}
		if slices.ContainsFunc(seg.Bytes(), func(b byte) bool { return b != 0 }) {
			t.Errorf("size %d: not zero", size)
		}
	}
	for _, size := range []int64{0, -1, math.MinInt64} {
		_, err := shm.Create("", size)
		mustFail(t, err, "", fs.ErrInvalid)
	}
	for _, size := range []int64{1 << 50, math.MaxInt64 - 4096, math.MaxInt64} {
		_, err := shm.Create("", size)
		mustFail(t, err, "", shm.ErrNoSpace)
	}
}

func TestOptions(t *testing.T) {
	name := unique(t)
	for _, tt := range []struct {
		open bool
		opts []shm.Option
	}{
		{false, []shm.Option{shm.ReadOnly()}},
		{false, []shm.Option{nil}},
		{false, []shm.Option{shm.Perm(0o4600)}},
		{false, []shm.Option{shm.Perm(fs.ModeDir)}},
		{false, []shm.Option{shm.Headerless(), shm.Persistent()}},
		{false, []shm.Option{shm.Prefault(), shm.Sparse()}},
		{true, []shm.Option{shm.Persistent()}},
		{true, []shm.Option{shm.Perm(0o600)}},
		{true, []shm.Option{shm.Sparse()}},
	} {
		t.Run(fmt.Sprint(tt), func(t *testing.T) {
			var err error
			if tt.open {
				_, err = shm.Open(name, tt.opts...)
			} else {
				_, err = shm.Create(name, 1, tt.opts...)
			}
			mustFail(t, err, name, fs.ErrInvalid)
			mustNotExist(t, name)
		})
	}
}

func TestPersistent(t *testing.T) {
	needsPersistent(t)
	seg := block(t, 10, shm.Persistent())
	name := seg.Name()
	if _, err := seg.WriteString("0123456789"); err != nil {
		t.Fatal(err)
	}
	if err := seg.Close(); err != nil {
		t.Fatal(err)
	}
	mustSpare(t, name)
	info, err := shm.Stat(name)
	if err != nil || !info.Persistent || info.Attached || info.Stale() || info.Refs != 0 {
		t.Errorf("Stat: %+v, %v", info, err)
	}
	again := attach(t, name)
	if got, err := io.ReadAll(again); err != nil || string(got) != "0123456789" || again.Refs() != 1 {
		t.Errorf("read %q, %v, refs %d", got, err, again.Refs())
	}
	if err := shm.Unlink(name); err != nil {
		t.Fatal(err)
	}
	mustNotExist(t, name)
}

func TestHeaderless(t *testing.T) {
	seg := block(t, 100, shm.Headerless())
	name := seg.Name()
	size := int64(100)
	if shm.BornNamed() { // what names its objects at birth rounds their sizes up
		size = seg.Size()
	}
	if seg.Size() != size || seg.Cap() != size || size < 100 || seg.Refs() != 0 {
		t.Errorf("size %d, cap %d, refs %d", seg.Size(), seg.Cap(), seg.Refs())
	}
	if n, err := seg.WriteAt(make([]byte, 200), size-50); n != 50 || !errors.Is(err, shm.ErrFull) {
		t.Errorf("WriteAt beyond the end: %d, %v", n, err)
	}
	mustFail(t, seg.Truncate(10), name, errors.ErrUnsupported)
	_, err := shm.Open(name)
	mustFail(t, err, name, shm.ErrNotSegment)

	peer := attach(t, name, shm.Headerless())
	seg.WriteAt([]byte("raw"), 0)
	if got := string(peer.Bytes()[:3]); got != "raw" {
		t.Errorf("read %q", got)
	}
	if shm.NamesStay() { // and nothing of ours is in it that could say otherwise
		mustFail(t, shm.Unlink(name), name, errors.ErrUnsupported)
		mustFail(t, peer.Unlink(), name, errors.ErrUnsupported)
	} else {
		seg.Close()
	}
	peer.Close()
	info, err := shm.Stat(name)
	if err != nil || !info.Headerless || info.Size != size || info.Stale() {
		t.Errorf("Stat: %+v, %v", info, err)
	}
	if err := shm.Unlink(name); err != nil && !shm.NamesStay() {
		t.Fatal(err)
	}
	seg.Close()
	mustNotExist(t, name)
	managed := block(t, 1)
	_, err = shm.Open(managed.Name(), shm.Headerless())
	mustFail(t, err, managed.Name(), fs.ErrInvalid)
}

func TestReadOnly(t *testing.T) {
	seg := block(t, 100)
	ro := attach(t, seg.Name(), shm.ReadOnly())
	if seg.Refs() != 2 {
		t.Errorf("refs %d", seg.Refs())
	}
	for name, err := range map[string]error{
		"WriteAt":     second(ro.WriteAt([]byte("x"), 0)),
		"Write":       second(ro.Write([]byte("x"))),
		"WriteString": second(ro.WriteString("x")),
		"WriteByte":   ro.WriteByte('x'),
		"Truncate":    ro.Truncate(1),
		"ReadFrom":    second(ro.ReadFrom(strings.NewReader("x"))),
	} {
		t.Run(name, func(t *testing.T) {
			mustFail(t, err, seg.Name(), shm.ErrReadOnly, fs.ErrPermission)
		})
	}
	seg.WriteAt([]byte("seen"), 0)
	if string(ro.Bytes()[:4]) != "seen" {
		t.Error("what is written is not seen")
	}
	raw := block(t, 100, shm.Headerless())
	for _, s := range []*shm.Segment{ro, attach(t, raw.Name(), shm.Headerless(), shm.ReadOnly())} {
		mustFail(t, s.View(func(b []byte) error { b[99] = 1; return nil }), s.Name(), shm.ErrFault)
	}
	seg.Close()
	ro.Close()
	mustNotExist(t, seg.Name())
}

func second[T any](_ T, err error) error { return err }

func TestPerm(t *testing.T) {
	for _, perm := range []fs.FileMode{0, 0o400, 0o600, 0o640, 0o666, 0o777} {
		opts := []shm.Option{shm.Perm(perm)}
		if perm&0o600 != 0o600 { // a block with a header could not be reaped
			_, err := shm.Create("", 1, opts...)
			mustFail(t, err, "", fs.ErrInvalid)
			opts = append(opts, shm.Headerless())
		}
		seg := block(t, 1, opts...)
		if shm.NamesStay() { // there are no such permissions
			perm = 0o600
		}
		info, err := seg.Stat()
		if err != nil || info.Mode() != perm {
			t.Errorf("Perm(%o) is %v, %v", perm, info.Mode(), err)
		}
	}
	info, _ := block(t, 1).Stat()
	if info.Mode() != 0o600 {
		t.Errorf("permissions are %v by default", info.Mode())
	}
}

func TestTruncate(t *testing.T) {
	for name, opts := range map[string][]shm.Option{"reserved": nil, "sparse": {shm.Sparse()}} {
		t.Run(name, func(t *testing.T) {
			const size = 3*4096 + 10
			seg := block(t, size, opts...)
			peer := attach(t, seg.Name())
			seg.Write([]byte(strings.Repeat("x", size)))
			for _, n := range []int64{size, 5000, 10, 0, 10, size - 1, 4096, size} {
				if err := seg.Truncate(n); err != nil {
					t.Fatal(err)
				}
				if seg.Size() != n || peer.Size() != n || len(peer.Bytes()) != int(n) {
					t.Errorf("Truncate(%d): size %d, %d, %d bytes", n, seg.Size(), peer.Size(), len(peer.Bytes()))
				}
			}
			if i := slices.IndexFunc(seg.Bytes(), func(b byte) bool { return b != 0 }); i >= 0 {
				t.Errorf("byte %d has come back", i)
			}
			for _, n := range []int64{-1, size + 1, math.MaxInt64, math.MinInt64} {
				mustFail(t, seg.Truncate(n), seg.Name(), fs.ErrInvalid)
			}
		})
	}
}

// TestCutOffBytes has bytes that came in by any way there is cut off: they must
// not come back.
func TestCutOffBytes(t *testing.T) {
	const size = 10000
	x := strings.Repeat("x", size)
	fill := map[string]func(t *testing.T, seg *shm.Segment) error{
		"Write":       func(_ *testing.T, seg *shm.Segment) error { return second(seg.Write([]byte(x))) },
		"WriteAt":     func(_ *testing.T, seg *shm.Segment) error { return second(seg.WriteAt([]byte(x), 0)) },
		"WriteString": func(_ *testing.T, seg *shm.Segment) error { return second(seg.WriteString(x)) },
		"WriteByte": func(_ *testing.T, seg *shm.Segment) error {
			seg.Seek(size-1, io.SeekStart)
			return seg.WriteByte('x')
		},
		"View": func(_ *testing.T, seg *shm.Segment) error {
			return seg.View(func(b []byte) error { copy(b, x); return nil })
		},
		"Bytes": func(_ *testing.T, seg *shm.Segment) error { copy(seg.Bytes(), x); return nil },
	}
	for name, source := range sources {
		if name != "one byte" {
			fill["ReadFrom/"+name] = func(t *testing.T, seg *shm.Segment) error {
				return second(seg.ReadFrom(source(t, []byte(x))))
			}
		}
	}
	for what, f := range fill {
		t.Run(what, func(t *testing.T) {
			seg := block(t, size)
			if err := f(t, seg); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(seg.Truncate(0), seg.Truncate(size)); err != nil {
				t.Fatal(err)
			}
			if i := slices.Index(content(t, seg), 'x'); i >= 0 {
				t.Errorf("byte %d has come back", i)
			}
		})
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

func TestUnlink(t *testing.T) {
	seg := block(t, 10)
	name := seg.Name()
	peer := attach(t, name)
	if err := seg.Unlink(); err != nil {
		t.Fatal(err)
	}
	mustNotExist(t, name)
	mustFail(t, seg.Unlink(), name, fs.ErrNotExist)
	mustFail(t, shm.Unlink(name), name, fs.ErrNotExist)
	seg.WriteString("still here")
	if string(peer.Bytes()) != "still here" {
		t.Error("memory lost by Unlink")
	}
	info, err := peer.Stat()
	if err != nil || info.Sys().(*shm.Info).Linked {
		t.Errorf("Stat: %+v, %v", info, err)
	}
	next, err := shm.Create(name, 20)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	mustFail(t, peer.Unlink(), name, fs.ErrNotExist)
	seg.Close()
	peer.Close()
	if third := attach(t, name); third.Cap() != 20 {
		t.Error("the new block has lost its name to the old one's Close")
	}
}

func TestViewAndBytes(t *testing.T) {
	seg := block(t, 100)
	seg.Truncate(10)
	failure := errors.New("mine")
	err := seg.View(func(b []byte) error {
		if len(b) != 10 || cap(b) != 100 {
			t.Errorf("%d bytes of %d", len(b), cap(b))
		}
		copy(b, "by View")
		return failure
	})
	if err != failure {
		t.Errorf("View returned %v", err)
	}
	if b := seg.Bytes(); string(b[:7]) != "by View" || len(b) != 10 || cap(b) != 100 {
		t.Errorf("Bytes %q, %d of %d", b, len(b), cap(b))
	}
	// What View and Bytes write to is cleared like anything else.
	copy(seg.Bytes()[:100], strings.Repeat("z", 100))
	seg.Truncate(100)
	seg.Truncate(0)
	seg.Truncate(100)
	if b := seg.Bytes(); slices.Contains(b, 'z') {
		t.Errorf("Bytes %q after clearing", b)
	}
	// A View outlives Close, and Close does not wait for it.
	err = seg.View(func(b []byte) error {
		if err := seg.Close(); err != nil {
			t.Error(err)
		}
		mustNotExist(t, seg.Name())
		b[99] = 1
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	mustFail(t, seg.View(func([]byte) error { t.Error("called"); return nil }), seg.Name(), fs.ErrClosed)
	if seg.Bytes() != nil {
		t.Error("Bytes after Close")
	}
}

// TestViewPanic lets a panic of the callback's own through.
func TestViewPanic(t *testing.T) {
	seg := block(t, 10)
	func() {
		defer func() {
			if r := recover(); r != "mine" {
				t.Errorf("recovered %v", r)
			}
		}()
		seg.View(func([]byte) error { panic("mine") })
	}()
	done := make(chan bool)
	go func() {
		defer close(done)
		seg.View(func([]byte) error { runtime.Goexit(); return nil })
	}()
	<-done
	if err := seg.Close(); err != nil {
		t.Error(err)
	}
}

func TestStatAndList(t *testing.T) {
	mode := fs.FileMode(0o640)
	seg := block(t, 1000, shm.Sparse(), shm.Perm(mode))
	if shm.NamesStay() { // there are no such permissions
		mode = 0o600
	}
	seg.Truncate(17)
	fi, err := seg.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if fi.Name() != seg.Name() || fi.Size() != 17 || fi.Mode() != mode || fi.IsDir() || !fi.ModTime().IsZero() {
		t.Errorf("FileInfo %v", fi)
	}
	own := *fi.Sys().(*shm.Info)
	if own.Cap != 1000 || own.Refs != 1 || !own.Attached || !own.Linked || own.Headerless || own.Persistent || !own.Sparse ||
		own.Creator != os.Getpid() || own.Created.IsZero() || own.ModTime.IsZero() && !shm.BornNamed() || own.ID == [16]byte{} || own.Stale() {
		t.Errorf("Info %+v", own)
	}
	other, err := shm.Stat(seg.Name())
	if err != nil || *other != own {
		t.Errorf("Stat %+v, %v", other, err)
	}
	needsList(t)
	list, err := shm.List()
	if err != nil || !slices.Contains(list, own) {
		t.Errorf("List %+v, %v", list, err)
	}
}

// TestZero calls everything on a Segment that nobody has opened.
func TestZero(t *testing.T) {
	for _, seg := range []*shm.Segment{nil, {}} {
		if seg.Name() != "" || seg.Size() != 0 || seg.Cap() != 0 || seg.Refs() != 0 || seg.Bytes() != nil {
			t.Error("a zero Segment has something")
		}
		for name, call := range calls {
			if err := call(seg); !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// TestClosed calls everything on a closed Segment.
func TestClosed(t *testing.T) {
	seg := block(t, 10)
	seg.Close()
	if seg.Name() == "" || seg.Size() != 0 || seg.Cap() != 10 || seg.Refs() != 0 || seg.Bytes() != nil {
		t.Error("what a closed Segment has")
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) { mustFail(t, call(seg), seg.Name(), fs.ErrClosed) })
	}
}

// calls has every method that returns an error.
var calls = map[string]func(seg *shm.Segment) error{
	"ReadAt":      func(s *shm.Segment) error { return second(s.ReadAt(make([]byte, 8), 0)) },
	"WriteAt":     func(s *shm.Segment) error { return second(s.WriteAt(make([]byte, 8), 0)) },
	"Read":        func(s *shm.Segment) error { return second(s.Read(make([]byte, 8))) },
	"Write":       func(s *shm.Segment) error { return second(s.Write(make([]byte, 8))) },
	"WriteString": func(s *shm.Segment) error { return second(s.WriteString("12345678")) },
	"ReadByte":    func(s *shm.Segment) error { return second(s.ReadByte()) },
	"WriteByte":   func(s *shm.Segment) error { return s.WriteByte(1) },
	"Seek":        func(s *shm.Segment) error { return second(s.Seek(0, io.SeekEnd)) },
	"ReadFrom":    func(s *shm.Segment) error { return second(s.ReadFrom(strings.NewReader("x"))) },
	"ReadFromFile": func(s *shm.Segment) error {
		f, err := os.Open(os.Args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		return second(s.ReadFrom(f))
	},
	"WriteTo": func(s *shm.Segment) error { return second(s.WriteTo(io.Discard)) },
	"WriteToFile": func(s *shm.Segment) error {
		f, err := os.CreateTemp("", "shm")
		if err != nil {
			return err
		}
		defer os.Remove(f.Name())
		defer f.Close()
		return second(s.WriteTo(f))
	},
	"Truncate": func(s *shm.Segment) error { return s.Truncate(8) },
	"Stat":     func(s *shm.Segment) error { return second(s.Stat()) },
	"View":     func(s *shm.Segment) error { return s.View(func([]byte) error { return nil }) },
	"Unlink":   func(s *shm.Segment) error { return s.Unlink() },
	"Close":    func(s *shm.Segment) error { return s.Close() },
}

// TestCloseAgainstCalls closes a Segment while every method is being called.
func TestCloseAgainstCalls(t *testing.T) {
	for name, call := range calls {
		if name == "Close" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			for range 20 {
				seg := block(t, 1<<16)
				seg.Truncate(1000)
				started := make(chan bool, 3)
				var all sync.WaitGroup
				for range cap(started) {
					all.Go(func() {
						for i := 0; ; i++ {
							err := call(seg)
							if i == 0 {
								started <- true
							}
							if errors.Is(err, fs.ErrClosed) {
								return
							}
							if err != nil && err != io.EOF && !errors.Is(err, shm.ErrFull) && !errors.Is(err, fs.ErrNotExist) {
								t.Error(err)
								return
							}
						}
					})
				}
				for range cap(started) {
					<-started
				}
				if err := seg.Close(); err != nil {
					t.Error(err)
				}
				all.Wait()
				mustNotExist(t, seg.Name())
			}
		})
	}
}

// TestCopies has two Segments that share a handle: the one open, the other is.
func TestCopies(t *testing.T) {
	seg := block(t, 10)
	twin := *seg
	seg.Close()
	mustFail(t, twin.Close(), seg.Name(), fs.ErrClosed)
}

func TestNotBlocks(t *testing.T) {
	if !shm.Files() {
		t.Skip("blocks are files on Linux alone")
	}
	name := unique(t)
	path := filepath.Join("/dev/shm", name)
	if err := os.WriteFile(path, []byte("foreign"), 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path)
	_, err := shm.Open(name)
	mustFail(t, err, name, shm.ErrNotSegment)
	_, err = shm.Create(name, 1)
	mustFail(t, err, name, fs.ErrExist)
	_, _, err = shm.OpenOrCreate(name, 1)
	mustFail(t, err, name, shm.ErrNotSegment)
	if names, err := shm.Reap(); err != nil || slices.Contains(names, name) {
		t.Errorf("Reap: %v, %v", names, err)
	}
	raw := attach(t, name, shm.Headerless())
	if got, err := io.ReadAll(raw); string(got) != "foreign" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	if err := raw.Unlink(); err != nil {
		t.Error(err)
	}
}

// TestErrorPath has errors name the block as its Segment does.
func TestErrorPath(t *testing.T) {
	name := unique(t)
	given := "/" + name
	mustFail(t, second(shm.Open(given)), name, fs.ErrNotExist)
	mustFail(t, second(shm.Stat(given)), name, fs.ErrNotExist)
	mustFail(t, shm.Unlink(given), name, fs.ErrNotExist)
	mustFail(t, second(shm.Create(given, 0)), name, fs.ErrInvalid)
	_, _, err := shm.OpenOrCreate(given, 0)
	mustFail(t, err, name, fs.ErrInvalid)
	mustFail(t, second(shm.Create("//"+name, 1)), "//"+name, fs.ErrInvalid)
	mustFail(t, second(shm.Anonymous(0, shm.Label("frames"))), "frames", fs.ErrInvalid)
}
