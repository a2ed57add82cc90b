package manager_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/internal/raw"
	"github.com/shmkit/shm/manager"
)

// Attacks by processes of other users on a server in a process of its own, which
// is to serve a good client meanwhile, and to end within ten seconds.

const (
	attackerUID = 65533
	serverUID   = 65532
)

// attacked is a server whose other users may do nothing, or what it is told.
var attacked = proctest.Register("attacked", func(p *proctest.Parent) error {
	opts := []manager.ServeOption{manager.MaxClients(10000)}
	for _, arg := range p.Args[1:] {
		key, value, _ := strings.Cut(arg, "=")
		var n uint64
		fmt.Sscan(value, &n)
		switch key {
		case "old-kernel":
			manager.AcceptRights()
		case "clients":
			opts = append(opts, manager.MaxClients(int(n)))
		case "read", "full":
			access := map[string]manager.Access{"read": manager.ReadAccess, "full": manager.FullAccess}[key]
			opts = append(opts, manager.Authorize(func(p manager.Peer) manager.Access {
				if p.UID == attackerUID {
					return access
				}
				return manager.FullAccess
			}))
		case "nofile", "fsize":
			resource := map[string]int{"nofile": syscall.RLIMIT_NOFILE, "fsize": syscall.RLIMIT_FSIZE}[key]
			if err := syscall.Setrlimit(resource, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
				return err
			}
		}
	}
	l, err := manager.Listen(p.Args[0])
	if err != nil {
		return err
	}
	p.Say("listening")
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		p.Hear()
		cancel()
	}()
	return manager.Serve(ctx, l, opts...)
})

// startAttacked starts a server of a user without rights, at an address which all
// can connect to. It must end within ten seconds, and its process with it.
func startAttacked(t *testing.T, args ...string) (srv *proctest.Child, addr string) {
	t.Helper()
	needsStrangers(t)
	addr = "@shm-test-" + rand.Text()
	srv = startAs(t, serverUID, 0, attacked, append([]string{addr}, args...)...)
	srv.Expect("listening")
	return srv, addr
}

func mustEnd(t *testing.T, srv *proctest.Child, obstacles ...*proctest.Child) {
	t.Helper()
	begun := time.Now()
	late := time.AfterFunc(20*time.Second, func() {
		t.Error("the server has not ended after 20 s")
		srv.Process.Kill()
		for _, o := range obstacles {
			o.Process.Kill()
		}
	})
	defer late.Stop()
	srv.Wait()
	t.Logf("the server has ended after %v", time.Since(begun).Round(time.Millisecond))
}

// startAs starts a program as a user without rights.
func startAs(t *testing.T, uid uint32, cloneFlags uintptr, program proctest.Program, args ...string) *proctest.Child {
	t.Helper()
	cmd := proctest.Command(program, args...)
	cmd.Path, cmd.Dir = "/proc/self/exe", "/" // its directory is closed to other users
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: cloneFlags}
	if uid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid}
	}
	return proctest.StartCommand(t, cmd)
}

