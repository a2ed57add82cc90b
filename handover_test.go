package shm_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/internal/raw"
)

// Processes hand a turn on to each other, and pause for a random time between all
// steps: in the function that Wait calls, where the library calls its object.Object,
// and at any instruction, where the test stops them.

var handovers = flag.Int("handovers", 0, "make so many hand-overs in each test, and not some seconds of them")

// pauses has Objects that pause in the methods that Wait and Notify call between their
// accesses to the words, and that have a tick of their own.
type pauses struct {
	object.System
	tick time.Duration
}

type pausing struct {
	object.Object
	tick time.Duration
}

func (s pauses) Open(name string, write bool) (object.Object, error) {
	o, err := s.System.Open(name, write)
	if err != nil {
		return nil, err
	}
	return pausing{o, s.tick}, nil
}

func (o pausing) Writable() bool { pauseABit(); return o.Object.Writable() }

func (o pausing) Sleep(header []byte, off int, value uint32, _ time.Duration, still func() bool) {
	pauseABit()
	o.Object.Sleep(header, off, value, o.tick, still)
}

func (o pausing) Wake(header []byte, off int, all bool) {
	pauseABit()
	o.Object.Wake(header, off, all)
}

// pauseABit lets some time pass, in one of the ways in which time passes.
func pauseABit() {
	switch rand.IntN(8) {
	case 0:
		runtime.Gosched()
	case 1:
		spin(time.Duration(rand.IntN(50_000)))
	case 2:
		nap(time.Duration(rand.IntN(50_000)))
	default:
		spin(time.Duration(rand.IntN(500)))
	}
}

func spin(d time.Duration) {
	for start := time.Now(); time.Since(start) < d; {
	}
}

// A runner takes its turn, or any of them under the lock, until there have been count of them.
type runner struct {
	name, kind       string
	index, of, count uint64
}

var runnerProgram = proctest.Register("runner", func(p *proctest.Parent) error {
	r := runner{p.Args[0], p.Args[1], uint64(number(p.Args[2])), uint64(number(p.Args[3])), uint64(number(p.Args[4]))}
	tick, err := time.ParseDuration(p.Args[5])
	if err != nil {
		return err
	}
	object.Current = pauses{object.Current, tick}
	switch r.kind {
	case "notify":
		return r.notify()
	case "lock":
		return r.lock()
	}
	return r.append()
})

// lock raises two words under the lock, and now and then gives up to wait for it.
func (r *runner) lock() error {
	seg, err := shm.Open(r.name)
	if err != nil {
		return err
	}
	defer seg.Close()
	first, then := raw.Uint64(seg.Bytes(), 0), raw.Uint64(seg.Bytes(), 8)
	for {
		ctx, cancel := context.WithCancel(context.Background())
		if rand.IntN(4) == 0 {
			ctx, cancel = context.WithTimeout(context.Background(), time.Duration(rand.IntN(200_000)))
		}
		recovered, err := seg.Lock(ctx)
		if cancel(); errors.Is(err, context.DeadlineExceeded) {
			continue
		}
		n := first.Load()
		if err != nil || n != then.Load() && !recovered {
			return fmt.Errorf("%d and %d, recovered %v, %w", n, then.Load(), recovered, err)
		}
		then.Store(n)
		if n < r.count {
			first.Store(n + 1)
			pauseABit()
			then.Store(n + 1)
		}
		if err := seg.Unlock(); err != nil || n >= r.count {
			return err
		}
		pauseABit()
	}
}

// notify waits until the word says that it is its turn, and raises the word.
func (r *runner) notify() error {
	seg, err := shm.Open(r.name)
	if err != nil {
		return err
	}
	defer seg.Close()
	word := raw.Uint64(seg.Bytes(), 0)
	for {
		var turn uint64
		err := seg.Wait(context.Background(), func() bool {
			turn = word.Load()
			pauseABit()
			return turn >= r.count || turn%r.of == r.index
		})
		if err != nil || turn >= r.count {
			return err
		}
		pauseABit()
		word.Store(turn + 1)
		pauseABit()
		if err := seg.Notify(); err != nil {
			return err
		}
	}
}

// append follows the block, and appends a byte when it is its turn. Half of the
// processes do both with one Segment.
func (r *runner) append() error {
	seg, err := shm.Open(r.name)
	if err != nil {
		return err
	}
	defer seg.Close()
	from := seg
	if r.index%2 == 0 {
		if from, err = shm.Open(r.name, shm.ReadOnly()); err != nil {
			return err
		}
		defer from.Close()
	}
	f, b := from.Follow(context.Background()), make([]byte, 1)
	for k := range r.count {
		if k%r.of == r.index && seg.Size() == int64(k) { // else one that was killed has
			pauseABit()
			if _, err := seg.WriteAt([]byte{byte(k % 251)}, int64(k)); err != nil {
				return err
			}
			pauseABit()
		}
		if _, err := io.ReadFull(f, b); err != nil || b[0] != byte(k%251) {
			return fmt.Errorf("byte %d: %d, %w", k, b[0], err)
		}
	}
	return nil
}

