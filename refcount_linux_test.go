package shm_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	"golang.org/x/sys/unix"
)

// TestReaderOfAnother has a process of another user attached that may only read: it
// cannot write to the header, but its lock counts.
func TestReaderOfAnother(t *testing.T) {
	onTmpfs(t)
	for _, killed := range []bool{false, true} {
		name := unique(t)
		a, stranger := newAgent(t), newStranger(t)
		id := a.attach("create %s public", name)
		a.must("written", "write 0 public")
		stranger.must("permission", "open %s", name)
		if got := stranger.attach("open %s readonly", name); got != id {
			t.Fatalf("the stranger is attached to %s, not %s", got, id)
		}
		a.must("2", "refs")
		stranger.must("2", "refs")
		if killed {
			a.Kill()
		} else {
			a.must("closed", "close")
		}
		mustLead(t, name, id)
		stranger.must("1", "refs")
		stranger.must("public", "read 0 6")
		stranger.must("sound", "sound")
		late := newAgent(t)
		if got := late.attach("open %s", name); got != id {
			t.Errorf("attached to %s, not %s", got, id)
		}
		late.must("closed", "close")
		mustLead(t, name, id)
		// The stranger may not unlink. What it leaves is stale for all others.
		stranger.must("closed", "close")
		mustBeStale(t, name)
		mustNotExist(t, name)
	}
}

// TestStrangersLeave has processes of two users attached, and the one that may
// not unlink leave last.
func TestStrangersLeave(t *testing.T) {
	onTmpfs(t)
	name := unique(t)
	a, b, c := newAgent(t), newStranger(t), newStranger(t)
	id := a.attach("create %s public", name)
	b.attach("open %s readonly", name)
	a.Kill()
	if got := c.attach("open %s readonly", name); got != id {
		t.Errorf("attached to %s, not %s", got, id)
	}
	b.Kill()
	mustLead(t, name, id)
	c.must("sound", "sound")
	c.Kill()
	d := newStranger(t)
	if got := d.do("open %s readonly", name); got != "notexist" {
		t.Errorf("Open of a stale block that one may only read: %s", got)
	}
	mustNotExist(t, name)
}

// startExec runs programs all the time until the test ends. Between its fork
// and its exec each child holds all of this process's descriptors, and with
// them the locks.
func startExec(t *testing.T) {
	path, err := exec.LookPath("true")
	if err != nil {
		t.Skip(err)
	}
	end := make(chan struct{})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
					if err := exec.Command(path).Run(); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	t.Cleanup(func() {
		close(end)
		all.Wait()
	})
}

// TestCloseWhileForking has the last one close while children that are just
// being started have copies of its descriptor.
func TestCloseWhileForking(t *testing.T) {
	onTmpfs(t)
	startExec(t)
	name := unique(t)
	peer := newAgent(t)
	for i := range rounds(1000) {
		seg, err := shm.Create(name, 100)
		if err != nil {
			t.Fatal(err)
		}
		if i%4 == 0 {
			peer.attach("open %s", name)
			peer.must("closed", "close")
		}
		twin, err := shm.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		seg.Close()
		twin.Close()
		if _, err := shm.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("round %d: the name is still there: %v", i, err)
		}
	}
}

// forkerProgram is an agent that starts programs all the time.
var forkerProgram = proctest.Register("forker", func(p *proctest.Parent) error {
	for range 4 {
		go func() {
			for exec.Command("/bin/true").Run() == nil {
			}
		}()
	}
	return serveAgent(p)
})

// TestReaderForks has a process that may only read detach, and the last one after
// it, while children of the reader that are just being started have copies of its
// descriptor. The reader is never alone, for which the last one would wait: a lock
// that it does not release looks like an attachment.
func TestReaderForks(t *testing.T) {
	onTmpfs(t)
	reader := startStranger(t, forkerProgram)
	name := unique(t)
	for range rounds(1000) {
		seg, err := shm.Create(name, 100, shm.Perm(0o644))
		if err != nil {
			t.Fatal(err)
		}
		reader.attach("open %s readonly", name)
		reader.must("closed", "close")
		seg.Close()
		mustBeGone(t, name)
	}
}

// The locks of a block; see platform_linux.go.
const (
	lockByte   = 1 << 62 // of Unlink
	writers    = 5 << 60
	readers    = 6 << 60
	endOfLocks = 7 << 60
)

