package shm

import (
	"errors"
	"math/rand/v2"
	"time"

	"github.com/shmkit/shm/internal/object"
)

// patience bounds the pauses of one call that waits for other processes. They
// hold the mutex for microseconds, so a process that keeps it for longer has been
// stopped, or is hostile.
var patience = 2 * time.Second // a variable for tests alone

// attempt is the state of one call that may have to wait, shared by all loops in
// which it does.
type attempt struct {
	left   time.Duration // what its pauses may still come to
	reaped bool          // it has looked for stale blocks to make room
}

func newAttempt() *attempt { return &attempt{left: patience} }

// retry calls f until it returns nil or an error that is not transient, or the
// attempt has no patience left. It then returns what the last error was for.
//
// The pauses are added up, and how much longer than intended they took counts for
// a millisecond at most: while this process, its container or the machine is
// frozen, or too busy to run the process that holds the mutex, time passes in
// which nothing could change. The less patience is left, the shorter the pauses,
// so that a process that has waited for long comes before those that begin to.
func (t *attempt) retry(f func() error) error {
	const first, most, steps = 20 * time.Microsecond, 10 * time.Millisecond, 200
	for pause := first; ; pause = min(2*pause, most, max(t.left/steps, first)) {
		err := f()
		var passing object.RetryError
		if !errors.As(err, &passing) {
			return err
		}
		if t.left <= 0 {
			return passing.Err
		}
		// Processes that begin to wait together do not go on together.
		start, jittered := time.Now(), pause/2+rand.N(pause)
		time.Sleep(jittered)
		t.left -= min(time.Since(start), jittered+time.Millisecond)
	}
}

// retry is attempt.retry for a call that waits in one loop only.
func retry(f func() error) error { return newAttempt().retry(f) }

// transient marks an error that passes by itself. The caller closes the object and
// starts again from the name.
func transient(err error) error { return object.RetryError{Err: err} }

func isTransient(err error) bool { return errors.As(err, new(object.RetryError)) }

// retryIfBusy marks ErrBusy, and no other error, as transient.
func retryIfBusy(err error) error {
	if errors.Is(err, ErrBusy) {
		return transient(err)
	}
	return err
}

// isTooLarge reports whether err is ErrNoSpace for a size that does not fit
// whatever memory other processes release.
func isTooLarge(err error) bool { return errors.As(err, new(object.TooLargeError)) }
