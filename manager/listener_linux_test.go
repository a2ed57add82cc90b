package manager_test

import (
	"crypto/rand"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm/manager"
)

// An address need not be in the file system.
func TestAddressWithoutFile(t *testing.T) {
	onTmpfs(t)
	addr := "@shm-test-" + rand.Text()
	stop := serveAt(t, addr)
	if _, err := manager.Listen(addr); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("second listener: %v", err)
	}
	atWork(t, dial(t, addr))
	stop()
	mustFail(t, second(manager.Dial(t.Context(), addr)), addr, manager.ErrGone)
}
