package waiting

import (
	"flag"
	"fmt"
	"strings"
	"testing"

	"github.com/shmkit/shm/internal/model/explore"
	"github.com/shmkit/shm/internal/raw"
)

var (
	traces = flag.Bool("traces", false, "print the way to each violation that is expected")
	large  = flag.Bool("large", false, "explore the scenarios that take minutes, too")
)

// A scenario is one of the three models with what a test expects of it.
type scenario struct {
	name    string // of a mutant
	about   string
	explore func() explore.Result
	whole   func() explore.Result // of a mutant: with all guards
	limited bool
	want    explore.Property
	guards  [3]uint32 // that a mutant lacks, of each model
}

func (sc Stream) String() string {
	var b strings.Builder
	for i, calls := range sc.Programs {
		b.WriteString(pick(i > 0, "| ", ""))
		for _, c := range calls {
			fmt.Fprintf(&b, "%v ", c)
		}
	}
	b.WriteString(extras(sc.Kills, sc.Ticks) + pick(sc.Full, "full ", ""))
	if sc.Low < maxGens {
		fmt.Fprintf(&b, "modulo %d", sc.Low)
	}
	return strings.TrimSpace(b.String())
}

func (sc Lock) String() string {
	var b strings.Builder
	for i, calls := range sc.Programs {
		b.WriteString(pick(i > 0, "| ", ""))
		for _, c := range calls {
			fmt.Fprintf(&b, "%v ", c)
		}
	}
	return b.String() + extras(sc.Kills, sc.Ticks) + pick(sc.Cancel, "+cancel ", "") + pick(sc.Shared, "first two of one Segment", "")
}

func (sc Table) String() string {
	return fmt.Sprintf("%d waiters of %d rounds, %d wakers of %d changes ", sc.Waiters, sc.Rounds, sc.Wakers, sc.Changes) + extras(sc.Kills, sc.Ticks)
}

func extras(kills uint8, ticks bool) string {
	s := pick(ticks, "+ticks ", "")
	if kills > 0 {
		s = fmt.Sprintf("+%d kills ", kills) + s
	}
	return s
}

func (sc Stream) scenario() scenario {
	return scenario{about: sc.String(), limited: sc.Limit > 0, explore: func() explore.Result {
		return explore.Explore[state](&sc, explore.Search{Limit: sc.Limit, Tolerate: sc.Tolerate})
	}}
}

func (sc Lock) scenario() scenario {
	return scenario{about: sc.String(), limited: sc.Limit > 0, explore: func() explore.Result {
		return explore.Explore[lockState](&sc, explore.Search{Limit: sc.Limit})
	}}
}

func (sc Table) scenario() scenario {
	return scenario{about: sc.String(), limited: sc.Limit > 0, explore: func() explore.Result {
		return explore.Explore[tableState](&sc, explore.Search{Limit: sc.Limit})
	}}
}

// Programs, and models of them.
type calls = []Call

func of(programs ...[]Call) Stream { return Stream{Programs: programs, Low: maxGens} }

func (sc Stream) killing(n uint8) Stream   { sc.Kills, sc.Ticks = n, true; return sc }
func (sc Stream) full() Stream             { sc.Full = true; return sc }
func (sc Stream) low(n uint8) Stream       { sc.Low = n; return sc }
func (sc Stream) atMost(states int) Stream { sc.Limit = states; return sc }
func (sc Stream) tolerate(p ...explore.Property) Stream {
	sc.Tolerate = p
	return sc
}

func (sc Stream) without(name string, g Guard, want explore.Property) scenario {
	s := sc
	s.Without = g
	return mutant(name, s.scenario(), sc.scenario(), want, [3]uint32{uint32(g)})
}

var (
	lck      = []LockCall{Acquire, Release}
	lckTwice = []LockCall{Acquire, Release, Acquire, Release}
	try      = []LockCall{Try, Release}
	lckClose = []LockCall{Acquire, Leave}
	opnLck   = []LockCall{Enter, Acquire, Release}
	gst      = []LockCall{GuestAcquire, GuestRelease}
	gstTwice = []LockCall{GuestAcquire, GuestRelease, GuestAcquire, GuestRelease}
)

func lockOf(programs ...[]LockCall) Lock { return Lock{Programs: programs} }

