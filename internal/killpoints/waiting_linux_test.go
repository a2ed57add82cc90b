//go:build amd64 || arm64

package killpoints

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/internal/raw"
)

// silent has Objects with a tick of their own: where it is very long, they sleep until
// they are woken.
type silent struct {
	object.System
	tick   time.Duration
	asleep chan<- struct{} // is sent to before each sleep, if there is room
}

type silentObject struct {
	object.Object
	silent
}

func (s silent) Open(name string, write bool) (object.Object, error) {
	o, err := s.System.Open(name, write)
	if err != nil {
		return nil, err
	}
	return silentObject{o, s}, nil
}

func (o silentObject) Sleep(header []byte, off int, value uint32, _ time.Duration, still func() bool) {
	select {
	case o.asleep <- struct{}{}:
	default:
	}
	o.Object.Sleep(header, off, value, o.tick, still)
}

// A pair is a call that wakes others and one that it has to wake.
type pair struct {
	prepare func(w *waker) error // before Begin, by the process that wakes
	wake    func(w *waker) error
	wait    func(s *sleeper) error // for what comes
	locks   bool
}

// waker is the one side, which has a Segment that has written "x".
type waker struct {
	name string
	seg  *shm.Segment
}

func (w *waker) stream() (err error) {
	if w.seg, err = shm.Open(w.name); err != nil {
		return err
	}
	if err := w.seg.Truncate(0); err != nil {
		return err
	}
	_, err = w.seg.WriteAt([]byte("x"), 0)
	return err
}

func (w *waker) lock() error {
	if err := w.stream(); err != nil {
		return err
	}
	_, err := w.seg.Lock(context.Background())
	return err
}

// sleeper is the other side, which is no writer.
type sleeper struct {
	ctx context.Context
	seg *shm.Segment  // ReadOnly
	f   *shm.Follower // that has read "x"
	own *shm.Segment  // to lock
}

// begin has all that was there before.
func (s *sleeper) begin(locks bool) (err error) {
	if s.own.Close(); locks {
		s.own, err = shm.Open(s.seg.Name())
		return err
	}
	s.f = s.seg.Follow(s.ctx)
	b := make([]byte, 1)
	if _, err := s.f.Read(b); err != nil || b[0] != 'x' {
		return fmt.Errorf("%q, %w", b, err)
	}
	return nil
}

// follow reads a byte or an error.
func (s *sleeper) follow(want byte, end error) error {
	b := make([]byte, 1)
	n, err := s.f.Read(b)
	if n > 0 && b[0] != want || !errors.Is(err, end) {
		return fmt.Errorf("%q, %w", b[:n], err)
	}
	return nil
}

func word(seg *shm.Segment) interface {
	Load() uint32
	Store(uint32)
} {
	return raw.Uint32(seg.Bytes()[:8], 4)
}

var pairs = map[string]pair{
	"append, Follow": {
		prepare: (*waker).stream,
		wake:    func(w *waker) error { _, err := w.seg.WriteAt([]byte("y"), 1); return err },
		wait:    func(s *sleeper) error { return s.follow('y', nil) },
	},
	"Finish, Follow": {
		prepare: (*waker).stream,
		wake:    func(w *waker) error { return w.seg.Finish() },
		wait:    func(s *sleeper) error { return s.follow(0, io.EOF) },
	},
	"Truncate lowers, Follow": {
		prepare: (*waker).stream,
		wake:    func(w *waker) error { return w.seg.Truncate(0) },
		wait:    func(s *sleeper) error { return s.follow(0, shm.ErrTruncated) },
	},
	"Truncate raises, Follow": {
		prepare: (*waker).stream,
		wake:    func(w *waker) error { return w.seg.Truncate(2) },
		wait:    func(s *sleeper) error { return s.follow(0, nil) },
	},
	"Close, Follow": {
		prepare: (*waker).stream,
		wake:    func(w *waker) error { return w.seg.Close() },
		wait:    func(s *sleeper) error { return s.follow(0, shm.ErrAbandoned) },
	},
	"Follow, Follow": {
		prepare: func(w *waker) error {
			if err := w.stream(); err != nil {
				return err
			}
			old := w.seg
			defer old.Close()
			var err error
			w.seg, err = shm.Open(w.name)
			return err
		},
		wake: func(w *waker) error { w.seg.Follow(context.Background()); return nil },
		wait: func(s *sleeper) error { return s.follow(0, shm.ErrAbandoned) },
	},
	"Notify, Wait": {
		prepare: func(w *waker) error {
			err := w.stream()
			word(w.seg).Store(0)
			return err
		},
		wake: func(w *waker) error {
			word(w.seg).Store(1)
			return w.seg.Notify()
		},
		wait: func(s *sleeper) error { return s.seg.Wait(s.ctx, func() bool { return word(s.seg).Load() == 1 }) },
	},
	"Unlock, Lock": {
		prepare: (*waker).lock,
		wake:    func(w *waker) error { return w.seg.Unlock() },
		wait:    func(s *sleeper) error { return s.lock(false) },
		locks:   true,
	},
	"Close, Lock": {
		prepare: (*waker).lock,
		wake:    func(w *waker) error { return w.seg.Close() },
		wait:    func(s *sleeper) error { return s.lock(true) },
		locks:   true,
	},
}