// goodClient works until it is told to stop, and has done a hundred rounds, and
// then logs how long its requests have taken.
func goodClient(t *testing.T, addr string) (stop func()) {
	t.Helper()
	c := dial(t, addr)
	end := make(chan struct{})
	var took []time.Duration
	var working sync.WaitGroup
	working.Go(func() {
		timed := func(f func() error) bool {
			begun := time.Now()
			late := time.AfterFunc(20*time.Second, func() { c.Close() })
			err := f()
			late.Stop()
			took = append(took, time.Since(begun))
			if err != nil {
				t.Errorf("good client, round %d, after %v: %v", len(took)/4, took[len(took)-1], err)
			}
			return err == nil
		}
		for i := 0; ; i++ {
			name := fmt.Sprint("good-", i)
			var seg, peer *shm.Segment
			if !timed(func() (err error) { seg, err = c.Create(name, 4096); return err }) {
				return
			}
			ok := timed(func() (err error) { peer, err = c.Open(name); return err }) &&
				timed(func() error { return c.Release(name) }) &&
				timed(func() error { // what comes to connect is not kept waiting either
					late, cancel := context.WithTimeout(t.Context(), 20*time.Second)
					defer cancel()
					c, err := manager.Dial(late, addr)
					if err != nil {
						return fmt.Errorf("dial: %w", err)
					}
					return c.Close()
				})
			seg.Close()
			if peer != nil {
				peer.Close()
			}
			if !ok {
				return
			}
			select {
			case <-end:
				if i >= 100 {
					return
				}
			default:
			}
		}
	})
	stop = sync.OnceFunc(func() {
		close(end)
		working.Wait()
		if len(took) == 0 {
			return
		}
		slices.Sort(took)
		at := func(percent int) time.Duration {
			return took[min(len(took)*percent/100, len(took)-1)].Round(time.Microsecond)
		}
		t.Logf("good client: %d requests, p50 %v, p99 %v, worst %v", len(took), at(50), at(99), at(100))
	})
	t.Cleanup(stop)
	return stop
}

// lingerer makes the server the last to have a TCP socket whose close lingers for
// a day, fifty times, and says how many it could send.
var lingerer = proctest.Register("lingerer", func(p *proctest.Parent) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	var keep []net.Conn
	sent := 0
	for range 50 {
		fd, peer, err := lingering(l)
		if err != nil {
			return err
		}
		conn, err := net.Dial("unix", p.Args[0])
		if err != nil {
			return err
		}
		_, _, err = conn.(*net.UnixConn).WriteMsgUnix([]byte(`{"op":"list"}`+"\n"), unix.UnixRights(fd), nil)
		if err == nil {
			sent++
			go unix.Close(fd) // which lingers here if the server was faster
		}
		keep = append(keep, peer, conn)
	}
	p.Say("sent %d", sent)
	p.Hear()
	runtime.KeepAlive(keep)
	return nil
})

// lingering returns a socket with data that its peer does not read.
func lingering(l net.Listener) (fd int, peer net.Conn, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, nil, err
	}
	to := &unix.SockaddrInet4{Port: l.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}
	if err := unix.Connect(fd, to); err != nil {
		return -1, nil, err
	}
	if peer, err = l.Accept(); err != nil {
		return -1, nil, err
	}
	if err := errors.Join(unix.SetNonblock(fd, true),
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 100000})); err != nil {
		return -1, nil, err
	}
	for b := make([]byte, 64<<10); err == nil; {
		_, err = unix.Write(fd, b)
	}
	if err != unix.EAGAIN {
		return -1, nil, err
	}
	return fd, peer, nil
}

// The last close of a socket that lingers does not.
func TestCutShort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skipf("no loopback network: %v", err)
	}
	defer l.Close()
	fd, peer, err := lingering(l)
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	done := make(chan error)
	go func() {
		manager.CutShort(func() { unix.Close(fd) })
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Error("close lingers")
	}
}

// kernels are this one, and one that does not refuse descriptors for the server.
var kernels = map[string][]string{"this kernel": nil, "old kernel": {"old-kernel"}}

// TestAttackLinger has a process that may not connect send sockets whose close
// lingers, and one that may only read.
func TestAttackLinger(t *testing.T) {
	onTmpfs(t)
	for kernel, args := range kernels {
		for _, access := range []string{"none", "read", "full"} {
			t.Run(kernel+"/"+access, func(t *testing.T) {
				srv, addr := startAttacked(t, append(args, access)...)
				stop := goodClient(t, addr)
				attacker := startAs(t, attackerUID, 0, lingerer, addr)
				t.Log(attacker.Hear())
				atWork(t, dial(t, addr))
				stop()
				mustEnd(t, srv)
			})
		}
	}
}

