package manager_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/shmkit/shm/manager"
)

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

// watch returns a function that waits until nothing is left of what happened
// after watch: no memory, and no descriptor of the process.
func watch(t testing.TB, pid int) (left func(when string)) {
	t.Helper()
	// Other programs use shared memory, too; what killed clients would leave is
	// half a megabyte on average for each block.
	const noise = 64 << 20
	memory, idle := sharedMemory(t), descriptors(t, pid)
	return func(when string) {
		t.Helper()
		eventually(t, "no descriptors are left when "+when, func() bool { return descriptors(t, pid) == idle })
		eventually(t, "no memory is left when "+when, func() bool { return sharedMemory(t)-memory < noise })
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
