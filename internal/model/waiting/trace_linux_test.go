//go:build amd64 || arm64

package waiting

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/killpoints"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/internal/raw"
	"github.com/shmkit/shm/internal/standin"
)

// What ties the model to the library is this test. A process makes calls of the library,
// and is stepped through them instruction by instruction: each store to a word of the
// model or to a byte of the block is noted, and each system call. One process of the
// model makes the same calls in the same situation. Both have to do the same, in the
// same order. What a process only loads does not show by itself. So in between, after
// one of the notes, another process makes a call of its own, on both sides: where the
// order of the loads is another one, the rest is, too.

func TestMain(m *testing.M) {
	proctest.Main()
	os.Exit(m.Run())
}

// A play is what a process does in a situation, and another one meanwhile.
type play struct {
	before []Call // by the peer
	armed  bool
	calls  []Call
	peer   []Call         // the peer closes when it has made the last one, if leaves is set
	cues   map[string]int // the notes after which the peer makes that many calls: "armed 1" is the first armed
	leaves bool
}

// notes are what a process does that others can see.
type notes struct {
	list  []string
	count map[string]int
	play  *play
	cue   func(calls int)
}

func (n *notes) add(note string) {
	if len(n.list) > 0 && n.list[len(n.list)-1] == note && (note == "clear" || note == "ask") {
		return // of several bytes, or writers and others
	}
	n.list = append(n.list, note)
	n.count[note]++
	if calls := n.play.cues[fmt.Sprint(note, " ", n.count[note])]; calls > 0 {
		n.list = append(n.list, "the peer")
		n.cue(calls)
	}
}

func newNotes(p *play, cue func(int)) *notes {
	return &notes{count: map[string]int{}, play: p, cue: cue}
}

// view is what others can see of a block. Generations are counted from the first.
type view struct {
	size   word
	gen    uint8
	dirty  uint8
	armed  bool
	locked bool
	data   [cells]bool // not zero
}

func (n *notes) changes(from, to view) {
	if from.data != to.data {
		cleared := false
		for i := range from.data {
			cleared = cleared || from.data[i] && !to.data[i]
		}
		n.add(pick(cleared, "clear", "copy"))
	}
	if from.dirty != to.dirty {
		n.add(fmt.Sprint("dirty=", to.dirty))
	}
	if from.gen != to.gen {
		n.add(fmt.Sprint("generation=", to.gen))
	}
	if from.size != to.size {
		n.add(fmt.Sprintf("size=%+v", to.size))
	}
	if from.locked != to.locked {
		n.add(pick(to.locked, "lock", "unlock"))
	}
	if from.armed != to.armed {
		n.add(pick(to.armed, "armed", "disarmed"))
	}
}

func (s *state) view() (v view) {
	v = view{size: s.size, gen: s.gen, dirty: s.dirty, armed: s.armed, locked: s.cut != 0}
	for i, b := range s.data {
		v.data[i] = b != 0
	}
	return v
}

// rehearse returns the notes of the model.
func (p *play) rehearse() []string {
	sc := &Stream{Programs: [][]Call{p.calls, append(slices.Clone(p.before), p.peer...)}, Low: maxGens, Ticks: true}
	w := &world{Stream: sc, state: sc.Start()}
	peer := func(calls int) {
		w.self = 1
		q := &w.procs[1]
		for end := int(q.call) + calls; q.pc > finished && int(q.call) < end; {
			if w.step(q); q.call == 0 && end == len(sc.Programs[1]) && (q.pc == xDrop || q.pc == finished) {
				if !p.leaves {
					return
				}
				end = len(sc.Programs[1]) + 1
			}
		}
		w.self = 0
	}
	if len(p.before) > 0 {
		peer(len(p.before))
	}
	w.armed = p.armed
	n := newNotes(p, func(calls int) { peer(calls); w.self = 0 })
	for q := &w.procs[0]; q.pc > killed && len(n.list) < 100; {
		at := *q
		w.self, w.record, w.log = 0, true, nil
		if at.pc == fAsleep {
			n.add("asleep for good")
			break
		}
		switch at.pc {
		case fAsk, xDrop:
			n.add("ask")
		case fSleep:
			n.add("futex wait")
		case aWake:
			n.add("futex wake")
		}
		from := w.view()
		w.step(q)
		if at.pc == aEvent {
			n.add("event")
		}
		n.changes(from, w.view())
		said := string(w.log)
		for _, end := range []string{"ErrFinished", "io.EOF", "ErrTruncated", "ErrAbandoned"} {
			if strings.Contains(said, end) {
				n.add(end)
			}
		}
		if strings.Contains(said, "delivers") {
			n.add(fmt.Sprint("delivers ", q.off-at.off))
		}
	}
	if !reads(p.calls) {
		n.add("ask") // the library's Close, whether it was the last
	}
	return n.list
}

