package holders

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

// Programs, and scenarios of them.
var (
	ooc      = []Call{OpenOrCreate, Close}
	oocTwice = []Call{OpenOrCreate, Close, OpenOrCreate, Close}
	oocUnl   = []Call{OpenOrCreate, Unlink, Close}
	oocKeep  = []Call{OpenOrCreate, Keep, Close}
	oocPers  = []Call{OpenOrCreatePersistent, Close}
	oocMove  = []Call{OpenOrCreate, Aside, Back, Close}
	oocAside = []Call{OpenOrCreate, Aside, Close}
	oocRefs  = []Call{OpenOrCreate, Refs, Close}
	crt      = []Call{Create, Close}
	crtPers  = []Call{CreatePersistent, Close}
	opn      = []Call{Open, Close}
	ro       = []Call{OpenReadOnly, Close}
	rd       = []Call{OpenReader, Close}
	hnd      = []Call{OpenHanded, Close}
	rdTwice  = []Call{OpenReader, Close, OpenReader, Close}
	reap     = []Call{Reap}
	unl      = []Call{Unlink}
)

func of(programs ...[]Call) Scenario { return Scenario{Programs: programs} }

func (sc Scenario) killing(n uint8) Scenario  { sc.Kills = n; return sc }
func (sc Scenario) haunted(n uint8) Scenario  { sc.Ghosts = n; return sc }
func (sc Scenario) removing(n uint8) Scenario { sc.Removals = n; return sc }
func (sc Scenario) darwin() Scenario          { sc.Darwin = true; return sc }
func (sc Scenario) daemon() Scenario          { sc.Daemon = true; return sc }
func (sc Scenario) refuse() Scenario          { sc.Refuse = true; return sc }
func (sc Scenario) impatient() Scenario       { sc.Impatient = true; return sc }

func (sc Scenario) without(g Guard) Scenario        { sc.Without = g; return sc }
func (sc Scenario) tolerate(p ...property) Scenario { sc.Tolerate = p; return sc }
func (sc Scenario) atMost(states int) Scenario      { sc.Limit = states; return sc }

func (sc Scenario) String() string {
	var b strings.Builder
	for i, calls := range sc.Programs {
		if i > 0 {
			b.WriteString("| ")
		}
		for _, c := range calls {
			if c != Close {
				fmt.Fprintf(&b, "%v ", c)
			}
		}
	}
	for _, n := range []struct {
		n    uint8
		what string
	}{{sc.Kills, "kills"}, {sc.Ghosts, "ghosts"}, {sc.Removals, "rm"}} {
		if n.n > 0 {
			fmt.Fprintf(&b, "+%d %s ", n.n, n.what)
		}
	}
	b.WriteString(pick(sc.Darwin, "on darwin ", ""))
	b.WriteString(pick(sc.Daemon, "that stay ", ""))
	b.WriteString(pick(sc.Refuse, "+refuse ", "") + pick(sc.Impatient, "+impatient ", ""))
	return strings.TrimSpace(b.String())
}

