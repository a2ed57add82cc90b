package waiting

import (
	"fmt"

	"github.com/shmkit/shm/internal/model/explore"
)

// The properties of a stream; see the package comment.
const (
	W1 explore.Property = "W1"
	W2                  = explore.NoWayOut
	W3 explore.Property = "W3"
	W4 explore.Property = "W4"
	W5 explore.Property = "W5"
	W6 explore.Property = "W6"
	W7 explore.Property = "W7"
)

// Steps is explore.Model's.
func (sc *Stream) Steps(s state, record bool, f func(explore.Step[state]) bool) {
	for i := range s.procs {
		p := &s.procs[i]
		if p.pc == killed && p.writer {
			to := s
			to.procs[i].writer = false
			step := explore.Step[state]{To: to, Certain: true}
			if record {
				step.Line = fmt.Sprintf("kernel drops the byte of P%d", i+1)
			}
			sc.note(&step)
			if !f(step) {
				return
			}
		}
		if p.pc <= killed {
			continue
		}
		if sc.can(&s, p) {
			w := world{Stream: sc, state: s, self: i, record: record}
			for range 2 {
				w.step(&w.procs[i])
				step := explore.Step[state]{To: w.state, Broken: w.broken, Why: w.why, Certain: true}
				if record {
					step.Line = fmt.Sprintf("P%d     %-30s%s", i+1, places[p.pc], w.log)
				}
				sc.note(&step)
				if !f(step) {
					return
				}
				if !w.asked {
					break
				}
				w = world{Stream: sc, state: s, self: i, record: record, choice: true}
			}
		}
		if s.kills > 0 {
			w := world{Stream: sc, state: s, self: i}
			w.kill(&w.procs[i])
			step := explore.Step[state]{To: w.state}
			if record {
				step.Line = fmt.Sprintf("P%d     killed before %s", i+1, places[p.pc])
			}
			sc.note(&step)
			if !f(step) {
				return
			}
		}
	}
}

// can reports whether p can make a step: Truncate waits for its lock, which
// can be taken from the dead, and a sleeper for a wake or a tick.
func (sc *Stream) can(s *state, p *proc) bool {
	switch p.pc {
	case tLock:
		return s.cut == 0 || s.procs[s.cut-1].pc == killed && !s.procs[s.cut-1].writer
	case fAsleep:
		return sc.Ticks
	}
	return true
}

func (w *world) maybe() bool {
	w.asked = true
	return w.choice
}

// kill is SIGKILL. The byte stays until the kernel drops it.
func (w *world) kill(p *proc) {
	w.kills--
	w.hushed = w.hushed || aLook <= p.pc && p.pc <= aWake
	w.orphaned = w.orphaned || p.writer
	if p.copied {
		w.stain(p)
	}
	*p = proc{pc: killed, writer: p.writer}
}

// note keeps account of what followers may say, and finds what is wrong with
// where a step leads to.
func (sc *Stream) note(step *explore.Step[state]) {
	w := world{Stream: sc, state: step.To}
	waking := w.hushed
	for i := range w.procs {
		p := &w.procs[i]
		if p.fits&(1<<w.now) != 0 && !w.writers() && w.size.len <= p.off && !w.size.finished {
			p.alone = true
		}
		waking = waking || aLook <= p.pc && p.pc <= aWake
	}
	for i := range w.procs {
		if p := &w.procs[i]; p.pc == fAsleep && !waking && w.ready(i) {
			w.violate(W1, "a sleeper could go on, and nobody is about to wake it")
		}
	}
	w.checkData()
	step.To = w.state
	if step.Broken == explore.Holds {
		step.Broken, step.Why = w.broken, w.why
	}
}

// ready reports whether process i, which sleeps, would go on if it looked.
func (w *world) ready(i int) bool {
	switch p := &w.procs[i]; {
	case w.Programs[i][p.call] == Wait1:
		return w.size.len >= 1
	case !p.adopted:
		return w.size.begun || w.size.finished
	default:
		return p.fits&(1<<w.now) == 0 || w.size.len > p.off || w.size.finished || !w.writers() && !w.orphaned
	}
}

// checkData is W4.
func (w *world) checkData() {
	for i := range uint8(cells) {
		switch want := w.wrote[w.now][i]; {
		case i < w.size.len && want != anything && want != w.data[i]:
			w.violate(W4, "a byte below Size is not what was written")
		case i >= w.size.len && !w.size.cut && w.data[i] != 0 && !w.stained[i] && !w.flying(i):
			w.violate(W4, "a byte beyond Size is not zero")
		}
	}
}

// Check is explore.Model's; all is checked step by step.
func (sc *Stream) Check(state) (explore.Property, string) { return explore.Holds, "" }

// Finished reports whether all have come to their ends, but for those who wait
// for what nobody has begun.
func (sc *Stream) Finished(s state) bool {
	w := world{Stream: sc, state: s}
	for i := range s.procs {
		if p := &s.procs[i]; p.pc > killed && (p.pc != fAsleep || w.ready(i) || !w.writers() && p.adopted) || p.pc == killed && p.writer {
			return false
		}
	}
	return true
}

func pick[T any](ok bool, yes, no T) T {
	if ok {
		return yes
	}
	return no
}
