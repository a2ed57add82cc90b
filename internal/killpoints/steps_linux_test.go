//go:build amd64 || arm64

package killpoints

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/internal/standin"
)

// On the stand-in for darwin's kernel the points are its system calls and the
// stores to the lock page. The victim stops
// before one of them by itself, and is killed there, or goes on when something
// else has been done meanwhile.

func onTmpfs(t *testing.T) {
	t.Helper()
	if standin.Used() != nil {
		t.Skip("system calls are traced without the stand-in")
	}
}

func onStandin(t *testing.T) {
	t.Helper()
	if standin.Used() == nil {
		t.Skip("not on the stand-in: run with SHM_STANDIN")
	}
}

// objects returns the names that there are, of blocks or not, with this end.
func objects(end string) (names []string) {
	entries, err := os.ReadDir(standin.Used().Dir)
	if err != nil {
		panic(err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), end) {
			names = append(names, e.Name())
		}
	}
	return names
}

// stopper does an operation and stops before step n of it.
var stopper = proctest.Register("stopper", func(p *proctest.Parent) error {
	op, name := operations[p.Args[0]], p.Args[1]
	var n int
	fmt.Sscan(p.Args[2], &n)
	var seg *shm.Segment
	if op.prepare != nil {
		var err error
		if seg, err = op.prepare(name); err != nil {
			return err
		}
	}
	steps := 0
	standin.Used().BeforeStep = func(what string) {
		if steps++; steps-1 == n {
			p.Say("before %s", what)
			p.Hear()
		}
	}
	err := op.run(name, seg)
	standin.Used().BeforeStep = nil
	p.Say("%s", errorWord(err))
	p.Hear()
	p.Say("%s", whereabouts(append(kept, seg)))
	p.Hear()
	for _, seg := range append(kept, seg) {
		seg.Close()
	}
	p.Say("closed")
	return nil
})

// A stepScene is what there is when the victim begins.
type stepScene struct {
	name string
	id   [16]byte
	peer *shm.Segment // of this process
}

var stepScenes = map[string]struct {
	exists, persistent bool
	setUp              func(t *testing.T, s *stepScene)
}{
	"nobody": {setUp: func(*testing.T, *stepScene) {}},
	"peer": {exists: true, setUp: func(t *testing.T, s *stepScene) {
		s.create(t)
	}},
	"persistent": {exists: true, persistent: true, setUp: func(t *testing.T, s *stepScene) {
		s.create(t, shm.Persistent())
		s.peer.Close()
		s.peer = nil
	}},
	"persistent,peer": {exists: true, persistent: true, setUp: func(t *testing.T, s *stepScene) {
		s.create(t, shm.Persistent())
	}},
	// What a process leaves that is killed as the only user, ...
	"stale": {setUp: func(t *testing.T, s *stepScene) {
		v := startStopper(t, "Create", s.name, -1)
		v.Expect("done")
		v.Kill()
	}},
	// ... and before the block is one: without a size, with one, and with a mutex.
	"newborn,empty": {setUp: func(t *testing.T, s *stepScene) { s.newborn(t, "ftruncate") }},
	"newborn,sized": {setUp: func(t *testing.T, s *stepScene) { s.newborn(t, "mutex") }},
	"newborn,ready": {setUp: func(t *testing.T, s *stepScene) { s.newborn(t, "ready") }},
}

func (s *stepScene) create(t *testing.T, opts ...shm.Option) {
	s.peer = must(shm.Create(s.name, size, opts...))(t)
	s.id = blockID(t, s.peer)
	if _, err := s.peer.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
}

func (s *stepScene) newborn(t *testing.T, before string) {
	for n := 0; ; n++ {
		v := startStopper(t, "Create", s.name, n)
		said := v.Hear()
		v.Kill()
		if said == "before "+before {
			return
		}
		os.Remove(standin.Used().Dir + "/shm:%2F" + s.name)
	}
}

func startStopper(t *testing.T, op, name string, n int) *proctest.Child {
	t.Helper()
	return proctest.Start(t, stopper, op, name, fmt.Sprint(n))
}

// everywhere calls f for all operations and stepScenes, and then for every step:
// f returns false when there is no step n.
func everywhere(t *testing.T, f func(t *testing.T, opName, sceneName string, s *stepScene, n int) bool) (points int) {
	var all atomic.Int64
	t.Run("all", func(t *testing.T) {
		for _, opName := range sorted(operations) {
			for _, sceneName := range sorted(stepScenes) {
				op, sc := operations[opName], stepScenes[sceneName]
				newborn := strings.HasPrefix(sceneName, "newborn")
				switch {
				case op.alien, opName == "Reap", opName == "CreateSparse": // not on darwin, or no different there
				case op.needs && !sc.exists, newborn && op.prepare != nil:
				default:
					t.Run(opName+"/"+sceneName, func(t *testing.T) {
						t.Parallel() // most of the time they wait
						for n := 0; step(t, opName, sceneName, n, f); n++ {
							all.Add(1)
						}
					})
				}
			}
		}
	})
	return int(all.Load())
}

var sceneCount atomic.Int64

func step(t *testing.T, opName, sceneName string, n int, f func(t *testing.T, opName, sceneName string, s *stepScene, n int) bool) bool {
	s := &stepScene{name: fmt.Sprintf("scene-%d-", sceneCount.Add(1))}
	stepScenes[sceneName].setUp(t, s)
	more := f(t, opName, sceneName, s, n)
	s.end(t)
	if left := objects(s.name); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if t.Failed() {
		t.Fatalf("at step %d", n)
	}
	return more
}

