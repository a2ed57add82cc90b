package shm_test

import (
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
)

// waiterProgram waits for the mutex of a block and says when it tries to take it.
var waiterProgram = proctest.Register("waiter", func(p *proctest.Parent) error {
	seg, err := shm.Open(p.Args[0])
	if err != nil {
		return err
	}
	defer seg.Close()
	p.Say("attached")
	if _, err := p.Hear(); err != nil {
		return err
	}
	shm.Patience(300 * time.Millisecond)
	err = shm.WaitMutex(seg, func() { p.Say("try %d", time.Now().UnixNano()) })
	p.Say("end %v", err)
	return nil
})

// waitStopped waits until a process that was sent SIGSTOP has stopped.
func waitStopped(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		if _, fields, _ := strings.Cut(string(stat), ") "); strings.HasPrefix(fields, "T") {
			return
		}
	}
	t.Fatal("the process does not stop")
}

// TestFrozenWaiter stops a process that waits for the mutex for longer than its
// patience, as a frozen container does. It does not give up when it goes on.
func TestFrozenWaiter(t *testing.T) {
	onTmpfs(t)
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("cannot tell whether a process has stopped: ", err)
	}
	seg := block(t, 100)
	c := proctest.Start(t, waiterProgram, seg.Name())
	c.Expect("attached")
	release := shm.HoldMutex(t, seg)
	defer func() { release() }()
	c.Say("go")
	c.Hear()
	c.Process.Signal(syscall.SIGSTOP)
	waitStopped(t, c.Process.Pid)
	time.Sleep(400 * time.Millisecond) // the time that the process is stopped for
	resumed := time.Now().UnixNano()
	c.Process.Signal(syscall.SIGCONT)
	for late := 0; late < 10; {
		var what string
		var at int64
		line := c.Hear()
		if fmt.Sscan(line, &what, &at); what != "try" {
			t.Fatalf("%q after %d tries since it went on", line, late)
		}
		if at > resumed {
			late++
		}
	}
	release()
	release = func() {}
	for line := c.Hear(); ; line = c.Hear() {
		if strings.HasPrefix(line, "end") {
			if line != "end <nil>" {
				t.Error(line)
			}
			break
		}
	}
	c.Wait()
}

// crowdProgram attaches to a block and leaves it, again and again.
var crowdProgram = proctest.Register("crowd", func(p *proctest.Parent) error {
	p.Say("ready")
	if _, err := p.Hear(); err != nil {
		return err
	}
	for range number(p.Args[1]) {
		seg, _, err := shm.OpenOrCreate(p.Args[0], 1000)
		if err != nil {
			p.Say("%v", err)
			return nil
		}
		if err := seg.Close(); err != nil {
			p.Say("%v", err)
			return nil
		}
	}
	p.Say("done")
	return nil
})

// TestCrowd has very many processes attach to one name and leave it. They starve
// each other, and more so where they have few processors, but none gives up.
func TestCrowd(t *testing.T) {
	onTmpfs(t)
	name := unique(t)
	crowd := make([]*proctest.Child, rounds(200))
	for i := range crowd {
		crowd[i] = proctest.Start(t, crowdProgram, name, "50")
	}
	for _, c := range crowd {
		c.Expect("ready")
	}
	for _, c := range crowd {
		c.Say("go")
	}
	for _, c := range crowd {
		c.Expect("done")
		c.Wait()
	}
	mustBeGone(t, name)
}

// TestOnePatience has a call wait in two loops for a process that was stopped. It
// has no patience for each.
func TestOnePatience(t *testing.T) {
	t.Parallel() // in a process of its own
	onTmpfs(t)
	if !undisturbed(t) {
		return
	}
	const patience = 200 * time.Millisecond
	shm.SetPatience(t, patience)
	name := plant(t, image(t, 100)) // stale: no process is attached
	c := proctest.Start(t, lockProgram, name, "write", fmt.Sprint(int64(lockByte)), fmt.Sprint(int64(lockByte+1)))
	c.Expect("held")
	start := time.Now()
	_, _, err := shm.OpenOrCreate(name, 100, shm.Headerless())
	wantErr(t, "OpenOrCreate", err, name, fs.ErrExist)
	if d := time.Since(start); d < patience/2 || d > 20*patience {
		t.Errorf("it took %v", d)
	}
	c.Kill()
}
