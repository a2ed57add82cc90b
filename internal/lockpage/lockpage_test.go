package lockpage

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
)

// system is what the tests have for processes.
type system struct {
	b    []byte
	dead sync.Map // tokens
}

func newSystem(slots int) *system { return &system{b: make([]byte, offSlots+8*slots)} }

func (s *system) page(token uint64) *Page {
	return New(s.b, token, func(token uint64) bool {
		_, dead := s.dead.Load(token)
		return dead
	}, noStep)
}

func noStep(string) {}

func (s *system) kill(p *Page) { s.dead.Store(p.self, true) }

func mustBe(t *testing.T, what string, got, want bool) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v", what, got)
	}
}

func TestMutex(t *testing.T) {
	s := newSystem(4)
	a, twin, b, c := s.page(1), s.page(1), s.page(2), s.page(3)
	mustBe(t, "first", a.Lock(), true)
	mustBe(t, "again", a.Lock(), true)
	mustBe(t, "another page of the process", twin.Lock(), false)
	mustBe(t, "another process", b.Lock(), false)
	mustBe(t, "abandoned", b.Abandoned(), false)
	b.Unlock() // does not hold it
	mustBe(t, "another process after its unlock", b.Lock(), false)
	a.Unlock()
	mustBe(t, "unlocked", b.Lock(), true)
	s.kill(b)
	mustBe(t, "abandoned by the dead", c.Abandoned(), true)
	mustBe(t, "from the dead", c.Lock(), true)
	b.Unlock() // too late
	mustBe(t, "first, after the unlock of one that is dead", a.Lock(), false)
	c.Unlock()
	mustBe(t, "at last", a.Lock(), true)
}

func TestSlots(t *testing.T) {
	s := newSystem(4)
	pages := []*Page{s.page(1), s.page(1), s.page(2), s.page(3)}
	observer, late := s.page(8), s.page(9)
	mustBe(t, "others of none", observer.Others(), false)
	for _, p := range pages {
		mustBe(t, "join", p.Join(true, nil), true)
		mustBe(t, "join again", p.Join(true, nil), true)
	}
	mustBe(t, "more than there are slots", late.Join(true, nil), false)
	mustBe(t, "alone with many", pages[0].Alone(), false)
	mustBe(t, "others of many", observer.Others(), true)

	s.kill(pages[2])
	mustBe(t, "the slot of the dead", late.Join(true, nil), true)
	pages[2].Leave() // too late
	mustBe(t, "somebody has left who had lost the slot", s.page(9).Join(true, nil), false)
	s.kill(pages[3])
	pages[1].Leave()
	late.Leave()
	mustBe(t, "others than the dead", pages[0].Others(), false)
	mustBe(t, "others of an observer", observer.Others(), true)
	mustBe(t, "alone", pages[0].Alone(), true)
	mustBe(t, "alone with one of another process", late.Alone(), false)
	pages[0].Leave()
	pages[0].Leave()
	for i := range pages[0].Slots() {
		if w := pages[0].slotWord(i).Load(); w != 0 {
			t.Errorf("slot %d holds %d", i, w)
		}
	}
}

func TestWriters(t *testing.T) {
	s := newSystem(4)
	a, b, c, observer := s.page(1), s.page(1), s.page(2), s.page(3)
	writers := func(p *Page, want bool) {
		t.Helper()
		mustBe(t, "writers", p.Writers(), want)
	}
	mustBe(t, "one without a slot", a.SetWriter(true), false)
	writers(observer, false)
	a.Join(false, nil)
	b.Join(true, nil)
	writers(a, true)
	writers(b, false)
	mustBe(t, "a writer", a.SetWriter(true), true)
	mustBe(t, "a writer again", a.SetWriter(true), true)
	writers(b, true)
	mustBe(t, "no writer", b.SetWriter(false), true)
	if slot, token := b.Slot(), observer.Token(b.Slot()); slot != 1 || token != 1 {
		t.Errorf("slot %d holds %x", slot, token)
	}
	for _, slot := range []int{-1, 3, 4, 2047} {
		if token := observer.Token(slot); token != 0 {
			t.Errorf("slot %d holds %x", slot, token)
		}
	}
	writers(a, false)
	writers(observer, true)
	c.Join(true, func(slot int) bool { return slot == 2 })
	writers(a, true)
	if c.Slot() != 3 || observer.Token(2) != 0 {
		t.Errorf("slot %d where 2 is used, which holds %x", c.Slot(), observer.Token(2))
	}
	want := []Holder{{1, true}, {1, false}, {2, true}}
	if got := observer.Holders(); !slices.Equal(got, want) {
		t.Errorf("holders %v, want %v", got, want)
	}
	s.kill(c)
	writers(a, false)
	a.Leave()
	b.Leave()
	mustBe(t, "alone with the dead", observer.Alone(), true)
	mustBe(t, "one who has lost the slot", c.SetWriter(false), false)
	for i := range observer.Slots() {
		if w := observer.slotWord(i).Load(); w != 0 {
			t.Errorf("slot %d holds %x", i, w)
		}
	}
}

