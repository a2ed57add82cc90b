package shm_test

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
)

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
	seg, err := shm.Create("", 100, shm.Headerless())
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
	name := unique(t)
	run(`
import sys
from multiprocessing import resource_tracker, shared_memory
m = shared_memory.SharedMemory(sys.argv[1], create=True, size=100)
resource_tracker.unregister(m._name, "shared_memory")
m.buf[:11] = b"from Python"
m.close()
`, name)
	theirs, err := shm.Open(name, shm.Headerless())
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	if got := string(theirs.Bytes()[:11]); got != "from Python" {
		t.Errorf("read %q", got)
	}
	if _, err := shm.Open(name); err == nil {
		t.Error("opened as a block with a header")
	}
	if err := shm.Unlink(name); err != nil {
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
	seg, err := shm.Anonymous(100)
	if err != nil {
		t.Fatal(err)
	}
	if err := seg.Close(); err != nil {
		t.Error(err)
	}
	if seg, err := shm.Create("", 100); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("Create: %v", err)
		seg.Close()
	}
}
