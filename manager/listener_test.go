//go:build linux || darwin

package manager_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm/manager"
)

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
