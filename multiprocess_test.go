package shm_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

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

// mustBeGone checks that there is no such name. It looks without attaching,
// which would put right what is wrong.
func mustBeGone(t testing.TB, name string) {
	t.Helper()
	if info, err := shm.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("%s: %+v, %v", name, info, err)
	}
}

// untilGone calls reap until there is no such name: a block that another process
// is just reaping is passed over, and the first Create of a process looks at no
// more names than it can in a short time.
func untilGone(t testing.TB, name string, reap func()) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		reap()
		if _, err := shm.Stat(name); errors.Is(err, fs.ErrNotExist) || time.Now().After(end) {
			return
		}
	}
}

// mustBeDead checks that nobody is attached to a block. Another process may just
// be reaping it, for which it looks attached, or may have done so.
func mustBeDead(t testing.TB, name string) {
	t.Helper()
	info, err := shm.Stat(name)
	for end := time.Now().Add(time.Minute); err == nil && info.Attached && time.Now().Before(end); {
		info, err = shm.Stat(name)
	}
	if err == nil && !info.Stale() || err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("not dead: %+v, %v", info, err)
	}
}

// mustLead checks that the name leads to the block, and that somebody is
// attached to it.
func mustLead(t testing.TB, name, id string) {
	t.Helper()
	info, err := shm.Stat(name)
	if err != nil || fmt.Sprintf("%x", info.ID) != id || !info.Attached {
		t.Fatalf("%s should lead to %s: %+v, %v", name, id, info, err)
	}
}

// TestProcesses is the promise as a whole: processes share a block, some are
// killed while they work on it, and it is there, whole, until the last is gone.
func TestProcesses(t *testing.T) {
	const n, slot, often = 8, 128, 200_000
	name := unique(t)
	agents := make([]agent, n)
	for i := range agents {
		agents[i] = newAgent(t)
	}
	id := agents[0].attach("create %s", name)
	for i, a := range agents[1:] {
		if got := a.attach("open %s", name); got != id {
			t.Fatalf("agent %d is attached to %s, not %s", i+1, got, id)
		}
	}
	agents[0].must("8", "refs")
	for i, a := range agents {
		a.must("written", "write %d agent%d", (i+1)*slot+8, i)
		a.Say("add 0 %d %d", (i+1)*slot, often)
	}
	watcher := attach(t, name)
	own := func(i int) uint64 { return raw.Uint64(watcher.Bytes(), (i+1)*slot).Load() }
	for i := 1; i < n; i += 2 {
		for own(i) == 0 { // killed at work
			runtime.Gosched()
		}
		agents[i].Kill()
		mustLead(t, name, id)
	}
	sum := uint64(0)
	for i, a := range agents {
		if i%2 == 0 {
			a.Expect("added")
		}
		sum += own(i)
		if got := string(watcher.Bytes()[(i+1)*slot+8:][:6]); got != fmt.Sprintf("agent%d", i) {
			t.Errorf("slot %d holds %q", i, got)
		}
	}
	// Whoever is killed can have added to the shared word and not to its own.
	if total := raw.Uint64(watcher.Bytes(), 0).Load(); total < sum || total > sum+n/2 {
		t.Errorf("the sum is %d, the parts are %d", total, sum)
	}
	watcher.Close()
	for i := 0; i < n; i += 2 {
		agents[i].must("sound", "sound")
		agents[i].must("closed", "close")
		if i < n-2 {
			mustLead(t, name, id)
		}
	}
	mustBeGone(t, name)
}

// TestCreateRace has processes create one block at the same time.
func TestCreateRace(t *testing.T) {
	p := newPool(t, 8)
	for range rounds(1000) {
		name := unique(t)
		winner := -1
		for i, answer := range p.race("create %s", name) {
			switch {
			case len(answer) == 32 && winner < 0:
				winner = i
				mustLead(t, name, answer)
			case answer != "exist":
				t.Fatalf("agent %d: %s; agent %d had won", i, answer, winner)
			}
		}
		if winner < 0 {
			t.Fatal("nobody has created the block")
		}
		p[winner].must("closed", "close")
		mustBeGone(t, name)
	}
}