func (sc Lock) killing(n uint8) Lock   { sc.Kills, sc.Ticks = n, true; return sc }
func (sc Lock) cancel() Lock           { sc.Cancel = true; return sc }
func (sc Lock) shared() Lock           { sc.Shared = true; return sc }
func (sc Lock) atMost(states int) Lock { sc.Limit = states; return sc }

func (sc Lock) without(name string, g LockGuard, want explore.Property) scenario {
	s := sc
	s.Without = g
	return mutant(name, s.scenario(), sc.scenario(), want, [3]uint32{1: uint32(g)})
}

func tableOf(waiters int, rounds uint8, wakers int, changes uint8) Table {
	return Table{Waiters: waiters, Rounds: rounds, Wakers: wakers, Changes: changes}
}

func (sc Table) killing(n uint8) Table { sc.Kills, sc.Ticks = n, true; return sc }

func (sc Table) without(name string, g TableGuard, want explore.Property) scenario {
	s := sc
	s.Without = g
	return mutant(name, s.scenario(), sc.scenario(), want, [3]uint32{2: uint32(g)})
}

func mutant(name string, s, whole scenario, want explore.Property, guards [3]uint32) scenario {
	s.name, s.whole, s.want, s.guards = name, whole.explore, want, guards
	return s
}

// small and big are explored for the protocol as it stands; the big ones take
// seconds each, and huge ones minutes.
var small = []scenario{
	of(calls{Write0, Write1, Finish}, calls{Follow}).scenario(),
	of(calls{Write0, Finish}, calls{Follow}, calls{Follow}).scenario(),
	of(calls{Write0, Truncate0, Write0, Finish}, calls{Follow}).scenario(),
	of(calls{Write0, Truncate0, Write0, Finish}, calls{Follow}).killing(2).scenario(),
	of(calls{Write0, Truncate0, Write0, Truncate1, Finish, Truncate0, Write0}, calls{Follow}).killing(1).scenario(),
	of(calls{Write0, Truncate0, Write0, Truncate0, Write0, Truncate0, Write0}, calls{Follow}).low(2).scenario(),
	of(calls{Truncate0, Write0, Finish}, calls{Follow}, calls{Wait1}).full().scenario(),
	of(calls{Write1, Finish}, calls{Follow}).full().scenario(),
	of(calls{Write0, Write1}, calls{Truncate0}, calls{Follow}).scenario(),
	of(calls{Write0, Write1}, calls{Finish, Truncate1}, calls{Truncate0}).killing(1).scenario(),
	of(calls{Write0}, calls{Finish, Truncate1, Truncate2}, calls{Follow}).scenario(),
	of(calls{Write0, Write1, Truncate1}, calls{Truncate0}, calls{Write1}).killing(1).scenario(),
	of(calls{Write1}, calls{Truncate1, Truncate0, Truncate1}, calls{Write0}).killing(1).scenario(),
	of(calls{Write0}, calls{Attach, Write1}, calls{Follow}).scenario(),
	of(calls{Write0}, calls{Wait1}, calls{Wait1}).scenario(),
	of(calls{Write0}, calls{Write1}, calls{Wait1}).scenario(),
	of(calls{Write0, Truncate0, Write0}, calls{Wait1}, calls{Wait1}).killing(1).scenario(),

	lockOf(lck, lck, lck).cancel().scenario(),
	lockOf(lckTwice, lck, try).killing(2).scenario(),
	lockOf(lckTwice, lckTwice, lck).scenario(),
	lockOf(lckTwice, lck, lck).shared().killing(1).scenario(),
	lockOf(lckClose, lckTwice, lck).scenario(),
	lockOf(lckClose, opnLck, lckTwice).killing(2).scenario(),
	lockOf(gst, lck, lck).scenario(),
	lockOf(gst, lckClose, lck).scenario(),
	lockOf(gst, lckTwice, try).killing(2).scenario(),
	lockOf(gstTwice, gst, lckTwice).killing(2).scenario(),
	lockOf(gst, lckClose, opnLck).killing(1).scenario(),

	tableOf(2, 1, 1, 1).scenario(),
	tableOf(1, 2, 2, 1).scenario(),
	tableOf(2, 2, 1, 2).killing(2).scenario(),
}

