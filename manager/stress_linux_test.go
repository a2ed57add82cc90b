package manager_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/manager"
)

// held returns how many bytes of the memory of blocks are in use by what a process
// has open or mapped. What no process has, the kernel frees.
func held(t testing.TB, pid int) (bytes int64) {
	t.Helper()
	ofBlock := func(path string) bool {
		dir := os.Getenv("SHM_STANDIN")
		return strings.HasPrefix(path, "/memfd:shm ") || dir != "" && strings.HasPrefix(path, dir)
	}
	seen := map[uint64]bool{} // inodes
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		path, _ := os.Readlink(f)
		info, err := os.Stat(f)
		if err != nil || !ofBlock(path) {
			continue // closed in the meantime
		}
		if st := info.Sys().(*syscall.Stat_t); !seen[st.Ino] {
			seen[st.Ino] = true
			bytes += st.Blocks * 512
		}
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid)) // proc(5)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		var from, to, inode uint64
		var mode, offset, device, path string
		n, _ := fmt.Sscanf(strings.Replace(line, "-", " ", 1), "%x %x %s %s %s %d %s", &from, &to, &mode, &offset, &device, &inode, &path)
		if n == 7 && ofBlock(path+" ") && !seen[inode] {
			bytes += int64(to - from)
		}
	}
	return bytes
}

// watch returns a function that waits until nothing is left of what happened
// after watch in a process: no descriptor, and no memory.
func watch(t testing.TB, pid int) (left func(when string)) {
	t.Helper()
	idle, memory := descriptors(t, pid), held(t, pid)
	return func(when string) {
		t.Helper()
		eventually(t, "no descriptors are left when "+when, func() bool { return descriptors(t, pid) == idle })
		eventually(t, "no memory is left when "+when, func() bool { return held(t, pid) <= memory })
	}
}

// TestAllKilled has everybody die at once, server and clients, while there is
// a lot of memory.
func TestAllKilled(t *testing.T) {
	const size = 64 << 20
	addr := address(t)
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
	a, b := startUser(t, addr), startUser(t, addr, "lease")
	do(a, "open large", "ok")
	do(b, "open large", "ok")
	exists := inode(t, seg)
	for _, pid := range []int{os.Getpid(), srv.Process.Pid, a.Process.Pid} {
		if n := held(t, pid); n < size {
			t.Errorf("process %d has %d bytes, not %d", pid, n, size)
		}
	}
	if exists != nil && !exists() {
		t.Error("the memory is free already")
	}
	if err := errors.Join(seg.Close(), c.Close()); err != nil {
		t.Fatal(err)
	}

	srv.Kill()
	a.Kill()
	b.Kill()
	eventually(t, "this process has none of it", func() bool { return held(t, os.Getpid()) < size })
	if exists != nil {
		eventually(t, "the memory is free", func() bool { return !exists() })
	}
}

// inode returns a function that reports whether the memory of seg exists, which
// it asks the kernel by the handle of the inode: open_by_handle_at(2). It returns
// nil where that is not allowed.
func inode(t *testing.T, seg *shm.Segment) (exists func() bool) {
	t.Helper()
	f := file(t, seg)
	handle, _, err := unix.NameToHandleAt(int(f.Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	// Something else on the same file system.
	mount, err := unix.MemfdCreate("mount", unix.MFD_CLOEXEC)
	if dir := os.Getenv("SHM_STANDIN"); dir != "" {
		unix.Close(mount)
		mount, err = unix.Open(dir, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(mount) })
	open := func() error {
		fd, err := unix.OpenByHandleAt(mount, handle, unix.O_RDONLY|unix.O_CLOEXEC)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	if errors.Is(open(), unix.EPERM) {
		t.Log("only root can look whether the memory exists: run as root")
		return nil
	}
	return func() bool {
		err := open()
		if err != nil && !errors.Is(err, unix.ESTALE) {
			t.Error(err)
		}
		return err == nil
	}
}
