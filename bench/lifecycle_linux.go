package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/shmkit/shm"
	"golang.org/x/sys/unix"
)

const (
	python     = "CPython"
	untracked  = "CPython, no tracker"
	calls      = "its system calls"
	head       = 4096 // bytes of the header before the data
	headerUsed = 768
	allLocks   = 1 << 62 // bytes of the file beyond the data, which attachments lock
	ownByte    = 5<<60 + 4711
	ownBytes   = 5 << 60
	lockEnd    = 7 << 60
)

// lock makes one system call of the floors, which do not check for errors.
func lock(fd int, typ int16, start, n int64) {
	unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: typ, Start: start, Len: n})
}

// otherLock asks who else has a lock on n bytes.
func otherLock(fd int, start, n int64) {
	unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: start, Len: n})
}

// attach makes the system calls that are needed to attach to a block and detach
// from it while another process is attached.
func attach(path string, length int) {
	fd := check2(unix.Open(path, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0))
	var st unix.Stat_t
	unix.Fstat(fd, &st) // is it a regular file, and how long?
	var header [headerUsed]byte
	unix.Pread(fd, header[:], 0)
	mem := check2(unix.Mmap(fd, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED))
	otherLock(fd, ownBytes, lockEnd-ownBytes) // is it stale?
	lock(fd, unix.F_WRLCK, ownByte, 1)
	unix.Fstatat(unix.AT_FDCWD, path, &st, unix.AT_SYMLINK_NOFOLLOW) // does it still have the name?
	mem[128]++

	mem[128]--
	lock(fd, unix.F_UNLCK, 0, 0)
	otherLock(fd, ownBytes, lockEnd-ownBytes) // the last one?
	unix.Munmap(mem)
	unix.Close(fd)
}

// create makes the system calls that are needed to create a block and to detach
// from it as the last process.
func create(path string, length int, reserve bool) {
	fd := check2(unix.Open(shmDir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600))
	var st unix.Stat_t
	unix.Fstat(fd, &st) // has the umask removed permissions?
	if reserve {
		unix.Fallocate(fd, 0, 0, int64(length))
	} else {
		unix.Ftruncate(fd, int64(length))
	}
	mem := check2(unix.Mmap(fd, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED))
	lock(fd, unix.F_WRLCK, ownByte, 1)
	var header [headerUsed]byte
	if reserve {
		copy(mem, header[:])
	} else {
		unix.Pwrite(fd, header[:], 0)
	}
	if unix.Linkat(fd, "", unix.AT_FDCWD, path, unix.AT_EMPTY_PATH) != nil { // Linux < 6.10, and not root
		check(unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW))
	}

	mem[128]--
	lock(fd, unix.F_WRLCK, allLocks, lockEnd-allLocks) // the last one?
	unix.Fstatat(unix.AT_FDCWD, path, &st, unix.AT_SYMLINK_NOFOLLOW)
	unix.Unlink(path)
	unix.Pwrite(fd, header[:4], 64)
	lock(fd, unix.F_UNLCK, 0, 0)
	unix.Munmap(mem)
	unix.Close(fd)
}

// pythonScript attaches or creates as many times as each line of its input says.
const pythonScript = `
import sys
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
kind, name, tracked = sys.argv[1], sys.argv[2], sys.argv[3] == "true"
if not tracked:
    resource_tracker.register = resource_tracker.unregister = lambda *args: None
for line in sys.stdin:
    for _ in range(int(line)):
        if kind == "attach":
            SharedMemory(name=name).close()
        else:
            m = SharedMemory(name=name, create=True, size=1 << 20)
            m.close()
            m.unlink()
    print("done", flush=True)
`

// python returns a contender that does the work in a Python process, or none if
// Python is not installed. CPython registers each attachment with a tracker process,
// which unlinks the block at the end; since 3.13 that can be turned off.
func (b *bench) python(kind, name string, tracked bool) []contender {
	path, err := exec.LookPath("python3")
	if err != nil {
		return nil
	}
	cmd := exec.CommandContext(b.ctx, path, "-c", pythonScript, kind, name, fmt.Sprint(tracked))
	in, out := check2(cmd.StdinPipe()), bufio.NewReader(check2(cmd.StdoutPipe()))
	cmd.Stderr = io.Discard // the tracker reports blocks that are unlinked already
	check(cmd.Start())
	b.cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	label := python
	if !tracked {
		label = untracked
	}
	return []contender{{name: label, run: func(n int) {
		check2(fmt.Fprintln(in, n))
		check2(out.ReadString('\n'))
	}}}
}

// repeat returns a function that calls f n times.
func repeat(f func()) func(n int) {
	return func(n int) {
		for range n {
			f()
		}
	}
}

func openClose(name string, opts ...shm.Option) func(n int) {
	return repeat(func() { check(check2(shm.Open(name, opts...)).Close()) })
}

func createClose(size int64, opts ...shm.Option) func(n int) {
	return repeat(func() { check(check2(shm.Create("", size, opts...)).Close()) })
}

