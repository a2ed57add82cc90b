package shm_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/internal/standin"
)

// onStandin returns the stand-in for darwin's kernel, and skips a test of what is
// so on darwin where the tests do not run on it.
func onStandin(t *testing.T) *standin.Kernel {
	t.Helper()
	if standin.Used() == nil {
		t.Skip("not on the stand-in: run with SHM_STANDIN")
	}
	return standin.Used()
}

// TestObserver has a process attached that may only read. It cannot write that
// it is there, so the block does not wait for it; but its memory does.
func TestObserver(t *testing.T) {
	onStandin(t)
	if os.Getuid() != 0 {
		t.Skip("only root can start processes of another user: run as root")
	}
	cmd := proctest.Command(agentProgram)
	cmd.Path = "/proc/self/exe" // its directory is closed to other users
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	stranger := agent{proctest.StartCommand(t, cmd), t}
	for _, killed := range []bool{false, true} {
		name := unique(t)
		a := newAgent(t)
		id := a.attach("create %s public", name)
		a.must("written", "write 0 public")
		stranger.must("permission", "open %s", name)
		if got := stranger.attach("open %s readonly", name); got != id {
			t.Fatalf("the observer is attached to %s, not %s", got, id)
		}
		a.must("1", "refs")
		stranger.must("sound", "sound")
		stranger.must("permission", "unlink")
		if killed {
			a.Kill()
			mustNotExist(t, name)
		} else {
			a.must("closed", "close")
		}
		mustBeGone(t, name)
		stranger.must("public", "read 0 6")
		stranger.must("closed", "close")
	}
}

// nameless makes an anonymous block and stops before step n of that, if there is
// one, which it says.
var nameless = proctest.Register("nameless", func(p *proctest.Parent) error {
	var n int
	fmt.Sscan(p.Args[0], &n)
	steps := 0
	standin.Used().BeforeStep = func(what string) {
		if steps++; steps-1 == n {
			p.Say("before %s", what)
			p.Hear()
		}
	}
	seg, err := shm.Anonymous(1 << 20)
	standin.Used().BeforeStep = nil
	if err != nil {
		return err
	}
	p.Say("done")
	p.Hear()
	return seg.Close()
})

// namelessLeft returns the sizes of the objects that are in the way of anonymous
// blocks of this user.
func namelessLeft(t *testing.T) (sizes []int64) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(standin.Used().Dir, "shm:shmkit-anonymous-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil {
			sizes = append(sizes, info.Size())
		}
	}
	return sizes
}

// TestAnonymousKilled kills processes before every step of making an anonymous
// block: together they leave one name, with nothing behind it, and the next who
// makes one takes it away.
func TestAnonymousKilled(t *testing.T) {
	onStandin(t)
	left, said := 0, ""
	for n := 0; said != "done" && n < 100; n++ {
		for range 2 { // the second finds what the first has left
			c := proctest.Start(t, nameless, fmt.Sprint(n))
			said = c.Hear()
			c.Kill()
		}
		switch sizes := namelessLeft(t); {
		case len(sizes) > 1 || len(sizes) == 1 && sizes[0] != 0:
			t.Errorf("%s: left with these sizes: %v", said, sizes)
		case len(sizes) == 1:
			left++
		}
	}
	if left == 0 {
		t.Error("nothing was left at any step")
	}
	c := proctest.Start(t, nameless, "1")
	c.Expect("before shm_unlink")
	c.Kill()
	if sizes := namelessLeft(t); len(sizes) != 1 {
		t.Errorf("before the next: %v", sizes)
	}
	anonymous(t, 100)
	if sizes := namelessLeft(t); len(sizes) != 0 {
		t.Errorf("after the next: %v", sizes)
	}
}

// Processes that make anonymous blocks at the same time take the name from each
// other, and each has a block of its own.
func TestAnonymousPaused(t *testing.T) {
	onStandin(t)
	for n := range 100 {
		c := proctest.Start(t, nameless, fmt.Sprint(n))
		stopped := strings.HasPrefix(c.Hear(), "before ")
		seg := anonymous(t, 100)
		if stopped {
			c.Say("go on")
			c.Expect("done")
		}
		anonymous(t, 100)
		if sizes := namelessLeft(t); len(sizes) != 0 {
			t.Errorf("step %d: left with these sizes: %v", n, sizes)
		}
		if refs := seg.Refs(); refs != 1 {
			t.Errorf("step %d: %d references", n, refs)
		}
		c.Wait()
		if !stopped {
			return
		}
	}
}

// Another user can take the name for good. Then there are others.
func TestAnonymousNameTaken(t *testing.T) {
	onStandin(t)
	mustRoot(t, "start processes of another user")
	path := filepath.Join(standin.Used().Dir, "shm:shmkit-anonymous-65534")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path)
	before, err := os.ReadDir(standin.Used().Dir)
	if err != nil {
		t.Fatal(err)
	}
	cmd := proctest.Command(nameless, "-1")
	cmd.Path = "/proc/self/exe" // its directory is closed to other users
	stranger(cmd)
	c := proctest.StartCommand(t, cmd)
	c.Expect("done")
	if after, err := os.ReadDir(standin.Used().Dir); err != nil || len(after) != len(before) {
		t.Errorf("%v, %v, before %v", after, err, before)
	}
	c.Wait()
}

// TestScribble has a peer write garbage over header and lock page of a block in
// use. Everything may fail then, but only with an error.
func TestScribble(t *testing.T) {
	kernel := onStandin(t)
	shm.SetPatience(t, time.Millisecond)
	const head = 16 << 10 // bytes: the page of the header and of the locks
	for seed := range uint64(100) {
		random := rand.New(rand.NewPCG(seed, 0))
		name := unique(t)
		seg, err := shm.Create(name, 10)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(kernel.Path("/"+name), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		from := []int{0, 64, 4 << 10}[seed%3] // the last: only the locks
		for range 1 + random.IntN(head-from) {
			at := from + random.IntN(head-from)
			if _, err := f.WriteAt([]byte{byte(random.Uint32())}, int64(at)); err != nil {
				t.Fatal(err)
			}
		}
		f.Close()
		for _, opts := range [][]shm.Option{nil, {shm.ReadOnly()}, {shm.Headerless()}} {
			if peer, err := shm.Open(name, opts...); err == nil {
				peer.Close()
			}
		}
		shm.Stat(name)
		if peer, err := shm.Create(name, 10); err == nil {
			peer.Close()
		}
		seg.Stat()
		seg.Unlink()
		seg.Close()
		shm.Unlink(name)
	}
}
