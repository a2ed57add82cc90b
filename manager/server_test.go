package manager_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/manager"
)

// address returns one for a server, which every user can reach.
func address(t testing.TB) string {
	t.Helper()
	if runtime.GOOS == "windows" {
		return "@shm-test-" + rand.Text()
	}
	dir, err := os.MkdirTemp("", "shm") // that of the test can be too long for a socket
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "socket")
}

// serve runs a server in this process until the test ends, or until it is told.
func serve(t testing.TB, opts ...manager.ServeOption) (addr string, stop func()) {
	t.Helper()
	addr = address(t)
	return addr, serveAt(t, addr, opts...)
}

func serveAt(t testing.TB, addr string, opts ...manager.ServeOption) (stop func()) {
	t.Helper()
	l := listen(t, addr)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- manager.Serve(ctx, l, opts...) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func listen(t testing.TB, addr string) net.Listener {
	t.Helper()
	l, err := manager.Listen(addr)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip("no servers on this system")
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func dial(t testing.TB, addr string, opts ...manager.DialOption) *manager.Client {
	t.Helper()
	c, err := manager.Dial(context.Background(), addr, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// server is a server in a process of its own.
var server = proctest.Register("server", beServer)

func beServer(p *proctest.Parent) error {
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
	return manager.Serve(ctx, l, manager.MaxClients(10000))
}

func startServer(t testing.TB, addr string) *proctest.Child {
	t.Helper()
	listen(t, address(t)).Close() // where it can
	c := proctest.Start(t, server, addr)
	c.Expect("listening")
	return c
}

// user is a client in a process of its own, which does as it is told.
var user = proctest.Register("user", func(p *proctest.Parent) error { return beUser(p, nil) })

func beUser(p *proctest.Parent, force func(*shm.Segment) error) error {
	var opts []manager.DialOption
	if slices.Contains(p.Args, "lease") {
		opts = append(opts, manager.Lease())
	}
	c, err := manager.Dial(context.Background(), p.Args[0], opts...)
	if err != nil {
		p.Say("dial: %s", word(err))
		return nil
	}
	p.Say("dialled")
	var seg *shm.Segment
	for {
		line, err := p.Hear()
		if err != nil {
			return nil // without Close
		}
		verb, name, _ := strings.Cut(line, " ")
		switch verb {
		case "create":
			seg, err = c.Create(name, 1<<16)
		case "open":
			seg, err = c.Open(name)
		case "read":
			seg, err = c.Open(name, shm.ReadOnly())
			if err == nil {
				b := make([]byte, 4)
				seg.ReadAt(b, 0)
				p.Say("%s", b)
				continue
			}
		case "write":
			_, err = seg.WriteAt([]byte(name), 0)
		case "force":
			err = force(seg)
		case "release":
			err = c.Release(name)
		}
		p.Say("%s", word(err))
	}
}

func word(err error) string {
	for _, e := range []error{fs.ErrExist, fs.ErrNotExist, manager.ErrQuota, fs.ErrPermission, manager.ErrGone, errors.ErrUnsupported} {
		if errors.Is(err, e) {
			return e.Error()
		}
	}
	if err != nil {
		return "error: " + err.Error()
	}
	return "ok"
}

func startUser(t testing.TB, addr string, args ...string) *proctest.Child {
	t.Helper()
	c := proctest.Start(t, user, append([]string{addr}, args...)...)
	c.Expect("dialled")
	return c
}

func do(c *proctest.Child, line, answer string) {
	c.Say("%s", line)
	c.Expect(answer)
}

// eventually waits until f reports true: for what a server does on its own.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}

func TestServe(t *testing.T) {
	addr, stop := serve(t)
	a, b := dial(t, addr), dial(t, addr)
	seg := must(t)(a.Create("/frames", 10001))
	if seg.Name() != "frames" || seg.Cap() != 10001 || seg.Size() != 10001 || seg.Refs() != 1 {
		t.Errorf("created %q, %d of %d bytes, %d references", seg.Name(), seg.Size(), seg.Cap(), seg.Refs())
	}
	if got := read(t, seg, 4); got != "\x00\x00\x00\x00" {
		t.Errorf("new block holds %q", got)
	}
	peer := must(t)(b.Open("frames"))
	if err := seg.Truncate(0); err != nil {
		t.Error(err)
	}
	write(t, seg, "shared")
	if got := read(t, peer, 6); got != "shared" || peer.Size() != 6 || peer.Refs() != 2 {
		t.Errorf("holds %q, %d bytes, %d references", got, peer.Size(), peer.Refs())
	}
	joined, created, err := b.OpenOrCreate("frames", 1)
	if err != nil || created || joined.Cap() != 10001 {
		t.Errorf("created %v, %v", created, err)
	}
	joined.Close()
	mustFail(t, second(b.Create("others", 5, shm.Sparse(), shm.Prefault())), "others", fs.ErrInvalid)
	joined, created, err = b.OpenOrCreate("others", 5, shm.Sparse())
	if err != nil || !created {
		t.Fatalf("created %v, %v", created, err)
	}
	joined.Close()
	seg.Close()
	peer.Close()
	if got := read(t, must(t)(a.Open("frames", shm.Prefault())), 6); got != "shared" {
		t.Errorf("holds %q when nobody was attached", got)
	}
	list, err := a.List()
	if err != nil || len(list) != 2 || list[0].Name != "frames" || list[1].Name != "others" || list[0].Cap != 10001 ||
		list[0].Creator != os.Getpid() || time.Since(list[0].Created) > time.Hour || list[0].Leased {
		t.Errorf("list: %+v, %v", list, err)
	}
	kept := must(t)(a.Open("frames"))
	if err := b.Release("/frames"); err != nil {
		t.Error(err)
	}
	if got := read(t, kept, 6); got != "shared" {
		t.Errorf("holds %q after Release", got)
	}
	mustFail(t, second(a.Open("frames")), "frames", fs.ErrNotExist)
	mustFail(t, kept.Unlink(), "frames", fs.ErrNotExist)
	unnamed := must(t)(a.Create("", 5))
	if names := names(t, b); len(names) != 2 || !slices.Contains(names, unnamed.Name()) {
		t.Errorf("list: %v without %q", names, unnamed.Name())
	}
	for _, name := range []string{"frames", "others", unnamed.Name()} {
		mustNotExist(t, name) // to package shm
	}
	stop()
	mustFail(t, second(a.Create("late", 1)), "late", manager.ErrGone)
	mustFail(t, a.Release("frames"), "frames", manager.ErrGone)
	mustFail(t, second(a.List()), "", manager.ErrGone)
	write(t, kept, "usable")
	if err := errors.Join(a.Close(), a.Close()); err != nil {
		t.Error(err)
	}
	mustFail(t, second(a.Open("frames")), "frames", fs.ErrClosed)
	mustFail(t, second(manager.Dial(t.Context(), addr)), addr, manager.ErrGone)
}

func TestServeErrors(t *testing.T) {
	addr, _ := serve(t)
	c := dial(t, addr)
	seg := must(t)(c.Create("taken", 1))
	mustFail(t, second(c.Create("taken", 1)), "taken", fs.ErrExist)
	for _, size := range []int64{0, -1, math.MinInt64} {
		mustFail(t, second(c.Create("a", size)), "a", fs.ErrInvalid)
	}
	for _, size := range []int64{math.MaxInt64, 1 << 60} {
		mustFail(t, second(c.Create("a", size)), "a", shm.ErrNoSpace)
	}
	for _, name := range []string{".", "..", ".hidden", "a/b", "//a", "a\x00b", "a\nb", "a b", "é", "\xff", strings.Repeat("a", 256)} {
		mustFail(t, second(c.Create(name, 1)), name, fs.ErrInvalid)
		mustFail(t, second(c.Open(name)), name, fs.ErrInvalid)
		mustFail(t, c.Release(name), name, fs.ErrInvalid)
	}
	mustFail(t, second(c.Open("")), "", fs.ErrInvalid)
	mustFail(t, c.Release(""), "", fs.ErrInvalid)
	mustFail(t, second(c.Open("missing")), "missing", fs.ErrNotExist)
	mustFail(t, c.Release("missing"), "missing", fs.ErrNotExist)
	for _, o := range []shm.Option{nil, shm.ReadOnly(), shm.Persistent(), shm.Headerless(), shm.Perm(0o600), shm.Label("a")} {
		mustFail(t, second(c.Create("a", 1, o)), "a", fs.ErrInvalid)
		_, _, err := c.OpenOrCreate("taken", 1, o)
		mustFail(t, err, "taken", fs.ErrInvalid)
	}
	for _, o := range []shm.Option{nil, shm.Sparse(), shm.Persistent(), shm.Headerless(), shm.Perm(0o600)} {
		mustFail(t, second(c.Open("taken", o)), "taken", fs.ErrInvalid)
	}
	if got := names(t, c); len(got) != 1 {
		t.Errorf("list: %v", got)
	}
	long := strings.Repeat("a", 255)
	must(t)(c.Create(long, 1))
	seg.Close()

	nowhere := address(t)
	mustFail(t, second(manager.Dial(t.Context(), nowhere)), nowhere, manager.ErrGone)
	t.Setenv(manager.Env, "")
	mustFail(t, second(manager.Dial(t.Context(), "")), "", manager.ErrGone)
	t.Setenv(manager.Env, addr)
	if got := names(t, dial(t, "")); len(got) != 2 || got[0] != long {
		t.Errorf("list by %s: %v", manager.Env, got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	mustFail(t, second(manager.Dial(ctx, addr)), addr, context.Canceled)
}

// A list of many blocks comes in pages.
func TestServeList(t *testing.T) {
	addr, _ := serve(t)
	c := dial(t, addr)
	var want []string
	for i := range 1000 {
		name := fmt.Sprintf("%0200d", i)
		want = append(want, name)
		seg, err := c.Create(name, 1, shm.Sparse())
		if err != nil {
			t.Fatal(err)
		}
		seg.Close()
	}
	if got := names(t, c); !slices.Equal(got, want) {
		t.Errorf("%d blocks, want %d", len(got), len(want))
	}
}

func TestServeReadOnly(t *testing.T) {
	addr, _ := serve(t)
	c := dial(t, addr)
	seg := must(t)(c.Create("block", 100))
	peer := must(t)(c.Open("block", shm.ReadOnly()))
	if n := seg.Refs(); manager.Restricts() && n != 1 { // for it has no means to count itself
		t.Errorf("%d references", n)
	}
	mustFail(t, second(peer.Write([]byte("x"))), "block", shm.ErrReadOnly)
	write(t, seg, "seen")
	if got := read(t, peer, 4); got != "seen" {
		t.Errorf("holds %q", got)
	}
	f, err := peer.File()
	if !manager.Restricts() {
		mustFail(t, err, "block", errors.ErrUnsupported)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), 0); err == nil && runtime.GOOS != "windows" { // Wine 8 does that
		t.Error("written")
	}
	mustFail(t, second(shm.FromFile(f)), "block", fs.ErrPermission)
}

func TestQuota(t *testing.T) {
	addr, _ := serve(t,
		manager.Total(manager.Quota{Blocks: 4, Bytes: 1000}),
		manager.PerClient(manager.Quota{Blocks: 3, Bytes: 600}),
		manager.MaxClients(3))
	a, b := dial(t, addr), dial(t, addr, manager.Lease())
	create := func(c *manager.Client, name string, size int64, want error) {
		t.Helper()
		seg, err := c.Create(name, size)
		if err == nil {
			seg.Close()
		}
		if !errors.Is(err, want) {
			t.Errorf("Create of %s with %d bytes: %v, want %v", name, size, err, want)
		}
	}
	create(a, "a1", 601, manager.ErrQuota)
	_, err := a.Create("a1", 601)
	if want := "601 more bytes: 0 of at most 600 bytes of this client are in use"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %q without %q", err, want)
	}
	create(a, "a1", 400, nil)
	create(a, "a2", 201, manager.ErrQuota)
	create(a, "a2", 100, nil)
	create(a, "a3", 100, nil)
	create(a, "a4", 1, manager.ErrQuota) // three blocks
	_, err = a.Create("a4", 1)
	if want := "one more block: 3 of at most 3 blocks of this client are in use"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %q without %q", err, want)
	}
	create(b, "b1", 401, manager.ErrQuota)
	create(b, "b1", 399, nil)
	create(b, "b2", 1, manager.ErrQuota) // four blocks in all
	if err := b.Release("a3"); err != nil {
		t.Error(err)
	}
	create(a, "a3", 101, manager.ErrQuota)
	create(a, "a3", 100, nil)

	// All clients there may be.
	third := dial(t, addr)
	err = second(manager.Dial(t.Context(), addr))
	mustFail(t, err, addr, manager.ErrQuota)
	if want := "one more client: there are 3 of at most 3"; !strings.Contains(err.Error(), want) {
		t.Errorf("error %q without %q", err, want)
	}
	third.Close()

	// A client that leaves gives back its lease; what was not leased stays in
	// the total, and no longer in anybody's own quota.
	b.Close()
	eventually(t, "the lease is back", func() bool { return len(names(t, a)) == 3 })
	create(a, "a4", 1, manager.ErrQuota)
	a.Close()
	var c *manager.Client
	eventually(t, "a client may connect", func() (ok bool) {
		var err error
		c, err = manager.Dial(t.Context(), addr)
		return err == nil
	})
	defer c.Close()
	create(c, "c1", 399, nil)
	create(c, "c2", 1, manager.ErrQuota)
	for _, name := range names(t, c) {
		if err := c.Release(name); err != nil {
			t.Error(err)
		}
	}
	create(c, "c1", 600, nil)
}

// TestLease has clients end in each way.
func TestLease(t *testing.T) {
	for _, killed := range []bool{false, true} {
		addr, _ := serve(t)
		c := dial(t, addr)
		a, b := startUser(t, addr, "lease"), startUser(t, addr)
		do(a, "create leased", "ok")
		do(a, "write used", "ok")
		do(b, "create kept", "ok")
		do(b, "open leased", "ok")
		seg := must(t)(c.Open("leased"))
		if list, err := c.List(); err != nil || len(list) != 2 || !list[1].Leased || list[1].Creator != a.Process.Pid {
			t.Errorf("list: %+v, %v", list, err)
		}
		if killed {
			a.Kill()
			b.Kill()
		} else {
			a.Wait()
			b.Wait()
		}
		eventually(t, "the lease has ended", func() bool { return len(names(t, c)) == 1 })
		if got := names(t, c); got[0] != "kept" {
			t.Errorf("list: %v", got)
		}
		if got := read(t, seg, 4); got != "used" {
			t.Errorf("holds %q", got)
		}
		must(t)(c.Create("leased", 1))
	}
}

// TestServerKilled has the server die with clients attached, and another one
// take its place.
func TestServerKilled(t *testing.T) {
	addr := address(t)
	srv := startServer(t, addr)
	if _, err := manager.Listen(addr); !errors.Is(err, errInUse) {
		t.Errorf("second listener: %v", err)
	}
	c := dial(t, addr)
	other := startUser(t, addr)
	seg := must(t)(c.Create("block", 1<<16))
	do(other, "open block", "ok")
	srv.Kill()
	do(other, "write live", "ok")
	if got := read(t, seg, 4); got != "live" {
		t.Errorf("holds %q", got)
	}
	mustFail(t, second(c.Create("more", 1)), "more", manager.ErrGone)
	mustFail(t, second(c.Open("block")), "block", manager.ErrGone)
	do(other, "open block", "manager is gone")
	mustFail(t, second(manager.Dial(t.Context(), addr)), addr, manager.ErrGone)

	srv = startServer(t, addr) // where the other has left its socket
	c = dial(t, addr)
	if got := names(t, c); len(got) != 0 {
		t.Errorf("list: %v", got)
	}
	must(t)(c.Create("block", 1))
	srv.Wait()
	mustFail(t, second(manager.Dial(t.Context(), addr)), addr, manager.ErrGone)
}

func TestClientConcurrent(t *testing.T) {
	addr, _ := serve(t)
	c := dial(t, addr)
	left := watch(t, os.Getpid())
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				seg, _, err := c.OpenOrCreate(fmt.Sprint("b", (i+j)%3), 100)
				if err != nil {
					t.Error(err)
					return
				}
				seg.Close()
				if err := c.Release(fmt.Sprint("b", j%3)); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, name := range names(t, c) {
		if err := c.Release(name); err != nil {
			t.Error(err)
		}
	}
	left("the blocks are released")
}

// Of several that call OpenOrCreate at once, one creates the block.
func TestOpenOrCreateRace(t *testing.T) {
	addr, _ := serve(t)
	for range 20 {
		var created, ids sync.Map
		var wg sync.WaitGroup
		for i := range 6 {
			c := dial(t, addr)
			wg.Go(func() {
				seg, made, err := c.OpenOrCreate("block", 1<<20)
				if err != nil {
					t.Error(err)
					return
				}
				defer seg.Close()
				if made {
					created.Store(i, true)
				}
				info, err := seg.Stat()
				if err != nil {
					t.Error(err)
					return
				}
				ids.Store(info.Sys().(*shm.Info).ID, true)
			})
		}
		wg.Wait()
		count := func(m *sync.Map) (n int) {
			m.Range(func(any, any) bool { n++; return true })
			return n
		}
		if count(&created) != 1 || count(&ids) != 1 {
			t.Fatalf("created by %d, %d blocks", count(&created), count(&ids))
		}
		if err := dial(t, addr).Release("block"); err != nil {
			t.Fatal(err)
		}
	}
}

// An OpenOrCreate that others are always in between of ends.
func TestOpenOrCreateBusy(t *testing.T) {
	addr := address(t)
	l := listen(t, addr)
	defer l.Close()
	var serving sync.WaitGroup
	defer serving.Wait()
	serving.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		fmt.Fprint(conn, hello)
		for b := make([]byte, 1000); ; {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			if strings.Contains(string(b[:n]), `"open"`) {
				fmt.Fprintln(conn, `{"code":"not_exist","error":"released"}`)
			} else {
				fmt.Fprintln(conn, `{"code":"exist","error":"created"}`)
			}
		}
	})
	c := dial(t, addr)
	_, _, err := c.OpenOrCreate("block", 100)
	mustFail(t, err, "block", shm.ErrBusy)
	c.Close()
}

// silent is a server that says the words it is given, and takes no notice of
// what it is told.
func silent(t *testing.T, words string) (addr string) {
	addr = address(t)
	l := listen(t, addr)
	var serving sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
			conn.Write([]byte(words))
		}
	})
	return addr
}

