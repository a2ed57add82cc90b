//go:build amd64 || arm64

package killpoints

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Marks are descriptors that nobody has. Closing one does nothing, and is a
// system call that a tracer knows when it sees it.
const (
	markBegin = 1<<30 + 0x5eed
	markEnd   = markBegin + 1
)

// Begin and End enclose, in the victim, what is to be traced. Its goroutine must
// be locked to its thread.
func Begin() { unix.Close(markBegin) }

// End ends what Begin began.
func End() { unix.Close(markEnd) }

// A Point is an end of a system call: the entry (0) or exit (1) of call p/2.
type Point int

// Nowhere is no point of any operation. Inside is just after Begin.
const (
	Nowhere Point = -1
	Inside  Point = -2
)

func (p Point) String() string {
	if p%2 == 0 {
		return fmt.Sprintf("before call %d", p/2)
	}
	return fmt.Sprintf("after call %d", p/2)
}

// noise are system calls that the Go runtime makes when it sees fit and that do
// nothing to the world. Calls before and after them bound the same moment.
var noise = []uint64{
	unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_SCHED_YIELD, unix.SYS_MADVISE,
	unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_RT_SIGACTION, unix.SYS_SIGALTSTACK,
	unix.SYS_CLONE, unix.SYS_CLONE3, unix.SYS_TGKILL, unix.SYS_GETPID, unix.SYS_GETTID,
	unix.SYS_RESTART_SYSCALL, unix.SYS_GETRANDOM, unix.SYS_PRCTL,
}

func (c call) noise() bool {
	// Memory of the runtime's own is mapped without a descriptor, and its futexes are
	// private.
	return slices.Contains(noise, c.number) || c.number == unix.SYS_MMAP && int32(c.args[4]) == -1 ||
		c.number == unix.SYS_FUTEX && !c.futex(futexWait) && !c.futex(futexWake)
}

// Operations of futex(2) on words that processes share.
const (
	futexWait = 0
	futexWake = 1
)

func (c call) futex(op uint64) bool { return c.number == unix.SYS_FUTEX && c.args[1] == op }

func (c call) marks(fd int) bool { return c.number == unix.SYS_CLOSE && c.args[0] == uint64(fd) }

func (c call) String() string {
	if c.futex(futexWait) {
		return "futex wait"
	}
	if c.futex(futexWake) {
		return "futex wake"
	}
	if name := callNames[c.number]; name != "" {
		return name
	}
	return fmt.Sprintf("system call %d", c.number)
}

// A Tracee is the thread of a victim that executes the operation. All methods
// must be called by the thread that has called Attach.
type Tracee struct {
	Calls []string // that it has made so far, inside the operation
	Noise int      // how many others it has made there, for the runtime

	tid     int
	current call // that it is in, or has been in last
	entered bool // it is in a call
	inside  bool // the operation
	counts  bool // current is one of Calls
}

// Attach makes the calling thread, to which its goroutine must be locked, the
// tracer of thread tid of a victim that has not yet come to Begin. The victim
// dies with its tracer.
func Attach(tid int) (*Tracee, error) {
	if err := unix.PtraceAttach(tid); err != nil {
		return nil, err
	}
	if _, err := wait(tid); err != nil { // stopped by the SIGSTOP of ptrace(2)
		return nil, err
	}
	const exitKill = 0x100000 // PTRACE_O_EXITKILL
	return &Tracee{tid: tid}, unix.PtraceSetOptions(tid, unix.PTRACE_O_TRACESYSGOOD|exitKill)
}

// syscallStop is the signal of a thread that stands at an end of a system call.
const syscallStop = unix.SIGTRAP | 0x80

