package waiting

import (
	"fmt"

	"github.com/shmkit/shm/internal/model/explore"
)

// Bounds of the model of a stream. An exploration that needs more panics.
const (
	maxProcs = 3
	cells    = 2 // bytes of the block
	maxGens  = 4
	anything = 0xff // a byte that more than one writer has written
)

// A Stream is a block with its writers, those that truncate it, and those that
// follow it or wait for it. State is its memory.
type Stream struct {
	Programs [][]Call
	Kills    uint8 // processes killed, at most
	Full     bool  // Size is Cap at first, as of a new block, and not 0
	Ticks    bool  // sleepers look at times
	Low      uint8 // generations that the word of Size can tell apart

	Without  Guard // 0: the protocol as it stands
	Tolerate []explore.Property
	Limit    int
}

// A Call is what a process asks of the library. A process ends with Close.
type Call uint8

// The calls.
const (
	Attach Call = iota // as a possible writer; one whose program begins otherwise, and writes, is attached
	Write0             // one byte at offset 0
	Write1
	Truncate0
	Truncate1
	Truncate2
	Finish
	Follow // to its end
	Wait1  // until Size is 1
)

func (c Call) String() string {
	return [...]string{"Attach", "Write0", "Write1", "Truncate0", "Truncate1", "Truncate2", "Finish", "Follow", "Wait1"}[c]
}

func (c Call) writes() bool { return c < Follow }
func (c Call) offset() uint8 {
	switch c {
	case Write1, Truncate1:
		return 1
	case Truncate2:
		return 2
	}
	return 0
}

// A Guard is a part of the protocol that a mutant can go without.
type Guard uint32

// The guards, each of which a mutant shows to be needed.
const (
	ArmThenLook   Guard = 1 << iota // armed=1 before the look
	EventThenLook                   // event is read before the look
	RaiseThenLook                   // a writer looks at armed after its change
	EventCounts                     // event is raised before the wake
	WakesAll
	CloseWakes   // the Close of a possible writer wakes
	DropThenWake // and drops its byte before
	LooksAgain   // once it has found no writer, a follower looks at Size again

	SizeTellsFollower // the word of Size has the generation's low bits
	SizeTellsWriter
	GenerationTells // and the full generation is compared, too
	GenerationFirst // it changes before the word of Size
	LooksAfter      // a follower looks at the generation after the copy
	CutBit          // nothing grows before the bytes cut off are cleared
	CutLock         // one process at a time truncates
	LowerFirst      // Size is lowered before the bytes are cleared
	DirtyFirst      // how far to clear is written before Size is lowered
	DirtyStays      // and not overwritten before they are cleared
	FinishStops     // the finished bit stops writers

	streamGuards = 1<<iota - 1
)

// word is the word of Size: one atomic unit.
type word struct {
	len                  uint8
	begun, finished, cut bool
	low                  uint8 // of the generation
}

type state struct {
	size  word
	gen   uint8 // the word generation
	dirty uint8 // the word dirty: bytes from here on are clear, if size.cut
	armed bool
	cut   uint8 // who holds the lock of Truncate: 1 + index; see the model of the lock
	data  [cells]uint8
	procs [maxProcs]proc
	kills uint8

	// What the properties need to know.
	now      uint8                 // generations so far
	wrote    [maxGens][cells]uint8 // what the bytes of each should be
	length   [maxGens]uint8        // how long each has become
	ended    [maxGens]uint8        // 1 + the length that each was finished at
	stained  [cells]bool           // a write that failed or was killed has left a byte beyond Size
	hushed   bool                  // somebody was killed before it had woken others
	orphaned bool                  // a possible writer was killed
}

type proc struct {
	pc     pc
	then   pc // after a wake
	call   uint8
	writer bool  // has its byte in the writers' range
	fresh  bool  // the event read is still the event
	s      word  // as loaded, or as about to be swapped
	copied bool  // the byte is in place and not yet part of the block
	seen   bool  // of a mutant: armed before the change
	at     uint8 // generations there were when it loaded s, for the value that it writes
	i      uint8 // where it copies or clears
	marked bool  // has lowered Size, and not yet cleared

	// A follower.
	phase   uint8 // how thoroughly it has looked
	adopted bool
	gen     uint8 // the full generation followed, or read
	off     uint8
	buf     [cells]uint8
	fits    uint8 // generations that what was delivered can be of, a bit each
	alone   bool  // at some time of this Read there was no possible writer and nothing to read
}

type pc uint8

const (
	finished pc = iota
	killed

	wLoad // WriteAt
	wCopy
	wSwap
	wBelow
	wAfter

	tLock // Truncate
	tLoad
	tDirty
	tGen
	tMark
	tDirtyLate // mutant
	tRaise
	tClear
	tUncut
	tUnlock

	nLoad // Finish
	nSwap

	aLook // what all do that have changed something
	aSwap
	aEvent
	aWake

	fGen // Follow
	fSize
	fGenAgain
	fCopy
	fSizeAfter
	fGenAfter
	fEvent
	fArm
	fAsk
	fEventLate // mutant
	fSleep
	fAsleep

	xAttach
	xDrop // Close

	closed // no process ever stands here
)

