//go:build linux && !standin

package manager_test

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm/manager"
)

// An address need not be in the file system.
func TestAddressWithoutFile(t *testing.T) {
	addr := "@shm-test-" + rand.Text()
	l, err := manager.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := manager.Listen(addr); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("second listener: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- manager.Serve(ctx, l) }()
	atWork(t, dial(t, addr))
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	mustFail(t, second(manager.Dial(t.Context(), addr)), addr, manager.ErrGone)
}

// Memory that could be truncated is not taken for a block.
func TestHostileUnsealed(t *testing.T) {
	addr, _ := serve(t)
	fd, err := unix.MemfdCreate("unsealed", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	unsealed := os.NewFile(uintptr(fd), "unsealed")
	defer unsealed.Close()
	unsealed.Truncate(4096 + 100)
	conn := knockUnix(t, addr)
	if _, _, err := conn.WriteMsgUnix([]byte(`{"op":"create","name":"a","cap":100}`+"\n"), unix.UnixRights(fd), nil); err != nil {
		t.Fatal(err)
	}
	conn.CloseWrite()
	hangsUp(t, conn, `{"code":"invalid","error":"invalid argument: not a block: not sealed"}`+"\n")
}

// Locks that a client holds on the memory keep nobody from it, and nobody can
// truncate it.
func TestHostileLocks(t *testing.T) {
	addr, _ := serve(t)
	c := dial(t, addr)
	seg := must(t)(c.Create("block", 4096))
	f, err := seg.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(0); err == nil {
		t.Error("truncated")
	}
	must(t)(c.Open("block")).Close()
}
