package waiting

import (
	"fmt"

	"github.com/shmkit/shm/internal/model/explore"
)

// A Table is Windows' table of waiters, with those who wait and those who wake
// them. Each slot has a word in the header, and a name that an event of the
// system can have; the event is there as long as somebody has a handle on it.
type Table struct {
	Waiters int // processes that wait, each Rounds times
	Rounds  uint8
	Wakers  int   // processes that change the block
	Changes uint8 // each so often
	Kills   uint8
	Ticks   bool

	Without TableGuard
	Limit   int
}

// A TableGuard is a part of the protocol that a mutant can go without.
type TableGuard uint8

// The guards, each of which a mutant shows to be needed.
const (
	ClaimThenCompare TableGuard = 1 << iota // a waiter has its slot before it compares event
	SystemClaims                            // a slot is free when its event can be created, not when its word is 0
	CreatesAlone                            // and taken when there is one
	ClearThenClose                          // a slot's word is cleared before its event is closed
	WakersLeaveWords                        // who finds no event does not clear the word
	EventsStay                              // an event stays signaled until somebody has waited for it

	tableGuards = 1<<iota - 1
)

const maxSlots = 2

type tableState struct {
	change uint8 // how often the block has changed
	armed  bool
	words  [maxSlots]bool
	events [maxSlots]event
	procs  [maxProcs]waiter
	kills  uint8
	hushed bool
}

// An event is an auto-reset event of the system.
type event struct {
	handles  uint8 // a bit for each process that has one
	signaled bool
}

type waiter struct {
	pc    tpc
	round uint8
	slot  uint8 // 1 + index; 0: none
	i     uint8
	fresh bool
}

type tpc uint8

const (
	tFinished tpc = iota
	tKilled

	tCreate // a waiter
	tWord
	tEvent
	tArm
	tLook
	tCompare
	tEnter
	tWait
	tClearWord
	tClose

	tChange // a waker
	tArmed
	tCount
	tRead
	tOpen
	tSet
	tUnopen
	tNone // mutant
)

var tplaces = [...]string{
	tCreate: "create event", tWord: "word=1", tEvent: "load event", tArm: "armed=1", tLook: "look", tCompare: "load event again", tEnter: "wait", tWait: "woken",
	tClearWord: "word=0", tClose: "close event", tChange: "change", tArmed: "swap armed", tCount: "event++", tRead: "load word",
	tOpen: "open event", tSet: "set event", tUnopen: "close event", tNone: "(mutant) word=0",
}

type tableWorld struct {
	tableState
	*Table
	self   int
	broken explore.Property
	why    string
	log    string
}

// The properties of the table; see the package comment.
const (
	T1 explore.Property = "T1"
	T2 explore.Property = "T2"
	T3 explore.Property = "T3"
	T4                  = explore.NoWayOut
)

func (sc *Table) lacks(g TableGuard) bool { return sc.Without&g != 0 }

// Start is the state before anybody's first step.
func (sc *Table) Start() tableState {
	s := tableState{kills: sc.Kills}
	for i := range sc.Waiters {
		s.procs[i].pc = sc.first()
	}
	for i := range sc.Wakers {
		s.procs[sc.Waiters+i].pc = tChange
	}
	return s
}

func (sc *Table) first() tpc { return pick(sc.lacks(ClaimThenCompare), tEvent, tCreate) }

func (w *tableWorld) mine() uint8 { return 1 << w.self }

// step makes the next step of p: one access to a word, or one system call.
func (w *tableWorld) step(p *waiter) {
	switch p.pc {

	case tCreate:
		switch e := &w.events[p.i]; {
		case w.lacks(SystemClaims) && w.words[p.i], e.handles != 0 && !w.lacks(CreatesAlone):
			w.log = " is there"
			if p.i++; p.i == maxSlots { // no slot: it looks at times
				p.i, p.pc = 0, pick(w.lacks(ClaimThenCompare), tEnter, tEvent)
			}
		default:
			e.handles |= w.mine()
			p.slot, p.i, p.pc = p.i+1, 0, tWord
		}
	case tWord:
		w.words[p.slot-1] = true
		p.pc = pick(w.lacks(ClaimThenCompare), tEnter, tEvent)
	case tEvent:
		p.fresh = true
		p.pc = tArm
	case tArm:
		w.armed = true
		p.pc = tLook
	case tLook:
		if p.pc = tCompare; w.change > p.round {
			p.fresh = false
			if p.pc = tClearWord; p.slot == 0 {
				w.again(p)
			}
		}
	case tCompare:
		switch p.pc = tEnter; {
		case !p.fresh:
			p.pc = tEvent
		case w.lacks(ClaimThenCompare) && p.slot == 0:
			p.pc = tCreate
		}
	case tEnter: // which returns at once if the event is signaled
		p.pc, p.fresh = tWait, false
	case tWait: // or a tick
		if p.pc = tEvent; p.slot != 0 {
			w.events[p.slot-1].signaled = false
		}
	case tClearWord:
		if p.pc = tClose; w.lacks(ClearThenClose) && w.events[p.slot-1].handles&w.mine() != 0 {
			w.drop(int(p.slot - 1))
			p.pc = tClearWord
			break
		}
		w.words[p.slot-1] = false
		if w.lacks(ClearThenClose) {
			w.again(p)
		}
	case tClose:
		w.drop(int(p.slot - 1))
		w.again(p)

	case tChange:
		w.change++
		p.pc = tArmed
	case tArmed:
		if p.pc = tCount; !w.armed {
			w.changed(p)
		}
		w.armed = false
	case tCount:
		for i := range w.procs {
			w.procs[i].fresh = false
		}
		p.pc = tRead
	case tRead:
		if p.pc = tOpen; !w.words[p.i] {
			w.following(p)
		}
	case tOpen:
		if p.pc = tSet; w.events[p.i].handles == 0 {
			w.log = " is not there"
			if p.pc = tNone; !w.lacks(WakersLeaveWords) {
				w.following(p)
			}
			break
		}
		w.events[p.i].handles |= w.mine()
	case tSet:
		w.events[p.i].signaled = true
		for i := range w.procs {
			// A pulse is over once those who wait have been woken.
			if q := &w.procs[i]; w.lacks(EventsStay) {
				w.events[p.i].signaled = false
				if q.pc == tWait && q.slot == p.i+1 {
					q.pc = tEvent
				}
			}
		}
		p.pc = tUnopen
	case tUnopen:
		w.drop(int(p.i))
		w.following(p)
	case tNone:
		w.words[p.i] = false
		w.following(p)
	}
}

