//go:build linux && !standin

package manager_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/manager"
)

// An address need not be in the file system.
func TestAddressWithoutFile(t *testing.T) {
	addr := "@shm-test-" + rand.Text()
	stop := serveAt(t, addr)
	if _, err := manager.Listen(addr); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("second listener: %v", err)
	}
	atWork(t, dial(t, addr))
	stop()
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
	f := file(t, seg)
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(0); err == nil {
		t.Error("truncated")
	}
	must(t)(c.Open("block")).Close()
}

// A client can have a lease on the memory, for whose end an open of it waits. The
// server does not: others are served at once.
func TestHostileLease(t *testing.T) {
	addr, _ := serve(t)
	c := dial(t, addr)
	seg := must(t)(c.Create("block", 4096))
	f := file(t, seg)
	own, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	signal.Ignore(unix.SIGIO) // which tells the holder that somebody waits
	defer signal.Reset(unix.SIGIO)
	if _, err := unix.FcntlInt(own.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Skipf("no leases here: %v: run on a kernel with /proc/sys/fs/leases-enable", err)
	}
	mustFail(t, second(c.Open("block", shm.ReadOnly())), "block", shm.ErrBusy)
	must(t)(c.Open("block")).Close()
	if _, err := unix.FcntlInt(own.Fd(), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
		t.Fatal(err)
	}
	must(t)(c.Open("block", shm.ReadOnly())).Close()
}
