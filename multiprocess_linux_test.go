package shm_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
)

// newStranger starts an agent that runs as another user.
func newStranger(t *testing.T) agent {
	t.Helper()
	return startStranger(t, agentProgram)
}

func startStranger(t *testing.T, program proctest.Program) agent {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can start processes of another user: run as root")
	}
	cmd := proctest.Command(program)
	cmd.Path = "/proc/self/exe" // its directory is closed to other users
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	return agent{proctest.StartCommand(t, cmd), t}
}

// TestUncounted has a process attached that may only read: it is not in the
// count, but the kernel knows of it.
func TestUncounted(t *testing.T) {
	onTmpfs(t)
	for _, killed := range []bool{false, true} {
		name := unique(t)
		a, stranger := newAgent(t), newStranger(t)
		id := a.attach("create %s public", name)
		a.must("written", "write 0 public")
		stranger.must("permission", "open %s", name)
		if got := stranger.attach("open %s readonly", name); got != id {
			t.Fatalf("the stranger is attached to %s, not %s", got, id)
		}
		a.must("1", "refs")
		if killed {
			a.Kill()
		} else {
			a.must("closed", "close")
		}
		mustLead(t, name, id)
		stranger.must("public", "read 0 6")
		stranger.must("sound", "sound")
		late := newAgent(t)
		if got := late.attach("open %s", name); got != id {
			t.Errorf("attached to %s, not %s", got, id)
		}
		late.must("closed", "close")
		mustLead(t, name, id)
		// The stranger may not unlink. What it leaves is dead for all others.
		stranger.must("closed", "close")
		mustBeDead(t, name)
		mustNotExist(t, name)
	}
}

// TestStrangersLeave has processes of two users attached, and the one that may
// not unlink leave last.
func TestStrangersLeave(t *testing.T) {
	onTmpfs(t)
	name := unique(t)
	a, b, c := newAgent(t), newStranger(t), newStranger(t)
	id := a.attach("create %s public", name)
	b.attach("open %s readonly", name)
	a.Kill()
	if got := c.attach("open %s readonly", name); got != id {
		t.Errorf("attached to %s, not %s", got, id)
	}
	b.Kill()
	mustLead(t, name, id)
	c.must("sound", "sound")
	c.Kill()
	d := newStranger(t)
	if got := d.do("open %s readonly", name); got != "notexist" {
		t.Errorf("Open of a dead block that one may only read: %s", got)
	}
	mustNotExist(t, name)
}

// startExec runs programs all the time until the test ends. Between its fork
// and its exec each child holds all of this process's descriptors, and with
// them the locks.
func startExec(t *testing.T) {
	path, err := exec.LookPath("true")
	if err != nil {
		t.Skip(err)
	}
	end := make(chan struct{})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
					if err := exec.Command(path).Run(); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	t.Cleanup(func() {
		close(end)
		all.Wait()
	})
}

// TestCloseWhileForking has the last one close while children that are just
// being started have copies of its descriptor.
func TestCloseWhileForking(t *testing.T) {
	onTmpfs(t)
	startExec(t)
	name := unique(t)
	peer := newAgent(t)
	for i := range rounds(1000) {
		seg, err := shm.Create(name, 100)
		if err != nil {
			t.Fatal(err)
		}
		if i%4 == 0 {
			peer.attach("open %s", name)
			peer.must("closed", "close")
		}
		twin, err := shm.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		seg.Close()
		twin.Close()
		if _, err := shm.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("round %d: the name is still there: %v", i, err)
		}
	}
}

// forkerProgram is an agent that starts programs all the time.
var forkerProgram = proctest.Register("forker", func(p *proctest.Parent) error {
	for range 4 {
		go func() {
			for exec.Command("/bin/true").Run() == nil {
			}
		}()
	}
	return serveAgent(p)
})

// TestUncountedForks has an uncounted reader leave, and the last one after it,
// while children of the reader that are just being started have copies of the
// reader's descriptor. The reader never holds the mutex lane, for which the
// last one would wait: what it does not let go of looks like somebody attached.
func TestUncountedForks(t *testing.T) {
	onTmpfs(t)
	reader := startStranger(t, forkerProgram)
	name := unique(t)
	for range rounds(1000) {
		seg, err := shm.Create(name, 100, shm.Perm(0o644))
		if err != nil {
			t.Fatal(err)
		}
		reader.attach("open %s readonly", name)
		reader.must("closed", "close")
		seg.Close()
		mustBeGone(t, name)
	}
}
