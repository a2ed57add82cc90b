package shm

import (
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/shmkit/shm/internal/object"
)

// What the System in use does; see [object.Limits].
func MaxName() int    { return object.Current.Limits().MaxName }
func NamesStay() bool { return object.Current.Limits().NamesStay }
func Files() bool     { return object.Current.Limits().Files } // blocks are files in /dev/shm
func BornNamed() bool { return !Files() }                      // an object has its name before Publish

// Straight reports whether bytes from or to v go straight to the mapping.
func Straight(v any) bool { return rawConn(v) != nil }

// Hash reports whether v reads the mapping itself.
func Hash(v io.Writer) bool { return isHash(v) }

// Kept returns how much address space is or will be kept from use after Close.
func Kept() int64 { return kept.Load() }

// Quick reports whether short copies of the Segment do without the gate.
func Quick(s *Segment) bool {
	s.Size() // decides it
	return s.h.quick()
}

// Header returns the beginning of the memory of the block that s is attached to,
// as far as it is in use.
func Header(s *Segment) []byte { return s.h.mem[:headerUsed] }

// SetPatience changes how long to wait for peers, for the time of the test.
func SetPatience(t testing.TB, d time.Duration) {
	old := patience
	patience = d
	t.Cleanup(func() { patience = old })
}

// NoTick makes calls that wait look only when they are woken, for the time of the test.
func NoTick(t testing.TB) {
	old := tick
	tick = time.Hour
	t.Cleanup(func() { tick = old })
}

// Patience is SetPatience for the rest of the process: that of a child.
func Patience(d time.Duration) { patience = d }

// WaitMutex takes the mutex through seg as HoldMutex does, and calls tried
// before each try.
func WaitMutex(seg *Segment, tried func()) error {
	return retry(func() error {
		tried()
		return retryIfBusy(seg.h.obj.TryLock())
	})
}

// HoldMutex takes the mutex through seg, as a call of it in progress would,
// until the function returned is called.
func HoldMutex(t testing.TB, seg *Segment) (release func()) {
	t.Helper()
	if err := seg.h.lock(); err != nil {
		t.Fatal(err)
	}
	return seg.h.unlock
}

// Revocable returns how much address space Close keeps from use for slices from
// Bytes, and as much again for short copies in progress.
func Revocable() int64 { return object.Current.Revocable() }

// HoldOffset calls f while the offset of seg is held, as by a Read in progress.
func HoldOffset(seg *Segment, f func()) {
	seg.h.mu.Lock()
	defer seg.h.mu.Unlock()
	f()
}

// Sleepers returns how many calls of the Segment sleep, or are about to.
func Sleepers(s *Segment) int { return int(s.h.sleepers.Load()) }

// ID returns the id of the block in hexadecimal.
func ID(s *Segment) (string, error) { return fmt.Sprintf("%x", s.h.layout.id), nil }
