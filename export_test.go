package shm

import (
	"io"
	"testing"
	"time"
)

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

// SetPatience changes how long to wait for peers, for the time of the test.
func SetPatience(t testing.TB, d time.Duration) {
	old := patience
	patience = d
	t.Cleanup(func() { patience = old })
}
