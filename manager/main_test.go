package manager_test

import (
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
)

func TestMain(m *testing.M) {
	proctest.Main()
	os.Exit(proctest.Verify(m.Run()))
}

func skipUnsupported(t testing.TB) {
	t.Helper()
	seg, err := shm.Create("", 1)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip("no shared memory on this system")
	}
	if err != nil {
		t.Fatal(err)
	}
	seg.Close()
}

func unique() string { return "shmmgr-" + strings.ToLower(rand.Text()[:16]) }

func second[T any](_ T, err error) error { return err }

// mustFail checks that err is a *fs.PathError for name that is every one of want.
func mustFail(t testing.TB, err error, name string, want ...error) {
	t.Helper()
	var path *fs.PathError
	if !errors.As(err, &path) || path.Path != name {
		t.Errorf("error %v (%T) is not a *fs.PathError for %q", err, err, name)
	}
	for _, w := range want {
		if !errors.Is(err, w) {
			t.Errorf("error %q is not %q", err, w)
		}
	}
}

func mustNotExist(t testing.TB, name string) {
	t.Helper()
	if info, err := shm.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("block is there: %+v, %v", info, err)
	}
}

// write and read use a block as its users do.
func write(t testing.TB, seg *shm.Segment, text string) {
	t.Helper()
	if _, err := seg.WriteAt([]byte(text), 0); err != nil {
		t.Error(err)
	}
}

func read(t testing.TB, seg *shm.Segment, n int) string {
	t.Helper()
	b := make([]byte, n)
	if _, err := seg.ReadAt(b, 0); err != nil && err != io.EOF {
		t.Error(err)
	}
	return string(b)
}

// must returns the Segment of a call that must succeed; the test closes it.
func must(t testing.TB) func(*shm.Segment, error) *shm.Segment {
	return func(seg *shm.Segment, err error) *shm.Segment {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { seg.Close() })
		return seg
	}
}