var big = []scenario{
	of(calls{Write0, Write1, Finish}, calls{Follow}, calls{Follow}).scenario(),
	of(calls{Write0, Write1}, calls{Truncate0}, calls{Follow}).killing(1).scenario(),
	of(calls{Write0}, calls{Attach, Write1}, calls{Follow}).killing(1).scenario(),
	lockOf(lckTwice, lckTwice, lckTwice).killing(1).scenario(),
	lockOf(gstTwice, lckTwice, lck).scenario(),
}

var huge = []scenario{
	of(calls{Write0, Write1, Finish}, calls{Truncate0, Truncate1}, calls{Follow}).killing(2).atMost(15e6).scenario(),
	of(calls{Write0, Truncate0, Write0, Write1, Finish}, calls{Follow}, calls{Follow}).killing(1).atMost(15e6).scenario(),
	of(calls{Write0, Truncate0, Write0}, calls{Truncate1, Truncate0, Finish}, calls{Follow}).killing(1).atMost(15e6).scenario(),
	of(calls{Write0, Write1}, calls{Attach, Write1, Truncate0, Write0}, calls{Follow}).killing(2).atMost(15e6).scenario(),
	lockOf(lckTwice, lckTwice, lckTwice).killing(2).cancel().atMost(15e6).scenario(),
	lockOf(gstTwice, lckTwice, lckTwice).killing(2).atMost(15e6).scenario(),
	lockOf(gstTwice, lckClose, opnLck).killing(2).atMost(15e6).scenario(),
}

// mutants lists what the protocol cannot do without, each with a scenario that
// shows it, and the property that a shortest trace violates.
var mutants = []scenario{
	of(calls{Write0}, calls{Wait1}).without("armed after looking", ArmThenLook, W1),
	of(calls{Write0}, calls{Wait1}).without("event read after looking", EventThenLook, W1),
	of(calls{Write0}, calls{Wait1}).without("armed looked at before raising", RaiseThenLook, W1),
	of(calls{Write0}, calls{Wait1}).without("no event++", EventCounts, W1),
	of(calls{Write0}, calls{Wait1}, calls{Wait1}).without("waking one", WakesAll, W1),
	of(calls{Write0}, calls{Follow}).without("Close wakes nobody", CloseWakes, W1),
	of(calls{Write0}, calls{Follow}).without("Close wakes before it drops its byte", DropThenWake, W1),
	of(calls{Write0, Write1}, calls{Follow}).without("no look at Size once there is no writer", LooksAgain, W7),
	of(calls{Write0, Truncate0, Write0, Finish}, calls{Follow}).tolerate(W6).
		without("generation apart from Size: follower", SizeTellsFollower, W5),
	of(calls{Write0}, calls{Truncate1, Truncate0}).without("generation apart from Size: writer", SizeTellsWriter, W4),
	of(calls{Write0, Truncate0, Truncate1, Truncate0, Write0}, calls{Follow}).low(2).
		without("no full generation", GenerationTells, W5),
	of(calls{Write0, Truncate0, Write0, Truncate0, Write0}, calls{Follow}).low(2).tolerate(W1, W6).
		without("generation after Size", GenerationFirst, W5),
	of(calls{Write0, Truncate0, Write0, Finish}, calls{Follow}).without("no look after the copy", LooksAfter, W5),
	of(calls{Write0, Write0}, calls{Truncate0}).without("no cut bit", CutBit, W4),
	of(calls{Write0, Truncate0, Write0}, calls{Truncate0}).without("two Truncates at once", CutLock, W4),
	of(calls{Write0, Finish}, calls{Truncate0}).without("bytes cleared before Size is lowered", LowerFirst, W4),
	of(calls{Write0, Truncate0}, calls{Write1}).killing(1).without("dirty after Size", DirtyFirst, W4),
	of(calls{Write0, Write1, Truncate1}, calls{Truncate0}).killing(1).without("dirty overwritten", DirtyStays, W4),
	of(calls{Write0}, calls{Finish}).without("Finish stops nobody", FinishStops, W3),

	lockOf(lck, lck).without("wake read after the mark", WakeThenMark, L3),
	lockOf(lck, lck).without("sleep without a mark", MarkThenSleep, L3),
	lockOf(lck, lck).without("no wake++", WakeCounts, L3),
	lockOf(lck, lck, lck).without("a sleeper takes the lock unmarked", SleeperMarks, L3),
	lockOf(lck, lck, lck).cancel().without("given up after a wake", PassesOn, L3),
	lockOf(lck, lck, lck).killing(1).without("any tag is swapped for a dead one", SwapsTag, L1),
	lockOf(lck, lck).shared().without("the own tag is dead", OwnIsAlive, L1),
	lockOf(lck, lck).killing(1).without("no tag is dead", AsksKernel, L4),
	lockOf(lck, opnLck).killing(1).without("a dead holder's tag is drawn again", RedrawsTag, L4),
	lockOf(lckClose, lck).without("Close leaves its tag", CloseTells, L4),
	lockOf(gst, lck).without("guest not looked at", GuestLooked, L1),
	lockOf(gstTwice, lck, lck).killing(1).without("held not looked at again", HeldAgain, L1),
	lockOf(gst, lck).without("a guest looks before it shows", GuestThenHeld, L1),
	lockOf(gst, lck, lck).killing(1).without("step back to free", GuestRestores, L2),
	lockOf(gst, gst).without("two guests at once", GuestLane, L1),
	lockOf(gst, lck).without("a guest is not woken", GuestWoken, L3),
	lockOf(gst, gst).killing(1).without("a dead guest is forgotten", GuestRemembers, L2),

	tableOf(1, 1, 1, 1).without("slot claimed after the last look", ClaimThenCompare, T1),
	tableOf(2, 1, 1, 1).killing(1).without("the word says that a slot is free", SystemClaims, T3),
	tableOf(2, 1, 1, 1).without("an event that exists is taken", CreatesAlone, T2),
	tableOf(2, 2, 1, 2).without("word cleared after the event is closed", ClearThenClose, T1),
	tableOf(2, 2, 1, 2).killing(1).without("wakers clear words", WakersLeaveWords, T1),
	tableOf(1, 1, 1, 1).without("PulseEvent", EventsStay, T1),
}