// small and big are explored for the protocol as it stands; the big ones take
// seconds each, and huge ones minutes.
var small = []Scenario{
	of(ooc, ooc, ooc),
	of(ooc, ooc, ooc).killing(1),
	of(ooc, ooc, opn).killing(2).haunted(1).refuse(),
	of(ooc, opn, reap).killing(2).haunted(2).impatient(),
	of(ooc, crt, reap).killing(2).haunted(1),
	of(crt, crt, reap).killing(2),
	of(ooc, ooc).killing(2).haunted(2).daemon().refuse().impatient(),
	of(ooc, crt, opn).killing(1).haunted(1).daemon(),
	of(oocTwice, oocTwice).killing(2).haunted(1),

	of(ooc, ooc, unl).killing(2),
	of(ooc, oocUnl, opn).killing(1),
	of(oocTwice, unl, unl).killing(1),

	of(ooc, ro, opn).killing(2).haunted(1).refuse(),
	of(ooc, rd, opn).killing(2).haunted(1).refuse(),
	of(ooc, rdTwice, rd).killing(2),
	of(ooc, rd, reap).killing(2),
	of(ooc, hnd, opn).killing(2).haunted(1),
	of(ooc, hnd, unl).killing(1),
	of(oocKeep, hnd, hnd).killing(1),
	of(ooc, ro, unl).killing(2),

	of(oocPers, oocPers, opn).killing(1).haunted(1),
	of(oocPers, oocPers, rd).killing(1).refuse().impatient(),
	of(oocPers, opn, unl).killing(2),
	of(crtPers, ooc, reap).killing(2),
	of(oocKeep, ooc, reap).killing(1),
	of(oocKeep, opn, opn).killing(2),
	of(oocKeep, oocKeep, unl),

	of(oocMove, ooc, opn).killing(1),
	of(oocAside, oocAside, opn).killing(1),
	of(oocMove, oocRefs, opn),
	of(oocRefs, ooc, opn).killing(1),
	of(oocRefs, ro, rd).killing(1),

	of(ooc, ooc, opn).killing(1).removing(1).tolerate(R1),
	of(ooc, ooc, unl).removing(2).tolerate(R1),
	of(ooc, rd, crt).killing(1).removing(1).tolerate(R1),
}

// darwinSmall has no ghosts, since no locks are in descriptions, and no reader that
// may not write, which holds nothing.
var darwinSmall = []Scenario{
	of(ooc, ooc, opn).darwin().killing(2).refuse().impatient(),
	of(ooc, crt, opn).darwin().killing(2),
	of(crt, crt, opn).darwin().killing(2),
	of(oocTwice, oocTwice).darwin().killing(2),

	of(ooc, ooc, unl).darwin().killing(2),
	of(crt, oocUnl, opn).darwin().killing(1),
	of(oocTwice, crt, unl).darwin().killing(1),
	of(oocTwice, unl, unl).darwin().killing(2),

	of(oocPers, oocPers, opn).darwin().killing(2),
	of(oocPers, crtPers, unl).darwin().killing(2),
	of(crtPers, ooc, opn).darwin().killing(2),

	of(ooc, crt).darwin().killing(2).removing(2).tolerate(R1),
	of(ooc, crt, opn).darwin().killing(1).removing(1).tolerate(R1),
	of(ooc, ooc, unl).darwin().killing(1).removing(2).tolerate(R1),
}

var big = []Scenario{
	of(ooc, ooc, ooc).darwin().killing(2),
	of(ooc, ooc, ooc).killing(2).haunted(1).refuse(),
	of(ooc, ooc, ooc).killing(1).haunted(1).daemon(),
	of(oocTwice, oocTwice, unl),
	of(oocKeep, oocKeep, ooc).killing(1),
	of(oocMove, oocMove, opn),
}

var huge = []Scenario{
	of(oocTwice, oocTwice, opn).darwin().killing(1),
	of(crt, crt, crt).darwin().killing(2),
	of(ooc, ooc, oocUnl).darwin().killing(2),
	of(ooc, ooc, crt).darwin().killing(1).removing(1).tolerate(R1),
	of(ooc, ooc, ooc).killing(2).haunted(2).refuse().impatient().atMost(15e6),
	of(ooc, ooc, ooc).killing(2).haunted(2).daemon().atMost(15e6),
	of(ooc, ooc, ooc).killing(2).removing(1).tolerate(R1).atMost(15e6),
	of(oocTwice, oocTwice, opn).killing(2).atMost(15e6),
	of(oocTwice, oocTwice, ooc).killing(1).atMost(15e6),
	of(oocTwice, oocTwice, reap).killing(2).haunted(1).atMost(15e6),
	of(oocMove, oocMove, ooc).killing(2).atMost(15e6),
	of(oocTwice, oocTwice, unl).killing(2).removing(1).tolerate(R1).atMost(15e6),
}

