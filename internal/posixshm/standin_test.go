//go:build linux

package posixshm_test

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/posixshm"
)

// These tests stop a call before one of its steps, which only the stand-in can.

// TestReadyAtLast has a creator finish just when another process has given it up
// and is about to take the mutex.
func TestReadyAtLast(t *testing.T) {
	name := systemName(t)[1:]
	o, err := system.Create(name, posixshm.ObjectPage, object.Options{Perm: 0o600})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	defer o.Leave()
	posixshm.ReleaseMutex(o)
	defer func() { stand.BeforeStep = nil }()
	stand.BeforeStep = func(what string) {
		if what != "mutex" || !posixshm.Unborn(o) {
			return
		}
		stand.BeforeStep = nil
		posixshm.Finish(o)
	}
	if !system.IsBlock(name) {
		t.Error("a block is none")
	}
	if posixshm.Unborn(o) {
		t.Fatal("not taken for abandoned at all")
	}
	if linked, err := o.Linked(); err != nil || !linked {
		t.Errorf("linked: %v, %v", linked, err)
	}
}

// TestAnonymousSizedByOthers has another process set the size of an object that is
// to be an anonymous block while that has a name, which only root can, and keep
// it open: it becomes no block.
func TestAnonymousSizedByOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can open it: run as root")
	}
	sized := 0
	defer func() { stand.BeforeStep = nil }()
	var step func(what string)
	step = func(what string) {
		if what != "shm_unlink" || sized == 3 {
			return
		}
		sized++
		stand.BeforeStep = nil
		defer func() { stand.BeforeStep = step }()
		fd := systemOpen(t, fmt.Sprintf("shmkit-anonymous-%d", os.Geteuid()), syscall.O_RDWR, 0)
		if err := kernel.Truncate(fd, posixshm.ObjectPage); err != nil {
			t.Error(err)
		}
	}
	stand.BeforeStep = step
	var o object.Object
	err := error(object.RetryError{})
	for range 4 {
		if o, err = system.CreateAnonymous(2*posixshm.ObjectPage, false); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if st, err := o.Stat(); sized != 3 || err != nil || st.Size != 2*posixshm.ObjectPage {
		t.Errorf("object of %d bytes, %v, after %d others", st.Size, err, sized)
	}
}

// TestHuge asks for more than there are addresses, which the system must not be
// asked for.
func TestHuge(t *testing.T) {
	defer func() { stand.BeforeStep = nil }()
	for what, create := range map[string]func(size int64) (*shm.Segment, error){
		"Create":     func(size int64) (*shm.Segment, error) { return shm.Create("", size, shm.Sparse()) },
		"Headerless": func(size int64) (*shm.Segment, error) { return shm.Create("", size, shm.Headerless()) },
		"Anonymous":  func(size int64) (*shm.Segment, error) { return shm.Anonymous(size) },
	} {
		for _, size := range []int64{1<<47 + 1, 1 << 62} {
			stand.BeforeStep = func(call string) { t.Errorf("%s of %d bytes calls %s", what, size, call) }
			if _, err := create(size); !errors.Is(err, shm.ErrNoSpace) {
				t.Errorf("%s of %d bytes: %v", what, size, err)
			}
		}
	}
}

// TestAnonymousInSandbox has the system not say when this process began, which
// nothing but a lock page needs to know.
func TestAnonymousInSandbox(t *testing.T) {
	defer system.SetSelf(func() (uint64, error) { return 0, syscall.EPERM })()
	seg, err := shm.Anonymous(100)
	if err != nil {
		t.Fatal(err)
	}
	defer seg.Close()
	f, err := seg.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	peer, err := shm.FromFile(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := peer.Close(); err != nil {
		t.Error(err)
	}
}

// TestSelfAgain has the system not say when this process began, once.
func TestSelfAgain(t *testing.T) {
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	system.ForgetSelf()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 0, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	_, err := system.Self()
	syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old)
	if err == nil {
		t.Fatal("it said so without a descriptor")
	}
	start, err := kernel.StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if token, err := system.Self(); err != nil || token != system.Token(os.Getpid(), start) {
		t.Errorf("token %d, %v", token, err)
	}
}