func (s *sleeper) lock(want bool) error {
	recovered, err := s.own.Lock(s.ctx)
	if err != nil || recovered != want {
		return fmt.Errorf("recovered %v, %w", recovered, err)
	}
	return s.own.Unlock()
}

// wakerProgram wakes, as often as it is told.
var wakerProgram = proctest.Register("waker", func(p *proctest.Parent) error {
	runtime.LockOSThread()
	pair, w := pairs[p.Args[0]], &waker{name: p.Args[1]}
	for {
		if _, err := p.Hear(); err != nil {
			return nil
		}
		if err := pair.prepare(w); err != nil {
			return err
		}
		p.Say("%d", unix.Gettid())
		if _, err := p.Hear(); err != nil { // traced
			return nil
		}
		Begin()
		err := pair.wake(w)
		End()
		p.Say("%s", errorWord(err))
		if _, err := p.Hear(); err != nil {
			return nil
		}
		w.seg.Close()
	}
})

// dozerProgram waits, as often as it is told.
var dozerProgram = proctest.Register("dozer", func(p *proctest.Parent) error {
	runtime.LockOSThread()
	setTick(time.Hour, nil)
	seg, err := shm.Open(p.Args[1], shm.ReadOnly())
	if err != nil {
		return err
	}
	pair, s := pairs[p.Args[0]], &sleeper{ctx: context.Background(), seg: seg}
	for {
		if _, err := p.Hear(); err != nil {
			return nil
		}
		if err := s.begin(pair.locks); err != nil {
			return err
		}
		p.Say("%d", unix.Gettid())
		if _, err := p.Hear(); err != nil { // traced
			return nil
		}
		Begin()
		err := pair.wait(s)
		End()
		p.Say("%s", errorWord(err))
	}
})

// side is a process that is traced, again and again, and the block, to which this process
// is attached ReadOnly.
type side struct {
	*proctest.Child
	pair
	t    *testing.T
	head []byte // of the block
	*sleeper
	asleep chan struct{}
}

func newSide(t *testing.T, p proctest.Program, what string) *side {
	t.Helper()
	asleep := make(chan struct{}, 1)
	t.Cleanup(setTick(time.Hour, asleep))
	seg := must(shm.Create("", size))(t)
	defer seg.Close()
	s := &sleeper{ctx: t.Context(), seg: must(shm.Open(seg.Name(), shm.ReadOnly()))(t)}
	t.Cleanup(func() { s.own.Close(); s.seg.Close(); mustBeGone(t, s.seg.Name()) })
	c := proctest.StartCommand(t, calm(proctest.Command(p, what, seg.Name())))
	t.Cleanup(c.Kill)
	return &side{c, pairs[what], t, mapHeader(t, seg.Name()), s, asleep}
}

func setTick(tick time.Duration, asleep chan<- struct{}) (reset func()) {
	old := object.Current
	object.Current = silent{old, tick, asleep}
	return func() { object.Current = old }
}

func mapHeader(t *testing.T, name string) []byte {
	t.Helper()
	f := must(os.Open(path(name)))(t)
	defer f.Close()
	head := must(unix.Mmap(int(f.Fd()), 0, 768, unix.PROT_READ, unix.MAP_SHARED))(t)
	t.Cleanup(func() { unix.Munmap(head) })
	return head
}

// trace has the process prepare, and stops it just after Begin.
func (s *side) trace() *Tracee {
	s.t.Helper()
	s.Say("prepare")
	v, err := Attach(must(strconv.Atoi(s.Hear()))(s.t))
	if err != nil {
		s.Child.Kill()
		s.t.Skipf("ptrace: %v; allow it (capability SYS_PTRACE, seccomp, kernel.yama.ptrace_scope)", err)
	}
	s.Say("traced")
	if _, err := v.Run(Inside); err != nil {
		s.t.Fatal(err)
	}
	return v
}

