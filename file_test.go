//go:build linux || darwin

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
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
)

// newHeir starts an agent, of another user if so asked, that has the file.
func newHeir(t *testing.T, f *os.File, other bool) agent {
	t.Helper()
	cmd := proctest.Command(agentProgram)
	cmd.ExtraFiles = []*os.File{f}
	if other {
		proctest.Stranger(t, cmd)
	}
	return agent{proctest.StartCommand(t, cmd), t}
}

func mustRoot(t testing.TB, what string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skipf("only root can %s: run the tests as root", what)
	}
}

// stranger makes a process one of another user, who is not root.
func stranger(cmd *exec.Cmd) {
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}

func descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/dev/fd")
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
		mode := fs.FileMode(0) // for nobody to open it
		if shm.Files() {
			mode = 0o644
		}
		if i := info.Sys().(*shm.Info); i.Linked || i.Persistent || i.Mode != mode || i.Stale() {
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
	for _, size := range []int64{math.MaxInt - 4096, math.MaxInt64, 1 << 60} {
		mustFail(t, second(shm.Anonymous(size)), "", shm.ErrNoSpace)
	}
	for _, o := range []shm.Option{nil, shm.ReadOnly(), shm.Persistent(), shm.Perm(0o600), shm.Headerless()} {
		mustFail(t, second(shm.Anonymous(1, o)), "", fs.ErrInvalid)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, before %d", after, before)
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

// TestFileToChild hands a block to another process, both kinds, and has it end
// in both ways.
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
				want := 1
				if killed && kind == "anonymous" {
					want = 2 // it has no locks: the count of the header is all that is known
				}
				if seg.Refs() != want {
					t.Errorf("%d references, want %d", seg.Refs(), want)
				}
				if err := seg.Close(); err != nil {
					t.Error(err)
				}
				if kind == "named" {
					mustNotExist(t, seg.Name())
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
	mustBeGone(t, name)
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
	attach(t, other.Name()).Close()
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
	other := take(t, f) // without a name, but in use
	if err := errors.Join(peer.Close(), other.Close()); err != nil {
		t.Error(err)
	}
	mustFail(t, second(shm.FromFile(f)), f.Name(), fs.ErrNotExist)
	mustFail(t, second(shm.FromFile(f, shm.ReadOnly())), f.Name(), fs.ErrNotExist)
}

func TestFromFileReadOnly(t *testing.T) {
	for _, seg := range []*shm.Segment{anonymous(t, 5000), block(t, 5000)} {
		reader := take(t, file(t, seg), shm.ReadOnly())
		if seg.Refs() != 2 {
			t.Errorf("%d references", seg.Refs())
		}
		mustFail(t, second(reader.Write([]byte("x"))), reader.Name(), shm.ErrReadOnly)
		mustFail(t, reader.View(func(b []byte) error { b[0]++; return nil }), reader.Name(), shm.ErrFault)
		if reader.Name() == "" && !shm.Files() { // only a name gives another kind of access
			mustFail(t, second(reader.File()), "", errors.ErrUnsupported)
			continue
		}
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
		want := 2
		if seg.Name() != "" && shm.Files() {
			want = 3 // second is counted as well, though it may not write
		}
		if seg.Refs() != want {
			t.Errorf("%d references, want %d", seg.Refs(), want)
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
	if got := content(t, peer); string(got[:3]) != "raw" {
		t.Errorf("holds %q", got)
	}
	if shm.Files() && peer.Name() != seg.Name() || !shm.Files() && peer.Name() != "" { // it is nowhere to be found
		t.Errorf("called %q, not %q", peer.Name(), seg.Name())
	}
	reader := take(t, file(t, attach(t, seg.Name(), shm.Headerless(), shm.ReadOnly())), shm.Headerless(), shm.ReadOnly())
	if got := content(t, reader); string(got[:3]) != "raw" {
		t.Errorf("holds %q", got)
	}
	defer seg.Unlink()
	anon := file(t, anonymous(t, 100))
	mustFail(t, second(shm.FromFile(anon, shm.Headerless())), anon.Name(), fs.ErrInvalid)
}

// A file that was handed to another user is all that he needs for an anonymous
// block; on Linux a block with a name asks for its permissions as well.
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

	private := newHeir(t, file(t, block(t, 1<<16)), true)
	if !shm.Files() { // a descriptor of any block is all that is needed
		private.attach("take")
		return
	}
	private.must("permission", "take")

	toRead := file(t, take(t, file(t, anon), shm.ReadOnly()))
	newHeir(t, toRead, true).must("permission", "take")
	reader := newHeir(t, toRead, true)
	reader.attach("take readonly")
	reader.must("permission", "write 0 abc")
	reader.must("abc", "read 0 3")
}

func TestFromFileKeepsFile(t *testing.T) {
	seg := anonymous(t, 100)
	f := file(t, seg)
	_, seekErr := f.Seek(7, io.SeekStart) // an offset is not on every system
	before := descriptors(t)
	peer := take(t, f)
	io.WriteString(peer, "moves its own offset")
	peer.Close()
	if off, err := f.Seek(0, io.SeekCurrent); seekErr == nil && (off != 7 || err != nil) {
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

func opened(t testing.TB) func(*os.File, error) *os.File {
	return func(f *os.File, err error) *os.File {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
}

// diskDir returns a new directory on a disk: on some systems /tmp is a tmpfs.
func diskDir(t testing.TB) string {
	t.Helper()
	const tmpfs = 0x01021994 // of Linux
	for _, parent := range []string{"", "/var/tmp"} {
		dir, err := os.MkdirTemp(parent, "shm-test-")
		if err != nil {
			continue
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		var sfs unix.Statfs_t
		if err := unix.Statfs(dir, &sfs); err == nil && sfs.Type != tmpfs {
			return dir
		}
	}
	t.Skip("no directory for temporary files on a disk: set TMPDIR to one")
	return ""
}

func onDisk(t testing.TB, content []byte) *os.File {
	t.Helper()
	f := opened(t)(os.CreateTemp(diskDir(t), ""))
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
	return f
}

// hand calls FromFile in every way, and checks what it returns, unless it need
// not be an error where not all of the block is asked for.
func hand(t *testing.T, what string, f *os.File, want error, halfAllowed bool) {
	t.Run(what, func(t *testing.T) {
		before := descriptors(t)
		for _, opts := range [][]shm.Option{nil, {shm.ReadOnly()}, {shm.Prefault()}} {
			seg, err := shm.FromFile(f, opts...)
			if err == nil {
				everything(seg)
				seg.Close()
			}
			if halfAllowed && opts != nil {
				continue // reading it is allowed, but for the count
			}
			if want != nil || err != nil {
				mustFail(t, err, f.Name(), want)
			}
		}
		if seg, err := shm.FromFile(f, shm.Headerless(), shm.ReadOnly()); err == nil {
			seg.Close()
		}
		if after := descriptors(t); after != before {
			t.Errorf("%d descriptors, before %d", after, before)
		}
	})
}

func TestFromFileHostile(t *testing.T) {
	dir, err := os.MkdirTemp("", "") // short enough for a socket in it
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	opened(t)(r, err)
	opened(t)(w, err)
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	for what, f := range map[string]*os.File{
		"pipe":          r,
		"pipe to write": w,
		"FIFO":          opened(t)(os.OpenFile(fifo, os.O_RDWR|unix.O_NONBLOCK, 0)),
		"listener":      opened(t)(l.(*net.UnixListener).File()),
		"socket":        opened(t)(os.NewFile(uintptr(pair[0]), "socket"), nil),
		"other socket":  opened(t)(os.NewFile(uintptr(pair[1]), "socket"), nil),
		"directory":     opened(t)(os.Open(dir)),
		"device":        opened(t)(os.Open("/dev/null")),
		"file":          onDisk(t, make([]byte, 100_000)),
		"empty file":    onDisk(t, nil),
		"to write only": opened(t)(os.OpenFile(onDisk(t, nil).Name(), os.O_WRONLY, 0)),
	} {
		hand(t, what, f, shm.ErrNotSegment, false)
	}
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
