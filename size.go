package shm

// How Size changes: appending, finishing and truncating.

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
)

// changeable returns the error for an attachment that cannot change Size, and makes
// any other one a writer.
func (a *attachment) changeable() error {
	switch {
	case a.readOnly:
		return ErrReadOnly
	case a.kind == rawBlock:
		return fmt.Errorf("%w: the size of a Headerless block is fixed", errors.ErrUnsupported)
	}
	return a.beWriter()
}

func (a *attachment) truncate(n int64) error {
	if n < 0 || n > int64(len(a.data)) {
		return fmt.Errorf("%w: size %d: must be 0 to %d", fs.ErrInvalid, n, len(a.data))
	}
	if err := a.changeable(); err != nil {
		return err
	}
	return a.lockSize(func() { a.setLength(uint64(n)) })
}

func (a *attachment) finish() error {
	if err := a.changeable(); err != nil {
		return err
	}
	for {
		var old sizeWord
		done := false
		err := a.words(func(h header) {
			old = h.loadSize()
			done = old.has(finished)
			if !done && !old.has(cut) {
				if done = h.swapSize(old, old|finished); done {
					a.changed()
				}
			}
		})
		if err == nil && old.has(cut) && !old.has(finished) {
			err = a.clearCut()
		}
		if done || err != nil {
			return err
		}
	}
}

// setLength lowers or raises size. The caller has the lock of Truncate.
//
// All bytes beyond size are zero, but while it is cut: then the next one that wants to
// raise size clears them first. Size is lowered before they are cleared, so that a
// Truncate has happened or not, also if it is killed.
func (a *attachment) setLength(n uint64) {
	h := a.head
	for {
		old := h.loadSize()
		switch {
		case n >= old.length() && old.has(cut):
			a.clearTail()
			continue
		case n == old.length() && !old.has(finished):
			return
		case n > old.length() && !old.has(finished):
			if h.swapSize(old, newSizeWord(n, old.low(), begun)) {
				a.changed()
				return
			}
			continue
		}
		if !old.has(cut) {
			h.dirty().Store(old.length())
		}
		// Generation changes before size gets its low bits: a follower compares both.
		generation := h.generation().Load()
		if generation&lowMask == old.low() {
			generation++
			h.generation().Store(generation)
		}
		next := newSizeWord(n, generation, old&cut)
		if n < old.length() {
			next |= cut
		}
		if h.swapSize(old, next) {
			a.changed()
			if next.has(cut) {
				a.clearTail()
			}
			return
		}
	}
}

// clearTail clears what a Truncate has cut off. The caller has the lock of Truncate, so
// that no other one changes a size that is cut.
func (a *attachment) clearTail() {
	h := a.head
	size, capacity := h.loadSize(), uint64(len(a.data))
	a.clear(size.length(), min(h.dirty().Load(), capacity), min(h.written().Load(), capacity))
	h.swapSize(size, size&^cut)
}

// clear makes data[from:to] zero; bytes from written on are zero already. The pages
// of a sparse block are released, including those that have memory only because
// they were read.
func (a *attachment) clear(from, to, written uint64) {
	if from >= to {
		return
	}
	if a.hollow && a.file.Punch(a.start+int64(from), int64(to-from)) == nil {
		return
	}
	if to = min(to, written); from < to {
		clear(a.data[from:to])
	}
}

// clearCut finishes a Truncate that was stopped or killed while size was cut, or waits
// for it.
func (a *attachment) clearCut() error {
	return a.lockSize(func() {
		if a.head.loadSize().has(cut) {
			a.clearTail()
		}
	})
}

// lockSize calls f, which may access the mapping, with the lock of Truncate.
func (a *attachment) lockSize(f func()) error {
	t := newAttempt()
	return t.retry(func() error {
		// Close waits for it, and gives the lock up: what f does must not go on then.
		a.sizing.Lock()
		defer a.sizing.Unlock()
		if a.gate.Closed() {
			return fs.ErrClosed
		}
		return a.guard(func() error {
			l, tag, gone := lockWords{a.head, offSizeLock}, a.obj.Tag(), a.obj.Gone
			if a.kind == nameless {
				// Nobody can say whether the holder still exists: it loses patience.
				tag, gone = a.tag, func(tag uint64) bool { return tag != a.tag && t.left <= 0 }
			}
			if taken, _ := a.tryWords(l, tag, gone, false); !taken {
				return transient(ErrBusy)
			}
			defer a.unlockWords(l, tag, 0)
			f()
			return nil
		})
	})
}

func (a *attachment) append(p []byte) (off int64, err error) {
	if err := a.changeable(); err != nil {
		return 0, err
	}
	lockErr := a.lockSize(func() { off, err = a.appendLocked(p) })
	return off, cmp.Or(lockErr, err)
}

// appendLocked is append for a caller that has the lock of Truncate.
func (a *attachment) appendLocked(p []byte) (off int64, err error) {
	h := a.head
	if h.loadSize().has(cut) {
		a.clearTail()
	}
	size := h.loadSize()
	start := min(size.length(), uint64(len(a.data)))
	end := start + uint64(len(p))
	switch {
	case end > uint64(len(a.data)):
		return 0, ErrFull
	case size.has(finished):
		return 0, ErrFinished
	}
	raise(h.written(), end)
	copy(a.data[start:], p)
	switch err := a.raise(size, end); err {
	case nil:
		return int64(start), nil
	case ErrFinished: // Finish does not take the lock
		return 0, err
	default: // Truncate does, so it is a program that does not keep to the protocol
		return 0, ErrBusy
	}
}

// errMoved is returned by publish if a Truncate may have cleared what was written.
var errMoved = errors.New("shm: truncated meanwhile")

// errCut is returned for a write that would raise size while it is cut.
var errCut = errors.New("shm: size is cut")

// raisable returns the error for raising size from old to end.
func (w sizeWord) raisable(end uint64) error {
	switch {
	case end <= w.length():
		return nil
	case w.has(finished):
		return ErrFinished
	case w.has(cut):
		return errCut
	}
	return nil
}

// finalSize returns the Size of a finished block, 0 if it is lost.
func (a *attachment) finalSize() int64 {
	size, _ := a.size()
	return size
}

// raise raises size to end, after the bytes up to there have been written, which began
// when it was old. The caller is under guard.
func (a *attachment) raise(old sizeWord, end uint64) error {
	for {
		now := a.head.loadSize()
		if now.low() != old.low() {
			return errMoved
		}
		if end <= now.length() {
			return nil
		}
		if err := now.raisable(end); err != nil {
			return err
		}
		if a.head.swapSize(now, newSizeWord(end, now.low(), begun)) {
			a.changed()
			return nil
		}
	}
}

// begin returns size before bytes up to end are written, which may raise it. It waits
// for a Truncate that has bytes to clear.
func (a *attachment) begin(end int64) (old sizeWord, err error) {
	for {
		guardErr := a.guard(func() error {
			old = a.head.loadSize()
			err = old.raisable(uint64(end))
			return nil
		})
		if guardErr != nil {
			return old, guardErr
		}
		if err != errCut {
			return old, err
		}
		if err := a.clearCut(); err != nil {
			return old, err
		}
	}
}

// publish is raise for a caller that is not under guard.
func (a *attachment) publish(old sizeWord, end int64) (err error) {
	guardErr := a.guard(func() error {
		err = a.raise(old, uint64(end))
		return nil
	})
	if guardErr != nil {
		return guardErr
	}
	return err
}
