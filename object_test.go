package shm_test

import (
	"testing"

	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/object/objecttest"
)

// TestContract holds the System in use to what this package builds on.
func TestContract(t *testing.T) {
	if object.Current == object.System(object.Unsupported{}) {
		t.Skip("no shared memory on this system")
	}
	objecttest.Run(t, object.Current)
}
