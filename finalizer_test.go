package shm_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/shmtest"
)

// leakHandler makes a channel of what OnLeak reports, for the time of the test.
func leakHandler(t *testing.T) <-chan shm.Origin {
	t.Helper()
	found := make(chan shm.Origin, 10)
	previous := shm.OnLeak(func(l shm.Origin) { found <- l })
	t.Cleanup(func() { shm.OnLeak(previous) })
	return found
}

// collect runs the collector until it has found what was dropped.
func collectLeak(t *testing.T, found <-chan shm.Origin) shm.Origin {
	t.Helper()
	for range 100 {
		runtime.GC()
		select {
		case l := <-found:
			return l
		default:
			runtime.Gosched()
		}
	}
	return <-found // the cleanup is on its way, or the test runs into its timeout
}

//go:noinline
func forget(t *testing.T, use func(*shm.Segment)) string {
	seg, err := shm.Create("", 100)
	if err != nil {
		t.Fatal(err)
	}
	use(seg)
	return seg.Name()
}

// dropped are the blocks of Segments that tests have dropped.
var dropped []string

// verifyDropped returns an error unless shmtest finds all that was dropped, here,
// and options for it to find nothing else. It waits before it finds anything, so
// that is done once, when all tests are done.
func verifyDropped() (opts []shmtest.Option, err error) {
	if len(dropped) == 0 {
		return nil, nil
	}
	found := shmtest.Find()
	for _, name := range dropped {
		if found == nil || !strings.Contains(found.Error(), name) || !strings.Contains(found.Error(), "finalizer_test.go") {
			err = fmt.Errorf("%s was dropped, but shmtest.Find: %v", name, found)
		}
		opts = append(opts, shmtest.IgnoreName(name))
	}
	return opts, err
}

func TestDropped(t *testing.T) {
	found := leakHandler(t)
	name := forget(t, func(*shm.Segment) {})
	leak := collectLeak(t, found)
	if leak.Name != name || leak.Cap != 100 || !strings.Contains(leak.Stack(), "shm_test.forget") ||
		leak.Frames[0].Function != "github.com/shmkit/shm_test.forget" {
		t.Errorf("leak %q, %d bytes, created at\n%s", leak.Name, leak.Cap, leak.Stack())
	}
	mustNotExist(t, name)
	dropped = append(dropped, name)
}

// TestDroppedWithBytes drops a Segment while a slice of its memory is in use:
// it is reported, and stays as it is.
func TestDroppedWithBytes(t *testing.T) {
	found := leakHandler(t)
	var b []byte
	name := forget(t, func(seg *shm.Segment) { b = seg.Bytes() })
	if leak := collectLeak(t, found); leak.Name != name {
		t.Errorf("leak %q", leak.Name)
	}
	copy(b, "still mapped")
	peer := attach(t, name)
	if got := string(peer.Bytes()[:12]); got != "still mapped" {
		t.Errorf("read %q", got)
	}
	if err := peer.Unlink(); err != nil {
		t.Error(err)
	}
	dropped = append(dropped, name)
}

// TestCopyKeeps drops one of two copies of a Segment.
func TestCopyKeeps(t *testing.T) {
	found := leakHandler(t)
	var twin shm.Segment
	forget(t, func(seg *shm.Segment) { twin = *seg })
	for range 3 {
		runtime.GC()
	}
	if err := twin.Close(); err != nil {
		t.Error(err)
	}
	runtime.GC()
	select {
	case l := <-found:
		t.Errorf("reported %q, which was closed", l.Name)
	default:
	}
}

// TestDropHoldsNothingUp has Segments dropped whose Close has to wait, and a
// handler that does not return: other cleanups of the program still run.
func TestDropHoldsNothingUp(t *testing.T) {
	for what, busy := range map[string]bool{"Close waits": true, "handler waits": false} {
		t.Run(what, func(t *testing.T) {
			shm.SetPatience(t, time.Minute)
			n := runtime.GOMAXPROCS(0) // of which the runtime runs fewer cleanups at once
			reached, proceed := make(chan bool, n), make(chan bool)
			previous := shm.OnLeak(func(shm.Origin) {
				reached <- true
				<-proceed
			})
			defer func() { shm.OnLeak(previous) }()
			var names []string
			var release []func()
			for range n {
				names = append(names, forget(t, func(seg *shm.Segment) {
					if busy {
						release = append(release, shm.HoldMutex(t, attach(t, seg.Name())))
					}
				}))
			}
			runtime.GC() // the Segments come to their cleanups before this one
			ran := make(chan bool, 1)
			runtime.AddCleanup(new([16]byte), func(ran chan bool) { ran <- true }, ran)
			deadline := time.After(20 * time.Second)
			for waiting := true; waiting; {
				runtime.GC()
				select {
				case <-ran:
					waiting = false
				case <-deadline:
					t.Error("a cleanup does not run")
					waiting = false
				default:
					runtime.Gosched()
				}
			}
			for _, f := range release {
				f()
			}
			close(proceed)
			for range n {
				<-reached
			}
			dropped = append(dropped, names...)
		})
	}
}

func TestLeakWarning(t *testing.T) {
	var log lockedBuffer
	previous := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	defer slog.SetDefault(previous)
	log.written = make(chan bool, 10)

	name := forget(t, func(*shm.Segment) {})
	runtime.GC()
	<-log.written
	if s := log.String(); !strings.Contains(s, "level=WARN") || !strings.Contains(s, name) || !strings.Contains(s, "finalizer_test.go") {
		t.Errorf("logged %s", s)
	}
	dropped = append(dropped, name)
}

type lockedBuffer struct {
	bytes.Buffer
	written chan bool
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	n, err := b.Buffer.Write(p)
	b.written <- true
	return n, err
}

func TestOpenSegments(t *testing.T) {
	before := len(shm.OpenSegments())
	seg := block(t, 10)
	list := shm.OpenSegments()
	if len(list) != before+1 {
		t.Fatalf("%d leaks, %d before", len(list), before)
	}
	if l := list[len(list)-1]; l.Name != seg.Name() || l.Cap != 10 || !strings.Contains(l.Stack(), "TestOpenSegments") {
		t.Errorf("leak %q, %d bytes, created at\n%s", l.Name, l.Cap, l.Stack())
	}
	seg.Close()
	if n := len(shm.OpenSegments()); n != before {
		t.Errorf("%d leaks after Close", n)
	}
}

func TestOnLeakReturnsPrevious(t *testing.T) {
	if shm.OnLeak(func(shm.Origin) {}) != nil {
		t.Error("there was a handler")
	}
	if shm.OnLeak(nil) == nil {
		t.Error("the handler is lost")
	}
}
