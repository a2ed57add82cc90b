//go:build amd64 || arm64

package killpoints

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/internal/standin"
)

const (
	shmDir     = "/dev/shm"
	envPrivate = "SHM_KILLPOINTS_PRIVATE"
)

// TestMain runs the tests in a mount namespace of their own where it can: no
// other program then adds names that a Reap has to look at, which would make
// one run differ from the next.
func TestMain(m *testing.M) {
	proctest.Main()
	if standin.Used() != nil { // /dev/shm has its files
		os.Exit(m.Run())
	}
	switch os.Getenv(envPrivate) {
	case "":
		runPrivately()
	case "yes":
		if err := mountPrivate(); err != nil {
			fmt.Printf("no %s of our own: %v\n", shmDir, err)
			os.Setenv(envPrivate, "no")
		}
	}
	os.Exit(m.Run())
}

// runPrivately runs this program in new namespaces, and returns if it cannot.
func runPrivately() {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), envPrivate+"=yes")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
		cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN}
	}
	runtime.LockOSThread() // Pdeathsig is sent when this thread ends
	if err := cmd.Start(); err != nil {
		os.Setenv(envPrivate, "no")
		fmt.Printf("no %s of our own: %v\n", shmDir, err)
		return
	}
	cmd.Wait()
	os.Exit(max(cmd.ProcessState.ExitCode(), 0) | boolInt(cmd.ProcessState.ExitCode() < 0))
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func mountPrivate() error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.Mount("tmpfs", shmDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777,size=64m")
}

var victimProgram = proctest.Register("victim", func(p *proctest.Parent) error {
	runtime.LockOSThread()
	op, name := operations[p.Args[0]], p.Args[1]
	var seg *shm.Segment
	if op.prepare != nil {
		var err error
		if seg, err = op.prepare(name); err != nil {
			return err
		}
	}
	p.Say("%d", unix.Gettid())
	if _, err := p.Hear(); err != nil { // traced
		return err
	}
	Begin()
	err := op.run(name, seg)
	End()
	p.Say("%s", errorWord(err))
	if _, err := p.Hear(); err != nil {
		return err
	}
	p.Say("%s", whereabouts(append(kept, seg)))
	p.Hear()
	for _, seg := range append(kept, seg) {
		seg.Close()
	}
	p.Say("closed")
	_, err = p.Hear()
	return err
})

// readerProgram is a peer that may only read, if it runs as another user. It
// answers each name with whether it could attach and what it read was intact,
// stays attached until the next line, and answers that with the same again.
var readerProgram = proctest.Register("reader", func(p *proctest.Parent) error {
	for {
		name, err := p.Hear()
		if err != nil {
			return nil
		}
		seg, err := shm.Open(name, shm.ReadOnly())
		if err != nil {
			p.Say("%v", err)
			continue
		}
		p.Say("%v", intact(seg))
		p.Hear()
		p.Say("%v", intact(seg))
		p.Hear()
		seg.Close()
		p.Say("closed")
	}
})

// A world is what there is when the victim begins.
type world struct {
	exists     bool // a block that somebody can attach to
	stale      bool // one that nobody is attached to any more
	persistent bool
	peer       bool // this process is attached
	reader     bool // a process that may only read is attached
}

var worlds = map[string]world{
	"nobody":                 {},
	"stale":                  {stale: true},
	"peer":                   {exists: true, peer: true},
	"reader":                 {exists: true, reader: true},
	"peer,reader":            {exists: true, peer: true, reader: true},
	"persistent":             {exists: true, persistent: true},
	"persistent,stale count": {exists: true, persistent: true, stale: true},
	"persistent,peer":        {exists: true, persistent: true, peer: true},
	"persistent,reader":      {exists: true, persistent: true, reader: true},
}

// scene is a world that has been set up under a name.
type scene struct {
	world
	name   string
	id     [16]byte // of the block in it
	peer   *shm.Segment
	reader *proctest.Child
}

