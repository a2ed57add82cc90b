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

// Nowhere is no point of any operation.
const Nowhere Point = -1

func (p Point) String() string {
	if p%2 == 0 {
		return fmt.Sprintf("before call %d", p/2)
	}
	return fmt.Sprintf("after call %d", p/2)
}

// noise are system calls that the Go runtime makes when it sees fit and that do
// nothing to the world. Calls before and after them bound the same moment.
var noise = []uint64{
	unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_SCHED_YIELD, unix.SYS_MADVISE,
	unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_RT_SIGACTION, unix.SYS_SIGALTSTACK,
	unix.SYS_CLONE, unix.SYS_CLONE3, unix.SYS_TGKILL, unix.SYS_GETPID, unix.SYS_GETTID,
	unix.SYS_RESTART_SYSCALL, unix.SYS_GETRANDOM, unix.SYS_PRCTL,
}

func (c call) noise() bool {
	// Memory of the runtime's own is mapped without a descriptor.
	return slices.Contains(noise, c.number) || c.number == unix.SYS_MMAP && int32(c.args[4]) == -1
}

func (c call) marks(fd int) bool { return c.number == unix.SYS_CLOSE && c.args[0] == uint64(fd) }

func (c call) String() string {
	if name := callNames[c.number]; name != "" {
		return name
	}
	return fmt.Sprintf("system call %d", c.number)
}

// A Tracee is the thread of a victim that executes the operation. All methods
// must be called by the thread that has called Attach.
type Tracee struct {
	Calls []string // that it has made so far, inside the operation

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

// Run lets the thread go on until the point, where it is left standing, or
// until End, where it is set free, and reports whether it is at the point.
func (t *Tracee) Run(point Point) (reached bool, err error) {
	const syscallStop = unix.SIGTRAP | 0x80
	var signal unix.Signal
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
			t.inside = true
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

func (t *Tracee) enter() (err error) {
	t.current, err = currentCall(t.tid)
	if t.counts = t.inside && !t.current.noise() && !t.current.marks(markEnd); t.counts {
		t.Calls = append(t.Calls, t.current.String())
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
