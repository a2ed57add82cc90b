package gate_test

import (
	"sync"
	"sync/atomic"
	"testing"

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