// theReader starts one reader for all.
var theReader *proctest.Child

func newReader(t *testing.T) *proctest.Child {
	cmd := proctest.Command(readerProgram)
	asAlien(cmd)
	return proctest.StartCommand(t, cmd)
}

func setUp(t *testing.T, w world) *scene {
	t.Helper()
	s := &scene{world: w}
	if !w.exists && !w.stale {
		seg := must(shm.Create("", 1))(t)
		s.name = seg.Name()
		seg.Close()
		return s
	}
	opts := []shm.Option{shm.Perm(0o644)}
	if w.persistent {
		opts = append(opts, shm.Persistent())
	}
	seg := must(shm.Create("", size, opts...))(t)
	s.name, s.id, s.peer = seg.Name(), blockID(t, seg), seg
	if _, err := seg.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	if w.reader {
		s.reader = theReader
		s.reader.Say("%s", s.name)
		s.reader.Expect("<nil>")
	}
	if w.stale {
		s.kill(t)
	}
	if !w.peer && s.peer != nil {
		s.peer.Close()
		s.peer = nil
	}
	return s
}

// kill leaves the block as if this process, its only user, had been killed: all
// that remains then is the file, with a count in its header.
func (s *scene) kill(t *testing.T) {
	b := must(os.ReadFile(path(s.name)))(t)
	if err := s.peer.Unlink(); err != nil {
		t.Fatal(err)
	}
	s.peer.Close()
	s.peer = nil
	if err := os.WriteFile(path(s.name), b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func path(name string) string { return filepath.Join(shmDir, name) }

// victim is a process that is traced.
type victim struct {
	*proctest.Child
	*Tracee
}

// start starts a victim, which is killed at the end of the test at the latest.
// The calling goroutine must be locked to its thread.
func (s *scene) start(t *testing.T, op string) victim {
	t.Helper()
	cmd := calm(proctest.Command(victimProgram, op, s.name))
	if operations[op].alien {
		asAlien(cmd)
	}
	v := victim{Child: proctest.StartCommand(t, cmd)}
	tid := must(strconv.Atoi(v.Hear()))(t)
	var err error
	if v.Tracee, err = Attach(tid); err != nil {
		v.Child.Kill()
		t.Skipf("ptrace: %v; allow it (capability SYS_PTRACE, seccomp, kernel.yama.ptrace_scope)", err)
	}
	v.Say("traced")
	return v
}

// asAlien makes cmd run as another user.
func asAlien(cmd *exec.Cmd) {
	cmd.Path = "/proc/self/exe" // its directory is closed to other users
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}

// run has a victim do the operation up to the point, kills it there, and
// returns the calls it has made and whether it came so far.
func (s *scene) run(t *testing.T, op string, point Point) (calls []string, reached bool) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	v := s.start(t, op)
	defer v.Child.Kill()
	reached, err := v.Run(point)
	if err != nil {
		t.Fatal(err)
	}
	if reached {
		if err := v.Tracee.Kill(v.Process.Pid); err != nil {
			t.Fatal(err)
		}
	} else {
		v.Hear() // done
	}
	return v.Calls, reached
}

// check looks at the world after the victim's death: first at those who are
// still attached, then at what is left when they, too, are gone.
func (s *scene) check(t *testing.T, op operation) {
	t.Helper()
	if s.peer != nil {
		if err := intact(s.peer); err != nil {
			t.Errorf("the peer: %v", err)
		}
		s.checkRefs(t, s.peer)
	}
	if s.reader != nil {
		s.reader.Say("")
		s.reader.Expect("<nil>")
	}
	if s.exists {
		s.checkOpens(t, op.unlinks)
	}
	if !s.exists || s.peer != nil || s.persistent {
		s.checkImages(t, op) // as if whoever is left were killed now
	}
	s.leave(t, op)
}

// checkOpens opens the block, as long as somebody is attached to it.
func (s *scene) checkOpens(t *testing.T, mayBeGone bool) {
	t.Helper()
	seg, err := shm.Open(s.name)
	switch {
	case mayBeGone && errors.Is(err, fs.ErrNotExist):
		return
	case err != nil:
		t.Errorf("opening a block in use: %v", err)
		return
	}
	defer seg.Close()
	if id := blockID(t, seg); id != s.id {
		t.Errorf("opened %x, not %x", id, s.id)
	} else if err := intact(seg); err != nil {
		t.Error(err)
	}
	s.checkRefs(t, seg)
}

// checkRefs checks that seg, the peer and the reader are counted and no one else:
// killed processes are not.
func (s *scene) checkRefs(t *testing.T, seg *shm.Segment) {
	t.Helper()
	want := boolInt(s.peer != nil) + boolInt(s.reader != nil) + boolInt(seg != s.peer)
	if refs := seg.Refs(); refs != want {
		t.Errorf("%d references, want %d", refs, want)
	}
}

// checkImages makes copies of the block: nobody is attached to those, and what
// is in their headers is what killed processes have left there.
func (s *scene) checkImages(t *testing.T, op operation) {
	t.Helper()
	b, err := os.ReadFile(path(s.name))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	info := must(shm.Stat(s.name))(t)
	for verb, find := range finders {
		name := s.name + "." + verb
		if err := os.WriteFile(path(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if info.Persistent {
			if !s.persistent && !op.creates {
				t.Error("a block has become Persistent")
			}
			checkKept(t, name, info.ID)
			continue
		}
		if err := find(name); err != nil {
			t.Errorf("%s when all are gone: %v", verb, err)
		}
		mustBeGone(t, name)
	}
}

// finders come to a stale block, and return an error if they do not see that the
// name is free.
var finders = map[string]func(name string) error{
	"Open": func(name string) error {
		seg, err := shm.Open(name)
		if err == nil {
			seg.Close()
			return errors.New("there is a block")
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	},
	"Create": func(name string) error {
		seg, err := shm.Create(name, 1)
		if err == nil {
			err = seg.Close()
		}
		return err
	},
	"Reap": func(name string) error {
		_, err := shm.Reap()
		return err
	},
}

// checkKept checks that a Persistent block that nobody is attached to stays
// until Unlink, and unlinks it.
func checkKept(t *testing.T, name string, id [16]byte) {
	t.Helper()
	if names, err := shm.Reap(); err != nil || slices.Contains(names, name) {
		t.Errorf("Reap: %v, %v", names, err)
	}
	seg, err := shm.Open(name)
	if err != nil {
		t.Errorf("a Persistent block: %v", err)
		return
	}
	defer seg.Close()
	if got := blockID(t, seg); got != id || seg.Refs() != 1 {
		t.Errorf("a Persistent block: %x, not %x; %d references", got, id, seg.Refs())
	}
	if err := shm.Unlink(name); err != nil {
		t.Error(err)
	}
	mustBeGone(t, name)
}

// leave ends all attachments and checks what that does to the name.
func (s *scene) leave(t *testing.T, op operation) {
	t.Helper()
	if s.reader != nil {
		s.reader.Say("")
		s.reader.Expect("closed") // it may not unlink
	}
	if s.peer != nil {
		if err := s.peer.Close(); err != nil {
			t.Error(err)
		}
		if !s.persistent {
			mustBeGone(t, s.name) // it was the last one
		}
	}
	if s.persistent || op.creates {
		if err := shm.Unlink(s.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
	if err := finders["Open"](s.name); err != nil {
		t.Errorf("Open when all are gone: %v", err)
	}
	mustBeGone(t, s.name)
}

func mustBeGone(t *testing.T, name string) {
	t.Helper()
	if _, err := os.Lstat(path(name)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the name %s is still there: %v", name, err)
		os.Remove(path(name))
	}
}

// TestKillPoints kills a victim at every point of every operation in every
// world, and checks that the promise is kept to all others.
func TestKillPoints(t *testing.T) {
	onTmpfs(t)
	if os.Getuid() == 0 {
		theReader = newReader(t)
	} else {
		t.Log("no readers of another user: only root can start processes of another user")
	}
	total, calls := 0, map[string]bool{}
	for _, opName := range sorted(operations) {
		for _, worldName := range sorted(worlds) {
			op, w := operations[opName], worlds[worldName]
			if (w.reader || op.alien) && theReader == nil || op.needs && !w.exists {
				continue
			}
			t.Run(opName+"/"+worldName, func(t *testing.T) {
				names := killEverywhere(t, opName, w)
				for _, name := range names {
					calls[name] = true
				}
				total += 2 * len(names)
				t.Logf("%d points: %s", 2*len(names), strings.Join(names, " "))
			})
		}
	}
	left := must(os.ReadDir(shmDir))(t)
	if os.Getenv(envPrivate) == "yes" && len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	fmt.Printf("killpoints: %d points of %d operations in %d worlds, all killed at; calls: %s\n",
		total, len(operations), len(worlds), strings.Join(sorted(calls), " "))
}

// killEverywhere returns the calls of the operation, after it has killed a
// victim at both ends of each.
func killEverywhere(t *testing.T, opName string, w world) []string {
	t.Helper()
	op := operations[opName]

	// The first Create of a process looks for stale blocks for 10 milliseconds. On
	// a machine that is busy it can be cut short, but not often at the same call.
	var want []string
	for same := 0; same < 3; same++ {
		s := setUp(t, w)
		calls, _ := s.run(t, opName, Nowhere)
		s.check(t, op) // a victim that is killed when it is done
		if !slices.Equal(calls, want) {
			want, same = calls, 0
		}
	}
	for p := Point(0); p < Point(2*len(want)); p++ {
		killAt(t, opName, w, p, want)
		if t.Failed() {
			t.Fatalf("killed %v, %s, of %v", p, want[p/2], want)
		}
	}
	return want
}

// killAt kills a victim at the point. Where the calls that led there are others
// than in the run without a kill, it was another point, and is tried again.
func killAt(t *testing.T, opName string, w world, p Point, want []string) {
	t.Helper()
	const tries = 50
	var calls []string
	for range tries {
		s := setUp(t, w)
		var reached bool
		calls, reached = s.run(t, opName, p)
		s.check(t, operations[opName])
		if reached && slices.Equal(calls, want[:p/2+1]) || t.Failed() {
			return
		}
	}
	t.Errorf("no two runs are the same: %v, %v", calls, want)
}

// TestExact kills before and after the call that gives a block its name, and
// before and after the one that takes it away, and looks for the name.
func TestExact(t *testing.T) {
	onTmpfs(t)
	for _, tt := range []struct {
		op, call string
		world    world
		after    [2]bool // is there a name, killed before and after the call
	}{
		{"Create", "linkat", worlds["nobody"], [2]bool{false, true}},
		{"Unlink", "unlink", worlds["persistent"], [2]bool{true, false}},
	} {
		s := setUp(t, tt.world)
		calls, _ := s.run(t, tt.op, Nowhere)
		s.leave(t, operation{creates: true})
		at := slices.IndexFunc(calls, func(name string) bool { return strings.HasPrefix(name, tt.call) })
		if at < 0 {
			t.Fatalf("no %s in %v", tt.call, calls)
		}
		for end, want := range tt.after {
			s := setUp(t, tt.world)
			s.run(t, tt.op, Point(2*at+end))
			if _, err := os.Lstat(path(s.name)); (err == nil) != want {
				t.Errorf("%s killed %v, which is %s: %v", tt.op, Point(2*at+end), tt.call, err)
			}
			s.leave(t, operation{creates: true})
		}
	}
}
