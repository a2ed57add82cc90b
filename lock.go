package shm

import (
	"runtime/debug"
	"sync/atomic"

	"github.com/shmkit/shm/internal/raw"
)

// lockWords are the words of a lock in the header, at off:
//
//	 0  8  held: twice the tag of the attachment that has the lock, 0 if it is free;
//	       plus 1 if another one may be asleep
//	 8  8  guest: twice the tag of an attachment that cannot compare and swap and wants
//	       or has the lock, 0 if there is none; plus 1 if it has
//	16  4  wake: changes when sleepers are woken
//
// Whether a tag stands for anybody is for the system to say, so a lock whose holder has
// ended is free. A guest (Python) is alone among its like by a lock of the system. It
// stores guest, and then waits until held is 0 or a tag of nobody. An attachment that
// has swapped its tag into held gives way to a guest that it finds then: one of the two
// sees the other.
type lockWords struct {
	header
	off int
}

const (
	offHeld  = 0
	offGuest = 8
	offWake  = 16

	contended = 1
	nobody    = 1<<60 - 1 // the tag of an attachment that was closed with the lock
)

func (l lockWords) held() *atomic.Uint64  { return raw.Uint64(l.header, l.off+offHeld) }
func (l lockWords) guest() *atomic.Uint64 { return raw.Uint64(l.header, l.off+offGuest) }
func (l lockWords) wake() *atomic.Uint32  { return raw.Uint32(l.header, l.off+offWake) }

// wakeLock wakes one that sleeps for the lock, or all.
func (m *mapping) wakeLock(l lockWords, all bool) {
	l.wake().Add(1)
	m.file.Wake(m.mem, l.off+offWake, all)
}

// tryWords takes the lock for the attachment with that tag, unless one that is not gone
// has it. It reports whether it has, and whether the last holder is gone. With mark, the
// holder will wake those that sleep.
func (m *mapping) tryWords(l lockWords, tag uint64, gone func(tag uint64) bool, mark bool) (taken, recovered bool) {
	ended := ended(gone)
	for {
		if guest := l.guest().Load(); guest != 0 && !ended(guest) {
			return false, false
		}
		before, own := l.held().Load(), tag<<1
		if before != 0 && !ended(before) {
			if mark && before&contended == 0 && !l.held().CompareAndSwap(before, before|contended) {
				continue
			}
			return false, false
		}
		if before != 0 || mark {
			own |= contended // others may be asleep
		}
		if !l.held().CompareAndSwap(before, own) {
			continue
		}
		if kept, half := m.keepWords(l, tag, before, ended); kept {
			return true, half || before != 0
		}
	}
}

// tryFree is tryWords for the block's lock if that is free, for a caller that is not
// under guard.
func (m *mapping) tryFree(tag uint64, gone func(tag uint64) bool) (taken, recovered bool) {
	before, done := debug.SetPanicOnFault(true), false
	defer func() {
		debug.SetPanicOnFault(before)
		if !done {
			m.faultAt(recover())
		}
	}()
	l := lockWords{m.head, offLock}
	if l.guest().Load() == 0 && l.held().CompareAndSwap(0, tag<<1) {
		taken = true
		if l.guest().Load() != 0 {
			taken, recovered = m.keepWords(l, tag, 0, ended(gone))
		}
	}
	done = true
	return taken, recovered
}

// tryUnlock is unlockWords for the block's lock if nobody is asleep for it, for a caller
// that is not under guard.
func (m *mapping) tryUnlock(tag uint64) (free bool) {
	before, done := debug.SetPanicOnFault(true), false
	defer func() {
		debug.SetPanicOnFault(before)
		if !done {
			m.faultAt(recover())
		}
	}()
	l := lockWords{m.head, offLock}
	if free = tag != 0 && l.held().CompareAndSwap(tag<<1, 0); free && l.guest().Load() != 0 {
		m.wakeLock(l, true)
	}
	done = true
	return free
}

// ended returns a function that reports whether the attachment in a word of a lock is
// gone.
func ended(gone func(tag uint64) bool) func(word uint64) bool {
	return func(word uint64) bool { return word>>1 == nobody || gone(word>>1) }
}

// keepWords reports whether an attachment keeps the lock that it has just taken, and
// whether a guest that is gone had it. It gives way to any other guest: held is then
// what it was before.
func (m *mapping) keepWords(l lockWords, tag, before uint64, ended func(word uint64) bool) (kept, half bool) {
	for {
		guest := l.guest().Load()
		if guest != 0 && !ended(guest) {
			if before != 0 {
				before |= contended
			}
			for now := l.held().Load(); now>>1 == tag && !l.held().CompareAndSwap(now, before); now = l.held().Load() {
			}
			m.wakeLock(l, true)
			return false, false
		}
		if l.held().Load()>>1 != tag { // a guest that has gone meanwhile had it
			return false, false
		}
		if guest == 0 || l.guest().CompareAndSwap(guest, 0) {
			return true, guest&1 != 0
		}
	}
}

// unlockWords gives the lock back, for next to be held, and reports whether the
// attachment with that tag had it.
func (m *mapping) unlockWords(l lockWords, tag, next uint64) bool {
	for {
		held := l.held().Load()
		if held == 0 || held>>1 != tag {
			return false
		}
		if next != 0 {
			next |= held & contended
		}
		if l.held().CompareAndSwap(held, next) {
			if guest := l.guest().Load(); held&contended != 0 || guest != 0 {
				m.wakeLock(l, guest != 0)
			}
			return true
		}
	}
}

// tagUsed reports whether a lock is held under that tag, by an attachment that is gone:
// it would seem to be back.
func (m *mapping) tagUsed(tag uint64) (used bool) {
	m.words(func(h header) {
		for _, off := range []int{offLock, offSizeLock} {
			l := lockWords{h, off}
			used = used || l.held().Load()>>1 == tag || l.guest().Load()>>1 == tag
		}
	})
	return used
}
