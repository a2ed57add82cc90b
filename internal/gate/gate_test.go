package gate_test

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shmkit/shm/internal/gate"
)

// TestFree closes a gate while goroutines pass through it: what it keeps is
// freed once, and never while one of them is inside.
func TestFree(t *testing.T) {
	for range 50 {
		var g gate.Gate
		var freed atomic.Int32
		g.Init(func() { freed.Add(1) })
		started := make(chan bool, 4)
		var all sync.WaitGroup
		for range cap(started) {
			all.Go(func() {
				for i := 0; ; i++ {
					token, ok := g.Enter()
					if i == 0 {
						started <- true
					}
					if !ok {
						return
					}
					if freed.Load() != 0 {
						t.Error("freed while in use")
					}
					g.Leave(token)
				}
			})
		}
		for range cap(started) {
			<-started
		}
		if !g.Close() || g.Close() {
			t.Error("Close is not once")
		}
		if freed.Load() != 0 {
			t.Error("freed before Release")
		}
		g.Release()
		all.Wait()
		if n := freed.Load(); n != 1 {
			t.Fatalf("freed %d times", n)
		}
	}
}

// TestLastOut releases a gate that somebody is still inside of.
func TestLastOut(t *testing.T) {
	var g gate.Gate
	freed := false
	g.Init(func() { freed = true })
	token, ok := g.Enter()
	g.Close()
	g.Release()
	if !ok || freed {
		t.Error("freed while in use")
	}
	if _, ok := g.Enter(); ok {
		t.Error("entered a closed gate")
	}
	g.Leave(token)
	if !freed {
		t.Error("not freed by the last to leave")
	}
}

// TestUncontended passes through gates without another operation at the same
// time: that takes no memory, however many processors there are.
func TestUncontended(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(64))
	gates := make([]gate.Gate, 1000)
	next := 0
	pass := func() {
		g := &gates[next]
		next++
		for range 3 {
			token, ok := g.Enter()
			if !ok {
				t.Fatal("not open")
			}
			inner, _ := g.Enter() // as a method called in View
			g.Leave(inner)
			g.Leave(token)
		}
	}
	if n := testing.AllocsPerRun(len(gates)-1, pass); n != 0 {
		t.Errorf("%v allocations for each gate", n)
	}
}

// TestContended passes through one gate on two processors: the gate sees it and
// spreads the operations.
func TestContended(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(2, runtime.GOMAXPROCS(0))))
	var g gate.Gate
	freed := 0
	g.Init(func() { freed++ })
	deadline := time.Now().Add(time.Minute)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := 0; !g.Spread(); i++ {
				token, _ := g.Enter()
				g.Leave(token)
				if i%1000 == 0 && time.Now().After(deadline) {
					t.Error("contention is not seen")
					return
				}
			}
		})
	}
	all.Wait()
	// One that entered before is counted as one that entered after.
	early, _ := g.Enter()
	g.Close()
	g.Release()
	if freed != 0 {
		t.Error("freed while in use")
	}
	g.Leave(early)
	if freed != 1 {
		t.Errorf("freed %d times", freed)
	}
}

// TestSpreadMeanwhile spreads the operations of a gate while one of them is
// inside: it still keeps the resource.
func TestSpreadMeanwhile(t *testing.T) {
	for _, lateFirst := range []bool{false, true} {
		var g gate.Gate
		freed := 0
		g.Init(func() { freed++ })
		early, _ := g.Enter()
		g.MakeSpread()
		late, _ := g.Enter()
		g.Close()
		g.Release()
		tokens := []gate.Token{early, late}
		if lateFirst {
			tokens = []gate.Token{late, early}
		}
		for i, token := range tokens {
			if freed != 0 {
				t.Errorf("freed with %d operations inside", len(tokens)-i)
			}
			g.Leave(token)
		}
		if freed != 1 {
			t.Errorf("freed %d times", freed)
		}
	}
}
