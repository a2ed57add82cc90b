package manager_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/internal/section"
	"github.com/shmkit/shm/manager"
)

// watch returns a function that waits until nothing is left of what happened
// after watch: no section of an anonymous block.
func watch(t testing.TB, _ int) (left func(when string)) {
	t.Helper()
	before := sections(t)
	return func(when string) {
		t.Helper()
		eventually(t, "no sections are left when "+when, func() bool {
			return !slices.ContainsFunc(sections(t), func(name string) bool { return !slices.Contains(before, name) })
		})
	}
}

func sections(t testing.TB) []string {
	t.Helper()
	names, err := section.Names()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(names, func(name string) bool { return name[0] != '!' })
}

func TestListenPipe(t *testing.T) {
	addr, stop := serve(t)
	path := `\\.\pipe\` + addr[1:]
	if _, err := manager.Listen(path); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second listener: %v", err)
	}
	c := dial(t, path)
	atWork(t, c)
	stop()
	l := listen(t, path)
	if got := l.Addr().String(); got != path {
		t.Errorf("address %q", got)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	for _, addr := range []string{"pipe", "@", `\\.\pipe\`, `\\elsewhere\pipe\x`, `C:\socket`, `\\.\x`} {
		if _, err := manager.Listen(addr); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("listening at %s: %v", addr, err)
		}
		mustFail(t, second(manager.Dial(t.Context(), addr)), addr, fs.ErrInvalid)
	}
}

// Authorize knows a client by its process, and can let it only read.
func TestAuthorizePipe(t *testing.T) {
	asked := make(chan manager.Peer, 10)
	addr, _ := serve(t, manager.Authorize(func(p manager.Peer) manager.Access {
		asked <- p
		if p.PID == os.Getpid() {
			return manager.FullAccess
		}
		return manager.ReadAccess
	}))
	c := dial(t, addr)
	seg := must(t)(c.Create("block", 1<<16))
	write(t, seg, "seen")
	other := startUser(t, addr)
	<-asked
	if p := <-asked; p.PID != other.Process.Pid || p.UID != -1 || p.GID != -1 {
		t.Errorf("asked for %+v", p)
	}
	do(other, "create more", "permission denied")
	do(other, "release block", "permission denied")
	do(other, "open block", "permission denied")
	do(other, "read block", "seen")

	addr, _ = serve(t, manager.Authorize(func(manager.Peer) manager.Access { return manager.NoAccess }))
	mustFail(t, second(manager.Dial(t.Context(), addr)), addr, fs.ErrPermission)
}

// caller connects to a pipe and does no more.
var caller = proctest.Register("caller", func(p *proctest.Parent) error {
	conn, err := manager.Knock(p.Args[0])
	if err != nil {
		return err
	}
	p.Say("%d", conn.(interface{ Fd() uintptr }).Fd())
	p.Hear()
	return nil
})

// A client is who opened the pipe, whatever process has its end by now.
func TestPipeHandedOn(t *testing.T) {
	addr := address(t)
	l := listen(t, addr)
	child := proctest.Start(t, caller, addr)
	h, err := strconv.ParseUint(child.Hear(), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	process, err := windows.OpenProcess(windows.PROCESS_DUP_HANDLE, false, uint32(child.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var own windows.Handle
	err = windows.DuplicateHandle(process, windows.Handle(h), windows.CurrentProcess(), &own, 0, false, windows.DUPLICATE_SAME_ACCESS)
	if err := errors.Join(err, windows.CloseHandle(process)); err != nil {
		t.Fatal(err)
	}
	conn := os.NewFile(uintptr(own), "pipe")
	defer conn.Close()
	child.Kill()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- manager.Serve(ctx, l) }()
	b := make([]byte, 1000)
	if n, err := conn.Read(b); string(b[:n]) != hello {
		t.Errorf("answer %q, %v", b[:n], err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Nobody but this user, the administrators and the system gets at a pipe.
func TestPipeAccess(t *testing.T) {
	addr, _ := serve(t)
	conn := knock(t, addr)
	sd, err := windows.GetSecurityInfo(windows.Handle(conn.(interface{ Fd() uintptr }).Fd()), windows.SE_KERNEL_OBJECT,
		windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		t.Fatal(err)
	}
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		t.Fatal(err)
	}
	if owner, _, err := sd.Owner(); err != nil || !owner.Equals(user.User.Sid) {
		t.Errorf("owner %v, %v", owner, err)
	}
	if dacl, _, err := sd.DACL(); err != nil || dacl == nil || dacl.AceCount != 3 {
		t.Errorf("access: %v, %v", sd, err)
	}
}

// A server opens no section that a client names, and what a client does to the memory
// of a block is found out by those who open it.
func TestHostileSections(t *testing.T) {
	addr, _ := serve(t)
	c := dial(t, addr)
	named := must(t)(shm.Create("", 100))
	good := must(t)(shm.Anonymous(100))
	f, err := good.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	goodName, err := section.Name(windows.Handle(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	conn := knock(t, addr)
	answers(t, conn, "")
	before := sections(t)
	for _, name := range []string{"", "!" + strings.Repeat("a", 26), `Global\\` + goodName, named.Name(), goodName} {
		fmt.Fprintf(conn, `{"op":"create","name":"a","cap":100,"section":"%s"}`+"\n", name)
		if got := line(t, conn); !strings.HasPrefix(got, `{"code":"invalid"`) {
			t.Errorf("%s: %s", name, got)
		}
	}
	if got := names(t, c); len(got) != 0 {
		t.Errorf("list: %v", got)
	}
	if after := sections(t); len(after) != len(before) {
		t.Errorf("sections %v, before %v", after, before)
	}

	kept, err := must(t)(c.Create("b", 100)).File()
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	must(t)(c.Open("b"))
	view, err := windows.MapViewOfFile(windows.Handle(kept.Fd()), windows.FILE_MAP_WRITE, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	clear(unsafe.Slice(*(**byte)(unsafe.Pointer(&view)), 8))
	if err := windows.UnmapViewOfFile(view); err != nil {
		t.Fatal(err)
	}
	mustFail(t, second(c.Open("b")), "b", shm.ErrNotSegment)
	atWork(t, c)
}

// A client that does not read its responses is dropped.
func TestPipeDeaf(t *testing.T) {
	manager.SetStall(t, 100*time.Millisecond)
	addr, _ := serve(t)
	c := dial(t, addr)
	must(t)(c.Create("block", 4096))
	left := watch(t, 0)
	for range 3 {
		deaf := knock(t, addr)
		deaf.SetWriteDeadline(time.Now().Add(30 * time.Second))
		var err error
		for err == nil {
			_, err = fmt.Fprintln(deaf, `{"op":"open","name":"block"}`)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		atWork(t, c)
	}
	left("it has gone")
}

// Clients that hang up as soon as they are connected disturb nobody.
func TestPipeHangUp(t *testing.T) {
	addr, _ := serve(t)
	c := dial(t, addr)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				if conn, err := manager.Knock(addr); err != nil {
					t.Error(err)
				} else {
					conn.Close()
				}
			}
		})
	}
	for range 20 {
		atWork(t, c)
	}
	wg.Wait()
	atWork(t, dial(t, addr))
}

// What a client has open when the server shuts down, the server lets go.
func TestPipeShutdown(t *testing.T) {
	left := watch(t, 0)
	addr, stop := serve(t)
	c := dial(t, addr)
	for range 10 {
		must(t)(c.Create("", 4096)).Close()
	}
	idle := knock(t, addr)
	answers(t, idle, "")
	stop()
	if n, err := idle.Read([]byte{0}); n != 0 || err != io.EOF {
		t.Errorf("read %d, %v", n, err)
	}
	left("the server has ended")
}
