package shm_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
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

// TestUncounted has a process attached that may only read: it is not in the
// count, but the kernel knows of it.
func TestUncounted(t *testing.T) {
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
		a.must("1", "refs")
		if killed {
			a.Kill()
		} else {
			a.must("closed", "close")
		}
		mustLead(t, name, id)
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

// TestUncountedForks has an uncounted reader leave, and the last one after it,
// while children of the reader that are just being started have copies of the
// reader's descriptor. The reader never holds the mutex, for which the
// last one would wait: what it does not let go of looks like somebody attached.
func TestUncountedForks(t *testing.T) {
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

// lockProgram takes a lock on a byte of a file and keeps it until it is killed.
var lockProgram = proctest.Register("lock", func(p *proctest.Parent) error {
	flags, typ := os.O_RDWR, int16(unix.F_WRLCK)
	if p.Args[1] == "read" {
		flags, typ = os.O_RDONLY, unix.F_RDLCK
	}
	file, err := os.OpenFile(shmPath(p.Args[0]), flags, 0)
	if err != nil {
		return err
	}
	lock := unix.Flock_t{Type: typ, Start: 1<<62 + number(p.Args[2]), Len: 1}
	if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		return err
	}
	p.Say("held")
	p.Hear()
	return nil
})

// TestMutexHeld has the mutex of a block held by a process that does not let go: by
// one of the same user, as if it had been stopped, and by one of another user
// that may only read the block.
func TestMutexHeld(t *testing.T) {
	t.Parallel() // in a process of its own
	onTmpfs(t)
	if !undisturbed(t) {
		return
	}
	var all sync.WaitGroup // they wait for two seconds each, so all at once
	defer all.Wait()
	for _, who := range []string{"stopped", "reader"} {
		lockedBy := func(t *testing.T, name string) *proctest.Child {
			t.Helper()
			kind := "write"
			if who == "reader" {
				kind = "read"
			}
			cmd := proctest.Command(lockProgram, name, kind, "0")
			if who == "reader" && os.Getuid() == 0 {
				cmd.Path = "/proc/self/exe"
				stranger(cmd)
			}
			c := proctest.StartCommand(t, cmd)
			c.Expect("held")
			if who == "stopped" {
				c.Process.Signal(syscall.SIGSTOP)
			}
			return c
		}
		for what, tt := range map[string]struct {
			call  func(seg *shm.Segment, name string) error
			want  error
			waits bool
		}{
			"Open":           {func(_ *shm.Segment, name string) error { return tryOpen(name) }, shm.ErrBusy, true},
			"Open ReadOnly":  {func(_ *shm.Segment, name string) error { return tryOpen(name, shm.ReadOnly()) }, shm.ErrBusy, true},
			"OpenOrCreate":   {func(_ *shm.Segment, name string) error { _, _, err := shm.OpenOrCreate(name, 1); return err }, shm.ErrBusy, true},
			"Create":         {func(_ *shm.Segment, name string) error { return tryCreate(name, 1) }, fs.ErrExist, false},
			"Unlink":         {func(_ *shm.Segment, name string) error { return shm.Unlink(name) }, shm.ErrBusy, true},
			"Segment.Unlink": {func(seg *shm.Segment, _ string) error { return seg.Unlink() }, shm.ErrBusy, true},
			"Stat":           {func(_ *shm.Segment, name string) error { return second(shm.Stat(name)) }, nil, false},
			"Reap":           {func(*shm.Segment, string) error { return second(shm.Reap()) }, nil, false},
			"Close":          {func(seg *shm.Segment, _ string) error { return seg.Close() }, nil, true},
		} {
			test := func(t *testing.T) {
				seg := block(t, 100, shm.Perm(0o644))
				name := seg.Name()
				c := lockedBy(t, name)
				start := time.Now()
				wantErr(t, what, tt.call(seg, name), name, tt.want)
				if d := time.Since(start); tt.waits && d < 1900*time.Millisecond || d > 10*time.Second {
					t.Errorf("it took %v", d)
				}
				if what == "Close" { // nobody is attached, but it could not be unlinked
					mustStay(t, name)
					if info, err := shm.Stat(name); err != nil || !info.Stale() {
						t.Errorf("Stat: %+v, %v", info, err)
					}
					start := time.Now()
					wantErr(t, "Create", tryCreate(name, 1), name, fs.ErrExist)
					if d := time.Since(start); d < 1900*time.Millisecond {
						t.Errorf("Create took %v", d)
					}
				}
				c.Kill()
				if what == "Close" {
					if _, err := shm.Reap(); err != nil {
						t.Error(err)
					}
				} else if err := seg.Close(); err != nil {
					t.Error(err)
				}
				mustBeFree(t, name)
			}
			all.Go(func() { t.Run(who+"/"+what, test) })
		}
	}
	// The life range is what keeps a block alive: a process that holds it is attached, for
	// all that others can know.
	t.Run("life", func(t *testing.T) {
		seg := block(t, 100)
		name := seg.Name()
		c := proctest.Start(t, lockProgram, name, "read", "1")
		c.Expect("held")
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
	if seg.Refs() != 3 {
		t.Errorf("refs %d", seg.Refs())
	}
	a.Kill()
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
