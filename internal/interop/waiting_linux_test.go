package interop_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/pytest"
)

// bothWays runs f with a Go process and a Python process, in both roles.
func bothWays(t *testing.T, py pytest.Interpreter, f func(t *testing.T, a, b func() agent)) {
	start := func(t *testing.T) (golang, python func() agent) {
		return func() agent { return newGo(t) }, func() agent { return newPython(t, py) }
	}
	t.Run("Go first", func(t *testing.T) {
		golang, python := start(t)
		f(t, golang, python)
	})
	t.Run("Python first", func(t *testing.T) {
		golang, python := start(t)
		f(t, python, golang)
	})
}

// asleep waits until the process sleeps on a word that processes share. The runtimes sleep
// on words of their own, for which the operation is not 0.
func asleep(t *testing.T, a agent) {
	t.Helper()
	sleeps := fmt.Sprintf("%d 0x", unix.SYS_FUTEX)
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		calls, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", a.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range calls {
			call, _ := os.ReadFile(name) // the thread may have ended
			if words := strings.Fields(string(call)); strings.HasPrefix(string(call), sleeps) && words[2] == "0x0" {
				return
			}
		}
	}
	t.Fatal("it does not sleep")
}

// TestFollow has a process of each language follow what one of the other writes,
// finishes and truncates.
func TestFollow(t *testing.T) {
	pytest.Ends(t, func(t *testing.T, py pytest.Interpreter) {
		bothWays(t, py, func(t *testing.T, newWriter, newReader func() agent) {
			writer, reader, name := newWriter(), newReader(), unique(t)
			writer.must("done", "create %s 10000", name)
			writer.must("done", "truncate 0")
			reader.must("done", "open %s", name)
			reader.must("done", "follow")
			for _, text := range []string{"one", "two", "three"} {
				reader.Say("next 100")
				asleep(t, reader)
				writer.must("done", "append %s", text)
				reader.Expect(text)
			}
			reader.Say("next 100")
			asleep(t, reader)
			writer.must("done", "finish")
			reader.Expect("eof")
			for _, a := range []agent{writer, reader} {
				a.must("finished", "append more")
			}
			reader.must("11", "size")
			writer.must("done", "truncate 3")
			reader.must("truncated", "next 100")
			reader.must("3", "size")

			writer.must("done", "truncate 0")
			reader.must("done", "follow")
			reader.Say("drain")
			writer.must("done", "stream 1000")
			writer.must("done", "finish")
			reader.Expect("1000")
		})
	})
}

// TestNotBegun has each language follow a new block of the other's, of which nothing
// is read before it is finished.
func TestNotBegun(t *testing.T) {
	pytest.Ends(t, func(t *testing.T, py pytest.Interpreter) {
		bothWays(t, py, func(t *testing.T, newWriter, newReader func() agent) {
			writer, reader, name := newWriter(), newReader(), unique(t)
			writer.must("done", "create %s 4", name)
			reader.must("done", "open %s", name)
			reader.must("done", "follow")
			reader.Say("next 100")
			asleep(t, reader)
			writer.must("done", "write 0 text")
			writer.must("done", "notify")
			writer.must("done", "finish")
			reader.Expect("text")
			reader.must("eof", "next 100")
		})
	})
}

// TestAbandoned kills a writer of each language while one of the other follows, reads on
// when there is a writer again, and learns of its Close.
func TestAbandoned(t *testing.T) {
	pytest.Ends(t, func(t *testing.T, py pytest.Interpreter) {
		bothWays(t, py, func(t *testing.T, newWriter, newReader func() agent) {
			writer, reader, name := newWriter(), newReader(), unique(t)
			writer.must("done", "create %s 100", name)
			writer.must("done", "truncate 0")
			writer.must("done", "append half")
			reader.must("done", "open %s", name)
			reader.must("done", "follow")
			reader.must("half", "next 100")
			// Another follower, of the writer's language, is no writer.
			other := newWriter()
			other.must("done", "open %s", name)
			other.must("done", "follow")
			other.must("half", "next 100")
			reader.Say("next 100")
			other.Say("next 100")
			asleep(t, reader)
			asleep(t, other)
			writer.Kill()
			reader.Expect("abandoned")
			other.Expect("abandoned")
			reader.must("abandoned", "next 100")
			writer = newWriter()
			writer.must("done", "open %s", name)
			writer.must("done", "append more")
			reader.must("more", "next 100")
			reader.Say("next 100")
			writer.must("done", "close")
			reader.Expect("abandoned")
			reader.must("done", "append own")
			other.must("moreown", "next 100")
			reader.must("own", "next 100")
			reader.must("2", "refs")
		})
	})
}

