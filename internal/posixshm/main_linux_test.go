package posixshm_test

import (
	"os"
	"testing"

	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/object/objecttest"
	"github.com/shmkit/shm/internal/posixshm"
	"github.com/shmkit/shm/internal/standin"
)

// There are no such objects on Linux, so the tests run on the stand-in.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("/dev/shm", ".standin-")
	if err != nil {
		panic(err)
	}
	stand = &standin.Kernel{Dir: dir}
	kernel = stand
	system = posixshm.New(kernel)
	object.Current = system
	exitCode := m.Run()
	os.RemoveAll(dir)
	os.Exit(exitCode)
}

var stand *standin.Kernel

func TestContract(t *testing.T) {
	objecttest.Run(t, system)
	stand.Looks = true
	defer func() { stand.Looks = false }()
	t.Run("Looks", func(t *testing.T) { objecttest.Run(t, system) })
}
