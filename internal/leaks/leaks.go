// Package leaks remembers which Segments are open, which have been dropped without
// Close, and which raw blocks this process has created and not unlinked, for
// package shm to report and for package shmtest to find.
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

// mostDropped and mostRaw bound what a program that leaks all day makes us
// remember.
const mostDropped, mostRaw = 1000, 1000

// The registry holds no reference to a Segment, which would keep it reachable
// and so never let it be seen as dropped.
var registry = struct {
	sync.Mutex
	last    uint64
	open    map[uint64]Record
	dropped []Record
	raw     map[string]bool
}{open: make(map[uint64]Record), raw: make(map[string]bool)}

// Track notes that a Segment is open and returns the id to Forget or Drop it by.
// skip is as for runtime.Callers, counted from the caller of Track.
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

// Forget notes that a Segment was closed.
func Forget(id uint64) {
	registry.Lock()
	defer registry.Unlock()
	delete(registry.open, id)
}

// Drop notes that a Segment became unreachable while open.
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

// CreatedRaw notes that this process has created a raw block, which does not say
// so itself.
func CreatedRaw(name string) {
	registry.Lock()
	defer registry.Unlock()
	if len(registry.raw) < mostRaw {
		registry.raw[name] = true
	}
}

// Unlinked notes that this process has unlinked a block.
func Unlinked(name string) {
	registry.Lock()
	defer registry.Unlock()
	delete(registry.raw, name)
}

// Raw returns the names of the raw blocks that this process has created and not
// unlinked, the first 1,000 of them. Other processes can have unlinked them.
func Raw() []string {
	registry.Lock()
	defer registry.Unlock()
	return slices.Sorted(maps.Keys(registry.raw))
}