// mutants lists what the protocol cannot do without, each with a scenario that
// shows it, and the property that a shortest trace violates.
var mutants = []struct {
	name string
	sc   Scenario
	want property
}{
	{"Open: own byte without GETLK", of(ooc, opn).killing(1).without(OpenAsks), S5},
	{"Open: everything locked means alive", of(ooc, opn, reap).killing(2).without(OpenYields), S9},
	{"Open: no identity check", of(ooc, ooc, unl).without(OpenChecksName), S3},
	{"Open: no state check", of(ooc, hnd).without(OpenChecksState), S3},
	{"Open: locks of ended processes are alive", of(ooc, opn).killing(1).haunted(1).without(OpenWaits), S9},
	{"Open: locks of ended processes are dead", of(ooc, opn).killing(1).haunted(1).daemon().without(GhostsLive), S1},
	{"Open: gives up without the duty of Close", of(ooc, opn).refuse().without(AbortDetaches), S4},
	{"Create: own byte after linkat", of(ooc, ooc).without(CreateLocksFirst), S1},
	{"reap: everything locked means alive", of(ooc, crt).killing(1).without(ReapYields), S10},
	{"reap: locks of ended processes are alive", of(ooc, crt).killing(1).haunted(1).without(ReapWaits), S10},
	{"Close: GETLK proves that nobody is there", of(ooc, ooc).without(LockProves), S3},
	{"Close: asks before it drops", of(ooc, ooc).without(DropFirst), S4},
	{"Close: gives up when it cannot lock", of(ooc, unl).killing(1).without(AskAgain), S4},
	{"everything without the unlinkers' byte", of(oocTwice, unl).without(WholeHasU), S1},
	{"Close: Keep read before everything is locked", of(oocKeep, ooc).without(KeepInside), S1},
	{"Aside: unlocks before it locks", of(oocMove, ooc).without(LockThenLet), S1},
	{"remove: no identity check, one Unlink", of(ooc, ooc, unl).without(RemoveChecksName), S1},
	{"remove: marked dead before the unlink", of(ooc, opn, crt).killing(2).haunted(1).daemon().without(MarkLast), S6},
	{"darwin: Open takes what is not ready", of(ooc, opn).darwin().without(OpenChecksReady), S7},
	{"darwin: Create: no mutex", of(ooc, ooc).darwin().without(CreateTakesM), S1},
	{"darwin: Create: no identity check", of(ooc, ooc).darwin().without(CreateChecksName), S3},
	{"darwin: Create: ready before the header", of(ooc, opn).darwin().without(CreateReadyLast), S7},
	{"darwin: Create: slot after the mutex", of(ooc, ooc).darwin().without(CreateLocksFirst), S3},
	{"darwin: a newborn without size is just unlinked", of(ooc, ooc, ooc).darwin().without(AbortElects), S1},
	{"darwin: a newborn is unlinked without the mutex", of(ooc, ooc).darwin().without(AbortTakesM), S1},
	{"darwin: a newborn is not looked at again with the mutex", of(ooc, ooc).darwin().without(AbortChecksReady), S1},
	{"darwin: a newborn is unlinked without identity check", of(ooc, ooc, ooc).darwin().without(AbortChecksName), S1},
	{"darwin: no identity check before unlinking, one Unlink", of(ooc, ooc, unl).darwin().without(RemoveChecksName), S1},
	{"darwin: Open: no identity check", of(ooc, ooc, unl).darwin().without(OpenChecksName), S3},
	{"darwin: Close drops its slot after it asks", of(ooc, ooc).darwin().without(DropFirst), S4},
	{"darwin: an Open that fails does not detach", of(ooc, opn).darwin().refuse().without(AbortDetaches), S4},
	{"darwin: Unlink: no mutex", of(oocTwice, unl, unl).darwin().without(UnlinkLocks), S1},
	{"darwin: Unlink: no identity check", of(oocTwice, unl, unl).darwin().without(UnlinkChecksName), S1},
	{"darwin: the locks of ended processes count", of(ooc, ooc).darwin().killing(1).without(DeathDropsLocks), S6},
	{"Unlink: no lock", of(oocTwice, unl, unl).without(UnlinkLocks), S1},
	{"Unlink: no identity check", of(oocTwice, unl, unl).without(UnlinkChecksName), S1},
	{"no F_UNLCK before close", of(oocKeep, crt, opn).haunted(1).without(ExplicitUnlock), S6},
}

