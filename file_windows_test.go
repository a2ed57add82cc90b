package shm_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/windows"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	sections "github.com/shmkit/shm/internal/section"
)

// sectionOf returns the name of the section that f is open on.
func sectionOf(t testing.TB, f *os.File) string {
	t.Helper()
	name, err := sections.Name(windows.Handle(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func mustBeNoSection(t testing.TB, name string) {
	t.Helper()
	if names, err := sections.Names(); err != nil || slices.Contains(names, name) {
		t.Errorf("section is there: %v, %v", names, err)
	}
}

func TestAnonymousSection(t *testing.T) {
	for _, opts := range [][]shm.Option{nil, {shm.Sparse()}, {shm.Prefault()}} {
		seg := anonymous(t, 10001, opts...)
		if seg.Name() != "" || seg.Cap() != 10001 || seg.Size() != 10001 || seg.Refs() != 1 || seg.Bytes()[10000] != 0 {
			t.Errorf("created %q, %d of %d bytes, %d references", seg.Name(), seg.Size(), seg.Cap(), seg.Refs())
		}
		f, err := seg.File()
		if err != nil {
			t.Fatal(err)
		}
		peer := take(t, f)
		seg.WriteAt([]byte("shared"), 10)
		if got := string(peer.Bytes()[10:16]); got != "shared" || seg.Refs() != 2 {
			t.Errorf("holds %q, %d references", got, seg.Refs())
		}
		mustFail(t, seg.Unlink(), "", fs.ErrNotExist)

		// To read only, by the kernel's word.
		reader := take(t, f, shm.ReadOnly())
		readFile, err := reader.File()
		if err != nil {
			t.Fatal(err)
		}
		_, err = shm.FromFile(readFile)
		mustFail(t, err, "", fs.ErrPermission)
		uncounted := take(t, readFile, shm.ReadOnly())
		if _, err := uncounted.Write([]byte("x")); !errors.Is(err, shm.ErrReadOnly) || seg.Refs() != 3 {
			t.Errorf("written: %v, %d references", err, seg.Refs())
		}

		name := sectionOf(t, f)
		if list, err := shm.List(); err != nil || slices.ContainsFunc(list, func(i shm.Info) bool { return i.Name == "" || i.Name[0] == '!' }) {
			t.Errorf("list: %+v, %v", list, err)
		}
		errs := errors.Join(seg.Close(), peer.Close(), reader.Close(), uncounted.Close(), readFile.Close())
		again := take(t, f)
		if got := string(again.Bytes()[10:16]); got != "shared" {
			t.Errorf("the file keeps %q", got)
		}
		if err := errors.Join(errs, again.Close(), f.Close()); err != nil {
			t.Error(err)
		}
		mustBeNoSection(t, name)
		_, err = shm.FromFile(f)
		mustFail(t, err, "", fs.ErrClosed)
	}
}

func TestAnonymousSectionErrors(t *testing.T) {
	for _, size := range []int64{0, -1, math.MinInt64} {
		_, err := shm.Anonymous(size)
		mustFail(t, err, "", fs.ErrInvalid)
	}
	for _, size := range []int64{math.MaxInt64, 1 << 60} {
		_, err := shm.Anonymous(size)
		mustFail(t, err, "", shm.ErrNoSpace)
	}
	for _, o := range []shm.Option{nil, shm.ReadOnly(), shm.Persistent(), shm.Headerless(), shm.Perm(0o600)} {
		_, err := shm.Anonymous(1, o)
		mustFail(t, err, "", fs.ErrInvalid)
	}
}

// heir attaches to what it has inherited.
var heir = proctest.Register("heir", func(p *proctest.Parent) error {
	n, err := strconv.ParseUint(p.Args[0], 10, 64)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(n), "inherited")
	defer f.Close()
	seg, err := shm.FromFile(f)
	if err != nil {
		return err
	}
	seg.WriteAt([]byte("from the child"), 0)
	p.Say("%s, %d references", seg.Name(), seg.Refs())
	p.Hear()
	return seg.Close()
})

func TestSectionToChild(t *testing.T) {
	testSectionToChild(t, anonymous(t, 100), "inherited")
	named := block(t, 100)
	testSectionToChild(t, named, named.Name())
}

func testSectionToChild(t *testing.T, seg *shm.Segment, name string) {
	f := file(t, seg)
	for _, killed := range []bool{false, true} {
		h := windows.Handle(f.Fd())
		if err := windows.SetHandleInformation(h, windows.HANDLE_FLAG_INHERIT, windows.HANDLE_FLAG_INHERIT); err != nil {
			t.Fatal(err)
		}
		cmd := proctest.Command(heir, fmt.Sprint(uint64(h)))
		cmd.SysProcAttr = &syscall.SysProcAttr{AdditionalInheritedHandles: []syscall.Handle{syscall.Handle(h)}}
		child := proctest.StartCommand(t, cmd)
		child.Expect(name + ", 2 references")
		if got := string(seg.Bytes()[:14]); got != "from the child" {
			t.Errorf("holds %q", got)
		}
		if killed {
			child.Kill()
		} else {
			child.Wait()
		}
	}
	section := sectionOf(t, f)
	if err := errors.Join(seg.Close(), f.Close()); err != nil {
		t.Error(err)
	}
	mustBeNoSection(t, section)
}

// FromFile takes nothing for a block that is none.
func TestFromHandleHostile(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	disk, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	if err := disk.Truncate(8192); err != nil {
		t.Fatal(err)
	}
	file := func(h windows.Handle, err error) *os.File {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(h), "")
		t.Cleanup(func() { f.Close() })
		return f
	}
	const reserve = 0x04000000 // SEC_RESERVE
	for what, f := range map[string]*os.File{
		"a pipe":          r,
		"a file":          disk,
		"an event":        file(windows.CreateEvent(nil, 0, 0, nil)),
		"a process":       file(windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, uint32(os.Getpid()))),
		"a mapped file":   file(windows.CreateFileMapping(windows.Handle(disk.Fd()), nil, windows.PAGE_READWRITE, 0, 0, nil)),
		"memory to come":  file(windows.CreateFileMapping(windows.InvalidHandle, nil, windows.PAGE_READWRITE|reserve, 0, 8192, nil)),
		"no block's page": file(windows.CreateFileMapping(windows.InvalidHandle, nil, windows.PAGE_READWRITE, 0, 8192, nil)),
	} {
		t.Run(what, func(t *testing.T) {
			if _, err := shm.FromFile(f); !errors.Is(err, shm.ErrNotSegment) {
				t.Error(err)
			}
			if what == "no block's page" {
				return
			}
			if _, err := shm.FromFile(f, shm.Headerless()); !errors.Is(err, shm.ErrNotSegment) {
				t.Errorf("without header: %v", err)
			}
		})
	}
	raw := take(t, file(windows.CreateFileMapping(windows.InvalidHandle, nil, windows.PAGE_READWRITE, 0, 8192, nil)), shm.Headerless())
	if raw.Size() != 8192 {
		t.Errorf("%d bytes", raw.Size())
	}
}

