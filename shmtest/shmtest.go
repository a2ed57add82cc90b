// Package shmtest fails tests that leave shared memory behind, as goleak does for
// goroutines.
//
// Use it in one test:
//
//	func TestFrames(t *testing.T) {
//		defer shmtest.VerifyNone(t)
//		...
//	}
//
// or for all tests of a package:
//
//	func TestMain(m *testing.M) {
//		shmtest.VerifyTestMain(m)
//	}
//
// Left behind are Segments that are still open, Segments that were dropped without
// Close and found by the garbage collector, and blocks that this process created and
// that still have their names. A [shm.Headerless] block is identified by its name
// alone: it counts even if another process has unlinked it and created a new one.
package shmtest

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/leaks"
)

// TestingT is the part of [testing.TB] that VerifyNone uses.
type TestingT interface{ Error(args ...any) }

// TestingM is the part of [testing.M] that VerifyTestMain uses.
type TestingM interface{ Run() int }

// An Option changes what counts as left behind.
type Option interface{ apply(*config) }

type optionFunc func(*config)

func (f optionFunc) apply(c *config) { f(c) }

type config struct {
	after        uint64          // ids of Segments up to here do not count
	ignored      map[string]bool // names of blocks that do not count
	prefixes     []string
	cleanup      func(exitCode int)
	runOnFailure bool
}

// IgnoreCurrent ignores the Segments and blocks that exist when IgnoreCurrent is
// called.
func IgnoreCurrent() Option {
	last := leaks.Last()
	blocks := ownBlocks()
	return optionFunc(func(c *config) {
		c.after = max(c.after, last)
		for _, name := range blocks {
			c.ignored[name] = true
		}
	})
}

// IgnoreName ignores blocks, and Segments of blocks, whose name begins with prefix.
func IgnoreName(prefix string) Option {
	return optionFunc(func(c *config) { c.prefixes = append(c.prefixes, prefix) })
}

// Cleanup makes VerifyTestMain call f with the exit status instead of os.Exit, and
// VerifyNone call f with 0 when it is done. It does not apply to [Find], which
// returns an error.
func Cleanup(f func(exitCode int)) Option {
	return optionFunc(func(c *config) { c.cleanup = f })
}

// RunOnFailure makes VerifyTestMain look for shared memory left behind even if tests
// failed.
func RunOnFailure() Option {
	return optionFunc(func(c *config) { c.runOnFailure = true })
}

func newConfig(opts []Option) *config {
	c := &config{ignored: make(map[string]bool)}
	for _, o := range opts {
		o.apply(c)
	}
	return c
}

// VerifyNone calls t.Error if the process has left shared memory behind so far. It
// waits up to about a second for Segments that are about to be closed. It is not for tests
// that run in parallel: it sees the Segments of all of them.
func VerifyNone(t TestingT, opts ...Option) {
	if h, ok := t.(interface{ Helper() }); ok {
		h.Helper()
	}
	c := newConfig(opts)
	if err := c.find(); err != nil {
		t.Error(err)
	}
	if c.cleanup != nil {
		c.cleanup(0)
	}
}

// VerifyTestMain runs the tests and exits with their status. If they passed but left
// shared memory behind, it reports that on os.Stderr and exits with status 1.
func VerifyTestMain(m TestingM, opts ...Option) {
	c := newConfig(opts)
	exitCode := m.Run()
	if exitCode == 0 || c.runOnFailure {
		if err := c.find(); err != nil {
			fmt.Fprintf(os.Stderr, "shmtest: %v\n", err)
			exitCode = max(exitCode, 1)
		}
	}
	if c.cleanup != nil {
		c.cleanup(exitCode)
		return
	}
	os.Exit(exitCode)
}

// Find returns an error that describes what the process has left behind so far, or
// nil. It waits as VerifyNone does.
func Find(opts ...Option) error {
	c := newConfig(opts)
	if c.cleanup != nil {
		return errors.New("shmtest: Cleanup can only be passed to VerifyNone or VerifyTestMain")
	}
	return c.find()
}

// tries and the pauses bound the wait for a Segment that is about to be closed, by
// another goroutine or because the garbage collector has found it dropped.
const (
	tries      = 20
	firstPause = time.Microsecond
	mostPause  = 100 * time.Millisecond
)

func (c *config) find() error {
	for i, pause := 0, firstPause; ; i, pause = i+1, min(2*pause, mostPause) {
		runtime.GC()
		found := c.look()
		if len(found) == 0 {
			return nil
		}
		if i == tries {
			return fmt.Errorf("found shared memory left behind:\n%s", strings.Join(found, "\n"))
		}
		time.Sleep(pause)
	}
}

func (c *config) look() (found []string) {
	report := func(what string, list []leaks.Record) {
		for _, r := range list {
			if r.ID > c.after && !c.ignores(r.Name) {
				origin := shm.Origin{Name: r.Name, Cap: r.Cap, Frames: r.Frames()}
				found = append(found, fmt.Sprintf("Segment %q of %d bytes, %s, created at:\n%s", r.Name, r.Cap, what, origin.Stack()))
			}
		}
	}
	report("still open", leaks.Open())
	report("dropped without Close", leaks.Dropped())
	if len(found) > 0 {
		return found // which explains the names as well
	}
	for _, name := range ownBlocks() {
		if !c.ignores(name) {
			found = append(found, fmt.Sprintf("block %q, created by this process, still has its name", name))
		}
	}
	return found
}

func (c *config) ignores(name string) bool {
	return c.ignored[name] || slices.ContainsFunc(c.prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}

// started excludes blocks of an earlier process with the same id.
var started = time.Now()

// ownBlocks returns the names of the blocks that this process has created. Where
// blocks cannot be listed it returns those without a header alone.
func ownBlocks() (names []string) {
	list, _ := shm.List()
	for _, info := range list {
		if info.Creator == os.Getpid() && info.Created.After(started) {
			names = append(names, info.Name)
		}
	}
	for _, name := range leaks.Raw() {
		if info, err := shm.Stat(name); err == nil && info.Headerless {
			names = append(names, name)
		}
	}
	return names
}
