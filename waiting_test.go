package shm_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/internal/raw"
)

// asleep waits until n calls of seg, of this process, sleep or are about to.
func asleep(t testing.TB, seg *shm.Segment, n int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); shm.Sleepers(seg) != n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d calls sleep, want %d", shm.Sleepers(seg), n)
		}
	}
}

// begin calls f in a goroutine, and returns where its result comes.
func begin(f func() error) <-chan error {
	result := make(chan error, 1)
	go func() { result <- f() }()
	return result
}

// TestWait has a call wait for each thing that is to wake it, done by another process.
func TestWait(t *testing.T) {
	shm.NoTick(t)
	for _, opts := range [][]shm.Option{nil, {shm.ReadOnly()}} {
		seg := block(t, 100)
		peer := newAgent(t)
		peer.attach("open %s", seg.Name())
		waiter := seg
		if opts != nil {
			waiter = attach(t, seg.Name(), opts...)
		}
		var calls atomic.Int32
		for _, change := range []struct{ answer, do string }{
			{"truncated", "truncate 0"},
			{"appended", "append x"},
			{"notified", "notify"},
			{"finished", "finish"},
			{"truncated", "truncate 50"},
			{"truncated", "truncate 100"},
		} {
			ctx, cancel := context.WithCancel(t.Context())
			var begun atomic.Bool // the change
			result := begin(func() error {
				calls.Store(0)
				armed := 0
				return waiter.Wait(ctx, func() bool {
					if shm.Sleepers(waiter) > 0 {
						armed++
					}
					calls.Add(1)
					// The first look before it sleeps does not count, and on systems that cannot wake
					// no look does that comes before the change.
					return armed > 1 && begun.Load()
				})
			})
			asleep(t, waiter, 1)
			begun.Store(true)
			peer.must(change.answer, "%s", change.do)
			if err := <-result; err != nil {
				t.Errorf("%s: %v", change.do, err)
			}
			cancel()
		}
		if err := peer.seg(t, "close"); err != nil {
			t.Error(err)
		}
	}
}

func (a agent) seg(t *testing.T, verb string) error {
	if got := a.do("%s", verb); got != "closed" {
		return errors.New(got)
	}
	return nil
}

// TestWaitEnds has everything that ends a wait.
func TestWaitEnds(t *testing.T) {
	name := block(t, 100).Name()
	for _, opts := range [][]shm.Option{nil, {shm.ReadOnly()}} {
		never := func() bool { return false }
		seg := attach(t, name, opts...)
		if err := seg.Wait(t.Context(), func() bool { return true }); err != nil {
			t.Error(err)
		}
		done, cancel := context.WithCancel(t.Context())
		cancel()
		if err := seg.Wait(done, func() bool { return true }); err != nil {
			t.Errorf("what is there already: %v", err)
		}
		mustFail(t, seg.Wait(done, never), name, context.Canceled)

		ctx, cancel := context.WithCancel(t.Context())
		result := begin(func() error { return seg.Wait(ctx, never) })
		asleep(t, seg, 1)
		cancel()
		mustFail(t, <-result, name, context.Canceled)

		ctx, cancel = context.WithTimeout(t.Context(), time.Millisecond)
		mustFail(t, seg.Wait(ctx, never), name, context.DeadlineExceeded)
		cancel()

		result = begin(func() error { return seg.Wait(t.Context(), never) })
		asleep(t, seg, 1)
		if err := seg.Close(); err != nil {
			t.Error(err)
		}
		mustFail(t, <-result, name, fs.ErrClosed)
		mustFail(t, seg.Wait(t.Context(), never), name, fs.ErrClosed)
		mustFail(t, seg.Notify(), name, fs.ErrClosed)
	}
}

// TestWaitInCondition has the function that Wait calls use the Segment, and panic.
func TestWaitInCondition(t *testing.T) {
	seg := block(t, 100)
	err := seg.Wait(t.Context(), func() bool {
		seg.Notify()
		seg.WriteAt([]byte("x"), 0)
		return seg.Close() == nil
	})
	if err != nil {
		t.Error(err)
	}
	seg = block(t, 100)
	defer func() {
		if r := recover(); r != "mine" {
			t.Errorf("recovered %v", r)
		}
		if err := seg.Close(); err != nil {
			t.Error(err)
		}
	}()
	seg.Wait(t.Context(), func() bool { panic("mine") })
}