// TestBeaten has somebody else take a lock just when its old holder is found
// gone, which only one of them may.
func TestBeaten(t *testing.T) {
	s := newSystem(1)
	dead, other := s.page(1), s.page(2)
	dead.Lock()
	dead.Join(true, nil)
	s.kill(dead)
	var meanwhile func() bool
	p := New(s.b, 3, func(token uint64) bool {
		if f := meanwhile; f != nil {
			meanwhile = nil
			mustBe(t, "the other", f(), true)
		}
		return token == 1
	}, noStep)
	meanwhile = other.Lock
	mustBe(t, "mutex", p.Lock(), false)
	other.Unlock()
	p.Lock()
	meanwhile = func() bool { return other.Join(true, nil) }
	mustBe(t, "slot", p.Join(true, nil), false)
	mustBe(t, "alone with the other", p.Alone(), false)

	other.Leave()
	dead.slot.Store(none) // another of that process
	dead.locked = true
	dead.Join(false, nil)
	meanwhile = func() bool {
		return p.slotWord(0).CompareAndSwap(1, 2)
	}
	p.Alone()
	if w := p.slotWord(0).Load(); w != 2 {
		t.Errorf("slot of the other holds %d", w)
	}
}

// TestExclusion has many lock, and be killed with it, at once.
func TestExclusion(t *testing.T) {
	const workers, rounds = 8, 2000
	s := newSystem(4)
	inside, total := 0, 0 // what the mutex guards
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			p := s.page(uint64(w + 1))
			for i := range rounds {
				for !p.Lock() {
					runtime.Gosched()
				}
				if inside++; inside != 1 {
					t.Errorf("%d inside", inside)
				}
				total++
				inside--
				if i%10 == 9 {
					s.kill(p) // and another process begins
					p = s.page(p.self + workers)
				} else {
					p.Unlock()
				}
			}
		})
	}
	all.Wait()
	if total != workers*rounds {
		t.Errorf("%d times inside", total)
	}
}

// TestOthers has two take turns so that one of them is there at all times, now
// in the first slot and now in the last, and an observer who must never miss both.
func TestOthers(t *testing.T) {
	s := newSystem(200)
	a, b, observer := s.page(1), s.page(2), s.page(3)
	for i := 1; i < observer.Slots()-1; i++ { // in between, the dead
		dead := s.page(uint64(10 + i))
		s.kill(dead)
		observer.slotWord(i).Store(dead.self)
	}
	a.Join(true, nil)
	stop := make(chan bool)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			b.Join(true, nil)
			a.Leave()
			a, b = b, a
			runtime.Gosched()
		}
	})
	for range 20_000 {
		if !observer.Others() {
			t.Error("nobody seen")
			break
		}
		runtime.Gosched()
	}
	close(stop)
	all.Wait()
}

// TestWritersMove has two that take turns to be the writer, so that one of them is at
// all times, and an observer who must never miss both.
func TestWritersMove(t *testing.T) {
	s := newSystem(200)
	a, b, observer := s.page(1), s.page(2), s.page(3)
	a.Join(true, nil)
	for i := 1; i < observer.Slots()-1; i++ { // in between, others
		observer.slotWord(i).Store(4)
	}
	b.Join(false, nil)
	stop := make(chan bool)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			b.SetWriter(true)
			a.SetWriter(false)
			a, b = b, a
			runtime.Gosched()
		}
	})
	for range 20_000 {
		if !observer.Writers() {
			t.Error("no writer seen")
			break
		}
		runtime.Gosched()
	}
	close(stop)
	all.Wait()
}

// TestGarbage works on a page that somebody has scribbled on.
func TestGarbage(t *testing.T) {
	for seed := range uint64(1000) {
		s := newSystem(4)
		random := rand.New(rand.NewPCG(seed, 0))
		for i := range s.b {
			s.b[i] = byte(random.Uint32())
		}
		p := New(s.b, 1, func(token uint64) bool { return token&1 == 0 }, noStep)
		p.Ready()
		p.ID()
		p.Abandoned()
		p.Others()
		p.Writers()
		p.Holders()
		p.Token(int(seed))
		if p.Lock() {
			p.SetID([2]uint64{1, 2})
			p.SetReady()
			p.Join(seed%2 == 0, nil)
			p.SetWriter(true)
			p.Alone()
		}
		p.Leave()
		p.Unlock()
	}
}

// TestSame has two pages with one id, and many who compare at once.
func TestSame(t *testing.T) {
	s, other := newSystem(4), newSystem(4)
	s.page(1).SetID([2]uint64{1, 2})
	copy(other.b, s.b)
	var all sync.WaitGroup
	for w := range uint64(8) {
		all.Go(func() {
			for range 2000 {
				if !s.page(w).Same(s.page(w)) {
					t.Error("not the same page")
				}
			}
		})
	}
	mustBe(t, "another page", other.page(1).Same(s.page(1)), false)
	all.Wait()
	mustBe(t, "another page", s.page(1).Same(other.page(1)), false)
}