// A race is a number of runners on a block.
type race struct {
	t       *testing.T
	kind    string
	tick    time.Duration
	count   int
	seg     *shm.Segment
	runners []*proctest.Child
}

func newRace(t *testing.T, kind string, n int, tick time.Duration, count int) *race {
	if kind == "lock" {
		count *= 5 // which takes no longer
	}
	r := &race{t: t, kind: kind, tick: tick, count: count, seg: block(t, int64(count)+16)}
	if kind == "append" {
		if err := r.seg.Truncate(0); err != nil {
			t.Fatal(err)
		}
	}
	r.runners = make([]*proctest.Child, n)
	for i := range r.runners {
		r.start(i)
	}
	return r
}

func (r *race) start(i int) {
	r.runners[i] = proctest.Start(r.t, runnerProgram, r.seg.Name(), r.kind,
		fmt.Sprint(i), fmt.Sprint(len(r.runners)), fmt.Sprint(r.count), r.tick.String())
}

func (r *race) progress() int {
	if r.kind == "append" {
		return int(r.seg.Size())
	}
	return int(raw.Uint64(r.seg.Bytes(), 0).Load())
}

// jolt stops a runner at any instruction, for a moment.
func (r *race) jolt() {
	p := r.runners[rand.IntN(len(r.runners))].Process
	if stop == nil {
		return
	}
	p.Signal(stop)
	spin(time.Duration(rand.IntN(50_000)))
	p.Signal(resume)
}

// What systems have besides.
var (
	nap          = time.Sleep
	stop, resume os.Signal
)

// replace kills a runner at any instruction. Another one takes its turns.
func (r *race) replace() {
	i := rand.IntN(len(r.runners))
	r.runners[i].Kill()
	r.start(i)
}

// tooLong is how long no turn may be taken: no machine is as busy as that.
const tooLong = time.Minute

// watch calls disturb until all turns are taken. When none is taken for a while it does
// not: a sleeper that is stopped and goes on looks whether event has changed.
func (r *race) watch(disturb func()) {
	start, longest := time.Now(), time.Duration(0)
	for at, since := r.progress(), start; at < r.count; {
		if time.Since(since) < tooLong/10 {
			disturb()
		} else {
			time.Sleep(time.Millisecond)
		}
		if now := r.progress(); now != at {
			at, since = now, time.Now()
			continue
		}
		if longest = max(longest, time.Since(since)); time.Since(since) > tooLong {
			r.t.Fatalf("no turn was taken for %v, after %d in %v", tooLong, at, since.Sub(start))
		}
	}
	for _, c := range r.runners {
		c.Wait()
	}
	r.t.Logf("%d hand-overs in %v; the longest took less than %v", r.count, time.Since(start).Round(time.Millisecond), longest.Round(time.Microsecond))
}

func handoverCount(n int) int {
	if *handovers > 0 {
		return *handovers
	}
	return rounds(n)
}

// TestHandOver switches the tick off: a wake-up that is lost stays lost.
func TestHandOver(t *testing.T) {
	for _, kind := range []string{"notify", "append", "lock"} {
		for _, n := range []int{2, 8} {
			t.Run(fmt.Sprint(kind, " ", n), func(t *testing.T) {
				r := newRace(t, kind, n, time.Hour, handoverCount(2_000))
				r.watch(func() {
					if r.progress()/500%2 == 0 {
						r.jolt()
					}
					time.Sleep(time.Duration(rand.IntN(50_000)))
				})
			})
		}
	}
}

// TestHandOverKilled kills one process after the other, which can be one that has to wake
// others: then the tick does.
func TestHandOverKilled(t *testing.T) {
	for _, kind := range []string{"notify", "append", "lock"} {
		t.Run(kind, func(t *testing.T) {
			r := newRace(t, kind, 4, 100*time.Millisecond, handoverCount(1_000))
			kills, next := 0, time.Now()
			r.watch(func() {
				if r.jolt(); time.Now().After(next) {
					r.replace()
					kills, next = kills+1, time.Now().Add(time.Duration(rand.IntN(50_000_000)))
				}
			})
			t.Logf("%d kills", kills)
		})
	}
}
