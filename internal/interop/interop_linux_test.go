package interop_test

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/pytest"
)

// TestUnittest runs the tests of the Python module.
func TestUnittest(t *testing.T) {
	pytest.Each(t, func(t *testing.T, py pytest.Interpreter) {
		t.Parallel() // most of it is waiting
		cmd := py.Command("-X", "dev", "-m", "unittest", "discover", "-s", "tests")
		cmd.Dir = pytest.Dir()
		out, err := cmd.CombinedOutput()
		if err != nil || strings.Contains(string(out), "\nRan 0 tests") {
			t.Fatalf("%v\n%s", err, out)
		}
	})
}

// TestInterrupts has KeyboardInterrupt come at every line and at every
// instruction of what the Python module does.
func TestInterrupts(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes minutes: run without -short")
	}
	pytest.Newest(t, func(t *testing.T, py pytest.Interpreter) {
		t.Parallel()
		cmd := py.Command("-m", "unittest", "discover", "-s", "tests", "-p", "interrupts.py")
		cmd.Dir = pytest.Dir()
		out, err := cmd.CombinedOutput()
		if err != nil || strings.Contains(string(out), "\nRan 0 tests") {
			t.Fatalf("%v\n%s", err, out)
		}
	})
}

// A step is one thing that one of two actors does to a block.
type step struct {
	actor int // who does it
	verb  string
}

// orders returns every order in which the block is created by actor 0, attached
// to by actor 1, closed by both, and unlinked by actor unlinker, or by nobody
// if that is -1. The block is created first and what is closed is attached to.
func orders(unlinker int) (all [][]step) {
	own := [][]step{{{0, "close"}}, {{1, "open"}, {1, "close"}}}
	if unlinker >= 0 {
		own = append(own, []step{{unlinker, "unlink"}})
	}
	var merge func(done []step, left [][]step)
	merge = func(done []step, left [][]step) {
		ended := true
		for i, steps := range left {
			if len(steps) > 0 {
				ended = false
				rest := slices.Clone(left)
				rest[i] = steps[1:]
				merge(append(slices.Clone(done), steps[0]), rest)
			}
		}
		if ended {
			all = append(all, done)
		}
	}
	merge([]step{{0, "create"}}, own)
	return all
}

// TestEveryOrder has a Go process and a Python process create, attach to, close
// and unlink one block in every order there is, and looks after each step that
// the name is there when it should be and that each sees what the other wrote.
func TestEveryOrder(t *testing.T) {
	if n := len(orders(-1)) + len(orders(0)) + len(orders(1)); n != 3+12+12 {
		t.Fatalf("%d orders", n)
	}
	for _, kind := range []string{"raw", "managed"} {
		t.Run(kind, func(t *testing.T) {
			pytest.Each(t, func(t *testing.T, py pytest.Interpreter) {
				golang, python := newGo(t), newPython(t, py)
				for _, actors := range [][2]agent{{golang, python}, {python, golang}} {
					for unlinker := -1; unlinker < 2; unlinker++ {
						for _, order := range orders(unlinker) {
							inOrder(t, actors, order, kind == "raw")
							if t.Failed() {
								t.Fatalf("in the order %v, Python first: %v", order, actors[0] == python)
							}
						}
					}
				}
				python.Wait()
			})
		})
	}
}

func inOrder(t *testing.T, actors [2]agent, order []step, raw bool) {
	t.Helper()
	const size = 4097
	name, how := unique(t), ""
	if raw {
		how = "raw"
	}
	// What must hold: a name stays until it is taken away or, with a header,
	// until the last one leaves.
	var named, unlinked bool
	var attached [2]bool
	var written [2]string
	for i, s := range order {
		a := actors[s.actor]
		switch want := "done"; s.verb {
		case "create":
			a.must(want, "create %s %d %s", name, size, how)
			named, attached[s.actor] = true, true
		case "open":
			if !named {
				want = "notexist"
			}
			a.must(want, "open %s %s", name, how)
			attached[s.actor] = named
		case "close":
			if attached[s.actor] {
				a.must(want, "close")
				attached[s.actor] = false
				named = named && (raw || attached[0] || attached[1])
			}
		case "unlink":
			if !named {
				want = "notexist"
			}
			a.must(want, "unlink %s %s", name, how)
			named, unlinked = false, true
		}
		if attached[s.actor] {
			written[s.actor] = fmt.Sprintf("step-%d-by-%d", i, s.actor)
			a.must("done", "write %d %s", s.actor*(size-12), written[s.actor])
		}
		mustExist(t, name, named)
		for i, a := range actors {
			if attached[i] {
				a.must(fmt.Sprint(!unlinked), "linked")
				a.must(fmt.Sprint(size), "size")
				for by, text := range written {
					if text != "" {
						a.must(text, "read %d %d", by*(size-12), len(text))
					}
				}
			}
		}
	}
	if raw && !unlinked {
		actors[1].must("done", "unlink %s raw", name)
		mustExist(t, name, false)
	}
}

