package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/futex"
	"github.com/shmkit/shm/internal/raw"
	"golang.org/x/sys/unix"
)

const (
	message   = 64
	exchanged = 64 << 20 // bytes of messages in one run, at most

	pipe     = "os.Pipe"
	socket   = "Unix socket"
	eventfd  = "eventfd"
	polling  = "polling loop"
	sleeping = "futex, sleeping at once"
	robust   = "robust pthread mutex"
	flock    = "flock(2)"
)

// waiting are the contests of processes that wait for each other.
func waiting(b *bench) []contest {
	streamed := int64(1 << 30)
	if b.quick {
		streamed = 4 << 20
	}
	all := []contest{
		{"Round trip", "64 B to a process and back", []goal{
			{ours, pipe, 0.35}, {ours, socket, 0.25}, {ours, eventfd, 0}, {ours, sleeping, 1.2}, {ours, polling, 0},
		}, func(b *bench) (list []contender) {
			for _, kind := range []string{ours, pipe, socket, eventfd, sleeping, polling} {
				list = append(list, b.echo(kind))
			}
			return list
		}},
		{"Follow", size(streamed) + " that another process streams in", []goal{{"followed", "written, then read", 1.1}}, func(b *bench) []contender {
			writer := b.process("fill", fmt.Sprint(streamed))
			seg := b.block(streamed)
			return []contender{
				{name: "followed", once: true, run: func(int) {
					writer.say(seg.Name())
					check2(io.Copy(discard{}, seg.Follow(b.ctx)))
					writer.hear()
				}, before: func() { check(seg.Truncate(0)) }},
				{name: "written, then read", once: true, run: func(int) {
					writer.say(seg.Name())
					writer.hear()
					rewind(seg)
					check2(io.Copy(discard{}, seg))
				}, before: func() { check(seg.Truncate(0)) }},
			}
		}},
	}
	for _, n := range []int{1, 8} {
		all = append(all, contest{"Lock and unlock", fmt.Sprintf("%d processes", n), []goal{{ours, robust, 1.7}, {ours, flock, 0}},
			func(b *bench) []contender { return b.lockers(n) }})
	}
	return all
}

// discard is a Writer without ReadFrom.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// process is another process, which does what the lines that it hears say, and answers
// each.
type process struct {
	in  io.Writer
	out *bufio.Reader
}

func (p process) say(line string) { check2(fmt.Fprintln(p.in, line)) }
func (p process) hear() string    { return check2(p.out.ReadString('\n')) }

// process starts one of the children.
func (b *bench) process(args ...string) process {
	return b.start(exec.CommandContext(b.ctx, "/proc/self/exe", args...))
}

func (b *bench) start(cmd *exec.Cmd) process {
	in, out := check2(cmd.StdinPipe()), check2(cmd.StdoutPipe())
	cmd.Stderr = os.Stderr
	check(cmd.Start())
	b.cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return process{in, bufio.NewReader(out)}
}

// children are what other processes of the bench do.
var children = map[string]func(args []string){
	"leave-stale": func(args []string) { leaveStale(args[0]) },
	"echo":        func(args []string) { echo(args[0], args[1]) },
	"fill":        func(args []string) { fillBlocks(args[0]) },
	"lock":        func(args []string) { lockBlock(args[0]) },
	"flock":       func(args []string) { lockFile(args[0]) },
}

// runChild does not return in a process that is one of the children.
func runChild() {
	if len(os.Args) > 2 && children[os.Args[1]] != nil {
		children[os.Args[1]](os.Args[2:])
		os.Exit(0)
	}
}

func hearLines(f func(line string)) {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		f(lines.Text())
		fmt.Println("done")
	}
}

