package interop_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"testing"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/pytest"
)

// leave ends an attachment, and reports whether the process does it in an
// orderly way, so that the name goes with the last one.
type leave struct {
	name    string
	orderly func(python bool) bool
	do      func(a agent)
}

var leaves = []leave{
	{"close", func(bool) bool { return true }, func(a agent) { a.must("done", "close") }},
	// Python detaches when the interpreter ends; Go has nothing that would.
	{"exit", func(python bool) bool { return python }, func(a agent) { a.Wait() }},
	{"kill", func(bool) bool { return false }, func(a agent) { a.Kill() }},
}

// TestLeaving has a Go process and a Python process leave a block in every order
// and in every way. Whoever stays has its bytes, and the block its name; when
// the last one has left there is no block.
func TestLeaving(t *testing.T) {
	pytest.Ends(t, func(t *testing.T, py pytest.Interpreter) {
		start := [2]func() agent{func() agent { return newGo(t) }, func() agent { return newPython(t, py) }}
		agents, finder := [2]agent{start[0](), start[1]()}, newPython(t, py)
		for run := range 2 * 2 * len(leaves) * len(leaves) {
			creator, first := run%2, run/2%2
			ways := [2]leave{leaves[run/4%len(leaves)], leaves[run/4/len(leaves)]}
			what := fmt.Sprintf("%d creates, %d leaves first by %s, the other by %s (1 is Python)",
				creator, first, ways[0].name, ways[1].name)
			name := unique(t)
			agents[creator].must("done", "create %s 100", name)
			agents[1-creator].must("done", "open %s", name)
			agents[first].must("done", "write 7 kept")

			ways[0].do(agents[first])
			last := agents[1-first]
			last.must("kept", "read 7 4")
			last.must("true", "linked")
			if peer, err := shm.Open(name); err != nil {
				t.Errorf("%s: Open while one is attached: %v", what, err)
			} else if peer.Close(); !exists(t, name) {
				t.Errorf("%s: the name went while one was attached", what)
			}

			ways[1].do(last)
			if ways[1].orderly(first == 0) {
				mustExist(t, name, false)
			}
			if run%3 == 0 { // either language finds it stale
				finder.must("notexist", "open %s", name)
			} else if _, err := shm.Open(name); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: Open when all have left: %v", what, err)
			}
			mustExist(t, name, false)
			if t.Failed() {
				return
			}
			for i, way := range ways {
				if who := (first + i) % 2; way.name != "close" {
					agents[who] = start[who]()
				}
			}
		}
	})
}

// TestKilledEverywhere kills a Python process before and after every call of the
// system, or of another function in C, that attaching and detaching consist of:
// beside a Go process that is attached, alone with a new block, and at a block
// that a killed process has left.
func TestKilledEverywhere(t *testing.T) {
	pytest.Ends(t, func(t *testing.T, py pytest.Interpreter) {
		python := newPython(t, py)
		for _, c := range []struct {
			what, verb string
			check      func(t testing.TB, python agent, kill func(name string))
			least      int // how many points there are at least
		}{
			{"beside Go", "open", besideGo, 100},
			{"alone", "create", alone, 100},
			// Where other programs reap all the time, these can be few.
			{"at a stale block", "open", atStale, 1},
			{"at a stale block", "create", atStale, 100},
		} {
			point, killed := 0, true
			for ; killed; point++ {
				// Another program, such as any test that creates its first block,
				// may have reaped what a killed one has left, and so made the way
				// to the end shorter. It hardly will three times.
				killed = false
				for try := 0; try < 3 && !killed; try++ {
					c.check(t, python, func(name string) {
						answer := python.do("killat %s %s %d", c.verb, name, point)
						if killed = answer == "killed"; !killed && answer != "done" {
							t.Errorf("the child %s", answer)
						}
					})
					if t.Failed() {
						t.Fatalf("%s, to be killed at point %d of %s", c.what, point, c.verb)
					}
				}
			}
			if point < c.least {
				t.Errorf("only %d points in %s", point, c.verb)
			}
			t.Logf("%s, %s, close: killed at each of %d points", c.what, c.verb, point-1)
		}
	})
}

