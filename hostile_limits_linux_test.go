package shm_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/internal/raw"
)

// privately runs the test again in a process that has a /dev/shm of its own,
// mounted with the options given, and reports whether this is that process.
func privately(t *testing.T, fstype, options string) bool {
	t.Helper()
	inside := apart(t, "", func(cmd *exec.Cmd) {
		cmd.SysProcAttr = mayMount()
		if cmd.SysProcAttr == nil {
			t.Skip("this user cannot mount file systems, not even in a user namespace: run the tests as root")
		}
	})
	if inside {
		mount(t, fstype, "/dev/shm", options)
	}
	return inside
}

// mountProgram reports by its exit status whether it could mount a /dev/shm.
var mountProgram = proctest.Register("mount", func(*proctest.Parent) error {
	return unix.Mount("shmtest", "/dev/shm", "tmpfs", 0, "")
})

// mayMount returns how to start a process that can mount file systems for itself
// alone: as root, or in a user namespace. It returns nil if neither works, as in
// most containers.
var mayMount = sync.OnceValue(func() *syscall.SysProcAttr {
	// With CLONE_NEWNS all mounts are made private.
	attr := &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if uid, gid := os.Getuid(), os.Getgid(); uid != 0 {
		attr.Cloneflags = syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
		attr.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN}
	}
	cmd := proctest.Command(mountProgram)
	cmd.SysProcAttr = attr
	if cmd.Run() != nil {
		return nil
	}
	return attr
})

// mount covers target, for the time of the test, in a process of privately.
func mount(t *testing.T, fstype, target, options string) {
	t.Helper()
	if err := unix.Mount("shmtest", target, fstype, 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
}

// free returns how many blocks and inodes /dev/shm has left.
func free(t testing.TB) [2]uint64 {
	t.Helper()
	var sfs unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &sfs); err != nil {
		t.Fatal(err)
	}
	return [2]uint64{sfs.Bavail, sfs.Ffree}
}

// fill leaves n pages of /dev/shm free, until the function returned is called.
func fill(t testing.TB, n uint64) (remove func()) {
	t.Helper()
	size := (free(t)[0] - n) * 4096
	name := "fill-" + strconv.Itoa(int(size))
	plantAt(t, name, make([]byte, size))
	if got := free(t)[0]; got != n {
		t.Fatalf("%d pages are free, not %d", got, n)
	}
	return func() { os.Remove(shmPath(name)) }
}

// plantDead plants n dead blocks of the given capacity.
func plantDead(t testing.TB, n int, capacity int64) (names []string) {
	t.Helper()
	b := image(t, capacity)
	for i := range n {
		name := "dead-" + strconv.Itoa(i)
		plantAt(t, name, b)
		names = append(names, name)
	}
	return names
}

func TestFull(t *testing.T) {
	onTmpfs(t)
	if !privately(t, "tmpfs", "size=1m") {
		return
	}
	for _, opts := range [][]shm.Option{nil, {shm.Headerless()}, {shm.Prefault()}} {
		for _, pages := range []uint64{0, 1, 15, 16} {
			remove := fill(t, pages)
			before := free(t)
			size := int64(16 * 4096)
			if len(opts) == 0 {
				size++ // with the header it is 18 pages
			}
			err := tryCreate("full", size, opts...)
			if len(opts) == 1 && pages == 16 && err == nil { // Headerless has no more than the data
				shm.Unlink("full")
			} else {
				wantErr(t, "Create", err, "full", shm.ErrNoSpace)
			}
			if after := free(t); after != before {
				t.Errorf("%d pages and inodes are free, before it were %d", after, before)
			}
			mustBeFree(t, "full")
			remove()
		}
	}
	for _, size := range []int64{1 << 21, 1 << 40, 1 << 62, math.MaxInt64 - 65536} {
		before := free(t)
		wantErr(t, "Create", tryCreate("huge", size), "huge", shm.ErrNoSpace)
		if err := tryCreate("huge", size, shm.Sparse()); size >= 1<<47 || err != nil {
			wantErr(t, "Create Sparse", err, "huge", shm.ErrNoSpace)
		}
		if after := free(t); after != before {
			t.Errorf("%d pages and inodes are free, before it were %d", after, before)
		}
		mustBeFree(t, "huge")
	}
}

