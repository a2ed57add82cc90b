package shm

import (
	"errors"
	"math/rand/v2"
	"time"

	"github.com/shmkit/shm/internal/object"
)

// patience bounds the sum of the pauses of one call that waits for other processes.
// A process holds the mutex for microseconds; one that holds it for longer has been
// stopped or is hostile.
var patience = 2 * time.Second // a variable for tests alone

// attempt is the state of one call that may have to wait, shared by all loops in
// which it waits.
type attempt struct {
	left   time.Duration // for further pauses
	reaped bool          // the call has removed stale blocks to make room
}

// awaitEnding reports whether the attempt may still wait for the system to release
// the locks of processes that have ended.
func (t *attempt) awaitEnding() bool { return t.left > patience/2 }

func newAttempt() *attempt { return &attempt{left: patience} }

// retry calls f until it returns nil or an error that is not transient, or the
// attempt has no patience left. It then returns the error that was marked transient.
//
// The pauses are added up, and each counts for at most a millisecond more than was
// asked for: while this process, its container or the machine is frozen, or too busy
// to run the process that holds the mutex, time passes in which nothing can change.
// The less patience is left, the shorter the pauses, so that a process that has
// waited for long precedes those that have just begun.
func (t *attempt) retry(f func() error) error {
	const first, most, steps = 20 * time.Microsecond, 10 * time.Millisecond, 200
	for pause := first; ; pause = min(2*pause, most, max(t.left/steps, first)) {
		err := f()
		if err == nil {
			return nil
		}
		var passing object.RetryError
		if !errors.As(err, &passing) {
			return err
		}
		if t.left <= 0 {
			return passing.Err
		}
		// Jitter: processes that begin to wait together do not retry together.
		start, jittered := time.Now(), pause/2+rand.N(pause)
		time.Sleep(jittered)
		t.left -= min(time.Since(start), jittered+time.Millisecond)
	}
}

// retry is attempt.retry for a call that waits in only one loop.
func retry(f func() error) error { return newAttempt().retry(f) }

// transient marks a condition that passes by itself. The caller closes the object
// and retries from the name.
func transient(err error) error { return object.RetryError{Err: err} }

func isTransient(err error) bool { return errors.As(err, new(object.RetryError)) }

// retryIfBusy marks ErrBusy, and no other error, as transient.
func retryIfBusy(err error) error {
	if errors.Is(err, ErrBusy) {
		return transient(err)
	}
	return err
}

// isTooLarge reports whether err is ErrNoSpace for a size that would not fit even if
// other processes released all their memory.
func isTooLarge(err error) bool { return errors.As(err, new(object.TooLargeError)) }
