// Package leaks records the Segments that are open, those that were dropped without
// Close, and the raw blocks that this process has created and not unlinked. Package
// shm reports them, and package shmtest looks for them.
package leaks

import (
	"cmp"
	"maps"
	"runtime"
	"slices"
	"sync"
)

// Record says where a Segment came from.
type Record struct {
	ID    uint64 // in order of creation, from 1
	Name  string
	Cap   int64
	Stack []uintptr // program counters, as from runtime.Callers
}

// Frames returns the call stack that created the Segment.
func (r Record) Frames() []runtime.Frame {
	if len(r.Stack) == 0 {
		return nil
	}
	var list []runtime.Frame
	for frames := runtime.CallersFrames(r.Stack); ; {
		frame, more := frames.Next()
		list = append(list, frame)
		if !more {
			return list
		}
	}
}

// mostDropped and mostRaw bound the memory of a program that leaks all the time.
const mostDropped, mostRaw = 1000, 1000

// The registry holds no reference to a Segment, which would keep it reachable.
var registry = struct {
	sync.Mutex
	last    uint64
	open    map[uint64]Record
	dropped []Record
	raw     map[string]bool
}{open: make(map[uint64]Record), raw: make(map[string]bool)}

// Track records that a Segment is open and returns its id for Forget and Drop. skip is
// as for runtime.Callers, counted from the caller of Track.
func Track(name string, size int64, skip int) uint64 {
	var pcs [32]uintptr
	n := runtime.Callers(skip+2, pcs[:])
	stack := slices.Clone(pcs[:n])

	registry.Lock()
	defer registry.Unlock()
	registry.last++
	id := registry.last
	registry.open[id] = Record{ID: id, Name: name, Cap: size, Stack: stack}
	return id
}

// Last returns the id of the Segment that was created last, 0 if there is none.
func Last() uint64 {
	registry.Lock()
	defer registry.Unlock()
	return registry.last
}

// Forget records that a Segment was closed.
func Forget(id uint64) {
	registry.Lock()
	defer registry.Unlock()
	delete(registry.open, id)
}

// Drop records that a Segment became unreachable while open.
func Drop(id uint64) Record {
	registry.Lock()
	defer registry.Unlock()
	r := registry.open[id]
	delete(registry.open, id)
	if len(registry.dropped) < mostDropped {
		registry.dropped = append(registry.dropped, r)
	}
	return r
}

// Open returns the Segments that are open, oldest first.
func Open() []Record {
	registry.Lock()
	defer registry.Unlock()
	return slices.SortedFunc(maps.Values(registry.open), func(a, b Record) int { return cmp.Compare(a.ID, b.ID) })
}

// Dropped returns the Segments dropped so far, the first 1,000 of them.
func Dropped() []Record {
	registry.Lock()
	defer registry.Unlock()
	return slices.Clone(registry.dropped)
}

// CreatedRaw records that this process has created a raw block, which has no header
// to say so.
func CreatedRaw(name string) {
	registry.Lock()
	defer registry.Unlock()
	if len(registry.raw) < mostRaw {
		registry.raw[name] = true
	}
}

// Unlinked records that this process has unlinked a block.
func Unlinked(name string) {
	registry.Lock()
	defer registry.Unlock()
	delete(registry.raw, name)
}

// Raw returns the names of the raw blocks that this process has created and not
// unlinked, the first 1,000 of them. Other processes may have unlinked them.
func Raw() []string {
	registry.Lock()
	defer registry.Unlock()
	return slices.Sorted(maps.Keys(registry.raw))
}