// TestNoRoomForTwo has a block take so much memory that there is none for
// another: to whoever wants to create it again it is there, not out of space.
func TestNoRoomForTwo(t *testing.T) {
	onTmpfs(t)
	if !privately(t, "tmpfs", "size=8m") {
		return
	}
	const name, size = "large", 5 << 20
	for range rounds(100) {
		type result struct {
			seg     *shm.Segment
			created bool
			err     error
		}
		results := make(chan result, 4)
		for range cap(results) {
			go func() {
				seg, created, err := shm.OpenOrCreate(name, size)
				results <- result{seg, created, err}
			}()
		}
		created := 0
		var segs []*shm.Segment
		for range cap(results) {
			r := <-results
			if r.err != nil {
				t.Errorf("OpenOrCreate: %v", r.err)
				continue
			}
			segs = append(segs, r.seg)
			if r.created {
				created++
			}
		}
		if created != 1 {
			t.Errorf("created %d times", created)
		}
		before := free(t)
		wantErr(t, "Create", tryCreate(name, size), name, fs.ErrExist)
		if after := free(t); after != before {
			t.Errorf("%d pages and inodes are free, before it were %d", after, before)
		}
		for _, seg := range segs {
			seg.Close()
		}
		mustBeFree(t, name)
	}
}

// TestFullOfDead has blocks of killed processes fill the file system.
func TestFullOfDead(t *testing.T) {
	onTmpfs(t)
	if !privately(t, "tmpfs", "size=1m") {
		return
	}
	tryCreate("first", 1) // the first Create of a process reaps anyway
	names := plantDead(t, 15, 15*4096)
	if left := free(t)[0]; left > 20 {
		t.Fatalf("%d pages are free", left)
	}
	seg, err := shm.Create("new", 30*4096)
	if err != nil {
		t.Fatal(err)
	}
	defer seg.Close()
	for _, name := range names {
		mustBeFree(t, name)
	}
}

// TestNoInodes has no inode left for one more file.
func TestNoInodes(t *testing.T) {
	onTmpfs(t)
	if !privately(t, "tmpfs", "size=1m,nr_inodes=4") {
		return
	}
	tryCreate("first", 1)
	for i := range free(t)[1] {
		plantAt(t, fmt.Sprint("foreign-", i), []byte("foreign"))
	}
	wantErr(t, "Create", tryCreate("new", 1), "new", shm.ErrNoSpace)
	os.Remove(shmPath("foreign-0"))
	plantDead(t, 1, 1)
	if err := tryCreate("new", 1); err != nil {
		t.Error(err)
	}
}