// TestWaitStores has two processes answer each other by stores that the block does not
// see, and Notify.
func TestWaitStores(t *testing.T) {
	shm.NoTick(t)
	seg := block(t, 100)
	word := raw.Uint32(seg.Bytes(), 0)
	peer := newAgent(t)
	peer.attach("open %s", seg.Name())
	for i := range uint32(2 * rounds(1000)) {
		if i%2 == 0 {
			peer.Say("wait %d", i+1)
			word.Store(i + 1)
			if err := seg.Notify(); err != nil {
				t.Fatal(err)
			}
			peer.Expect("seen")
			continue
		}
		peer.Say("store %d", i+1)
		peer.Say("notify")
		if err := seg.Wait(t.Context(), func() bool { return word.Load() == i+1 }); err != nil {
			t.Fatal(err)
		}
		peer.Expect("stored")
		peer.Expect("notified")
	}
	peer.must("closed", "close")
}

// TestWaitMany has more calls sleep than get threads of their own, on one block and on
// many.
func TestWaitMany(t *testing.T) {
	shm.NoTick(t)
	shared := block(t, 100)
	segs := make([]*shm.Segment, 200)
	var all sync.WaitGroup
	var woken atomic.Int32
	for i := range segs {
		segs[i] = block(t, 8)
		for _, seg := range []*shm.Segment{segs[i], attach(t, shared.Name())} {
			all.Go(func() {
				sum := 0
				err := seg.Wait(t.Context(), func() bool {
					sum = int(raw.Uint32(seg.Bytes(), 0).Load())
					return sum > 0
				})
				if err != nil || sum != 7 {
					t.Errorf("%v, %d", err, sum)
				}
				woken.Add(1)
			})
		}
	}
	for _, seg := range append(segs, shared) {
		if seg != shared {
			asleep(t, seg, 1)
		}
		raw.Uint32(seg.Bytes(), 0).Store(7)
		if err := seg.Notify(); err != nil {
			t.Error(err)
		}
	}
	all.Wait()
}

// TestWaitUnsupported has the blocks on which nobody can wait, or less than all.
func TestWaitUnsupported(t *testing.T) {
	raw := block(t, 100, shm.Headerless())
	defer shm.Unlink(raw.Name())
	mustFail(t, raw.Wait(t.Context(), func() bool { return false }), raw.Name(), errors.ErrUnsupported)
	mustFail(t, raw.Notify(), raw.Name(), errors.ErrUnsupported)
	mustFail(t, raw.Finish(), raw.Name(), errors.ErrUnsupported)
	mustFail(t, second(raw.TryLock()), raw.Name(), errors.ErrUnsupported)
	mustFail(t, second(raw.Follow(t.Context()).Read(make([]byte, 1))), raw.Name(), errors.ErrUnsupported)

	seg := block(t, 100)
	ro := attach(t, seg.Name(), shm.ReadOnly())
	mustFail(t, ro.Finish(), seg.Name(), shm.ErrReadOnly)
	mustFail(t, ro.Keep(), seg.Name(), shm.ErrReadOnly)
	mustFail(t, second(ro.TryLock()), seg.Name(), shm.ErrReadOnly)
	mustFail(t, second(ro.Lock(t.Context())), seg.Name(), shm.ErrReadOnly)

	var none *shm.Segment
	mustFail(t, none.Wait(t.Context(), func() bool { return true }), "", fs.ErrInvalid)
	mustFail(t, second(none.Lock(t.Context())), "", fs.ErrInvalid)
	mustFail(t, none.Unlock(), "", fs.ErrInvalid)
	mustFail(t, second(none.Follow(t.Context()).Read(make([]byte, 1))), "", fs.ErrInvalid)
	mustFail(t, none.Keep(), "", fs.ErrInvalid)
}

// TestWaitAnonymous has two attachments of a block without a name work together.
func TestWaitAnonymous(t *testing.T) {
	seg := anonymous(t, 100)
	peer := take(t, file(t, seg))
	mustFail(t, second(seg.TryLock()), "", errors.ErrUnsupported)
	mustFail(t, seg.Keep(), "", errors.ErrUnsupported)
	if err := seg.Truncate(0); err != nil {
		t.Fatal(err)
	}
	result := begin(func() error { return peer.Wait(t.Context(), func() bool { return peer.Size() == 2 }) })
	asleep(t, peer, 1)
	if _, err := seg.Write([]byte("ab")); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
}

