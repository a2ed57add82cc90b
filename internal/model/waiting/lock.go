package waiting

import (
	"fmt"

	"github.com/shmkit/shm/internal/model/explore"
)

// A Lock is the lock of a block and those who take it. Its words are held, wake
// and guest.
type Lock struct {
	Programs [][]LockCall
	Kills    uint8
	Ticks    bool // sleepers look at times
	Cancel   bool // whose wait for the lock can be given up
	Shared   bool // the first two are goroutines with one attachment

	Without LockGuard
	Limit   int
}

// A LockCall is what a process asks of the library.
type LockCall uint8

// The calls. Guest locks as Python does, which has no compare-and-swap.
const (
	Acquire LockCall = iota
	Try
	Release
	GuestAcquire
	GuestRelease
	Leave // Close, perhaps while holding the lock
	Enter // attach, perhaps by a byte that somebody had before
)

func (c LockCall) String() string {
	return [...]string{"Lock", "TryLock", "Unlock", "guest Lock", "guest Unlock", "Close", "Open"}[c]
}

// A LockGuard is a part of the protocol that a mutant can go without.
type LockGuard uint32

// The guards, each of which a mutant shows to be needed.
const (
	WakeThenMark   LockGuard = 1 << iota // a waiter reads wake before it marks the lock contended
	MarkThenSleep                        // and marks it before it sleeps
	WakeCounts                           // Unlock raises wake before it wakes
	SleeperMarks                         // who has slept takes the lock marked contended
	PassesOn                             // who gives up after a wake wakes the next
	SwapsTag                             // the dead tag itself is swapped, not just any
	OwnIsAlive                           // the own tag is never dead, whatever the system says
	AsksKernel                           // a tag is dead when its byte is free
	RedrawsTag                           // who attaches never takes the tag of a dead holder
	CloseTells                           // Close leaves a dead tag, and wakes
	GuestLooked                          // who has taken held looks at guest
	HeldAgain                            // and then at held again
	GuestThenHeld                        // a guest writes its tag before it looks at held
	GuestRestores                        // who steps back for a guest leaves a dead tag as it was
	GuestLane                            // guests exclude each other
	GuestWoken                           // Unlock wakes a guest, which cannot mark the lock
	GuestRemembers                       // a guest takes over what a dead guest has left

	lockGuards = 1<<iota - 1
)

// abandoned is a tag that nobody ever has. Close leaves it in held.
const (
	maxTags   = maxProcs + 1
	abandoned = maxTags
)

type lockState struct {
	held  tag
	guest tag
	lane  uint8         // 1 + index of the guest that has the system's lock for guests
	bytes [maxTags]bool // own bytes that are locked, by tag
	procs [maxProcs]locker
	kills uint8

	// What the properties need to know.
	holder uint8 // 1 + index
	died   bool  // the last holder died with the lock
	hushed bool
}

// A tag is the content of held, contended or not, or of guest, in use or not.
type tag struct {
	of   uint8 // 1 + index into bytes; 0: free
	mark bool  // held: contended; guest: it has the lock
}

type locker struct {
	pc    lpc
	call  uint8
	tag   uint8 // of this attachment
	fresh bool  // the wake read is still wake
	woken bool  // has slept
	s     tag   // held, as loaded
	g     tag   // guest, as loaded
	found bool  // the last holder died; of a killed process: its byte is still locked
}

type lpc uint8

const (
	lFinished lpc = iota
	lKilled

	lFast // Lock
	lWake
	lGuestFirst
	lGuestFirstAsk
	lLoad
	lAsk
	lMark
	lWakeLate // mutant
	lSleep
	lAsleep
	lTake
	lGuest // with the tag in held
	lSure
	lGuestAsk
	lGuestClear
	lBack
	lBackRaise
	lBackWake

	uLoad // Unlock
	uSwap
	uGuest
	uRaise
	uWake

	gLane // guest
	gLook
	gSet
	gWake
	gHeld
	gAsk
	gSleep
	gAsleep
	gHave
	gClear
	gFree
	gRaise
	gWakeAll
	gUnlane

	cLoad // Close
	cSwap
	cDrop
	eEnter // Open
)