// A block with a name is one more attachment, and ends with the last.
func TestFromNamedSection(t *testing.T) {
	seg := block(t, 100)
	name := seg.Name()
	f := file(t, seg)
	peer := take(t, f)
	reader := take(t, f, shm.ReadOnly())
	if peer.Name() != name || reader.Name() != name || seg.Refs() != 3 {
		t.Errorf("called %q, %q, %d references", peer.Name(), reader.Name(), seg.Refs())
	}
	opened := attach(t, name) // its handle is not the creator's
	if err := errors.Join(take(t, file(t, opened)).Close(), opened.Close()); err != nil {
		t.Error(err)
	}
	toRead := file(t, reader)
	_, err := shm.FromFile(toRead)
	mustFail(t, err, name, fs.ErrPermission)
	uncounted := take(t, toRead, shm.ReadOnly())
	if err := errors.Join(seg.Close(), peer.Close(), reader.Close()); err != nil {
		t.Error(err)
	}
	attach(t, name).Close() // kept by the one that may only read
	if err := uncounted.Close(); err != nil {
		t.Error(err)
	}
	_, err = shm.FromFile(f) // who comes next ends what that one could not
	mustFail(t, err, name, fs.ErrNotExist)
	mustBeGone(t, name)

	// Without a name, but in use; and another block has the name.
	seg = block(t, 100)
	f = file(t, seg)
	if err := seg.Unlink(); err != nil {
		t.Fatal(err)
	}
	other, err := shm.Create(seg.Name(), 100)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	peer = take(t, f)
	seg.WriteAt([]byte("first"), 0)
	if got := string(peer.Bytes()[:5]); got != "first" {
		t.Errorf("holds %q", got)
	}
	mustFail(t, peer.Unlink(), "", fs.ErrNotExist)
	if err := errors.Join(seg.Close(), peer.Close()); err != nil {
		t.Error(err)
	}
	attach(t, other.Name()).Close()
	_, err = shm.FromFile(f)
	mustFail(t, err, seg.Name(), fs.ErrNotExist)
}

// The longest name there can be comes with the handle.
func TestFromSectionLongName(t *testing.T) {
	name := strings.Repeat("n", 240-len("abcdefgh")) + strings.ToLower(rand.Text()[:8])
	seg, err := shm.Create(name, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer seg.Close()
	if peer := take(t, file(t, seg)); peer.Name() != name {
		t.Errorf("called %q", peer.Name())
	}
}

func TestFromNamedSectionHeaderless(t *testing.T) {
	seg := block(t, 100, shm.Headerless())
	f := file(t, seg)
	_, err := shm.FromFile(f)
	mustFail(t, err, seg.Name(), shm.ErrNotSegment)
	peer := take(t, f, shm.Headerless())
	if seg.WriteAt([]byte("raw"), 0); string(peer.Bytes()[:3]) != "raw" || peer.Name() != seg.Name() {
		t.Errorf("%q holds %q", peer.Name(), peer.Bytes()[:3])
	}
}