// lockProgram takes locks on a range of a file, wherever no other process has one,
// and keeps them until it is killed.
var lockProgram = proctest.Register("lock", func(p *proctest.Parent) error {
	flags, kind := os.O_RDWR, int16(unix.F_WRLCK)
	if p.Args[1] == "read" {
		flags, kind = os.O_RDONLY, unix.F_RDLCK
	}
	file, err := os.OpenFile(shmPath(p.Args[0]), flags, 0)
	if err != nil {
		return err
	}
	for at, end := number(p.Args[2]), number(p.Args[3]); at < end; {
		there := unix.Flock_t{Type: kind, Start: at, Len: end - at}
		if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_GETLK, &there); err != nil {
			return err
		}
		lock := unix.Flock_t{Type: kind, Start: at, Len: end - at}
		next := end
		if there.Type != unix.F_UNLCK {
			lock.Len, next = there.Start-at, there.Start+there.Len
		}
		if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
			return err
		}
		at = next
	}
	p.Say("held")
	p.Hear()
	return nil
})

// TestRefsOfThousands has more attachments than a process has descriptors.
func TestRefsOfThousands(t *testing.T) {
	onTmpfs(t)
	const n = 5000
	seg := block(t, 100)
	file, err := os.OpenFile(shmPath(seg.Name()), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for i := range int64(n) { // apart, or they would be one lock
		lock := unix.Flock_t{Type: unix.F_WRLCK, Start: writers + 2*i, Len: 1}
		if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
			t.Fatal(err)
		}
	}
	if refs := seg.Refs(); refs != n+1 {
		t.Errorf("%d references, want %d", refs, n+1)
	}
}