var lplaces = [...]string{
	lFast: "Lock: swap held", lWake: "Lock: load wake", lGuestFirst: "Lock: load guest", lGuestFirstAsk: "Lock: ask for the guest's byte",
	lLoad: "Lock: load held", lAsk: "Lock: ask for its byte", lMark: "Lock: mark contended", lWakeLate: "Lock (mutant): load wake",
	lSleep: "Lock: futex wait", lAsleep: "Lock: tick or end", lTake: "Lock: swap held", lGuest: "Lock: load guest",
	lSure: "Lock: load held again", lGuestAsk: "Lock: ask for the guest's byte", lGuestClear: "Lock: swap guest", lBack: "Lock: step back",
	lBackRaise: "Lock: wake++", lBackWake: "Lock: futex wake all",
	uLoad: "Unlock: load held", uSwap: "Unlock: swap held", uGuest: "Unlock: load guest", uRaise: "wake: wake++", uWake: "wake: futex wake",
	gLane: "guest: system's lock", gLook: "guest: load guest", gSet: "guest: guest=tag", gWake: "guest: load wake", gHeld: "guest: load held",
	gAsk: "guest: ask for its byte", gSleep: "guest: futex wait", gAsleep: "guest: tick", gHave: "guest: guest=tag, has it",
	gClear: "guest: held=0", gFree: "guest: guest=0", gRaise: "guest: wake++", gWakeAll: "guest: futex wake all", gUnlane: "guest: system's unlock",
	cLoad: "Close: load held", cSwap: "Close: swap held", cDrop: "Close: drop byte", eEnter: "Open: own byte",
}

type lockWorld struct {
	lockState
	*Lock
	self   int
	choice bool
	asked  bool
	broken explore.Property
	why    string
	log    []byte
	record bool
}

// The properties of the lock; see the package comment.
const (
	L1 explore.Property = "L1"
	L2 explore.Property = "L2"
	L3 explore.Property = "L3"
	L4                  = explore.NoWayOut
)

func (w *lockWorld) violate(p explore.Property, why string) {
	if w.broken == explore.Holds {
		w.broken, w.why = p, why
	}
}

func (w *lockWorld) say(format string, a ...any) {
	if w.record {
		w.log = fmt.Appendf(append(w.log, ' '), format, a...)
	}
}

func (w *lockWorld) maybe() bool {
	w.asked = true
	return w.choice
}

func (sc *Lock) lacks(g LockGuard) bool { return sc.Without&g != 0 }

// Start is the state before anybody's first step.
func (sc *Lock) Start() lockState {
	w := lockWorld{Lock: sc, lockState: lockState{kills: sc.Kills}}
	for i := range sc.Programs {
		p := &w.procs[i]
		if p.tag = uint8(i + 1); sc.Shared && i == 1 {
			p.tag = 1
		}
		w.bytes[p.tag-1] = sc.Programs[i][0] != Enter
		w.self = i
		w.begin(p)
	}
	return w.lockState
}

func (w *lockWorld) what(p *locker) LockCall { return w.Programs[w.self][p.call] }

func (w *lockWorld) next(p *locker) {
	*p = locker{call: p.call + 1, tag: p.tag}
	w.begin(p)
}

func (w *lockWorld) begin(p *locker) {
	for {
		if int(p.call) == len(w.Programs[w.self]) {
			*p = locker{tag: p.tag}
			return
		}
		// Who has not got the lock has nothing to unlock.
		if c := w.what(p); c != Release && c != GuestRelease || int(w.holder) == w.self+1 {
			break
		}
		p.call++
	}
	p.pc = [...]lpc{Acquire: lFast, Try: lFast, Release: uLoad, GuestAcquire: gLane, GuestRelease: gFree, Leave: pick(int(w.holder) == w.self+1, cLoad, cDrop), Enter: eEnter}[w.what(p)]
}

// dead is F_OFD_GETLK of a tag's byte. The system does not tell a process of
// the locks of its own description.
func (w *lockWorld) dead(p *locker, t tag) bool {
	switch {
	case w.lacks(AsksKernel):
		return false
	case t.of == p.tag:
		return w.lacks(OwnIsAlive)
	}
	return !w.bytes[t.of-1]
}

// has is the success of p, which returns recovered.
func (w *lockWorld) has(p *locker, recovered bool) {
	if w.holder != 0 {
		w.violate(L1, "two processes have the lock")
	}
	if w.died && !recovered {
		w.violate(L2, "the last holder died with the lock, and that is not told")
	}
	if !w.died && recovered && !w.guests() {
		w.violate(L2, "recovered, and the last holder had not died with the lock")
	}
	w.holder, w.died = uint8(w.self+1), false
	w.say("has the lock, recovered %v", recovered)
	w.next(p)
}

