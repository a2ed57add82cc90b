//go:build amd64 || arm64

package waiting

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/killpoints"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/internal/raw"
	"github.com/shmkit/shm/internal/standin"
)

// A lockPlay is a play about the lock. The peer stops where it has to wait, and goes on
// at the next cue.
type lockPlay struct {
	dead   bool // a process has died with the lock
	before []LockCall
	calls  []LockCall
	peer   []LockCall
	cues   cues
}

// whose returns how a tag is noted, and its mark, which the library keeps for nobody, too.
func whose(t tag) string {
	who := "free"
	switch {
	case t.of == abandoned:
		return "nobody"
	case t.of != 0:
		who = []string{"own", "peer", "dead"}[t.of-1]
	}
	return who + pick(t.mark, "+", "")
}

func (p *lockPlay) rehearse() []string {
	sc := &Lock{Programs: [][]LockCall{p.calls}, Kills: 1, Ticks: true}
	if peer := append(slices.Clone(p.before), p.peer...); len(peer) > 0 || p.dead {
		sc.Programs = append(sc.Programs, append(peer, Acquire), lck)
	}
	w := &lockWorld{Lock: sc, lockState: sc.Start()}
	run := func(i, calls int) {
		w.self = i
		if q := &w.procs[i]; q.pc == lAsleep || q.pc == gAsleep {
			w.step(q) // a tick
		}
		for q, end := &w.procs[i], int(w.procs[i].call)+calls; q.pc > lFinished && int(q.call) < end && q.pc != lAsleep && q.pc != gAsleep; {
			w.step(q)
		}
		w.self = 0
	}
	if p.dead {
		run(2, 1)
		w.kill(&w.procs[2])
		w.bytes[2], w.procs[2].found = false, false
	}
	run(1, len(p.before))
	n := newNotes(&play{cues: p.cues}, func(calls int) { run(1, calls) })
	for q := &w.procs[0]; q.pc > lKilled && len(n.list) < 100; {
		if q.pc == lFast { // the library looks at guest first
			q.pc = pick(sc.guests(), lGuestFirst, lLoad)
		}
		at := q.pc
		if at == lAsleep {
			n.add("asleep for good")
			break
		}
		switch at {
		case lAsk:
			if q.s.of != abandoned { // for which the library asks nobody
				n.add("ask")
			}
		case lGuestFirstAsk, lGuestAsk, cDrop:
			n.add("ask")
		case lSleep:
			n.add("futex wait")
		case uWake, lBackWake:
			n.add("futex wake")
		}
		held, guest := w.held, w.guest
		w.self = 0
		w.step(q)
		if at == lAsk && !q.found || at == lGuestFirstAsk && q.pc == lSleep {
			q.woken = true // the library marks as soon as it has found the lock taken
		}
		if at == lBackWake && q.pc != lWake { // TryLock of the library looks once more
			n.add("ask")
		}
		heldChanged, guestChanged := held != w.held, guest != w.guest
		if heldChanged {
			n.add("held=" + whose(w.held))
		}
		if guestChanged {
			n.add("guest=" + whose(w.guest))
		}
		if at == uRaise || at == lBackRaise {
			n.add("wake")
		}
	}
	if p.calls[len(p.calls)-1] == Leave {
		n.add("ask") // the library, whether it was the last
	}
	return n.list
}

// lockActor makes the calls.
var lockActor = proctest.Register("lockactor", func(p *proctest.Parent) error {
	runtime.LockOSThread()
	seg, err := shm.Open(p.Args[0])
	if err != nil {
		return err
	}
	seg.TryLock() // tells the test its tag
	p.Say("%d", unix.Gettid())
	if _, err := p.Hear(); err != nil {
		return err
	}
	seg.Unlock()
	p.Say("ready")
	if _, err := p.Hear(); err != nil {
		return err
	}
	killpoints.Begin()
	has := false
	for _, c := range parse(p.Args[1]) {
		switch LockCall(c) {
		case Acquire:
			_, err = seg.Lock(context.Background())
			has = true
		case Try:
			_, err = seg.TryLock()
			if has = err == nil; errors.Is(err, shm.ErrLocked) {
				err = nil
			}
		case Release:
			if has {
				err = seg.Unlock()
			}
		case Leave:
			err = seg.Close()
		}
		if err != nil {
			break
		}
	}
	killpoints.End()
	p.Say("%v", err)
	_, err = p.Hear()
	return err
})

