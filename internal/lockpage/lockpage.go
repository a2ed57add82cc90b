// Package lockpage keeps the locks of a block in the block itself, for systems
// whose kernel keeps none on shared memory. Each lock names the process that
// holds it, so that the locks of a process that has ended count for nothing: to
// everybody else it is as if a kernel had dropped them, all in one moment.
//
// There is a mutex, and there are slots, one for each attachment. Slots are
// taken under the mutex and given up at any time. A slot says whether its attachment is
// a writer.
package lockpage

import (
	"math/rand/v2"
	"sync/atomic"

	"github.com/shmkit/shm/internal/raw"
)

// Where the words are in the page, each on cache lines of its own, all eight
// bytes and only ever changed by atomic operations. In a new object all are 0.
const (
	offReady    = 0   // 1 once the object is a block
	offMutex    = 128 // token of the holder
	offArrivals = 256 // how often a slot has been taken, or has become a writer's
	offID       = 384 // two random words
	offProbe    = 400 // any number: see Same
	offSlots    = 512 // tokens, some with writerBit, to the end of the page
)

// writerBit is set in the slot of a writer. No token has it.
const writerBit = 1 << 63

// A Page is one attachment's view of a lock page. Its methods are not safe for
// concurrent use, except Others, Writers, Holders and Token; different Pages of one page are, in
// any number of processes.
type Page struct {
	b      []byte
	self   uint64
	gone   func(token uint64) bool
	step   func(what string)
	locked bool
	slot   atomic.Int32 // index of the one that is ours, or none
	holder uint64       // what is in it
}

const none = -1

// New returns a view of the page b. Self is the token of this process: a number below
// 1<<63 that no other process has, not even one that comes after it. Gone reports
// whether the process with a token has ended; it may say no out of doubt, and
// whatever it says of a token that was never anybody's does no harm. Step is called
// before every store to the page, with a word for it: tests stop processes there.
func New(b []byte, self uint64, gone func(token uint64) bool, step func(what string)) *Page {
	p := &Page{b: b, self: self, step: step}
	p.gone = func(holder uint64) bool { return gone(holder &^ writerBit) }
	p.slot.Store(none)
	return p
}

func (p *Page) word(off int) *atomic.Uint64   { return raw.Uint64(p.b, off) }
func (p *Page) slotWord(i int) *atomic.Uint64 { return p.word(offSlots + 8*i) }

// Slots is how many attachments there can be.
func (p *Page) Slots() int { return (len(p.b) - offSlots) / 8 }

// Ready reports whether the object is a block. A new one is not.
func (p *Page) Ready() bool { return p.word(offReady).Load() == 1 }

// SetReady makes it one; the mutex must be held.
func (p *Page) SetReady() {
	p.step("ready")
	p.word(offReady).Store(1)
}

// ID returns what tells this object from all others, zero if it has none yet.
func (p *Page) ID() [2]uint64 {
	return [2]uint64{p.word(offID).Load(), p.word(offID + 8).Load()}
}

// SetID gives the object an id; the mutex must be held.
func (p *Page) SetID(id [2]uint64) {
	for i, v := range id {
		p.step("id")
		p.word(offID + 8*i).Store(v)
	}
}

// Same reports whether p, which must be open for writing, and q are views of one
// page. That is found out by changing it: the id of another page can be written
// by anybody.
func (p *Page) Same(q *Page) bool {
	const tries = 10_000 // a millisecond: eight who compare at once can disturb a hundred
	seen := q.word(offProbe)
	for range tries {
		before, n := seen.Load(), rand.Uint64()|1
		p.step("probe")
		p.word(offProbe).Add(n)
		switch seen.Load() - before {
		case n:
			return true
		case 0:
			return false
		}
		// Somebody else has changed it meanwhile.
	}
	return false
}

// Lock takes the mutex, without waiting, and reports whether p holds it.
func (p *Page) Lock() bool {
	w := p.word(offMutex)
	holder := w.Load()
	// A holder that is gone does not come back: if the word has changed by the
	// time it is swapped, somebody else has it now.
	if !p.locked && (holder == 0 || p.gone(holder)) {
		p.step("mutex")
		p.locked = w.CompareAndSwap(holder, p.self)
	}
	return p.locked
}

// Abandoned reports whether the process that took the mutex has ended with it.
func (p *Page) Abandoned() bool {
	holder := p.word(offMutex).Load()
	return holder != 0 && p.gone(holder)
}

