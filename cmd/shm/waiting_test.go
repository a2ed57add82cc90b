package main

import (
	"context"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/shmkit/shm"
)

// text reads as many bytes as want has from the standard output of the process.
func (p *process) text(want string) {
	p.t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(p.out, got); string(got) != want {
		p.t.Fatalf("%v writes %q, %v; want %q", p.Args, got[:n], err, want)
	}
}

func (p *process) expectError(want string) {
	p.t.Helper()
	if got := p.stderr.String(); got != want {
		p.t.Errorf("%v: %q, want %q", p.Args, got, want)
	}
}

func (p *process) kill() {
	p.Process.Kill()
	p.Wait()
}

// awaitRefs waits until the block has that number of attachments.
func awaitRefs(t *testing.T, name string, want int) {
	t.Helper()
	seg, err := shm.Open(name, shm.ReadOnly())
	if err != nil {
		t.Fatal(err)
	}
	defer seg.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := seg.Wait(ctx, func() bool { return seg.Refs() == want+1 }); err != nil {
		t.Fatalf("%d attachments, want %d: %v", seg.Refs()-1, want, err)
	}
}

// Get reads along from before there is a block, and ends when put does.
func TestFollow(t *testing.T) {
	name := newName(t)
	get, wait, size := start(t, "get", name, "--follow"), start(t, "wait", name, "--finished"), start(t, "wait", name, "--size", "5")
	put := start(t, "put", name, "--hold")
	put.write([]byte("some "))
	get.text("some ")
	size.expectStatus(0)
	output(t, nil, timeoutStatus, "wait", name, "--finished", "--timeout", "0")
	output(t, nil, timeoutStatus, "wait", name, "--size", "6", "--timeout", "0")
	put.write([]byte("text"))
	put.in.Close()
	put.expect("holding " + name)
	if rest := get.expectStatus(0); rest != "text" {
		t.Errorf("get ends with %q", rest)
	}
	wait.expectStatus(0)
	output(t, nil, 1, "wait", name, "--size", "10")
	put.interrupt()
	wantGone(t, name)
}

// Those that follow a put that is killed are told, after all its bytes, also while
// another process holds the block. Nothing is kept.
func TestFollowKilledPut(t *testing.T) {
	for _, held := range []bool{false, true} {
		name := newName(t)
		var hold *process
		if held {
			hold = start(t, "hold", name, "--size", "4K")
			hold.expect("holding " + name)
		}
		get, wait := start(t, "get", name, "--follow"), start(t, "wait", name, "--finished")
		put := start(t, "put", name, "--force", "--hold")
		put.write([]byte("some"))
		get.text("some")
		output(t, nil, 0, "wait", name, "--size", "4")
		attached := 3 // put, get and wait
		if held {
			attached++
		}
		awaitRefs(t, name, attached)
		put.kill()
		if rest := get.expectStatus(abandonedStatus); rest != "" {
			t.Errorf("get ends with %q", rest)
		}
		wait.expectStatus(abandonedStatus)
		get.expectError("shm: follow " + name + ": block is not finished, and no writer is attached\n")
		if held {
			hold.interrupt()
		}
		wantGone(t, name)
	}
}

// Put --force ends what others follow, and begins another stream.
func TestFollowTruncated(t *testing.T) {
	name := newName(t)
	first := start(t, "put", name, "--hold")
	get := start(t, "get", name, "--follow")
	first.write([]byte("some"))
	get.text("some")
	wait := start(t, "wait", name, "--finished")
	awaitRefs(t, name, 3)
	second := start(t, "put", name, "--hold", "--force")
	second.write([]byte("other"))
	second.in.Close()
	second.expect("holding " + name)
	get.expectStatus(truncatedStatus)
	get.expectError("shm: follow " + name + ": block was truncated\n")
	wait.expectStatus(0)
	if got := output(t, nil, 0, "get", name, "--follow"); string(got) != "other" {
		t.Errorf("get returns %q", got)
	}
	first.kill()
	second.interrupt()
}

// A killed put leaves nothing that stays.
func TestPutKilled(t *testing.T) {
	name := newName(t)
	needsToStay(t)
	put := start(t, "put", name)
	put.write([]byte("some"))
	output(t, nil, 0, "wait", name, "--size", "4")
	put.kill()
	// Any process may have removed it.
	if info, err := shm.Stat(name); err == nil && (!info.Stale() || info.Finished) {
		t.Errorf("a killed put leaves %+v", info)
	}
	output(t, nil, 0, "wait", name, "--gone")
	output(t, nil, timeoutStatus, "wait", name, "--timeout", "0")
	output(t, strings.NewReader("text"), 0, "put", name)
	if info, err := shm.Stat(name); err != nil || !info.Persistent || !info.Finished {
		t.Errorf("put leaves %+v, %v", info, err)
	}
}

func TestWaitGone(t *testing.T) {
	name := newName(t)
	hold := start(t, "hold", name, "--size", "4K")
	hold.expect("holding " + name)
	output(t, nil, timeoutStatus, "wait", name, "--gone", "--timeout", "0.01")
	gone := start(t, "wait", name, "--gone")
	if info, err := shm.Stat(name); err != nil || info.Refs != 1 {
		t.Errorf("with hold and wait --gone: %+v, %v", info, err)
	}
	hold.kill()
	gone.expectStatus(0)
}

// One command at a time has the lock. The next one learns that the one before was killed,
// whose command ends with it.
func TestLock(t *testing.T) {
	name := newName(t)
	if !hasShell() {
		t.Skip("no shell")
	}
	seg, err := shm.Create(name, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer seg.Close()
	const show = "echo recovered=$" + recoveredEnv
	holder := start(t, "lock", name, "--", "shm", "hold", name)
	holder.expect("holding " + name)
	output(t, nil, timeoutStatus, "lock", "-n", name, "--", "true")
	output(t, nil, timeoutStatus, "lock", "--timeout", "10ms", name, "--", "true")
	waiter := start(t, "lock", name, "--", "sh", "-c", show+"; exit 7")
	holder.kill()
	waiter.expect("recovered=1")
	waiter.expectStatus(7)
	waiter.expectError("shm: lock " + name + ": the last process that had it was killed: what it was changing may be half changed\n")

	t.Setenv(recoveredEnv, "1")
	if got := output(t, nil, 0, "lock", name, "--", "sh", "-c", show); string(got) != "recovered=\n" {
		t.Errorf("after a command that ended: %q", got)
	}
	if runtime.GOOS == "darwin" {
		return
	}
	awaitRefs(t, name, 1) // the command of the killed one has ended, too
}

// No reader outlives a demo that is killed, even before the first byte.
func TestDemoKilled(t *testing.T) {
	if runtime.GOOS == "darwin" {
		t.Skip("children outlive a killed process on macOS")
	}
	demo, name, _ := startDemo(t)
	demo.kill()
	output(t, nil, 0, "wait", name, "--gone", "--timeout", "30")
	shm.Unlink(name) // it is stale, if nobody has reaped it
}

func TestTimeout(t *testing.T) {
	for text, want := range map[string]string{"10": "10s", "0": "0s", "1.5": "1.5s", "2m": "2m0s", "50ms": "50ms", "": "", "-1": "", "soon": "", "1 s": ""} {
		var limit timeout
		err := limit.Set(text)
		if (err == nil) != (want != "") || limit.String() != want {
			t.Errorf("Set(%q) = %s, %v; want %q", text, &limit, err, want)
		}
	}
}
