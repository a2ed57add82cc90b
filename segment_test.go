package shm_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/shmkit/shm"
)

func TestTruncate(t *testing.T) {
	for name, opts := range map[string][]shm.Option{"reserved": nil, "sparse": {shm.Sparse()}} {
		t.Run(name, func(t *testing.T) {
			const size = 3*4096 + 10
			seg := block(t, size, opts...)
			peer := attach(t, seg.Name())
			seg.Write([]byte(strings.Repeat("x", size)))
			for _, n := range []int64{size, 5000, 10, 0, 10, size - 1, 4096, size} {
				if err := seg.Truncate(n); err != nil {
					t.Fatal(err)
				}
				if seg.Size() != n || peer.Size() != n || len(peer.Bytes()) != int(n) {
					t.Errorf("Truncate(%d): size %d, %d, %d bytes", n, seg.Size(), peer.Size(), len(peer.Bytes()))
				}
			}
			if i := slices.IndexFunc(seg.Bytes(), func(b byte) bool { return b != 0 }); i >= 0 {
				t.Errorf("byte %d has come back", i)
			}
			for _, n := range []int64{-1, size + 1, math.MaxInt64, math.MinInt64} {
				mustFail(t, seg.Truncate(n), seg.Name(), fs.ErrInvalid)
			}
		})
	}
}

// TestCutOffBytes has bytes that came in by any way there is cut off: they must
// not come back.
func TestCutOffBytes(t *testing.T) {
	const size = 10000
	x := strings.Repeat("x", size)
	fill := map[string]func(t *testing.T, seg *shm.Segment) error{
		"Write":       func(_ *testing.T, seg *shm.Segment) error { return second(seg.Write([]byte(x))) },
		"WriteAt":     func(_ *testing.T, seg *shm.Segment) error { return second(seg.WriteAt([]byte(x), 0)) },
		"WriteString": func(_ *testing.T, seg *shm.Segment) error { return second(seg.WriteString(x)) },
		"WriteByte": func(_ *testing.T, seg *shm.Segment) error {
			seg.Seek(size-1, io.SeekStart)
			return seg.WriteByte('x')
		},
		"View": func(_ *testing.T, seg *shm.Segment) error {
			return seg.View(func(b []byte) error { copy(b, x); return nil })
		},
		"Bytes": func(_ *testing.T, seg *shm.Segment) error { copy(seg.Bytes(), x); return nil },
	}
	for name, source := range sources {
		if name != "one byte" {
			fill["ReadFrom/"+name] = func(t *testing.T, seg *shm.Segment) error {
				return second(seg.ReadFrom(source(t, []byte(x))))
			}
		}
	}
	for what, f := range fill {
		t.Run(what, func(t *testing.T) {
			seg := block(t, size)
			if err := f(t, seg); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(seg.Truncate(0), seg.Truncate(size)); err != nil {
				t.Fatal(err)
			}
			if i := slices.Index(content(t, seg), 'x'); i >= 0 {
				t.Errorf("byte %d has come back", i)
			}
		})
	}
}

