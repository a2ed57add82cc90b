package shm_test

import (
	"os"
	"testing"

	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/shmtest"
)

// ignored are the blocks that tests of dropped Segments have dropped.
var ignored []string

func TestMain(m *testing.M) {
	proctest.Main()
	exitCode := m.Run()
	var opts []shmtest.Option
	for _, name := range ignored {
		opts = append(opts, shmtest.IgnoreName(name))
	}
	exitCode = proctest.Verify(exitCode, opts...)
	os.Exit(exitCode)
}