// TestNotify has a process of each language wait for what one of the other stores.
func TestNotify(t *testing.T) {
	pytest.Ends(t, func(t *testing.T, py pytest.Interpreter) {
		bothWays(t, py, func(t *testing.T, newA, newB func() agent) {
			a, b, name := newA(), newB(), unique(t)
			b.Say("openwait %s", name)
			a.must("done", "create %s 100", name)
			b.Expect("done")
			start := time.Now()
			const rounds = 50
			for i := range rounds {
				b.Say("wait %03d", i)
				asleep(t, b)
				a.must("done", "write 0 %03d", i)
				a.must("done", "notify")
				b.Expect("done")
			}
			// A tick for each would be 12 seconds.
			if d := time.Since(start); d > 6*time.Second {
				t.Errorf("%d notifications took %v", rounds, d)
			}
		})
	})
}

// TestKeep has a process of each language keep a block that those of the other leave, and
// find.
func TestKeep(t *testing.T) {
	pytest.Ends(t, func(t *testing.T, py pytest.Interpreter) {
		bothWays(t, py, func(t *testing.T, newA, newB func() agent) {
			for _, killed := range []bool{false, true} {
				a, b, name := newA(), newB(), unique(t)
				b.must("done", "create %s 100", name)
				a.must("done", "open %s", name)
				a.must("done", "keep")
				a.must("done", "close")
				if killed {
					b.Kill()
					b = newB()
				} else {
					b.must("done", "close")
				}
				mustExist(t, name, true)
				for _, x := range []agent{b, a} {
					x.must("exist", "create %s 100", name)
					x.must("done", "open %s", name)
					x.must("1", "refs")
					x.must("done", "close")
					mustExist(t, name, true)
				}
			}
		})
	})
}

// TestLock has each language wait for the lock that one of the other has, and releases,
// closes with, or is killed with.
func TestLock(t *testing.T) {
	pytest.Ends(t, func(t *testing.T, py pytest.Interpreter) {
		bothWays(t, py, func(t *testing.T, newHolder, newWaiter func() agent) {
			for end, want := range map[string]string{"unlock": "locked", "close": "recovered", "kill": "recovered"} {
				holder, waiter, name := newHolder(), newWaiter(), unique(t)
				holder.must("done", "create %s 100", name)
				waiter.must("done", "open %s", name)
				holder.must("locked", "lock")
				waiter.must("busy", "trylock")
				waiter.Say("lock")
				asleep(t, waiter)
				start := time.Now()
				if end == "kill" {
					holder.Kill()
				} else {
					holder.must("done", "%s", end)
				}
				waiter.Expect(want)
				if d := time.Since(start); d > 5*time.Second {
					t.Errorf("%s: free after %v", end, d)
				}
				if end == "unlock" {
					holder.must("busy", "trylock")
				}
				waiter.must("done", "unlock")
				third := newHolder()
				third.must("done", "open %s", name)
				third.must("locked", "trylock")
				third.must("done", "close")
				waiter.must("recovered", "trylock")
			}
		})
	})
}

// TestLockGivenUp kills a process that waits for the lock: the other language's holder,
// and those who come after it, notice nothing.
func TestLockGivenUp(t *testing.T) {
	pytest.Ends(t, func(t *testing.T, py pytest.Interpreter) {
		bothWays(t, py, func(t *testing.T, newHolder, newWaiter func() agent) {
			holder, waiter, name := newHolder(), newWaiter(), unique(t)
			holder.must("done", "create %s 100", name)
			holder.must("locked", "lock")
			waiter.must("done", "open %s", name)
			waiter.Say("lock")
			asleep(t, waiter)
			waiter.Kill()
			holder.must("done", "unlock")
			for _, a := range []agent{newWaiter(), holder, newHolder()} {
				if a != holder {
					a.must("done", "open %s", name)
				}
				a.must("locked", "lock")
				a.must("done", "unlock")
			}
		})
	})
}

