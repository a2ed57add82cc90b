//go:build amd64 || arm64

package killpoints

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/internal/raw"
)

// blockCap is large enough for a write that goes past the mapping.
const blockCap = 64 << 10

// before is the stream that there is when a victim begins.
var before = bytes.Repeat([]byte("before.."), 400)

// A victimCall is a call of a process that is killed in it.
type victimCall struct {
	prepare func(seg *shm.Segment) error // before Begin
	run     func(seg *shm.Segment) error
	writes  string // what it appends
	sleeps  bool   // it does not end
	dead    bool   // a process has died with the lock
	half    bool   // and one in a Truncate
}

var long = strings.Repeat("appended", 3000)

func locked(seg *shm.Segment) error {
	_, err := seg.Lock(context.Background())
	return err
}

func following(seg *shm.Segment) error {
	_, err := seg.Follow(context.Background()).Read(make([]byte, 1))
	return err
}

var victimCalls = map[string]victimCall{
	"append":      {writes: "after", run: func(seg *shm.Segment) error { return appending(seg, "after") }},
	"append long": {writes: long, run: func(seg *shm.Segment) error { return appending(seg, long) }},
	"append after Follow": {prepare: following, writes: "after",
		run: func(seg *shm.Segment) error { return appending(seg, "after") }},
	"Notify":          {run: func(seg *shm.Segment) error { return seg.Notify() }},
	"Finish":          {run: func(seg *shm.Segment) error { return seg.Finish() }},
	"Keep":            {run: func(seg *shm.Segment) error { return seg.Keep() }},
	"Truncate raises": {run: func(seg *shm.Segment) error { return seg.Truncate(blockCap) }},
	"Truncate lowers": {run: func(seg *shm.Segment) error { return seg.Truncate(3) }},
	"Truncate a finished block": {prepare: (*shm.Segment).Finish,
		run: func(seg *shm.Segment) error { return seg.Truncate(3) }},
	"Truncate raises a finished block": {prepare: (*shm.Segment).Finish,
		run: func(seg *shm.Segment) error { return seg.Truncate(blockCap) }},
	"Follow": {run: func(seg *shm.Segment) error { seg.Follow(context.Background()); return nil }},
	"Follow and Read": {sleeps: true, run: func(seg *shm.Segment) error {
		_, err := io.Copy(io.Discard, seg.Follow(context.Background()))
		return err
	}},
	"Wait":                           {sleeps: true, run: func(seg *shm.Segment) error { return seg.Wait(context.Background(), func() bool { return false }) }},
	"Lock":                           {run: locked},
	"Lock of a dead holder":          {run: locked, dead: true},
	"Unlock":                         {prepare: locked, run: (*shm.Segment).Unlock},
	"Close with the lock":            {prepare: locked, run: (*shm.Segment).Close},
	"Close":                          {run: (*shm.Segment).Close},
	"Close after Follow":             {prepare: following, run: (*shm.Segment).Close},
	"Truncate after half a Truncate": {half: true, run: func(seg *shm.Segment) error { return seg.Truncate(3) }},
	"Finish after half a Truncate":   {half: true, run: (*shm.Segment).Finish},
	"append after half a Truncate":   {half: true, writes: "after", run: func(seg *shm.Segment) error { return appending(seg, "after") }},
}

func appending(seg *shm.Segment, s string) error {
	_, err := seg.WriteAt([]byte(s), seg.Size())
	return err
}

// waitVictim makes a call.
var waitVictim = proctest.Register("waitvictim", func(p *proctest.Parent) error {
	runtime.LockOSThread()
	setTick(20*time.Millisecond, nil)
	c := victimCalls[p.Args[0]]
	seg, err := shm.Open(p.Args[1])
	if err != nil {
		return err
	}
	if c.prepare != nil {
		if err := c.prepare(seg); err != nil {
			return err
		}
	}
	p.Say("%d", unix.Gettid())
	if _, err := p.Hear(); err != nil { // traced
		return err
	}
	Begin()
	err = c.run(seg)
	End()
	p.Say("%s", errorWord(err))
	_, err = p.Hear()
	return err
})

// words is what a victim has left in the header.
type words []byte

func (w words) u32(off int) uint32 { return binary.NativeEndian.Uint32(w[off:]) }
func (w words) u64(off int) uint64 { return binary.NativeEndian.Uint64(w[off:]) }
func (w words) kept() bool         { return w.u32(68) != 0 }
func (w words) size() int          { return int(w.u64(192) & (1<<48 - 1)) }
func (w words) low() uint64        { return w.u64(192) >> 48 & (1<<13 - 1) }
func (w words) cut() bool          { return w.u64(192)>>61&1 != 0 }
func (w words) finished() bool     { return w.u64(192)>>63 != 0 }
func (w words) held() uint64       { return w.u64(384) >> 1 }

