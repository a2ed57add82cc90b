package shm

// How calls sleep until a word in the header changes, and how they are woken.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"sync"
	"time"
)

var errNoWords = fmt.Errorf("%w: a Headerless block has no words to wait on", errors.ErrUnsupported)

// changed wakes those that wait on the block, after one of its words has changed. The
// caller is under guard.
func (m *mapping) changed() {
	if m.head.armed().Load() != 0 {
		m.wake()
	}
}

func (m *mapping) wake() {
	if m.head.armed().Swap(0) != 0 {
		m.wakeAll()
	}
}

func (m *mapping) wakeAll() {
	m.head.event().Add(1)
	m.file.Wake(m.mem, offEvent, true)
}

// tick bounds how late a process learns of what makes no sound: the end of another
// one, be it just before it had to wake somebody.
var tick = 250 * time.Millisecond // a variable for tests alone

// wait calls look until it returns true or an error. A look that comes with last set
// comes just before wait sleeps: what changes after it wakes. While it sleeps, idle may be
// called now and then, from any goroutine: if it returns false, wait looks.
//
//	waiter: e = event; armed = 1; look; sleep while event == e; again
//	writer: change; if armed != 0 and swap(armed, 0) != 0 { event++; wake all }
//
// One of the two sees the other, because atomic operations have one order.
func (m *mapping) wait(ctx context.Context, look func(last bool) (done bool, err error), idle func() bool) error {
	if m.start == 0 {
		return errNoWords
	}
	if done, err := look(false); done || err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if done, err := m.waitAwake(look); done || err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, m.wakeOwn)
	defer stop()
	m.sleepers.Add(1)
	defer m.sleepers.Add(-1)
	still := func() (still bool) {
		m.words(func(h header) { still = h.armed().Load() != 0 }) // if not, somebody was about to wake
		return still && idle()
	}
	for {
		var event uint32
		err := m.words(func(h header) {
			event = h.event().Load()
			if m.file.Writable() {
				h.armed().Store(1)
			}
		})
		if err != nil {
			return err
		}
		if done, err := look(true); done || err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if m.gate.Closed() {
			return fs.ErrClosed
		}
		if m.file.Writable() {
			m.file.Sleep(m.mem, offEvent, event, tick, still)
		} else {
			time.Sleep(2 * time.Millisecond)
		}
		// Before it arms again: a writer need not wake one that has found something.
		if done, err := look(false); done || err != nil {
			return err
		}
	}
}

// wakeOwn wakes the calls of this attachment that sleep.
func (m *mapping) wakeOwn() {
	if token, open := m.gate.Enter(); open {
		defer m.gate.Leave(token)
		m.wakeSleepers()
	}
}

func (m *mapping) wakeSleepers() {
	if m.sleepers.Load() > 0 && m.file.Writable() {
		m.words(func(header) { m.wakeAll() })
	}
}

// waitAwake looks for a while without sleeping, if that has been of use lately: a process
// that answers within microseconds is seen sooner so. Then it lets other processes
// run, twice: with one processor that is the quickest way to an answer. Beside busy
// processes a yield gives up a whole time slice, and is left out for longer.
func (m *mapping) waitAwake(look func(last bool) (done bool, err error)) (done bool, err error) {
	const longest, slice = 50 * time.Microsecond, 100 * time.Microsecond
	if processors() > 1 && m.spins.Due() {
		for start := time.Now(); time.Since(start) < longest; {
			for range 8 {
				pause()
				if done, err = look(false); done || err != nil {
					m.spins.Succeeded()
					return done, err
				}
			}
		}
		m.spins.Failed(4, 256)
	}
	if !m.yields.Due() {
		return false, nil
	}
	slow := false
	for range 2 {
		start := time.Now()
		m.file.Yield()
		slow = slow || time.Since(start) > slice
		if done, err = look(false); done || err != nil {
			break
		}
	}
	if slow {
		m.yields.Failed(16, 1024)
	} else {
		m.yields.Succeeded()
	}
	return done, err
}

var processors = sync.OnceValue(runtime.NumCPU)

// pause passes some nanoseconds without touching memory: the compiler keeps a loop that
// does nothing.
func pause() {
	for range 32 {
	}
}
