package manager_test

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// CPython's SharedMemoryManager, doing what BenchmarkCreateAttach does; it
// prints the median time of a block in nanoseconds.
const pythonManager = `
import sys, time
from multiprocessing.managers import SharedMemoryManager
from multiprocessing.shared_memory import SharedMemory
if __name__ == "__main__":
    with SharedMemoryManager() as manager:
        times = []
        for i in range(300):
            start = time.perf_counter_ns()
            created = manager.SharedMemory(size=65536)
            attached = SharedMemory(name=created.name)
            attached.close()
            created.close()
            times.append(time.perf_counter_ns() - start)
        print(sorted(times)[len(times) // 2])
`

// BenchmarkCreateAttach creates a block by one client of a server in another
// process, attaches to it by a second, detaches both and releases it. Where
// there is a python3, the same is done by CPython's SharedMemoryManager (whose
// blocks are released at its end only), and x-python is how many times as long
// that takes, medians of both.
func BenchmarkCreateAttach(b *testing.B) {
	addr := b.TempDir() + "/socket"
	startServer(b, addr)
	creator, user := dial(b, addr), dial(b, addr)
	var times []time.Duration
	for b.Loop() {
		start := time.Now()
		seg, err := creator.Create("block", 64<<10)
		if err != nil {
			b.Fatal(err)
		}
		peer, err := user.Open("block")
		if err != nil {
			b.Fatal(err)
		}
		peer.Close()
		seg.Close()
		if err := creator.Release("block"); err != nil {
			b.Fatal(err)
		}
		times = append(times, time.Since(start))
	}
	b.StopTimer()
	slices.Sort(times)
	median := times[len(times)/2]
	b.ReportMetric(float64(median), "median-ns")
	if len(times) == 1 {
		return // only to see that it runs
	}
	out, err := exec.Command("python3", "-c", pythonManager).Output()
	if err != nil {
		b.Logf("no CPython to compare with: %v", err)
		return
	}
	var ns float64
	if _, err := fmt.Sscan(strings.TrimSpace(string(out)), &ns); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(ns, "python-ns")
	b.ReportMetric(ns/float64(median), "x-python")
}

// BenchmarkOpen attaches to a block that is there.
func BenchmarkOpen(b *testing.B) {
	addr := b.TempDir() + "/socket"
	startServer(b, addr)
	c := dial(b, addr)
	seg := must(b)(c.Create("block", 64<<10))
	defer seg.Close()
	for b.Loop() {
		peer, err := c.Open("block")
		if err != nil {
			b.Fatal(err)
		}
		peer.Close()
	}
}
