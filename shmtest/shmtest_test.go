package shmtest_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/shmtest"
)

func TestMain(m *testing.M) {
	shmtest.VerifyTestMain(m, shmtest.IgnoreName("shmtest-dropped"))
}

type fakeT struct{ errors []string }

func (t *fakeT) Error(args ...any) { t.errors = append(t.errors, fmt.Sprint(args...)) }

type fakeM struct{ exitCode int }

func (m fakeM) Run() int { return m.exitCode }

var (
	_ shmtest.TestingT = testing.TB(nil)
	_ shmtest.TestingM = (*testing.M)(nil)
)

func create(t *testing.T, name string, opts ...shm.Option) *shm.Segment {
	t.Helper()
	seg, err := shm.Create(name, 100, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		seg.Unlink()
		seg.Close()
		shm.Unlink(seg.Name())
	})
	return seg
}

// unique returns a name with a prefix of its own.
func unique(prefix string) string { return fmt.Sprintf("%s-%d", prefix, os.Getpid()) }

func TestVerifyNone(t *testing.T) {
	var clean fakeT
	current := shmtest.IgnoreCurrent()
	shmtest.VerifyNone(&clean, current)
	if clean.errors != nil {
		t.Errorf("found without reason: %v", clean.errors)
	}
	seg := create(t, "")
	var open fakeT
	shmtest.VerifyNone(&open, current)
	if len(open.errors) != 1 || !strings.Contains(open.errors[0], seg.Name()) || !strings.Contains(open.errors[0], "shmtest_test.go") {
		t.Errorf("found %v", open.errors)
	}
	if err := shmtest.Find(current, shmtest.IgnoreName(seg.Name())); err != nil {
		t.Errorf("ignored by name, found %v", err)
	}
	if err := shmtest.Find(shmtest.IgnoreCurrent()); err != nil {
		t.Errorf("ignored by time, found %v", err)
	}
	seg.Close()
	if err := shmtest.Find(current); err != nil {
		t.Errorf("closed, found %v", err)
	}
}

func TestName(t *testing.T) {
	if _, err := shm.List(); errors.Is(err, errors.ErrUnsupported) {
		t.Skip("blocks cannot be listed on this system")
	}
	current := shmtest.IgnoreCurrent()
	if runtime.GOOS == "windows" {
		t.Skip("the system leaves no block when it is closed")
	}
	seg := create(t, "", shm.Persistent())
	seg.Close()
	if err := shmtest.Find(current); err == nil || !strings.Contains(err.Error(), "still has its name") {
		t.Errorf("found %v", err)
	}
	if err := shmtest.Find(shmtest.IgnoreCurrent()); err != nil {
		t.Errorf("ignored by time, found %v", err)
	}
	if err := shm.Unlink(seg.Name()); err != nil {
		t.Fatal(err)
	}
	if err := shmtest.Find(current); err != nil {
		t.Errorf("unlinked, found %v", err)
	}
}

func TestDropped(t *testing.T) {
	current := shmtest.IgnoreCurrent()
	found := make(chan bool)
	previous := shm.OnLeak(func(shm.Origin) { close(found) })
	defer func() { shm.OnLeak(previous) }()
	func() {
		if _, err := shm.Create(unique("shmtest-dropped"), 100); err != nil {
			t.Fatal(err)
		}
	}()
	runtime.GC()
	<-found
	if err := shmtest.Find(current); err == nil || !strings.Contains(err.Error(), "dropped without Close") {
		t.Errorf("found %v", err)
	}
}

func TestVerifyTestMain(t *testing.T) {
	current := shmtest.IgnoreCurrent()
	for _, tt := range []struct {
		leak, always bool
		in, out      int
	}{
		{false, false, 0, 0}, {false, true, 2, 2}, {false, false, 2, 2},
		{true, false, 0, 1}, {true, true, 0, 1}, {true, false, 2, 2}, {true, true, 2, 2},
	} {
		t.Run(fmt.Sprint(tt), func(t *testing.T) {
			if tt.leak {
				seg := create(t, "")
				defer seg.Close()
			}
			exitCode := -1
			opts := []shmtest.Option{current, shmtest.Cleanup(func(c int) { exitCode = c })}
			if tt.always {
				opts = append(opts, shmtest.RunOnFailure())
			}
			shmtest.VerifyTestMain(fakeM{tt.in}, opts...)
			if exitCode != tt.out {
				t.Errorf("exit status %d, want %d", exitCode, tt.out)
			}
		})
	}
}

func TestCleanup(t *testing.T) {
	if err := shmtest.Find(shmtest.Cleanup(func(int) {})); err == nil {
		t.Error("Find takes Cleanup")
	}
	called := false
	shmtest.VerifyNone(t, shmtest.IgnoreCurrent(), shmtest.Cleanup(func(int) { called = true }))
	if !called {
		t.Error("not called")
	}
}

// A raw block does not say who created it.
func TestHeaderless(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the system leaves no block when it is closed")
	}
	current := shmtest.IgnoreCurrent()
	for _, unlink := range []func(seg *shm.Segment) error{
		func(seg *shm.Segment) error { seg.Close(); return shm.Unlink("/" + seg.Name()) },
		func(seg *shm.Segment) error { defer seg.Close(); return seg.Unlink() },
	} {
		seg := create(t, "", shm.Headerless())
		peer, err := shm.Open(seg.Name(), shm.Headerless())
		if err != nil {
			t.Fatal(err)
		}
		seg.Close()
		if err := shmtest.Find(current, shmtest.IgnoreName("other")); err == nil {
			t.Error("an open Segment is not found")
		}
		defer peer.Close()
		peer.Close()
		if err := shmtest.Find(current); err == nil || !strings.Contains(err.Error(), seg.Name()+`", created by this process, still has its name`) {
			t.Errorf("found %v", err)
		}
		if err := shmtest.Find(shmtest.IgnoreCurrent()); err != nil {
			t.Errorf("ignored by time, found %v", err)
		}
		if err := shm.Unlink(seg.Name()); err != nil {
			t.Fatal(err)
		}
		if err := shmtest.Find(current); err != nil {
			t.Errorf("unlinked, found %v", err)
		}
		again := create(t, seg.Name(), shm.Headerless())
		if err := unlink(again); err != nil {
			t.Fatal(err)
		}
		if err := shmtest.Find(current); err != nil {
			t.Errorf("unlinked, found %v", err)
		}
		// Another program gives the name to a block of its own.
		if path := "/dev/shm/" + seg.Name(); runtime.GOOS == "linux" && os.WriteFile(path, []byte("raw"), 0o600) == nil {
			if err := shmtest.Find(current); err != nil {
				t.Errorf("another program's, found %v", err)
			}
			os.Remove(path)
		}
	}
}
