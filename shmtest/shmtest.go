// Package shmtest fails tests that leave shared memory behind, as goleak does
// for goroutines.
//
// In one test:
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
// What counts as left behind is a Segment that is still open, a Segment that
// was dropped without Close and found by the garbage collector, and a block that
// this process created and that still has its name. A [shm.Headerless] block is
// known by its name alone: one that another process has unlinked and created
// again counts as well.
package shmtest

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/leaks"
)

// TestingT is what VerifyNone needs of a [testing.TB].
type TestingT interface{ Error(args ...any) }

// TestingM is what VerifyTestMain needs of a [testing.M].
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

// IgnoreCurrent leaves out what is there when IgnoreCurrent is called.
func IgnoreCurrent() Option {
	last := lastID()
	blocks := ownBlocks()
	return optionFunc(func(c *config) {
		c.after = max(c.after, last)
		for _, name := range blocks {
			c.ignored[name] = true
		}
	})
}

// IgnoreName leaves out blocks whose name begins with prefix.
func IgnoreName(prefix string) Option {
	return optionFunc(func(c *config) { c.prefixes = append(c.prefixes, prefix) })
}

// Cleanup makes VerifyTestMain call f with the exit status instead of os.Exit,
// and VerifyNone call it with 0 at the end. With [Find] it is an error.
func Cleanup(f func(exitCode int)) Option {
	return optionFunc(func(c *config) { c.cleanup = f })
}

// RunOnFailure makes VerifyTestMain look for leaks even if tests failed.
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

// VerifyNone reports by t.Error what the process has left behind so far. It
// cannot tell apart tests that run in parallel, so it is not for those.
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

// VerifyTestMain runs the tests and exits with their status, or with status 1
// if they passed but left something behind, which it then says on os.Stderr.
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

// Find returns an error that says what the process has left behind so far, or
// nil.
func Find(opts ...Option) error {
	c := newConfig(opts)
	if c.cleanup != nil {
		return errors.New("shmtest: Cleanup can only be passed to VerifyNone or VerifyTestMain")
	}
	return c.find()
}

// tries and pauses bound the wait for a Segment that is about to be closed: by
// another goroutine, or by the garbage collector on behalf of a forgotten one.
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
				found = append(found, fmt.Sprintf("Segment %q, %d bytes, %s, created at:\n%s", r.Name, r.Cap, what, origin.Stack()))
			}
		}
	}
	report("still open", leaks.Open())
	report("dropped without Close", leaks.Dropped())
	if len(found) > 0 {
		return found // its name is no news
	}
	for _, name := range ownBlocks() {
		if !c.ignores(name) {
			found = append(found, fmt.Sprintf("block %q, created by this process, still has its name", name))
		}
	}
	return found
}

func (c *config) ignores(name string) bool {
	if c.ignored[name] {
		return true
	}
	for _, p := range c.prefixes {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// lastID returns the id of the youngest Segment there has been.
func lastID() (id uint64) {
	for _, list := range [][]leaks.Record{leaks.Open(), leaks.Dropped()} {
		for _, r := range list {
			id = max(id, r.ID)
		}
	}
	return id
}

// started bounds what can be ours, for process ids are used again.
var started = time.Now()

// ownBlocks returns the names of blocks that this process has created. Where
// blocks cannot be listed, those with a header are not among them.
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
