//go:build linux && standin

package shm

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/shmkit/shm/internal/lockpage"
)

// TestReadyAtLast has a creator be done just when another process has given it
// up and is about to take the mutex.
func TestReadyAtLast(t *testing.T) {
	name := systemName(t)[1:]
	o, err := createObject(name, objectPage, config{perm: 0o600})
	if err != nil {
		t.Fatal(err)
	}
	defer o.close()
	defer o.unlock()
	o.page.Unlock() // as before the creator takes it
	defer func(step func(string)) { lockpage.Step = step }(lockpage.Step)
	lockpage.Step = func(what string) {
		if what != "mutex" || o.unborn == "" {
			return
		}
		lockpage.Step = func(string) {}
		o.page.Lock()
		o.publish(name)
	}
	if !isBlock(name) {
		t.Error("a block is none")
	}
	if o.unborn != "" {
		t.Fatal("not taken for abandoned at all")
	}
	if named, err := o.named(name); err != nil || !named {
		t.Errorf("named: %v, %v", named, err)
	}
}

// TestAnonymousSizedByOthers has somebody set the size of an object that is to be
// an anonymous block while that has a name, which nobody but root can, and keep
// it open: it becomes no block.
func TestAnonymousSizedByOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can open it: run as root")
	}
	defer func(step func(string)) { lockpage.Step = step }(lockpage.Step)
	sized := 0
	lockpage.Step = func(what string) {
		if what != "shm_unlink" || sized == 3 {
			return
		}
		sized++
		step := lockpage.Step
		lockpage.Step = func(string) {}
		defer func() { lockpage.Step = step }()
		fd := systemOpen(t, fmt.Sprintf("shmkit-anonymous-%d", os.Geteuid()), syscall.O_RDWR, 0)
		if err := sysFtruncate(fd, objectPage); err != nil {
			t.Error(err)
		}
	}
	o, err := createAnonymous(2*objectPage, false)
	if err != nil {
		t.Fatal(err)
	}
	defer o.close()
	if sized != 3 || o.size != 2*objectPage {
		t.Errorf("object of %d bytes after %d others", o.size, sized)
	}
}

// TestHuge asks for more than there are addresses, which the system must not be
// asked for.
func TestHuge(t *testing.T) {
	defer func(step func(string)) { lockpage.Step = step }(lockpage.Step)
	for what, create := range map[string]func(size int64) (*Segment, error){
		"Create":     func(size int64) (*Segment, error) { return Create("", size, Sparse()) },
		"Headerless": func(size int64) (*Segment, error) { return Create("", size, Headerless()) },
		"Anonymous":  func(size int64) (*Segment, error) { return Anonymous(size) },
	} {
		for _, size := range []int64{1<<47 + 1, 1 << 62} {
			lockpage.Step = func(call string) { t.Errorf("%s of %d bytes calls %s", what, size, call) }
			if _, err := create(size); !errors.Is(err, ErrNoSpace) {
				t.Errorf("%s of %d bytes: %v", what, size, err)
			}
		}
	}
}

// TestAnonymousInSandbox has the system not say when this process began, which
// nothing but a lock page needs to know.
func TestAnonymousInSandbox(t *testing.T) {
	defer func(f func() (uint64, error)) { self = f }(self)
	self = func() (uint64, error) { return 0, syscall.EPERM }
	seg, err := Anonymous(100)
	if err != nil {
		t.Fatal(err)
	}
	defer seg.Close()
	f, err := seg.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	peer, err := FromFile(f)
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
	defer selfToken.Store(selfToken.Swap(0))
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 0, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	_, err := self()
	syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old)
	if err == nil {
		t.Fatal("it said so without a descriptor")
	}
	start, err := sysStartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if token, err := self(); err != nil || token != newToken(os.Getpid(), start) {
		t.Errorf("token %d, %v", token, err)
	}
}