var places = [...]string{
	wLoad: "WriteAt: load size", wCopy: "WriteAt: copy", wSwap: "WriteAt: swap size", wBelow: "WriteAt: copy below size",
	wAfter: "WriteAt: load size again",
	tLock:  "Truncate: lock", tLoad: "Truncate: load size", tDirty: "Truncate: dirty", tGen: "Truncate: generation",
	tMark: "Truncate: swap size", tDirtyLate: "Truncate (mutant): dirty", tRaise: "Truncate: raise size", tClear: "Truncate: clear",
	tUncut: "Truncate: swap size, clean", tUnlock: "Truncate: unlock",
	nLoad: "Finish: load size", nSwap: "Finish: swap size",
	aLook: "wake: load armed", aSwap: "wake: swap armed", aEvent: "wake: event++", aWake: "wake: futex wake",
	fGen: "Follow: load generation", fSize: "Follow: load size", fGenAgain: "Follow: load generation again", fCopy: "Follow: copy",
	fSizeAfter: "Follow: load size after", fGenAfter: "Follow: load generation after", fEvent: "wait: load event", fArm: "wait: armed=1",
	fAsk: "Follow: ask for writers", fEventLate: "wait (mutant): load event", fSleep: "wait: futex wait", fAsleep: "wait: tick",
	xAttach: "attach", xDrop: "Close: drop byte",
}

// A world is a state in the course of one step, and what the step showed.
type world struct {
	state
	*Stream
	self   int
	choice bool
	asked  bool
	broken explore.Property
	why    string
	log    []byte
	record bool
}

func (w *world) violate(p explore.Property, why string) {
	if w.broken == explore.Holds {
		w.broken, w.why = p, why
	}
}

func (w *world) say(format string, a ...any) {
	if w.record {
		w.log = fmt.Appendf(append(w.log, ' '), format, a...)
	}
}

func (sc *Stream) lacks(g Guard) bool { return sc.Without&g != 0 }

// same compares words as a compare-and-swap does. A mutant lacks the bits of the
// generation.
func (w *world) same(a, b word) bool {
	if w.lacks(SizeTellsWriter) {
		a.low, b.low = 0, 0
	}
	return a == b
}

// current is the full generation of the block of which s and then gen were read.
func (w *world) current(s word, gen uint8) uint8 {
	if gen%w.Low == s.low || w.lacks(SizeTellsFollower) {
		return gen
	}
	return gen - 1 // Truncate has announced the next one
}

// unchanged reports whether what a follower has read since, first s and then
// gen, is of the generation that it follows.
func (w *world) unchanged(p *proc, s word, gen uint8) bool {
	switch {
	case w.lacks(SizeTellsFollower):
		return gen == p.gen
	case w.lacks(GenerationTells):
		return s.low == p.gen%w.Low
	}
	return s.low == p.gen%w.Low && gen-p.gen <= 1
}

// Start is the state before anybody's first step.
func (sc *Stream) Start() state {
	w := world{Stream: sc, state: state{kills: sc.Kills}}
	if sc.Full {
		w.size.len = cells
		w.length[0] = cells
	}
	for i, calls := range sc.Programs {
		w.self = i
		for _, c := range calls {
			w.procs[i].writer = w.procs[i].writer || c.writes()
		}
		w.procs[i].writer = w.procs[i].writer && calls[0] != Attach
		w.begin(&w.procs[i])
	}
	return w.state
}

func (w *world) program() []Call   { return w.Programs[w.self] }
func (w *world) what(p *proc) Call { return w.program()[p.call] }

// next begins the next call of p, or ends it.
func (w *world) next(p *proc) {
	*p = proc{call: p.call + 1, writer: p.writer}
	w.begin(p)
}

func (w *world) begin(p *proc) {
	if int(p.call) == len(w.program()) {
		p.call = 0
		switch {
		case !p.writer:
			*p = proc{}
		case w.lacks(DropThenWake):
			w.wake(p, xDrop)
		default:
			p.pc = xDrop
		}
		return
	}
	switch w.what(p) {
	case Attach:
		p.pc = xAttach
	case Write0, Write1:
		p.pc = wLoad
	case Truncate0, Truncate1, Truncate2:
		p.pc = tLock
	case Finish:
		p.pc = nLoad
	case Follow:
		p.pc, p.fits = fGen, 1<<w.now
	case Wait1:
		p.pc = fSize
	}
}

// wake has p wake all that wait, and then go on.
func (w *world) wake(p *proc, then pc) {
	p.pc, p.then = aLook, then
	if w.lacks(RaiseThenLook) && !p.seen {
		w.woken(p)
	}
}

func (w *world) woken(p *proc) {
	if p.pc, p.then = p.then, 0; p.pc == closed {
		w.next(p)
	}
}

// writers reports whether a possible writer is attached.
func (s *state) writers() bool {
	for i := range s.procs {
		if s.procs[i].writer {
			return true
		}
	}
	return false
}
