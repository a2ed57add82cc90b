package shm_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"runtime"
	"testing"
	"time"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/raw"
)

// hooks has Objects that call functions in some of their methods, for what other
// processes do at that moment.
type hooks struct {
	object.System
	beforeSetWriter, afterSetWriter, beforeTag func()
	afterRead, beforeWriters, beforeAlone      func(o object.Object)
	beforeGone                                 func(tag uint64)
}

type hooked struct {
	object.Object
	*hooks
}

func (s *hooks) Open(name string, write bool) (object.Object, error) {
	o, err := s.System.Open(name, write)
	if err != nil {
		return nil, err
	}
	return hooked{o, s}, nil
}

func (o hooked) SetWriter(writer bool) error {
	if o.beforeSetWriter != nil {
		o.beforeSetWriter()
		defer o.afterSetWriter()
	}
	return o.Object.SetWriter(writer)
}

func (o hooked) Tag() uint64 {
	if o.beforeTag != nil {
		o.beforeTag()
	}
	return o.Object.Tag()
}

func (o hooked) Gone(tag uint64) bool {
	if o.beforeGone != nil {
		o.beforeGone(tag)
	}
	return o.Object.Gone(tag)
}

func (o hooked) Writers() (bool, error) {
	if o.beforeWriters != nil {
		o.beforeWriters(o.Object)
	}
	return o.Object.Writers()
}

func (o hooked) TryAlone() error {
	if o.beforeAlone != nil {
		o.beforeAlone(o.Object)
	}
	return o.Object.TryAlone()
}

func (o hooked) ReadAt(p []byte, off int64) (int, error) {
	n, err := o.Object.ReadAt(p, off)
	if o.afterRead != nil {
		o.afterRead(o.Object)
	}
	return n, err
}

// hook has the blocks that are opened from now on call functions.
func hook(t *testing.T) *hooks {
	h := &hooks{System: object.Current}
	object.Current = h
	t.Cleanup(func() { object.Current = h.System })
	return h
}

// TestSetWriterBesideClose has Close called while a Segment is becoming a writer, or no
// writer any more: it does not come back, so that the next Close is the last one.
func TestSetWriterBesideClose(t *testing.T) {
	for _, write := range []bool{true, false} {
		h := hook(t)
		last := begun(t, 100)
		seg := attach(t, last.Name())
		if write {
			seg.Follow(t.Context())
		}
		closed := make(chan error, 1)
		h.beforeSetWriter = func() {
			go func() { closed <- seg.Close() }()
			for range 100_000 { // in which Close does what it can
				runtime.Gosched()
			}
		}
		h.afterSetWriter = func() {
			h.beforeSetWriter = nil
			last.Close()
		}
		if write {
			if _, err := seg.WriteAt([]byte("x"), 0); err != nil && !errors.Is(err, fs.ErrClosed) {
				t.Error(err)
			}
		} else {
			seg.Follow(t.Context())
		}
		if err := <-closed; err != nil {
			t.Error(err)
		}
		mustBeGone(t, last.Name())
	}
}