// TestNamesAndSizes passes blocks of many sizes and names to and fro.
func TestNamesAndSizes(t *testing.T) {
	pytest.Each(t, func(t *testing.T, py pytest.Interpreter) {
		agents := []agent{newGo(t), newPython(t, py)}
		for _, how := range []string{"raw", ""} {
			for i, size := range []int{1, 7, 4095, 4096, 4097, 65536, 1<<20 + 3} {
				name := unique(t)
				switch i {
				case 0:
					name += strings.Repeat("x", 255-len(name))
				case 1:
					name += "._-Z"
				}
				t.Cleanup(func() { shm.Unlink(name) })
				for creator := range 2 {
					a, b := agents[creator], agents[1-creator]
					a.must("done", "create %s %d %s", name, size, how)
					b.must("exist", "create %s %d %s", name, size, how)
					b.must("done", "open %s %s", name, how)
					b.must(fmt.Sprint(size), "size")
					a.must("done", "write %d z", size-1)
					b.must("z", "read %d 1", size-1)
					b.must("done", "write 0 A")
					a.must("A", "read 0 1")
					if how == "" {
						a.must(b.do("id"), "id")
						a.must("2", "refs")
						b.must("2", "refs")
					}
					b.must("done", "close")
					a.must("done", "close")
					mustExist(t, name, how == "raw")
					if how == "raw" {
						b.must("done", "unlink %s raw", name)
					}
				}
			}
		}
		agents[1].Wait()
	})
}

// TestTruncate has each language set the size that the other sees.
func TestTruncate(t *testing.T) {
	pytest.Each(t, func(t *testing.T, py pytest.Interpreter) {
		name := unique(t)
		agents := []agent{newGo(t), newPython(t, py)}
		agents[0].must("done", "create %s 100", name)
		agents[1].must("done", "open %s", name)
		for i, a := range agents {
			b := agents[1-i]
			a.must("done", "truncate 100")
			a.must("done", "write 0 0123456789")
			a.must("done", "truncate 4")
			b.must("4", "size")
			b.must("done", "truncate 10")
			a.must("10", "size")
			a.must("0123\x00\x00\x00\x00\x00\x00", "read 0 10")
		}
	})
}

// TestReadOnly has each language attach read-only to a block of the other's: it
// counts, reads, and cannot write.
func TestReadOnly(t *testing.T) {
	pytest.Each(t, func(t *testing.T, py pytest.Interpreter) {
		agents := []agent{newGo(t), newPython(t, py)}
		for i, owner := range agents {
			name, reader := unique(t), agents[1-i]
			owner.must("done", "create %s 100", name)
			owner.must("done", "write 0 kept")
			reader.must("done", "open %s readonly", name)
			owner.must("2", "refs")
			if got := reader.do("write 0 lost"); got == "done" {
				t.Error("a read-only attachment can write")
			}
			owner.must("done", "close")
			reader.must("kept", "read 0 4")
			mustExist(t, name, true)
			reader.must("done", "close")
			mustExist(t, name, false)
		}
	})
}

