package explore

import (
	"strings"
	"testing"
)

// counter goes up to a limit, or, by an uncertain step, to a place from which
// nothing leads on.
type counter struct {
	limit, bad, trap int
}

func (c counter) Start() int { return 0 }

func (c counter) Steps(n int, record bool, f func(Step[int]) bool) {
	line := func(s string) string {
		if record {
			return s
		}
		return ""
	}
	if n < c.limit && (n == 0 || n != c.trap) {
		step := Step[int]{To: n + 1, Certain: true, Line: line("up")}
		if n+1 == c.bad {
			step.Broken, step.Why = "bad", "came to bad"
		}
		if !f(step) {
			return
		}
	}
	if n == 0 && c.trap > 0 {
		f(Step[int]{To: c.trap, Line: line("trap")})
	}
}

func (c counter) Check(int) (Property, string) { return Holds, "" }
func (c counter) Finished(n int) bool          { return n == c.limit }

func TestExplore(t *testing.T) {
	for _, test := range []struct {
		name   string
		m      counter
		search Search
		broken Property
		states int
		trace  string
	}{
		{"all", counter{limit: 5000}, Search{}, Holds, 5001, ""},
		{"a step", counter{limit: 9, bad: 3}, Search{}, "bad", 3, "up\nup\nup\n       came to bad\n"},
		{"tolerated", counter{limit: 9, bad: 3}, Search{Tolerate: []Property{"bad"}}, Holds, 3, ""},
		{"no way out", counter{limit: 9, trap: 20}, Search{}, NoWayOut, 11, "trap\n       no way out of here\n"},
	} {
		r := Explore[int](test.m, test.search)
		if r.Broken != test.broken || r.States != test.states || r.Trace != test.trace || !r.Complete {
			t.Errorf("%s: %v, %d states, complete %v, trace:\n%s", test.name, r.Broken, r.States, r.Complete, r.Trace)
		}
		if want := strings.Count(test.trace, "\n") - 1; r.Length() != max(want, 0) {
			t.Errorf("%s: %d steps, want %d", test.name, r.Length(), want)
		}
	}
	r := Explore[int](counter{limit: 5000, bad: 4000}, Search{Limit: 100})
	if r.Complete || r.Broken != Holds || r.States != 100 {
		t.Errorf("bounded: %v, %d states, complete %v", r.Broken, r.States, r.Complete)
	}
	r = Explore[int](counter{limit: 9, bad: 3}, Search{Tolerate: []Property{"bad"}})
	if r.Tolerated["bad"] != 1 {
		t.Errorf("tolerated %v, want 1 of bad", r.Tolerated)
	}
}