func reads(list []Call) bool { return slices.Contains(list, Follow) || slices.Contains(list, Wait1) }

// actor makes the calls, and says what a Follower has said after End. Its stores to a word
// in memory that it shares with the test say when.
var actor = proctest.Register("actor", func(p *proctest.Parent) error {
	runtime.LockOSThread()
	list := parse(p.Args[1])
	var opts []shm.Option
	if reads(list) {
		opts = append(opts, shm.ReadOnly())
	}
	seg, err := shm.Open(p.Args[0], opts...)
	if err != nil {
		return err
	}
	outcome, err := shm.Open(p.Args[2])
	if err != nil {
		return err
	}
	seg.Size() // decides whether calls pass the gate
	p.Say("%d", unix.Gettid())
	if _, err := p.Hear(); err != nil {
		return err
	}
	killpoints.Begin()
	perform(seg, list, outcome.Bytes())
	if !reads(list) {
		seg.Close()
	}
	killpoints.End()
	p.Say("done")
	_, err = p.Hear()
	return err
})

// outcomes are noted by their numbers; beyond them, of so many bytes delivered.
var outcomes = []string{"", "ErrFinished", "io.EOF", "ErrTruncated", "ErrAbandoned"}

func outcomeOf(err error) uint32 {
	for i, e := range []error{shm.ErrFinished, io.EOF, shm.ErrTruncated, shm.ErrAbandoned} {
		if errors.Is(err, e) {
			return uint32(i + 1)
		}
	}
	panic(err)
}

func perform(seg *shm.Segment, list []Call, outcome []byte) {
	tell := func(what uint32) { raw.Uint32(outcome, 0).Store(what | (raw.Uint32(outcome, 0).Load()&^255 + 256)) }
	for _, c := range list {
		var err error
		switch c {
		case Write0, Write1:
			_, err = seg.WriteAt([]byte("x"), int64(c.offset()))
		case Truncate0, Truncate1, Truncate2:
			err = seg.Truncate(int64(c.offset()))
		case Finish:
			err = seg.Finish()
		case Wait1:
			err = seg.Wait(context.Background(), func() bool { return seg.Size() >= 1 })
		case Follow:
			f, b := seg.Follow(context.Background()), make([]byte, cells)
			for err == nil {
				var n int
				if n, err = f.Read(b); n > 0 {
					tell(uint32(len(outcomes) + n))
				}
			}
		}
		if err != nil {
			tell(outcomeOf(err))
		}
	}
}

func parse(s string) (list []Call) {
	for _, word := range strings.Fields(s) {
		n, err := strconv.Atoi(word)
		if err != nil {
			panic(err)
		}
		list = append(list, Call(n))
	}
	return list
}

func print(list []Call) string {
	var b strings.Builder
	for _, c := range list {
		fmt.Fprintf(&b, "%d ", c)
	}
	return b.String()
}

// stage is a block with a peer, which is this process.
type stage struct {
	mem     []byte // the header's page and the first bytes
	outcome []byte
	base    uint64 // generation at first
	peer    *shm.Segment
}

func (s *stage) view() (v view) {
	u64 := func(off int) uint64 { return binary.NativeEndian.Uint64(s.mem[off:]) }
	w := u64(192)
	length := w & (1<<48 - 1)
	v.size = word{uint8(length), w>>62&1 != 0, w>>63 != 0, w>>61&1 != 0, uint8((w>>48&(1<<13-1) - s.base) % maxGens)}
	v.gen = uint8(u64(208) - s.base)
	v.dirty = uint8(u64(216))
	v.armed = binary.NativeEndian.Uint32(s.mem[200:]) != 0
	v.locked = u64(448) != 0
	for i := range v.data {
		v.data[i] = s.mem[os.Getpagesize()+i] != 0
	}
	return v
}

