package shm_test

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/shmtest"
)

// ignored are the blocks that tests of dropped Segments have dropped.
var ignored []string

// cleanUp runs when all tests are done.
var cleanUp = func() {}

func TestMain(m *testing.M) {
	proctest.Main()
	exitCode := m.Run()
	var opts []shmtest.Option
	for _, name := range ignored {
		opts = append(opts, shmtest.IgnoreName(name))
	}
	for _, err := range []error{shmtest.Find(opts...), goleak.Find()} {
		if exitCode == 0 && err != nil {
			fmt.Fprintln(os.Stderr, err)
			exitCode = 1
		}
	}
	cleanUp()
	os.Exit(exitCode)
}