// mustEndPending checks that end ends a request that the server does not answer,
// and the client.
func mustEndPending(t *testing.T, c *manager.Client, end func()) {
	t.Helper()
	done := make(chan error)
	go func() { done <- second(c.Open("block")) }()
	end()
	mustFail(t, <-done, "block", fs.ErrClosed)
	mustFail(t, second(c.Open("block")), "block", fs.ErrClosed)
}

// A request that the server does not answer ends with the client, or with the
// context.
func TestServerSilent(t *testing.T) {
	for _, byContext := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c, err := manager.Dial(ctx, silent(t, hello))
		if err != nil {
			t.Fatal(err)
		}
		if byContext {
			mustEndPending(t, c, cancel)
		} else {
			mustEndPending(t, c, func() { c.Close() })
		}
	}
	manager.SetStall(t, 10*time.Millisecond)
	addr := silent(t, "")
	mustFail(t, second(manager.Dial(t.Context(), addr)), addr, manager.ErrGone)
	ctx, cancel := context.WithCancel(t.Context())
	manager.SetStall(t, time.Minute)
	done := make(chan error)
	go func() { done <- second(manager.Dial(ctx, addr)) }()
	cancel()
	mustFail(t, <-done, addr, context.Canceled)
}

// A server takes no connections but those of which it knows the peer.
func TestServeOverTCP(t *testing.T) {
	listen(t, address(t)).Close() // where it can
	want := "not a Unix socket"
	if runtime.GOOS == "windows" {
		want = "not a pipe"
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- manager.Serve(ctx, l) }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if answer, _ := io.ReadAll(conn); !strings.Contains(string(answer), want) {
		t.Errorf("over TCP: %q", answer)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	l.Close()
	if err := manager.Serve(t.Context(), l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("on a closed listener: %v", err)
	}
}
