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

// shared returns how many bytes of shared memory the machine has in use.
func sharedMemory(t testing.TB) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\nShmem:")
	var kib int64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
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
	// Other programs use shared memory, too; what these clients would leave is
	// half a megabyte on average for each block.
	const noise = 64 << 20
	memory := sharedMemory(t)
	nothingLeft := mustLeaveNothing(t)

	addr := t.TempDir() + "/socket"
	srv := startServer(t, addr)
	c := dial(t, addr)
	if got := names(t, c); len(got) > 0 {
		t.Fatalf("list: %v", got)
	}
	idle := descriptors(t, srv.Process.Pid)
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
			t.Logf("%d rounds, %d steps, server has %d blocks and %d descriptors, %d MiB of shared memory in use",
				i+1, steps, len(names(t, c)), descriptors(t, srv.Process.Pid), sharedMemory(t)>>20)
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
	eventually(t, "the server has no descriptors but its own", func() bool { return descriptors(t, srv.Process.Pid) == idle })
	eventually(t, "the memory is free", func() bool { return sharedMemory(t)-memory < noise })
	t.Logf("%d rounds: server has %d blocks, %d descriptors; shared memory in use changed by %d KiB",
		*rounds, len(names(t, c)), descriptors(t, srv.Process.Pid), (sharedMemory(t)-memory)>>10)
}

func releaseAll(t testing.TB, c *manager.Client) {
	t.Helper()
	for _, name := range names(t, c) {
		if err := c.Release(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
}

// TestAllKilled has everybody die at once, server and clients, while there is
// a lot of memory.
func TestAllKilled(t *testing.T) {
	const size, noise = 256 << 20, 64 << 20
	memory := sharedMemory(t)
	addr := t.TempDir() + "/socket"
	srv := startServer(t, addr)
	c, err := manager.Dial(context.Background(), addr)
	if err != nil {
		t.Fatal(err)
	}
	seg, err := c.Create("large", size)
	if err != nil {
		t.Fatal(err)
	}
	seg.View(func(b []byte) error { // not everywhere is the memory reserved
		for i := 0; i < len(b); i += os.Getpagesize() {
			b[i] = 1
		}
		return nil
	})
	if used := sharedMemory(t) - memory; used < size-noise {
		t.Errorf("%d bytes in use, not %d", used, size)
	}
	a, b := startUser(t, addr), startUser(t, addr, "lease")
	do(a, "open large", "ok")
	do(b, "open large", "ok")
	if err := errors.Join(seg.Close(), c.Close()); err != nil {
		t.Fatal(err)
	}

	srv.Kill()
	a.Kill()
	b.Kill()
	eventually(t, "the memory is free", func() bool { return sharedMemory(t)-memory < noise })
}