// Run lets the thread go on until the point, where it is left standing, or
// until End, where it is set free, and reports whether it is at the point.
func (t *Tracee) Run(point Point) (reached bool, err error) {
	var signal unix.Signal
	if t.inside && point == Inside {
		return true, nil
	}
	for {
		if err := unix.PtraceSyscall(t.tid, int(signal)); err != nil {
			return false, err
		}
		status, err := wait(t.tid)
		if err != nil {
			return false, err
		}
		if signal = status.StopSignal(); signal != syscallStop {
			continue // a signal of the thread's own, to be delivered
		}
		signal = 0
		if t.entered = !t.entered; t.entered {
			err = t.enter()
		} else if t.current.marks(markBegin) {
			if t.inside = true; point == Inside {
				return true, nil
			}
		}
		if err != nil {
			return false, err
		}
		if t.current.marks(markEnd) {
			return false, unix.PtraceDetach(t.tid)
		}
		if t.counts && point == t.at() {
			return true, nil
		}
	}
}

// Step lets the thread, which is standing inside of the operation and in no system
// call, execute one instruction. Before a system call it only says so once, and returns
// its name: the next Step makes it. It is "" for the runtime's own, and otherwise. At
// the end of the operation it is End's, and more is false.
func (t *Tracee) Step() (name string, more bool, err error) {
	next, is, err := nextCall(t.tid)
	if err != nil {
		return "", false, err
	}
	if is && next.marks(markEnd) {
		return "", false, nil
	}
	if is && !next.noise() && !t.counts {
		t.counts = true
		return next.String(), true, nil
	}
	t.counts = false
	var signal unix.Signal
	for signal != unix.SIGTRAP {
		_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SINGLESTEP, uintptr(t.tid), 0, uintptr(signal), 0, 0)
		if errno != 0 {
			return "", false, errno
		}
		status, err := wait(t.tid)
		if err != nil {
			return "", false, err
		}
		signal = status.StopSignal()
	}
	return "", true, nil
}

// Walk steps through the rest of the operation and calls f at its events until f returns
// false, with the thread standing there: after each change of the words, which the
// caller has mapped, with "", and before and after each system call that is not the
// runtime's own, with its name. It returns how many steps it has made, and whether f
// has ended it.
func (t *Tracee) Walk(words []byte, f func(call string, after bool) bool) (steps int, ended bool, err error) {
	was := slices.Clone(words)
	for call := ""; ; steps++ {
		next, more, err := t.Step()
		if err != nil || !more {
			return steps, false, err
		}
		if call != "" && !f(call, true) {
			return steps, true, nil
		}
		if !slices.Equal(was, words) {
			copy(was, words)
			if !f("", true) {
				return steps, true, nil
			}
		}
		if call = next; call != "" && !f(call, false) {
			return steps, true, nil
		}
	}
}

func (t *Tracee) enter() (err error) {
	t.current, err = currentCall(t.tid)
	if t.counts = t.inside && !t.current.noise() && !t.current.marks(markEnd); t.counts {
		t.Calls = append(t.Calls, t.current.String())
	} else if t.inside {
		t.Noise++
	}
	return err
}

// at returns where the thread is standing.
func (t *Tracee) at() Point {
	p := Point(2*len(t.Calls) - 1)
	if t.entered {
		p--
	}
	return p
}

// Kill kills the victim, whose thread is standing at a point, and returns when
// the thread is gone. A system call that the thread was about to enter is not
// executed: a fatal signal aborts it.
func (t *Tracee) Kill(pid int) error {
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return err
	}
	for {
		var status unix.WaitStatus
		switch _, err := unix.Wait4(t.tid, &status, unix.WALL, nil); {
		case err == unix.EINTR:
		case err == unix.ECHILD: // collected by the one who started it
			return nil
		case err != nil:
			return err
		case status.Signaled() || status.Exited():
			return nil
		}
	}
}

func wait(tid int) (unix.WaitStatus, error) {
	for {
		var status unix.WaitStatus
		switch _, err := unix.Wait4(tid, &status, unix.WALL, nil); {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case !status.Stopped():
			return 0, fmt.Errorf("the victim has ended: %#x", status)
		default:
			return status, nil
		}
	}
}