// TestJoinRace has processes call OpenOrCreate at the same time, and then Close.
func TestJoinRace(t *testing.T) {
	p := newPool(t, 8)
	for range rounds(1000) {
		name := unique(t)
		var ids []string
		created := 0
		for _, answer := range p.race("join %s", name) {
			made, id, _ := strings.Cut(answer, " ")
			if made == "true" {
				created++
			}
			ids = append(ids, id)
		}
		if created != 1 || len(slices.Compact(ids)) != 1 || len(ids[0]) != 32 {
			t.Fatalf("%d have created the blocks %q", created, ids)
		}
		p[0].must("8", "refs")
		for i, answer := range p.race("close") {
			if answer != "closed" {
				t.Fatalf("agent %d: %s", i, answer)
			}
		}
		mustBeGone(t, name)
	}
}

// TestChurn has processes come and go at the same time, under one name that is
// a dead block's in between. Each finds its block under the name.
func TestChurn(t *testing.T) {
	p := newPool(t, 4)
	name := unique(t)
	for range rounds(1000) {
		for _, answer := range p.race("join %s\nsound\nclose", name) {
			if !strings.HasPrefix(answer, "true ") && !strings.HasPrefix(answer, "false ") {
				t.Fatal(answer)
			}
		}
		for i, a := range p {
			if i == 0 && rand.N(4) == 0 {
				a.Kill() // perhaps while it is attached
				p[i] = newAgent(t)
				continue
			}
			a.Expect("sound")
			a.Expect("closed")
		}
	}
	p[0].do("join %s", name)
	p[0].must("closed", "close")
	mustBeGone(t, name)
}

// rounds returns n, or less in a short run, or on Windows, where it is all about
// starting processes: under Wine that takes a hundred times as long.
func rounds(n int) int {
	if testing.Short() {
		n /= 10
	}
	if runtime.GOOS == "windows" {
		n /= 10
	}
	return max(n, 1)
}

// TestRounds has eight processes attach, work and leave in every round, some of
// them by SIGKILL at any moment. While anybody is attached the block is there;
// when all are gone the name is free.
//
// SHM_ROUNDS is the number of rounds.
func TestRounds(t *testing.T) {
	n := rounds(1000)
	if s := os.Getenv("SHM_ROUNDS"); s != "" {
		n = int(number(s))
	}
	p := newPool(t, 8)
	random := rand.New(rand.NewPCG(1, 2))
	var kills [4]int // by how far the victims had come
	for i := range n {
		playRound(t, p, unique(t), random, &kills)
		if t.Failed() {
			t.Fatalf("in round %d", i)
		}
	}
	t.Logf("%d rounds of 8 processes; killed while attaching, adding, checking, closing: %d", n, kills)
}

func playRound(t *testing.T, p pool, name string, random *rand.Rand, kills *[4]int) {
	const times, more = 3, 40 // as often the doomed would, so as to be killed at it
	var survivors []agent
	doomed := random.Perm(len(p))[:random.IntN(len(p)+1)]
	for i, a := range p {
		work := fmt.Sprintf("join %s\nadd 0 64 100\nsound\nclose\n", name)
		if slices.Contains(doomed, i) {
			a.Say("%s", strings.TrimSpace(strings.Repeat(work, more)))
		} else {
			a.Say("%s", strings.TrimSpace(strings.Repeat(work, times)))
			survivors = append(survivors, a)
		}
	}
	steps := make([]int, len(p))
	for _, i := range doomed {
		steps[i] = random.IntN(4 * times)
		for range steps[i] {
			p[i].Hear()
		}
		// Not to wait for anything, but to kill at any moment.
		for end := time.Now().Add(time.Duration(random.IntN(100)) * time.Microsecond); time.Now().Before(end); {
			runtime.Gosched()
		}
		p[i].Process.Kill()
	}
	for _, i := range doomed {
		steps[i] += len(p[i].KillHear())
		kills[steps[i]%4]++
	}
	for _, a := range survivors {
		for range times {
			if answer := a.Hear(); !strings.HasPrefix(answer, "true ") && !strings.HasPrefix(answer, "false ") {
				t.Errorf("attaching: %s", answer)
			}
			a.Expect("added")
			a.Expect("sound")
			a.Expect("closed")
		}
	}
	if len(doomed) == 0 {
		mustBeGone(t, name) // nobody was killed: the last Close has taken it
	}
	seg, err := shm.Open(name)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open when all are gone: %v", err)
		seg.Close()
	}
	mustBeGone(t, name)
	if shm.BornNamed() { // the name of one killed while creating is still there for Create to find
		if seg, err = shm.Create(name, 1); err != nil {
			t.Errorf("Create when all are gone: %v", err)
		}
		seg.Close()
	}
	for _, i := range doomed {
		p[i] = newAgent(t)
	}
}

