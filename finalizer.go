package shm

import (
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/shmkit/shm/internal/leaks"
	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/raw"
)

// A Leak is a Segment that is open, or that was dropped without Close.
type Leak struct {
	Name   string          // of the block
	Cap    int64           // of the block, in bytes
	Frames []runtime.Frame // the calls that created the Segment, innermost first
}

func newLeak(r leaks.Record) Leak {
	return Leak{Name: r.Name, Cap: r.Cap, Frames: r.Frames()}
}

// Stack returns the calls that created the Segment as a panic would print them.
func (l Leak) Stack() string {
	var b strings.Builder
	for _, f := range l.Frames {
		fmt.Fprintf(&b, "%s\n\t%s:%d\n", f.Function, f.File, f.Line)
	}
	return b.String()
}

// Leaks returns the Segments that this process has open now, oldest first, each
// with the calls that created it. Package shmtest makes a test of it.
func Leaks() []Leak {
	var list []Leak
	for _, r := range leaks.Open() {
		list = append(list, newLeak(r))
	}
	return list
}

var leakHandler atomic.Pointer[func(Leak)]

// OnLeak makes f the function that is called for every Segment that the garbage
// collector finds dropped without Close; nil restores the default, which logs
// one warning by [slog.Default]. It returns the function it replaces, nil for
// the default. Each call of f has a goroutine of its own, so several can run at
// once. When, or whether at all, the collector finds a Segment is not promised.
func OnLeak(f func(Leak)) (previous func(Leak)) {
	var next *func(Leak)
	if f != nil {
		next = &f
	}
	if old := leakHandler.Swap(next); old != nil {
		return *old
	}
	return nil
}

func warnOfLeak(l Leak) {
	slog.Warn("shm: Segment dropped without Close", "name", l.Name, "cap", l.Cap, "created", l.Stack())
}

// watch makes a handle for the attachment that reports and ends it should the
// program lose the handle. The cleanup belongs to the inner handle and not to
// the exported Segment, so that a copy of a Segment keeps it attached as well.
//
// skip counts the functions between watch and the program, for the stack.
func watch(a *attachment, skip int) *handle {
	h := &handle{attachment: a, id: leaks.Track(a.name, int64(len(a.data)), skip+1)}
	runtime.AddCleanup(h, drop, dropped{a, h.id})
	return h
}

// kept is how much address space is or will be kept until drop.
var kept atomic.Int64

// keeps is how much of it a mapping counts for. There is a limit to the number
// of mappings as well (vm.max_map_count, 65,530), so a small one counts for more
// than it is.
func keeps(mem []byte) int64 { return max(int64(len(mem)), 8<<20) }

// decideQuick has short copies from now on do without the gate, unless the
// addresses that are kept could come to too much until the collector runs, or
// reading takes the descriptor, which Close gives back.
func (a *attachment) decideQuick() {
	if a.pass.Load() != passUndecided {
		return
	}
	pass, n := uint32(passQuick), keeps(a.mem)
	if kept.Add(n) > object.Current.Revocable() || raw.Race || a.hollow() {
		pass = passGate
	}
	if !a.pass.CompareAndSwap(passUndecided, pass) || pass == passGate {
		kept.Add(-n)
	}
}

// retired has the mappings of closed Segments whose Bytes had been called, oldest
// first. No call uses them, but the program may have a slice left, of which the
// collector knows nothing. Were the addresses free, the next mapping of the size
// would get them, and a store to the slice would change another block.
var retired struct {
	sync.Mutex
	mem  [][]byte
	size int64
}

// retire gives back the memory of a mapping and keeps its addresses, until so
// many have been retired after it that they come to more than revocable.
func retire(mem []byte) {
	limit := object.Current.Revocable()
	if keeps(mem) > limit {
		object.Current.Unmap(mem)
		return
	}
	object.Current.Revoke(mem) // or else the memory stays as long as the addresses
	retired.Lock()
	defer retired.Unlock()
	retired.mem = append(retired.mem, mem)
	retired.size += keeps(mem)
	for retired.size > limit {
		oldest := retired.mem[0]
		retired.mem = retired.mem[1:]
		retired.size -= keeps(oldest)
		object.Current.Unmap(oldest)
	}
}

type dropped struct {
	*attachment
	id uint64
}

// drop runs when a handle has become unreachable: nobody is using it, and
// nobody is left to close it if that has not been done. Other cleanups of the
// program wait until it returns, so what can take long has its own goroutine.
func drop(d dropped) {
	if d.gate.Closed() {
		d.release()
		return
	}
	go d.end(leaks.Drop(d.id))
}

// end closes and reports a Segment that was dropped without Close.
func (d dropped) end(r leaks.Record) {
	// A slice from Bytes may still be in use; it is no reference to the handle.
	// The attachment then lasts as long as the process.
	if !d.lent.Load() {
		d.close()
		d.release()
	}
	leak := newLeak(r)
	if f := leakHandler.Load(); f != nil {
		(*f)(leak)
	} else {
		warnOfLeak(leak)
	}
}

// release ends the keeping of addresses for quick calls: there can be none.
func (a *attachment) release() {
	if !a.kept {
		return
	}
	if a.lent.Load() {
		retire(a.mem)
	} else {
		object.Current.Unmap(a.mem)
	}
	kept.Add(-keeps(a.mem))
}