// TestLocksHeld has locks of a block held by a process that does not release them:
// by one of the same user that was stopped, or by one that may only read the block.
func TestLocksHeld(t *testing.T) {
	t.Parallel() // in a process of its own
	onTmpfs(t)
	if !undisturbed(t) {
		return
	}
	calls := map[string]func(seg *shm.Segment, name string) error{
		"Open":          func(_ *shm.Segment, name string) error { return tryOpen(name) },
		"Open ReadOnly": func(_ *shm.Segment, name string) error { return tryOpen(name, shm.ReadOnly()) },
		"OpenOrCreate": func(_ *shm.Segment, name string) error {
			seg, _, err := shm.OpenOrCreate(name, 1)
			if err == nil {
				seg.Close()
			}
			return err
		},
		"Create":         func(_ *shm.Segment, name string) error { return tryCreate(name, 1) },
		"Unlink":         func(_ *shm.Segment, name string) error { return shm.Unlink(name) },
		"Segment.Unlink": func(seg *shm.Segment, _ string) error { return seg.Unlink() },
		"Stat":           func(_ *shm.Segment, name string) error { return second(shm.Stat(name)) },
		"Reap":           func(*shm.Segment, string) error { return second(shm.Reap()) },
		"Close":          func(seg *shm.Segment, _ string) error { return seg.Close() },
	}
	type outcome struct {
		err   error
		waits bool // for two seconds
	}
	busy := outcome{shm.ErrBusy, true}
	unlinking := map[string]outcome{ // what is different; all else succeeds at once
		"Create": {fs.ErrExist, false}, "Unlink": busy, "Segment.Unlink": busy, "Close": {nil, true},
	}
	joining := map[string]outcome{
		"Open": busy, "Open ReadOnly": busy, "OpenOrCreate": busy, "Create": {fs.ErrExist, false}, "Close": {nil, true},
	}
	alone := map[string]outcome{
		"Open": busy, "Open ReadOnly": busy, "OpenOrCreate": busy, "Create": {fs.ErrExist, true}, "Unlink": busy,
	}
	readAll := maps.Clone(alone)
	delete(readAll, "Unlink")
	var all sync.WaitGroup // most wait for two seconds, so all at once
	defer all.Wait()
	for _, held := range []struct {
		what       string
		kind       string
		start, end int64
		attached   bool // a process is attached, else the block is stale
		differ     map[string]outcome
	}{
		{"stopped in Unlink", "write", lockByte, lockByte + 1, true, unlinking},
		{"stopped when alone", "write", lockByte, endOfLocks, false, alone},
		{"reader has the byte of Unlink", "read", lockByte, lockByte + 1, true, unlinking},
		{"reader has all other bytes", "read", writers, endOfLocks, true, joining},
		{"reader has all bytes", "read", writers, endOfLocks, false, readAll},
	} {
		for what, call := range calls {
			if !held.attached && (what == "Segment.Unlink" || what == "Close") {
				continue
			}
			test := func(t *testing.T) {
				name, seg := unique(t), (*shm.Segment)(nil)
				file := "." + name // no block's name, so that no Reap removes it before
				if held.attached {
					seg = block(t, 100, shm.Perm(0o644))
					name = seg.Name()
					file = name
				} else {
					plantAt(t, file, image(t, 100))
				}
				cmd := proctest.Command(lockProgram, file, held.kind, fmt.Sprint(held.start), fmt.Sprint(held.end))
				if held.kind == "read" && os.Getuid() == 0 {
					if err := os.Chmod(shmPath(file), 0o644); err != nil {
						t.Fatal(err)
					}
					cmd.Path = "/proc/self/exe"
					stranger(cmd)
				}
				c := proctest.StartCommand(t, cmd)
				c.Expect("held")
				if held.kind == "write" {
					c.Process.Signal(syscall.SIGSTOP)
				}
				if err := os.Rename(shmPath(file), shmPath(name)); err != nil {
					t.Fatal(err)
				}
				want := held.differ[what]
				start := time.Now()
				wantErr(t, what, call(seg, name), name, want.err)
				if d := time.Since(start); want.waits && d < 1900*time.Millisecond || !want.waits && d > 1900*time.Millisecond || d > 10*time.Second {
					t.Errorf("it took %v", d)
				}
				if what == "Close" { // no process is attached, but it could not be unlinked
					mustStay(t, name)
					start := time.Now()
					wantErr(t, "Create", tryCreate(name, 1), name, fs.ErrExist)
					if d := time.Since(start); d < 1900*time.Millisecond {
						t.Errorf("Create took %v", d)
					}
				}
				c.Kill()
				if what == "Close" || !held.attached {
					mustBeStale(t, name)
					untilGone(t, name, func() {
						if _, err := shm.Reap(); err != nil {
							t.Error(err)
						}
					})
				} else if err := seg.Close(); err != nil {
					t.Error(err)
				}
				mustBeFree(t, name)
			}
			all.Go(func() { t.Run(held.what+"/"+what, test) })
		}
	}
	// One of the bytes of attachments is an attachment, for all that others know.
	t.Run("one byte", func(t *testing.T) {
		seg := block(t, 100)
		name := seg.Name()
		const pid = 1<<22 - 1 // in no namespace
		c := proctest.Start(t, lockProgram, name, "read", fmt.Sprint(int64(readers|pid<<18)), fmt.Sprint(int64(readers|pid<<18+1)))
		c.Expect("held")
		info, err := shm.Stat(name)
		if forged := (shm.Holder{PID: pid, ReadOnly: true}); err != nil || info.Refs != 2 || !slices.Contains(info.Holders, forged) {
			t.Errorf("Stat: %+v, %v", info, err)
		}
		seg.Close()
		mustStay(t, name)
		attach(t, name).Close()
		mustStay(t, name)
		c.Kill()
		mustNotExist(t, name)
		mustBeFree(t, name)
	})
}

// TestTwoNamespaces has processes attached that do not see each other: their
// process ids mean nothing to one another.
func TestTwoNamespaces(t *testing.T) {
	onTmpfs(t)
	mustRoot(t, "make a namespace of process ids")
	if !undisturbed(t) {
		return
	}
	start := func(t *testing.T, name string) *proctest.Child {
		cmd := proctest.Command(attachProgram, name)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
		c := proctest.StartCommand(t, cmd)
		c.Expect("attached")
		return c
	}
	seg := block(t, 100)
	name := seg.Name()
	a, b := start(t, name), start(t, name)
	self := shm.Holder{PID: os.Getpid(), Here: true}
	there := shm.Holder{PID: 1} // the first process of its namespace
	wantHolders(t, seg, self, there, there)
	a.Kill()
	wantHolders(t, seg, self, there)
	seg.Close()
	mustStay(t, name)
	if names, err := shm.Reap(); err != nil || slices.Contains(names, name) {
		t.Errorf("Reap: %v, %v", names, err)
	}
	b.Kill()
	if info, err := shm.Stat(name); err != nil || !info.Stale() {
		t.Errorf("Stat: %+v, %v", info, err)
	}
	mustNotExist(t, name)
	mustBeFree(t, name)
}

