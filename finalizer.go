package shm

import (
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync/atomic"

	"github.com/shmkit/shm/internal/leaks"
)

// An Origin says which block a Segment is attached to and which calls created it.
type Origin struct {
	Name   string          // of the block
	Cap    int64           // of the block, in bytes
	Frames []runtime.Frame // the calls that created the Segment, innermost first
}

func newOrigin(r leaks.Record) Origin {
	return Origin{Name: r.Name, Cap: r.Cap, Frames: r.Frames()}
}

// Stack returns the calls that created the Segment, formatted as in a panic.
func (o Origin) Stack() string {
	var b strings.Builder
	for _, f := range o.Frames {
		fmt.Fprintf(&b, "%s\n\t%s:%d\n", f.Function, f.File, f.Line)
	}
	return b.String()
}

// OpenSegments returns the origins of the Segments that this process has open,
// oldest first. Package shmtest turns it into a test.
func OpenSegments() []Origin {
	var list []Origin
	for _, r := range leaks.Open() {
		list = append(list, newOrigin(r))
	}
	return list
}

var leakHandler atomic.Pointer[func(Origin)]

// OnLeak sets the function that is called for each Segment that was dropped
// without Close and found by the garbage collector, and returns the previous one.
// The default, for which nil stands in both directions, logs a warning by
// [slog.Default]. Each call of f runs in a goroutine of its own; several can run
// at once. OnLeak does not promise when a dropped Segment is found, or that it is.
func OnLeak(f func(Origin)) (previous func(Origin)) {
	var next *func(Origin)
	if f != nil {
		next = &f
	}
	if old := leakHandler.Swap(next); old != nil {
		return *old
	}
	return nil
}

func warnOfLeak(o Origin) {
	slog.Warn("shm: Segment dropped without Close", "name", o.Name, "cap", o.Cap, "created", o.Stack())
}

// newSegment returns the Segment of a, or the error. Its cleanup closes and reports
// it if the program drops it: that of the handle and not of the exported Segment, so
// that a copy of a Segment keeps the attachment as well. The caller is the function
// that the program calls, which the stack of creation leaves out.
func newSegment(a *attachment, err error) (*Segment, error) {
	if err != nil {
		return nil, err
	}
	h := &handle{attachment: a, id: leaks.Track(a.name, int64(len(a.data)), 2)}
	runtime.AddCleanup(h, drop, dropped{a, h.id})
	return &Segment{h}, nil
}

type dropped struct {
	*attachment
	id uint64
}

// drop is the cleanup of a handle: no call uses the attachment, and none can
// close it any more. The program's other cleanups wait until drop returns, so
// what can take long runs in a goroutine.
func drop(d dropped) {
	if d.gate.Closed() {
		d.release()
		return
	}
	go d.end(leaks.Drop(d.id))
}

// end closes and reports a Segment that was dropped without Close.
func (d dropped) end(r leaks.Record) {
	// A slice from Bytes may still be in use, and the collector does not see it as
	// a reference to the handle. The attachment then lasts as long as the process.
	if !d.lent.Load() {
		d.close()
		d.release()
	}
	o := newOrigin(r)
	if f := leakHandler.Load(); f != nil {
		(*f)(o)
	} else {
		warnOfLeak(o)
	}
}
