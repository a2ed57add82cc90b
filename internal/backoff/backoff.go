// Package backoff leaves out attempts that have been of no use lately.
package backoff

import "sync/atomic"

// A Backoff decides whether an attempt is worth it. After a failure it leaves out more
// attempts than after the one before, after a success half as many. It is a guess: calls
// at the same time may spoil it.
type Backoff struct {
	skip, next atomic.Int32
}

// Due reports whether to make the attempt, and counts one that is left out.
func (b *Backoff) Due() bool { return b.skip.Load() == 0 || b.skip.Add(-1) < 0 }

// Failed leaves out twice as many attempts as the last time, from first to most.
func (b *Backoff) Failed(first, most int32) {
	n := min(max(2*b.next.Load(), first), most)
	b.next.Store(n)
	b.skip.Store(n)
}

// Succeeded halves what the next failure leaves out.
func (b *Backoff) Succeeded() { b.next.Store(b.next.Load() / 2) }
