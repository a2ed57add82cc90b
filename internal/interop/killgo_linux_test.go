//go:build amd64 || arm64

package interop_test

import (
	"errors"
	"io/fs"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/killpoints"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/internal/pytest"
)

// victim attaches and detaches, to be killed in between.
var victim = proctest.Register("victim", func(p *proctest.Parent) (err error) {
	runtime.LockOSThread()
	p.Say("%d", unix.Gettid())
	if _, err := p.Hear(); err != nil { // traced
		return err
	}
	open := func() (*shm.Segment, error) { return shm.Create(p.Args[1], 100) }
	if p.Args[0] == "open" {
		open = func() (*shm.Segment, error) { return shm.Open(p.Args[1]) }
	}
	killpoints.Begin()
	seg, err := open()
	if err == nil {
		err = seg.Close()
	}
	killpoints.End()
	if errors.Is(err, fs.ErrNotExist) { // it was a stale one
		err = nil
	}
	p.Say("%s", word("done", err))
	return nil
})

// killGo has a Go process do something to a block and be killed at a point of that,
// and reports whether it came so far.
func killGo(t *testing.T, verb, name string, point killpoints.Point) bool {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := proctest.Command(victim, verb, name)
	cmd.Env = append(cmd.Env, "GOGC=off", "GODEBUG=asyncpreemptoff=1") // for fewer calls of the runtime's
	v := agent{proctest.StartCommand(t, cmd), t}
	defer v.Kill()
	tracee, err := killpoints.Attach(number(v.Hear()))
	if err != nil {
		t.Skipf("ptrace: %v; allow it (capability SYS_PTRACE, seccomp, kernel.yama.ptrace_scope)", err)
	}
	v.Say("traced")
	reached, err := tracee.Run(point)
	if err == nil && reached {
		err = tracee.Kill(v.Process.Pid)
	}
	if err != nil {
		t.Fatal(err)
	}
	if !reached {
		v.Expect("done")
	}
	return reached
}

// TestGoKilledEverywhere is TestKilledEverywhere the other way round: a Go process is
// killed before and after every system call of attaching and detaching, beside a
// Python process that is attached, alone, and at a stale block, which a Python
// process then finds.
func TestGoKilledEverywhere(t *testing.T) {
	pytest.Ends(t, func(t *testing.T, py pytest.Interpreter) {
		python, finder := newPython(t, py), newPython(t, py)
		for _, c := range []struct {
			what, verb string
			check      func(name string, kill func())
		}{
			{"beside Python", "open", func(name string, kill func()) {
				python.must("done", "create %s 100", name)
				python.must("done", "write 0 kept")
				kill()
				python.must("kept", "read 0 4")
				python.must("true", "linked")
				python.must("1", "refs")
				finder.must("done", "open %s", name)
				finder.must(python.do("id"), "id")
				finder.must("2", "refs")
				finder.must("done", "close")
				python.must("done", "close")
			}},
			{"alone", "create", func(name string, kill func()) {
				kill()
				finder.must("notexist", "open %s", name)
			}},
			{"alone, replaced", "create", func(name string, kill func()) {
				kill()
				finder.must("done", "create %s 50", name)
				finder.must("1", "refs")
				finder.must("done", "close")
			}},
			{"at a stale block", "open", func(name string, kill func()) {
				python.must("done", "leavestale %s", name)
				kill()
				finder.must("notexist", "open %s", name)
			}},
			{"at a stale block", "create", func(name string, kill func()) {
				python.must("done", "leavestale %s", name)
				kill()
				finder.must("notexist", "open %s", name)
			}},
		} {
			// Where another program reaps the stale block first, there are fewer points.
			point := killpoints.Point(0)
			for survived := 0; survived < 3; {
				name, killed := unique(t), false
				c.check(name, func() { killed = killGo(t, c.verb, name, point) })
				mustExist(t, name, false)
				if killed {
					point++
				} else {
					survived++
				}
			}
			if point < 10 {
				t.Errorf("only %d points in %s", point, c.verb)
			}
			t.Logf("%s, %s, close: killed at each of %d points", c.what, c.verb, point)
		}
	})
}
