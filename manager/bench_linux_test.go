package manager_test

import (
	"fmt"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/shmkit/shm/manager"
)

// CPython's SharedMemoryManager, doing what BenchmarkCreateAttach does. It prints
// the median time to create a block, and to attach to it, in nanoseconds.
const pythonManager = `
import statistics, time
from multiprocessing.managers import SharedMemoryManager
from multiprocessing.shared_memory import SharedMemory
if __name__ == "__main__":
    with SharedMemoryManager() as manager:
        create, attach = [], []
        for i in range(500):
            start = time.perf_counter_ns()
            created = manager.SharedMemory(size=4096)
            between = time.perf_counter_ns()
            attached = SharedMemory(name=created.name)
            end = time.perf_counter_ns()
            attached.close()
            created.close()
            create.append(between - start)
            attach.append(end - between)
        print(statistics.median_low(create), statistics.median_low(attach))
`

// BenchmarkCreateAttach has a client of a server in another process create a
// block, and the same client, or a second one, attach to it. What follows, to
// detach both and release the block, is in ns/op, and not in the medians. Where
// there is a python3, the same is done by CPython's SharedMemoryManager, and
// x-python is how many times as long that takes: to create a block, which is to
// be attached to it, and to create it and attach to it once more.
func BenchmarkCreateAttach(b *testing.B) {
	b.Run("OneClient", func(b *testing.B) {
		c := dial(b, serverFor(b))
		benchmarkCreateAttach(b, c, c)
	})
	b.Run("TwoClients", func(b *testing.B) {
		addr := serverFor(b)
		benchmarkCreateAttach(b, dial(b, addr), dial(b, addr))
	})
}

// serverFor starts a server and returns its address.
func serverFor(b *testing.B) string {
	addr := b.TempDir() + "/socket"
	startServer(b, addr)
	return addr
}

func benchmarkCreateAttach(b *testing.B, creator, user *manager.Client) {
	var create, attach []time.Duration
	for b.Loop() {
		start := time.Now()
		seg, err := creator.Create("block", 4096)
		between := time.Now()
		if err != nil {
			b.Fatal(err)
		}
		peer, err := user.Open("block")
		end := time.Now()
		if err != nil {
			b.Fatal(err)
		}
		create, attach = append(create, between.Sub(start)), append(attach, end.Sub(between))
		peer.Close()
		seg.Close()
		if err := creator.Release("block"); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	created, attached := median(create), median(attach)
	b.ReportMetric(created, "create-ns")
	b.ReportMetric(attached, "attach-ns")
	if len(create) == 1 {
		return // only to see that it runs
	}
	out, err := exec.Command("python3", "-c", pythonManager).Output()
	if err != nil {
		b.Logf("no CPython to compare with: %v", err)
		return
	}
	var pythonCreated, pythonAttached float64
	if _, err := fmt.Sscan(string(out), &pythonCreated, &pythonAttached); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(pythonCreated, "python-create-ns")
	b.ReportMetric(pythonAttached, "python-attach-ns")
	b.ReportMetric(pythonCreated/created, "x-python-create")
	b.ReportMetric((pythonCreated+pythonAttached)/(created+attached), "x-python-both")
}

func median(times []time.Duration) float64 {
	slices.Sort(times)
	return float64(times[len(times)/2])
}

// BenchmarkOpen attaches to a block that is there.
func BenchmarkOpen(b *testing.B) {
	c := dial(b, serverFor(b))
	seg := must(b)(c.Create("block", 4<<10))
	defer seg.Close()
	for b.Loop() {
		peer, err := c.Open("block")
		if err != nil {
			b.Fatal(err)
		}
		peer.Close()
	}
}
