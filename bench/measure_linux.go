package main

import (
	"math"
	"slices"
	"time"
)

// A contender does the work of a contest in one way.
type contender struct {
	name string
	run  func(n int) // does the work n times

	// once is work that is done once at a time, between before and after, which
	// are not timed and may be nil.
	once          bool
	items         func() int // how many things were worked on, if not one
	before, after func()
}

// A goal is what a contender's time may be of another one's.
type goal struct {
	ours, against string
	atMost        float64 // 0: only reported
}

// A contest is the same work done in several ways.
type contest struct {
	group, name string
	goals       []goal
	start       func(b *bench) []contender
}

// A result is what was measured for a goal.
type result struct {
	Group   string  `json:"group"`
	Work    string  `json:"work"`
	Ours    string  `json:"ours"`
	Against string  `json:"against"`
	OursNs  float64 `json:"ours_ns"`
	TheirNs float64 `json:"against_ns"`
	Ratio   float64 `json:"ratio"`
	AtMost  float64 `json:"at_most,omitempty"`
	Met     bool    `json:"met"`
}

// pace is how long to measure.
type pace struct {
	rounds int           // of micro-benchmarks; the median counts
	long   int           // of what takes milliseconds
	slice  time.Duration // of one contender in one round
}

// measure lets the contenders take turns, so that what disturbs the machine
// disturbs all of them, and returns the nanoseconds of each in each round.
func measure(contenders []contender, p pace) map[string][]float64 {
	n := make([]int, len(contenders))
	rounds := p.rounds
	for i, c := range contenders {
		n[i] = 1
		if c.once {
			rounds = p.long
		}
		took := c.time(n[i]) // also warms up
		for !c.once && took < p.slice {
			grow := float64(p.slice) / float64(max(took, 1))
			n[i] = int(float64(n[i]) * min(max(1.2*grow, 1.5), 100))
			took = c.time(n[i])
		}
	}
	times := make(map[string][]float64)
	for round := range rounds {
		for i := range contenders {
			i = (i + round) % len(contenders)
			c := contenders[i]
			times[c.name] = append(times[c.name], c.perItem(n[i]))
		}
	}
	return times
}

func (c contender) perItem(n int) float64 {
	took := float64(c.time(n)) / float64(n)
	if c.items != nil {
		took /= float64(max(c.items(), 1))
	}
	return took
}

func (c contender) time(n int) time.Duration {
	if c.before != nil {
		c.before()
	}
	if c.after != nil {
		defer c.after()
	}
	start := time.Now()
	c.run(n)
	return time.Since(start)
}

// judge makes a result of each goal: the median of the ratios of each round.
func (c contest) judge(times map[string][]float64) (results []result) {
	for _, g := range c.goals {
		ours, theirs := times[g.ours], times[g.against]
		if ours == nil || theirs == nil {
			continue // not to be had on this machine
		}
		ratios := make([]float64, len(ours))
		for i := range ratios {
			ratios[i] = ours[i] / theirs[i]
		}
		r := result{
			Group: c.group, Work: c.name, Ours: g.ours, Against: g.against,
			OursNs: median(ours), TheirNs: median(theirs), Ratio: median(ratios), AtMost: g.atMost,
		}
		r.Met = g.atMost == 0 || r.Ratio <= g.atMost
		results = append(results, r)
	}
	return results
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	v = slices.Clone(v)
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
