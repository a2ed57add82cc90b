package shm_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
)

// allMemory returns how many bytes the machine has.
func allMemory(t *testing.T) int64 {
	t.Helper()
	var sys unix.Sysinfo_t
	if err := unix.Sysinfo(&sys); err != nil {
		t.Fatal(err)
	}
	all := int64(sys.Totalram+sys.Totalswap) * int64(sys.Unit)
	if all > math.MaxInt/2 {
		t.Skip("no address space for that much")
	}
	return all
}

// More memory than there is must be refused before the OOM killer comes.
func TestAnonymousTooLarge(t *testing.T) {
	onTmpfs(t)
	all := allMemory(t)
	// The kernel itself and this test use some, and nobody gives it back.
	mustFail(t, second(shm.Anonymous(all-1<<20)), "", shm.ErrNoSpace)
	seg := anonymous(t, all-1<<20, shm.Sparse())
	if _, err := seg.WriteAt([]byte("end"), seg.Cap()-3); err != nil {
		t.Error(err)
	}
}

// Whoever has the file cannot take the memory away under those attached.
func TestAnonymousSealed(t *testing.T) {
	onTmpfs(t)
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

// Locks held on the file by somebody who means harm keep nobody from attaching
// to an anonymous block or from leaving it.
func TestAnonymousUnlocked(t *testing.T) {
	onTmpfs(t)
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

// A lease of a peer's is no reason to wait, for a file that has to be opened anew.
func TestFileLease(t *testing.T) {
	onTmpfs(t)
	seg := anonymous(t, 100)
	f := file(t, seg)
	reader := take(t, f, shm.ReadOnly())
	own := opened(t)(os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDWR, 0))
	signal.Ignore(unix.SIGIO) // which tells the holder that somebody waits
	defer signal.Reset(unix.SIGIO)
	if _, err := unix.FcntlInt(own.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Skipf("no leases here: %v: run on a kernel with /proc/sys/fs/leases-enable", err)
	}
	mustFail(t, second(reader.File()), reader.Name(), shm.ErrBusy)
	file(t, seg)
	own.Close()
	file(t, reader)
}

// What a peer does to a description that all share moves no byte.
func TestAnonymousDescription(t *testing.T) {
	onTmpfs(t)
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
			func(p []byte) error {
				return second(io.CopyN(io.NewOffsetWriter(seg, 1), bytes.NewReader(p), int64(len(p))))
			},
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

// Memory of another program can have anything in it.
func TestFromFileHostileMemory(t *testing.T) {
	onTmpfs(t)
	const fixed = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
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
		{"directory of blocks", opened(t)(os.Open("/dev/shm")), shm.ErrNotSegment},
		{"path", opened(t)(os.OpenFile(shmPath(block(t, 1).Name()), unix.O_PATH, 0)), shm.ErrNotSegment},
		{"file", onDisk(t, anon), shm.ErrNotSegment},
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
		{"cut off before the words", memory(t, anon[:63], fixed), shm.ErrNotSegment},
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
		{"stale and far too large, it says", memory(t, change(change(anon, atState, 2), atSize+6, 0xff), fixed), nil},
	} {
		hand(t, tt.what, tt.f, tt.want, tt.f == sealedWrite)
	}
	writeOnly := opened(t)(os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", memory(t, anon, fixed).Fd()), os.O_WRONLY, 0))
	mustFail(t, second(shm.FromFile(writeOnly)), writeOnly.Name(), fs.ErrPermission)
}

// A block under a name that says it is anonymous is none.
func TestAnonymousWithName(t *testing.T) {
	onTmpfs(t)
	name := plant(t, anonymousImage(t, 100))
	mustFail(t, tryOpen(name), name, shm.ErrCorrupt)
	mustFail(t, tryOpen(name, shm.ReadOnly()), name, shm.ErrCorrupt)
}

func TestFileWithoutProc(t *testing.T) {
	onTmpfs(t)
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

// As other programs pass memory on: C does, and Wayland.
func TestFromFileHeaderlessMemory(t *testing.T) {
	onTmpfs(t)
	memory := memory(t, []byte("raw"), 0)
	if got := content(t, take(t, memory, shm.Headerless())); string(got) != "raw" {
		t.Errorf("holds %q", got)
	}
}

// TestAnonymousLastDescriptor has one descriptor left, with which Anonymous must
// not begin to take more memory than there is. (If it did, a limit of the size of
// files would end that here.)
func TestAnonymousLastDescriptor(t *testing.T) {
	onTmpfs(t)
	if !limited(t) {
		return
	}
	all := allMemory(t)
	if _, err := os.ReadFile("/proc/self/statm"); err != nil { // what the runtime opens for that it has now
		t.Fatal(err)
	}
	next, err := syscall.Dup(0) // the lowest that is free
	if err != nil {
		t.Fatal(err)
	}
	syscall.Close(next)
	defer limit(t, syscall.RLIMIT_FSIZE, 1<<20)()
	defer limit(t, syscall.RLIMIT_NOFILE, uint64(next)+1)()
	wantErr(t, "Anonymous", second(shm.Anonymous(2*all)), "", syscall.ENOSPC)
	seg, err := shm.Anonymous(100)
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, "Anonymous", second(shm.Anonymous(100)), "", syscall.EMFILE)
	seg.Close()
}