func lifecycle(b *bench) []contest {
	const headerless = "shm, Headerless"
	blocks := 10_000
	if b.quick {
		blocks = 300
	}
	return []contest{
		{"Attach and detach", "1 MiB", []goal{
			{ours, calls, 1.25}, {ours, python, 1 / 1.5}, {ours, untracked, 2}, {headerless, untracked, 1 / 1.5}, {ours, osFile, 0},
		}, func(b *bench) []contender {
			seg := b.block(capacity)
			raw := b.block(capacity, shm.Headerless())
			path := filepath.Join(shmDir, seg.Name())
			return slices.Concat([]contender{
				{name: ours, run: openClose(seg.Name())},
				{name: headerless, run: openClose(raw.Name(), shm.Headerless())},
				{name: calls, run: repeat(func() { attach(path, head+capacity) })},
				{name: osFile, run: repeat(func() { check(check2(os.OpenFile(path, os.O_RDWR, 0)).Close()) })},
			}, b.python("attach", raw.Name(), true), b.python("attach", raw.Name(), false))
		}},
		{"Attach and detach", "8 GiB against 1 MiB, Sparse", []goal{
			{ours + " 8 GiB", ours + " 1 MiB", 1.2}, {calls + " 8 GiB", calls + " 1 MiB", 0},
		}, func(b *bench) (list []contender) {
			for _, n := range []int64{8 << 30, capacity} {
				name := b.block(n, shm.Sparse()).Name()
				path := filepath.Join(shmDir, name)
				list = append(list,
					contender{name: ours + " " + size(n), run: openClose(name)},
					contender{name: calls + " " + size(n), run: repeat(func() { attach(path, head+int(n)) })})
			}
			return list
		}},
		{"Create and close", "1 MiB, Sparse", []goal{{ours, calls, 1.3}, {ours, python, 0}}, func(b *bench) []contender {
			path := b.path("floor")
			return append([]contender{
				{name: ours, run: createClose(capacity, shm.Sparse())},
				{name: calls, run: repeat(func() { create(path, head+capacity, false) })},
			}, b.python("create", filepath.Base(b.dir)+"-py", true)...)
		}},
		{"Create and close", "1 MiB, reserved", []goal{{ours, calls + " and fallocate", 1.1}}, func(b *bench) []contender {
			path := b.path("floor")
			return []contender{
				{name: ours, run: createClose(capacity)},
				{name: calls + " and fallocate", run: repeat(func() { create(path, head+capacity, true) })},
			}
		}},
		{"Many blocks", fmt.Sprintf("List of %d", blocks), []goal{{ours, "open, read, close each", 2}}, func(b *bench) []contender {
			b.cleanup(manyBlocks(blocks))
			return []contender{
				{name: ours, once: true, run: func(int) { check2(shm.List()) }},
				{name: "open, read, close each", once: true, run: func(int) { readHeaders() }},
			}
		}},
		{"Many blocks", "List, time per block", []goal{{fmt.Sprint(blocks), fmt.Sprint(blocks / 10), 1.2}}, func(b *bench) []contender {
			list := func(n int) contender {
				var remove func()
				return contender{
					name: fmt.Sprint(n), once: true, items: func() int { return n },
					before: func() { remove = manyBlocks(n) }, after: func() { remove() },
					run: func(int) { check2(shm.List()) },
				}
			}
			return []contender{list(blocks), list(blocks / 10)}
		}},
		{"Many blocks", "Reap, time per stale block", []goal{{fmt.Sprint(blocks), fmt.Sprint(blocks / 10), 1.2}}, func(b *bench) []contender {
			reap := func(n int) contender {
				var found int // another process may reap some of them
				return contender{
					name: fmt.Sprint(n), once: true, items: func() int { return found },
					before: func() { b.stale(n) },
					run:    func(int) { found = len(check2(shm.Reap())) },
				}
			}
			return []contender{reap(blocks), reap(blocks / 10)}
		}},
	}
}

// manyBlocks creates n blocks and detaches from them, as attachments would need n
// descriptors.
func manyBlocks(n int) (remove func()) {
	var names []string
	remove = func() {
		for _, name := range names {
			shm.Unlink(name)
		}
	}
	defer func() {
		if len(names) < n { // check has panicked
			remove()
		}
	}()
	for range n {
		seg := check2(shm.Create("", 1, shm.Persistent(), shm.Sparse()))
		names = append(names, seg.Name())
		check(seg.Close())
	}
	return remove
}

// readHeaders opens every file in /dev/shm and reads a header from it.
func readHeaders() {
	dir := check2(os.Open(shmDir))
	defer dir.Close()
	var header [headerUsed]byte
	for {
		entries, err := dir.ReadDir(256)
		for _, e := range entries {
			fd, err := unix.Open(filepath.Join(shmDir, e.Name()), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err != nil {
				continue
			}
			unix.Pread(fd, header[:], 0)
			unix.Close(fd)
		}
		if err == io.EOF {
			return
		}
		check(err)
	}
}

// stale leaves n stale blocks behind: a process creates them and is killed.
func (b *bench) stale(n int) {
	cmd := exec.CommandContext(b.ctx, "/proc/self/exe", "leave-stale", strconv.Itoa(n))
	if out, err := cmd.CombinedOutput(); !strings.Contains(fmt.Sprint(err), "killed") {
		check(fmt.Errorf("leaving %d stale blocks: %v: %s", n, err, out))
	}
}

func leaveStale(arg string) {
	n, _ := strconv.Atoi(arg)
	for range n {
		seg, err := shm.Create("", 1, shm.Sparse())
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		dying = append(dying, seg)
	}
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

var dying []*shm.Segment // attached until the process is killed
