package shm_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
)

func TestMain(m *testing.M) {
	proctest.Main()
	exitCode := m.Run()
	opts, err := verifyDropped()
	if err != nil && exitCode == 0 {
		fmt.Fprintln(os.Stderr, err)
		exitCode = 1
	}
	exitCode = proctest.Verify(exitCode, opts...)
	os.Exit(exitCode)
}

// block creates a block for the time of the test.
func block(t testing.TB, size int64, opts ...shm.Option) *shm.Segment {
	t.Helper()
	seg, err := shm.Create("", size, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		seg.Unlink() // a Persistent or Headerless one stays otherwise
		seg.Close()
	})
	return seg
}

// mustBeGone checks that there is no such name. It looks without attaching,
// which would put right what is wrong.
func mustBeGone(t testing.TB, name string) {
	t.Helper()
	if info, err := shm.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("%s: %+v, %v", name, info, err)
	}
}

// untilGone calls reap until there is no such name: a block that another process
// is just reaping is passed over, and the first Create of a process looks at no
// more names than it can in a short time.
func untilGone(t testing.TB, name string, reap func()) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		reap()
		if _, err := shm.Stat(name); errors.Is(err, fs.ErrNotExist) || time.Now().After(end) {
			return
		}
	}
}

// mustBeStale checks that nobody is attached to a block. Another process may just
// be reaping it, for which it looks attached, or may have done so.
func mustBeStale(t testing.TB, name string) {
	t.Helper()
	info, err := shm.Stat(name)
	for end := time.Now().Add(time.Minute); err == nil && info.Attached && time.Now().Before(end); {
		info, err = shm.Stat(name)
	}
	if err == nil && !info.Stale() || err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("not stale: %+v, %v", info, err)
	}
}

// mustLead checks that the name leads to the block, and that somebody is
// attached to it.
func mustLead(t testing.TB, name, id string) {
	t.Helper()
	info, err := shm.Stat(name)
	if err != nil || fmt.Sprintf("%x", info.ID) != id || !info.Attached {
		t.Fatalf("%s should lead to %s: %+v, %v", name, id, info, err)
	}
}

// rounds returns n, or less in a short run, or on Windows, where it is all about
// starting processes: under Wine that takes a hundred times as long.
func rounds(n int) int {
	if testing.Short() {
		n /= 10
	}
	if runtime.GOOS == "windows" {
		n /= 10
	}
	return max(n, 1)
}

// attach opens name for the time of the test.
func attach(t testing.TB, name string, opts ...shm.Option) *shm.Segment {
	t.Helper()
	seg, err := shm.Open(name, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { seg.Close() })
	return seg
}

func anonymous(t testing.TB, size int64, opts ...shm.Option) *shm.Segment {
	t.Helper()
	seg, err := shm.Anonymous(size, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { seg.Close() })
	return seg
}

// file returns a file of the Segment, which is closed at the end of the test.
func file(t testing.TB, seg *shm.Segment) *os.File {
	t.Helper()
	f, err := seg.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func take(t testing.TB, f *os.File, opts ...shm.Option) *shm.Segment {
	t.Helper()
	seg, err := shm.FromFile(f, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { seg.Close() })
	return seg
}

// unique returns a name that no block has.
func unique(t testing.TB) string {
	t.Helper()
	seg := block(t, 1)
	name := seg.Name()
	if err := seg.Close(); err != nil {
		t.Fatal(err)
	}
	return name
}

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

// needsList skips a test where the system tells nobody what names there are.
func needsList(t *testing.T) {
	t.Helper()
	if _, err := shm.List(); errors.Is(err, errors.ErrUnsupported) {
		t.Skip("blocks cannot be listed on this system")
	}
}

// needsPersistent skips a test where the system ends every block with its last
// attachment.
func needsPersistent(t *testing.T) {
	t.Helper()
	if shm.NamesStay() {
		_, err := shm.Create("", 10, shm.Persistent())
		mustFail(t, err, "", errors.ErrUnsupported)
		t.Skip("no Persistent blocks on this system")
	}
}

// mustSpare checks that Reap leaves a block alone.
func mustSpare(t testing.TB, name string) {
	t.Helper()
	names, err := shm.Reap()
	if err != nil && !errors.Is(err, errors.ErrUnsupported) || slices.Contains(names, name) {
		t.Errorf("Reap: %v, %v", names, err)
	}
}

func mustNotExist(t testing.TB, name string) {
	t.Helper()
	_, err := shm.Open(name)
	mustFail(t, err, name, fs.ErrNotExist)
	if _, err := shm.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }
