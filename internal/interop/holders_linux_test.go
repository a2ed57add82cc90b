package interop_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/internal/pytest"
)

// TestHolders has processes of both languages attach to a block, for writing and
// for reading only, and kills two of every three: those left are counted and named,
// by both languages, with an attachment and without.
func TestHolders(t *testing.T) {
	pytest.Each(t, func(t *testing.T, py pytest.Interpreter) {
		start := [2]func() agent{func() agent { return newGo(t) }, func() agent { return newPython(t, py) }}
		for survivor := range 3 {
			name := unique(t)
			var agents []agent
			for i := range 6 {
				a := start[i%2]()
				switch {
				case i == 0:
					a.must("done", "create %s 100", name)
				case i < 3:
					a.must("done", "open %s", name)
				default:
					a.must("done", "open %s readonly", name)
				}
				agents = append(agents, a)
			}
			named := func(indices ...int) string {
				var words []string
				for _, i := range indices {
					words = append(words, holder(agents[i].Process.Pid, i >= 3, true, false))
				}
				slices.Sort(words)
				return strings.Join(words, " ")
			}
			check := func(indices ...int) {
				t.Helper()
				want := named(indices...)
				for _, i := range indices {
					agents[i].must(want, "holders")
					agents[i].must(fmt.Sprint(len(indices)), "refs")
				}
				st, err := shm.Stat(name)
				if err != nil {
					t.Fatal(err)
				}
				if got := holders(st); got != want || st.Refs != len(indices) {
					t.Errorf("Stat: %d, %s; want %s", st.Refs, got, want)
				}
			}
			check(0, 1, 2, 3, 4, 5)
			for i, a := range agents {
				if i%3 != survivor {
					a.Kill()
				}
			}
			check(survivor, survivor+3)
			agents[survivor+3].Kill()
			check(survivor)
			agents[survivor].must("done", "close")
			mustExist(t, name, false)
		}
	})
}

// TestAllHoldersKilled kills all processes that are attached to a block, at once,
// and has a process of either language open it, create it anew, or attach to it if
// it is kept.
func TestAllHoldersKilled(t *testing.T) {
	pytest.Ends(t, func(t *testing.T, py pytest.Interpreter) {
		finders := []agent{newGo(t), newPython(t, py)}
		for i, finder := range finders {
			for _, verb := range []string{"open", "create"} {
				name := unique(t)
				var all []agent
				for j := range 4 {
					a := newGo(t)
					if j%2 == i {
						a = newPython(t, py)
					}
					if j == 0 {
						a.must("done", "create %s 100", name)
					} else {
						a.must("done", "open %s", name)
					}
					all = append(all, a)
				}
				for _, a := range all {
					a.Process.Signal(syscall.SIGKILL)
				}
				for _, a := range all {
					a.Kill() // waits
				}
				if verb == "open" {
					finder.must("notexist", "open %s", name)
				} else {
					finder.must("done", "create %s 50", name)
					finder.must("1", "refs")
					finder.must("done", "close")
				}
				mustExist(t, name, false)
			}
		}
	})
}

// TestKept has processes of both languages attach to a persistent block that only
// killed ones were attached to.
func TestKept(t *testing.T) {
	pytest.Ends(t, func(t *testing.T, py pytest.Interpreter) {
		name := unique(t)
		seg, err := shm.Create(name, 100, shm.Persistent())
		if err != nil {
			t.Fatal(err)
		}
		seg.WriteString("kept")
		seg.Close()
		for i := range 4 {
			a, b := newGo(t), newPython(t, py)
			if i%2 == 1 {
				a, b = b, a
			}
			a.must("done", "open %s", name)
			a.must("1", "refs")
			b.must("done", "open %s", name)
			b.must("2", "refs")
			b.must("kept", "read 0 4")
			a.Kill()
			b.must("1", "refs")
			if i < 2 {
				b.Kill()
			} else {
				b.must("done", "close")
			}
			mustExist(t, name, true)
		}
	})
}

// TestChildOfKilledHolder has a Python process fork and killed: its child has its
// attachment, alive. An Open in either language waits for the kernel to release the
// lock, then attaches, and names the process that is gone; once the child has ended
// too, the block is stale.
func TestChildOfKilledHolder(t *testing.T) {
	pytest.Ends(t, func(t *testing.T, py pytest.Interpreter) {
		for _, finder := range []agent{newGo(t), newPython(t, py)} {
			name := unique(t)
			parent := newPython(t, py)
			parent.must("done", "create %s 100", name)
			parent.must("done", "write 0 kept")
			child, err := strconv.Atoi(parent.do("fork"))
			if err != nil {
				t.Fatal(err)
			}
			ended := watch(t, child)
			parent.Kill()
			finder.must("done", "open %s", name)
			finder.must("kept", "read 0 4")
			both := []string{
				holder(parent.Process.Pid, false, true, true),
				holder(finder.Process.Pid, false, true, false),
			}
			slices.Sort(both)
			finder.must(strings.Join(both, " "), "holders")
			finder.must("done", "close")
			mustExist(t, name, true)
			ended()
			finder.must("notexist", "open %s", name)
			mustExist(t, name, false)
		}
	})
}

// watch returns a function that kills a process that is no child of this one and
// waits for its end.
func watch(t testing.TB, pid int) (end func()) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	process := os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() {
		unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		process.Close()
	})
	return func() {
		t.Helper()
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
			t.Fatal(err)
		}
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			switch n, err := unix.Poll(poll, 60_000); {
			case err == unix.EINTR:
			case n != 1:
				t.Fatalf("process %d does not end: %v", pid, err)
			default:
				return
			}
		}
	}
}

// TestReaderKeeps has another user's process, which may not write, attach last: it is
// counted and named by both languages, keeps the block, and leaves it stale.
func TestReaderKeeps(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can become another user: run as root")
	}
	pytest.Ends(t, func(t *testing.T, py pytest.Interpreter) {
		for i, owner := range []agent{newGo(t), newPython(t, py)} {
			name := unique(t)
			owner.must("done", "create %s 100", name)
			if err := os.Chmod("/dev/shm/"+name, 0o644); err != nil {
				t.Fatal(err)
			}
			reader := asStranger(t, py, i == 0)
			reader.must("permission", "open %s", name)
			reader.must("done", "open %s readonly", name)
			both := []string{
				holder(owner.Process.Pid, false, true, false),
				holder(reader.Process.Pid, true, true, false),
			}
			slices.Sort(both)
			owner.must(strings.Join(both, " "), "holders")
			reader.must(strings.Join(both, " "), "holders")
			owner.must("done", "close")
			mustExist(t, name, true)
			reader.must("1", "refs")
			reader.must("done", "close")
			if st, err := shm.Stat(name); err != nil || !st.Stale() {
				t.Errorf("Stat: %+v, %v; want a stale block", st, err)
			}
			reader.must("notexist", "open %s readonly", name)
			owner.must("notexist", "open %s", name)
			mustExist(t, name, false)
		}
	})
}

// asStranger starts an agent as another user.
func asStranger(t testing.TB, py pytest.Interpreter, python bool) agent {
	t.Helper()
	if python {
		a := newPython(t, py) // whose folder may be closed to other users
		a.must("done", "setuid 65534")
		return a
	}
	cmd := proctest.Command(goAgent)
	cmd.Path = "/proc/self/exe" // likewise
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	return agent{proctest.StartCommand(t, cmd), t}
}