// guestPeer is the peer of a play, this process; as a guest it does what Python does.
type guestPeer struct {
	t    *testing.T
	seg  *shm.Segment
	mem  []byte
	tag  uint64
	rest []LockCall
	dead []uint64 // tags of nobody
	wait chan error
}

func (g *guestPeer) held() uint64 { return raw.Uint64(g.mem, 384).Load() }

// run makes as many calls as that, or comes to where it has to wait.
func (g *guestPeer) run(calls int) {
	for ; calls > 0 && len(g.rest) > 0; calls-- {
		guest := raw.Uint64(g.mem, 392)
		switch g.rest[0] {
		case Acquire:
			if g.wait == nil {
				g.wait = make(chan error, 1)
				go func() { _, err := g.seg.Lock(context.Background()); g.wait <- err }()
			}
			for end := time.Now().Add(time.Minute); ; runtime.Gosched() {
				if g.held()>>1 == g.tag {
					g.check(<-g.wait)
					g.wait = nil
					break
				}
				if g.held()&1 != 0 || time.Now().After(end) {
					return
				}
			}
		case Release:
			g.check(g.seg.Unlock())
		case Leave:
			g.check(g.seg.Close())
		case GuestAcquire:
			guest.CompareAndSwap(0, g.tag<<1)
			held := g.held()
			if held != 0 && !slices.Contains(g.dead, held>>1) {
				return
			}
			if guest.Store(g.tag<<1 | 1); held != 0 {
				raw.Uint64(g.mem, 384).Store(0)
			}
		case GuestRelease:
			guest.Store(0)
			raw.Uint32(g.mem, 400).Add(1) // nobody sleeps
		}
		g.rest = g.rest[1:]
	}
}

func (g *guestPeer) check(err error) {
	if err != nil {
		g.t.Error(err)
	}
}

func (p *lockPlay) perform(t *testing.T) []string {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	seg := must(shm.Create("", cells))
	mem := mapped(t, seg.Name(), os.Getpagesize())
	stay := must(shm.Open(seg.Name()))
	defer stay.Close()
	must(stay.TryLock())
	g := &guestPeer{t: t, seg: seg, mem: mem, dead: []uint64{0xdead, 1<<60 - 1}}
	stay.Unlock()
	must(seg.TryLock())
	g.tag = g.held() >> 1
	seg.Unlock()
	defer func() {
		seg.Close()
		if g.wait != nil {
			<-g.wait
		}
	}()
	if p.dead {
		raw.Uint64(mem, 384).Store(0xdead << 1)
	}

	var numbers strings.Builder
	for _, c := range p.calls {
		fmt.Fprintf(&numbers, "%d ", c)
	}
	saved := g.held()
	raw.Uint64(mem, 384).Store(0)
	cmd := proctest.Command(lockActor, seg.Name(), numbers.String())
	cmd.Env = append(cmd.Env, "GOGC=off", "GODEBUG=asyncpreemptoff=1")
	child := proctest.StartCommand(t, cmd)
	defer child.Kill()
	tid := must(strconv.Atoi(child.Hear()))
	own := g.held() >> 1
	child.Say("unlock")
	child.Expect("ready")
	raw.Uint64(mem, 384).Store(saved)
	g.rest = append(slices.Clone(p.before), p.peer...)
	g.run(len(p.before))
	tracee, err := killpoints.Attach(tid)
	if err != nil {
		t.Skipf("ptrace: %v; allow it (capability SYS_PTRACE, seccomp, kernel.yama.ptrace_scope)", err)
	}
	child.Say("traced")
	if _, err := tracee.Run(killpoints.Inside); err != nil {
		t.Fatal(err)
	}
	name := func(word uint64) string {
		if word>>1 == 1<<60-1 {
			return "nobody"
		}
		who := map[uint64]string{0: "free", own: "own", g.tag: "peer", 0xdead: "dead"}[word>>1]
		return who + pick(word&1 != 0, "+", "")
	}
	words := func() (held, guest uint64, wake uint32) {
		return binary.NativeEndian.Uint64(mem[384:]), binary.NativeEndian.Uint64(mem[392:]), binary.NativeEndian.Uint32(mem[400:])
	}
	held, guest, wake := words()
	n := newNotes(&play{cues: p.cues}, func(calls int) {
		g.run(calls)
		held, guest, wake = words()
	})
	for len(n.list) < 100 {
		call, more, err := tracee.Step()
		if err != nil {
			t.Fatal(err)
		}
		if now, _, _ := words(); held != now {
			if held = now; g.wait == nil || now>>1 != g.tag { // a waiter takes it when it is woken
				n.add("held=" + name(now))
			}
		}
		if _, now, _ := words(); guest != now {
			guest = now
			n.add("guest=" + name(now))
		}
		if _, _, now := words(); wake != now {
			wake = now
			n.add("wake")
		}
		if call == "fcntl" {
			n.add("ask")
		} else if strings.HasPrefix(call, "futex") {
			n.add(call)
		}
		if !more {
			break
		}
	}
	if _, err := tracee.Run(killpoints.Nowhere); err != nil {
		t.Fatal(err)
	}
	child.Expect("<nil>")
	return n.list
}