// TestOpenWait has a process wait for a block that is not there yet, that is stale, and
// that is there.
func TestOpenWait(t *testing.T) {
	name := unique(t)
	peer := newAgent(t)
	peer.Say("waitopen %s", name)
	seg, err := shm.Create(name, 100)
	if err != nil {
		t.Fatal(err)
	}
	id, _ := shm.ID(seg)
	peer.Expect(id)
	peer.must("closed", "close")
	if got := peer.do("waitopen %s", name); got != id {
		t.Errorf("attached to %s, not %s", got, id)
	}
	seg.Close()
	peer.Kill()

	other := newAgent(t)
	other.Say("waitopen %s", name)
	seg, _, err = shm.OpenOrCreate(name, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer seg.Close()
	id, _ = shm.ID(seg)
	other.Expect(id)

	ctx, cancel := context.WithCancel(t.Context())
	missing := unique(t)
	result := begin(func() error { return second(shm.OpenWait(ctx, missing)) })
	cancel()
	mustFail(t, <-result, missing, context.Canceled)
	mustFail(t, second(shm.OpenWait(t.Context(), "a/b")), "a/b", fs.ErrInvalid)
	other.must("closed", "close") // a block of a process that is killed stays, on darwin
}

// TestKeep has a block kept by one that is killed after it, by one that closes, and by
// the last of several.
func TestKeep(t *testing.T) {
	needsPersistent(t)
	for _, end := range []string{"close", "kill"} {
		name := unique(t)
		a, b := newAgent(t), newAgent(t)
		id := a.attach("create %s", name)
		b.attach("open %s", name)
		a.must("written", "write 0 kept")
		a.must("kept", "keep")
		if end == "kill" {
			a.Kill()
			b.Kill()
		} else {
			a.must("closed", "close")
			b.must("closed", "close")
		}
		if names, err := shm.Reap(); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%v: %v", names, err)
		}
		info, err := shm.Stat(name)
		if err != nil || !info.Persistent || info.Stale() || info.Attached {
			t.Fatalf("%s: %+v, %v", end, info, err)
		}
		c := newAgent(t)
		if got := c.attach("open %s", name); got != id {
			t.Errorf("%s: another block", end)
		}
		c.must("kept", "read 0 4")
		c.must("closed", "close")
		mustFail(t, second(shm.Create(name, 1)), name, fs.ErrExist)
		if err := shm.Unlink(name); err != nil {
			t.Error(err)
		}
	}
}

// TestLock has processes exclude each other, and one killed with the lock.
func TestLock(t *testing.T) {
	seg := block(t, 100)
	a, b := newAgent(t), newAgent(t)
	a.attach("open %s", seg.Name())
	b.attach("open %s", seg.Name())
	mustFail(t, seg.Unlock(), seg.Name(), fs.ErrInvalid)
	a.must("locked false", "lock")
	b.must("locked", "trylock")
	mustFail(t, second(seg.TryLock()), seg.Name(), shm.ErrLocked)
	mustFail(t, seg.Unlock(), seg.Name(), fs.ErrInvalid)

	b.Say("lock")
	a.must("unlocked", "unlock")
	b.Expect("locked false")
	a.Say("lock")
	b.Kill()
	a.Expect("locked true")
	a.must("unlocked", "unlock")
	a.must("locked false", "lock")

	// Close is as dying with it.
	result := begin(func() error {
		recovered, err := seg.Lock(t.Context())
		if err == nil && !recovered {
			err = errors.New("nobody is said to have died with the lock")
		}
		return err
	})
	a.must("closed", "close")
	if err := <-result; err != nil {
		t.Fatal(err)
	}

	// It is not reentrant, and a waiter can give up.
	mustFail(t, second(seg.TryLock()), seg.Name(), shm.ErrLocked)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	mustFail(t, second(seg.Lock(ctx)), seg.Name(), context.DeadlineExceeded)
	other := attach(t, seg.Name())
	mustFail(t, second(other.TryLock()), seg.Name(), shm.ErrLocked)
	mustFail(t, other.Unlock(), seg.Name(), fs.ErrInvalid)
	if err := seg.Unlock(); err != nil {
		t.Error(err)
	}
	if recovered, err := other.TryLock(); recovered || err != nil {
		t.Error(recovered, err)
	}
	if err := other.Unlock(); err != nil {
		t.Error(err)
	}
}

