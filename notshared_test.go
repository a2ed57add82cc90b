//go:build mips || mipsle || (arm && !arm.7)

package shm_test

import (
	"errors"
	"os"
	"testing"

	"github.com/shmkit/shm"
)

// TestNotShared runs where 64-bit atomic operations are those of one process.
func TestNotShared(t *testing.T) {
	wantUnsupported := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
	wantUnsupported("Create", second(shm.Create("", 100)))
	wantUnsupported("Open", second(shm.Open("name")))
	_, _, err := shm.OpenOrCreate("name", 100)
	wantUnsupported("OpenOrCreate", err)
	wantUnsupported("Anonymous", second(shm.Anonymous(100)))
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	wantUnsupported("FromFile", second(shm.FromFile(f)))
	seg, err := shm.Create("", 100, shm.Headerless())
	if err != nil {
		t.Fatal(err)
	}
	defer shm.Unlink(seg.Name())
	defer seg.Close()
	if n, err := seg.WriteAt([]byte("raw"), 97); n != 3 || err != nil {
		t.Errorf("WriteAt: %d, %v", n, err)
	}
}
