package model

import (
	"flag"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"

	"github.com/shmkit/shm/internal/raw"
)

var traces = flag.Bool("traces", false, "print the way to each violation that is expected")

// Programs, and scenarios of them.
var (
	ooc      = []Call{OpenOrCreate, Close}
	oocTwice = []Call{OpenOrCreate, Close, OpenOrCreate, Close}
	oocUnl   = []Call{OpenOrCreate, Unlink, Close}
	oocPers  = []Call{OpenOrCreatePersistent, Close}
	crt      = []Call{Create, Close}
	crtPers  = []Call{CreatePersistent, Close}
	opn      = []Call{Open, Close}
	ro       = []Call{OpenReadOnly, Close}
	roTwice  = []Call{OpenReadOnly, Close, OpenReadOnly, Close}
	reap     = []Call{Reap}
	unl      = []Call{Unlink}
)

func of(programs ...[]Call) Scenario { return Scenario{Programs: programs} }

func (sc Scenario) killing(n uint8) Scenario  { sc.Kills = n; return sc }
func (sc Scenario) haunted(n uint8) Scenario  { sc.Ghosts = n; return sc }
func (sc Scenario) removing(n uint8) Scenario { sc.Removals = n; return sc }
func (sc Scenario) darwin() Scenario          { sc.Darwin = true; return sc }
func (sc Scenario) refuse() Scenario          { sc.Refuse = true; return sc }
func (sc Scenario) impatient() Scenario       { sc.Impatient = true; return sc }

func (sc Scenario) without(g Guard) Scenario        { sc.Without = g; return sc }
func (sc Scenario) tolerate(p ...Property) Scenario { sc.Tolerate = p; return sc }

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
	b.WriteString(pick(sc.Refuse, "+refuse ", "") + pick(sc.Impatient, "+impatient ", ""))
	return strings.TrimSpace(b.String())
}

// small and big are explored for the protocol as it stands; big ones take
// seconds each.
var small = []Scenario{
	of(ooc, ooc, ooc),
	of(ooc, ooc, ooc).killing(1),
	of(ooc, ooc, ooc).killing(2),
	of(ooc, ooc, ooc).killing(2).haunted(2).refuse().impatient(),
	of(ooc, ooc, opn).killing(2),
	of(ooc, opn, reap).killing(2),
	of(ooc, crt, reap).killing(2),
	of(crt, crt, reap).killing(2),
	of(oocTwice, oocTwice).killing(2),
	of(oocTwice, oocTwice, reap).killing(1),
	of(oocTwice, oocTwice, ro).killing(1),

	of(ooc, ooc, unl).killing(2),
	of(ooc, ooc, oocUnl).killing(2),
	of(oocTwice, oocTwice, unl).killing(1),
	of(oocTwice, reap, unl).killing(2),
	of(oocTwice, unl, unl).killing(2),

	of(ooc, ro, ooc).killing(2).haunted(1).refuse(),
	of(ooc, ro, opn).killing(2),
	of(ooc, roTwice, ro).killing(2),
	of(ooc, ro, reap).killing(2),
	of(oocTwice, ro, unl).killing(2),

	of(oocPers, oocPers, oocPers).killing(2),
	of(oocPers, oocPers, ro).killing(2).refuse().impatient(),
	of(oocPers, oocPers, unl).killing(2),
	of(crtPers, ooc, reap).killing(2),

	of(ooc, ooc, ooc).killing(1).removing(1).tolerate(R1),
	of(ooc, ooc, reap).killing(2).removing(1).tolerate(R1),
	of(ooc, ooc, unl).killing(1).removing(2).tolerate(R1),
	of(ooc, ro, crt).killing(1).removing(1).tolerate(R1),
	of(oocPers, oocPers, unl).killing(1).removing(1).tolerate(R1),
}