func mapped(t *testing.T, name string, length int) []byte {
	t.Helper()
	f := must(os.OpenFile("/dev/shm/"+name, os.O_RDWR, 0))
	defer f.Close()
	b := must(unix.Mmap(int(f.Fd()), 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED))
	t.Cleanup(func() { unix.Munmap(b) })
	return b
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// perform returns the notes of the library.
func (p *play) perform(t *testing.T) []string {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	first := must(shm.Create("", cells))
	defer first.Close()
	if err := first.Truncate(0); err != nil { // as the model begins
		t.Fatal(err)
	}
	stay := must(shm.Open(first.Name(), shm.ReadOnly())) // so that no Close is the last
	defer stay.Close()
	out := must(shm.Create("", 8))
	defer out.Close()
	s := &stage{mem: mapped(t, first.Name(), os.Getpagesize()+cells), outcome: out.Bytes(), peer: must(shm.Open(first.Name()))}
	defer func() { s.peer.Close() }()
	first.Close()
	if !slices.ContainsFunc(append(slices.Clone(p.before), p.peer...), Call.writes) {
		s.peer.Close()
		s.peer = must(shm.Open(stay.Name(), shm.ReadOnly()))
	}
	s.base = binary.NativeEndian.Uint64(s.mem[208:])
	binary.NativeEndian.PutUint64(s.mem[216:], 0)
	nothing := make([]byte, 8)
	perform(s.peer, p.before, nothing)
	raw.Uint32(s.mem, 200).Store(pick[uint32](p.armed, 1, 0))

	cmd := proctest.Command(actor, stay.Name(), print(p.calls), out.Name())
	cmd.Env = append(cmd.Env, "GOGC=off", "GODEBUG=asyncpreemptoff=1")
	child := proctest.StartCommand(t, cmd)
	defer child.Kill()
	tracee, err := killpoints.Attach(must(strconv.Atoi(child.Hear())))
	if err != nil {
		t.Skipf("ptrace: %v; allow it (capability SYS_PTRACE, seccomp, kernel.yama.ptrace_scope)", err)
	}
	child.Say("traced")
	if _, err := tracee.Run(killpoints.Inside); err != nil {
		t.Fatal(err)
	}
	rest := p.peer
	last, event, told := s.view(), raw.Uint32(s.mem, 320).Load(), uint32(0)
	expected := event // that it sleeps on
	n := newNotes(p, func(calls int) {
		perform(s.peer, rest[:calls], nothing)
		if rest = rest[calls:]; len(rest) == 0 && p.leaves {
			s.peer.Close()
		}
		last, event = s.view(), raw.Uint32(s.mem, 320).Load()
	})
	for call := ""; len(n.list) < 100; {
		next, more, err := tracee.Step()
		if err != nil {
			t.Fatal(err)
		}
		if o := raw.Uint32(s.outcome, 0).Load(); o != told {
			told = o
			if o &= 255; int(o) < len(outcomes) {
				n.add(outcomes[o])
			} else {
				n.add(fmt.Sprint("delivers ", int(o)-len(outcomes)))
			}
		}
		now := s.view()
		if from := last; from != now {
			if last = now; now.armed && !from.armed {
				expected = event
			}
			n.changes(from, now)
		}
		if e := raw.Uint32(s.mem, 320).Load(); e != event {
			event = e
			n.add("event")
		}
		if call = next; call == "fcntl" {
			n.add("ask")
		} else if call != "" && strings.HasPrefix(call, "futex") {
			if n.add(call); call == "futex wait" && expected == event {
				n.add("asleep for good")
				return n.list
			}
		}
		if !more {
			break
		}
	}
	if _, err := tracee.Run(killpoints.Nowhere); err != nil {
		t.Fatal(err)
	}
	return n.list
}

// plays has every call in every situation, and what can come in between.
func plays() map[string]play {
	list := map[string]play{}
	for name, before := range map[string]calls{
		"empty": nil, "one byte": {Write0}, "full": {Write0, Write1}, "finished": {Write0, Write1, Finish}, "truncated": {Write0, Write1, Truncate0},
	} {
		for _, c := range []Call{Write0, Write1, Truncate0, Truncate1, Truncate2, Finish} {
			for _, armed := range []bool{false, true} {
				list[fmt.Sprintf("%v, %s, armed %v", c, name, armed)] = play{before: before, armed: armed, calls: calls{c}}
			}
		}
	}
	one, two := calls{Write0}, calls{Write0, Write1}
	for name, p := range map[string]play{
		"append, another appends":             {calls: one, peer: calls{Write0}, cues: cues{"copy 1": 1}},
		"append, another appends more":        {calls: one, peer: two, cues: cues{"copy 1": 2}},
		"append, another appends behind it":   {before: one, calls: calls{Write1}, peer: calls{Truncate2}, cues: cues{"copy 1": 1}},
		"append, another truncates":           {calls: one, peer: calls{Truncate1, Truncate0}, cues: cues{"copy 1": 2}},
		"append, another truncates, twice":    {calls: one, peer: calls{Truncate1, Truncate0, Truncate1, Truncate0}, cues: cues{"copy 1": 2, "copy 2": 2}},
		"append, another finishes":            {calls: one, peer: calls{Finish}, cues: cues{"copy 1": 1}},
		"append, another finishes further on": {calls: one, peer: calls{Write0, Finish}, cues: cues{"copy 1": 2}},

		"Truncate, another appends": {before: one, calls: calls{Truncate0}, peer: calls{Write1}, cues: cues{"dirty=1 1": 1}},
		"Truncate, another appends after the generation": {before: one, calls: calls{Truncate0}, peer: calls{Write1},
			cues: cues{"generation=1 1": 1}},
		"Truncate, another finishes":             {before: one, calls: calls{Truncate0}, peer: calls{Finish}, cues: cues{"generation=1 1": 1}},
		"Truncate to the same, another finishes": {before: one, calls: calls{Truncate1}, peer: calls{Finish}, cues: cues{"lock 1": 1}},
		"Truncate raises, another appends":       {before: one, calls: calls{Truncate2}, peer: calls{Write1}, cues: cues{"lock 1": 1}},
		"Truncate, another writes below Size":    {before: two, calls: calls{Truncate1}, peer: calls{Write0}, cues: cues{"generation=1 1": 1}},

		"Follow, finished":        {before: calls{Write0, Finish}, calls: follow},
		"Follow, finished, empty": {before: calls{Finish}, calls: follow},
		"Follow, nothing":         {calls: follow},
		"Follow, begun when armed": {calls: follow, peer: calls{Write0, Finish},
			cues: cues{"armed 1": 1, "armed 2": 1}},
		"Follow, begun before it sleeps": {calls: follow, peer: calls{Write0, Finish},
			cues: cues{"futex wait 1": 1, "futex wait 2": 1}},
		"Follow, appended when armed":        {before: one, calls: follow, peer: calls{Write1, Finish}, cues: cues{"armed 1": 1, "armed 2": 1}},
		"Follow, appended when asked":        {before: one, calls: follow, peer: calls{Write1, Finish}, cues: cues{"ask 1": 1, "ask 2": 1}},
		"Follow, appended before it sleeps":  {before: one, calls: follow, peer: calls{Write1, Finish}, cues: cues{"futex wait 1": 1, "futex wait 2": 1}},
		"Follow, abandoned when armed":       {before: one, calls: follow, peer: calls{Write1}, cues: cues{"armed 1": 1}, leaves: true},
		"Follow, abandoned before it asks":   {before: one, calls: follow, peer: calls{Write1}, cues: cues{"ask 1": 1}, leaves: true},
		"Follow, abandoned before it sleeps": {before: one, calls: follow, peer: calls{Write1}, cues: cues{"futex wait 1": 1}, leaves: true},
		"Follow, abandoned with nothing":     {before: one, calls: follow, peer: calls{Write0}, cues: cues{"futex wait 1": 1}, leaves: true},
		"Follow, abandoned, finished":        {before: one, calls: follow, peer: calls{Finish}, cues: cues{"ask 1": 1}, leaves: true},
		"Follow, truncated when armed":       {before: one, calls: follow, peer: calls{Truncate0}, cues: cues{"armed 1": 1}},
		"Follow, truncated when asked":       {before: one, calls: follow, peer: calls{Truncate0, Write0}, cues: cues{"ask 1": 2}},
		"Follow, truncated before it sleeps": {before: one, calls: follow, peer: calls{Truncate0, Write0, Finish}, cues: cues{"futex wait 1": 3}},
		"Follow, truncated after a byte":     {before: two, calls: follow, peer: calls{Truncate0, Write0, Finish}, cues: cues{"delivers 2 1": 3}},
		"Follow, reopened":                   {before: one, calls: follow, peer: calls{Finish, Truncate1}, cues: cues{"armed 1": 2}},
		"Follow, raised":                     {before: one, calls: follow, peer: calls{Truncate2, Finish}, cues: cues{"armed 1": 1, "armed 2": 1}},

		"Wait, there":            {before: one, calls: calls{Wait1}},
		"Wait, when armed":       {calls: calls{Wait1}, peer: one, cues: cues{"armed 1": 1}},
		"Wait, before it sleeps": {calls: calls{Wait1}, peer: one, cues: cues{"futex wait 1": 1}},
		"Wait, not yet":          {calls: calls{Wait1}, peer: calls{Finish, Truncate0, Write0}, cues: cues{"futex wait 1": 2, "futex wait 2": 1}},
	} {
		list[name] = p
	}
	return list
}

var follow = calls{Follow}

type cues = map[string]int

// TestTrace plays everything on both sides.
func TestTrace(t *testing.T) {
	if standin.Used() != nil {
		t.Skip("blocks are not files in /dev/shm here")
	}
	for name, p := range plays() {
		t.Run(name, func(t *testing.T) {
			real, model := p.perform(t), p.rehearse()
			t.Log(strings.Join(real, ", "))
			if n := strings.Count(strings.Join(real, ", "), "the peer"); n != len(p.cues) {
				t.Errorf("the peer came in %d times, want %d", n, len(p.cues))
			}
			if !slices.Equal(real, model) {
				t.Errorf("the library:\n%s\nthe model:\n%s", strings.Join(real, "\n"), strings.Join(model, "\n"))
			}
		})
	}
}