// TestKillWaiting kills a process after each of its stores to the header, and before and
// after each of its system calls, in every call that waits, wakes or locks. Nobody waits
// for good, and the next process finds a sound block.
func TestKillWaiting(t *testing.T) {
	onTmpfs(t)
	total := 0
	for _, name := range sorted(victimCalls) {
		t.Run(name, func(t *testing.T) {
			n := 0
			for killAfter(t, name, n) && !t.Failed() {
				n++
			}
			total += n
			t.Logf("killed at %d points", n)
		})
	}
	fmt.Printf("killpoints: %d points of %d calls that wait or wake, all killed at\n", total, len(victimCalls))
}

// killAfter kills the victim at its event n, and reports whether there is one.
func killAfter(t *testing.T, name string, n int) bool {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c := victimCalls[name]
	asleep := make(chan struct{}, 1)
	defer setTick(60*time.Millisecond, asleep)()
	seg := must(shm.Create("", blockCap))(t)
	peer := must(shm.Open(seg.Name(), shm.ReadOnly()))(t)
	defer func() { mustBeGone(t, seg.Name()) }()
	defer peer.Close()
	head := mapHeader(t, seg.Name())
	if err := seg.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if err := appending(seg, string(before)); err != nil {
		t.Fatal(err)
	}
	if c.dead {
		raw.Uint64(writable(t, seg.Name()), 384).Store(0xdead << 1)
	}
	if c.half {
		const cut, begun = 1 << 61, 1 << 62
		size := raw.Uint64(writable(t, seg.Name()), 192)
		raw.Uint64(writable(t, seg.Name()), 216).Store(size.Load() & (1<<48 - 1)) // dirty
		size.Store(size.Load() - 300 | cut | begun)
	}
	v := proctest.StartCommand(t, calm(proctest.Command(waitVictim, name, seg.Name())))
	defer v.Kill()
	tid := v.Hear()
	seg.Close() // of the two it is the only one that can write

	ctx, cancel := context.WithTimeout(t.Context(), tooLong)
	defer cancel()
	follower := peer.Follow(ctx)
	first := make([]byte, words(head).size())
	if _, err := io.ReadFull(follower, first); err != nil || !bytes.Equal(first, before[:len(first)]) {
		t.Fatalf("%q, %v", first, err)
	}
	was := words(slices.Clone(head))
	type end struct {
		b   []byte
		err error
	}
	read := make(chan end, 1)
	go func() {
		b, err := io.ReadAll(follower)
		read <- end{b, err}
	}()

	select {
	case <-asleep:
	case e := <-read:
		read <- e
	}
	tr, err := Attach(must(strconv.Atoi(tid))(t))
	if err != nil {
		t.Skipf("ptrace: %v; allow it (capability SYS_PTRACE, seccomp, kernel.yama.ptrace_scope)", err)
	}
	v.Say("traced")
	if _, err := tr.Run(Inside); err != nil {
		t.Fatal(err)
	}
	at, event, sleeps := 0, "the end", 0
	_, reached, err := tr.Walk(head, func(call string, after bool) bool {
		event = fmt.Sprintf("event %d: %s, after %v", at, call, after)
		if call == "futex wait" && !after {
			sleeps++
		}
		at++
		return at <= n && !(c.sleeps && sleeps == 2)
	})
	if err != nil {
		t.Fatal(err)
	}
	more := reached && sleeps < 2
	if !reached {
		event = "the end"
	}
	if reached {
		if err := tr.Kill(v.Process.Pid); err != nil {
			t.Fatal(err)
		}
	}
	v.Kill()
	left := words(slices.Clone(head))

	// The follower gets what is there, and then learns how it stands.
	got := <-read
	if errors.Is(got.err, shm.ErrAbandoned) { // before it became a writer
		b, err := io.ReadAll(follower)
		got = end{append(got.b, b...), err}
	}
	whole := append(slices.Clone(first), got.b...)
	want := error(shm.ErrAbandoned)
	switch {
	case was.finished(): // it was at the end before that
		want = nil
	case left.low() != was.low():
		want = shm.ErrTruncated
	case left.finished():
		want = nil
	}
	if !errors.Is(got.err, want) {
		t.Errorf("%s: the follower ended with %v, want %v", event, got.err, want)
	}
	if full := string(before[:was.size()]) + c.writes; !strings.HasPrefix(full+strings.Repeat("\x00", blockCap), string(whole)) ||
		left.low() == was.low() && len(whole) != left.size() {
		t.Errorf("%s: the follower got %d bytes", event, len(whole))
	}
	checkNext(t, event, peer.Name(), c, was, left, n)
	if keep := name == "Keep"; left.kept() && !keep || !left.kept() && keep && !reached {
		t.Errorf("%s: kept %v", event, left.kept())
	}
	peer.Close()
	if left.kept() {
		info, err := shm.Stat(peer.Name())
		if err != nil || !info.Persistent || info.Stale() {
			t.Errorf("%s: a kept block: %+v, %v", event, info, err)
		}
		if err := shm.Unlink(peer.Name()); err != nil {
			t.Error(err)
		}
	}
	mustBeGone(t, peer.Name())
	return more
}

