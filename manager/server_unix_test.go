//go:build linux || darwin

package manager_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/manager"
)

// force tries to get at memory for writing that may only be read.
func force(seg *shm.Segment) error {
	f, err := seg.File()
	if err == nil {
		_, err = f.WriteAt([]byte("x"), 0)
	}
	files, _ := filepath.Glob("/proc/self/fd/*")
	for _, path := range files {
		if to, _ := os.Readlink(path); strings.HasPrefix(to, "/memfd:") {
			if w, err := os.OpenFile(path, os.O_RDWR, 0); err == nil {
				w.Close()
				return nil
			}
		}
	}
	if err == nil {
		return nil
	}
	return fs.ErrPermission
}

func needsStrangers(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can start processes of another user: run as root")
	}
}

// startStranger is startUser for another user; its answer to Dial is not heard.
func startStranger(t testing.TB, addr string) *proctest.Child {
	t.Helper()
	needsStrangers(t)
	cmd := proctest.Command(stranger, addr)
	proctest.Stranger(t, cmd)
	return proctest.StartCommand(t, cmd)
}

// ownDescriptors returns how many descriptors this process has.
func ownDescriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// stranger is a user that uses force.
var stranger = proctest.Register("stranger", func(p *proctest.Parent) error { return beUser(p, force) })

func TestListenFile(t *testing.T) {
	addr := address(t)
	srv := startServer(t, addr)
	if info, err := os.Stat(addr); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	srv.Wait()
	mustBeEmpty(t, addr)
}

func TestListenElsewhere(t *testing.T) {
	mustFail(t, second(manager.Dial(t.Context(), "/nowhere/at/all")), "/nowhere/at/all", manager.ErrGone)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := manager.Listen(file); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("in place of a file: %v", err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("file: %q, %v", b, err)
	}
	if _, err := manager.Listen(filepath.Join(dir, "no", "directory")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a directory: %v", err)
	}
}

