//go:build linux || darwin

package manager_test

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

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
