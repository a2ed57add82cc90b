//go:build linux && standin

package manager_test

import (
	"errors"
	"os"
	"testing"

	"github.com/shmkit/shm/manager"
)

// As in package shm: the objects are in a directory of this run's own, unless
// the environment names one.
func init() {
	if os.Getenv("SHM_STANDIN") != "" {
		return
	}
	dir, err := os.MkdirTemp("/dev/shm", ".standin-")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		panic(err)
	}
	os.Setenv("SHM_STANDIN", dir)
	cleanUp = func() { os.RemoveAll(dir) }
}

// mustLeaveNothing has the processes that are started from now on make their
// objects in a directory of their own, and returns a function that checks that
// there is nothing in it.
func mustLeaveNothing(t *testing.T) (check func()) {
	dir, err := os.MkdirTemp("/dev/shm", ".standin-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Setenv("SHM_STANDIN", dir)
	return func() {
		t.Helper()
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
}

func TestNoAddressWithoutFile(t *testing.T) {
	if _, err := manager.Listen("@shm"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Listen: %v", err)
	}
	mustFail(t, second(manager.Dial(t.Context(), "@shm")), "@shm", errors.ErrUnsupported)
}