// silencer opens a file, becomes another user, and sends the file to the server,
// with requests.
var silencer = proctest.Register("silencer", func(p *proctest.Parent) error {
	fd, err := unix.Open(p.Args[1], unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setresgid(attackerUID, attackerUID, attackerUID), syscall.Setresuid(attackerUID, attackerUID, attackerUID)); err != nil {
		return err
	}
	for _, request := range []string{`{"op":"list"}`, `{"op":"create","name":"silent","cap":100}`, `{"op":"memory","name":"silent","cap":100,"size":200}`} {
		conn, err := net.Dial("unix", p.Args[0])
		if err != nil {
			return err
		}
		defer conn.Close()
		_, _, err = conn.(*net.UnixConn).WriteMsgUnix([]byte(request+"\n"), unix.UnixRights(fd), nil)
		if errors.Is(err, unix.EPERM) {
			p.Say("refused")
			continue
		}
		// The hello, and what there is of an answer, or the end.
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		lines := bufio.NewReader(conn)
		lines.ReadString('\n')
		lines.ReadString('\n')
		p.Say("sent: %v", err)
	}
	p.Say("done")
	p.Hear()
	return nil
})

// TestAttackSilentFile has a process send a file whose poll and flush wait for as
// long as it likes.
func TestAttackSilentFile(t *testing.T) {
	onTmpfs(t)
	for kernel, args := range kernels {
		for _, access := range []string{"none", "read", "full"} {
			t.Run(kernel+"/"+access, func(t *testing.T) {
				srv, addr := startAttacked(t, append(args, access)...)
				fs, path := startSilentFS(t)
				stop := goodClient(t, addr)
				attacker := startAs(t, 0, 0, silencer, addr, path)
				t.Cleanup(fs.Kill) // before those who wait for it
				for line := ""; line != "done"; {
					line = attacker.Hear()
					t.Log(line)
				}
				stop()
				atWork(t, dial(t, addr))
				mustEnd(t, srv, fs)
			})
		}
	}
}

// poller sends a pipe that is in an epoll instance whose mutex it holds, by a poll
// that does not come back: for this mutex, whoever closes the pipe last waits
// beyond SIGKILL.
var poller = proctest.Register("poller", func(p *proctest.Parent) error {
	silent, err := unix.Open(p.Args[1], unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	if err := unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, pipe[0], &unix.EpollEvent{Events: unix.EPOLLIN}); err != nil {
		return err
	}
	ctl := func(op, fd int) { // unix.EpollCtl is not made to wait
		event := unix.EpollEvent{Events: unix.EPOLLIN}
		unix.Syscall6(unix.SYS_EPOLL_CTL, uintptr(poll), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&event)), 0, 0)
	}
	go ctl(unix.EPOLL_CTL_ADD, silent)
	for { // until it holds the mutex, and other calls wait for it
		done := make(chan bool)
		go func() {
			ctl(unix.EPOLL_CTL_DEL, 0)
			close(done)
		}()
		select {
		case <-done:
			continue
		case <-time.After(100 * time.Millisecond):
		}
		break
	}
	conn, err := net.Dial("unix", p.Args[0])
	if err != nil {
		return err
	}
	_, _, err = conn.(*net.UnixConn).WriteMsgUnix([]byte(`{"op":"list"}`+"\n"), unix.UnixRights(pipe[0]), nil)
	if err == nil {
		unix.Close(pipe[0])
	}
	p.Say("%v", errors.Unwrap(errors.Unwrap(err)))
	p.Hear()
	return nil
})

// TestAttackHeldPoll has a process that may not connect send such a pipe. Before
// Linux 6.16 a server has no means against that: see docs/manager.md.
func TestAttackHeldPoll(t *testing.T) {
	onTmpfs(t)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 0); err != nil {
		t.Skipf("the kernel does not refuse descriptors: %v: run on Linux 6.16", err)
	}
	srv, addr := startAttacked(t)
	fs, path := startSilentFS(t)
	srv.Process.Signal(syscall.SIGSTOP) // so that it is the last to close
	attacker := startAs(t, 0, 0, poller, addr, path)
	t.Cleanup(fs.Kill) // before those who wait for it
	if got := attacker.Hear(); got != "operation not permitted" {
		t.Error(got)
	}
	srv.Process.Signal(syscall.SIGCONT)
	goodClient(t, addr)()
	mustEnd(t, srv, fs)
}

