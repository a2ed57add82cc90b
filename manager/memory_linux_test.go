package manager_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
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

// A block takes memory of the server's, of the size that it has asked for.
func TestHostileCreate(t *testing.T) {
	onTmpfs(t)
	addr, _ := serve(t, manager.Total(manager.Quota{Bytes: 1 << 20}))
	c := dial(t, addr)
	must(t)(c.Create("taken", 100))
	conn := knockUnix(t, addr)
	if _, err := io.ReadFull(conn, make([]byte, len(hello))); err != nil {
		t.Fatal(err)
	}
	before := ownDescriptors(t)
	const none = `{"code":"invalid","error":"invalid argument: no memory was asked for"}`
	for _, tt := range []struct{ request, answer string }{
		{`{"op":"create","name":"a","cap":100}`, none},
		{`{"op":"memory","name":"a","cap":100,"size":100}`, `{"code":"invalid","error":"invalid argument: 100 bytes for a Cap of 100"}`},
		{`{"op":"memory","name":"a","cap":100,"size":99}`, `{"code":"invalid"`},
		{`{"op":"memory","name":"a","cap":100,"size":1000000}`, `{"code":"invalid"`},
		{`{"op":"memory","name":"a","cap":-100,"size":100}`, `{"code":"invalid"`},
		{`{"op":"memory","name":"a","cap":100,"size":-9223372036854775808}`, `{"code":"invalid"`},
		{`{"op":"memory","name":"a","cap":-9223372036854775808,"size":9223372036854775807}`, `{"code":"invalid"`},
		{`{"op":"memory","name":"a","cap":9223372036854771711,"size":9223372036854775807}`, `{"code":"quota"`},
		{`{"op":"memory","name":"taken","cap":100,"size":200}`, `{"code":"exist"`},
		{`{"op":"memory","name":"../a","cap":100,"size":200}`, `{"code":"invalid"`},
		{`{"op":"memory"}`, `{"code":"invalid"`},
		{`{"op":"create","name":"a","cap":100}`, none},
		{`{"op":"memory","name":"a","cap":100,"size":200}`, `{}`},
		{`{"op":"create","name":"a","cap":1000}`, `{"code":"invalid","error":"invalid argument: 200 bytes for a Cap of 1000"}`},
		{`{"op":"create","name":"a","cap":100}`, none},
		{`{"op":"memory","name":"a","cap":100,"size":200}`, `{}`},
		{`{"op":"memory","name":"a","cap":200,"size":300}`, `{}`}, // in place of the other
		{`{"op":"create","name":"a","cap":100}`, `{}`},
		{`{"op":"create","name":"b","cap":100}`, none},
		{`{"op":"memory","name":"b","cap":200,"size":300}`, `{}`},
		{`{"op":"memory","name":"b"}`, `{}`}, // given back
		{`{"op":"create","name":"b","cap":200}`, none},
	} {
		if _, err := fmt.Fprintln(conn, tt.request); err != nil {
			t.Fatal(err)
		}
		if got := line(t, conn); !strings.HasPrefix(got, tt.answer) {
			t.Errorf("%s: %s, want %s", tt.request, got, tt.answer)
		}
	}
	if got := names(t, c); !slices.Equal(got, []string{"a", "taken"}) {
		t.Errorf("list: %v", got)
	}
	// Memory without a block in it is found out by those who open it.
	mustFail(t, second(c.Open("a")), "a", shm.ErrNotSegment)
	if err := c.Release("a"); err != nil {
		t.Error(err)
	}
	if after := ownDescriptors(t); after > before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
	atWork(t, c)
}

// A client that may only read gets no memory.
func TestReadAccessMemory(t *testing.T) {
	addr, _ := serve(t, manager.Authorize(func(manager.Peer) manager.Access { return manager.ReadAccess }))
	conn := knockUnix(t, addr)
	fmt.Fprintln(conn, `{"op":"memory","name":"a","cap":100,"size":200}`)
	if _, err := io.ReadFull(conn, make([]byte, len(hello))); err != nil {
		t.Fatal(err)
	}
	if got := line(t, conn); !strings.HasPrefix(got, `{"code":"permission"`) {
		t.Error(got)
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
