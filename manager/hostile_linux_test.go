package manager_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/shmkit/shm"
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
