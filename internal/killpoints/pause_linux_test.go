//go:build amd64 || arm64

package killpoints

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/shmkit/shm"
)

// An intruder does something to a scene while the victim is standing still, and
// returns the Segment that it stays attached by, or nil.
type intruder struct {
	do      func(s *scene) (*shm.Segment, error)
	unlinks bool // a block that somebody can be attached to
	joins   bool // and nothing else, which waits for no process that is attached
}

var intruders = map[string]intruder{
	"leave and join": {do: func(s *scene) (*shm.Segment, error) {
		if err := s.away(); err != nil {
			return nil, err
		}
		return joined(s.name)
	}},
	"join and leave": {joins: true, do: func(s *scene) (*shm.Segment, error) {
		seg, err := joined(s.name)
		if err != nil {
			return nil, err
		}
		return nil, seg.Close()
	}},
	"leave": {do: func(s *scene) (*shm.Segment, error) { return nil, s.away() }},
	"replace": {unlinks: true, do: func(s *scene) (*shm.Segment, error) {
		if err := shm.Unlink(s.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		return joined(s.name)
	}},
}

// away ends the attachment of this process.
func (s *scene) away() error {
	peer := s.peer
	if s.peer = nil; peer == nil {
		return nil
	}
	return peer.Close()
}

// TestPausePoints stops a victim before every system call of every operation,
// has another process do all of something else there, as far as the victim's
// locks let it, and lets the victim go on.
func TestPausePoints(t *testing.T) {
	onTmpfs(t)
	total := 0
	for _, opName := range sorted(operations) {
		for _, worldName := range sorted(worlds) {
			op, w := operations[opName], worlds[worldName]
			if w.reader || op.alien && os.Getuid() != 0 || op.needs && !w.exists || op.waits {
				continue // the reader takes no part in this; the victim can be one
			}
			for _, intruderName := range sorted(intruders) {
				if testing.Short() && intruderName != "replace" {
					continue
				}
				t.Run(opName+"/"+worldName+"/"+intruderName, func(t *testing.T) {
					for k := 0; pauseBefore(t, opName, w, intruders[intruderName], k); k++ {
						if total++; t.Failed() {
							t.Fatalf("paused before call %d", k)
						}
					}
				})
			}
		}
	}
	fmt.Printf("killpoints: paused at %d points\n", total)
}

// pauseBefore reports whether there is a call k.
func pauseBefore(t *testing.T, opName string, w world, in intruder, k int) bool {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	s := setUp(t, w)
	v := s.start(t, opName)
	defer v.Child.Kill()
	reached, err := v.Run(Point(2 * k))
	if err != nil {
		t.Fatal(err)
	}
	var seg *shm.Segment
	if reached {
		seg = s.intrude(t, v, in)
	}
	answer := v.Hear()
	if answer != "done" && answer != "notexist" && answer != "exist" {
		t.Errorf("the victim: %s", answer)
	}
	s.checkAttached(t, v, operations[opName].unlinks || in.unlinks, seg)
	// Unlink can have come second, and SegmentUnlink can have been meant for the
	// block that the intruder has joined.
	if seg != nil && opName != "Unlink" && (opName != "SegmentUnlink" || in.unlinks) {
		if info := must(seg.Stat())(t).Sys().(*shm.Info); !info.Linked {
			t.Errorf("after %v, the block %x of the intruder has lost its name", v.Calls, info.ID)
		}
	}
	s.end(t, opName, v, seg)
	return reached
}

// intrude has the intruder act while the victim is standing, and lets the
// victim go on when it is done, or when it seems to wait for the victim.
func (s *scene) intrude(t *testing.T, v victim, in intruder) (seg *shm.Segment) {
	t.Helper()
	long := 5 * time.Millisecond // for something that takes a hundredth of it
	if in.joins && s.peer != nil {
		long = time.Minute
	}
	done := make(chan error, 1)
	go func() {
		var err error
		seg, err = in.do(s)
		done <- err
	}()
	var err error
	waiting := false
	select {
	case err = <-done:
	case <-time.After(long):
		if waiting = true; long == time.Minute {
			t.Error("a process that is attached had to wait")
		}
	}
	if _, err := v.Run(Nowhere); err != nil {
		t.Fatal(err)
	}
	if waiting {
		err = <-done
	}
	if err != nil {
		t.Errorf("the intruder: %v", err)
	}
	return seg
}

// checkAttached checks that all who are attached are attached to one block, and
// that it has its name, unless somebody has unlinked one.
func (s *scene) checkAttached(t *testing.T, v victim, unlinked bool, seg *shm.Segment) {
	t.Helper()
	v.Say("where")
	where := []string{v.Hear(), whereabouts([]*shm.Segment{seg}), whereabouts([]*shm.Segment{s.peer})}
	if unlinked {
		return
	}
	block := ""
	for _, w := range where {
		if w == "nowhere" {
			continue
		}
		if block == "" {
			block = w
		}
		if w != block || w[len(w)-4:] != "true" {
			t.Errorf("attached to blocks that have lost their name: victim, intruder, peer: %q", where)
			return
		}
	}
}

// end has everybody leave, this process last, and checks that the name goes.
func (s *scene) end(t *testing.T, op string, v victim, seg *shm.Segment) {
	t.Helper()
	v.Say("close")
	v.Expect("closed")
	for _, seg := range []*shm.Segment{seg, s.peer} {
		if seg != nil {
			seg.Close()
		}
	}
	if info, err := shm.Stat(s.name); err == nil && info.Persistent {
		shm.Unlink(s.name)
	}
	if operations[op].alien { // it may not unlink, and could have been in use last
		if err := finders["Open"](s.name); err != nil {
			t.Errorf("Open when all are gone: %v", err)
		}
	}
	mustBeGone(t, s.name)
}
