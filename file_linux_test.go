//go:build !standin

package shm_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
)

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

// newHeir starts an agent, of another user if so asked, that has the file.
func newHeir(t *testing.T, f *os.File, other bool) agent {
	t.Helper()
	cmd := proctest.Command(agentProgram)
	cmd.ExtraFiles = []*os.File{f}
	if other {
		cmd.Path = "/proc/self/exe" // its directory is closed to other users
		stranger(cmd)
	}
	return agent{proctest.StartCommand(t, cmd), t}
}

func descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestAnonymous(t *testing.T) {
	for _, opts := range [][]shm.Option{nil, {shm.Sparse()}, {shm.Prefault()}} {
		seg := anonymous(t, 10001, opts...)
		if seg.Name() != "" || seg.Cap() != 10001 || seg.Size() != 10001 || seg.Refs() != 1 {
			t.Errorf("new block: %q, %d, %d, %d", seg.Name(), seg.Cap(), seg.Size(), seg.Refs())
		}
		if !bytes.Equal(content(t, seg), make([]byte, 10001)) {
			t.Error("new block is not zero")
		}
		mustFail(t, seg.Unlink(), "", fs.ErrNotExist)
		info, err := seg.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if i := info.Sys().(*shm.Info); i.Linked || i.Persistent || i.Mode != 0o644 || i.Dead() {
			t.Errorf("Stat: %+v", i)
		}
		peer := take(t, file(t, seg))
		peer.Truncate(0)
		io.WriteString(peer, "shared")
		if got := content(t, seg); string(got) != "shared" {
			t.Errorf("holds %q", got)
		}
		if seg.Refs() != 2 {
			t.Errorf("%d references", seg.Refs())
		}
		if err := errors.Join(peer.Close(), second(seg.WriteAt([]byte("!"), 10000)), seg.Close()); err != nil {
			t.Error(err)
		}
		mustFail(t, seg.Close(), "", fs.ErrClosed)
		mustFail(t, second(seg.File()), "", fs.ErrClosed)
	}
}

func TestLabel(t *testing.T) {
	seg := anonymous(t, 1, shm.Label("any/thing at all"), shm.Sparse())
	f := file(t, seg)
	if peer := take(t, f); seg.Name() != f.Name() || f.Name() != peer.Name() || peer.Name() != "any/thing at all" {
		t.Errorf("%q, %q, %q", seg.Name(), f.Name(), peer.Name())
	}
	mustFail(t, seg.Unlink(), "any/thing at all", fs.ErrNotExist)
	name := unique(t)
	mustFail(t, second(shm.Create(name, 1, shm.Label("label"))), name, fs.ErrInvalid)
}

func TestAnonymousErrors(t *testing.T) {
	before := descriptors(t)
	for _, size := range []int64{0, -1, math.MinInt64} {
		mustFail(t, second(shm.Anonymous(size)), "", fs.ErrInvalid)
	}
	for _, size := range []int64{math.MaxInt - 4096, math.MaxInt64, 1 << 46} {
		mustFail(t, second(shm.Anonymous(size)), "", shm.ErrNoSpace)
	}
	for _, o := range []shm.Option{nil, shm.ReadOnly(), shm.Persistent(), shm.Perm(0o600), shm.Headerless()} {
		mustFail(t, second(shm.Anonymous(1, o)), "", fs.ErrInvalid)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
}

// More memory than there is must be refused before the OOM killer comes.
func TestAnonymousTooLarge(t *testing.T) {
	var sys unix.Sysinfo_t
	if err := unix.Sysinfo(&sys); err != nil {
		t.Fatal(err)
	}
	all := int64(sys.Totalram+sys.Totalswap) * int64(sys.Unit)
	if all > math.MaxInt/2 {
		t.Skip("no address space for that much")
	}
	// The kernel itself and this test use some, and nobody gives it back.
	mustFail(t, second(shm.Anonymous(all-1<<20)), "", shm.ErrNoSpace)
	seg := anonymous(t, all-1<<20, shm.Sparse())
	if _, err := seg.WriteAt([]byte("end"), seg.Cap()-3); err != nil {
		t.Error(err)
	}
}

// Whoever has the file cannot take the memory away under those attached.
func TestAnonymousSealed(t *testing.T) {
	seg := anonymous(t, 100<<10)
	f := file(t, seg)
	for _, size := range []int64{0, 4096, 1 << 30} {
		if err := f.Truncate(size); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("truncated to %d: %v", size, err)
		}
	}
	if err := os.Truncate(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), 0); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("truncated by name: %v", err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("sealed against writing: %v", err)
	}
	if _, err := seg.WriteAt(noise(100<<10), 0); err != nil {
		t.Error(err)
	}
}