// fillBlocks fills the blocks whose names it hears.
func fillBlocks(length string) {
	n := check2(strconv.ParseInt(length, 10, 64))
	hearLines(func(name string) {
		seg := check2(shm.Open(name))
		check2(io.Copy(seg, io.LimitReader(zeros{}, n)))
		check(seg.Finish())
		check(seg.Close())
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// An exchange sends messages to another process and receives its answers.
type exchange interface {
	send(p []byte)
	receive(p []byte)
}

// descriptors is an exchange by what can be written to and read from.
type descriptors struct{ out, in *os.File }

func (d descriptors) send(p []byte)    { check2(d.out.Write(p)) }
func (d descriptors) receive(p []byte) { check2(io.ReadFull(d.in, p)) }

// blocks is an exchange by two blocks that grow.
type blocks struct {
	out *shm.Segment
	in  *shm.Follower
}

func (x blocks) send(p []byte)    { check2(x.out.Write(p)) }
func (x blocks) receive(p []byte) { check2(io.ReadFull(x.in, p)) }

// words is an exchange by words in a block, of which one counts the messages each way.
type words struct {
	mem   []byte
	mine  int // 0 or 1: which message is this process's
	count [2]*atomic.Uint32
	wait  func(word *atomic.Uint32, old uint32)
	wake  func(word *atomic.Uint32)
	seen  uint32
}

func (w *words) send(p []byte) {
	copy(w.mem[64+w.mine*message:], p)
	w.count[w.mine].Add(1)
	w.wake(w.count[w.mine])
}

func (w *words) receive(p []byte) {
	other := w.count[1-w.mine]
	for other.Load() == w.seen {
		w.wait(other, w.seen)
	}
	w.seen++
	copy(p, w.mem[64+(1-w.mine)*message:])
}

// newWords returns an exchange of that kind. An eventfd carries what wakes.
func newWords(kind string, seg *shm.Segment, mine int, events [2]int) *words {
	mem := seg.Bytes()
	w := &words{mem: mem, mine: mine, count: [2]*atomic.Uint32{raw.Uint32(mem, 0), raw.Uint32(mem, 4)}}
	switch kind {
	case polling:
		w.wait, w.wake = func(*atomic.Uint32, uint32) {}, func(*atomic.Uint32) {}
	case sleeping:
		w.wait = func(word *atomic.Uint32, old uint32) { futex.Sleep(word, old, time.Hour, nil) }
		w.wake = func(word *atomic.Uint32) { futex.Wake(word, false) }
	case eventfd:
		var b [8]byte
		w.wait = func(*atomic.Uint32, uint32) { unix.Read(events[1-mine], b[:]) }
		w.wake = func(*atomic.Uint32) { unix.Write(events[mine], []byte{1, 0, 0, 0, 0, 0, 0, 0}) }
	}
	return w
}

func newBlocks(b *bench, name string, mine int) blocks {
	names := strings.Fields(name)
	out, in := check2(shm.Open(names[mine])), check2(shm.Open(names[1-mine], shm.ReadOnly()))
	b.cleanup(func() {
		out.Close()
		in.Close()
	})
	return blocks{out, in.Follow(b.ctx)}
}

// echo answers every message.
func echo(kind, name string) {
	b := &bench{ctx: context.Background()}
	var x exchange
	switch kind {
	case pipe, socket:
		x = descriptors{os.NewFile(4, ""), os.NewFile(3, "")}
	case ours:
		x = newBlocks(b, name, 1)
	default:
		x = newWords(kind, check2(shm.Open(name)), 1, [2]int{3, 4})
	}
	fmt.Println("ready")
	for p := make([]byte, message); ; {
		x.receive(p)
		x.send(p)
	}
}

func (b *bench) echo(kind string) contender {
	var x exchange
	var name string
	var theirs []*os.File
	switch kind {
	case pipe:
		inHere, out := check3(os.Pipe())
		in, outHere := check3(os.Pipe())
		x, theirs = descriptors{outHere, inHere}, []*os.File{in, out}
	case socket:
		fds := check2(unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0))
		here, there := os.NewFile(uintptr(fds[0]), ""), os.NewFile(uintptr(fds[1]), "")
		x, theirs = descriptors{here, here}, []*os.File{there, there}
	case ours:
		requests, answers := b.block(exchanged), b.block(exchanged)
		check(requests.Truncate(0))
		check(answers.Truncate(0))
		name = requests.Name() + " " + answers.Name()
		x = newBlocks(b, name, 0)
	default:
		events := [2]int{check2(unix.Eventfd(0, unix.EFD_CLOEXEC)), check2(unix.Eventfd(0, unix.EFD_CLOEXEC))}
		theirs = []*os.File{os.NewFile(uintptr(events[0]), ""), os.NewFile(uintptr(events[1]), "")}
		seg := b.block(4096)
		name = seg.Name()
		x = newWords(kind, seg, 0, events)
	}
	cmd := exec.CommandContext(b.ctx, "/proc/self/exe", "echo", kind, name)
	cmd.ExtraFiles = theirs
	b.start(cmd).hear()
	p := make([]byte, message)
	return contender{name: kind, run: func(n int) {
		for range n {
			x.send(p)
			x.receive(p)
		}
	}}
}

func check3[A, B any](a A, b B, err error) (A, B) {
	check(err)
	return a, b
}

// lockBlock locks and unlocks as often as it hears.
func lockBlock(name string) {
	seg := check2(shm.Open(name))
	hearLines(func(line string) {
		for range check2(strconv.Atoi(line)) {
			check2(seg.Lock(context.Background()))
			check(seg.Unlock())
		}
	})
}

// lockFile is lockBlock for a file.
func lockFile(path string) {
	fd := check2(unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0))
	hearLines(func(line string) {
		for range check2(strconv.Atoi(line)) {
			check(unix.Flock(fd, unix.LOCK_EX))
			check(unix.Flock(fd, unix.LOCK_UN))
		}
	})
}

// pthreadProgram is lockBlock for a robust mutex of the C library.
const pthreadProgram = `
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
int main(int argc, char **argv) {
	pthread_mutex_t *m = mmap(0, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, open(argv[1], O_RDWR), 0);
	if (argc > 2) {
		pthread_mutexattr_t a;
		pthread_mutexattr_init(&a);
		pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
		pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
		pthread_mutex_init(m, &a);
		return 0;
	}
	for (long n; scanf("%ld", &n) == 1; puts("done"), fflush(stdout))
		while (n--) {
			if (pthread_mutex_lock(m)) return 1;
			pthread_mutex_unlock(m);
		}
}
`

// lockers returns contenders of n processes that lock and unlock at the same time.
func (b *bench) lockers(n int) []contender {
	together := func(name string, start func() process) contender {
		all := make([]process, n)
		for i := range all {
			all[i] = start()
		}
		return contender{name: name, run: func(times int) {
			for _, p := range all {
				p.say(fmt.Sprint(times))
			}
			for _, p := range all {
				p.hear()
			}
		}}
	}
	block := b.block(4096).Name()
	program, mutex := b.path("robust"), b.path("mutex")
	check(os.WriteFile(mutex, make([]byte, 4096), 0o600))
	list := []contender{
		together(ours, func() process { return b.process("lock", block) }),
		together(flock, func() process { return b.process("flock", mutex) }),
	}
	cc := exec.Command("cc", "-O2", "-pthread", "-x", "c", "-o", program, "-")
	cc.Stdin = strings.NewReader(pthreadProgram)
	if cc.Run() != nil { // no compiler
		return list
	}
	check(exec.Command(program, mutex, "new").Run())
	return append(list, together(robust, func() process { return b.start(exec.CommandContext(b.ctx, program, mutex)) }))
}