// TestCounter has two processes of each language add to a sum with the lock, while others
// that do the same are killed: no addition is lost.
func TestCounter(t *testing.T) {
	kills := 30
	if testing.Short() {
		kills = 8
	}
	pytest.Ends(t, func(t *testing.T, py pytest.Interpreter) {
		const counts = 3 // the first word of them
		seg, err := shm.Create(unique(t), int64(8*(counts+4+kills)))
		if err != nil {
			t.Fatal(err)
		}
		defer seg.Close()
		start := func(i int) agent {
			a := newGo(t)
			if i%2 == 1 {
				a = newPython(t, py)
			}
			a.must("done", "open %s", seg.Name())
			a.must("counting", "count %d", counts+i)
			return a
		}
		var lasting []agent
		for i := range 4 {
			lasting = append(lasting, start(i))
		}
		for i := range kills {
			a := start(4 + i)
			time.Sleep(time.Duration(i%10) * time.Millisecond) // be killed anywhere
			a.Kill()
		}
		ne, b := binary.NativeEndian, seg.Bytes()
		ne.PutUint64(b[8*2:], 1)
		for i, a := range lasting {
			if got, want := a.Hear(), fmt.Sprint(ne.Uint64(b[8*(counts+i):])); got != want {
				t.Errorf("process %d has added %s times, counted %s", i, got, want)
			}
		}
		recovered, err := seg.Lock(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		sum, all := uint64(0), make([]uint64, 4+kills)
		for i := range all {
			all[i] = ne.Uint64(b[8*(counts+i):])
			sum += all[i]
		}
		if total := ne.Uint64(b); total != sum && !(recovered && total+1 == sum) || ne.Uint64(b[8:]) != 0 {
			t.Errorf("the sum is %d, of %d additions; two at once: %v", total, sum, ne.Uint64(b[8:]) != 0)
		}
		t.Logf("%d additions: %v", sum, all)
	})
}

// TestKilledWhileWriting kills a Python process before and after every call that changing
// Size and locking consist of: this process finds that it has happened or not, that all
// beyond Size is zero but for what was copied by an append, and no lock.
func TestKilledWhileWriting(t *testing.T) {
	pytest.Ends(t, func(t *testing.T, py pytest.Interpreter) {
		python := newPython(t, py)
		for verb, after := range map[string]string{
			"append": "0123456789abc", "truncate": "01234", "finish": "0123456789", "lock": "0123456789", "follow": "0123456789",
		} {
			point, killed := 0, true
			for ; killed; point++ {
				seg, err := shm.Create(unique(t), 5000)
				if err != nil {
					t.Fatal(err)
				}
				const before = "0123456789"
				seg.Truncate(0)
				seg.WriteString(before)
				answer := python.do("killat %s %s %d", verb, seg.Name(), point)
				if killed = answer == "killed"; !killed && answer != "done" {
					t.Errorf("the child %s", answer)
				}
				content := text(seg)
				if content != before && content != after || !killed && content != after {
					t.Errorf("it contains %q", content)
				}
				_, err = seg.WriteAt([]byte("z"), seg.Size())
				switch {
				case err == nil:
					content += "z"
				case verb != "finish":
					t.Errorf("append: %v", err)
				}
				if got := text(seg); got != content {
					t.Errorf("it contains %q, want %q", got, content)
				}
				seg.Truncate(seg.Cap())
				if rest := strings.Trim(text(seg)[len(content):], "\x00"); rest != "" && verb != "append" {
					t.Errorf("beyond Size there was %q", rest)
				}
				seg.Truncate(0)
				seg.Truncate(seg.Cap())
				if rest := strings.Trim(text(seg), "\x00"); rest != "" {
					t.Errorf("after Truncate there is %q", rest)
				}
				recovered, err := seg.TryLock()
				if err != nil || recovered && (verb != "lock" || !killed) {
					t.Errorf("TryLock: recovered %v, %v", recovered, err)
				}
				if n := seg.Refs(); n != 1 {
					t.Errorf("%d attached", n)
				}
				seg.Close()
				if t.Failed() {
					t.Fatalf("%s, killed at point %d", verb, point)
				}
			}
			if point < 20 {
				t.Errorf("only %d points in %s", point, verb)
			}
		}
	})
}

func text(seg *shm.Segment) string {
	b := make([]byte, seg.Size())
	if _, err := seg.ReadAt(b, 0); err != nil {
		return fmt.Sprint(err)
	}
	return string(b)
}