// The block outlives its attachments as long as there is a file, so whoever
// passes it on need not wait for the receiver.
func TestAnonymousKeptByFile(t *testing.T) {
	seg := anonymous(t, 5000)
	io.WriteString(seg, "kept")
	f := file(t, seg)
	seg.Close()
	peer := take(t, f)
	if got := content(t, peer)[:4]; string(got) != "kept" || peer.Refs() != 1 || peer.Name() != f.Name() {
		t.Errorf("%q holds %q, %d references", peer.Name(), got, peer.Refs())
	}
}

// Locks held on the file by somebody who means harm keep nobody from attaching
// to an anonymous block or from leaving it.
func TestAnonymousUnlocked(t *testing.T) {
	seg := anonymous(t, 100)
	f := file(t, seg)
	own, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if err := unix.FcntlFlock(own.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
	shm.SetPatience(t, time.Hour)
	peer := take(t, f)
	if err := errors.Join(peer.Close(), seg.Close()); err != nil {
		t.Error(err)
	}
}

// TestFileToChild hands a block to another process, both kinds, and has it end
// in both ways.
// What a peer does to a description that all share moves no byte.
func TestAnonymousDescription(t *testing.T) {
	const size = 1 << 20
	seg := anonymous(t, size)
	f := file(t, seg)
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFL, unix.O_APPEND|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(100, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	for _, seg := range []*shm.Segment{seg, take(t, f)} {
		for _, write := range []func(p []byte) error{
			func(p []byte) error { return second(seg.WriteAt(p, 1)) },
			func(p []byte) error { return second(io.CopyN(io.NewOffsetWriter(seg, 1), bytes.NewReader(p), int64(len(p)))) },
			func(p []byte) error { seg.Seek(1, io.SeekStart); return second(seg.ReadFrom(bytes.NewReader(p))) },
		} {
			want := bytes.Repeat([]byte(fmt.Sprintf("%p", seg)), size)[:size-2]
			if err := write(want); err != nil {
				t.Error(err)
			}
			if got := content(t, seg); !bytes.Equal(got[1:size-1], want) || got[0] != 0 || got[size-1] != 0 {
				t.Error("holds other bytes")
			}
		}
	}
}

func TestFileToChild(t *testing.T) {
	for _, kind := range []string{"named", "anonymous"} {
		for _, killed := range []bool{false, true} {
			t.Run(fmt.Sprint(kind, killed), func(t *testing.T) {
				seg := anonymous(t, 1<<16)
				if kind == "named" {
					seg = block(t, 1<<16)
				}
				a := newHeir(t, file(t, seg), false)
				id, err := blockID(seg)
				if got := a.attach("take"); err != nil || got != fmt.Sprintf("%x", id) {
					t.Errorf("attached to %s, not %x, %v", got, id, err)
				}
				a.must("2", "refs")
				a.must("written", "write 100 abc")
				if got := content(t, seg)[100:103]; string(got) != "abc" {
					t.Errorf("holds %q", got)
				}
				if kind == "named" {
					a.must("sound", "sound")
				}
				if killed {
					a.Kill()
				} else {
					a.must("closed", "close")
				}
				if want := map[bool]int{true: 2, false: 1}[killed]; seg.Refs() != want {
					t.Errorf("%d references, want %d", seg.Refs(), want)
				}
				if err := seg.Close(); err != nil {
					t.Error(err)
				}
				if kind == "named" {
					mustNotExist(t, seg.Name())
					mustBeFree(t, seg.Name())
				}
			})
		}
	}
}

// An attachment by a file keeps a block with a name alive, and takes the name
// away when it is the last.
func TestFromFileLast(t *testing.T) {
	seg := block(t, 100)
	name := seg.Name()
	peer := take(t, file(t, seg))
	if peer.Name() != name {
		t.Errorf("called %q, not %q", peer.Name(), name)
	}
	seg.Close()
	third := attach(t, name)
	third.Close()
	peer.Close()
	mustBeFree(t, name)
}

func TestFromFileTooLate(t *testing.T) {
	seg := block(t, 100)
	f := file(t, seg)
	seg.Close()
	mustFail(t, second(shm.FromFile(f)), f.Name(), fs.ErrNotExist)

	// Without a name, but in use.
	seg = block(t, 100)
	f = file(t, seg)
	if err := seg.Unlink(); err != nil {
		t.Fatal(err)
	}
	peer := take(t, f)
	mustFail(t, peer.Unlink(), "", fs.ErrNotExist)
	if info, err := peer.Stat(); err != nil || info.Sys().(*shm.Info).Linked {
		t.Errorf("Stat: %+v, %v", info, err)
	}
	other, err := shm.Create(seg.Name(), 100)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := errors.Join(seg.Close(), peer.Close()); err != nil {
		t.Error(err)
	}
	mustStay(t, other.Name())
	mustFail(t, second(shm.FromFile(f)), f.Name(), fs.ErrNotExist)
}

func TestFromFilePersistent(t *testing.T) {
	seg := block(t, 100, shm.Persistent())
	f := file(t, seg)
	seg.Close()
	peer := take(t, f)
	if peer.Refs() != 1 {
		t.Errorf("%d references", peer.Refs())
	}
	if err := peer.Unlink(); err != nil {
		t.Error(err)
	}
}

func TestFromFileReadOnly(t *testing.T) {
	for _, seg := range []*shm.Segment{anonymous(t, 5000), block(t, 5000)} {
		reader := take(t, file(t, seg), shm.ReadOnly())
		if seg.Refs() != 2 {
			t.Errorf("%d references", seg.Refs())
		}
		mustFail(t, second(reader.Write([]byte("x"))), reader.Name(), shm.ErrReadOnly)
		mustFail(t, reader.View(func(b []byte) error { b[0]++; return nil }), reader.Name(), shm.ErrFault)
		f := file(t, reader)
		if _, err := f.WriteAt([]byte("x"), 5000); !errors.Is(err, syscall.EBADF) {
			t.Errorf("written to the file: %v", err)
		}
		mustFail(t, second(shm.FromFile(f)), f.Name(), fs.ErrPermission)
		second := take(t, f, shm.ReadOnly())
		if _, err := seg.WriteAt([]byte("seen"), 10); err != nil {
			t.Fatal(err)
		}
		if got := content(t, second)[10:14]; string(got) != "seen" {
			t.Errorf("holds %q", got)
		}
		if seg.Refs() != 2 {
			t.Errorf("%d references", seg.Refs())
		}
		if err := errors.Join(second.Close(), reader.Close(), seg.Close()); err != nil {
			t.Error(err)
		}
	}
}

func TestFromFileHeaderless(t *testing.T) {
	seg := block(t, 100, shm.Headerless())
	f := file(t, seg)
	mustFail(t, second(shm.FromFile(f)), f.Name(), shm.ErrNotSegment)
	peer := take(t, f, shm.Headerless())
	io.WriteString(seg, "raw")
	if got := content(t, peer); string(got[:3]) != "raw" || peer.Name() != seg.Name() {
		t.Errorf("%q holds %q", peer.Name(), got)
	}
	// As other programs pass it on: C does, and Wayland.
	memory := memory(t, []byte("raw"), 0)
	if got := content(t, take(t, memory, shm.Headerless())); string(got) != "raw" {
		t.Errorf("holds %q", got)
	}
	anon := file(t, anonymous(t, 100))
	mustFail(t, second(shm.FromFile(anon, shm.Headerless())), anon.Name(), fs.ErrInvalid)
}

// A file that was handed to another user is all that he needs for an anonymous
// block; a block with a name asks for its permissions as well.
func TestFileToStranger(t *testing.T) {
	mustRoot(t, "start processes of another user")
	anon := anonymous(t, 1<<16)
	a := newHeir(t, file(t, anon), true)
	a.attach("take")
	a.must("2", "refs")
	a.must("written", "write 0 abc")
	if got := content(t, anon)[:3]; string(got) != "abc" {
		t.Errorf("holds %q", got)
	}
	a.must("closed", "close")

	toRead := file(t, take(t, file(t, anon), shm.ReadOnly()))
	newHeir(t, toRead, true).must("permission", "take")
	reader := newHeir(t, toRead, true)
	reader.attach("take readonly")
	reader.must("permission", "write 0 abc")
	reader.must("abc", "read 0 3")

	private := newHeir(t, file(t, block(t, 1<<16)), true)
	private.must("permission", "take")
}

func TestFromFileKeepsFile(t *testing.T) {
	seg := anonymous(t, 100)
	f := file(t, seg)
	f.Seek(7, io.SeekStart)
	before := descriptors(t)
	peer := take(t, f)
	io.WriteString(peer, "moves its own offset")
	peer.Close()
	if off, err := f.Seek(0, io.SeekCurrent); off != 7 || err != nil {
		t.Errorf("offset of the file is %d, %v", off, err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
	f.Close()
	mustFail(t, second(shm.FromFile(f)), f.Name(), fs.ErrClosed)
	mustFail(t, second(shm.FromFile(nil)), "", fs.ErrInvalid)
	mustFail(t, second(shm.FromFile(f, shm.Sparse())), f.Name(), fs.ErrInvalid)
}

// memory returns a memfd with the content and seals given.
func memory(t testing.TB, content []byte, seals int) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "memory")
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		t.Fatal(err)
	}
	return f
}

// anonymousImage returns the bytes of an anonymous block, header and data.
func anonymousImage(t testing.TB, size int64) []byte {
	t.Helper()
	f := file(t, anonymous(t, size))
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFromFileHostile(t *testing.T) {
	const fixed = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	opened := func(f *os.File, err error) *os.File {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	dir := t.TempDir()
	onDisk := func(content []byte) *os.File {
		f := opened(os.CreateTemp(dir, ""))
		if _, err := f.Write(content); err != nil {
			t.Fatal(err)
		}
		return f
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	opened(r, err)
	opened(w, err)
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	anon, named := anonymousImage(t, 10000), image(t, 10000)
	change := func(b []byte, at int, v byte) []byte {
		b = bytes.Clone(b)
		b[at] = v
		return b
	}
	sealedWrite := memory(t, anon, fixed|unix.F_SEAL_WRITE)
	for _, tt := range []struct {
		what string
		f    *os.File
		want error
	}{
		{"pipe", r, shm.ErrNotSegment},
		{"pipe to write", w, shm.ErrNotSegment},
		{"FIFO", opened(os.OpenFile(fifo, os.O_RDWR|unix.O_NONBLOCK, 0)), shm.ErrNotSegment},
		{"socket", opened(l.(*net.UnixListener).File()), shm.ErrNotSegment},
		{"directory", opened(os.Open(dir)), shm.ErrNotSegment},
		{"directory of blocks", opened(os.Open("/dev/shm")), shm.ErrNotSegment},
		{"device", opened(os.Open("/dev/null")), shm.ErrNotSegment},
		{"/proc", opened(os.Open("/proc/self/status")), shm.ErrNotSegment},
		{"empty file", onDisk(nil), shm.ErrNotSegment},
		{"file", onDisk(anon), shm.ErrNotSegment},
		{"path", opened(os.OpenFile(shmPath(block(t, 1).Name()), unix.O_PATH, 0)), shm.ErrNotSegment},
		{"empty memory", memory(t, nil, 0), shm.ErrNotSegment},
		{"zeros", memory(t, make([]byte, 100000), fixed), shm.ErrNotSegment},
		{"unsealed", memory(t, anon, 0), shm.ErrCorrupt},
		{"half sealed", memory(t, anon, unix.F_SEAL_GROW), shm.ErrCorrupt},
		{"other half sealed", memory(t, anon, unix.F_SEAL_SHRINK), shm.ErrCorrupt},
		{"named header, sealed", memory(t, named, fixed), shm.ErrCorrupt},
		{"named header, nobody attached", memory(t, named, 0), fs.ErrNotExist},
		{"sealed against writing", sealedWrite, fs.ErrPermission},
		{"cut off by one", memory(t, anon[:len(anon)-1], fixed), shm.ErrCorrupt},
		{"cut off in the header", memory(t, anon[:320], fixed), shm.ErrCorrupt},
		{"cut off in the words", memory(t, anon[:319], fixed), shm.ErrNotSegment},
		{"wrong checksum", memory(t, change(anon, atCapacity, 7), fixed), shm.ErrCorrupt},
		{"wrong version", memory(t, func() []byte {
			b := change(anon, atVersion, 9)
			checksum(b)
			return b
		}(), fixed), shm.ErrVersion},
		{"wrong capacity", memory(t, func() []byte {
			b := change(anon, atCapacity+7, 0x7f)
			checksum(b)
			return b
		}(), fixed), shm.ErrCorrupt},
		{"larger than it says", memory(t, append(bytes.Clone(anon), 1, 2, 3), fixed), nil},
		{"dead and far too large, it says", memory(t, change(change(anon, atState, 2), atSize+6, 0xff), fixed), nil},
	} {
		t.Run(tt.what, func(t *testing.T) {
			before := descriptors(t)
			for _, opts := range [][]shm.Option{nil, {shm.ReadOnly()}, {shm.Prefault()}} {
				seg, err := shm.FromFile(tt.f, opts...)
				if err == nil {
					everything(seg)
					seg.Close()
				}
				if tt.f == sealedWrite && opts != nil {
					continue // reading it is allowed, but for the count
				}
				wantErr(t, "FromFile", err, tt.f.Name(), tt.want)
			}
			if seg, err := shm.FromFile(tt.f, shm.Headerless(), shm.ReadOnly()); err == nil {
				seg.Close()
			}
			if after := descriptors(t); after != before {
				t.Errorf("%d descriptors, before %d", after, before)
			}
		})
	}
	writeOnly := opened(os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", memory(t, anon, fixed).Fd()), os.O_WRONLY, 0))
	mustFail(t, second(shm.FromFile(writeOnly)), writeOnly.Name(), fs.ErrPermission)
}

// A block under a name that says it is anonymous is none.
func TestAnonymousWithName(t *testing.T) {
	name := plant(t, anonymousImage(t, 100))
	mustFail(t, tryOpen(name), name, shm.ErrCorrupt)
	mustFail(t, tryOpen(name, shm.ReadOnly()), name, shm.ErrCorrupt)
}

func TestFromFileConcurrent(t *testing.T) {
	for _, seg := range []*shm.Segment{anonymous(t, 100), block(t, 100)} {
		f := file(t, seg)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 50 {
					peer, err := shm.FromFile(f)
					if err != nil {
						t.Error(err)
						return
					}
					copied, err := peer.File()
					if err != nil {
						t.Error(err)
						return
					}
					copied.Close()
					peer.Close()
				}
			})
		}
		wg.Wait()
		if seg.Refs() != 1 {
			t.Errorf("%d references", seg.Refs())
		}
	}
}

func TestFileWithoutProc(t *testing.T) {
	if !privately(t, "tmpfs", "") {
		return
	}
	seg, named := anonymous(t, 100), block(t, 100)
	f, namedFile := file(t, seg), file(t, named)
	reader := take(t, f, shm.ReadOnly())
	mount(t, "tmpfs", "/proc", "")
	take(t, file(t, seg)).Close()
	mustFail(t, second(reader.File()), "", errors.ErrUnsupported)
	mustFail(t, second(shm.FromFile(namedFile)), namedFile.Name(), errors.ErrUnsupported)
}

// Those who attach by one file do not share a position in it.
func TestFromFileStreams(t *testing.T) {
	const size, rounds = 16 << 10, 2000
	f := file(t, anonymous(t, 2*size))
	var all sync.WaitGroup
	for i := range 2 {
		seg := take(t, f)
		want := bytes.Repeat([]byte{'a' + byte(i)}, size)
		path := filepath.Join(t.TempDir(), "stream")
		if err := os.WriteFile(path, want, 0o600); err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			for range rounds {
				src, err := os.Open(path)
				if err != nil {
					t.Error(err)
					return
				}
				seg.Seek(int64(i)*size, io.SeekStart)
				_, err = seg.ReadFrom(src)
				src.Close()
				got := make([]byte, size)
				if _, readErr := seg.ReadAt(got, int64(i)*size); err != nil || readErr != nil && readErr != io.EOF || !bytes.Equal(got, want) {
					t.Errorf("stream %d: %v, %v, or other bytes", i, err, readErr)
					return
				}
				again := take(t, f) // one that has not been written to
				seg.Close()
				seg = again
			}
		})
	}
	all.Wait()
}