// daemonProgram creates a block and starts a child that has its descriptor, and with
// it its locks, as one that was forked and has not begun a program of its own. The
// child ends when the test closes its input.
var daemonProgram = proctest.Register("daemon", func(p *proctest.Parent) error {
	seg, err := shm.Create(p.Args[0], 100)
	if err != nil {
		return err
	}
	io.WriteString(seg, "kept")
	var block, st unix.Stat_t
	if err := unix.Stat(shmPath(p.Args[0]), &block); err != nil {
		return err
	}
	fd := 3
	for unix.Fstat(fd, &st) != nil || st.Ino != block.Ino || st.Dev != block.Dev {
		fd++
	}
	input := os.NewFile(3, "input") // the first of ExtraFiles
	child := exec.Command("/bin/cat")
	child.Stdin = input
	child.ExtraFiles = []*os.File{os.NewFile(uintptr(fd), "block")}
	if err := child.Start(); err != nil {
		return err
	}
	p.Say("started")
	p.Hear()
	return nil
})

// TestDaemon kills a process whose child keeps its locks. The child is alive, and so
// is what it holds: that it cannot be told from a child that will soon release it
// takes those that attach a second.
func TestDaemon(t *testing.T) {
	onTmpfs(t)
	name := unique(t)
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	cmd := proctest.Command(daemonProgram, name)
	cmd.ExtraFiles = []*os.File{out}
	c := proctest.StartCommand(t, cmd)
	out.Close()
	c.Expect("started")
	c.Kill()
	gone := shm.Holder{PID: c.Process.Pid, Here: true, Gone: true}
	info, err := shm.Stat(name)
	if err != nil || !info.Attached || info.Stale() || info.Refs != 1 || !slices.Equal(info.Holders, []shm.Holder{gone}) {
		t.Fatalf("Stat: %+v, %v", info, err)
	}
	mustSpare(t, name)
	for what, call := range map[string]func() (*shm.Segment, error){
		"Open": func() (*shm.Segment, error) { return shm.Open(name) },
		"OpenOrCreate": func() (*shm.Segment, error) {
			seg, created, err := shm.OpenOrCreate(name, 5)
			if created {
				t.Error("OpenOrCreate has created another block")
			}
			return seg, err
		},
		"Create": func() (*shm.Segment, error) { return shm.Create(name, 5) },
	} {
		start := time.Now()
		seg, err := call()
		if d := time.Since(start); d < 900*time.Millisecond || d > 10*time.Second {
			t.Errorf("%s took %v", what, d)
		}
		if what == "Create" {
			mustFail(t, err, name, fs.ErrExist)
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := content(t, seg); string(got[:4]) != "kept" {
			t.Errorf("%s: holds %q", what, got[:4])
		}
		wantHolders(t, seg, gone, shm.Holder{PID: os.Getpid(), Here: true})
		seg.Close()
		mustStay(t, name)
	}
	// Beside a process that is alive there is nothing to wait for.
	seg := attach(t, name)
	start := time.Now()
	attach(t, name).Close()
	if d := time.Since(start); d > 900*time.Millisecond {
		t.Errorf("Open of a block in use took %v", d)
	}
	seg.Close()
	in.Close()
	for end := time.Now().Add(time.Minute); info.Attached && time.Now().Before(end); {
		if info, err = shm.Stat(name); err != nil {
			t.Fatal(err)
		}
	}
	mustNotExist(t, name)
	mustBeFree(t, name)
}

// TestTwoNames has a hard link lead to a block that is in use.
func TestTwoNames(t *testing.T) {
	onTmpfs(t)
	seg, other := block(t, 10), unique(t)
	if err := os.Link(shmPath(seg.Name()), shmPath(other)); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(shmPath(other))
	peer := attach(t, other)
	seg.WriteString("one block!")
	if got := content(t, peer); string(got) != "one block!" {
		t.Errorf("read %q", got)
	}
	seg.Close()
	mustStay(t, seg.Name())
	peer.Close()
	mustNotExist(t, other)
	mustNotExist(t, seg.Name()) // stale under its first name
	mustBeFree(t, seg.Name())
}

// TestOthersStaleBlock has one who may not unlink a block be the last to leave.
func TestOthersStaleBlock(t *testing.T) {
	onTmpfs(t)
	mustRoot(t, "start processes of another user")
	if !undisturbed(t) {
		return
	}
	for _, perm := range []fs.FileMode{0o644, 0o666} {
		for _, finish := range []string{"Reap", "Create"} {
			t.Run(fmt.Sprintf("%o %s", perm, finish), func(t *testing.T) {
				seg := block(t, 100, shm.Perm(perm))
				name := seg.Name()
				cmd := proctest.Command(attachProgram, name)
				cmd.Path = "/proc/self/exe"
				stranger(cmd)
				last := proctest.StartCommand(t, cmd)
				last.Expect("attached")
				seg.Close()
				mustStay(t, name)
				last.Say("close")
				last.Expect("closed")
				mustStay(t, name)
				if info, err := shm.Stat(name); err != nil || !info.Stale() {
					t.Errorf("Stat: %+v, %v", info, err)
				}
				if finish == "Reap" {
					if names, err := shm.Reap(); err != nil || !slices.Contains(names, name) {
						t.Errorf("Reap: %v, %v", names, err)
					}
				} else if err := tryCreate(name, 5); err != nil {
					t.Error(err)
				}
				mustBeFree(t, name)
			})
		}
	}
}

// attachProgram attaches to a block, as best it may, until told to close.
var attachProgram = proctest.Register("attach", func(p *proctest.Parent) error {
	seg, err := shm.Open(p.Args[0])
	if errors.Is(err, fs.ErrPermission) {
		seg, err = shm.Open(p.Args[0], shm.ReadOnly())
	}
	if err != nil {
		return err
	}
	p.Say("attached")
	if _, err := p.Hear(); err != nil {
		return nil // as one that is killed
	}
	err = seg.Close()
	p.Say("closed")
	return err
})

// TestUnlinkLocks has every kind of Segment respect the mutex that a process
// about to unlink holds: without it, Unlink could hit the name of a new block.
func TestUnlinkLocks(t *testing.T) {
	onTmpfs(t)
	shm.SetPatience(t, time.Millisecond)
	for what, opts := range map[string][]shm.Option{
		"counted": nil, "read-only": {shm.ReadOnly()}, "raw": {shm.Headerless()}, "raw, read-only": {shm.Headerless(), shm.ReadOnly()},
	} {
		t.Run(what, func(t *testing.T) {
			var create []shm.Option
			if strings.HasPrefix(what, "raw") {
				create = []shm.Option{shm.Headerless()}
			}
			name := block(t, 100, create...).Name()
			seg := attach(t, name, opts...)
			file, err := os.OpenFile("/dev/shm/"+name, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 1 << 62, Len: 1}
			if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
				t.Fatal(err)
			}
			mustFail(t, seg.Unlink(), name, shm.ErrBusy)
			file.Close()
			if err := seg.Unlink(); err != nil {
				t.Error(err)
			}
			mustFail(t, seg.Unlink(), name, fs.ErrNotExist)
		})
	}
}