// following is the waker's next slot.
func (w *tableWorld) following(p *waiter) {
	if p.i++; p.i == maxSlots {
		w.changed(p)
		return
	}
	p.pc = tRead
}

// changed is the waker's next change.
func (w *tableWorld) changed(p *waiter) {
	*p = waiter{round: p.round + 1, pc: tChange}
	if p.round == w.Changes {
		*p = waiter{}
	}
}

// again is the waiter's next round.
func (w *tableWorld) again(p *waiter) {
	*p = waiter{round: p.round + 1, pc: w.first()}
	if p.round == w.Rounds {
		*p = waiter{}
	}
}

// drop closes a handle. With the last the event is gone.
func (w *tableWorld) drop(i int) {
	e := &w.events[i]
	if e.handles &^= w.mine(); e.handles == 0 {
		*e = event{}
	}
}

// Steps is explore.Model's.
func (sc *Table) Steps(s tableState, record bool, f func(explore.Step[tableState]) bool) {
	step := func(i int, certain bool, do func(w *tableWorld) string) bool {
		w := tableWorld{Table: sc, tableState: s, self: i}
		what := do(&w)
		w.check()
		st := explore.Step[tableState]{To: w.tableState, Broken: w.broken, Why: w.why, Certain: certain}
		if record {
			st.Line = fmt.Sprintf("P%d     %s%s", i+1, what, w.log)
		}
		return f(st)
	}
	for i := range s.procs {
		p := &s.procs[i]
		for k := range s.events {
			if p.pc == tKilled && s.events[k].handles&(1<<i) != 0 && !step(i, true, func(w *tableWorld) string {
				w.drop(k)
				return "the system closes its handle"
			}) {
				return
			}
		}
		if p.pc <= tKilled {
			continue
		}
		can := p.pc != tWait || sc.Ticks || p.slot == 0 || s.events[p.slot-1].signaled
		if can && !step(i, true, func(w *tableWorld) string {
			w.step(&w.procs[i])
			return fmt.Sprintf("%s %d", tplaces[p.pc], pick(p.slot > 0, p.slot, p.i+1))
		}) {
			return
		}
		if s.kills > 0 && !step(i, false, func(w *tableWorld) string {
			w.kills--
			w.hushed = w.hushed || p.pc > tChange
			w.procs[i] = waiter{pc: tKilled}
			return "killed before " + tplaces[p.pc]
		}) {
			return
		}
	}
}

// check is T1 and T2.
func (w *tableWorld) check() {
	waking := w.hushed
	for i := range w.procs {
		p := &w.procs[i]
		waking = waking || p.pc > tChange
		for _, q := range w.procs[i+1:] {
			if p.slot != 0 && p.slot == q.slot && p.pc != tClearWord && q.pc != tClearWord {
				w.violate(T2, "two waiters have one slot")
			}
		}
	}
	for _, p := range w.procs {
		if p.pc == tWait && p.slot != 0 && !waking && w.change > p.round && !w.events[p.slot-1].signaled {
			w.violate(T1, "a waiter could go on, and nobody is about to wake it")
		}
	}
}

func (w *tableWorld) violate(p explore.Property, why string) {
	if w.broken == explore.Holds {
		w.broken, w.why = p, why
	}
}

// Check is T3: where all have ended, all slots can be claimed.
func (sc *Table) Check(s tableState) (explore.Property, string) {
	for _, p := range s.procs {
		if p.pc > tKilled || !sc.Finished(s) {
			return explore.Holds, ""
		}
	}
	for i := range s.events {
		if s.events[i].handles != 0 || s.words[i] && sc.lacks(SystemClaims) {
			return T3, "nobody is left, and a slot cannot be claimed"
		}
	}
	return explore.Holds, ""
}

// Finished reports whether all have come to their ends, but for those who wait
// for a change that is not going to come.
func (sc *Table) Finished(s tableState) bool {
	for i, p := range s.procs {
		for _, e := range s.events {
			if p.pc == tKilled && e.handles&(1<<i) != 0 {
				return false
			}
		}
		if p.pc > tKilled && !(p.pc == tWait && s.change <= p.round) {
			return false
		}
	}
	return true
}