// TestSparseOnFull touches pages that are not to be had.
func TestSparseOnFull(t *testing.T) {
	onTmpfs(t)
	if !privately(t, "tmpfs", "size=1m") {
		return
	}
	const page, capacity = 4096, 4 << 20
	data := noise(10 * page)
	path := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for what, write := range map[string]func(seg *shm.Segment) (int64, error){
		"WriteAt": func(seg *shm.Segment) (int64, error) {
			n, err := seg.WriteAt(data, 0)
			return int64(n), err
		},
		"Write": func(seg *shm.Segment) (int64, error) {
			n, err := seg.Write(data)
			return int64(n), err
		},
		"ReadFrom":       func(seg *shm.Segment) (int64, error) { return seg.ReadFrom(bytes.NewReader(data)) },
		"ReadFrom(file)": func(seg *shm.Segment) (int64, error) { file.Seek(0, io.SeekStart); return seg.ReadFrom(file) },
		"ReadFrom(pipe)": func(seg *shm.Segment) (int64, error) {
			r, w, err := os.Pipe()
			if err != nil {
				return 0, err
			}
			defer r.Close()
			defer w.Close()
			w.Write(data)
			return seg.ReadFrom(r)
		},
		"View": func(seg *shm.Segment) (int64, error) {
			return 3 * page, seg.View(func(b []byte) error {
				for i, c := range data { // copy goes in an order that depends on the processor
					b[:len(data)][i] = c
				}
				return nil
			})
		},
	} {
		t.Run(what, func(t *testing.T) {
			seg := block(t, capacity, shm.Sparse())
			remove := fill(t, 3)
			n, err := write(seg)
			mustFail(t, err, seg.Name(), shm.ErrFault, shm.ErrNoSpace)
			if n != 3*page {
				t.Errorf("%d bytes, want those of 3 pages", n)
			}
			p := bytes.Repeat([]byte{0xaa}, 6*page)
			if n, err := seg.ReadAt(p, 0); n != len(p) || err != nil || !bytes.Equal(p, append(data[:3*page:3*page], make([]byte, 3*page)...)) {
				t.Errorf("read %d bytes, %v: not what was written and zeros behind", n, err)
			}
			seg.Seek(0, io.SeekStart)
			if n, err := seg.WriteTo(io.Discard); n != capacity || err != nil {
				t.Errorf("WriteTo: %d, %v", n, err)
			}
			out, err := os.Create(filepath.Join(t.TempDir(), "out"))
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			seg.Seek(0, io.SeekStart)
			if n, err := seg.WriteTo(out); n != capacity || err != nil {
				t.Errorf("WriteTo a file: %d, %v", n, err)
			}
			sum, want := sha256.New(), sha256.New()
			seg.Seek(0, io.SeekStart)
			seg.WriteTo(struct{ io.Writer }{want})
			seg.Seek(0, io.SeekStart)
			if n, err := seg.WriteTo(sum); n != capacity || err != nil || !bytes.Equal(sum.Sum(nil), want.Sum(nil)) {
				t.Errorf("WriteTo a hash: %d, %v", n, err)
			}
			// With memory, it goes on.
			remove()
			if n, err := seg.WriteAt(data, 0); n != len(data) || err != nil {
				t.Errorf("WriteAt with memory: %d, %v", n, err)
			}
			used := free(t)[0]
			if err := seg.Truncate(page); err != nil {
				t.Fatal(err)
			}
			if back := free(t)[0] - used; back != 9 {
				t.Errorf("Truncate gives back %d pages, want 9", back)
			}
			name := seg.Name()
			seg.Close()
			mustBeFree(t, name)
		})
	}
	if left := free(t)[0]; left != 256 {
		t.Errorf("%d of 256 pages are free in the end", left)
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
	binary.NativeEndian.PutUint32(l[atVersion:], 1)
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

// limited runs the test again in a process that the limits of this one do not
// count for.
func limited(t *testing.T) bool {
	t.Helper()
	return apart(t, "", func(*exec.Cmd) {})
}

// limit sets a limit of the process, until the function returned is called.
func limit(t *testing.T, what int, n uint64) (restore func()) {
	t.Helper()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(what, &old); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(what, &syscall.Rlimit{Cur: n, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	return func() { syscall.Setrlimit(what, &old) }
}

// TestNoDescriptors has no file descriptor left.
func TestNoDescriptors(t *testing.T) {
	onTmpfs(t)
	if !limited(t) {
		return
	}
	seg := block(t, 100)
	name := seg.Name()
	restore := limit(t, syscall.RLIMIT_NOFILE, 0)
	defer restore()
	wantErr(t, "Create", tryCreate("", 100), "", syscall.EMFILE)
	wantErr(t, "Open", tryOpen(name), name, syscall.EMFILE)
	wantErr(t, "Stat", second(shm.Stat(name)), name, syscall.EMFILE)
	wantErr(t, "Unlink", shm.Unlink(name), name, syscall.EMFILE)
	wantErr(t, "List", second(shm.List()), "", syscall.EMFILE)
	wantErr(t, "Reap", second(shm.Reap()), "", syscall.EMFILE)
	everything(seg)
	if err := seg.Close(); err != nil { // needs none
		t.Error(err)
	}
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

// TestNoAddressSpace has hardly any address space left.
func TestNoAddressSpace(t *testing.T) {
	onTmpfs(t)
	if !limited(t) {
		return
	}
	const large = 1 << 30
	seg := block(t, large, shm.Sparse())
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages := number(strings.Fields(string(b))[0])
	restore := limit(t, syscall.RLIMIT_AS, uint64(pages)*4096+large/4)
	defer restore()
	wantErr(t, "Create", tryCreate("", large, shm.Sparse()), "", shm.ErrNoSpace)
	wantErr(t, "Open", tryOpen(seg.Name()), seg.Name(), shm.ErrNoSpace)
	wantErr(t, "Open ReadOnly", tryOpen(seg.Name(), shm.ReadOnly()), seg.Name(), shm.ErrNoSpace)
	if seg.Refs() != 1 {
		t.Errorf("refs %d", seg.Refs())
	}
	if err := tryCreate("", 1<<20); err != nil {
		t.Error(err)
	}
}

// TestClosedAddressSpace has address space for one mapping of the block, and no
// garbage collector that would come by.
func TestClosedAddressSpace(t *testing.T) {
	onTmpfs(t)
	if !limited(t) {
		return
	}
	const large = 1 << 30
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages := number(strings.Fields(string(b))[0])
	limit(t, syscall.RLIMIT_AS, uint64(pages)*4096+large+large/2)
	debug.SetGCPercent(-1)
	for range 10 {
		seg, err := shm.Create("", large, shm.Sparse())
		if err != nil {
			t.Fatal(err)
		}
		b := seg.Bytes()
		seg.Close()
		if inUse(t, b) {
			t.Fatal("Close keeps addresses where there are few")
		}
	}
}

// TestManyClosed keeps more closed Segments than Close keeps addresses of.
func TestManyClosed(t *testing.T) {
	onTmpfs(t)
	if !limited(t) {
		return
	}
	seg := block(t, 100)
	var closed []*shm.Segment
	quick := 0
	for range 10_000 {
		peer, err := shm.Open(seg.Name())
		if err != nil {
			t.Fatal(err)
		}
		if shm.Quick(peer) {
			quick++
		}
		if n, err := peer.WriteAt([]byte("x"), 0); n != 1 || err != nil {
			t.Fatalf("WriteAt: %d, %v", n, err)
		}
		if err := peer.Close(); err != nil {
			t.Fatal(err)
		}
		if n, err := peer.ReadAt(make([]byte, 1), 0); n != 0 || !errors.Is(err, fs.ErrClosed) {
			t.Fatalf("ReadAt after Close: %d, %v", n, err)
		}
		closed = append(closed, peer)
	}
	if quick == len(closed) || quick < 1000 && math.MaxInt > math.MaxInt32 && !raw.Race {
		t.Errorf("%d of %d were quick", quick, len(closed))
	}
	runtime.KeepAlive(closed)
	clear(closed)
	for shm.Kept() > 64<<20 { // or the test runs into its timeout
		runtime.GC()
	}
	if peer := attach(t, seg.Name()); shm.Quick(peer) != (quick > 0) {
		t.Error("the collector has not helped")
	}
}

// TestFileSizeLimit has files limited to less than a block. The signal that
// comes with it is nothing to a Go program.
func TestFileSizeLimit(t *testing.T) {
	onTmpfs(t)
	if !limited(t) {
		return
	}
	seg := block(t, 4<<20)
	name, limited := seg.Name(), unique(t)
	path := filepath.Join(t.TempDir(), "input")
	if err := os.WriteFile(path, noise(1<<20-4096), 0o600); err != nil {
		t.Fatal(err)
	}
	input, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer input.Close()
	restore := limit(t, syscall.RLIMIT_FSIZE, 1<<20)
	defer restore()
	for _, opts := range [][]shm.Option{nil, {shm.Sparse()}, {shm.Headerless()}} {
		wantErr(t, "Create", tryCreate(limited, 2<<20, opts...), limited, shm.ErrNoSpace)
		mustBeFree(t, limited)
	}
	if err := tryCreate(limited, 1<<20-4096); err != nil {
		t.Error(err)
	}
	// What is there already can be used.
	peer := attach(t, name)
	if n, err := peer.WriteAt([]byte("beyond"), 3<<20); n != 6 || err != nil {
		t.Errorf("WriteAt: %d, %v", n, err)
	}
	want := noise(2 << 20)
	if n, err := peer.WriteAt(want, 1<<19); n != len(want) || err != nil {
		t.Errorf("WriteAt across the limit: %d, %v", n, err)
	}
	if got := content(t, peer)[1<<19:][:len(want)]; !bytes.Equal(got, want) {
		t.Error("it is not what was written")
	}
	peer.Seek(1<<20-1, io.SeekStart)
	if n, err := io.Copy(peer, input); n != 1<<20-4096 || err != nil {
		t.Errorf("Copy across the limit: %d, %v", n, err)
	}
	everything(peer)
	peer.Close()
	seg.Close()
	mustBeFree(t, name)
}

// TestSignals sends signals to all threads all the time, which interrupt every
// system call that can be; fallocate(2) is one of them on older kernels.
func TestSignals(t *testing.T) {
	onTmpfs(t)
	if !limited(t) {
		return
	}
	got := make(chan os.Signal, 1)
	signal.Notify(got, syscall.SIGUSR1)
	c := proctest.Start(t, stormProgram, strconv.Itoa(os.Getpid()))
	c.Expect("ready")
	<-got
	const size = 64 << 20
	for range 2 {
		seg, err := shm.Create("", size)
		if err != nil {
			t.Fatal(err)
		}
		var st syscall.Stat_t
		if err := syscall.Stat(shmPath(seg.Name()), &st); err != nil || st.Blocks*512 < size {
			t.Errorf("%d bytes are reserved, %v", st.Blocks*512, err)
		}
		seg.Truncate(0)
		data := noise(8 << 20)
		if n, err := seg.ReadFrom(sources["pipe"](t, data)); n != int64(len(data)) || err != nil {
			t.Errorf("ReadFrom: %d, %v", n, err)
		}
		seg.Seek(0, io.SeekStart)
		w, arrived := sinks["pipe"](t)
		if n, err := seg.WriteTo(w); n != int64(len(data)) || err != nil {
			t.Errorf("WriteTo: %d, %v", n, err)
		}
		if !bytes.Equal(arrived(), data) {
			t.Error("other bytes arrived")
		}
		attach(t, seg.Name()).Close()
		seg.Close()
		mustBeFree(t, seg.Name())
	}
	c.Kill()
	signal.Stop(got)
}

// stormProgram sends signals to the threads of a process until it is killed.
var stormProgram = proctest.Register("storm", func(p *proctest.Parent) error {
	pid := int(number(p.Args[0]))
	p.Say("ready")
	for os.Getppid() == pid {
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return nil
		}
		for range 100 {
			for _, thread := range threads {
				unix.Tgkill(pid, int(number(thread.Name())), syscall.SIGUSR1)
			}
			time.Sleep(20 * time.Microsecond) // a storm, not a standstill
		}
	}
	return nil
})

// lockProgram takes a lock on a byte of a file and keeps it until it is killed.
var lockProgram = proctest.Register("lock", func(p *proctest.Parent) error {
	flags, typ := os.O_RDWR, int16(unix.F_WRLCK)
	if p.Args[1] == "read" {
		flags, typ = os.O_RDONLY, unix.F_RDLCK
	}
	file, err := os.OpenFile(shmPath(p.Args[0]), flags, 0)
	if err != nil {
		return err
	}
	lock := unix.Flock_t{Type: typ, Start: 1<<62 + number(p.Args[2]), Len: 1}
	if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		return err
	}
	p.Say("held")
	p.Hear()
	return nil
})

// TestLaneHeld has a lane of a block held by a process that does not let go: by
// one of the same user, as if it had been stopped, and by one of another user
// that may only read the block.
func TestLaneHeld(t *testing.T) {
	onTmpfs(t)
	if !undisturbed(t) {
		return
	}
	var all sync.WaitGroup // they wait for two seconds each, so all at once
	defer all.Wait()
	for _, who := range []string{"stopped", "reader"} {
		lockedBy := func(t *testing.T, name string) *proctest.Child {
			t.Helper()
			kind := "write"
			if who == "reader" {
				kind = "read"
			}
			cmd := proctest.Command(lockProgram, name, kind, "0")
			if who == "reader" && os.Getuid() == 0 {
				cmd.Path = "/proc/self/exe"
				stranger(cmd)
			}
			c := proctest.StartCommand(t, cmd)
			c.Expect("held")
			if who == "stopped" {
				c.Process.Signal(syscall.SIGSTOP)
			}
			return c
		}
		for what, tt := range map[string]struct {
			call  func(seg *shm.Segment, name string) error
			want  error
			waits bool
		}{
			"Open":           {func(_ *shm.Segment, name string) error { return tryOpen(name) }, shm.ErrBusy, true},
			"Open ReadOnly":  {func(_ *shm.Segment, name string) error { return tryOpen(name, shm.ReadOnly()) }, shm.ErrBusy, true},
			"OpenOrCreate":   {func(_ *shm.Segment, name string) error { _, _, err := shm.OpenOrCreate(name, 1); return err }, shm.ErrBusy, true},
			"Create":         {func(_ *shm.Segment, name string) error { return tryCreate(name, 1) }, fs.ErrExist, false},
			"Unlink":         {func(_ *shm.Segment, name string) error { return shm.Unlink(name) }, shm.ErrBusy, true},
			"Segment.Unlink": {func(seg *shm.Segment, _ string) error { return seg.Unlink() }, shm.ErrBusy, true},
			"Stat":           {func(_ *shm.Segment, name string) error { return second(shm.Stat(name)) }, nil, false},
			"Reap":           {func(*shm.Segment, string) error { return second(shm.Reap()) }, nil, false},
			"Close":          {func(seg *shm.Segment, _ string) error { return seg.Close() }, nil, true},
		} {
			test := func(t *testing.T) {
				seg := block(t, 100, shm.Perm(0o644))
				name := seg.Name()
				c := lockedBy(t, name)
				start := time.Now()
				wantErr(t, what, tt.call(seg, name), name, tt.want)
				if d := time.Since(start); tt.waits && d < 1900*time.Millisecond || d > 10*time.Second {
					t.Errorf("it took %v", d)
				}
				if what == "Close" { // nobody is attached, but it could not be unlinked
					mustStay(t, name)
					if info, err := shm.Stat(name); err != nil || !info.Stale() {
						t.Errorf("Stat: %+v, %v", info, err)
					}
					start := time.Now()
					wantErr(t, "Create", tryCreate(name, 1), name, fs.ErrExist)
					if d := time.Since(start); d < 1900*time.Millisecond {
						t.Errorf("Create took %v", d)
					}
				}
				c.Kill()
				if what == "Close" {
					if _, err := shm.Reap(); err != nil {
						t.Error(err)
					}
				} else if err := seg.Close(); err != nil {
					t.Error(err)
				}
				mustBeFree(t, name)
			}
			all.Go(func() { t.Run(who+"/"+what, test) })
		}
	}
	// The other lane is what keeps a block alive: who holds it is attached, for
	// all that others can know.
	t.Run("life", func(t *testing.T) {
		seg := block(t, 100)
		name := seg.Name()
		c := proctest.Start(t, lockProgram, name, "read", "1")
		c.Expect("held")
		seg.Close()
		mustStay(t, name)
		attach(t, name).Close()
		mustStay(t, name)
		c.Kill()
		mustNotExist(t, name)
		mustBeFree(t, name)
	})
}

// TestTwoNamespaces has processes attached that do not see each other: their
// process ids mean nothing to one another.
func TestTwoNamespaces(t *testing.T) {
	onTmpfs(t)
	mustRoot(t, "make a namespace of process ids")
	if !undisturbed(t) {
		return
	}
	start := func(t *testing.T, name string) *proctest.Child {
		cmd := proctest.Command(attachProgram, name)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
		c := proctest.StartCommand(t, cmd)
		c.Expect("attached")
		return c
	}
	seg := block(t, 100)
	name := seg.Name()
	a, b := start(t, name), start(t, name)
	if seg.Refs() != 3 {
		t.Errorf("refs %d", seg.Refs())
	}
	a.Kill()
	seg.Close()
	mustStay(t, name)
	if names, err := shm.Reap(); err != nil || slices.Contains(names, name) {
		t.Errorf("Reap: %v, %v", names, err)
	}
	b.Kill()
	if info, err := shm.Stat(name); err != nil || !info.Stale() {
		t.Errorf("Stat: %+v, %v", info, err)
	}
	mustNotExist(t, name)
	mustBeFree(t, name)
}