func exploreAll(scs []Scenario) []explore.Result {
	return explore.Each(len(scs), func(i int) explore.Result {
		return explore.Explore[state](&scs[i], explore.Search{Limit: scs[i].Limit, Tolerate: scs[i].Tolerate})
	})
}

// TestProtocol explores the protocol as it stands.
func TestProtocol(t *testing.T) {
	scs := append(small[:len(small):len(small)], darwinSmall...)
	switch {
	case raw.Race: // which has little to find in a search
		scs = scs[len(scs)-3:]
	case !testing.Short():
		scs = append(scs, big...)
	}
	if *large {
		scs = append(scs, huge...)
	}
	table := explore.NewTable("scenario\tstates\tcomplete\tverdict\tset aside\ttime")
	for i, r := range exploreAll(scs) {
		aside := ""
		for _, p := range scs[i].Tolerate {
			aside += fmt.Sprintf("%v %d times", p, r.Tolerated[p])
			if r.Tolerated[p] == 0 {
				t.Errorf("%v: does not find %v", scs[i], p)
			}
		}
		table.Row(scs[i], r.States, r.Complete, r.Broken, aside, r.Took.Round(1e6))
		if r.Broken != explore.Holds {
			t.Errorf("%v: %v\n%s", scs[i], r.Broken, r.Trace)
		}
		if !r.Complete && scs[i].Limit == 0 {
			t.Errorf("%v: not complete", scs[i])
		}
	}
	t.Log(table)
}

// TestMutants takes away one guard at a time.
func TestMutants(t *testing.T) {
	var scs []Scenario
	var all Guard
	for _, m := range mutants {
		scs = append(scs, m.sc)
		all |= m.sc.Without
	}
	if want := Guard(allGuards) &^ RemoveMarks; all != want {
		t.Errorf("guards %b have mutants, want %b", all, want)
	}
	table := explore.NewTable("mutant\tscenario\tviolates\tin steps")
	for i, r := range exploreAll(scs) {
		table.Row(mutants[i].name, scs[i], r.Broken, r.Length())
		if r.Broken != mutants[i].want {
			t.Errorf("%s: %v: %v, want %v\n%s", mutants[i].name, scs[i], r.Broken, mutants[i].want, r.Trace)
		}
		if *traces {
			t.Logf("%s: %v\n%s", mutants[i].name, r.Broken, r.Trace)
		}
	}
	t.Log(table)
}

// TestUnmutated explores the scenarios of the mutants with all guards in place:
// what goes wrong in a mutant is the mutant's fault.
func TestUnmutated(t *testing.T) {
	var scs []Scenario
	for _, m := range mutants {
		scs = append(scs, m.sc.without(0))
	}
	for i, r := range exploreAll(scs) {
		if r.Broken != explore.Holds {
			t.Errorf("%v: %v\n%s", scs[i], r.Broken, r.Trace)
		}
	}
}

// TestMarkIsNotNeeded shows that the identity check alone would do: the dead
// mark is for those who look at a block, not for the lifecycle.
func TestMarkIsNotNeeded(t *testing.T) {
	if raw.Race {
		t.Skip("little to find for the race detector")
	}
	var scs []Scenario
	for _, sc := range small {
		scs = append(scs, sc.without(RemoveMarks|OpenChecksState))
	}
	for i, r := range exploreAll(scs) {
		if r.Broken != explore.Holds {
			t.Errorf("%v: %v\n%s", scs[i], r.Broken, r.Trace)
		}
	}
}
