package posixshm_test

import (
	"os"
	"testing"

	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/posixshm"
)

func TestMain(m *testing.M) {
	system = object.Current.(*posixshm.System) // that package shm has set
	kernel = system.Kernel()
	os.Exit(m.Run())
}