// end ends what is left of a stepScene, with nothing but what the library offers.
func (s *stepScene) end(t *testing.T) {
	t.Helper()
	if s.peer != nil {
		s.peer.Close()
	}
	if info, err := shm.Stat(s.name); err == nil && info.Persistent {
		if err := shm.Unlink(s.name); err != nil {
			t.Error(err)
		}
	}
	if seg, err := shm.Open(s.name); err == nil {
		t.Errorf("there is a block, with %d users, when all are gone", seg.Refs()-1)
		seg.Close()
	}
	seg, err := shm.Create(s.name, 1)
	if err != nil {
		t.Errorf("Create when all are gone: %v", err)
		return
	}
	seg.Close()
}

// TestKillSteps kills a victim before every step of every operation.
func TestKillSteps(t *testing.T) {
	onStandin(t)
	var steps sync.Map
	points := everywhere(t, func(t *testing.T, opName, sceneName string, s *stepScene, n int) bool {
		v := startStopper(t, opName, s.name, n)
		said := v.Hear()
		v.Kill()
		what, stopped := strings.CutPrefix(said, "before ")
		if stopped {
			steps.Store(what, true)
		}
		op, sc := operations[opName], stepScenes[sceneName]
		if s.peer != nil {
			if err := intact(s.peer); err != nil {
				t.Errorf("the peer: %v", err)
			}
			if refs := s.peer.Refs(); refs != 1 {
				t.Errorf("%d references to the block of the peer, want 1", refs)
			}
		}
		if seg, err := shm.Open(s.name); err == nil {
			if !sc.exists && !op.creates {
				t.Errorf("opened a block that nobody is attached to")
			} else if sc.exists && blockID(t, seg) != s.id {
				t.Errorf("opened another block")
			}
			if refs, want := seg.Refs(), 1+boolInt(s.peer != nil); refs != want {
				t.Errorf("%d references, want %d", refs, want)
			}
			seg.Close()
		} else if sc.exists && !op.unlinks {
			t.Errorf("opening a block in use: %v", err)
		}
		if s.peer != nil && !sc.persistent {
			s.peer.Close()
			s.peer = nil
			if left := objects(s.name); len(left) > 0 {
				t.Errorf("the last Close has left %v", left)
			}
		}
		return stopped
	})
	words := map[string]bool{}
	steps.Range(func(what, _ any) bool { words[what.(string)] = true; return true })
	fmt.Printf("killpoints: %d points of the stand-in, all killed at; steps: %s\n", points, strings.Join(sorted(words), " "))
}

// TestPauseSteps stops a victim before every step of every operation, has this
// process do something else there, as far as the victim's locks let it, and lets
// the victim go on. Where it waits, the victim seems to be slow, or dead: an
// object that it is just making is taken away from it.
func TestPauseSteps(t *testing.T) {
	onStandin(t)
	for _, inName := range sorted(stepIntruders) {
		if testing.Short() && inName != "leave and join" {
			continue
		}
		t.Run(inName, func(t *testing.T) {
			points := everywhere(t, func(t *testing.T, opName, sceneName string, s *stepScene, n int) bool {
				return s.pauseBefore(t, opName, sceneName, stepIntruders[inName], n)
			})
			fmt.Printf("killpoints: %q while paused at %d points of the stand-in\n", inName, points)
		})
	}
}

var stepIntruders = map[string]func(s *stepScene) (*shm.Segment, error){
	"leave and join": func(s *stepScene) (*shm.Segment, error) {
		if s.peer != nil {
			s.peer.Close()
		}
		return joined(s.name)
	},
	"join and leave": func(s *stepScene) (*shm.Segment, error) {
		seg, err := joined(s.name)
		if err == nil {
			err = seg.Close()
		}
		return nil, err
	},
}

func (s *stepScene) pauseBefore(t *testing.T, opName, sceneName string, intrude func(*stepScene) (*shm.Segment, error), n int) bool {
	v := startStopper(t, opName, s.name, n)
	answer := v.Hear()
	stopped := strings.HasPrefix(answer, "before ")
	var seg *shm.Segment
	if stopped {
		began := time.Now()
		done := make(chan error, 1)
		go func() {
			var err error
			seg, err = intrude(s)
			done <- err
		}()
		var err error
		select {
		case err = <-done:
			v.Say("go on")
			answer = v.Hear()
		case <-time.After(200 * time.Millisecond): // twice as long as it waits for a creator
			v.Say("go on")
			answer = v.Hear()
			err = <-done
		}
		if err != nil && time.Since(began) > 2*time.Second { // it does not wait for longer
			t.Logf("step %d: the machine is too slow to tell: %v", n, err)
		} else if err != nil {
			t.Errorf("the intruder: %v", err)
		}
	}
	if answer != "done" && answer != "notexist" && answer != "exist" {
		t.Errorf("the victim: %s", answer)
	}
	v.Say("where")
	where := []string{v.Hear(), whereabouts([]*shm.Segment{seg}), whereabouts([]*shm.Segment{s.peer})}
	block := ""
	for _, w := range where {
		if block == "" && w != "nowhere" {
			block = w
		}
		if w != "nowhere" && !operations[opName].unlinks && (w != block || !strings.HasSuffix(w, "true")) {
			t.Errorf("attached to blocks that have lost their name: victim, intruder, peer: %q", where)
		}
	}
	v.Say("close")
	v.Expect("closed")
	if seg != nil {
		seg.Close()
	}
	if s.peer == nil && !stepScenes[sceneName].persistent && !operations[opName].creates {
		if info, err := shm.Stat(s.name); err == nil {
			t.Errorf("everybody has left, and there is %+v", info)
		}
	}
	return stopped
}
