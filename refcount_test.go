package shm_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/raw"
)

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

// TestRounds has eight processes attach, work and leave in every round, some of
// them by SIGKILL at any moment. While anybody is attached the block is there;
// when all are gone the name is free. On Linux internal/soak is that and more.
//
// SHM_ROUNDS is the number of rounds.
func TestRounds(t *testing.T) {
	n := rounds(1000)
	if s := os.Getenv("SHM_ROUNDS"); s != "" {
		n = int(number(s))
	} else if runtime.GOOS == "linux" && shm.Files() {
		t.Skip("internal/soak is this on Linux: or set SHM_ROUNDS")
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
			mustBeStale(t, name)
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

func TestPersistent(t *testing.T) {
	needsPersistent(t)
	seg := block(t, 10, shm.Persistent())
	name := seg.Name()
	if _, err := seg.WriteString("0123456789"); err != nil {
		t.Fatal(err)
	}
	if err := seg.Close(); err != nil {
		t.Fatal(err)
	}
	mustSpare(t, name)
	info, err := shm.Stat(name)
	if err != nil || !info.Persistent || info.Attached || info.Stale() || info.Refs != 0 {
		t.Errorf("Stat: %+v, %v", info, err)
	}
	again := attach(t, name)
	if got, err := io.ReadAll(again); err != nil || string(got) != "0123456789" || again.Refs() != 1 {
		t.Errorf("read %q, %v, refs %d", got, err, again.Refs())
	}
	if err := shm.Unlink(name); err != nil {
		t.Fatal(err)
	}
	mustNotExist(t, name)
}

func TestUnlink(t *testing.T) {
	seg := block(t, 10)
	name := seg.Name()
	peer := attach(t, name)
	if err := seg.Unlink(); err != nil {
		t.Fatal(err)
	}
	mustNotExist(t, name)
	mustFail(t, seg.Unlink(), name, fs.ErrNotExist)
	mustFail(t, shm.Unlink(name), name, fs.ErrNotExist)
	seg.WriteString("still here")
	if string(peer.Bytes()) != "still here" {
		t.Error("memory lost by Unlink")
	}
	info, err := peer.Stat()
	if err != nil || info.Sys().(*shm.Info).Linked {
		t.Errorf("Stat: %+v, %v", info, err)
	}
	next, err := shm.Create(name, 20)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	mustFail(t, peer.Unlink(), name, fs.ErrNotExist)
	seg.Close()
	peer.Close()
	if third := attach(t, name); third.Cap() != 20 {
		t.Error("the new block has lost its name to the old one's Close")
	}
}
