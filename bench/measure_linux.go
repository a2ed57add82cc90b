package main

import (
	"math"
	"slices"
	"time"
)

// contender is one way to do the work of a contest.
type contender struct {
	name string
	run  func(n int) // does the work n times

	once          bool       // run once in a round, not in a loop
	items         func() int // number of things that one run worked on; nil means 1
	before, after func()     // called around each timing; may be nil
}

// goal is the limit for the ratio of the times of two contenders.
type goal struct {
	ours, against string
	atMost        float64 // 0 for none
}

// contest is work that is done in several ways.
type contest struct {
	group, name string
	goals       []goal
	start       func(b *bench) []contender
}

// result is the measurement for a goal.
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

// pace says how long to measure.
type pace struct {
	rounds int           // for contenders that run in a loop
	long   int           // rounds for those that run once
	slice  time.Duration // of one contender in one round
}

// measure runs the contenders in turn, so that other work on the machine disturbs
// all of them alike, and returns the nanoseconds of each in each round.
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

// judge returns a result for each goal: the median of the ratios of all rounds.
func (c contest) judge(times map[string][]float64) (results []result) {
	for _, g := range c.goals {
		ours, theirs := times[g.ours], times[g.against]
		if ours == nil || theirs == nil {
			continue // not available on this machine
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
