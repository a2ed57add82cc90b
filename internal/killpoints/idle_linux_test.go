//go:build amd64 || arm64

package killpoints

import (
	"context"
	"flag"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
)

var idleFor = flag.Duration("idle", 1500*time.Millisecond, "how long a follower that does nothing is watched")

// idlerProgram follows a block until it is finished.
var idlerProgram = proctest.Register("idler", func(p *proctest.Parent) error {
	runtime.LockOSThread()
	seg, err := shm.Open(p.Args[0], shm.ReadOnly())
	if err != nil {
		return err
	}
	s := &sleeper{ctx: context.Background(), seg: seg}
	if err := s.begin(false); err != nil {
		return err
	}
	p.Say("%d", unix.Gettid())
	if _, err := p.Hear(); err != nil { // traced
		return err
	}
	var start, end unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &start)
	Begin()
	s.f.Read(make([]byte, 1))
	End()
	unix.Getrusage(unix.RUSAGE_SELF, &end)
	p.Say("%d", end.Utime.Nano()+end.Stime.Nano()-start.Utime.Nano()-start.Stime.Nano())
	_, err = p.Hear()
	return err
})

// TestIdle counts the system calls of a follower that has nothing to do: two for each
// tick, to look for a writer and to sleep, and some of the runtime's.
func TestIdle(t *testing.T) {
	onTmpfs(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	w := &waker{}
	seg := must(shm.Create("", size))(t)
	defer seg.Close()
	w.name = seg.Name()
	if err := w.stream(); err != nil {
		t.Fatal(err)
	}
	defer w.seg.Close()
	c := proctest.StartCommand(t, calm(proctest.Command(idlerProgram, seg.Name())))
	defer c.Kill()
	v, err := Attach(must(strconv.Atoi(c.Hear()))(t))
	if err != nil {
		t.Skipf("ptrace: %v", err)
	}
	c.Say("traced")
	defer time.AfterFunc(*idleFor, func() { w.seg.WriteAt([]byte("y"), 1) }).Stop()
	if _, err := v.Run(Nowhere); err != nil {
		t.Fatal(err)
	}
	used := time.Duration(must(strconv.ParseInt(c.Hear(), 10, 64))(t))
	t.Logf("%d calls and %d of the runtime's, %v of processor time in %v: %v", len(v.Calls), v.Noise, used, *idleFor, v.Calls)
	ticks := int(*idleFor/(250*time.Millisecond)) + 1
	if n := len(v.Calls); n > 2*ticks {
		t.Errorf("%d system calls in %v: %v", n, *idleFor, v.Calls)
	}
	if v.Noise > 4*ticks+10 {
		t.Errorf("%d system calls of the runtime's in %v", v.Noise, *idleFor)
	}
}
