package shm

// Wait, Notify and OpenWait, and what they and Follower have in common.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"time"
)

// Wait waits until cond returns true, and then returns nil. It calls cond in the
// caller's goroutine: at once; after every change of Size, every Notify, Finish and
// Truncate of the block by any process; and now and then in between. So nothing is
// missed that happens before a Notify, and a call too many does no harm.
//
// cond may access the memory of the block as in [Segment.View]: if that is not there,
// the error is [ErrFault]. What other processes store there it must load by atomic
// operations. cond can end Wait by a variable that it sets.
//
// Otherwise Wait returns ctx.Err(), [fs.ErrClosed] as soon as the Segment is closed, or
// [errors.ErrUnsupported] for a Headerless block. Without permission to write to the
// block it looks every few milliseconds; so do all on a system that cannot wake processes.
func (s *Segment) Wait(ctx context.Context, cond func() bool) error {
	return s.use("wait", func(h *handle) error {
		return pathError("wait", h.name, h.wait(ctx, func(bool) (done bool, err error) {
			err = h.guard(func() error {
				done = cond()
				return nil
			})
			return done, err
		}, func() bool { return true }))
	})
}

// Notify makes all that wait on the block look again, in all processes. What changes
// Size does that by itself. Stores through Bytes or View, and writes that do not raise
// Size, do not.
//
// The error is [ErrReadOnly] if the process is not permitted to write to the block,
// [fs.ErrClosed], [ErrFault], or [errors.ErrUnsupported] for a Headerless block.
func (s *Segment) Notify() error {
	return s.use("notify", func(h *handle) error { return pathError("notify", h.name, h.notify()) })
}

func (a *attachment) notify() error {
	switch {
	case a.kind == rawBlock:
		return errNoWords
	case !a.obj.Writable():
		return ErrReadOnly
	}
	// Without a load first: the stores of the caller may be plain ones, which must be
	// seen before armed is looked at.
	return a.words(func(header) { a.wake() })
}

// Lock takes the block's lock, which one Segment at a time has, of all in all processes.
// It waits until the lock is free or ctx is done. The kernel gives the lock back if the
// process that has it ends. If recovered is true, the last holder has ended, or closed
// its Segment, without Unlock: what the lock protects may be half changed.
//
// The lock is not reentrant: a second Lock of the same Segment waits, as that of a
// [sync.Mutex]. Nothing is promised about the order in which waiters get it. The lock of
// a process that has ended is free within some hundredths of a second, but not before
// child processes that it was starting run programs of their own.
//
// A process that may write to the block can forge the lock: it protects from mistakes,
// not from attacks.
//
// The error is ctx.Err(), [ErrReadOnly], [fs.ErrClosed], [ErrFault], or
// [errors.ErrUnsupported] for a Headerless or [Anonymous] block.
func (s *Segment) Lock(ctx context.Context) (recovered bool, err error) {
	if taken, recovered := s.lockQuickly(); taken {
		return recovered, nil
	}
	err = s.use("lock", func(h *handle) (err error) {
		h.decideQuick()
		recovered, err = h.lockBlock(ctx)
		return pathError("lock", h.name, err)
	})
	return recovered, err
}

// TryLock is Lock that does not wait: if another Segment has the lock, or this one, the
// error is [ErrLocked].
func (s *Segment) TryLock() (recovered bool, err error) {
	if taken, recovered := s.lockQuickly(); taken {
		return recovered, nil
	}
	err = s.use("lock", func(h *handle) (err error) {
		recovered, err = h.tryLockBlock(false)
		return pathError("lock", h.name, err)
	})
	return recovered, err
}

// lockQuickly takes the lock if that is free, without passing the gate.
func (s *Segment) lockQuickly() (taken, recovered bool) {
	if s == nil || !s.h.quick() || !s.h.active.Load() || s.h.kind != named || s.h.readOnly {
		return false, false
	}
	taken, recovered = s.h.tryFree(s.h.obj.Tag(), s.h.obj.Gone)
	if taken && s.h.gate.Closed() { // Close may have looked before
		s.h.abandonLock()
		taken = false
	}
	runtime.KeepAlive(s.h)
	return taken, recovered
}

// Unlock gives the block's lock back. Any goroutine may call it. The error is
// [fs.ErrInvalid] if this Segment does not have the lock, [fs.ErrClosed] or [ErrFault].
func (s *Segment) Unlock() error {
	if s != nil && s.h.quick() {
		free := s.h.tryUnlock(s.h.obj.Tag())
		runtime.KeepAlive(s.h)
		if free {
			return nil
		}
	}
	return s.use("unlock", func(h *handle) error {
		unlocked := false
		err := h.words(func(w header) { unlocked = h.unlockWords(lockWords{w, offLock}, h.obj.Tag(), 0) })
		switch {
		case err != nil || unlocked:
		case h.gate.Closed(): // Close may have given the lock up
			err = fs.ErrClosed
		default:
			err = fmt.Errorf("%w: the Segment does not have the lock", fs.ErrInvalid)
		}
		return pathError("unlock", h.name, err)
	})
}

// lockBlock is Lock. Death makes no sound, so it asks again now and then whether the
// holder still exists.
func (a *attachment) lockBlock(ctx context.Context) (recovered bool, err error) {
	const again = 20 * time.Millisecond
	for mark := false; ; mark = true {
		var seen uint32
		if err := a.words(func(h header) { seen = lockWords{h, offLock}.wake().Load() }); err != nil {
			return false, err
		}
		recovered, err := a.tryLockBlock(mark)
		if !errors.Is(err, ErrLocked) {
			return recovered, err
		}
		if ctx.Err() != nil || a.gate.Closed() {
			// It may have been woken in place of another one.
			a.words(func(h header) { a.wakeLock(lockWords{h, offLock}, false) })
			if err := ctx.Err(); err != nil {
				return false, err
			}
			return false, fs.ErrClosed
		}
		if mark {
			a.obj.Sleep(a.mem, offLock+offWake, seen, again, nil)
		}
	}
}

// tryLockBlock takes the block's lock unless another one has it. With mark, the holder
// will wake those that sleep for it.
func (a *attachment) tryLockBlock(mark bool) (recovered bool, err error) {
	switch {
	case a.kind != named:
		return false, fmt.Errorf("%w: the block has no lock", errors.ErrUnsupported)
	case a.readOnly:
		return false, ErrReadOnly
	}
	if err := a.beWriter(); err != nil {
		return false, err
	}
	taken := false
	err = a.words(func(h header) {
		taken, recovered = a.tryWords(lockWords{h, offLock}, a.obj.Tag(), a.obj.Gone, mark)
	})
	switch {
	case taken && a.gate.Closed(): // Close may have looked before
		a.abandonLock()
		err = fs.ErrClosed
	case taken:
	case err == nil:
		err = ErrLocked
	}
	return recovered, err
}