// darwinSmall has no ghosts, since no locks are in descriptions, and no read-only
// Open, since those that may not write hold nothing.
var darwinSmall = []Scenario{
	of(ooc, ooc, ooc).darwin(),
	of(ooc, ooc, ooc).darwin().killing(1),
	of(ooc, ooc, ooc).darwin().killing(2),
	of(ooc, ooc, opn).darwin().killing(2).refuse().impatient(),
	of(ooc, crt, opn).darwin().killing(2),
	of(crt, crt, opn).darwin().killing(2),
	of(crt, crt, crt).darwin().killing(2),
	of(oocTwice, oocTwice).darwin().killing(2),
	of(oocTwice, oocTwice, opn).darwin().killing(1),

	of(ooc, ooc, unl).darwin().killing(2),
	of(ooc, ooc, oocUnl).darwin().killing(2),
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
	of(oocTwice, oocTwice, ooc).killing(2),
	of(oocTwice, oocTwice, unl).killing(2).removing(1).tolerate(R1),
	of(oocTwice, oocTwice, oocTwice),
	of(ooc, ooc, crt).darwin().killing(1).removing(1).tolerate(R1),
}

// mutants lists what the protocol cannot do without, each with scenarios that
// show it, and the property that a shortest trace violates.
var mutants = []struct {
	name string
	sc   Scenario
	want Property
}{
	{"Open: no identity check once L is held", of(ooc, ooc, unl).without(OpenChecksName), S3},
	{"Open: no state check once L is held", of(ooc, ro, ro).killing(1).without(OpenChecksState), S3},
	{"Open: neither", of(ooc, ro).without(OpenChecksName | OpenChecksState), S3},
	{"Open: no M", of(oocTwice, ooc).without(OpenTakesM), S9},
	{"Open: no M, one Unlink", of(ooc, ooc, unl).without(OpenTakesM), S3},
	{"read-only Open: no GETLK", of(ooc, ro).killing(1).without(ReadOnlyAsks), S9},
	{"read-only Open: exclusive holder is alive", of(ooc, ro, reap).killing(2).without(ReadOnlyYields), S9},
	{"Create: L after linkat", of(ooc, ooc).without(CreateLocksFirst), S3},
	{"reap: exclusive holder is alive", of(ooc, crt).killing(1).without(ReapYields), S10},
	{"reap: no M", of(ooc, opn, reap).killing(2).without(ReapTakesM), S9},
	{"reap: no M, one Unlink", of(ooc, ooc, unl).killing(1).without(ReapTakesM), S1},
	{"remove: no identity check", of(oocTwice, ooc).without(RemoveChecksName), S1},
	{"remove: no identity check, one Unlink", of(ooc, ooc, unl).without(RemoveChecksName), S1},
	{"Close: no M", of(oocTwice, ooc).killing(1).without(CloseTakesM), S9},
	{"Close: no M, one Unlink", of(oocTwice, unl).without(CloseTakesM), S1},
	{"Close: L dropped before the probe", of(oocPers, oocPers).without(CloseKeepsL), S8},
	{"Close: the count says who is last", of(ooc, ro).without(LProvesLast), S9},
	{"Close: the count says who is last, one kill", of(ooc, ooc, opn).killing(1).without(LProvesLast), S4},
	{"Unlink: no M", of(oocTwice, unl, unl).without(UnlinkTakesM), S1},
	{"Unlink: no identity check", of(oocTwice, unl, unl).without(UnlinkChecksName), S1},
	{"darwin: Open takes what is not ready", of(ooc, opn).darwin().without(OpenChecksReady), S7},
	{"darwin: Open: no M", of(oocTwice, ooc).darwin().without(OpenTakesM), S9},
	{"darwin: Create: no M", of(ooc, ooc).darwin().without(CreateTakesM), S1},
	{"darwin: Create: no identity check", of(ooc, ooc).darwin().without(CreateChecksName), S3},
	{"darwin: Create: ready before the header", of(ooc, opn).darwin().without(CreateReadyLast), S7},
	{"darwin: Create: slot after M", of(ooc, ooc).darwin().without(CreateLocksFirst), S8},
	{"darwin: a newborn without size is just unlinked", of(ooc, ooc, ooc).darwin().without(AbortElects), S1},
	{"darwin: a newborn is unlinked without M", of(ooc, ooc).darwin().without(AbortTakesM), S1},
	{"darwin: a newborn is not looked at again under M", of(ooc, ooc).darwin().without(AbortChecksReady), S1},
	{"darwin: a newborn is unlinked without identity check", of(ooc, ooc, ooc).darwin().without(AbortChecksName), S1},
	{"darwin: remove: no identity check, one Unlink", of(ooc, ooc, unl).darwin().without(RemoveChecksName), S1},
	{"darwin: Close: no M, one Unlink", of(oocTwice, unl).darwin().without(CloseTakesM), S1},
	{"darwin: Unlink: no M", of(oocTwice, unl, unl).darwin().without(UnlinkTakesM), S1},
	{"darwin: Unlink: no identity check", of(oocTwice, unl, unl).darwin().without(UnlinkChecksName), S1},
	{"darwin: the locks of ended processes count", of(ooc, ooc).darwin().killing(1).without(DeathDropsLocks), S6},
	{"no F_UNLCK before close, read-only peer", of(ooc, ro).haunted(1).without(ExplicitUnlock), S4},
	{"no F_UNLCK before close, counted peer", of(ooc, ooc).haunted(1).without(ExplicitUnlock), S6},
}