var lockPlays = map[string]lockPlay{
	"free":                             {calls: lck},
	"free, TryLock":                    {calls: try},
	"twice":                            {calls: lckTwice},
	"taken, TryLock":                   {before: lck[:1], calls: try},
	"dead":                             {dead: true, calls: lck},
	"dead, TryLock":                    {dead: true, calls: try},
	"closed with it":                   {before: lckClose, calls: lck},
	"Close with it":                    {calls: lckClose},
	"Close, another waits":             {calls: lckClose, peer: lck[:1], cues: cues{"held=own 1": 1}},
	"another waits":                    {calls: lck, peer: lck[:1], cues: cues{"held=own 1": 1}},
	"taken, released before the mark":  {before: lck[:1], calls: lck, peer: []LockCall{Release}, cues: cues{"ask 1": 1}},
	"taken, released after the mark":   {before: lck[:1], calls: lck, peer: []LockCall{Release}, cues: cues{"held=peer+ 1": 1}},
	"taken, released before the sleep": {before: lck[:1], calls: lck, peer: []LockCall{Release}, cues: cues{"futex wait 1": 1}},
	"taken, closed after the mark":     {before: lck[:1], calls: lck, peer: []LockCall{Leave}, cues: cues{"held=peer+ 1": 1}},
	"taken, closed before the sleep":   {before: lck[:1], calls: lck, peer: []LockCall{Leave}, cues: cues{"futex wait 1": 1}},
	"dead, another is first":           {dead: true, calls: try, peer: lck[:1], cues: cues{"ask 1": 1}},

	"guest has it, TryLock": {before: gst[:1], calls: try},
	"guest has it":          {before: gst[:1], calls: lck, peer: []LockCall{GuestRelease}, cues: cues{"futex wait 1": 1}},
	"guest comes":           {calls: lck, peer: gst, cues: cues{"held=own 1": 1, "wake 1": 1, "futex wait 1": 1}},
	"guest comes, TryLock":  {calls: try, peer: gst, cues: cues{"held=own 1": 1}},
	"guest comes, dead":     {dead: true, calls: try, peer: gst, cues: cues{"held=own+ 1": 1}},
}

// TestLockTrace plays the plays about the lock on both sides.
func TestLockTrace(t *testing.T) {
	if standin.Used() != nil {
		t.Skip("blocks are not files in /dev/shm here")
	}
	for name, p := range lockPlays {
		t.Run(name, func(t *testing.T) {
			real, model := p.perform(t), p.rehearse()
			t.Log(strings.Join(real, ", "))
			if !slices.Equal(real, model) {
				t.Errorf("the library:\n%s\nthe model:\n%s", strings.Join(real, "\n"), strings.Join(model, "\n"))
			}
		})
	}
}