// TestAllKilled kills everybody, and then looks for the block in all the ways
// there are.
func TestAllKilled(t *testing.T) {
	for verb, look := range map[string]func(t *testing.T, name string){
		"Open": func(t *testing.T, name string) {
			_, err := shm.Open(name)
			mustFail(t, err, name, fs.ErrNotExist)
		},
		"OpenReadOnly": func(t *testing.T, name string) {
			_, err := shm.Open(name, shm.ReadOnly())
			mustFail(t, err, name, fs.ErrNotExist)
		},
		"Create": func(t *testing.T, name string) {
			seg, err := shm.Create(name, 10)
			if err != nil {
				t.Fatal(err)
			}
			if b := seg.Bytes(); !bytes.Equal(b, make([]byte, 10)) {
				t.Errorf("a new block holds %q", b)
			}
			seg.Close()
		},
		"OpenOrCreate": func(t *testing.T, name string) {
			seg, created, err := shm.OpenOrCreate(name, 10)
			if err != nil || !created || seg.Cap() != 10 {
				t.Fatal(created, err)
			}
			seg.Close()
		},
		"Reap": func(t *testing.T, name string) {
			needsList(t)
			untilGone(t, name, func() {
				if _, err := shm.Reap(); err != nil {
					t.Fatal(err)
				}
			})
		},
		"first Create of a process": func(t *testing.T, name string) {
			needsList(t)
			untilGone(t, name, func() { newAgent(t).attach("create %s", unique(t)) })
		},
	} {
		t.Run(verb, func(t *testing.T) {
			name := unique(t)
			a, b := newAgent(t), newAgent(t)
			id := a.attach("create %s", name)
			b.attach("open %s", name)
			a.must("written", "write 0 something")
			a.Kill()
			mustLead(t, name, id)
			b.must("something", "read 0 9")
			b.Kill()
			t.Cleanup(func() { shm.Open(name) }) // for the name to go if look is skipped
			mustBeDead(t, name)
			look(t, name)
			mustBeGone(t, name)
		})
	}
}

// TestExit has processes leave by exit, without Close.
func TestExit(t *testing.T) {
	name := unique(t)
	a, b := newAgent(t), newAgent(t)
	id := a.attach("create %s", name)
	b.attach("open %s", name)
	a.Wait()
	mustLead(t, name, id)
	b.Wait()
	mustNotExist(t, name)
}

// TestCloseAfterKill has the last one close when the count still holds those
// that were killed.
func TestCloseAfterKill(t *testing.T) {
	name := unique(t)
	a, b, c := newAgent(t), newAgent(t), newAgent(t)
	a.attach("create %s", name)
	b.attach("open %s", name)
	c.attach("open %s", name)
	a.Kill()
	b.Kill()
	c.must("sound", "sound")
	c.must("closed", "close")
	mustBeGone(t, name)
}

