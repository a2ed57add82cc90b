// Package gate guards a resource that many short operations use and one Close ends.
// Close does not wait for operations in progress; the last one frees the resource.
package gate

import (
	"runtime"
	"sync/atomic"

	"github.com/shmkit/shm/internal/raw"
)

// A Gate is open until Close. Operations are counted on a single counter until two
// of them change it at the same time: its cache line then moves between two cores at
// every operation. From then on each uses one of several counters, on cache lines of
// their own, chosen by goroutine. Few gates need these counters, which take memory.
//
// All methods are safe for concurrent use.
type Gate struct {
	state   atomic.Uint32 // open, closed, released, freed; never goes back
	first   counter
	stripes atomic.Pointer[[]stripe] // nil until two operations contend for first
	free    func()
}

const (
	open     = iota
	closed   // Enter fails; the caller of Close still uses the resource
	released // only operations that have entered use the resource
	freed    // free has been called
)

// counter is the number of operations between Enter and Leave.
type counter = atomic.Int32

type stripe struct {
	inside counter
	_      [124]byte // two cache lines: processors fetch them in pairs
}

// Init initializes g. free is called exactly once, by Release or by the Leave of the
// last operation, whichever comes last.
func (g *Gate) Init(free func()) { g.free = free }

// spread allocates the stripes. Two goroutines that share a stripe slow each other
// down as long as they live, so there are many more stripes than goroutines that can
// run.
func (g *Gate) spread() {
	n := 32
	for n < 8*runtime.GOMAXPROCS(0) && n < 256 {
		n *= 2
	}
	stripes := make([]stripe, n)
	g.stripes.CompareAndSwap(nil, &stripes)
}

// Token is what Enter returns for Leave.
type Token = *counter

// Enter begins an operation and reports whether the gate was open. If it was, the
// resource stays until Leave.
func (g *Gate) Enter() (Token, bool) {
	c := &g.first
	if p := g.stripes.Load(); p != nil {
		stripes := *p
		c = &stripes[raw.Spread()&uint32(len(stripes)-1)].inside
		c.Add(1)
	} else if n := c.Load(); !c.CompareAndSwap(n, n+1) {
		g.spread() // another operation has changed the counter
		c.Add(1)
	}
	if g.state.Load() != open {
		g.Leave(c)
		return nil, false
	}
	return c, true
}

// Leave ends an operation.
func (g *Gate) Leave(c Token) {
	if c.Add(-1) == 0 && g.state.Load() == released {
		g.tryFree()
	}
}

// Close closes the gate and reports whether it was open. Enter then fails. The caller
// may use the resource until it calls Release.
func (g *Gate) Close() bool {
	return g.state.CompareAndSwap(open, closed)
}

// Closed reports whether Close has been called.
func (g *Gate) Closed() bool { return g.state.Load() != open }

// Release ends the use of the resource by the caller of a Close that returned true.
func (g *Gate) Release() {
	g.state.Store(released)
	g.tryFree()
}

// tryFree frees the resource if all counters are zero. Enter raises a counter before
// it loads state, so once the gate is closed no operation enters successfully by a
// counter that was seen at zero: it is enough to read one counter after the other.
// That holds for stripes that are not allocated yet, too. The operation that takes the
// last counter to zero calls tryFree and sees all of them at zero.
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
