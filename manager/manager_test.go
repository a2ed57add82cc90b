package manager_test

import (
	"context"
	"errors"
	"io/fs"
	"runtime"
	"sync"
	"testing"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/manager"
)

func newManager(t *testing.T) *manager.Manager {
	t.Helper()
	skipUnsupported(t)
	m := manager.New(t.Context())
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func names(t testing.TB, m interface {
	List() ([]manager.Info, error)
}) (names []string) {
	t.Helper()
	list, err := m.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range list {
		names = append(names, info.Name)
	}
	return names
}

var reader = proctest.Register("reader", func(p *proctest.Parent) error {
	seg, err := shm.Open(p.Args[0])
	if err != nil {
		return err
	}
	defer seg.Close()
	b := make([]byte, 4)
	if _, err := seg.ReadAt(b, 0); err != nil {
		return err
	}
	p.Say("%s", b)
	return nil
})

// A block of a manager stays when nobody else is attached, for this process and
// for others, and ends with the manager.
func TestManager(t *testing.T) {
	m := newManager(t)
	name := unique()
	seg := must(t)(m.Create(name, 1000))
	if seg.Name() != name || seg.Cap() != 1000 {
		t.Errorf("created %q with %d bytes", seg.Name(), seg.Cap())
	}
	write(t, seg, "kept")
	seg.Close()
	if got := read(t, must(t)(m.Open("/"+name, shm.ReadOnly())), 4); got != "kept" {
		t.Errorf("holds %q", got)
	}
	other := proctest.Start(t, reader, name)
	other.Expect("kept")
	other.Wait()
	again, created, err := m.OpenOrCreate(name, 1)
	if err != nil || created {
		t.Fatalf("created %v, %v", created, err)
	}
	again.Close()
	list, err := m.List()
	if err != nil || len(list) != 1 || list[0].Name != name || list[0].Cap != 1000 || list[0].Leased {
		t.Errorf("list: %+v, %v", list, err)
	}
	attached := must(t)(m.Open(name))
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	mustNotExist(t, name)
	if got := read(t, attached, 4); got != "kept" {
		t.Errorf("holds %q after the manager", got)
	}
	if err := m.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	mustFail(t, second(m.Create(name, 1)), name, fs.ErrClosed)
	mustFail(t, second(m.Open(name)), name, fs.ErrClosed)
	_, _, err = m.OpenOrCreate(name, 1)
	mustFail(t, err, name, fs.ErrClosed)
	mustFail(t, m.Release(name), name, fs.ErrClosed)
	mustFail(t, second(m.List()), "", fs.ErrClosed)
	mustNotExist(t, name)
}

func TestManagerRelease(t *testing.T) {
	m := newManager(t)
	a, b := must(t)(m.Create("", 100)), must(t)(m.Create("", 100))
	if err := m.Release(a.Name()); err != nil {
		t.Error(err)
	}
	mustNotExist(t, a.Name())
	mustFail(t, m.Release(a.Name()), a.Name(), fs.ErrNotExist)
	mustFail(t, second(m.Open(a.Name())), a.Name(), fs.ErrNotExist)
	if got := names(t, m); len(got) != 1 || got[0] != b.Name() {
		t.Errorf("list: %v", got)
	}
	write(t, a, "still usable")
	mustFail(t, second(m.Create(b.Name(), 1)), b.Name(), fs.ErrExist)
	mustFail(t, second(m.Create("..", 1)), "..", fs.ErrInvalid)
	missing := unique()
	mustFail(t, second(m.Open(missing)), missing, fs.ErrNotExist)
}

// What is gone already keeps nothing else from going.
func TestManagerSomeGone(t *testing.T) {
	m := newManager(t)
	var segs []*shm.Segment
	for range 3 {
		segs = append(segs, must(t)(m.Create("", 100)))
	}
	if err := shm.Unlink(segs[1].Name()); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	for _, seg := range segs {
		mustNotExist(t, seg.Name())
	}
}

// A block that has taken the name of one of the manager's is not the manager's.
func TestManagerReplaced(t *testing.T) {
	m := newManager(t)
	seg := must(t)(m.Create("", 100))
	name := seg.Name()
	if err := shm.Unlink(name); err != nil {
		t.Fatal(err)
	}
	foreign := must(t)(shm.Create(name, 200))
	mustFail(t, second(m.Open(name)), name, fs.ErrNotExist)
	if err := m.Release(name); err != nil {
		t.Error(err)
	}
	must(t)(shm.Open(name)).Close()

	// It is when the manager is asked to keep it, but not for it to unlink.
	kept, created, err := m.OpenOrCreate(name, 1)
	if err != nil || created {
		t.Fatalf("created %v, %v", created, err)
	}
	errs := errors.Join(kept.Close(), foreign.Close())
	must(t)(shm.Open(name)).Close()
	other := must(t)(shm.Open(name))
	if err := errors.Join(errs, m.Close()); err != nil {
		t.Error(err)
	}
	must(t)(shm.Open(name)).Close()
	other.Close()
	mustNotExist(t, name)
}

func TestManagerOptions(t *testing.T) {
	m := newManager(t)
	for _, o := range []shm.Option{shm.Persistent(), shm.Headerless(), shm.ReadOnly(), nil} {
		name := unique()
		want := fs.ErrInvalid
		if runtime.GOOS == "windows" && o == shm.Persistent() {
			want = errors.ErrUnsupported // altogether
		}
		mustFail(t, second(m.Create(name, 1, o)), name, want)
		_, _, err := m.OpenOrCreate(name, 1, o)
		mustFail(t, err, name, want)
		mustNotExist(t, name)
	}
	must(t)(m.Create("", 1, shm.Sparse(), shm.Perm(0o640)))
	if n := len(names(t, m)); n != 1 {
		t.Errorf("%d blocks", n)
	}
}

func TestManagerContext(t *testing.T) {
	skipUnsupported(t)
	ctx, cancel := context.WithCancel(t.Context())
	m := manager.New(ctx)
	seg := must(t)(m.Create("", 100))
	cancel()
	for second(m.List()) == nil {
		runtime.Gosched()
	}
	if err := m.Close(); err != nil { // waits for the other
		t.Error(err)
	}
	mustNotExist(t, seg.Name())

	m = manager.New(ctx)
	m.Close()
	mustFail(t, second(m.Create("", 1)), "", fs.ErrClosed)
}

func TestManagerConcurrent(t *testing.T) {
	m := newManager(t)
	shared := []string{unique(), unique()}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				name := shared[j%2]
				seg, _, err := m.OpenOrCreate(name, 100)
				if err != nil {
					if !errors.Is(err, fs.ErrClosed) {
						t.Error(err)
					}
					return
				}
				seg.Close()
				if other, err := m.Open(name); err == nil {
					other.Close()
				}
				if i == 0 {
					m.Release(name)
				}
				if i == 1 && j == 40 {
					m.Close()
				}
			}
		})
	}
	wg.Wait()
	m.Close()
	for _, name := range shared {
		mustNotExist(t, name)
	}
}

// An OpenOrCreate whose block is unlinked whenever it has it ends.
func TestManagerOpenOrCreateBusy(t *testing.T) {
	skipUnsupported(t)
	if runtime.GOOS == "windows" {
		t.Skip("nothing can be unlinked on Windows")
	}
	manager.SetAttempts(t, 1)
	m := manager.New(t.Context())
	defer m.Close()
	name := unique()
	var unlinking sync.WaitGroup
	end := make(chan struct{})
	unlinking.Go(func() {
		for {
			select {
			case <-end:
				return
			default:
				shm.Unlink(name)
			}
		}
	})
	defer unlinking.Wait()
	defer close(end)
	eventually(t, "the block is unlinked in between", func() bool {
		seg, _, err := m.OpenOrCreate(name, 100)
		if err == nil {
			seg.Close()
			m.Release(name)
			return false
		}
		mustFail(t, err, name, shm.ErrBusy)
		return true
	})
}