// stepTo lets the process make so many steps, or come to its end, or to where it is about
// to sleep. It returns at which of the steps something has happened that others can see.
func (s *side) stepTo(v *Tracee, at int) (events []int, steps int) {
	s.t.Helper()
	was := slices.Clone(s.head)
	for ; steps < at; steps++ {
		call, more, err := v.Step()
		if err != nil {
			s.t.Fatal(err)
		}
		if call != "" || !slices.Equal(was, s.head) {
			copy(was, s.head)
			events = append(events, steps)
		}
		if !more || call == "futex wait" {
			break
		}
	}
	return events, steps
}

// end lets the process come to its end. If it waits for good it is killed.
func (s *side) end(v *Tracee, at int) {
	s.t.Helper()
	late := time.AfterFunc(tooLong, func() { s.Process.Kill() })
	if _, err := v.Run(Nowhere); err != nil {
		s.t.Fatalf("stopped before step %d: it sleeps on: %v", at, err)
	}
	late.Stop()
	if got := s.Hear(); got != "done" {
		s.t.Fatalf("stopped before step %d: %s", at, got)
	}
}

const tooLong = 20 * time.Second // no machine is as busy as that

// everyPoint calls f with the numbers of steps to stop before, after it has called it
// with one that is never reached, for which it returns what happened when.
func (s *side) everyPoint(f func(at int) (events []int, steps int)) {
	s.t.Helper()
	events, steps := f(math.MaxInt)
	near := map[int]bool{}
	for _, at := range events {
		for i := max(at-40, 0); i < at+8; i++ {
			near[i] = true
		}
	}
	points, n := slices.Collect(maps.Keys(near)), 0
	rand.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
	for sum := 0; n < len(points) && sum < *budget; n++ {
		f(points[n])
		sum += points[n]
	}
	s.t.Logf("stopped before %d of %d instructions, around %d events", n, steps, len(events))
}

var budget = flag.Int("steps", 50_000, "step through so many instructions in each test of two processes that wait for each other")

// TestWakePoints stops a process that wakes another one before an instruction, has the
// other one go to sleep there, and lets the first go on: it must wake the sleeper.
func TestWakePoints(t *testing.T) {
	onTmpfs(t)
	for _, name := range sorted(pairs) {
		t.Run(name, func(t *testing.T) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			s := newSide(t, wakerProgram, name)
			s.everyPoint(func(at int) (events []int, steps int) {
				first := at == math.MaxInt
				v := s.trace()
				if err := s.begin(s.locks); err != nil {
					t.Fatal(err)
				}
				if !first {
					s.stepTo(v, at)
				}
				result := make(chan error, 1)
				s.doze(result)
				if first { // all that happens if there is a sleeper
					events, steps = s.stepTo(v, at)
				}
				s.end(v, at)
				select {
				case err := <-result:
					if err != nil {
						t.Fatalf("stopped before step %d: %v", at, err)
					}
				case <-time.After(tooLong):
					t.Fatalf("stopped before step %d: the other one sleeps on", at)
				}
				s.Say("close")
				return events, steps
			})
		})
	}
}

// doze waits in another goroutine, and returns when that is about to sleep, or has seen
// what it waits for already.
func (s *side) doze(result chan<- error) {
	select {
	case <-s.asleep:
	default:
	}
	awake := make(chan struct{})
	go func() {
		result <- s.wait(s.sleeper)
		close(awake)
	}()
	select {
	case <-s.asleep:
	case <-awake:
	}
}

// TestSleepPoints stops a process that is about to sleep before an instruction, has this
// one do all that it waits for, and lets it go on: it must not sleep.
func TestSleepPoints(t *testing.T) {
	onTmpfs(t)
	for _, name := range sorted(pairs) {
		t.Run(name, func(t *testing.T) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			s := newSide(t, dozerProgram, name)
			s.everyPoint(func(at int) (events []int, steps int) {
				w := &waker{name: s.seg.Name()}
				if err := s.prepare(w); err != nil {
					t.Fatal(err)
				}
				defer func() { w.seg.Close() }()
				v := s.trace()
				events, steps = s.stepTo(v, at)
				if err := s.wake(w); err != nil {
					t.Fatal(err)
				}
				s.end(v, at)
				return events, steps
			})
		})
	}
}

// calm has a process make fewer calls of the runtime's, and take no signals of it: what
// is stepped through must not store the flags of the processor, as a handler does.
func calm(cmd *exec.Cmd) *exec.Cmd {
	cmd.Env = append(cmd.Env, "GOGC=off", "GODEBUG=asyncpreemptoff=1")
	return cmd
}
