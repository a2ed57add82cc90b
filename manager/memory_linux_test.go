package manager_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/manager"
)

// An address need not be in the file system.
func TestAddressWithoutFile(t *testing.T) {
	onTmpfs(t)
	addr := "@shm-test-" + rand.Text()
	stop := serveAt(t, addr)
	if _, err := manager.Listen(addr); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("second listener: %v", err)
	}
	atWork(t, dial(t, addr))
	stop()
	mustFail(t, second(manager.Dial(t.Context(), addr)), addr, manager.ErrGone)
}

// A client builds no block in memory that a server could truncate, or that is not
// what it has asked for.
func TestHostileServerMemory(t *testing.T) {
	onTmpfs(t)
	small, err := object.Current.CreateMemory(4096)
	if err != nil {
		t.Fatal(err)
	}
	large, err := object.Current.CreateMemory(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	readOnly, err := object.Current.DuplicateMemory(large, true)
	if err != nil {
		t.Fatal(err)
	}
	open, err := unix.MemfdCreate("shm", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err == nil {
		err = unix.Ftruncate(open, 1<<20)
	}
	if err != nil {
		t.Fatal(err)
	}
	fds := map[string]int{"too small": int(small), "for reading only": int(readOnly), "not sealed": open}
	defer unix.Close(int(large))
	for what, fd := range fds {
		defer unix.Close(fd)
		before := ownDescriptors(t)
		mustNotAttachBy(t, 3, func(conn net.Conn, i int) {
			answer := []string{hello, "{}\n", "{}\n"}[i]
			var rights []byte
			if i == 1 {
				rights = unix.UnixRights(fd)
			}
			conn.(*net.UnixConn).WriteMsgUnix([]byte(answer), rights, nil)
		}, func(c *manager.Client) error {
			err := second(c.Create("block", 64<<10))
			if !errors.Is(err, shm.ErrCorrupt) {
				t.Errorf("%s: %v", what, err)
			}
			return err
		})
		eventually(t, "all descriptors are closed", func() bool { return ownDescriptors(t) <= before })
	}
}

// What a Create that fails has filled of the server's memory is not kept.
func TestCreateGivesBack(t *testing.T) {
	onTmpfs(t)
	addr, _ := serve(t, manager.Total(manager.Quota{Bytes: 1 << 62}))
	c := dial(t, addr)
	before := ownDescriptors(t)
	mustFail(t, second(c.Create("huge", 1<<50, shm.Sparse())), "huge", shm.ErrNoSpace)
	if after := ownDescriptors(t); after > before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
	atWork(t, c)
}

// Locks that a client holds on the memory keep nobody from it, and nobody can
// truncate it.
func TestHostileLocks(t *testing.T) {
	onTmpfs(t)
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
	onTmpfs(t)
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