func (sc *Lock) guests() bool {
	for _, calls := range sc.Programs {
		for _, c := range calls {
			if c == GuestAcquire {
				return true
			}
		}
	}
	return false
}

// take swaps p.s, which is free or dead, for the own tag. Whether p has the lock
// is then a question of guest; where there are no guests, that is no step.
func (w *lockWorld) take(p *locker) {
	if w.held != p.s && !(p.found && w.lacks(SwapsTag)) {
		w.say("fails")
		p.found, p.pc = false, lWake
		return
	}
	w.held = tag{p.tag, p.s.mark || p.found || p.woken && !w.lacks(SleeperMarks)}
	if p.pc = lGuest; w.lacks(GuestLooked) || !w.guests() {
		w.has(p, p.found)
	}
}

// sleep is FUTEX_WAIT: the system compares and sleeps in one step.
func (w *lockWorld) sleep(p *locker, asleep, again lpc) {
	if p.pc = asleep; !p.fresh {
		w.say("wake has changed")
		p.pc = again
	}
}

func (w *lockWorld) raise() {
	for i := range w.procs {
		w.procs[i].fresh = w.procs[i].fresh && w.lacks(WakeCounts)
	}
}

// rouse is FUTEX_WAKE, of one or of all.
func (w *lockWorld) rouse(all bool) {
	for i := range w.procs {
		q := &w.procs[i]
		if q.pc != lAsleep && q.pc != gAsleep {
			continue
		}
		last := true
		for _, r := range w.procs[i+1:] {
			last = last && r.pc != lAsleep && r.pc != gAsleep
		}
		if all || last || w.maybe() { // which one is the system's choice
			q.pc = pick(q.pc == lAsleep, lWake, gWake)
			if q.woken, q.fresh = true, false; !all {
				return
			}
		}
	}
}

