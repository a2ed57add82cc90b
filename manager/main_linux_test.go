package manager_test

import (
	"os"
	"testing"

	"github.com/shmkit/shm/internal/standin"
)

// onTmpfs skips a test of what memory is on Linux where the tests run on the
// stand-in for darwin's kernel.
func onTmpfs(t testing.TB) {
	t.Helper()
	if standin.Used() != nil {
		t.Skip("memory is not of Linux's kind here")
	}
}

// mustLeaveNothing has the processes that are started from now on make the objects
// of the stand-in in a directory of their own, and returns a function that checks
// that there is nothing in it. Without the stand-in there is nothing to check.
func mustLeaveNothing(t *testing.T) (check func()) {
	if standin.Used() == nil {
		return func() {}
	}
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
