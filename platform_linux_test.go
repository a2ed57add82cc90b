package shm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
)

// TestShmSymlink has a symbolic link at /dev/shm, as some distributions do. The
// last attachment, which came by a file, unlinks.
func TestShmSymlink(t *testing.T) {
	onTmpfs(t)
	if !privately(t, "tmpfs", "") {
		return
	}
	dir := t.TempDir()
	mount(t, "tmpfs", dir, "")
	mount(t, "tmpfs", "/dev", "")
	if err := os.Symlink(dir, "/dev/shm"); err != nil {
		t.Fatal(err)
	}
	seg := block(t, 100)
	name := seg.Name()
	peer := take(t, file(t, seg))
	if peer.Name() != name {
		t.Errorf("called %q, not %q", peer.Name(), name)
	}
	seg.Close()
	attach(t, name).Close()
	peer.Close()
	mustBeFree(t, name)
}

// filterEmptyPath has the kernel answer errno to every linkat(2) of this process
// with AT_EMPTY_PATH.
func filterEmptyPath(t *testing.T, errno syscall.Errno) {
	t.Helper()
	const (
		atNumber = 0        // in struct seccomp_data
		atFlags  = 16 + 4*8 // args[4]
		load     = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal    = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		bits     = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		ret      = unix.BPF_RET | unix.BPF_K
	)
	low := uint32(atFlags)
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		low += 4
	}
	program := []unix.SockFilter{
		{Code: load, K: atNumber},
		{Code: equal, K: unix.SYS_LINKAT, Jf: 3},
		{Code: load, K: low},
		{Code: bits, K: unix.AT_EMPTY_PATH, Jf: 1},
		{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	runtime.LockOSThread() // which the others get their privileges from
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&filter))); err != 0 {
		t.Skip("no seccomp filters here: ", err)
	}
}