// TestKinds has each language come to the kind of block that it did not ask for.
func TestKinds(t *testing.T) {
	pytest.Each(t, func(t *testing.T, py pytest.Interpreter) {
		golang, python := newGo(t), newPython(t, py)
		raw, managed := unique(t), unique(t)
		python.must("done", "create %s 8192 raw", raw)
		if _, err := shm.Open(raw); !errors.Is(err, shm.ErrNotSegment) {
			t.Errorf("Open of a raw block: %v", err)
		}
		if got := python.do("open %s", raw); !strings.HasPrefix(got, "NotSegmentError") {
			t.Errorf("Segment.open of a raw block: %s", got)
		}
		golang.must("done", "create %s 8192", managed)
		// For SharedMemory a header is data: nothing tells it otherwise.
		python.must("done", "open %s raw", managed)
		python.must("shmkit", "read 0 6")
		if _, err := shm.Open(managed, shm.Headerless()); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Headerless Open of a block with a header: %v", err)
		}
	})
}

// TestTracker shows what CPython's resource tracker does to a block that a
// process merely attached to, with what Go reports of it, and that the recipe
// of docs/python.md prevents it: https://github.com/python/cpython/issues/82300.
func TestTracker(t *testing.T) {
	pytest.Each(t, func(t *testing.T, py pytest.Interpreter) {
		for _, c := range []struct {
			how    string
			killed bool
			linked bool
		}{
			{"plain", false, false},
			{"plain", true, false},
			{"raw", false, true},
			{"raw", true, true},
		} {
			name := unique(t)
			seg, err := shm.Create(name, 100, shm.Headerless())
			if err != nil {
				t.Fatal(err)
			}
			seg.WriteString("kept")
			python := newPython(t, py)
			python.must("done", "open %s %s", name, c.how)
			python.must("kept", "read 0 4")
			// Both wait until the tracker, which has the same standard error, has ended.
			if c.killed {
				python.Kill()
			} else {
				python.Wait()
			}
			if got := info(seg).Linked; got != c.linked {
				t.Errorf("attached to %s, killed: %v: Linked is %v, want %v", c.how, c.killed, got, c.linked)
			}
			b := make([]byte, 4)
			if _, err := seg.ReadAt(b, 0); err != nil || string(b) != "kept" {
				t.Errorf("read %q, %v", b, err)
			}
			if _, err := shm.Stat(name); errors.Is(err, fs.ErrNotExist) == c.linked {
				t.Errorf("Stat: %v", err)
			}
			if err := seg.Unlink(); errors.Is(err, fs.ErrNotExist) == c.linked {
				t.Errorf("Unlink: %v", err)
			}
			seg.Close()
		}
	})
}

// TestFailedAttach shows that a SharedMemory that cannot map a block unlinks it,
// and that a Segment of shmkit does not.
func TestFailedAttach(t *testing.T) {
	const program = `
import resource, sys
from multiprocessing.shared_memory import SharedMemory
from shmkit import Segment
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    Segment.open(sys.argv[1]) if sys.argv[2] == "managed" else SharedMemory(sys.argv[1])
except OSError as e:
    print(type(e).__name__, e.errno)
`
	pytest.Each(t, func(t *testing.T, py pytest.Interpreter) {
		for kind, opts := range map[string][]shm.Option{
			"raw":     {shm.Sparse(), shm.Headerless()},
			"managed": {shm.Sparse()},
		} {
			seg, err := shm.Create(unique(t), 1<<40, opts...)
			if err != nil {
				t.Fatal(err)
			}
			out, err := py.Command("-c", program, seg.Name(), kind).Output()
			if want := fmt.Sprintf("OSError %d\n", syscall.ENOMEM); err != nil || string(out) != want {
				t.Errorf("%s: %v, %s", kind, err, out)
			}
			if got := info(seg).Linked; got != (kind == "managed") {
				t.Errorf("%s: Linked is %v after a failed attach", kind, got)
			}
			seg.Close()
		}
	})
}

// TestTrackerSparesManaged ends Python processes that were attached through
// shmkit: no tracker takes the name away.
func TestTrackerSparesManaged(t *testing.T) {
	pytest.Each(t, func(t *testing.T, py pytest.Interpreter) {
		for _, killed := range []bool{false, true} {
			name := unique(t)
			seg, err := shm.Create(name, 100)
			if err != nil {
				t.Fatal(err)
			}
			python := newPython(t, py)
			python.must("done", "open %s", name)
			if killed {
				python.Kill()
			} else {
				python.Wait()
			}
			if !info(seg).Linked {
				t.Errorf("killed: %v: the name is gone", killed)
			}
			seg.Close()
			mustExist(t, name, false)
		}
	})
}
