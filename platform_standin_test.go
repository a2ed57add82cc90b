//go:build linux && standin

package shm

import (
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