// TestProtocol explores the protocols as they stand.
func TestProtocol(t *testing.T) {
	scs := small[:len(small):len(small)]
	switch {
	case raw.Race: // which has little to find in a search
		scs = scs[len(scs)-3:]
	case !testing.Short():
		scs = append(scs, big...)
	}
	if *large {
		scs = append(scs, huge...)
	}
	table := explore.NewTable("scenario\tstates\tcomplete\tverdict\ttime")
	for i, r := range explore.Each(len(scs), func(i int) explore.Result { return scs[i].explore() }) {
		table.Row(scs[i].about, r.States, r.Complete, r.Broken, r.Took.Round(1e6))
		if r.Broken != explore.Holds {
			t.Errorf("%v: %v\n%s", scs[i].about, r.Broken, r.Trace)
		}
		if !r.Complete && !scs[i].limited {
			t.Errorf("%v: not complete", scs[i].about)
		}
	}
	t.Log(table)
}

// TestMutants takes away one guard at a time, and then none: what goes wrong in
// a mutant is the mutant's fault.
func TestMutants(t *testing.T) {
	var all [3]uint32
	for _, m := range mutants {
		for i, g := range m.guards {
			all[i] |= g
		}
	}
	if want := [3]uint32{streamGuards, lockGuards, uint32(tableGuards)}; all != want {
		t.Errorf("guards %b have mutants, want %b", all, want)
	}
	table := explore.NewTable("mutant\tscenario\tviolates\tin steps")
	for i, r := range explore.Each(len(mutants), func(i int) explore.Result { return mutants[i].explore() }) {
		m := mutants[i]
		table.Row(m.name, m.about, r.Broken, r.Length())
		if r.Broken != m.want {
			t.Errorf("%s: %v: %v, want %v\n%s", m.name, m.about, r.Broken, m.want, r.Trace)
		}
		if *traces {
			t.Logf("%s: %v\n%s", m.name, r.Broken, r.Trace)
		}
	}
	t.Log(table)
	for i, r := range explore.Each(len(mutants), func(i int) explore.Result { return mutants[i].whole() }) {
		if r.Broken != explore.Holds {
			t.Errorf("%s, unmutated: %v\n%s", mutants[i].about, r.Broken, r.Trace)
		}
	}
}