// TestLockBesideClose has Close called while a Segment is taking the lock: it gives it
// up.
func TestLockBesideClose(t *testing.T) {
	h := hook(t)
	other := block(t, 100)
	seg := attach(t, other.Name())
	h.beforeTag = func() {
		h.beforeTag = nil
		if err := seg.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := seg.TryLock(); err != nil {
		mustFail(t, err, seg.Name(), fs.ErrClosed)
	} else {
		t.Error("a closed Segment has the lock")
	}
	const nobody uint64 = 1<<60 - 1
	if held := raw.Uint64(shm.Header(other), 384).Load(); held>>1 != nobody {
		t.Errorf("%#x has the lock, want %#x, which everybody knows to be gone", held>>1, nobody)
	}
	if recovered, err := other.TryLock(); !recovered || err != nil {
		t.Error(recovered, err)
	}
}

// TestFollowTruncatedInCopy has a stream end while a Follower copies from it.
func TestFollowTruncatedInCopy(t *testing.T) {
	if !shm.Files() {
		t.Skip("blocks are not read by calls here")
	}
	for _, following := range []bool{true, false} {
		seg := block(t, 100, shm.Sparse()) // which is read by calls
		seg.Truncate(0)
		appendTo(t, seg, "abc")
		h := hook(t)
		f := attach(t, seg.Name(), shm.ReadOnly()).Follow(t.Context())
		if following {
			mustRead(t, f, "a")
		}
		h.afterRead = func(object.Object) {
			h.afterRead = nil
			seg.Truncate(0)
			appendTo(t, seg, "xyz")
		}
		if following {
			mustEnd(t, f, shm.ErrTruncated)
		} else {
			mustRead(t, f, "xyz") // it has delivered nothing of the one before
		}
	}
}

// TestFollowAbandonedAfterBytes has the last writer append and go between the look of a
// Follower and its question whether there is one.
func TestFollowAbandonedAfterBytes(t *testing.T) {
	for _, finish := range []bool{false, true} {
		seg := begun(t, 100)
		appendTo(t, seg, "a")
		h := hook(t)
		f := attach(t, seg.Name(), shm.ReadOnly()).Follow(t.Context())
		mustRead(t, f, "a")
		h.beforeWriters = func(object.Object) {
			h.beforeWriters = nil
			appendTo(t, seg, "b")
			if finish {
				seg.Finish()
			}
			seg.Close()
		}
		mustRead(t, f, "b")
		if finish {
			mustEnd(t, f, io.EOF)
		} else {
			mustEnd(t, f, shm.ErrAbandoned)
		}
	}
}

// TestFollowManyTruncates truncates so often that the generation's low bits in the word of
// Size are what they were.
func TestFollowManyTruncates(t *testing.T) {
	seg := begun(t, 100)
	appendTo(t, seg, "abc")
	f := attach(t, seg.Name(), shm.ReadOnly()).Follow(t.Context())
	mustRead(t, f, "a")
	for range 1 << 13 {
		if err := seg.Truncate(0); err != nil {
			t.Fatal(err)
		}
		appendTo(t, seg, "xyz")
	}
	mustEnd(t, f, shm.ErrTruncated)
}

// TestFollowHalfTruncated follows a block in which a process has been killed after it had
// announced another generation.
func TestFollowHalfTruncated(t *testing.T) {
	seg := begun(t, 100)
	appendTo(t, seg, "abc")
	raw.Uint64(shm.Header(seg), 208).Add(1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	f := attach(t, seg.Name(), shm.ReadOnly()).Follow(ctx)
	mustRead(t, f, "abc")
	appendTo(t, seg, "d")
	mustRead(t, f, "d")
	seg.Truncate(1)
	mustEnd(t, f, shm.ErrTruncated)
}

// TestKeepMeanwhile has a process keep a block, and end, after another one has found that
// it is not kept and that nobody is attached.
func TestKeepMeanwhile(t *testing.T) {
	needsPersistent(t)
	for _, what := range []string{"Open", "Create", "Reap", "Close"} {
		peer := newAgent(t)
		name := unique(t)
		peer.attach("create %s", name)
		h := hook(t)
		h.beforeAlone = func(o object.Object) {
			o.WriteAt([]byte{1, 1, 1, 1}, 68) // whatever the order of bytes
		}
		switch what {
		case "Close":
			seg := attach(t, name)
			peer.must("closed", "close")
			seg.Close()
		case "Open":
			peer.Kill()
			attach(t, name).Close()
		case "Create":
			peer.Kill()
			if seg, err := shm.Create(name, 1); err == nil {
				seg.Close()
				t.Error("Create has removed a block that is kept")
			}
		case "Reap":
			peer.Kill()
			if _, err := shm.Reap(); errors.Is(err, errors.ErrUnsupported) {
				h.beforeAlone = nil
				shm.Unlink(name)
				continue
			}
			mustSpare(t, name)
		}
		h.beforeAlone = nil
		if info, err := shm.Stat(name); err != nil || !info.Persistent {
			t.Errorf("%s: %+v, %v", what, info, err)
		}
		if err := shm.Unlink(name); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestLockGuests has guests of the lock that have died.
func TestLockGuests(t *testing.T) {
	const dead = 0xdead
	seg := block(t, 100)
	own := ownTag(t, seg)
	held, guest := raw.Uint64(shm.Header(seg), 384), raw.Uint64(shm.Header(seg), 392)
	for _, had := range []uint64{0, 1} {
		guest.Store(dead<<1 | had)
		if recovered, err := seg.TryLock(); recovered != (had == 1) || err != nil {
			t.Errorf("a guest that had the lock %d: recovered %v, %v", had, recovered, err)
		}
		if g := guest.Load(); g != 0 || held.Load()>>1 != own {
			t.Errorf("guest %#x, held %#x", g, held.Load())
		}
		if err := seg.Unlock(); err != nil {
			t.Error(err)
		}
	}

	// A guest that has found a dead tag, and then writes over it.
	h := hook(t)
	other := attach(t, seg.Name())
	own = ownTag(t, other)
	guest.Store(dead << 1)
	h.beforeGone = func(uint64) {
		if held.Load()>>1 == own {
			h.beforeGone = nil
			held.Store(0)
		}
	}
	if _, err := other.TryLock(); err != nil {
		t.Error(err)
	}
	if h.beforeGone != nil || held.Load()>>1 != own {
		t.Errorf("held %#x, want %#x", held.Load()>>1, own)
	}
	if err := other.Unlock(); err != nil {
		t.Error(err)
	}
}

func ownTag(t *testing.T, seg *shm.Segment) uint64 {
	t.Helper()
	if _, err := seg.TryLock(); err != nil {
		t.Fatal(err)
	}
	defer seg.Unlock()
	return raw.Uint64(shm.Header(seg), 384).Load() >> 1
}