// TestLockExcludes has goroutines of several Segments count under the lock, by bytes of
// the block.
func TestLockExcludes(t *testing.T) {
	name := block(t, 100).Name()
	n := rounds(10_000)
	var all sync.WaitGroup
	for range 4 {
		seg := attach(t, name)
		counter := seg.Bytes()
		for range 2 {
			all.Go(func() {
				for range n {
					if recovered, err := seg.Lock(t.Context()); recovered || err != nil {
						t.Error(recovered, err)
						return
					}
					binary.NativeEndian.PutUint64(counter, binary.NativeEndian.Uint64(counter)+1)
					if err := seg.Unlock(); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	all.Wait()
	if counter := binary.NativeEndian.Uint64(attach(t, name).Bytes()); counter != uint64(8*n) {
		t.Errorf("counted %d, want %d", counter, 8*n)
	}
}

// TestLockForged has another program write garbage over the words of the locks: they may
// not work then, but nothing crashes or waits for good.
func TestLockForged(t *testing.T) {
	shm.SetPatience(t, 20*time.Millisecond)
	seg := block(t, 100)
	peer := attach(t, seg.Name())
	for _, word := range []uint64{1, 2, 3, 0xdead<<1 | 1, 1<<61 - 1, 1<<64 - 1, 1 << 63} {
		for _, off := range []int{384, 392, 448, 456} {
			clear(shm.Header(seg)[384:512])
			raw.Uint64(shm.Header(seg), off).Store(word)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
			seg.Lock(ctx)
			peer.TryLock()
			peer.Unlock()
			seg.Unlock()
			cancel()
			if err := seg.Truncate(50); err != nil && !errors.Is(err, shm.ErrBusy) {
				t.Errorf("%#x at %d: %v", word, off, err)
			}
		}
	}
}

// appendProgram appends lines of its own until it is killed or has written enough.
var appendProgram = proctest.Register("append", func(p *proctest.Parent) error {
	seg, err := shm.Open(p.Args[0])
	if err != nil {
		return err
	}
	defer seg.Close()
	line := []byte(strings.Repeat(p.Args[1], 100) + "\n")
	p.Say("ready")
	for range number(p.Args[2]) {
		if _, err := seg.Append(line); err != nil {
			return err
		}
	}
	p.Say("done")
	return nil
})

// TestAppend has processes append at the same time, of which some are killed: every line
// is there in one piece.
func TestAppend(t *testing.T) {
	n := rounds(2000)
	seg := block(t, int64(101*6*n), shm.Empty())
	var children []*proctest.Child
	for i := range 6 {
		c := proctest.Start(t, appendProgram, seg.Name(), string(rune('a'+i)), fmt.Sprint(n))
		c.Expect("ready")
		children = append(children, c)
	}
	for i, c := range children {
		if i < 3 {
			c.Kill()
		} else {
			c.Expect("done")
		}
	}
	lines := bytes.SplitAfter(content(t, seg), []byte("\n"))
	whole := 0
	for _, line := range lines[:len(lines)-1] {
		if !bytes.Equal(line, append(bytes.Repeat(line[:1], 100), '\n')) {
			t.Fatalf("torn: %q", line)
		}
		if line[0] >= 'd' {
			whole++
		}
	}
	if whole != 3*n || len(lines[len(lines)-1]) != 0 {
		t.Errorf("%d lines of those that were not killed, want %d", whole, 3*n)
	}
}

// TestAppendEnds has appends that fail write nothing.
func TestAppendEnds(t *testing.T) {
	seg := block(t, 10, shm.Empty())
	for i, text := range []string{"abc", "defg", ""} {
		if off, err := seg.Append([]byte(text)); err != nil || off != int64([]int{0, 3, 7}[i]) {
			t.Errorf("%q: at %d, %v", text, off, err)
		}
	}
	mustFail(t, second(seg.Append([]byte("hijk"))), seg.Name(), shm.ErrFull)
	seg.Finish()
	mustFail(t, second(seg.Append([]byte("h"))), seg.Name(), shm.ErrFinished)
	mustFail(t, second(attach(t, seg.Name(), shm.ReadOnly()).Append([]byte("h"))), seg.Name(), shm.ErrReadOnly)
	if got := content(t, seg); string(got) != "abcdefg" {
		t.Errorf("%q", got)
	}
}

// TestEmptyBlock has blocks that begin with Size 0.
func TestEmptyBlock(t *testing.T) {
	name := unique(t)
	seg, created, err := shm.OpenOrCreate(name, 10, shm.Empty())
	if err != nil || !created {
		t.Fatal(created, err)
	}
	defer seg.Close()
	for _, s := range []*shm.Segment{seg, attach(t, name), anonymous(t, 10, shm.Empty()), block(t, 10, shm.Empty(), shm.Sparse())} {
		if s.Size() != 0 || s.Cap() != 10 {
			t.Errorf("Size %d, Cap %d", s.Size(), s.Cap())
		}
	}
	mustFail(t, second(shm.Create("", 10, shm.Empty(), shm.Headerless())), "", fs.ErrInvalid)
	mustFail(t, second(shm.Open(name, shm.Empty())), name, fs.ErrInvalid)
}
