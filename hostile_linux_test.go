package shm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
)

// These tests put in the way of the package what other programs can put there:
// other things under the name of a block, headers that lie, objects that lose
// their memory. Everything may fail, but only with an error. docs/hostile.md
// lists them.

func shmPath(name string) string { return "/dev/shm/" + name }

// apart runs the test again, in a process of its own that setup has changed,
// and reports whether this is that process. What it is told is in apartArg.
func apart(t *testing.T, arg string, setup func(*exec.Cmd)) bool {
	t.Helper()
	key := t.Name() + "=" + arg
	if os.Getenv("SHM_APART") == key {
		return true
	}
	var pattern []string
	for part := range strings.SplitSeq(t.Name(), "/") {
		pattern = append(pattern, "^"+part+"$")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run", strings.Join(pattern, "/"), "-test.count=1", "-test.timeout=5m")
	// The race detector else has each process wait for a second at its end.
	cmd.Env = append(os.Environ(), "SHM_APART="+key, "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	if testing.Verbose() {
		cmd.Args = append(cmd.Args, "-test.v")
	}
	setup(cmd)
	out, err := cmd.CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("no tests to run")) {
		t.Errorf("%s: %v\n%s", key, err, out)
	} else if testing.Verbose() {
		t.Logf("%s", out)
	}
	return false
}

// undisturbed runs the test again where dead blocks stay until the test does
// something about them, and reports whether this is there: in /dev/shm, the next
// process that comes by may reap them.
func undisturbed(t *testing.T) bool {
	t.Helper()
	return privately(t, "tmpfs", "")
}

// plant makes a file in place of a block.
func plant(t testing.TB, content []byte) (name string) {
	t.Helper()
	name = unique(t)
	plantAt(t, name, content)
	return name
}

func plantAt(t testing.TB, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(shmPath(name), content, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(shmPath(name)) })
}

func mustBeFree(t testing.TB, name string) {
	t.Helper()
	if _, err := os.Lstat(shmPath(name)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v", name, err)
		os.Remove(shmPath(name))
	}
}

// mustStay checks that nobody has taken the name away.
func mustStay(t testing.TB, name string) {
	t.Helper()
	if _, err := os.Lstat(shmPath(name)); err != nil {
		t.Errorf("%s is gone: %v", name, err)
	}
}

// wantErr checks an error as mustFail does, nil meaning that there is none.
func wantErr(t testing.TB, what string, err error, name string, want error) {
	t.Helper()
	switch {
	case want == nil && err != nil:
		t.Errorf("%s: %v", what, err)
	case want != nil && !errors.Is(err, want):
		t.Errorf("%s: %v, want %v", what, err, want)
	case want != nil:
		mustFail(t, err, name, want)
	}
}

func tryOpen(name string, opts ...shm.Option) error {
	seg, err := shm.Open(name, opts...)
	if err == nil {
		seg.Close()
	}
	return err
}

func tryCreate(name string, size int64, opts ...shm.Option) error {
	seg, err := shm.Create(name, size, opts...)
	if err == nil {
		seg.Close()
	}
	return err
}

// TestInPlaceOfABlock has something else under the name of a block.
func TestInPlaceOfABlock(t *testing.T) {
	onTmpfs(t)
	// What each call returns; a reap never takes any of it away.
	type answers struct{ create, open, raw, join, stat, unlink error }
	never := answers{fs.ErrExist, shm.ErrNotSegment, shm.ErrNotSegment, shm.ErrNotSegment, shm.ErrNotSegment, shm.ErrNotSegment}
	foreign := answers{fs.ErrExist, shm.ErrNotSegment, nil, shm.ErrNotSegment, nil, nil}
	empty := foreign
	empty.raw = shm.ErrNotSegment
	file := func(content []byte, mode fs.FileMode) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	link := func(to string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			if err := os.Symlink(to, path); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, tt := range map[string]struct {
		make func(t *testing.T, path string)
		want answers
	}{
		"symlink to a file": {func(t *testing.T, path string) {
			link(filepath.Join("/dev/shm", plant(t, []byte("target"))))(t, path)
		}, never},
		"symlink to a block": {func(t *testing.T, path string) { link(block(t, 10).Name())(t, path) }, never},
		"dangling symlink":   {link("/dev/shm/nothing-there"), never},
		"symlink to itself":  {func(t *testing.T, path string) { link(path)(t, path) }, never},
		"symlink to passwd":  {link("/etc/passwd"), never},
		"FIFO": {func(t *testing.T, path string) {
			if err := syscall.Mkfifo(path, 0o666); err != nil {
				t.Fatal(err)
			}
		}, never},
		"directory": {func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o777); err != nil {
				t.Fatal(err)
			}
		}, never},
		"socket": {func(t *testing.T, path string) {
			fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer syscall.Close(fd)
			if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
				t.Fatal(err)
			}
		}, never},
		"device": {func(t *testing.T, path string) {
			mustRoot(t, "make devices")
			if err := syscall.Mknod(path, syscall.S_IFCHR|0o666, 1<<8|3); err != nil {
				t.Skip(err)
			}
		}, never},
		"device without driver": {func(t *testing.T, path string) {
			mustRoot(t, "make devices")
			if err := syscall.Mknod(path, syscall.S_IFBLK|0o666, 0xfff<<8|0xff); err != nil {
				t.Skip(err)
			}
		}, never},
		"hard link to a foreign file": {func(t *testing.T, path string) {
			if err := os.Link(shmPath(plant(t, []byte("foreign"))), path); err != nil {
				t.Fatal(err)
			}
		}, foreign},
		"foreign file":             {file([]byte("foreign"), 0o600), foreign},
		"empty file":               {file(nil, 0o600), empty},
		"one byte":                 {file([]byte{'s'}, 0o600), foreign},
		"a page of zeros":          {file(make([]byte, 4096), 0o600), foreign},
		"just the magic":           {file([]byte("shmkit\x1a\n"), 0o600), foreign},
		"file without permissions": {file([]byte("foreign"), 0), foreign},
	} {
		t.Run(name, func(t *testing.T) {
			if strings.Contains(name, "without permissions") {
				mustRoot(t, "open a file without permissions")
			}
			name := unique(t)
			tt.make(t, shmPath(name))
			t.Cleanup(func() { os.RemoveAll(shmPath(name)) })
			want := tt.want
			wantErr(t, "Create", tryCreate(name, 1), name, want.create)
			wantErr(t, "Create Headerless", tryCreate(name, 1, shm.Headerless()), name, want.create)
			wantErr(t, "Open", tryOpen(name), name, want.open)
			wantErr(t, "Open ReadOnly", tryOpen(name, shm.ReadOnly()), name, want.open)
			wantErr(t, "Open Headerless", tryOpen(name, shm.Headerless()), name, want.raw)
			wantErr(t, "Open Headerless ReadOnly", tryOpen(name, shm.Headerless(), shm.ReadOnly()), name, want.raw)
			seg, _, err := shm.OpenOrCreate(name, 1)
			wantErr(t, "OpenOrCreate", err, name, want.join)
			if err == nil {
				seg.Close()
			}
			wantErr(t, "Stat", second(shm.Stat(name)), name, want.stat)
			if list, err := shm.List(); err != nil || slices.ContainsFunc(list, func(i shm.Info) bool { return i.Name == name }) != (want.stat == nil) {
				t.Errorf("List: %v, %v", list, err)
			}
			if names, err := shm.Reap(); err != nil || slices.Contains(names, name) {
				t.Errorf("Reap: %v, %v", names, err)
			}
			mustStay(t, name)
			wantErr(t, "Unlink", shm.Unlink(name), name, want.unlink)
			if want.unlink == nil {
				mustBeFree(t, name)
			} else {
				mustStay(t, name)
			}
		})
	}
}