// besideGo has somebody killed while this process is attached, which must not
// notice, be able to let others in, and end the block by leaving.
func besideGo(t testing.TB, _ agent, kill func(name string)) {
	name := unique(t)
	seg, err := shm.Create(name, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer seg.Close()
	seg.WriteString("kept")
	kill(name)
	b := make([]byte, 4)
	if _, err := seg.ReadAt(b, 0); err != nil || string(b) != "kept" {
		t.Errorf("read %q, %v", b, err)
	}
	if n := seg.Refs(); n != 1 {
		t.Errorf("%d attached, want this process alone: %s", n, holders(info(seg)))
	}
	peer, err := shm.Open(name)
	if err != nil {
		t.Errorf("Open: %v", err)
		return
	}
	if info(peer).ID != info(seg).ID {
		t.Error("another block has the name")
	}
	peer.Close()
	if !info(seg).Linked {
		t.Error("the name is gone")
	}
	seg.Close()
	if exists(t, name) {
		t.Error("the name is still there when all have left")
	}
}

// alone has somebody killed who is the only one attached, if at all.
func alone(t testing.TB, _ agent, kill func(name string)) {
	name := unique(t)
	kill(name)
	if _, err := shm.Open(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open: %v", err)
	}
	if exists(t, name) {
		t.Error("the name is still there after Open")
	}
	kill(name)
	seg, err := shm.Create(name, 50)
	if err != nil {
		t.Errorf("Create: %v", err)
		return
	}
	seg.Close()
}

// atStale has a process killed that finds a stale block, and then finds it itself.
func atStale(t testing.TB, python agent, kill func(name string)) {
	name := unique(t)
	python.must("done", "leavestale %s", name)
	kill(name)
	seg, created, err := shm.OpenOrCreate(name, 50)
	if err != nil || !created {
		t.Errorf("OpenOrCreate: created %v, %v", created, err)
		return
	}
	seg.Close()
	if exists(t, name) {
		t.Error("the name is still there")
	}
}

// TestKilledAtRandom kills processes of one language that attach and detach all
// the time, while one of the other is attached.
func TestKilledAtRandom(t *testing.T) {
	rounds := 20
	if testing.Short() {
		rounds = 5
	}
	pytest.Ends(t, func(t *testing.T, py pytest.Interpreter) {
		for round := range rounds {
			name := unique(t)
			stays, killed := newGo(t), newPython(t, py)
			if round%2 == 1 {
				stays, killed = newPython(t, py), newGo(t)
			}
			stays.must("done", "create %s 100", name)
			stays.must("done", "write 0 kept")
			killed.Say("cycle %s", name)
			for range 1 + rand.IntN(50) {
				killed.Expect("cycle")
			}
			killed.Kill()
			stays.must("kept", "read 0 4")
			stays.must("true", "linked")
			stays.must("1", "refs")
			peer := newGo(t)
			peer.must("done", "open %s", name)
			peer.must("done", "close")
			stays.must("done", "close")
			mustExist(t, name, false)
		}
	})
}

// TestChurn has processes of both languages create, attach to and leave one
// block as fast as they can, while others that do the same are killed.
func TestChurn(t *testing.T) {
	pytest.Ends(t, func(t *testing.T, py pytest.Interpreter) {
		name := unique(t)
		start := func(i int) agent {
			if i%2 == 0 {
				return newGo(t)
			}
			return newPython(t, py)
		}
		var lasting []agent
		for i := range 4 {
			a := start(i)
			a.must("churning", "churn %s %d", name, 500)
			lasting = append(lasting, a)
		}
		for i := range 6 {
			a := start(i)
			a.must("churning", "churn %s %d", name, 1_000_000)
			a.Kill()
		}
		for _, a := range lasting {
			a.Expect("done")
		}
		if _, err := shm.Open(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open when all have left: %v", err)
		}
		mustExist(t, name, false)
	})
}