// writable is mapHeader for writing.
func writable(t *testing.T, name string) []byte {
	t.Helper()
	f := must(os.OpenFile(path(name), os.O_RDWR, 0))(t)
	defer f.Close()
	b := must(unix.Mmap(int(f.Fd()), 0, 768, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED))(t)
	t.Cleanup(func() { unix.Munmap(b) })
	return b
}

// checkNext has the next process do what it may want to.
func checkNext(t *testing.T, event, name string, c victimCall, was, left words, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), tooLong)
	defer cancel()
	next := must(shm.Open(name))(t)
	defer next.Close()
	start := time.Now()
	recovered, err := next.Lock(ctx)
	if err != nil || recovered != (left.held() != 0) {
		t.Errorf("%s: Lock: recovered %v, %v; %#x had it", event, recovered, err, left.held())
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("%s: the lock was free after %v", event, d)
	}
	if err := next.Unlock(); err != nil {
		t.Error(err)
	}

	// The rest of a Truncate is done by whoever comes next: a write, Finish or Truncate.
	size, kept := left.size(), make([]byte, left.size())
	if _, err := next.ReadAt(kept, 0); err != nil && err != io.EOF {
		t.Error(err)
	}
	added := 0
	switch {
	case left.finished():
	case n%3 == 0 && size < blockCap:
		if err := appending(next, "!"); err != nil {
			t.Errorf("%s: append: %v", event, err)
		}
		kept, added = append(kept, '!'), 1
	case n%3 == 1:
		if err := next.Finish(); err != nil {
			t.Errorf("%s: Finish: %v", event, err)
		}
	}
	if err := next.Truncate(blockCap); err != nil {
		t.Errorf("%s: Truncate: %v", event, err)
	}
	all := make([]byte, blockCap)
	if _, err := next.ReadAt(all, 0); err != nil {
		t.Errorf("%s: %v", event, err)
	}
	if !bytes.Equal(all[:len(kept)], kept) {
		t.Errorf("%s: bytes below Size have changed", event)
	}
	// A write that is killed leaves its bytes.
	rest := all[len(kept):]
	if n := was.size() + len(c.writes); c.writes != "" && size < n {
		rest = all[n:]
	}
	if i := bytes.IndexFunc(rest, func(r rune) bool { return r != 0 }); i >= 0 {
		t.Errorf("%s: byte %d beyond Size %d is not zero; cut %v", event, blockCap-len(rest)+i, size+added, left.cut())
	}
}

// TestKillAlone kills the only process that is attached: a block that it has kept stays,
// and any other one is stale.
func TestKillAlone(t *testing.T) {
	onTmpfs(t)
	for _, name := range []string{"Keep", "Lock", "Close", "append", "Truncate lowers"} {
		for n, more := 0, true; more; n++ {
			more = killAlone(t, name, n)
		}
	}
}

func killAlone(t *testing.T, name string, n int) bool {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	seg := must(shm.Create("", blockCap))(t)
	head := mapHeader(t, seg.Name())
	id := blockID(t, seg)
	v := proctest.StartCommand(t, calm(proctest.Command(waitVictim, name, seg.Name())))
	defer v.Kill()
	tid := v.Hear()
	seg.Close()
	tr, err := Attach(must(strconv.Atoi(tid))(t))
	if err != nil {
		t.Skipf("ptrace: %v", err)
	}
	v.Say("traced")
	if _, err := tr.Run(Inside); err != nil {
		t.Fatal(err)
	}
	at := 0
	_, reached, err := tr.Walk(head, func(string, bool) bool { at++; return at <= n })
	if err != nil {
		t.Fatal(err)
	}
	if reached {
		err = tr.Kill(v.Process.Pid)
	}
	if v.Kill(); err != nil {
		t.Fatal(err)
	}
	if words(head).kept() {
		checkKept(t, seg.Name(), id)
		return reached
	}
	if info, err := shm.Stat(seg.Name()); err == nil && !info.Stale() {
		t.Errorf("%s, event %d: %+v", name, n, info)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	verb := sorted(finders)[n%len(finders)]
	if err := finders[verb](seg.Name()); err != nil {
		t.Errorf("%s, event %d: %s: %v", name, n, verb, err)
	}
	mustBeGone(t, seg.Name())
	return reached
}