// step makes the next step of p: one access to a word, or one system call.
func (w *lockWorld) step(p *locker) {
	switch p.pc {

	case lFast:
		w.take(p)
	case lWake:
		if w.Cancel && p.woken && w.maybe() {
			w.say("given up")
			if p.pc = uRaise; w.lacks(PassesOn) {
				w.next(p)
			}
			break
		}
		p.fresh = !w.lacks(WakeThenMark)
		p.pc = pick(w.guests(), lGuestFirst, lLoad)
	case lGuestFirst:
		p.g = w.guest
		p.pc = pick(p.g.of == 0, lLoad, lGuestFirstAsk)
	case lGuestFirstAsk:
		dead := w.dead(p, p.g)
		p.g = tag{}
		switch {
		case dead:
			p.pc = lLoad
		case w.what(p) == Try:
			w.locked(p)
		default:
			p.pc = lSleep
		}
	case lLoad:
		p.s = w.held
		p.pc = pick(p.s.of == 0, lTake, lAsk)
	case lAsk:
		switch {
		case w.dead(p, p.s):
			w.say("free")
			p.found, p.pc = true, lTake
		case w.what(p) == Try:
			w.locked(p)
		default:
			p.pc = pick(p.s.mark || w.lacks(MarkThenSleep), lSleep, lMark)
		}
	case lMark:
		if w.held != p.s {
			w.say("fails")
			p.pc = lWake
			break
		}
		w.held.mark = true
		p.pc = pick(w.lacks(WakeThenMark), lWakeLate, lSleep)
	case lWakeLate:
		p.fresh = true
		p.pc = lSleep
	case lSleep:
		p.s = tag{}
		w.sleep(p, lAsleep, lWake)
	case lAsleep: // a tick, or the end of the context
		if p.fresh, p.pc = false, lWake; w.Cancel && w.maybe() {
			w.say("given up")
			w.next(p)
		}
	case lTake:
		w.take(p)
	case lGuest:
		p.g = w.guest
		p.pc = pick(p.g.of == 0, lSure, lGuestAsk)
		if p.pc == lSure && w.lacks(HeldAgain) {
			w.has(p, p.found)
		}
	case lSure: // a guest that had found a dead tag has written over it
		if w.held.of == p.tag {
			if p.pc = lGuestClear; p.g.of == 0 {
				w.has(p, p.found)
			}
			break
		}
		p.found, p.g, p.s = false, tag{}, tag{}
		if p.pc = lWake; w.what(p) == Try {
			w.locked(p)
		}
	case lGuestAsk:
		p.pc = pick(w.dead(p, p.g), pick(w.lacks(HeldAgain), lGuestClear, lSure), lBack)
	case lGuestClear:
		if w.guest != p.g {
			p.pc = lGuest
			break
		}
		w.guest = tag{}
		w.has(p, p.found || p.g.mark)
	case lBack: // and tell the guest
		if w.held.of == p.tag {
			w.held = pick(w.lacks(GuestRestores), tag{}, tag{p.s.of, p.s.of != 0})
		}
		p.found, p.g, p.s = false, tag{}, tag{}
		p.pc = lBackRaise
	case lBackRaise:
		w.raise()
		p.pc = lBackWake
	case lBackWake:
		w.rouse(true)
		if p.pc = lWake; w.what(p) == Try {
			w.locked(p)
		}

	case uLoad:
		p.s = w.held
		p.pc = uSwap
	case uSwap:
		if w.held != p.s {
			w.say("fails")
			p.pc = uLoad
			break
		}
		w.holder, w.held = 0, tag{}
		p.pc = pick(w.guests(), uGuest, uRaise)
		if !w.guests() && !p.s.mark {
			w.next(p)
		}
	case uGuest:
		p.g = w.guest
		if p.pc = uRaise; !p.s.mark && (p.g.of == 0 || w.lacks(GuestWoken)) {
			w.next(p)
		}
	case uRaise:
		w.raise()
		p.pc = uWake
	case uWake:
		w.rouse(p.g.of != 0 || w.what(p) == Leave)
		if w.what(p) == Leave {
			p.pc = cDrop
			break
		}
		w.next(p)

	case cLoad:
		if p.s, p.pc = w.held, cSwap; w.lacks(CloseTells) {
			p.pc = cDrop
		}
	case cSwap:
		if w.held != p.s {
			w.say("fails")
			p.pc = cLoad
			break
		}
		w.held = tag{of: abandoned}
		w.holder, w.died = 0, true
		p.pc = pick(p.s.mark || w.guests(), uRaise, cDrop)
	case cDrop:
		if w.bytes[p.tag-1] = false; int(w.holder) == w.self+1 {
			w.holder, w.died = 0, true
		}
		w.next(p)
	case eEnter:
		p.tag = uint8(w.self + 1)
		for i, locked := range w.bytes[:maxProcs] {
			other := uint8(i + 1)
			if locked || other == p.tag || w.eyed(other) {
				continue
			}
			if (w.held.of != other && w.guest.of != other || w.lacks(RedrawsTag)) && w.maybe() {
				p.tag = other
				break
			}
		}
		w.bytes[p.tag-1] = true
		w.next(p)

	default:
		w.stepGuest(p)
	}
}

// eyed reports whether somebody has read the tag and not yet acted on it. That it
// is drawn again in this moment is left out: a tag is a process id and 18 bits
// more, of which a process takes one after the other.
func (w *lockWorld) eyed(of uint8) bool {
	for i := range w.procs {
		if w.procs[i].s.of == of || w.procs[i].g.of == of {
			return true
		}
	}
	return false
}

func (w *lockWorld) locked(p *locker) {
	w.say("ErrLocked")
	w.next(p)
}