// deaf makes connections with requests and does not read the answers. It leaves
// each at once, without closing it, if it is to make the server hang up.
var deaf = proctest.Register("deaf", func(p *proctest.Parent) error {
	var n, requests int
	fmt.Sscan(p.Args[1], &n)
	fmt.Sscan(p.Args[2], &requests)
	said := strings.Repeat(p.Args[3]+"\n", requests)
	if len(p.Args) > 4 {
		said += p.Args[4] + "\n"
	}
	var keep []net.Conn
	refused := 0
	for range n {
		conn, err := net.Dial("unix", p.Args[0])
		if err != nil {
			return err
		}
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		first := make([]byte, len(hello))
		if _, err := io.ReadFull(conn, first); err != nil {
			return err
		}
		if string(first) != hello {
			refused++
			conn.Close()
			continue
		}
		conn.Write([]byte(said))
		keep = append(keep, conn)
	}
	p.Say("%d connected, %d refused", len(keep), refused)
	p.Hear()
	runtime.KeepAlive(keep)
	return nil
})

// TestAttackUnread has clients that may only read ask for descriptors, which are
// charged to the server's user until they are read, and read none of them; and, so
// that they stay charged when the connections are gone, make the server hang up.
func TestAttackUnread(t *testing.T) {
	onTmpfs(t)
	const open = `{"op":"open","name":"block","read_only":true}`
	for what, attack := range map[string][]string{
		"open":    {"300", "20", open},
		"hang up": {"2000", "1", open, "garbage"},
	} {
		t.Run(what, func(t *testing.T) {
			srv, addr := startAttacked(t, "read", "nofile=1024", "clients=1000")
			must(t)(dial(t, addr).Create("block", 4096))
			stop := goodClient(t, addr)
			attacker := startAs(t, attackerUID, 0, deaf, append([]string{addr}, attack...)...)
			t.Log(attacker.Hear())
			stop()
			stop = goodClient(t, addr) // beside all of them
			stop()
			mustEnd(t, srv)
		})
	}
}

// lister lists all blocks again and again, by 64 clients.
var lister = proctest.Register("lister", func(p *proctest.Parent) error {
	started := make(chan error)
	for range 64 {
		go func() {
			for first := true; ; { // one that is too slow is dropped, and comes again
				c, err := manager.Dial(context.Background(), p.Args[0])
				if err != nil {
					started <- err
					return
				}
				for err == nil {
					if _, err = c.List(); first && err == nil {
						started <- nil
						first = false
					}
				}
				c.Close()
			}
		}()
	}
	for range 64 {
		if err := <-started; err != nil {
			return err
		}
	}
	p.Say("listing")
	p.Hear()
	return nil
})

// TestAttackList has clients ask for a long list again and again, first to read it,
// and then to read nothing of it.
func TestAttackList(t *testing.T) {
	onTmpfs(t)
	const blocks, listers, enough = 5000, 900, 64 << 20
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < blocks+listers+1000 {
		t.Skipf("at most %d descriptors, %v: run with ulimit -n 10000", limit.Cur, err)
	}
	srv, addr := startAttacked(t, "read")
	c := dial(t, addr)
	for i := range blocks {
		seg, err := c.Create(fmt.Sprintf("%0200d", i), 1, shm.Sparse())
		if err != nil {
			t.Fatal(err)
		}
		seg.Close()
	}
	attacker := startAs(t, attackerUID, 0, lister, addr)
	attacker.Expect("listing")
	goodClient(t, addr)()
	attacker.Kill()
	before := resident(t, srv)
	attacker = startAs(t, attackerUID, 0, deaf, addr, fmt.Sprint(listers), "20", `{"op":"list"}`)
	t.Log(attacker.Hear())
	goodClient(t, addr)()
	more := resident(t, srv) - before
	t.Logf("server: %d KiB more than %d KiB", more>>10, before>>10)
	if more > enough && !raw.Race {
		t.Errorf("%d bytes for %d listers", more, listers)
	}
	if list, err := c.List(); err != nil || len(list) != blocks {
		t.Errorf("list of %d, %v", len(list), err)
	}
	mustEnd(t, srv)
}