// TestProtocol explores the protocol as it stands.
func TestProtocol(t *testing.T) {
	scs := append(small[:len(small):len(small)], darwinSmall...)
	if !testing.Short() && !raw.Race {
		scs = append(scs[:len(scs):len(scs)], big...)
	}
	table := newTable("scenario\tstates\tverdict\tset aside\ttime")
	for i, r := range exploreAll(scs) {
		aside := ""
		for _, p := range scs[i].Tolerate {
			aside += fmt.Sprintf("%v %d times", p, r.Tolerated[p])
			if r.Tolerated[p] == 0 {
				t.Errorf("%v: does not find %v", scs[i], p)
			}
		}
		table.row(scs[i], r.States, r.Broken, aside, r.Took.Round(1e6))
		if r.Broken != Holds {
			t.Errorf("%v: %v\n%s", scs[i], r.Broken, r.Trace)
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
	table := newTable("mutant\tscenario\tviolates\tin steps")
	for i, r := range exploreAll(scs) {
		table.row(mutants[i].name, scs[i], r.Broken, strings.Count(r.Trace, "\n")-1)
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
		if r.Broken != Holds {
			t.Errorf("%v: %v\n%s", scs[i], r.Broken, r.Trace)
		}
	}
}

// TestMarkIsNotNeeded shows that the identity check alone would do: the stale
// mark is for those who look at a block, not for the lifecycle.
func TestMarkIsNotNeeded(t *testing.T) {
	var scs []Scenario
	for _, sc := range small {
		scs = append(scs, sc.without(RemoveMarks|OpenChecksState))
	}
	for i, r := range exploreAll(scs) {
		if r.Broken != Holds {
			t.Errorf("%v: %v\n%s", scs[i], r.Broken, r.Trace)
		}
	}
}

// TestResidual shows the one way in which an outsider does harm.
func TestResidual(t *testing.T) {
	sc := of(ooc, crt).removing(1)
	r := sc.Explore()
	if r.Broken != R1 {
		t.Errorf("%v, want R1\n%s", r.Broken, r.Trace)
	}
	if *traces {
		t.Logf("R1\n%s", r.Trace)
	}
}

// exploreAll explores on all processors.
func exploreAll(scs []Scenario) []Result {
	results := make([]Result, len(scs))
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	var wg sync.WaitGroup
	for i := range scs {
		slots <- struct{}{}
		wg.Go(func() {
			results[i] = scs[i].Explore()
			<-slots
		})
	}
	wg.Wait()
	return results
}

type table struct {
	text strings.Builder
	tab  *tabwriter.Writer
}

func newTable(head string) *table {
	t := &table{}
	t.tab = tabwriter.NewWriter(&t.text, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t.tab, "\n%s\n", head)
	return t
}

func (t *table) row(cells ...any) {
	format := strings.TrimSuffix(strings.Repeat("%v\t", len(cells)), "\t") + "\n"
	fmt.Fprintf(t.tab, format, cells...)
}

func (t *table) String() string {
	t.tab.Flush()
	return t.text.String()
}
