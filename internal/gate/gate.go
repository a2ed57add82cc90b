// Package gate lets many short operations use a resource that one Close takes
// away: Close does not wait for them, and the last one out frees the resource.
package gate

import (
	"runtime"
	"sync/atomic"

	"github.com/shmkit/shm/internal/raw"
)

// A Gate is open until Close. Operations count themselves in and out on a single
// counter until two of them have met there: two cores then pass its cache line to
// and fro at every operation. From then on they use one of several counters, each
// on cache lines of its own and chosen by goroutine. Few gates ever come to that,
// and the counters are what takes memory.
//
// All methods are safe for concurrent use.
type Gate struct {
	state   atomic.Uint32 // open, closed, released, freed: only ever grows
	first   counter
	stripes atomic.Pointer[[]stripe] // nil until operations have met on first
	free    func()
}

const (
	open     = iota
	closed   // Enter fails; the closer is still using the resource
	released // nobody but operations that are already inside uses it
	freed    // free has been called
)

// counter has the number of operations between Enter and Leave.
type counter = atomic.Int32

type stripe struct {
	inside counter
	_      [124]byte // two cache lines: processors fetch them in pairs
}

// Init makes g ready; free is called exactly once, after Release and after the
// last operation has left, by whichever of them comes last.
func (g *Gate) Init(free func()) { g.free = free }

// spread makes the stripes. Two goroutines that meet on one slow each other
// down for as long as they live, so there are many more of them than goroutines
// that can run.
func (g *Gate) spread() {
	n := 32
	for n < 8*runtime.GOMAXPROCS(0) && n < 256 {
		n *= 2
	}
	stripes := make([]stripe, n)
	g.stripes.CompareAndSwap(nil, &stripes)
}

// Token is what Enter hands to Leave.
type Token = *counter

// Enter counts an operation in and reports whether the gate was open; if so
// the resource stays until Leave.
func (g *Gate) Enter() (Token, bool) {
	c := &g.first
	if p := g.stripes.Load(); p != nil {
		stripes := *p
		c = &stripes[raw.Spread()&uint32(len(stripes)-1)].inside
		c.Add(1)
	} else if n := c.Load(); !c.CompareAndSwap(n, n+1) {
		g.spread() // another operation came in between
		c.Add(1)
	}
	if g.state.Load() != open {
		g.Leave(c)
		return nil, false
	}
	return c, true
}

// Leave counts an operation out.
func (g *Gate) Leave(c Token) {
	if c.Add(-1) == 0 && g.state.Load() == released {
		g.tryFree()
	}
}

// Close closes the gate and reports whether it was open. From then on Enter
// fails. The caller may use the resource until it calls Release.
func (g *Gate) Close() bool {
	return g.state.CompareAndSwap(open, closed)
}

// Closed reports whether Close has been called.
func (g *Gate) Closed() bool { return g.state.Load() != open }

// Release ends the closer's own use. It must follow a Close that reported true.
func (g *Gate) Release() {
	g.state.Store(released)
	g.tryFree()
}

// tryFree frees the resource if nobody is inside. An operation counts in before
// it looks at state, so once the gate is closed a counter seen at zero is never
// entered successfully again: looking at one after the other is enough. That goes
// for stripes that are not there yet, too. Whoever empties the last counter comes
// by here and sees them all at zero.
func (g *Gate) tryFree() {
	if g.first.Load() != 0 {
		return
	}
	if p := g.stripes.Load(); p != nil {
		for i := range *p {
			if (*p)[i].inside.Load() != 0 {
				return
			}
		}
	}
	if g.state.CompareAndSwap(released, freed) {
		g.free()
	}
}
