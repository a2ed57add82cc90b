package shm_test

import (
	"io/fs"
	"testing"

	"github.com/shmkit/shm"
)

// TestErrorPath has errors name the block as its Segment does.
func TestErrorPath(t *testing.T) {
	name := unique(t)
	given := "/" + name
	mustFail(t, second(shm.Open(given)), name, fs.ErrNotExist)
	mustFail(t, second(shm.Stat(given)), name, fs.ErrNotExist)
	mustFail(t, shm.Unlink(given), name, fs.ErrNotExist)
	mustFail(t, second(shm.Create(given, 0)), name, fs.ErrInvalid)
	_, _, err := shm.OpenOrCreate(given, 0)
	mustFail(t, err, name, fs.ErrInvalid)
	mustFail(t, second(shm.Create("//"+name, 1)), "//"+name, fs.ErrInvalid)
	mustFail(t, second(shm.Anonymous(0, shm.Label("frames"))), "frames", fs.ErrInvalid)
}
