package shm_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/internal/standin"
	"golang.org/x/sys/unix"
)

// onTmpfs skips a test of what blocks are on Linux where the tests run on the
// stand-in for darwin's kernel.
func onTmpfs(t testing.TB) {
	t.Helper()
	if standin.Used() != nil {
		t.Skip("blocks are not files on a tmpfs here")
	}
}

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

// nodev reports whether /dev/shm is mounted with nodev.
func nodev(t testing.TB) bool {
	t.Helper()
	var sfs unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &sfs); err != nil {
		t.Fatal(err)
	}
	return sfs.Flags&unix.ST_NODEV != 0
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

// plantStale plants n stale blocks of the given capacity.
func plantStale(t testing.TB, n int, capacity int64) (names []string) {
	t.Helper()
	b := image(t, capacity)
	for i := range n {
		name := "stale-" + strconv.Itoa(i)
		plantAt(t, name, b)
		names = append(names, name)
	}
	return names
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

// undisturbed runs the test again where stale blocks stay until the test does
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

// newStranger starts an agent that runs as another user.
func newStranger(t *testing.T) agent {
	t.Helper()
	return startStranger(t, agentProgram)
}

func startStranger(t *testing.T, program proctest.Program) agent {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can start processes of another user: run as root")
	}
	cmd := proctest.Command(program)
	cmd.Path = "/proc/self/exe" // its directory is closed to other users
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	return agent{proctest.StartCommand(t, cmd), t}
}