// TestOneHolder has a goroutine unlink a block through a Segment while another
// one holds the mutex through it. For the kernel they are one, so it would
// let both in; the Segment must not.
func TestOneHolder(t *testing.T) {
	onTmpfs(t)
	seg := block(t, 100)
	release := shm.HoldMutex(t, seg)
	done := make(chan error, 1)
	go func() { done <- seg.Unlink() }()
	for range 1000 {
		select {
		case err := <-done:
			t.Fatalf("Unlink did not wait: %v", err)
		default:
			runtime.Gosched()
		}
	}
	mustStay(t, seg.Name())
	release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	seg.Close()
	mustBeFree(t, seg.Name())
}

// TestStaleMark has a second name lead to a block when the last one leaves it.
// What is left is marked, so that who has opened it, but not yet attached, does
// not take it for alive.
func TestStaleMark(t *testing.T) {
	onTmpfs(t)
	if !undisturbed(t) {
		return
	}
	seg, other := block(t, 100), unique(t)
	if err := os.Link(shmPath(seg.Name()), shmPath(other)); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(shmPath(other))
	seg.Close()
	left, err := os.ReadFile(shmPath(other))
	if err != nil || binary.NativeEndian.Uint32(left[64:]) != 2 {
		t.Errorf("state %v, %v", left[64:68], err)
	}
}