// A stranger who locks the directory, which takes no more than permission to read
// it, keeps nobody from listening there.
func TestListenLockedDirectory(t *testing.T) {
	manager.SetStall(t, 100*time.Millisecond)
	addr := address(t)
	dir, err := os.Open(filepath.Dir(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	listen(t, addr).Close()
}

// mustBeEmpty checks that nothing is left where a server has listened.
func mustBeEmpty(t *testing.T, addr string) {
	t.Helper()
	if left, err := os.ReadDir(filepath.Dir(addr)); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// What is locked is a file beside the socket. One that was left behind does no
// harm.
func TestListenLock(t *testing.T) {
	manager.SetStall(t, 100*time.Millisecond)
	addr := address(t)
	path := addr + ".lock"
	lock, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	listen(t, addr).Close()
	mustBeEmpty(t, addr)

	lock, err = os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := manager.Listen(addr); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Errorf("beside another that begins to listen: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}

	precious := filepath.Join(t.TempDir(), "precious")
	if err := os.Symlink(precious, path); err != nil {
		t.Fatal(err)
	}
	if _, err := manager.Listen(addr); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("a link in place of the lock: %v", err)
	}
	if _, err := os.Lstat(precious); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the link was followed: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}

	if os.Getuid() != 0 {
		t.Skip("only root can give away a file: run as root")
	}
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if _, err := manager.Listen(addr); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a lock of another user: %v", err)
	}
}

// Of several that find the socket of a dead server, one takes its place.
func TestListenRace(t *testing.T) {
	addr := address(t)
	for range 30 {
		dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: addr})
		if err != nil {
			t.Fatal(err)
		}
		dead.SetUnlinkOnClose(false)
		dead.Close()
		var listeners, busy atomic.Int32
		var all, tried sync.WaitGroup
		tried.Add(6)
		for range 6 {
			all.Go(func() {
				l, err := manager.Listen(addr)
				tried.Done()
				tried.Wait()
				switch {
				case err == nil:
					listeners.Add(1)
					l.Close()
				case errors.Is(err, syscall.EADDRINUSE):
					busy.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		all.Wait()
		if listeners.Load() != 1 || busy.Load() != 5 {
			t.Fatalf("%d listen, %d cannot", listeners.Load(), busy.Load())
		}
		mustBeEmpty(t, addr)
	}
}

// A server that ends does not take away the socket of one that has taken its
// place.
func TestListenSuccessor(t *testing.T) {
	addr := address(t)
	stop := serveAt(t, addr)
	if err := os.Remove(addr); err != nil {
		t.Fatal(err)
	}
	stopSecond := serveAt(t, addr)
	stop()
	atWork(t, dial(t, addr))
	stopSecond()
	mustBeEmpty(t, addr)
}

// serveAll is serve for all users.
func serveAll(t testing.TB, opts ...manager.ServeOption) (addr string) {
	t.Helper()
	addr, _ = serve(t, opts...)
	if err := os.Chmod(addr, 0o666); err != nil {
		t.Fatal(err)
	}
	return addr
}

// TestStranger has another user connect.
func TestStranger(t *testing.T) {
	addr := serveAll(t)
	startStranger(t, addr).Expect("dial: permission denied")

	var asked manager.Peer
	addr = serveAll(t, manager.Authorize(func(p manager.Peer) manager.Access {
		if p.UID == 65534 {
			asked = p
			return manager.ReadAccess
		}
		return manager.FullAccess
	}))
	c := dial(t, addr)
	seg := must(t)(c.Create("block", 1<<16))
	write(t, seg, "seen")
	s := startStranger(t, addr)
	s.Expect("dialled")
	if asked.PID != s.Process.Pid || asked.GID != 65534 {
		t.Errorf("asked for %+v", asked)
	}
	do(s, "create more", "permission denied")
	do(s, "release block", "permission denied")
	do(s, "open block", "permission denied")
	do(s, "open missing", "permission denied")
	if manager.Restricts() {
		do(s, "read block", "seen")
		do(s, "write x", "permission denied")
		do(s, "force", "permission denied")
	} else {
		do(s, "read block", "unsupported operation")
	}
	if got := read(t, seg, 4); got != "seen" {
		t.Errorf("holds %q", got)
	}

	addr = serveAll(t, manager.Authorize(func(manager.Peer) manager.Access { return manager.FullAccess }))
	c = dial(t, addr)
	s = startStranger(t, addr)
	s.Expect("dialled")
	do(s, "create block", "ok")
	do(s, "write mine", "ok")
	if got := read(t, must(t)(c.Open("block")), 4); got != "mine" {
		t.Errorf("holds %q", got)
	}
	do(s, "release block", "ok")
}

// A server need not be the user of the memory it keeps.
func TestServerOfOtherUser(t *testing.T) {
	needsStrangers(t)
	addr := address(t)
	cmd := proctest.Command(server, addr)
	proctest.Stranger(t, cmd)
	srv := proctest.StartCommand(t, cmd)
	srv.Expect("listening")
	c := dial(t, addr)
	seg := must(t)(c.Create("block", 100))
	write(t, seg, "mine")
	if got := read(t, must(t)(c.Open("block", shm.ReadOnly())), 4); got != "mine" {
		t.Errorf("holds %q", got)
	}
	if got := read(t, must(t)(c.Open("block")), 4); got != "mine" {
		t.Errorf("holds %q", got)
	}
}

// A socket that Listen makes lets nobody else connect at all.
func TestStrangerAtSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	addr := filepath.Join(dir, "socket")
	startServer(t, addr)
	startStranger(t, addr).Expect("dial: permission denied")
}

// A request that the server does not answer ends with the client, or with the
// context.
func TestServerStopped(t *testing.T) {
	for _, byContext := range []bool{false, true} {
		addr := address(t)
		srv := startServer(t, addr)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c, err := manager.Dial(ctx, addr)
		if err != nil {
			t.Fatal(err)
		}
		seg := must(t)(c.Create("block", 100))
		srv.Process.Signal(syscall.SIGSTOP)
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(srv.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
			t.Fatalf("not stopped: %#x, %v", status, err)
		}
		if byContext {
			mustEndPending(t, c, cancel)
		} else {
			mustEndPending(t, c, func() { c.Close() })
		}
		write(t, seg, "usable")
		if byContext {
			manager.SetStall(t, 10*time.Millisecond)
			mustFail(t, second(manager.Dial(t.Context(), addr)), addr, manager.ErrGone)
		}
	}
}