func TestViewAndBytes(t *testing.T) {
	seg := block(t, 100)
	seg.Truncate(10)
	failure := errors.New("mine")
	err := seg.View(func(b []byte) error {
		if len(b) != 10 || cap(b) != 100 {
			t.Errorf("%d bytes of %d", len(b), cap(b))
		}
		copy(b, "by View")
		return failure
	})
	if err != failure {
		t.Errorf("View returned %v", err)
	}
	if b := seg.Bytes(); string(b[:7]) != "by View" || len(b) != 10 || cap(b) != 100 {
		t.Errorf("Bytes %q, %d of %d", b, len(b), cap(b))
	}
	// What View and Bytes write to is cleared like anything else.
	copy(seg.Bytes()[:100], strings.Repeat("z", 100))
	seg.Truncate(100)
	seg.Truncate(0)
	seg.Truncate(100)
	if b := seg.Bytes(); slices.Contains(b, 'z') {
		t.Errorf("Bytes %q after clearing", b)
	}
	// A View outlives Close, and Close does not wait for it.
	err = seg.View(func(b []byte) error {
		if err := seg.Close(); err != nil {
			t.Error(err)
		}
		mustNotExist(t, seg.Name())
		b[99] = 1
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	mustFail(t, seg.View(func([]byte) error { t.Error("called"); return nil }), seg.Name(), fs.ErrClosed)
	if seg.Bytes() != nil {
		t.Error("Bytes after Close")
	}
}

// TestViewPanic lets a panic of the callback's own through.
func TestViewPanic(t *testing.T) {
	seg := block(t, 10)
	func() {
		defer func() {
			if r := recover(); r != "mine" {
				t.Errorf("recovered %v", r)
			}
		}()
		seg.View(func([]byte) error { panic("mine") })
	}()
	done := make(chan bool)
	go func() {
		defer close(done)
		seg.View(func([]byte) error { runtime.Goexit(); return nil })
	}()
	<-done
	if err := seg.Close(); err != nil {
		t.Error(err)
	}
}

// TestZero calls everything on a Segment that nobody has opened.
func TestZero(t *testing.T) {
	for _, seg := range []*shm.Segment{nil, {}} {
		if seg.Name() != "" || seg.Size() != 0 || seg.Cap() != 0 || seg.Refs() != 0 || seg.Bytes() != nil {
			t.Error("a zero Segment has something")
		}
		for name, call := range calls {
			if err := call(seg); !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// TestClosed calls everything on a closed Segment.
func TestClosed(t *testing.T) {
	seg := block(t, 10)
	seg.Close()
	if seg.Name() == "" || seg.Size() != 0 || seg.Cap() != 10 || seg.Refs() != 0 || seg.Bytes() != nil {
		t.Error("what a closed Segment has")
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) { mustFail(t, call(seg), seg.Name(), fs.ErrClosed) })
	}
}

// calls has every method that returns an error.
var calls = map[string]func(seg *shm.Segment) error{
	"ReadAt":      func(s *shm.Segment) error { return second(s.ReadAt(make([]byte, 8), 0)) },
	"WriteAt":     func(s *shm.Segment) error { return second(s.WriteAt(make([]byte, 8), 0)) },
	"Read":        func(s *shm.Segment) error { return second(s.Read(make([]byte, 8))) },
	"Write":       func(s *shm.Segment) error { return second(s.Write(make([]byte, 8))) },
	"WriteString": func(s *shm.Segment) error { return second(s.WriteString("12345678")) },
	"ReadByte":    func(s *shm.Segment) error { return second(s.ReadByte()) },
	"WriteByte":   func(s *shm.Segment) error { return s.WriteByte(1) },
	"Seek":        func(s *shm.Segment) error { return second(s.Seek(0, io.SeekEnd)) },
	"ReadFrom":    func(s *shm.Segment) error { return second(s.ReadFrom(strings.NewReader("x"))) },
	"ReadFromFile": func(s *shm.Segment) error {
		f, err := os.Open(os.Args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		return second(s.ReadFrom(f))
	},
	"WriteTo": func(s *shm.Segment) error { return second(s.WriteTo(io.Discard)) },
	"WriteToFile": func(s *shm.Segment) error {
		f, err := os.CreateTemp("", "shm")
		if err != nil {
			return err
		}
		defer os.Remove(f.Name())
		defer f.Close()
		return second(s.WriteTo(f))
	},
	"Truncate": func(s *shm.Segment) error { return s.Truncate(8) },
	"Finish":   func(s *shm.Segment) error { return s.Finish() },
	"Notify":   func(s *shm.Segment) error { return s.Notify() },
	"Wait":     func(s *shm.Segment) error { return s.Wait(context.Background(), func() bool { return true }) },
	"Follow": func(s *shm.Segment) error {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, err := s.Follow(ctx).Read(make([]byte, 8))
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	},
	"Lock": func(s *shm.Segment) error {
		if _, err := s.Lock(context.Background()); err != nil {
			return err
		}
		return s.Unlock()
	},
	"TryLock": func(s *shm.Segment) error {
		_, err := s.TryLock()
		if errors.Is(err, shm.ErrLocked) {
			return nil
		}
		return cmp.Or(err, s.Unlock())
	},
	"Stat":   func(s *shm.Segment) error { return second(s.Stat()) },
	"View":   func(s *shm.Segment) error { return s.View(func([]byte) error { return nil }) },
	"Unlink": func(s *shm.Segment) error { return s.Unlink() },
	"Close":  func(s *shm.Segment) error { return s.Close() },
}

// beside reports whether a call may return err beside other calls.
func beside(err error) bool {
	return err == nil || err == io.EOF || slices.ContainsFunc([]error{shm.ErrFull, shm.ErrFinished, shm.ErrTruncated, fs.ErrNotExist},
		func(e error) bool { return errors.Is(err, e) })
}

// TestCloseAgainstCalls closes a Segment while every method is being called.
func TestCloseAgainstCalls(t *testing.T) {
	for name, call := range calls {
		if name == "Close" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			for range 20 {
				seg := block(t, 1<<16)
				seg.Truncate(1000)
				started := make(chan bool, 3)
				var all sync.WaitGroup
				for range cap(started) {
					all.Go(func() {
						for i := 0; ; i++ {
							err := call(seg)
							runtime.Gosched() // with few processors Close would wait for one
							if i == 0 {
								started <- true
							}
							if errors.Is(err, fs.ErrClosed) {
								return
							}
							if !beside(err) {
								t.Error(err)
								return
							}
						}
					})
				}
				for range cap(started) {
					<-started
				}
				if err := seg.Close(); err != nil {
					t.Error(err)
				}
				all.Wait()
				mustNotExist(t, seg.Name())
			}
		})
	}
}

// TestCopies has two Segments that share a handle: the one open, the other is.
func TestCopies(t *testing.T) {
	seg := block(t, 10)
	twin := *seg
	seg.Close()
	mustFail(t, twin.Close(), seg.Name(), fs.ErrClosed)
}

// TestString prints Segments in every state.
func TestString(t *testing.T) {
	seg := block(t, 100)
	seg.Truncate(12)
	name := seg.Name()
	closed := block(t, 100, shm.Perm(0o600))
	closed.Close()
	raw := block(t, 4096, shm.Headerless())
	for _, tt := range []struct {
		seg       *shm.Segment
		text, log string
	}{
		{nil, "Segment <nil>", `seg="Segment <nil>"`},
		{new(shm.Segment), "Segment <zero>", `seg="Segment <zero>"`},
		{seg, fmt.Sprintf("Segment %q (12 of 100 bytes)", name), "seg.name=" + name + " seg.size=12 seg.cap=100 seg.state=open"},
		{attach(t, name, shm.ReadOnly()), fmt.Sprintf("Segment %q (12 of 100 bytes, read-only)", name), "seg.name=" + name + " seg.size=12 seg.cap=100 seg.state=read-only"},
		{closed, fmt.Sprintf("Segment %q (100 bytes, closed)", closed.Name()), "seg.name=" + closed.Name() + " seg.size=0 seg.cap=100 seg.state=closed"},
		{raw, fmt.Sprintf("Segment %q (%d of %d bytes)", raw.Name(), raw.Size(), raw.Cap()), fmt.Sprintf("seg.name=%s seg.size=%d seg.cap=%d seg.state=open", raw.Name(), raw.Size(), raw.Cap())},
		{anonymous(t, 100, shm.Label("a \"label\"\n")), `Segment "a \"label\"\n" (100 of 100 bytes)`, `seg.name="a \"label\"\n" seg.size=100 seg.cap=100 seg.state=open`},
	} {
		if got := fmt.Sprint(tt.seg); got != tt.text || tt.seg.String() != got {
			t.Errorf("prints %s, want %s", got, tt.text)
		}
		var b bytes.Buffer
		slog.New(slog.NewTextHandler(&b, nil)).Info("message", "seg", tt.seg)
		if _, got, _ := strings.Cut(strings.TrimSpace(b.String()), "msg=message "); got != tt.log {
			t.Errorf("logs %s, want %s", got, tt.log)
		}
	}
}

// TestStringWaitsForNothing prints a Segment while everything that a call can
// hold is held.
func TestStringWaitsForNothing(t *testing.T) {
	seg := block(t, 100)
	defer shm.HoldMutex(t, attach(t, seg.Name()))()
	err := seg.View(func([]byte) error { // which has entered
		_, err := seg.WriteTo(writeFunc(func(p []byte) (int, error) { return len(p), nil }))
		shm.HoldOffset(seg, func() {
			if got, want := seg.String(), fmt.Sprintf("Segment %q (100 of 100 bytes)", seg.Name()); got != want {
				t.Errorf("prints %s, want %s", got, want)
			}
			seg.LogValue()
		})
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