// resident returns how much memory a process has in use.
func resident(t *testing.T, c *proctest.Child) (bytes int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "\nVmRSS:")
	if _, err := fmt.Sscan(rest, &bytes); err != nil {
		t.Fatal(err)
	}
	return bytes << 10
}

// TestAttackPlaces has other users take all the places that there are for clients.
func TestAttackPlaces(t *testing.T) {
	onTmpfs(t)
	srv, addr := startAttacked(t, "read", "clients=40")
	attacker := startAs(t, attackerUID, 0, deaf, addr, "100", "0", "")
	if got := attacker.Hear(); got != "10 connected, 90 refused" { // a quarter
		t.Error(got)
	}
	goodClient(t, addr)()
	other := startAs(t, attackerUID+100, 0, deaf, addr, "1", "0", "")
	if got := other.Hear(); got != "1 connected, 0 refused" {
		t.Error(got)
	}
	attacker.Wait() // and its places are free again
	eventually(t, "the places are free", func() bool {
		again := startAs(t, attackerUID, 0, deaf, addr, "10", "0", "")
		defer again.Wait() // or it would keep the places that it got
		return again.Hear() == "10 connected, 0 refused"
	})
	mustEnd(t, srv)
}

// holder gets memory for a block, and holds the lock of its inode for as long as it
// likes, by a write of what a file system does not let it read.
var holder = proctest.Register("holder", func(p *proctest.Parent) error {
	fd, err := unix.Open(p.Args[1], unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	silent, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	conn, err := net.Dial("unix", p.Args[0])
	if err != nil {
		return err
	}
	unixConn := conn.(*net.UnixConn)
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadFull(conn, make([]byte, len(hello))); err != nil {
		return err
	}
	fmt.Fprintln(conn, `{"op":"memory","name":"held","cap":4096,"size":8192}`)
	oob := make([]byte, 100)
	_, n, _, _, err := unixConn.ReadMsgUnix(make([]byte, 100), oob)
	if err != nil {
		return err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return fmt.Errorf("%d messages, %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return err
	}
	go unix.Pwrite(fds[0], silent, 0)
	for { // until it holds the lock, and other writes wait for it
		done := make(chan bool)
		go func() {
			unix.Pwrite(fds[0], []byte{0}, 0)
			close(done)
		}()
		select {
		case <-done:
			continue
		case <-time.After(100 * time.Millisecond):
		}
		break
	}
	fmt.Fprintln(conn, `{"op":"create","name":"held","cap":4096}`)
	line, err := bufio.NewReader(conn).ReadString('\n')
	p.Say("%s%v", line, err)
	p.Hear()
	return nil
})

// TestAttackHeldMemory has a client hold the lock of a block's inode.
func TestAttackHeldMemory(t *testing.T) {
	onTmpfs(t)
	srv, addr := startAttacked(t, "full")
	fs, path := startSilentFS(t)
	attacker := startAs(t, 0, 0, holder, addr, path)
	t.Cleanup(fs.Kill) // before those who wait for it
	if got := attacker.Hear(); got != "{}" {
		t.Fatal(got)
	}
	goodClient(t, addr)()
	c := dial(t, addr)
	if got := names(t, c); !slices.Equal(got, []string{"held"}) {
		t.Errorf("list: %v", got)
	}
	if err := c.Release("held"); err != nil {
		t.Error(err)
	}
	mustEnd(t, srv, fs)
}

// A server whose files may not be large is not ended by a client that asks for
// much memory.
func TestAttackFileSize(t *testing.T) {
	onTmpfs(t)
	srv, addr := startAttacked(t, "fsize=65536")
	c := dial(t, addr)
	mustFail(t, second(c.Create("large", 1<<20)), "large", manager.ErrQuota)
	atWork(t, c)
	mustEnd(t, srv)
}
