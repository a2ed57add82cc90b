package manager_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/manager"
)

// descriptors returns how many descriptors a process has.
func descriptors(t testing.TB, pid int) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// The server keeps none of the descriptors that a client sends: the kernel refuses
// them, or the server hangs up.
func TestHostileDescriptors(t *testing.T) {
	addr := address(t)
	srv := startServer(t, addr)
	c := dial(t, addr)
	conn := knockUnix(t, addr)
	if _, err := io.ReadFull(conn, make([]byte, len(hello))); err != nil {
		t.Fatal(err)
	}
	atWork(t, c)
	before := descriptors(t, srv.Process.Pid)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fds := make([]int, 253) // SCM_MAX_FD
	for i := range fds {
		fds[i] = int(w.Fd())
	}
	for range 200 {
		_, _, err := conn.WriteMsgUnix([]byte(`{"op":"list"}`+"\n"), syscall.UnixRights(fds...), nil)
		if errors.Is(err, syscall.EPERM) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 100)); n != 0 || err == nil {
			t.Errorf("answer of %d bytes, %v", n, err)
		}
		break
	}
	eventually(t, "the server has closed them", func() bool { return descriptors(t, srv.Process.Pid) <= before })
	// The pipe ends when the connection has, so nobody has its other end.
	conn.Close()
	w.Close()
	if b, err := io.ReadAll(r); len(b) > 0 || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	atWork(t, c)
}

// A server that has no descriptors left goes on, and accepts again when there
// are some.
func TestHostileExhaustion(t *testing.T) {
	addr := address(t)
	startLimited(t, addr, 64)
	c := dial(t, addr)
	seg := must(t)(c.Create("block", 4096))
	var conns []net.Conn
	eventually(t, "the server has no descriptors left", func() bool {
		if conn, err := net.Dial("unix", addr); err == nil {
			conns = append(conns, conn)
		}
		more, err := c.Create("more", 4096)
		if err != nil {
			if !errors.Is(err, manager.ErrQuota) {
				t.Fatal(err)
			}
			return true
		}
		more.Close()
		if err := c.Release("more"); err != nil {
			t.Fatal(err)
		}
		return false
	})
	for _, opts := range [][]shm.Option{nil, {shm.ReadOnly()}} {
		mustFail(t, second(c.Open("block", opts...)), "block", manager.ErrQuota)
	}
	if got := names(t, c); len(got) != 1 {
		t.Errorf("list: %v", got)
	}
	for _, conn := range conns {
		conn.Close()
	}
	eventually(t, "the server is at work again", func() bool {
		c, err := manager.Dial(t.Context(), addr)
		if err != nil {
			return false
		}
		defer c.Close()
		peer, err := c.Open("block")
		if err != nil {
			return false
		}
		return peer.Close() == nil
	})
	seg.Close()
}

// startLimited starts a server that can have n descriptors open.
func startLimited(t testing.TB, addr string, n int) *proctest.Child {
	t.Helper()
	c := proctest.Start(t, limited, addr, fmt.Sprint(n))
	c.Expect("listening")
	return c
}

var limited = proctest.Register("limited", func(p *proctest.Parent) error {
	var limit syscall.Rlimit
	fmt.Sscan(p.Args[1], &limit.Cur)
	limit.Max = limit.Cur
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	return beServer(p)
})

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