// Unlock gives up the mutex if it is held.
func (p *Page) Unlock() {
	if p.locked {
		p.locked = false
		p.step("unlock")
		p.word(offMutex).CompareAndSwap(p.self, 0)
	}
}

// Join takes a slot, unless p has one, and reports whether it could: there may
// be none left. It takes none that is used, which it asks when it has the slot; a nil used
// stands for none. The mutex must be held.
func (p *Page) Join(writer bool, used func(slot int) bool) bool {
	for _, reuse := range []bool{false, true} {
		for i := 0; i < p.Slots() && !p.joined(); i++ {
			w := p.slotWord(i)
			holder := w.Load()
			if holder != 0 && (!reuse || !p.gone(holder)) {
				continue
			}
			p.step("slot")
			if !w.CompareAndSwap(holder, p.as(writer)) {
				continue
			}
			p.holder = p.as(writer)
			p.slot.Store(int32(i))
			p.word(offArrivals).Add(1)
			if used != nil && used(i) {
				p.Leave()
			}
		}
	}
	return p.joined()
}

func (p *Page) joined() bool { return p.slot.Load() != none }

// Slot returns the number of the slot that p has.
func (p *Page) Slot() int { return int(p.slot.Load()) }

// Token returns the token in a slot, 0 if it is free or there is no such slot.
func (p *Page) Token(slot int) uint64 {
	if slot < 0 || slot >= p.Slots() {
		return 0
	}
	return p.slotWord(slot).Load() &^ writerBit
}

// as returns what is in the slot of p.
func (p *Page) as(writer bool) uint64 {
	if writer {
		return p.self | writerBit
	}
	return p.self
}

// SetWriter makes p a writer or not, and reports whether it could: it can not if p has
// no slot, or another program has taken it away.
func (p *Page) SetWriter(writer bool) bool {
	slot, old := p.slot.Load(), p.holder
	if slot == none {
		return false
	}
	if old == p.as(writer) {
		return true
	}
	p.step("writer")
	if !p.slotWord(int(slot)).CompareAndSwap(old, p.as(writer)) {
		return false
	}
	p.holder = p.as(writer)
	if writer {
		p.word(offArrivals).Add(1)
	}
	return true
}

// Leave gives up the slot if p has one.
func (p *Page) Leave() {
	if slot := p.slot.Load(); slot != none {
		p.step("leave")
		p.slotWord(int(slot)).CompareAndSwap(p.holder, 0)
		p.slot.Store(none)
	}
}

// Alone reports whether no process that has not ended has a slot but p itself,
// and frees the slots of those that have. The mutex must be held.
func (p *Page) Alone() bool {
	for i := range p.Slots() {
		w := p.slotWord(i)
		holder := w.Load()
		if int32(i) == p.slot.Load() || holder == 0 {
			continue
		}
		if !p.gone(holder) {
			return false
		}
		p.step("free")
		w.CompareAndSwap(holder, 0)
	}
	return true
}

// Others reports whether another Page has a slot. It needs no mutex and changes nothing.
func (p *Page) Others() bool {
	return p.anyOther(func(uint64) bool { return true })
}

// Writers reports whether another Page has the slot of a writer, as Others.
func (p *Page) Writers() bool {
	return p.anyOther(func(holder uint64) bool { return holder&writerBit != 0 })
}

// anyOther reports whether f is true of what another Page has in its slot.
func (p *Page) anyOther(f func(holder uint64) bool) bool {
	const tries = 10_000 // a millisecond: eight who compare at once can disturb a hundred
	for range tries {
		before := p.word(offArrivals).Load()
		for i := range p.Slots() {
			if holder := p.other(i); holder != 0 && f(holder) && !p.gone(holder) {
				return true
			}
		}
		// A process may have come to a slot that had been looked at and then another
		// left one that had not. Without arrivals, what was seen was so at the end.
		if p.word(offArrivals).Load() == before {
			return false
		}
	}
	return true // so many arrivals
}

// other returns what is in slot i, 0 if it is that of p.
func (p *Page) other(i int) uint64 {
	if int32(i) == p.slot.Load() {
		return 0
	}
	return p.slotWord(i).Load()
}

// A Holder is a Page that has a slot.
type Holder struct {
	Token  uint64 // of its process
	Writer bool
}

// Holders returns the other Pages that have a slot, without those of processes that
// have ended.
func (p *Page) Holders() (list []Holder) {
	for i := range p.Slots() {
		if holder := p.other(i); holder != 0 && !p.gone(holder) {
			list = append(list, Holder{holder &^ writerBit, holder&writerBit != 0})
		}
	}
	return list
}
