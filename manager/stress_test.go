package manager_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/manager"
)

var rounds = flag.Int("rounds", 200, "how many clients TestKilledClients kills")

// worker is a client that does one thing after another until it is killed.
var worker = proctest.Register("worker", func(p *proctest.Parent) error {
	seed, err := strconv.ParseUint(p.Args[1], 10, 64)
	if err != nil {
		return err
	}
	w := &work{addr: p.Args[0], Rand: rand.New(rand.NewPCG(seed, 0))}
	for {
		if err := w.step(); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) {
			p.Say("error: %v", err)
			return err
		}
		p.Say("ok")
	}
})

type work struct {
	*rand.Rand
	addr   string
	client *manager.Client
	segs   []*shm.Segment
}

func (w *work) step() (err error) {
	if w.client == nil || w.IntN(50) == 0 {
		var opts []manager.DialOption
		if w.IntN(2) == 0 {
			opts = append(opts, manager.Lease())
		}
		if w.client != nil {
			w.client.Close()
		}
		w.client, err = manager.Dial(context.Background(), w.addr, opts...)
		return err
	}
	shared, size := fmt.Sprint("shared-", w.IntN(5)), 1+w.Int64N(1<<20)
	var seg *shm.Segment
	switch w.IntN(8) {
	case 0:
		seg, err = w.client.Create("", size)
	case 1:
		seg, err = w.client.Create(shared, size)
	case 2, 3:
		seg, _, err = w.client.OpenOrCreate(shared, size)
	case 4:
		seg, err = w.client.Open(shared, shm.ReadOnly())
	case 5:
		err = w.client.Release(shared)
	case 6:
		_, err = w.client.List()
	case 7:
		if len(w.segs) > 0 {
			i := w.IntN(len(w.segs))
			err = w.segs[i].Close()
			w.segs[i] = w.segs[len(w.segs)-1]
			w.segs = w.segs[:len(w.segs)-1]
		}
	}
	if seg == nil || err != nil {
		return err
	}
	if w.segs = append(w.segs, seg); len(w.segs) > 10 {
		err = w.segs[0].Close()
		w.segs = w.segs[1:]
	}
	b := make([]byte, 100)
	if _, writeErr := seg.WriteAt(b, w.Int64N(seg.Cap())); writeErr != nil && !errors.Is(writeErr, shm.ErrFull) && !errors.Is(writeErr, shm.ErrReadOnly) {
		return writeErr
	}
	return err
}

// TestKilledClients has clients come, work, and be killed at any moment, round
// after round, and looks for what they leave behind: nothing but the blocks that
// are the server's, and when those are released, nothing at all. For 10,000
// rounds:
//
//	go test -v -run TestKilledClients ./manager -args -rounds 10000
func TestKilledClients(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	nothingLeft := mustLeaveNothing(t)
	addr := address(t)
	srv := startServer(t, addr)
	c := dial(t, addr)
	if got := names(t, c); len(got) > 0 {
		t.Fatalf("list: %v", got)
	}
	left := watch(t, srv.Process.Pid)
	workers := make([]*proctest.Child, 4)
	kill := func(w *proctest.Child) {
		for _, line := range w.KillHear() {
			if strings.HasPrefix(line, "error") {
				t.Error(line)
			}
		}
	}
	steps := 0
	for i := range *rounds {
		w := &workers[i%len(workers)]
		if *w != nil {
			for range rnd.IntN(40) {
				if line := (*w).Hear(); line != "ok" {
					t.Fatal(line)
				}
				steps++
			}
			kill(*w)
		}
		*w = proctest.Start(t, worker, addr, fmt.Sprint(rnd.Uint64()))
		if i%500 == 499 {
			t.Logf("%d rounds, %d steps, server has %d blocks", i+1, steps, len(names(t, c)))
			releaseAll(t, c) // or killed clients would use up the quota
		}
	}
	for _, w := range workers {
		kill(w)
	}
	leased := func() (n int) {
		list, err := c.List()
		if err != nil {
			t.Fatal(err)
		}
		for _, info := range list {
			if info.Leased {
				n++
			}
		}
		return n
	}
	eventually(t, "the leases have ended", func() bool { return leased() == 0 })
	// Where a killed client can leave something, the next one takes it away.
	last := startUser(t, addr)
	do(last, "create last", "ok")
	nothingLeft()
	last.Wait()
	releaseAll(t, c)
	if got := names(t, c); len(got) > 0 {
		t.Errorf("list: %v", got)
	}
	left("all clients are dead")
	t.Logf("%d rounds, %d steps", *rounds, steps)
}

func releaseAll(t testing.TB, c *manager.Client) {
	t.Helper()
	for _, name := range names(t, c) {
		if err := c.Release(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
}

// TestKilledServers kills servers at work, one after the other at one address,
// and looks that each starts empty, and that nothing is left of the last.
func TestKilledServers(t *testing.T) {
	addr := address(t)
	left := watch(t, os.Getpid())
	for range *rounds / 10 {
		srv := startServer(t, addr)
		c := dial(t, addr)
		if got := names(t, c); len(got) > 0 {
			t.Fatalf("list: %v", got)
		}
		seg := must(t)(c.Create("block", 1<<16))
		w := proctest.Start(t, worker, addr, fmt.Sprint(rand.Uint64()))
		for range rand.IntN(40) {
			if line := w.Hear(); line != "ok" {
				t.Fatal(line)
			}
		}
		srv.Kill()
		w.Kill()
		write(t, seg, "usable")
		mustFail(t, second(c.Open("block")), "block", manager.ErrGone)
		mustFail(t, second(manager.Dial(t.Context(), addr)), addr, manager.ErrGone)
		if err := errors.Join(seg.Close(), c.Close()); err != nil {
			t.Error(err)
		}
	}
	left("all are dead")
}
