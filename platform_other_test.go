//go:build !linux && !darwin && !windows

package shm_test

import (
	"errors"
	"testing"

	"github.com/shmkit/shm"
)

// TestUnsupported calls every function that could come by a block.
func TestUnsupported(t *testing.T) {
	for name, err := range map[string]error{
		"Create":       second(shm.Create("a", 1)),
		"Open":         second(shm.Open("a")),
		"OpenOrCreate": func() error { _, _, err := shm.OpenOrCreate("a", 1); return err }(),
		"Unlink":       shm.Unlink("a"),
		"Stat":         second(shm.Stat("a")),
		"List":         second(shm.List()),
		"Reap":         second(shm.Reap()),
	} {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
