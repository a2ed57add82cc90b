package shm_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/internal/raw"
)

// agentProgram does what the lines it hears say, one attachment at a time, and
// answers each with a line: the result, or the error in a word. When the test
// closes its input it ends without Close, as a program does that exits.
var agentProgram = proctest.Register("agent", serveAgent)

func serveAgent(p *proctest.Parent) error {
	a := &actor{}
	for {
		line, err := p.Hear()
		if err != nil {
			return nil
		}
		words := strings.Fields(line)
		answer, err := verbs[words[0]](a, words[1:])
		if err != nil {
			answer = errorWord(err)
		}
		p.Say("%s", answer)
	}
}

// actor is the state of an agent, in its own process.
type actor struct {
	seg *shm.Segment
}

var verbs = map[string]func(a *actor, args []string) (string, error){
	"create": func(a *actor, args []string) (_ string, err error) {
		a.seg, err = shm.Create(args[0], 1<<16, agentOptions(args[1:])...)
		return a.identity(err)
	},
	"open": func(a *actor, args []string) (_ string, err error) {
		a.seg, err = shm.Open(args[0], agentOptions(args[1:])...)
		return a.identity(err)
	},
	"join": func(a *actor, args []string) (_ string, err error) {
		var created bool
		a.seg, created, err = shm.OpenOrCreate(args[0], 1<<16)
		id, err := a.identity(err)
		return fmt.Sprintf("%v %s", created, id), err
	},
	"take": func(a *actor, args []string) (_ string, err error) {
		f := os.NewFile(3, "handed") // the first of ExtraFiles
		defer f.Close()
		a.seg, err = shm.FromFile(f, agentOptions(args)...)
		return a.identity(err)
	},
	"close":  func(a *actor, _ []string) (string, error) { return "closed", a.seg.Close() },
	"unlink": func(a *actor, _ []string) (string, error) { return "unlinked", a.seg.Unlink() },
	"refs":   func(a *actor, _ []string) (string, error) { return strconv.Itoa(a.seg.Refs()), nil },
	"reap": func(a *actor, _ []string) (string, error) {
		names, err := shm.Reap()
		return "reaped " + strings.Join(names, " "), err
	},
	"write": func(a *actor, args []string) (string, error) {
		return "written", second(a.seg.WriteAt([]byte(args[1]), number(args[0])))
	},
	"read": func(a *actor, args []string) (string, error) {
		b := make([]byte, number(args[1]))
		_, err := a.seg.ReadAt(b, number(args[0]))
		return string(b), err
	},
	"append": func(a *actor, args []string) (string, error) {
		_, err := a.seg.WriteAt([]byte(args[0]), a.seg.Size())
		return "appended", err
	},
	"truncate": func(a *actor, args []string) (string, error) { return "truncated", a.seg.Truncate(number(args[0])) },
	"finish":   func(a *actor, _ []string) (string, error) { return "finished", a.seg.Finish() },
	"notify":   func(a *actor, _ []string) (string, error) { return "notified", a.seg.Notify() },
	"keep":     func(a *actor, _ []string) (string, error) { return "kept", a.seg.Keep() },
	"unlock":   func(a *actor, _ []string) (string, error) { return "unlocked", a.seg.Unlock() },
	"lock": func(a *actor, _ []string) (string, error) {
		recovered, err := a.seg.Lock(context.Background())
		return fmt.Sprintf("locked %v", recovered), err
	},
	"trylock": func(a *actor, _ []string) (string, error) {
		recovered, err := a.seg.TryLock()
		return fmt.Sprintf("locked %v", recovered), err
	},
	// store has a word in the block changed, of which the block says nothing.
	"store": func(a *actor, args []string) (string, error) {
		raw.Uint32(a.seg.Bytes(), 0).Store(uint32(number(args[0])))
		return "stored", nil
	},
	// wait waits for that word.
	"wait": func(a *actor, args []string) (string, error) {
		want := uint32(number(args[0]))
		return "seen", a.seg.Wait(context.Background(), func() bool { return raw.Uint32(a.seg.Bytes(), 0).Load() == want })
	},
	"waitsize": func(a *actor, args []string) (string, error) {
		return "reached", a.seg.Wait(context.Background(), func() bool { return a.seg.Size() >= number(args[0]) })
	},
	"waitopen": func(a *actor, args []string) (_ string, err error) {
		a.seg, err = shm.OpenWait(context.Background(), args[0], agentOptions(args[1:])...)
		return a.identity(err)
	},
	// follow reads the block to its end.
	"follow": func(a *actor, _ []string) (string, error) {
		b, err := io.ReadAll(a.seg.Follow(context.Background()))
		if err != nil {
			return "", fmt.Errorf("%q: %w", b, err)
		}
		return fmt.Sprintf("%q", b), nil
	},
	"add":   (*actor).add,
	"fill":  (*actor).fill,
	"drain": (*actor).drain,
	"sound": func(a *actor, args []string) (string, error) { return "sound", a.sound() },
}

func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		panic(err)
	}
	return n
}

