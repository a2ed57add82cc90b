//go:build linux && standin

package shm

import (
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
