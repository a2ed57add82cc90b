package shm_test

import (
	"testing"

	"github.com/shmkit/shm/internal/standin"
)

// onTmpfs skips a test of what blocks are on Linux where the tests run on the
// stand-in for darwin's kernel.
func onTmpfs(t testing.TB) {
	t.Helper()
	if standin.Used() != nil {
		t.Skip("blocks are not files on a tmpfs here")
	}
}
