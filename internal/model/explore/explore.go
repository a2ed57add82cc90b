// Package explore visits every state of a model, breadth first, and reports a
// shortest way to the first state or step that violates a property. The packages
// internal/model/holders and internal/model/waiting are explored with it.
package explore

import (
	"fmt"
	"hash/maphash"
	"runtime"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// A Property is the name of something that must always, or never, be so. Each
// model documents its own.
type Property string

// Holds is that none is violated. NoWayOut is violated by a state from which
// there is no way, of certain steps only, to one that is finished.
const (
	Holds    Property = ""
	NoWayOut Property = "no way out"
)

func (p Property) String() string {
	if p == Holds {
		return "holds"
	}
	return string(p)
}

// A Model says what can happen. Its states are compared by ==: a state is all
// that the future depends on, and nothing else, so that equal states are one.
type Model[S comparable] interface {
	Start() S
	// Steps calls f with each step that is possible in s until f returns false,
	// always in the same order. Only with record need steps have a Line.
	Steps(s S, record bool, f func(Step[S]) bool)
	// Check returns what is wrong with s by itself.
	Check(s S) (Property, string)
	// Finished reports whether nobody has anything left to do in s.
	Finished(s S) bool
}

// A Step is one thing that can happen next.
type Step[S comparable] struct {
	To      S
	Broken  Property // what the step violates
	Why     string
	Certain bool // it is bound to happen if nothing else does: a kill is not
	Line    string
}

// A Search bounds an exploration and says what it does not stop at.
type Search struct {
	Limit    int        // at most about so many states; 0: all
	Tolerate []Property // steps that violate these are counted and not continued
}

// A Result is what an exploration found.
type Result struct {
	States   int
	Complete bool // all states were visited, or one that violates a property was found
	Broken   Property
	Trace    string // a shortest way there, one step a line

	Tolerated map[Property]int
	Took      time.Duration
}

// Length is the number of steps in the trace.
func (r *Result) Length() int { return max(strings.Count(r.Trace, "\n")-1, 0) }

// tolerated is an edge that leads to no state.
const tolerated = -1

type graph[S comparable] struct {
	Model[S]
	Search
	Result

	seed   maphash.Seed
	slots  []int32 // open addressing: 1 + index into states, 0 if free
	states []S     // in the order of distance from the start
	hashes []uint32
	parent []int32
	edges  []int32 // successors by certain steps, of all states
	first  []int32 // where those of each state begin
}

// Explore visits the states of m.
func Explore[S comparable](m Model[S], search Search) Result {
	began := time.Now()
	g := &graph[S]{Model: m, Search: search, seed: maphash.MakeSeed(), slots: make([]int32, 1<<10)}
	g.Tolerated = map[Property]int{}
	g.add(m.Start(), -1)
	i := 0
	for ; i < len(g.states) && g.Broken == Holds && (g.Limit == 0 || len(g.states) < g.Limit); i++ {
		g.expand(int32(i))
	}
	g.Complete = i == len(g.states) || g.Broken != Holds
	if g.Complete && g.Broken == Holds {
		g.checkWayOut()
	}
	g.States, g.Took = len(g.states), time.Since(began)
	return g.Result
}

func (g *graph[S]) add(s S, parent int32) int32 {
	if len(g.states) > len(g.slots)/2 {
		g.grow()
	}
	hash := uint32(maphash.Comparable(g.seed, s))
	mask := uint32(len(g.slots) - 1)
	at := hash & mask
	for ; g.slots[at] != 0; at = (at + 1) & mask {
		if i := g.slots[at] - 1; g.hashes[i] == hash && g.states[i] == s {
			return i
		}
	}
	g.states, g.hashes, g.parent = append(g.states, s), append(g.hashes, hash), append(g.parent, parent)
	g.slots[at] = int32(len(g.states))
	return int32(len(g.states) - 1)
}

func (g *graph[S]) grow() {
	g.slots = make([]int32, 4*len(g.slots))
	mask := uint32(len(g.slots) - 1)
	for i, hash := range g.hashes {
		at := hash & mask
		for g.slots[at] != 0 {
			at = (at + 1) & mask
		}
		g.slots[at] = int32(i + 1)
	}
}

// expand checks state i and adds its successors.
func (g *graph[S]) expand(i int32) {
	g.first = append(g.first, int32(len(g.edges)))
	s := g.states[i]
	if p, why := g.Check(s); p != Holds {
		g.note(p, func() string { return g.trace(i, -1) + indent(why) })
		return
	}
	k := -1
	g.Steps(s, false, func(step Step[S]) bool {
		k++
		j := int32(tolerated)
		if step.Broken != Holds {
			g.note(step.Broken, func() string { return g.trace(i, k) + indent(step.Why) })
		} else {
			j = g.add(step.To, i)
		}
		if step.Certain {
			g.edges = append(g.edges, j)
		}
		return g.Broken == Holds
	})
}

func (g *graph[S]) note(p Property, trace func() string) {
	if slices.Contains(g.Tolerate, p) {
		g.Tolerated[p]++
		return
	}
	g.Broken, g.Trace = p, trace()
}

// checkWayOut finds a state from which no certain steps lead to the end.
func (g *graph[S]) checkWayOut() {
	g.first = append(g.first, int32(len(g.edges)))
	out := make([]bool, len(g.states))
	for i, s := range g.states {
		out[i] = g.Finished(s)
	}
	for changed := true; changed; {
		changed = false
		for i := len(out) - 1; i >= 0; i-- {
			if !out[i] && slices.ContainsFunc(g.edges[g.first[i]:g.first[i+1]],
				func(j int32) bool { return j == tolerated || out[j] }) {
				out[i], changed = true, true
			}
		}
	}
	if i := slices.Index(out, false); i >= 0 {
		g.Broken, g.Trace = NoWayOut, g.trace(int32(i), -1)+indent("no way out of here")
	}
}

// trace is the way to state i, and, unless it is -1, step k from there.
func (g *graph[S]) trace(i int32, k int) string {
	path := []int32{i}
	for g.parent[path[0]] >= 0 {
		path = slices.Insert(path, 0, g.parent[path[0]])
	}
	var b strings.Builder
	for n := 1; n < len(path); n++ {
		g.Steps(g.states[path[n-1]], true, func(step Step[S]) bool {
			if step.Broken != Holds || step.To != g.states[path[n]] {
				return true
			}
			fmt.Fprintln(&b, step.Line)
			return false
		})
	}
	if k >= 0 {
		g.Steps(g.states[i], true, func(step Step[S]) bool {
			if k == 0 {
				fmt.Fprintln(&b, step.Line)
			}
			k--
			return k >= 0
		})
	}
	return b.String()
}

func indent(why string) string { return "       " + why + "\n" }

// Each calls explore with 0 to n-1, on all processors, and returns the results.
func Each(n int, explore func(i int) Result) []Result {
	results := make([]Result, n)
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	var wg sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			results[i] = explore(i)
			<-slots
		})
	}
	wg.Wait()
	return results
}

// A Table prints results in columns.
type Table struct {
	text strings.Builder
	tab  *tabwriter.Writer
}

// NewTable returns a table with these heads, separated by tabs.
func NewTable(head string) *Table {
	t := &Table{}
	t.tab = tabwriter.NewWriter(&t.text, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t.tab, "\n%s\n", head)
	return t
}

// Row adds a row.
func (t *Table) Row(cells ...any) {
	for i, c := range cells {
		if i > 0 {
			fmt.Fprint(t.tab, "\t")
		}
		fmt.Fprint(t.tab, c)
	}
	fmt.Fprintln(t.tab)
}

func (t *Table) String() string {
	t.tab.Flush()
	return t.text.String()
}
