package shm

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// More facts of TestSystem, such that only darwin has: what its objects refuse,
// which is why there is a lock page.

func TestSystemIdentity(t *testing.T) {
	_, fd := systemNew(t, objectPage)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	if st.Ino != 0 || st.Dev != 0 || st.Nlink != 0 || st.Mode&unix.S_IFMT != 0 {
		t.Errorf("inode %d, device %d, %d links, mode %#o: there is an identity now", st.Ino, st.Dev, st.Nlink, st.Mode)
	}
}

func TestSystemRefusals(t *testing.T) {
	_, fd := systemNew(t, objectPage)
	lock := unix.Flock_t{Type: unix.F_WRLCK, Len: 1}
	space := unix.Fstore_t{Flags: unix.F_ALLOCATEALL, Posmode: unix.F_PEOFPOSMODE, Length: objectPage}
	_, private := unix.Mmap(fd, 0, objectPage, unix.PROT_READ, unix.MAP_PRIVATE)
	_, read := unix.Read(fd, make([]byte, 1))
	_, write := unix.Write(fd, make([]byte, 1))
	for what, tt := range map[string]struct{ err, want error }{
		"flock":         {unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB), unix.ENOTSUP},
		"F_SETLK":       {unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &lock), unix.EBADF},
		"F_PREALLOCATE": {unix.FcntlFstore(uintptr(fd), unix.F_PREALLOCATE, &space), unix.EBADF},
		"fsync":         {unix.Fsync(fd), unix.ENOTSUP},
		"fchmod":        {unix.Fchmod(fd, 0o600), unix.EINVAL},
		"MAP_PRIVATE":   {private, unix.EINVAL},
		"read":          {read, unix.ENXIO},
		"write":         {write, unix.ENXIO},
	} {
		if tt.err != tt.want {
			t.Errorf("%s: %v, want %v", what, tt.err, tt.want)
		}
	}
}

// TestSystemProcessIDs: there are none that do not fit a token.
func TestSystemProcessIDs(t *testing.T) {
	for _, pid := range []int{99999 + 1, 1<<pidBits - 1} {
		if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
			t.Errorf("process id %d: %v", pid, err)
		}
	}
}

// TestPython has CPython's SharedMemory open a block of ours, and make one that
// we open. It puts the slash before the name that we do.
func TestPython(t *testing.T) {
	python, err := exec.LookPath(cmp.Or(os.Getenv("SHM_PYTHON"), "python3"))
	if err != nil {
		if os.Getenv("SHM_PYTHON") != "" {
			t.Fatal(err)
		}
		t.Skip("no python3")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	run := func(script string, args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(ctx, python, append([]string{"-c", script}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("python: %v\n%s", err, out)
		}
	}
	seg, err := Create("", 100, Headerless())
	if err != nil {
		t.Fatal(err)
	}
	defer seg.Close()
	defer seg.Unlink()
	seg.WriteString("for Python")
	// Before 3.13, Python unlinks at its end what it has only opened, unless told.
	run(`
import sys
from multiprocessing import resource_tracker, shared_memory
m = shared_memory.SharedMemory(sys.argv[1])
resource_tracker.unregister(m._name, "shared_memory")
assert m.buf[:10] == b"for Python", bytes(m.buf[:10])
m.buf[:11] = b"from Python"
m.close()
`, seg.Name())
	if got := string(seg.Bytes()[:11]); got != "from Python" {
		t.Errorf("read %q", got)
	}
	name := systemName(t)[1:]
	run(`
import sys
from multiprocessing import resource_tracker, shared_memory
m = shared_memory.SharedMemory(sys.argv[1], create=True, size=100)
resource_tracker.unregister(m._name, "shared_memory")
m.buf[:11] = b"from Python"
m.close()
`, name)
	theirs, err := Open(name, Headerless())
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	if got := string(theirs.Bytes()[:11]); got != "from Python" {
		t.Errorf("read %q", got)
	}
	if _, err := Open(name); err == nil {
		t.Error("opened as a block with a header")
	}
	if err := Unlink(name); err != nil {
		t.Error(err)
	}
}

// TestSandbox runs this test in a sandbox where the system does not say when a
// process began. Only blocks with a lock page need to know.
func TestSandbox(t *testing.T) {
	if os.Getenv("SHM_SANDBOXED") == "" {
		const profile = `(version 1)(allow default)(deny sysctl-read (sysctl-name-prefix "kern.proc"))`
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "/usr/bin/sandbox-exec", "-p", profile, exe, "-test.v", "-test.run", "^TestSandbox$")
		cmd.Env = append(os.Environ(), "SHM_SANDBOXED=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("in the sandbox: %v\n%s", err, out)
		}
		return
	}
	if _, err := unix.SysctlKinfoProc("kern.proc.pid", os.Getpid()); err == nil {
		t.Fatal("the profile does not deny kern.proc.pid")
	}
	seg, err := Anonymous(100)
	if err != nil {
		t.Fatal(err)
	}
	if err := seg.Close(); err != nil {
		t.Error(err)
	}
	if seg, err := Create("", 100); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("Create: %v", err)
		seg.Close()
	}
}
