package shm

import (
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync/atomic"

	"github.com/shmkit/shm/internal/leaks"
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