// TestRunningProgram has a program that is running in place of a block, which
// nobody may open to write.
func TestRunningProgram(t *testing.T) {
	onTmpfs(t)
	cat, err := os.ReadFile("/bin/cat")
	if err != nil {
		t.Skip(err)
	}
	name := plant(t, cat)
	if err := os.Chmod(shmPath(name), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(shmPath(name))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil { // mounted noexec
		t.Skip(err)
	}
	defer cmd.Wait()
	defer in.Close()
	wantErr(t, "Open", tryOpen(name), name, shm.ErrNotSegment)
	wantErr(t, "Create", tryCreate(name, 1), name, fs.ErrExist)
	wantErr(t, "Unlink", shm.Unlink(name), name, shm.ErrNotSegment)
	if _, err := shm.Reap(); err != nil {
		t.Errorf("Reap: %v", err)
	}
	mustStay(t, name)
}

// TestOthersFIFO has a FIFO that its owner may unlink and not open.
func TestOthersFIFO(t *testing.T) {
	onTmpfs(t)
	if os.Getenv("SHM_APART") == "" {
		mustRoot(t, "start processes of another user")
	}
	if !apart(t, "", stranger) {
		return
	}
	name := unique(t)
	if err := syscall.Mkfifo(shmPath(name), 0); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(shmPath(name))
	wantErr(t, "Open", tryOpen(name), name, fs.ErrPermission)
	wantErr(t, "Create", tryCreate(name, 1), name, fs.ErrExist)
	wantErr(t, "Unlink", shm.Unlink(name), name, shm.ErrNotSegment)
	mustStay(t, name)
}

// TestTwoNames has a hard link lead to a block that is in use.
func TestTwoNames(t *testing.T) {
	onTmpfs(t)
	seg, other := block(t, 10), unique(t)
	if err := os.Link(shmPath(seg.Name()), shmPath(other)); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(shmPath(other))
	peer := attach(t, other)
	seg.WriteString("one block!")
	if got := content(t, peer); string(got) != "one block!" {
		t.Errorf("read %q", got)
	}
	seg.Close()
	mustStay(t, seg.Name())
	peer.Close()
	mustNotExist(t, other)
	mustNotExist(t, seg.Name()) // dead under its first name
	mustBeFree(t, seg.Name())
}

// TestOthersBlock has a block that belongs to another user.
func TestOthersBlock(t *testing.T) {
	onTmpfs(t)
	if os.Getenv("SHM_OTHERS") == "" {
		mustRoot(t, "start processes of another user")
	}
	for _, tt := range []struct {
		perm               fs.FileMode
		open, readOnly     error
		stat, create, join error
	}{
		{0o600, fs.ErrPermission, fs.ErrPermission, fs.ErrPermission, fs.ErrExist, fs.ErrPermission},
		{0o644, fs.ErrPermission, nil, nil, fs.ErrExist, fs.ErrPermission},
		{0o666, nil, nil, nil, fs.ErrExist, nil},
	} {
		t.Run(fmt.Sprintf("%o", tt.perm), func(t *testing.T) {
			name := os.Getenv("SHM_OTHERS")
			if name == "" {
				seg := block(t, 100, shm.Perm(tt.perm))
				apart(t, "", func(cmd *exec.Cmd) {
					stranger(cmd)
					cmd.Env = append(cmd.Env, "SHM_OTHERS="+seg.Name())
				})
				// The stranger has come and gone; nothing has changed for us.
				if seg.Refs() != 1 {
					t.Errorf("refs %d", seg.Refs())
				}
				seg.Close()
				mustNotExist(t, seg.Name())
				mustBeFree(t, seg.Name())
				return
			}
			wantErr(t, "Open", tryOpen(name), name, tt.open)
			wantErr(t, "Open ReadOnly", tryOpen(name, shm.ReadOnly()), name, tt.readOnly)
			wantErr(t, "Stat", second(shm.Stat(name)), name, tt.stat)
			wantErr(t, "Create", tryCreate(name, 1), name, tt.create)
			wantErr(t, "Unlink", shm.Unlink(name), name, fs.ErrPermission) // the directory is sticky
			if seg, err := shm.Open(name); err == nil {
				wantErr(t, "Segment.Unlink", seg.Unlink(), name, fs.ErrPermission)
				seg.Close()
			}
			seg, _, err := shm.OpenOrCreate(name, 1)
			wantErr(t, "OpenOrCreate", err, name, tt.join)
			if err == nil {
				seg.Close()
			}
			if names, err := shm.Reap(); err != nil || slices.Contains(names, name) {
				t.Errorf("Reap: %v, %v", names, err)
			}
		})
	}
}

// TestOthersDeadBlock has one who may not unlink a block be the last to leave.
func TestOthersDeadBlock(t *testing.T) {
	onTmpfs(t)
	mustRoot(t, "start processes of another user")
	if !undisturbed(t) {
		return
	}
	for _, perm := range []fs.FileMode{0o644, 0o666} {
		for _, finish := range []string{"Reap", "Create"} {
			t.Run(fmt.Sprintf("%o %s", perm, finish), func(t *testing.T) {
				seg := block(t, 100, shm.Perm(perm))
				name := seg.Name()
				cmd := proctest.Command(attachProgram, name)
				cmd.Path = "/proc/self/exe"
				stranger(cmd)
				last := proctest.StartCommand(t, cmd)
				last.Expect("attached")
				seg.Close()
				mustStay(t, name)
				last.Say("close")
				last.Expect("closed")
				mustStay(t, name)
				if info, err := shm.Stat(name); err != nil || !info.Stale() {
					t.Errorf("Stat: %+v, %v", info, err)
				}
				if finish == "Reap" {
					if names, err := shm.Reap(); err != nil || !slices.Contains(names, name) {
						t.Errorf("Reap: %v, %v", names, err)
					}
				} else if err := tryCreate(name, 5); err != nil {
					t.Error(err)
				}
				mustBeFree(t, name)
			})
		}
	}
}

// attachProgram attaches to a block, as best it may, until told to close.
var attachProgram = proctest.Register("attach", func(p *proctest.Parent) error {
	seg, err := shm.Open(p.Args[0])
	if errors.Is(err, fs.ErrPermission) {
		seg, err = shm.Open(p.Args[0], shm.ReadOnly())
	}
	if err != nil {
		return err
	}
	p.Say("attached")
	if _, err := p.Hear(); err != nil {
		return nil // as one that is killed
	}
	err = seg.Close()
	p.Say("closed")
	return err
})

// Where things are in a header; see refcount.go.
const (
	atVersion, atHeaderSize, atCapacity, atFlags = 8, 12, 16, 24
	atCreator, atCreated, atID, atZero, atSum    = 28, 32, 40, 56, 60
	atState, atCount, atSize, atWritten          = 64, 128, 192, 256
	headerEnd                                    = 320
)

// image returns what the file of a new block with the given capacity holds.
func image(t testing.TB, capacity int64, opts ...shm.Option) []byte {
	t.Helper()
	seg := block(t, capacity, opts...)
	b, err := os.ReadFile(shmPath(seg.Name()))
	if err != nil {
		t.Fatal(err)
	}
	seg.Unlink()
	seg.Close()
	return b
}

func checksum(b []byte) {
	binary.NativeEndian.PutUint32(b[atSum:], crc32.Checksum(b[:atSum], crc32.MakeTable(crc32.Castagnoli)))
}

// put stores v at off, in as many bytes as the field has.
func put(b []byte, off int, v uint64) {
	switch off {
	case atCapacity, atCreated, atID, atSize, atWritten:
		binary.NativeEndian.PutUint64(b[off:], v)
	default:
		binary.NativeEndian.PutUint32(b[off:], uint32(v))
	}
}

var extremes = []uint64{
	0, 1, 2, 3, 4095, 4096, 4097, 8192, 65535, 65536, 65537, 1 << 31, math.MaxInt32, math.MaxUint32,
	1 << 40, 1 << 46, 1 << 47, 1 << 62, 1<<62 + 1, math.MaxInt64 - 65536, math.MaxInt64 - 65535, math.MaxInt64, 1 << 63, math.MaxUint64,
}

// TestHeaderFields has the fields of the header at their extremes, under a
// checksum that is right, on a dead block and on one in use.
func TestHeaderFields(t *testing.T) {
	onTmpfs(t)
	if !undisturbed(t) {
		return
	}
	shm.SetPatience(t, time.Millisecond)
	const capacity = 10000
	for _, off := range []int{atVersion, atHeaderSize, atCapacity, atFlags, atCreator, atCreated, atID, atZero} {
		for _, v := range extremes {
			if (off < atCapacity || off == atFlags || off == atCreator || off == atZero) && v > math.MaxUint32 {
				continue
			}
			what := fmt.Sprintf("field %d = %#x", off, v)
			b := image(t, capacity)
			put(b, off, v)
			checksum(b)
			var want error // of whoever does not look whether it is dead
			switch {
			case off == atVersion && v != 1:
				want = shm.ErrVersion
			case off == atHeaderSize && (v == 4096 || v == 8192 || v == 65536) || off == atCapacity && 1 <= v && v <= capacity:
			case off == atHeaderSize, off == atCapacity:
				want = shm.ErrCorrupt
			}
			name := plant(t, b)
			if off == atHeaderSize { // so that it is not simply too short
				if err := os.Truncate(shmPath(name), max(int64(v)+capacity, int64(len(b)))); err != nil {
					t.Fatal(err)
				}
			}
			wantErr(t, what+": Stat", second(shm.Stat(name)), name, want)
			persistent := off == atFlags && v&1 != 0
			wantRaw := fs.ErrInvalid
			if want == nil && !persistent && !(off == atFlags && v&4 != 0) { // stale
				wantRaw = fs.ErrNotExist
			}
			wantErr(t, what+": Open Headerless", tryOpen(name, shm.Headerless()), name, wantRaw)
			switch {
			case want != nil:
				wantErr(t, what+": Open", tryOpen(name), name, want)
				wantErr(t, what+": Open ReadOnly", tryOpen(name, shm.ReadOnly()), name, want)
				mustStay(t, name)
			case off == atFlags && v&4 != 0: // anonymous, and yet it has a name
				wantErr(t, what+": Open", tryOpen(name), name, shm.ErrCorrupt)
				mustStay(t, name)
			case persistent:
				wantErr(t, what+": Open", tryOpen(name), name, nil)
				mustStay(t, name)
			default:
				wantErr(t, what+": Open", tryOpen(name), name, fs.ErrNotExist)
				mustBeFree(t, name)
			}
			os.Remove(shmPath(name))

			scribbled(t, what, b[:64])
		}
	}
}

// scribbled writes b over the header of a block in use, and uses it.
func scribbled(t *testing.T, what string, b []byte) {
	t.Helper()
	seg := block(t, 10000)
	name := seg.Name()
	file, err := os.OpenFile(shmPath(name), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	everything(seg)
	if size, count := seg.Size(), seg.Refs(); size < 0 || size > 10000 || count < 0 {
		t.Errorf("%s: size %d, refs %d", what, size, count)
	}
	if peer, err := shm.Open(name); err == nil {
		if c := peer.Cap(); c <= 10000 {
			everything(peer)
		}
		peer.Close()
	}
	if err := tryCreate(name, 1); !errors.Is(err, fs.ErrExist) {
		t.Errorf("%s: Create over a block in use: %v", what, err)
	}
	if err := seg.Close(); err != nil {
		t.Errorf("%s: Close: %v", what, err)
	}
	mustBeFree(t, name)
}

// TestHeaderLength has a block of a huge capacity in a file that is as long.
func TestHeaderLength(t *testing.T) {
	onTmpfs(t)
	for _, capacity := range []int64{1 << 47, 1 << 61, math.MaxInt64 - 65536} {
		b := image(t, 10)
		put(b, atCapacity, uint64(capacity))
		put(b, atFlags, 1) // Persistent, so that it is not simply dead
		checksum(b)
		name := plant(t, b)
		if err := os.Truncate(shmPath(name), capacity+4096); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "Open", tryOpen(name), name, shm.ErrNoSpace)
		wantErr(t, "Open ReadOnly", tryOpen(name, shm.ReadOnly()), name, shm.ErrNoSpace)
		if info, err := shm.Stat(name); err != nil || info.Cap != capacity || info.Size != 10 {
			t.Errorf("Stat: %+v, %v", info, err)
		}
		if err := shm.Unlink(name); err != nil {
			t.Error(err)
		}
	}
}

// TestHeaderBits turns each bit of the checksummed part around.
func TestHeaderBits(t *testing.T) {
	onTmpfs(t)
	b := image(t, 100)
	for bit := range 8 * 64 {
		b[bit/8] ^= 1 << (bit % 8)
		name := plant(t, b)
		b[bit/8] ^= 1 << (bit % 8)
		want, wantStat := shm.ErrCorrupt, shm.ErrCorrupt
		if bit < 64 {
			want, wantStat = shm.ErrNotSegment, nil
		}
		what := fmt.Sprintf("bit %d", bit)
		wantErr(t, what+": Open", tryOpen(name), name, want)
		wantErr(t, what+": Open ReadOnly", tryOpen(name, shm.ReadOnly()), name, want)
		wantErr(t, what+": Create", tryCreate(name, 1), name, fs.ErrExist)
		wantErr(t, what+": Stat", second(shm.Stat(name)), name, wantStat)
		mustStay(t, name)
		if err := shm.Unlink(name); err != nil {
			t.Errorf("%s: Unlink: %v", what, err)
		}
		mustBeFree(t, name)
	}
}

// TestCutOff has every length that a dead block can be cut to.
func TestCutOff(t *testing.T) {
	onTmpfs(t)
	if !undisturbed(t) {
		return
	}
	b := image(t, 5000)
	var lengths []int
	for n := range 400 {
		lengths = append(lengths, n)
	}
	lengths = append(lengths, 4094, 4095, 4096, 4097, 8191, 8192, 8193, len(b)-1, len(b), len(b)+1)
	for _, n := range lengths {
		what := fmt.Sprintf("cut off at %d", n)
		name := plant(t, append(slices.Clone(b), 0)[:n])
		want, wantCreate, wantRaw := shm.ErrNotSegment, fs.ErrExist, error(nil)
		switch {
		case n >= len(b):
			want, wantCreate, wantRaw = fs.ErrNotExist, nil, fs.ErrNotExist
		case n >= headerEnd: // it is plain that it was a block, and that nobody can use it
			want, wantCreate, wantRaw = shm.ErrCorrupt, nil, fs.ErrInvalid
		case n == 0:
			wantRaw = shm.ErrNotSegment
		}
		wantErr(t, what+": Open Headerless", tryOpen(name, shm.Headerless()), name, wantRaw)
		wantErr(t, what+": Open", tryOpen(name), name, want)
		wantErr(t, what+": Create", tryCreate(name, 1), name, wantCreate)
		if wantCreate == nil {
			mustBeFree(t, name)
			continue
		}
		mustStay(t, name)
		os.Remove(shmPath(name))
	}
}

// TestWords has the words that change at their extremes.
func TestWords(t *testing.T) {
	onTmpfs(t)
	if !undisturbed(t) {
		return
	}
	shm.SetPatience(t, time.Millisecond)
	for _, off := range []int{atState, atCount, atSize, atWritten} {
		for _, v := range extremes {
			if off < atSize && v > math.MaxUint32 {
				continue
			}
			what := fmt.Sprintf("word %d = %#x", off, v)
			dead := image(t, 10000)
			put(dead, off, v)
			name := plant(t, dead)
			info, err := shm.Stat(name)
			if err != nil || info.Size < 0 || info.Size > info.Cap || info.Refs < 0 {
				t.Errorf("%s: Stat: %+v, %v", what, info, err)
			}
			wantErr(t, what+": Open", tryOpen(name), name, fs.ErrNotExist)
			mustBeFree(t, name)

			kept := image(t, 10000, shm.Persistent())
			put(kept, off, v)
			name = plant(t, kept)
			seg, err := shm.Open(name)
			if off == atState && v != 1 {
				wantErr(t, what+": Open", err, name, shm.ErrCorrupt)
			} else if err != nil {
				t.Errorf("%s: Open: %v", what, err)
			}
			if err == nil {
				if seg.Refs() != 1 || seg.Size() < 0 || seg.Size() > 10000 || len(seg.Bytes()) != int(seg.Size()) {
					t.Errorf("%s: refs %d, size %d", what, seg.Refs(), seg.Size())
				}
				everything(seg)
				seg.Close()
			}
			wantErr(t, what+": Unlink", shm.Unlink(name), name, nil)

			scribbled(t, what, kept[:headerEnd])
		}
	}
}

// scribbleProgram writes at random over a header until it is killed.
var scribbleProgram = proctest.Register("scribble", func(p *proctest.Parent) error {
	file, err := os.OpenFile(shmPath(p.Args[0]), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	m, err := syscall.Mmap(int(file.Fd()), 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return err
	}
	saved := bytes.Clone(m[:headerEnd])
	p.Say("ready")
	p.Hear()
	for i := 0; ; i++ {
		switch i % 4 {
		case 0: // the words
			off := []int{atState, atCount, atSize, atWritten}[rand.IntN(4)]
			put(m, off, extremes[rand.IntN(len(extremes))]+rand.Uint64N(3)*5000)
		case 1:
			put(m, []int{atSize, atWritten}[rand.IntN(2)], rand.Uint64())
		case 2: // anything
			m[rand.IntN(headerEnd)] = byte(rand.Uint32())
		case 3:
			copy(m, saved)
		}
		if os.Getppid() == 1 {
			return nil
		}
	}
})

// TestScribblers has other processes write over the header of a block while it
// is being used in all ways.
func TestScribblers(t *testing.T) {
	onTmpfs(t)
	shm.SetPatience(t, time.Millisecond)
	seg := block(t, 10000)
	name := seg.Name()
	t.Cleanup(func() { os.Remove(shmPath(name)) })
	for range 2 {
		c := proctest.Start(t, scribbleProgram, name)
		c.Expect("ready")
		c.Say("go")
	}
	mine := []error{fs.ErrNotExist, fs.ErrExist, fs.ErrInvalid, shm.ErrCorrupt, shm.ErrVersion, shm.ErrNotSegment, shm.ErrBusy, shm.ErrFull, io.EOF}
	for range rounds(200) {
		everything(seg)
		if size := seg.Size(); size < 0 || size > 10000 || seg.Refs() < 0 {
			t.Errorf("size %d", size)
		}
		for what, call := range calls {
			if what == "Close" || what == "Unlink" || strings.HasSuffix(what, "File") {
				continue
			}
			if err := call(seg); err != nil && !slices.ContainsFunc(mine, func(e error) bool { return errors.Is(err, e) }) {
				t.Errorf("%s: %v", what, err)
			}
		}
		for _, opts := range [][]shm.Option{nil, {shm.ReadOnly()}, {shm.Headerless()}} {
			peer, err := shm.Open(name, opts...)
			if err == nil {
				everything(peer)
				peer.Close()
			} else if !slices.ContainsFunc(mine, func(e error) bool { return errors.Is(err, e) }) {
				t.Errorf("Open: %v", err)
			}
		}
		if err := tryCreate(name, 1); !errors.Is(err, fs.ErrExist) {
			t.Fatalf("Create over a block in use: %v", err)
		}
		shm.Stat(name)
		shm.Reap()
		mustStay(t, name)
	}
	seg.Close()
	mustBeFree(t, name)
}

// cut is a block whose object somebody else has cut off.
type cut struct {
	length int64 // of the object now
	start  int64 // where its data begins
	cap    int64
}

// there returns how many of n bytes at off can be had: those up to the end of
// the object, or, as only pages fault, all of them in its last page.
func (c cut) there(off, n int64) (int64, error) {
	page := int64(os.Getpagesize())
	from := c.start + off
	if end := (c.length + page - 1) / page * page; n == 0 || from+n <= end {
		return n, nil
	}
	return min(max(c.length-from, 0), n), shm.ErrFault
}

// pages is there for bytes that the system moves, which sees pages only.
func (c cut) pages(off, n int64) (int64, error) {
	page := int64(os.Getpagesize())
	end := (c.length + page - 1) / page * page
	if m := max(end-c.start-off, 0); m < n {
		return m, shm.ErrFault
	}
	return n, nil
}

// exact is there for bytes that are read by system calls.
func (c cut) exact(off, n int64) (int64, error) {
	if m := max(c.length-c.start-off, 0); m < n {
		return m, shm.ErrFault
	}
	return n, nil
}

// TestCutWhileAttached cuts off the object under a Segment.
func TestCutWhileAttached(t *testing.T) {
	onTmpfs(t)
	page := int64(os.Getpagesize())
	capacity := 3*page + 100
	full := noise(int(capacity))
	for kind, opts := range map[string][]shm.Option{"reserved": nil, "sparse": {shm.Sparse()}, "headerless": {shm.Headerless()}} {
		start := page
		if kind == "headerless" {
			start = 0
		}
		var lengths []int64
		for _, n := range []int64{0, 1, 100, 300, 320, page - 1, page, page + 1, page + 10, 2*page - 1, 2 * page, 2*page + 10, 3*page + 7, 4*page + 50} {
			if n < start+capacity {
				lengths = append(lengths, n)
			}
		}
		for _, length := range lengths {
			t.Run(fmt.Sprintf("%s/%d", kind, length), func(t *testing.T) {
				fresh := func() *shm.Segment {
					seg := block(t, capacity, opts...)
					seg.WriteAt(full, 0)
					if err := os.Truncate(shmPath(seg.Name()), length); err != nil {
						t.Fatal(err)
					}
					return seg
				}
				managed := start > 0
				c := cut{length, start, capacity}
				readable, streamable := c.there, c.pages
				if kind == "sparse" {
					readable, streamable = c.exact, c.exact
				}
				size, headerErr := capacity, error(nil)
				if managed && length <= atSize {
					size = 0 // a zero now
				}
				if managed && length == 0 {
					headerErr = shm.ErrFault
				}
				reads := func(what string, n int64, err error, wantN int64, want error) {
					t.Helper()
					if n != wantN || !errors.Is(err, want) || want == nil && err != nil {
						t.Errorf("%s: %d, %v; want %d, %v", what, n, err, wantN, want)
					}
					if err != nil && err != io.EOF && !errors.Is(err, io.EOF) {
						var path *fs.PathError
						if !errors.As(err, &path) {
							t.Errorf("%s: %T", what, err)
						}
					}
				}

				seg := fresh()
				for _, r := range []struct{ off, n int64 }{{0, capacity}, {0, 10}, {5, page}, {page - 5, 10}, {page, page}, {2*page + 1, 2 * page}, {capacity - 1, 1}} {
					wantN, want := int64(0), headerErr
					if want == nil {
						wantN, want = readable(r.off, max(min(r.n, size-r.off), 0))
						if want == nil && wantN < r.n {
							want = io.EOF
						}
					}
					p := bytes.Repeat([]byte{0xaa}, int(r.n))
					n, err := seg.ReadAt(p, r.off)
					reads(fmt.Sprintf("ReadAt(%d, %d)", r.n, r.off), int64(n), err, wantN, want)
					below := min(max(length-start-r.off, 0), wantN)
					if !bytes.Equal(p[:below], full[r.off:r.off+below]) || slices.ContainsFunc(p[below:wantN], func(b byte) bool { return b != 0 }) {
						t.Errorf("ReadAt(%d, %d): other bytes", r.n, r.off)
					}
					if seg.Seek(r.off, io.SeekStart); wantN > 0 && want == io.EOF {
						want = nil
					}
					n, err = seg.Read(p)
					reads(fmt.Sprintf("Read %d at %d", r.n, r.off), int64(n), err, wantN, want)
					if off, _ := seg.Seek(0, io.SeekCurrent); off != r.off+wantN {
						t.Errorf("Read: offset %d", off)
					}
				}

				if got := seg.Size(); headerErr == nil && got != size || headerErr != nil && got != 0 {
					t.Errorf("Size %d", got)
				}
				_, err := seg.Stat()
				wantErr(t, "Stat", err, seg.Name(), headerErr)
				_, err = seg.Seek(0, io.SeekEnd)
				wantErr(t, "Seek", err, seg.Name(), headerErr)
				if b := seg.Bytes(); (b == nil) != (headerErr != nil) {
					t.Errorf("Bytes: %d", len(b))
				}
				touch := headerErr
				if _, fault := c.there(0, capacity); fault != nil {
					touch = fault
				}
				err = seg.View(func(b []byte) error {
					clear(b[:capacity])
					return nil
				})
				wantErr(t, "View", err, seg.Name(), touch)
				seg.Refs()

				// The system moves bytes of a file.
				pageN, pageErr := streamable(0, size)
				if headerErr != nil {
					pageN, pageErr = 0, headerErr
				}
				seg.Seek(0, io.SeekStart)
				out, err := os.Create(filepath.Join(t.TempDir(), "out"))
				if err != nil {
					t.Fatal(err)
				}
				defer out.Close()
				moved, err := seg.WriteTo(out)
				reads("WriteTo(file)", moved, err, pageN, pageErr)
				seg.Seek(0, io.SeekStart)
				var plain bytes.Buffer
				moved, err = seg.WriteTo(&plain)
				if headerErr == nil && moved != int64(plain.Len()) {
					t.Errorf("WriteTo: %d bytes, %d arrived", moved, plain.Len())
				}
				if off, _ := seg.Seek(0, io.SeekCurrent); off != moved {
					t.Errorf("WriteTo: offset %d after %d bytes, %v", off, moved, err)
				}

				seg = fresh()
				for _, w := range []struct{ off, n int64 }{{0, capacity}, {0, 10}, {page - 5, 10}, {2*page + 1, page}, {capacity - 1, 1}} {
					wantN, want := int64(0), headerErr
					if want == nil {
						wantN, want = c.there(w.off, w.n)
					}
					n, err := seg.WriteAt(full[:w.n], w.off)
					reads(fmt.Sprintf("WriteAt(%d, %d)", w.n, w.off), int64(n), err, wantN, want)
					seg.Seek(w.off, io.SeekStart)
					n, err = seg.Write(full[:w.n])
					reads(fmt.Sprintf("Write %d at %d", w.n, w.off), int64(n), err, wantN, want)
					seg.Seek(w.off, io.SeekStart)
					m, err := seg.ReadFrom(bytes.NewReader(full[:w.n]))
					reads(fmt.Sprintf("ReadFrom %d at %d", w.n, w.off), m, err, wantN, want)
				}
				if fi, err := os.Stat(shmPath(seg.Name())); err != nil || fi.Size() != length {
					t.Errorf("writing has changed the object: %v, %v", fi, err)
				}
				pageN, pageErr = c.pages(0, capacity)
				if headerErr != nil {
					pageN, pageErr = 0, headerErr
				}
				in, err := os.Create(filepath.Join(t.TempDir(), "in"))
				if err != nil {
					t.Fatal(err)
				}
				defer in.Close()
				in.WriteAt(full, 0)
				in.Seek(0, io.SeekStart)
				seg.Seek(0, io.SeekStart)
				moved, err = seg.ReadFrom(in)
				reads("ReadFrom(file)", moved, err, pageN, pageErr)

				seg = fresh()
				if err := seg.Truncate(7); managed && kind == "reserved" && headerErr == nil && size > 0 {
					wantErr(t, "Truncate", err, seg.Name(), touch)
				}
				seg.Truncate(capacity)

				// Others find out from the header; the one attached is the last.
				seg = fresh()
				want := shm.ErrNotSegment
				if managed && length >= headerEnd {
					want = shm.ErrCorrupt
				}
				wantErr(t, "Open", tryOpen(seg.Name()), seg.Name(), want)
				wantErr(t, "Create", tryCreate(seg.Name(), 1), seg.Name(), fs.ErrExist)
				ro, _ := shm.Reap()
				if slices.Contains(ro, seg.Name()) {
					t.Error("reaped in use")
				}

				// What is extended again is zero, and there.
				if err := os.Truncate(shmPath(seg.Name()), start+capacity); err != nil {
					t.Fatal(err)
				}
				p := make([]byte, capacity)
				if n, err := seg.ReadAt(p, 0); int64(n) != size || err != nil && err != io.EOF {
					t.Errorf("ReadAt when extended: %d, %v", n, err)
				}
				if n, err := seg.WriteAt(full, 0); n != len(full) || err != nil {
					t.Errorf("WriteAt when extended: %d, %v", n, err)
				}
				if err := os.Truncate(shmPath(seg.Name()), length); err != nil {
					t.Fatal(err)
				}
				if err := seg.Close(); err != nil {
					t.Error(err)
				}
				if managed {
					mustBeFree(t, seg.Name())
				} else {
					shm.Unlink(seg.Name())
				}
			})
		}
	}
}

// TestSelfCopy copies the memory of a block that has been cut off to the block
// itself: the fault is then in what is copied from, or in both.
func TestSelfCopy(t *testing.T) {
	onTmpfs(t)
	page := int64(os.Getpagesize())
	for lo := page; lo <= 9*page; lo += page { // the pages of data that stay are 0 to 3
		seg := block(t, 12*page)
		if err := os.Truncate(shmPath(seg.Name()), 5*page); err != nil {
			t.Fatal(err)
		}
		for what, move := range map[string]func(p []byte) error{
			"WriteAt": func(p []byte) error { return second(seg.WriteAt(p, page/2)) },
			"ReadAt":  func(p []byte) error { return second(seg.ReadAt(p, page/2)) },
		} {
			want := error(nil)
			if lo+2*page > 4*page {
				want = shm.ErrFault
			}
			err := seg.View(func(b []byte) error { return move(b[lo : lo+2*page]) })
			wantErr(t, fmt.Sprintf("%s of page %d", what, lo/page), err, seg.Name(), want)
		}
		// And the memory of one block to another.
		other := block(t, 2*page)
		err := seg.View(func(b []byte) error { return second(other.WriteAt(b[8*page:9*page], 0)) })
		if !errors.Is(err, shm.ErrFault) {
			t.Errorf("WriteAt of another block's memory: %v", err)
		}
		if err := other.Close(); err != nil {
			t.Error(err)
		}
		mustBeFree(t, other.Name())
	}
}

// TestLongSelfCopy moves a part of a block over itself, into parts that have not
// been written to before.
func TestLongSelfCopy(t *testing.T) {
	onTmpfs(t)
	const to, n = 300_000, 400_000
	seg, data := block(t, 1<<20), noise(to+n/2)
	seg.WriteAt(data, 0)
	want := append(data[:to:to], data[:n]...)
	seg.View(func(b []byte) error {
		if put, err := seg.WriteAt(b[:n], to); put != n || err != nil {
			t.Errorf("WriteAt: %d, %v", put, err)
		}
		return nil
	})
	if !bytes.Equal(content(t, seg)[:to+n], want) {
		t.Error("it is not what was there before")
	}
}

// TestCutLong writes much to a block that has lost its end: what there is room
// for is written, and the object does not grow again.
func TestCutLong(t *testing.T) {
	onTmpfs(t)
	const left = 100_000
	seg, data := block(t, 1<<20), noise(500_000)
	head := os.Getpagesize()
	if err := os.Truncate(shmPath(seg.Name()), int64(head+left)); err != nil {
		t.Fatal(err)
	}
	if n, err := seg.WriteAt(data, 0); n != left || !errors.Is(err, shm.ErrFault) {
		t.Errorf("WriteAt: %d, %v", n, err)
	}
	got, err := os.ReadFile(shmPath(seg.Name()))
	if err != nil || !bytes.Equal(got[head:], data[:left]) {
		t.Errorf("the object has %d bytes of data, %v", len(got)-head, err)
	}
}

// TestLease has somebody hold a lease on a block, for which an open has to wait.
func TestLease(t *testing.T) {
	onTmpfs(t)
	name := plant(t, image(t, 100))
	file, err := os.OpenFile(shmPath(name), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	signal.Ignore(syscall.SIGIO) // which tells the holder that somebody waits
	defer signal.Reset(syscall.SIGIO)
	const setLease = 1024 // F_SETLEASE
	if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, file.Fd(), setLease, syscall.F_WRLCK); errno != 0 {
		t.Skipf("no leases here: %v: run on a kernel with /proc/sys/fs/leases-enable", errno)
	}
	shm.SetPatience(t, time.Millisecond)
	wantErr(t, "Stat", second(shm.Stat(name)), name, shm.ErrBusy)
	wantErr(t, "Open", tryOpen(name), name, shm.ErrBusy)
	wantErr(t, "Unlink", shm.Unlink(name), name, shm.ErrBusy)
	wantErr(t, "Create", tryCreate(name, 1), name, fs.ErrExist)
	mustStay(t, name)
	syscall.Syscall(syscall.SYS_FCNTL, file.Fd(), setLease, syscall.F_UNLCK)
	wantErr(t, "Open", tryOpen(name), name, fs.ErrNotExist)
	mustBeFree(t, name)
}

// TestNoConnection streams from and to connections that are none.
func TestNoConnection(t *testing.T) {
	onTmpfs(t)
	seg := block(t, 10)
	var file *os.File
	for _, c := range []io.ReadWriter{&net.UnixConn{}, &net.TCPConn{}, file} {
		if _, err := seg.ReadFrom(c); err == nil {
			t.Errorf("ReadFrom(%T): no error", c)
		}
		if _, err := seg.WriteTo(c); err == nil {
			t.Errorf("WriteTo(%T): no error", c)
		}
		seg.Seek(0, io.SeekStart)
	}
}

// shrinkProgram cuts an object off and extends it until it is killed.
var shrinkProgram = proctest.Register("shrink", func(p *proctest.Parent) error {
	file, err := os.OpenFile(shmPath(p.Args[0]), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	header := make([]byte, headerEnd)
	if _, err := file.ReadAt(header, 0); err != nil {
		return err
	}
	p.Say("ready")
	p.Hear()
	for os.Getppid() != 1 {
		file.Truncate(rand.Int64N(info.Size()))
		file.WriteAt(header, 0)
		file.Truncate(info.Size())
		file.WriteAt(header, 0)
	}
	return nil
})

// TestCutWhileStreaming has another process cut the object off and extend it
// again, all the time.
func TestCutWhileStreaming(t *testing.T) {
	onTmpfs(t)
	shm.SetPatience(t, time.Millisecond)
	const capacity = 1 << 20
	seg := block(t, capacity)
	name := seg.Name()
	t.Cleanup(func() { os.Remove(shmPath(name)) })
	in, err := os.Create(filepath.Join(t.TempDir(), "in"))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	data := noise(capacity)
	in.Write(data)
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c := proctest.Start(t, shrinkProgram, name)
	c.Expect("ready")
	c.Say("go")
	faults := 0
	mine := []error{shm.ErrFull, fs.ErrInvalid, shm.ErrBusy} // ErrBusy: Size changes all the time
	check := func(what string, n int64, err error) {
		t.Helper()
		if errors.Is(err, shm.ErrFault) {
			faults++
		} else if err != nil && err != io.EOF && !slices.ContainsFunc(mine, func(e error) bool { return errors.Is(err, e) }) {
			t.Errorf("%s: %d, %v", what, n, err)
		}
		if n < 0 || n > capacity {
			t.Errorf("%s: %d bytes", what, n)
		}
	}
	for i := 0; i < rounds(100) || faults == 0; i++ {
		seg.Seek(0, io.SeekStart)
		n, err := seg.ReadFrom(bytes.NewReader(data))
		check("ReadFrom", n, err)
		seg.Seek(0, io.SeekStart)
		in.Seek(0, io.SeekStart)
		n, err = seg.ReadFrom(in)
		check("ReadFrom(file)", n, err)
		seg.Seek(0, io.SeekStart)
		n, err = seg.WriteTo(io.Discard)
		check("WriteTo", n, err)
		seg.Seek(0, io.SeekStart)
		out.Seek(0, io.SeekStart)
		n, err = seg.WriteTo(out)
		check("WriteTo(file)", n, err)
		check("Truncate", 0, seg.Truncate(100))
		check("View", 0, seg.View(func(b []byte) error {
			clear(b[:cap(b)])
			return nil
		}))
		everything(seg)
		if peer, err := shm.Open(name); err == nil {
			everything(peer)
			peer.Close()
		}
	}
	c.Kill()
	if err := seg.Close(); err != nil {
		t.Error(err)
	}
	mustBeFree(t, name)
}

// TestCloseStorm has all methods, Close and Unlink called at once, from several
// goroutines, with streams that stand still.
func TestCloseStorm(t *testing.T) {
	onTmpfs(t)
	for range rounds(60) {
		seg := block(t, 1<<18)
		peer := attach(t, seg.Name())
		silent, silentEnd, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		fullEnd, full, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		started := make(chan bool, 2*len(calls)+2)
		for _, s := range []*shm.Segment{seg, peer} {
			for what, call := range calls {
				if what == "Close" || strings.HasSuffix(what, "File") {
					continue
				}
				all.Go(func() {
					for i := 0; ; i++ {
						err := call(s)
						if i == 0 {
							started <- true
						}
						if errors.Is(err, fs.ErrClosed) {
							return
						}
						if err != nil && err != io.EOF && !errors.Is(err, shm.ErrFull) && !errors.Is(err, fs.ErrNotExist) {
							t.Errorf("%s: %v", what, err)
							return
						}
						runtime.Gosched()
					}
				})
			}
		}
		all.Go(func() {
			// ErrFull is a read that had begun before Close, with the offset at Cap.
			if _, err := seg.ReadFrom(silent); !errors.Is(err, fs.ErrClosed) && !errors.Is(err, shm.ErrFull) {
				t.Errorf("ReadFrom a silent pipe: %v", err)
			}
		})
		all.Go(func() {
			for {
				seg.Seek(0, io.SeekStart)
				if _, err := seg.WriteTo(full); err != nil {
					if !errors.Is(err, fs.ErrClosed) {
						t.Errorf("WriteTo a full pipe: %v", err)
					}
					return
				}
			}
		})
		for range 2 * (len(calls) - 3) {
			<-started
		}
		// Close comes back while the pipes stand still.
		var closing sync.WaitGroup
		closed := make(chan bool, 8)
		for _, s := range []*shm.Segment{seg, peer} {
			for range 4 {
				closing.Go(func() { closed <- s.Close() == nil })
			}
		}
		closing.Wait()
		close(closed)
		first := 0
		for ok := range closed {
			if ok {
				first++
			}
		}
		if first != 2 {
			t.Errorf("%d of 8 calls closed 2 Segments", first)
		}
		mustBeFree(t, seg.Name())
		// When the pipes move again, their streams find out.
		silentEnd.WriteString("x")
		var drained sync.WaitGroup
		drained.Go(func() { io.Copy(io.Discard, fullEnd) })
		all.Wait()
		full.Close()
		drained.Wait()
		for _, end := range []*os.File{silent, silentEnd, fullEnd} {
			end.Close()
		}
	}
}

// TestRevoked looks at what Close leaves of the mapping: no memory, and no room
// for another mapping until the Segment is out of reach.
func TestRevoked(t *testing.T) {
	onTmpfs(t)
	seg := block(t, 1<<20)
	if !shm.Quick(seg) {
		t.Skip("Close leaves nothing on this system")
	}
	b := seg.Bytes()
	err := seg.View(func([]byte) error {
		err := seg.Close()
		b[0] = 1 // View keeps all of it
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(maps), seg.Name()) {
		t.Error("still mapped after Close")
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	for range 10 {
		block(t, 1<<20)
		func() {
			defer func() {
				if recover() == nil {
					t.Error("another mapping lies where the old one was")
				}
			}()
			b[0]++
		}()
	}
	runtime.KeepAlive(seg)
}

// TestUmask has the umask take all bits away, or none.
func TestUmask(t *testing.T) {
	onTmpfs(t)
	for _, mask := range []int{0, 0o777, 0o022} {
		old := syscall.Umask(mask)
		for _, perm := range []fs.FileMode{0o600, 0o640, 0o666, 0o777} {
			seg, err := shm.Create("", 10, shm.Perm(perm))
			if err != nil {
				t.Errorf("umask %o, Perm(%o): %v", mask, perm, err)
				continue
			}
			if fi, err := seg.Stat(); err != nil || fi.Mode() != perm {
				t.Errorf("umask %o, Perm(%o) is %v, %v", mask, perm, fi.Mode(), err)
			}
			seg.Close()
			mustBeFree(t, seg.Name())
		}
		syscall.Umask(old)
	}
}

// TestUnlinkLocks has every kind of Segment respect the lane that whoever is
// about to unlink holds: without it, Unlink could hit the name of a new block.
func TestUnlinkLocks(t *testing.T) {
	onTmpfs(t)
	shm.SetPatience(t, time.Millisecond)
	for what, opts := range map[string][]shm.Option{
		"counted": nil, "read-only": {shm.ReadOnly()}, "raw": {shm.Headerless()}, "raw, read-only": {shm.Headerless(), shm.ReadOnly()},
	} {
		t.Run(what, func(t *testing.T) {
			var create []shm.Option
			if strings.HasPrefix(what, "raw") {
				create = []shm.Option{shm.Headerless()}
			}
			name := block(t, 100, create...).Name()
			seg := attach(t, name, opts...)
			file, err := os.OpenFile("/dev/shm/"+name, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			lane := unix.Flock_t{Type: unix.F_WRLCK, Start: 1 << 62, Len: 1}
			if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &lane); err != nil {
				t.Fatal(err)
			}
			mustFail(t, seg.Unlink(), name, shm.ErrBusy)
			file.Close()
			if err := seg.Unlink(); err != nil {
				t.Error(err)
			}
			mustFail(t, seg.Unlink(), name, fs.ErrNotExist)
		})
	}
}