// TestCloseInView has one close while a call of its own still uses the memory:
// that keeps the memory, but no longer the block.
func TestCloseInView(t *testing.T) {
	seg := block(t, 100)
	peer := newAgent(t)
	peer.attach("open %s", seg.Name())
	err := seg.View(func(b []byte) error {
		if err := seg.Close(); err != nil {
			t.Error(err)
		}
		peer.must("sound", "sound")
		peer.must("closed", "close")
		mustBeGone(t, seg.Name())
		b[0] = 1
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestPersistentSurvives has a Persistent block outlive everybody.
func TestPersistentSurvives(t *testing.T) {
	needsPersistent(t)
	name := unique(t)
	a := newAgent(t)
	id := a.attach("create %s persistent", name)
	t.Cleanup(func() { shm.Unlink(name) })
	a.must("written", "write 0 kept")
	b := newAgent(t)
	b.attach("open %s", name)
	b.must("closed", "close")
	a.Kill()
	info, err := shm.Stat(name)
	if err != nil || info.Attached || info.Stale() || fmt.Sprintf("%x", info.ID) != id {
		t.Errorf("Stat: %+v, %v", info, err)
	}
	mustSpare(t, name)
	c := newAgent(t)
	if got := c.attach("open %s", name); got != id {
		t.Errorf("found %s, not %s", got, id)
	}
	c.must("1", "refs")
	c.must("kept", "read 0 4")
	if err := shm.Unlink(name); err != nil {
		t.Fatal(err)
	}
	mustBeGone(t, name)
	c.must("kept", "read 0 4")
	c.Kill()
	mustNotExist(t, name)
}

// TestUnlinkAttached takes a name away from processes that are attached, and
// gives it to a new block.
func TestUnlinkAttached(t *testing.T) {
	name := unique(t)
	a, b, c := newAgent(t), newAgent(t), newAgent(t)
	old := a.attach("create %s", name)
	b.attach("open %s", name)
	a.must("unlinked", "unlink")
	mustNotExist(t, name)
	a.must("notexist", "unlink")
	a.must("written", "write 5 old")
	b.must("old", "read 5 3")

	fresh := c.attach("create %s", name)
	if fresh == old {
		t.Errorf("block %s has come back", old)
	}
	a.must("notexist", "unlink")
	a.must("closed", "close")
	mustLead(t, name, fresh)
	b.must("old", "read 5 3")
	b.must("closed", "close")
	mustLead(t, name, fresh)
	c.must("sound", "sound")
	c.must("closed", "close")
	mustBeGone(t, name)
}

// TestReadOnlyKeepsAlive has a block held by one that can only read.
func TestReadOnlyKeepsAlive(t *testing.T) {
	name := unique(t)
	a, b := newAgent(t), newAgent(t)
	id := a.attach("create %s", name)
	a.must("written", "write 0 held")
	b.attach("open %s readonly", name)
	a.must("2", "refs")
	a.Kill()
	mustLead(t, name, id)
	b.must("held", "read 0 4")
	b.must("sound", "sound")
	b.must("closed", "close")
	mustBeGone(t, name)
}

// TestReapSparesOthers has Reap see only blocks that it must leave alone.
func TestReapSparesOthers(t *testing.T) {
	needsList(t)
	live, reader, bare := unique(t), unique(t), unique(t)
	a, b, c, d := newAgent(t), newAgent(t), newAgent(t), newAgent(t)
	ids := map[string]string{live: a.attach("create %s", live), reader: b.attach("create %s", reader)}
	c.attach("open %s readonly", reader)
	b.Kill()
	d.attach("create %s headerless", bare)
	t.Cleanup(func() { shm.Unlink(bare) })
	if !shm.NamesStay() { // or it would end with its creator
		d.Kill()
	}
	names, err := shm.Reap()
	if err != nil {
		t.Fatal(err)
	}
	for name, id := range ids {
		mustLead(t, name, id)
		if slices.Contains(names, name) {
			t.Errorf("Reap says that it has reaped %s", name)
		}
	}
	if info, err := shm.Stat(bare); err != nil || !info.Headerless || slices.Contains(names, bare) {
		t.Errorf("Stat: %+v, %v", info, err)
	}
}

// TestStreamAcross has one process read a block while another fills it.
func TestStreamAcross(t *testing.T) {
	const size = 4 << 20
	a, b := newAgent(t), newAgent(t)
	for seed := range rounds(20) {
		seg := block(t, size)
		if err := seg.Truncate(0); err != nil {
			t.Fatal(err)
		}
		a.attach("open %s", seg.Name())
		b.attach("open %s readonly", seg.Name())
		b.Say("drain %d", size)
		want := a.do("fill %d %d", seed, size)
		if got := b.Hear(); got != want {
			t.Fatalf("read %s, written %s", got, want)
		}
		a.must("closed", "close")
		b.must("closed", "close")
		seg.Close()
		mustBeGone(t, seg.Name())
	}
}

// TestHeaderlessForStale has a stale block where a raw one is wanted.
func TestHeaderlessForStale(t *testing.T) {
	if shm.NamesStay() {
		t.Skip("no stale blocks on this system")
	}
	name := unique(t)
	a := newAgent(t)
	a.attach("create %s", name)
	_, _, err := shm.OpenOrCreate(name, 100, shm.Headerless())
	mustFail(t, err, name, fs.ErrInvalid)
	a.Kill()
	_, err = shm.Open(name, shm.Headerless())
	mustFail(t, err, name, fs.ErrNotExist)
	seg, created, err := shm.OpenOrCreate(name, 100, shm.Headerless())
	if err != nil || !created {
		t.Fatalf("created: %v, %v", created, err)
	}
	defer shm.Unlink(name)
	defer seg.Close()
	if info, err := shm.Stat(name); err != nil || !info.Headerless {
		t.Errorf("Stat: %+v, %v", info, err)
	}
}