// TestLinkFiltered has a filter refuse the way to give a block its name that
// needs no /proc.
func TestLinkFiltered(t *testing.T) {
	onTmpfs(t)
	for _, errno := range []syscall.Errno{unix.EPERM, unix.EINVAL} {
		t.Run(fmt.Sprint(int(errno)), func(t *testing.T) {
			if !limited(t) {
				return
			}
			filterEmptyPath(t, errno)
			fd, err := unix.Open("/dev/shm", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if err := unix.Linkat(fd, "", unix.AT_FDCWD, "/dev/shm/name", unix.AT_EMPTY_PATH); !errors.Is(err, errno) {
				t.Fatalf("no filter: %v", err)
			}
			seg, err := shm.Create("", 100)
			if err != nil {
				t.Fatal(err)
			}
			attach(t, seg.Name()).Close()
			seg.Close()
			mustBeFree(t, seg.Name())
		})
	}
}

// TestWithoutShm has no /dev/shm.
func TestWithoutShm(t *testing.T) {
	onTmpfs(t)
	if !privately(t, "tmpfs", "") {
		return
	}
	tryCreate("first", 1)
	mount(t, "tmpfs", "/dev", "")
	name := "name"
	wantErr(t, "Create", tryCreate(name, 1), name, errors.ErrUnsupported)
	wantErr(t, "Create Headerless", tryCreate(name, 1, shm.Headerless()), name, errors.ErrUnsupported)
	wantErr(t, "Open", tryOpen(name), name, fs.ErrNotExist)
	_, _, err := shm.OpenOrCreate(name, 1)
	wantErr(t, "OpenOrCreate", err, name, errors.ErrUnsupported)
	wantErr(t, "Stat", second(shm.Stat(name)), name, fs.ErrNotExist)
	wantErr(t, "Unlink", shm.Unlink(name), name, fs.ErrNotExist)
	wantErr(t, "List", second(shm.List()), "", fs.ErrNotExist)
	wantErr(t, "Reap", second(shm.Reap()), "", fs.ErrNotExist)
	if err := os.WriteFile("/dev/shm", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "Create where /dev/shm is a file", tryCreate(name, 1), name, errors.ErrUnsupported)
	if err := tryOpen(name); err == nil {
		t.Error("Open where /dev/shm is a file")
	}
}

// TestForbiddenShm has a /dev/shm that is closed to other users.
func TestForbiddenShm(t *testing.T) {
	onTmpfs(t)
	if os.Getenv("SHM_FORBIDDEN") == "" {
		mustRoot(t, "start processes of another user")
		if privately(t, "tmpfs", "mode=0700") {
			seg := block(t, 10, shm.Perm(0o666))
			cmd := exec.Command("/proc/self/exe", "-test.run", "^TestForbiddenShm$")
			cmd.Env = append(os.Environ(), "SHM_FORBIDDEN="+seg.Name())
			stranger(cmd)
			if out, err := cmd.CombinedOutput(); err != nil && !bytes.Contains(out, []byte("\nPASS\n")) && !bytes.HasPrefix(out, []byte("PASS\n")) {
				t.Errorf("%v\n%s", err, out)
			}
		}
		return
	}
	name := os.Getenv("SHM_FORBIDDEN")
	wantErr(t, "Create", tryCreate("", 1), "", fs.ErrPermission)
	wantErr(t, "Open", tryOpen(name), name, fs.ErrPermission)
	wantErr(t, "Open ReadOnly", tryOpen(name, shm.ReadOnly()), name, fs.ErrPermission)
	wantErr(t, "Stat", second(shm.Stat(name)), name, fs.ErrPermission)
	wantErr(t, "Unlink", shm.Unlink(name), name, fs.ErrPermission)
	wantErr(t, "List", second(shm.List()), "", fs.ErrPermission)
	wantErr(t, "Reap", second(shm.Reap()), "", fs.ErrPermission)
}

// TestNotTmpfs has another file system at /dev/shm.
func TestNotTmpfs(t *testing.T) {
	onTmpfs(t)
	if !privately(t, "ramfs", "") {
		return
	}
	t.Run("ramfs", func(t *testing.T) { notTmpfs(t, errors.ErrUnsupported) }) // which cannot reserve
	t.Run("disk", func(t *testing.T) {
		dir := diskDir(t)
		if err := unix.Mount(dir, "/dev/shm", "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount("/dev/shm", unix.MNT_DETACH)
		notTmpfs(t, nil)
	})
}

func notTmpfs(t *testing.T, headerless error) {
	wantErr(t, "Create", tryCreate("name", 100), "name", errors.ErrUnsupported)
	wantErr(t, "Create Sparse", tryCreate("name", 100, shm.Sparse()), "name", errors.ErrUnsupported)
	mustBeFree(t, "name")
	wantErr(t, "Create Headerless", tryCreate("name", 100, shm.Headerless()), "name", headerless)
	shm.Unlink("name")
	seg, err := shm.Create("name", 100, shm.Headerless(), shm.Sparse())
	if err != nil {
		t.Fatal(err)
	}
	seg.WriteString("raw")
	if got := content(t, attach(t, "name", shm.Headerless())); string(got[:3]) != "raw" {
		t.Errorf("read %q", got)
	}
	seg.Close()
	if err := shm.Unlink("name"); err != nil {
		t.Error(err)
	}
	// A block that has been copied here from a tmpfs.
	l := make([]byte, 4096+10)
	copy(l, "shmkit\x1a\n")
	binary.NativeEndian.PutUint32(l[atVersion:], version)
	put(l, atHeaderSize, 4096)
	put(l, atCapacity, 10)
	put(l, atState, 1)
	checksum(l)
	plantAt(t, "copied", l)
	wantErr(t, "Open", tryOpen("copied"), "copied", errors.ErrUnsupported)
	wantErr(t, "Open ReadOnly", tryOpen("copied", shm.ReadOnly()), "copied", errors.ErrUnsupported)
	wantErr(t, "Create", tryCreate("copied", 10), "copied", errors.ErrUnsupported)
	if names, err := shm.Reap(); err != nil || len(names) > 0 {
		t.Errorf("Reap: %v, %v", names, err)
	}
	mustStay(t, "copied")
}

// TestNoDevices has a device in place of a block where devices do not work.
func TestNoDevices(t *testing.T) {
	onTmpfs(t)
	if !privately(t, "tmpfs", "") {
		return
	}
	if err := unix.Mount("", "/dev/shm", "", unix.MS_REMOUNT|unix.MS_NODEV, ""); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mknod(shmPath("null"), syscall.S_IFCHR|0o666, 1<<8|3); err != nil {
		t.Skip(err)
	}
	wantErr(t, "Open", tryOpen("null"), "null", fs.ErrPermission)
	wantErr(t, "Create", tryCreate("null", 1), "null", fs.ErrExist)
	wantErr(t, "Unlink", shm.Unlink("null"), "null", shm.ErrNotSegment)
	mustStay(t, "null")
}

// TestReadOnlyShm has a /dev/shm that is mounted read-only.
func TestReadOnlyShm(t *testing.T) {
	onTmpfs(t)
	if !privately(t, "tmpfs", "") {
		return
	}
	name := "name"
	seg := block(t, 100)
	if err := unix.Mount("/dev/shm", "/dev/shm", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/dev/shm", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "Create", tryCreate(name, 1), name, syscall.EROFS)
	wantErr(t, "Open", tryOpen(seg.Name()), seg.Name(), syscall.EROFS)
	wantErr(t, "Unlink", shm.Unlink(seg.Name()), seg.Name(), syscall.EROFS)
	wantErr(t, "Segment.Unlink", seg.Unlink(), seg.Name(), syscall.EROFS)
	wantErr(t, "Stat", second(shm.Stat(seg.Name())), seg.Name(), nil)
	attach(t, seg.Name(), shm.ReadOnly()).Close()
	everything(seg)
	if err := seg.Close(); err != nil {
		t.Error(err)
	}
	mustStay(t, seg.Name())
	if err := unix.Unmount("/dev/shm", unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if names, err := shm.Reap(); err != nil || !slices.Contains(names, seg.Name()) {
		t.Errorf("Reap: %v, %v", names, err)
	}
}

// TestWithoutProc has no /proc, which only kernels before 6.10 need to give a
// new block its name.
func TestWithoutProc(t *testing.T) {
	onTmpfs(t)
	if !privately(t, "tmpfs", "") {
		return
	}
	name := "name"
	mount(t, "tmpfs", "/proc", "")
	seg, err := shm.Create(name, 100)
	if err != nil {
		wantErr(t, "Create", err, name, errors.ErrUnsupported)
		mustBeFree(t, name)
		return
	}
	everything(seg)
	attach(t, name).Close()
	seg.Close()
	mustBeFree(t, name)
}

// TestOneDescriptor has enough descriptors to read the directory but not to
// look at a block: then nobody must be told that there are none.
func TestOneDescriptor(t *testing.T) {
	onTmpfs(t)
	if !limited(t) {
		return
	}
	seg := block(t, 100)
	next, err := syscall.Dup(0) // the lowest that is free
	if err != nil {
		t.Fatal(err)
	}
	syscall.Close(next)
	restore := limit(t, syscall.RLIMIT_NOFILE, uint64(next)+1)
	defer restore()
	list, err := shm.List()
	wantErr(t, "List", err, "", syscall.EMFILE)
	if slices.ContainsFunc(list, func(i shm.Info) bool { return i.Name == seg.Name() }) {
		t.Error("there were descriptors left")
	}
	_, err = shm.Reap()
	wantErr(t, "Reap", err, "", syscall.EMFILE)
}

// TestInPlaceOfABlock has something else under the name of a block.
func TestInPlaceOfABlock(t *testing.T) {
	onTmpfs(t)
	// What each call returns; a reap never takes any of it away.
	type answers struct{ create, open, raw, join, stat, unlink error }
	never := answers{fs.ErrExist, shm.ErrNotSegment, shm.ErrNotSegment, shm.ErrNotSegment, shm.ErrNotSegment, shm.ErrNotSegment}
	device := never
	if nodev(t) { // nobody opens a device there
		device = answers{fs.ErrExist, fs.ErrPermission, fs.ErrPermission, fs.ErrPermission, fs.ErrPermission, shm.ErrNotSegment}
	}
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
		}, device},
		"device without driver": {func(t *testing.T, path string) {
			mustRoot(t, "make devices")
			if err := syscall.Mknod(path, syscall.S_IFBLK|0o666, 0xfff<<8|0xff); err != nil {
				t.Skip(err)
			}
		}, device},
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

func TestParseMeminfo(t *testing.T) {
	onTmpfs(t)
	for content, want := range map[string]int64{
		"MemTotal: 900 kB\nMemAvailable:  100 kB\nSwapFree: 20 kB\n": 120 << 10,
		"MemAvailable: 100 kB\nSwapFree: many\n":                     100 << 10,
		"MemAvailable: \nMemTotal: 900 kB\n":                         -1,
		"":                                                           -1,
	} {
		free, known := shm.ParseMeminfo(strings.NewReader(content))
		if !known {
			free = -1
		}
		if free != want {
			t.Errorf("%q: %d, want %d", content, free, want)
		}
	}
}
