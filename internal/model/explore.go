package model

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Result is the answer to a Scenario.
type Result struct {
	States int
	Broken Property // Holds, or the first property found violated
	Trace  string   // a shortest way there, one step a line

	Tolerated      map[Property]int // how many steps violate each property of Scenario.Tolerate
	ToleratedTrace string           // a shortest way to one of these

	Took time.Duration
}

// A move is one thing that can happen next.
type move struct {
	kind  moveKind
	who   uint8 // of procs or loose
	other bool  // the other way, where there is a choice
}

type moveKind uint8

const (
	stepped moveKind = iota
	vanished
	slain
	removedName
)

// graph is the part of the state space that has been seen, in the order of
// distance from the start.
type graph struct {
	*Scenario
	index  map[state]int32
	states []state
	parent []int32
	edges  []int32 // successors of all states, by certain moves; or tolerated
	first  []int32 // where those of each state begin
}

const tolerated = -1

// Explore visits every state that can be reached, breadth first.
func (sc *Scenario) Explore() Result {
	began := time.Now()
	g := &graph{Scenario: sc, index: map[state]int32{}}
	g.add(sc.start(), -1)
	r := Result{Tolerated: map[Property]int{}}
	for i := 0; i < len(g.states) && r.Broken == Holds; i++ {
		g.expand(int32(i), &r)
	}
	if r.Broken == Holds {
		g.checkWayOut(&r)
	}
	r.States, r.Took = len(g.states), time.Since(began)
	return r
}

func (g *graph) add(s state, parent int32) int32 {
	if i, ok := g.index[s]; ok {
		return i
	}
	i := int32(len(g.states))
	g.index[s] = i
	g.states = append(g.states, s)
	g.parent = append(g.parent, parent)
	return i
}

// expand checks state i and adds its successors.
func (g *graph) expand(i int32, r *Result) {
	g.first = append(g.first, int32(len(g.edges)))
	s := g.states[i]
	if s.quiet() {
		w := world{Scenario: g.Scenario, state: s}
		if w.checkQuiet(); w.broken != Holds {
			g.note(r, w.broken, func() string { return g.trace(i, nil) + "       " + w.why + "\n" })
			return
		}
	}
	g.moves(s, func(m move, w *world) bool {
		j := int32(tolerated)
		if w.broken != Holds {
			g.note(r, w.broken, func() string { return g.trace(i, &m) + "       " + w.why + "\n" })
		} else {
			j = g.add(w.state, i)
		}
		if m.certain(s) {
			g.edges = append(g.edges, j)
		}
		return r.Broken == Holds
	})
}

// note enters a violation into r.
func (g *graph) note(r *Result, p Property, trace func() string) {
	if !slices.Contains(g.Tolerate, p) {
		r.Broken, r.Trace = p, trace()
		return
	}
	if r.Tolerated[p]++; r.ToleratedTrace == "" {
		r.ToleratedTrace = trace()
	}
}

// moves calls f with all that can happen in s and what comes of it.
func (g *graph) moves(s state, f func(move, *world) bool) {
	try := func(m move) bool {
		w := g.apply(s, m, false)
		if !f(m, &w) {
			return false
		}
		if w.asked {
			m.other = true
			w = g.apply(s, m, false)
			return f(m, &w)
		}
		return true
	}
	for i := range s.procs {
		if s.procs[i].pc <= killed {
			continue
		}
		if !try(move{kind: stepped, who: uint8(i)}) || s.kills > 0 && !try(move{kind: slain, who: uint8(i)}) {
			return
		}
	}
	for i := range s.loose {
		if s.loose[i].ino != 0 && !g.lacks(DeathDropsLocks) && !try(move{kind: vanished, who: uint8(i)}) {
			return
		}
	}
	if s.rms > 0 && s.name != 0 {
		try(move{kind: removedName})
	}
}

// apply makes a move and checks what it leads to.
func (g *graph) apply(s state, m move, record bool) world {
	w := world{Scenario: g.Scenario, state: s, self: int(m.who), choice: m.other, record: record}
	switch m.kind {
	case stepped:
		w.step(&w.procs[m.who])
	case slain:
		w.kill(&w.procs[m.who])
	case vanished:
		w.vanish(int(m.who))
	case removedName:
		w.rm()
	}
	w.tidy()
	w.check()
	return w
}

// certain reports whether m in s is bound to happen if nothing else does. A
// kill is not, nor an outsider's act, nor a forked child's coming to its exec.
func (m move) certain(s state) bool {
	return m.kind == stepped || m.kind == vanished && s.loose[m.who].held&dying != 0
}

// checkWayOut is S6: from every state there is a way, of certain moves only,
// to one where all have finished.
func (g *graph) checkWayOut(r *Result) {
	g.first = append(g.first, int32(len(g.edges)))
	out := make([]bool, len(g.states))
	for changed := true; changed; {
		changed = false
		for i := len(out) - 1; i >= 0; i-- {
			if !out[i] && g.wayOut(i, out) {
				out[i], changed = true, true
			}
		}
	}
	if i := slices.Index(out, false); i >= 0 {
		r.Broken, r.Trace = S6, g.trace(int32(i), nil)+"       no way out of here\n"
	}
}

func (g *graph) wayOut(i int, out []bool) bool {
	return g.states[i].finished() || slices.ContainsFunc(g.edges[g.first[i]:g.first[i+1]],
		func(j int32) bool { return j == tolerated || out[j] })
}

// trace is the way to state i, and the move last from there.
func (g *graph) trace(i int32, last *move) string {
	path := []int32{i}
	for g.parent[path[0]] >= 0 {
		path = slices.Insert(path, 0, g.parent[path[0]])
	}
	var b strings.Builder
	for k := 1; k < len(path); k++ {
		g.moves(g.states[path[k-1]], func(m move, w *world) bool {
			if w.broken != Holds || w.state != g.states[path[k]] {
				return true
			}
			g.line(&b, g.states[path[k-1]], m)
			return false
		})
	}
	if last != nil {
		g.line(&b, g.states[i], *last)
	}
	return b.String()
}

// line tells of a move in s.
func (g *graph) line(b *strings.Builder, s state, m move) {
	who, what := fmt.Sprintf("P%d", m.who+1), ""
	switch m.kind {
	case stepped:
		what = places[s.procs[m.who].pc]
	case slain:
		what = "killed before " + places[s.procs[m.who].pc]
	case vanished:
		who, what = "kernel", "drop locks"
	case removedName:
		who, what = "rm", "unlink(name)"
	}
	w := g.apply(s, m, true)
	if w.log != nil {
		what = fmt.Sprintf("%-46s %s", what, w.log)
	}
	fmt.Fprintf(b, "%-6s %s\n", who, what)
}