// stepGuest has the steps of a process that cannot compare and swap. It loads
// and stores, each a full barrier; it asks the system for locks; and it adds to
// wake by FUTEX_WAKE_OP.
func (w *lockWorld) stepGuest(p *locker) {
	switch p.pc {

	case gLane:
		if w.lane = uint8(w.self + 1); w.lacks(GuestLane) {
			w.lane = 0
		}
		p.pc = pick(w.lacks(GuestThenHeld), gWake, gLook)
	case gLook: // what is there belongs to a guest that is dead
		p.found = w.guest.mark && !w.lacks(GuestRemembers)
		p.pc = gSet
	case gSet:
		w.guest = tag{p.tag, p.found}
		p.pc = pick(w.lacks(GuestThenHeld), gHave, gWake)
	case gWake:
		p.fresh = true
		p.pc = gHeld
	case gHeld:
		p.s = w.held
		p.pc = pick(p.s.of == 0, gHave, gAsk)
		if p.pc == gHave && w.lacks(GuestThenHeld) && w.guest.of != p.tag {
			p.pc = gSet
		}
	case gAsk:
		if p.pc = gSleep; w.dead(p, p.s) {
			p.found, p.pc = true, gHave
		}
	case gSleep:
		p.s = tag{}
		w.sleep(p, gAsleep, gWake)
	case gAsleep:
		p.fresh, p.pc = false, gWake
	case gHave:
		w.guest = tag{p.tag, true}
		if p.pc = gClear; p.s.of == 0 {
			w.has(p, p.found)
		}
	case gClear:
		w.held = tag{}
		w.has(p, p.found)
	case gFree:
		w.holder, w.guest = 0, tag{}
		p.pc = gRaise
	case gRaise:
		w.raise()
		p.pc = gWakeAll
	case gWakeAll:
		w.rouse(true)
		p.pc = gUnlane
	case gUnlane:
		w.lane = 0
		w.next(p)

	default:
		panic("waiting: no step at " + lplaces[p.pc])
	}
}

// kill is SIGKILL of the process of p.
func (w *lockWorld) kill(p *locker) {
	w.kills--
	w.hushed = true
	for i := range w.procs {
		q := &w.procs[i]
		if q.tag != p.tag || q.pc == lFinished && q != p {
			continue
		}
		if int(w.holder) == i+1 {
			w.holder, w.died = 0, true
		}
		*q = locker{pc: lKilled, tag: q.tag, found: q == p}
	}
}

// Steps is explore.Model's.
func (sc *Lock) Steps(s lockState, record bool, f func(explore.Step[lockState]) bool) {
	step := func(i int, certain bool, do func(w *lockWorld) string) bool {
		for _, choice := range []bool{false, true} {
			w := lockWorld{Lock: sc, lockState: s, self: i, choice: choice, record: record}
			what := do(&w)
			w.check()
			st := explore.Step[lockState]{To: w.lockState, Broken: w.broken, Why: w.why, Certain: certain}
			if record {
				st.Line = fmt.Sprintf("P%d     %-30s%s", i+1, what, w.log)
			}
			if !f(st) {
				return false
			}
			if !w.asked {
				break
			}
		}
		return true
	}
	for i := range s.procs {
		p := &s.procs[i]
		if p.pc == lKilled && p.found && !step(i, true, func(w *lockWorld) string {
			w.bytes[p.tag-1], w.procs[i].found = false, false
			return "the kernel drops its byte"
		}) {
			return
		}
		if p.pc <= lKilled {
			continue
		}
		if sc.can(&s, p) && !step(i, true, func(w *lockWorld) string {
			w.step(&w.procs[i])
			return lplaces[p.pc]
		}) {
			return
		}
		if s.kills > 0 && !step(i, false, func(w *lockWorld) string {
			w.kill(&w.procs[i])
			return "killed before " + lplaces[p.pc]
		}) {
			return
		}
	}
}

func (sc *Lock) can(s *lockState, p *locker) bool {
	switch p.pc {
	case gLane:
		return s.lane == 0 || s.procs[s.lane-1].pc == lKilled && !s.procs[s.lane-1].found
	case lAsleep, gAsleep:
		return sc.Ticks || p.pc == lAsleep && sc.Cancel
	}
	return true
}

// check is L3: somebody sleeps, nobody has the lock, and nobody is awake to take
// it or to wake another.
func (w *lockWorld) check() {
	asleep := false
	for i := range w.procs {
		switch p := &w.procs[i]; {
		case p.pc == lAsleep || p.pc == gAsleep:
			asleep = true
		case p.pc > lKilled && p.pc != cLoad && p.pc != eEnter && p.pc != lFast && p.pc != gLane:
			return
		}
	}
	if asleep && w.holder == 0 && !w.hushed && !w.died && !w.Ticks {
		w.violate(L3, "the lock is free, and a sleeper is not woken")
	}
}

// Check is explore.Model's; all is checked step by step.
func (sc *Lock) Check(lockState) (explore.Property, string) { return explore.Holds, "" }

// Finished reports whether all have come to their ends.
func (sc *Lock) Finished(s lockState) bool {
	for _, p := range s.procs {
		if p.pc > lKilled {
			return false
		}
	}
	return true
}