func agentOptions(words []string) (opts []shm.Option) {
	for _, w := range words {
		switch w {
		case "readonly":
			opts = append(opts, shm.ReadOnly())
		case "persistent":
			opts = append(opts, shm.Persistent())
		case "headerless":
			opts = append(opts, shm.Headerless())
		case "public":
			opts = append(opts, shm.Perm(0o644))
		default:
			panic("no option " + w)
		}
	}
	return opts
}

// errorWord names the errors that tests expect.
func errorWord(err error) string {
	for word, e := range map[string]error{
		"exist": fs.ErrExist, "notexist": fs.ErrNotExist, "permission": fs.ErrPermission, "unsupported": errors.ErrUnsupported,
		"finished": shm.ErrFinished, "locked": shm.ErrLocked,
	} {
		if errors.Is(err, e) {
			return word
		}
	}
	return "error: " + err.Error()
}

func blockID(seg *shm.Segment) ([16]byte, error) {
	info, err := seg.Stat()
	if err != nil {
		return [16]byte{}, err
	}
	return info.Sys().(*shm.Info).ID, nil
}

// identity is the answer of those who attach: which block they got.
func (a *actor) identity(err error) (string, error) {
	if err != nil {
		return "", err
	}
	id, err := blockID(a.seg)
	return fmt.Sprintf("%x", id), err
}

// add takes the offsets of a word that all processes share and of one of its
// own, and adds 1 to both args[2] times, the shared word first.
func (a *actor) add(args []string) (string, error) {
	b := a.seg.Bytes()
	common, own := raw.Uint64(b, int(number(args[0]))), raw.Uint64(b, int(number(args[1])))
	for range number(args[2]) {
		common.Add(1)
		own.Add(1)
	}
	return "added", nil
}

// fill streams args[1] bytes that follow from the seed args[0] into the block.
func (a *actor) fill(args []string) (string, error) {
	sum := sha256.New()
	seed := [32]byte{byte(number(args[0]))}
	src := io.LimitReader(rand.NewChaCha8(seed), number(args[1]))
	if _, err := io.Copy(a.seg, io.TeeReader(src, sum)); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", sum.Sum(nil)), nil
}

// drain streams args[0] bytes out of the block while they come in.
func (a *actor) drain(args []string) (string, error) {
	sum := sha256.New()
	for n := int64(0); n < number(args[0]); {
		m, err := io.Copy(sum, a.seg)
		if err != nil {
			return "", err
		}
		n += m
		runtime.Gosched()
	}
	return fmt.Sprintf("%x", sum.Sum(nil)), nil
}

// sound checks what is promised to whoever is attached to a block that nobody
// unlinks: its name leads to it, and others can attach to it by that name.
func (a *actor) sound() error {
	id, err := blockID(a.seg)
	if err != nil {
		return err
	}
	info, err := shm.Stat(a.seg.Name())
	switch {
	case err != nil:
		return fmt.Errorf("attached, but: %w", err)
	case info.ID != id:
		return fmt.Errorf("attached to %x, but the name leads to %x", id, info.ID)
	case !info.Attached:
		return errors.New("attached, but nobody is said to be")
	}
	peer, err := shm.Open(a.seg.Name(), shm.ReadOnly())
	if err != nil {
		return fmt.Errorf("attached, but: %w", err)
	}
	defer peer.Close()
	if other, err := blockID(peer); err != nil || other != id {
		return fmt.Errorf("attached to %x, but opened %x, %w", id, other, err)
	}
	return nil
}

// agent is an agent as the test sees it.
type agent struct {
	*proctest.Child
	t testing.TB
}

func newAgent(t testing.TB) agent {
	t.Helper()
	return agent{proctest.Start(t, agentProgram), t}
}

// do has the agent do something, and returns its answer.
func (a agent) do(format string, args ...any) string {
	a.t.Helper()
	a.Say(format, args...)
	return a.Hear()
}

// must is do for an answer that is known beforehand.
func (a agent) must(answer, format string, args ...any) {
	a.t.Helper()
	if got := a.do(format, args...); got != answer {
		a.t.Fatalf("%s: %q, want %q", fmt.Sprintf(format, args...), got, answer)
	}
}

// attach is do for what attaches; it returns the id of the block.
func (a agent) attach(format string, args ...any) string {
	a.t.Helper()
	id := a.do(format, args...)
	if len(id) != 32 {
		a.t.Fatalf("%s: %s", fmt.Sprintf(format, args...), id)
	}
	return id
}

// pool is a number of agents that do the same at the same time.
type pool []agent

func newPool(t testing.TB, n int) pool {
	t.Helper()
	p := make(pool, n)
	for i := range p {
		p[i] = newAgent(t)
	}
	return p
}

// start makes all agents do the same as near to one moment as can be had, and
// does not wait for their answers.
func (p pool) start(format string, args ...any) {
	for _, a := range p {
		a.Say(format, args...)
	}
}

// race is start and returns the answers.
func (p pool) race(format string, args ...any) []string {
	p.start(format, args...)
	answers := make([]string, len(p))
	for i, a := range p {
		answers[i] = a.Hear()
	}
	return answers
}
