package shm_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/internal/raw"
)

// inUse reports whether anything is mapped, or kept from being mapped, at &b[0].
func inUse(t testing.TB, b []byte) bool {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	addr := uintptr(raw.Pointer(b))
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
			t.Fatal(err)
		}
		if from <= addr && addr < to {
			return true
		}
	}
	return false
}

// TestBytesBudget closes Segments with slices until their addresses come to more
// than Close keeps: those that were closed first are free again.
func TestBytesBudget(t *testing.T) {
	onTmpfs(t)
	if !limited(t) {
		return
	}
	limit := shm.Revocable()
	if limit == 0 {
		t.Skip("Close keeps no addresses on this system")
	}
	lend := func(size int64) []byte {
		seg, err := shm.Create("", size, shm.Sparse())
		if err != nil {
			t.Fatal(err)
		}
		defer seg.Close()
		return seg.Bytes()
	}
	check := func(what string, want []bool, b ...[]byte) {
		t.Helper()
		var got []bool
		for _, b := range b {
			got = append(got, inUse(t, b))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: kept are %v, want %v", what, got, want)
		}
	}
	first, second := lend(limit/8*3), lend(limit/8*3)
	check("two", []bool{true, true}, first, second)
	check("one that is too large", []bool{true, true, false}, first, second, lend(limit+1))
	third := lend(limit / 8 * 3)
	check("three", []bool{false, true, true}, first, second, third)
	// The number is limited, too.
	small := lend(1)
	n := int(limit / (8 << 20))
	for range n - 1 {
		lend(1)
	}
	check("many", []bool{false, false, true}, second, third, small)
	lend(1)
	check("one more", []bool{false}, small)
}

// allocated returns how many pages of memory the file of seg has.
func allocated(t testing.TB, seg *shm.Segment) int64 {
	t.Helper()
	info, err := file(t, seg).Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512 / 4096
}

// readAll reads seg, which holds want, by all methods that there are to read.
func readAll(seg *shm.Segment, want []byte, dir string) error {
	var got bytes.Buffer
	check := func(what string, n int64, err error) error {
		if b := got.Bytes(); err != nil || n != int64(len(want)) || !bytes.Equal(b, want) {
			return fmt.Errorf("%s: %d bytes, %v, equal: %v", what, n, err, bytes.Equal(b, want))
		}
		got.Reset()
		_, err = seg.Seek(0, io.SeekStart)
		return err
	}
	for _, piece := range []int{512, 16 << 10, 100_000} {
		n, err := io.CopyBuffer(&got, struct{ io.Reader }{io.NewSectionReader(seg, 0, seg.Size())}, make([]byte, piece))
		if err := check(fmt.Sprint("ReadAt ", piece), n, err); err != nil {
			return err
		}
		n, err = io.CopyBuffer(struct{ io.Writer }{&got}, struct{ io.Reader }{seg}, make([]byte, piece))
		if err := check(fmt.Sprint("Read ", piece), n, err); err != nil {
			return err
		}
	}
	for i := 0; i < len(want); i += 4096 {
		seg.Seek(int64(i), io.SeekStart)
		if b, err := seg.ReadByte(); b != want[i] || err != nil {
			return fmt.Errorf("ReadByte at %d: %d, %v", i, b, err)
		}
	}
	seg.Seek(0, io.SeekStart)
	n, err := seg.WriteTo(struct{ io.Writer }{&got})
	if err := check("WriteTo", n, err); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		return err
	}
	defer f.Close()
	n, err = seg.WriteTo(f)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(f.Name())
	got.Write(b)
	if err := check("WriteTo a file", n, err); err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	piped := make(chan error)
	go func() {
		_, err := io.Copy(&got, r)
		piped <- err
	}()
	n, err = seg.WriteTo(w)
	err = errors.Join(err, w.Close(), <-piped, r.Close())
	if err := check("WriteTo a pipe", n, err); err != nil {
		return err
	}
	sum, wantSum := sha256.New(), sha256.Sum256(want)
	if n, err = seg.WriteTo(sum); err != nil || n != int64(len(want)) || !bytes.Equal(sum.Sum(nil), wantSum[:]) {
		return fmt.Errorf("WriteTo a hash: %d bytes, %v", n, err)
	}
	_, err = seg.Seek(0, io.SeekStart)
	return err
}

// sparseContent is what TestSparseRead has a block of n bytes hold.
func sparseContent(n int) []byte {
	b := make([]byte, n)
	copy(b, "first page")
	copy(b[n/2:], "middle")
	copy(b[n-4:], "last")
	return b
}

const sparseSize = 100 * 4096

var sparseReader = proctest.Register("sparse reader", func(p *proctest.Parent) error {
	seg, err := shm.Open(p.Args[0], shm.ReadOnly())
	if err != nil {
		return err
	}
	defer seg.Close()
	if err := readAll(seg, sparseContent(sparseSize), p.Args[1]); err != nil {
		return err
	}
	p.Say("read")
	p.Hear()
	return nil
})

// TestSparseRead reads Sparse blocks that have pages which were never written:
// reading takes no memory, and needs none.
func TestSparseRead(t *testing.T) {
	onTmpfs(t)
	if !privately(t, "tmpfs", "size=1m") {
		return
	}
	dir := t.TempDir()
	named := block(t, sparseSize, shm.Sparse(), shm.Perm(0o644))
	nameless := anonymous(t, sparseSize, shm.Sparse())
	for _, seg := range []*shm.Segment{named, nameless} {
		for off, b := range map[int64]string{0: "first page", sparseSize / 2: "middle", sparseSize - 4: "last"} {
			if _, err := seg.WriteAt([]byte(b), off); err != nil {
				t.Fatal(err)
			}
		}
		if n := allocated(t, seg); n != 4 { // with the header
			t.Fatalf("%d pages are allocated", n)
		}
	}
	segs := map[string]*shm.Segment{
		"creator":             named,
		"Open":                attach(t, named.Name()),
		"Open ReadOnly":       attach(t, named.Name(), shm.ReadOnly()),
		"Anonymous":           nameless,
		"FromFile":            take(t, file(t, nameless)),
		"FromFile ReadOnly":   take(t, file(t, nameless), shm.ReadOnly()),
		"FromFile of a named": take(t, file(t, named)),
	}
	for _, full := range []bool{false, true} {
		if full {
			defer fill(t, 0)()
		}
		for what, seg := range segs {
			if err := readAll(seg, sparseContent(sparseSize), dir); err != nil {
				t.Errorf("%s, full: %v: %v", what, full, err)
			}
			if n := allocated(t, seg); n != 4 {
				t.Errorf("%s, full: %v: %d pages are allocated after reading", what, full, n)
			}
		}
	}
}

// TestSparseReadByStranger is TestSparseRead in a process of another user, which
// may only read the block.
func TestSparseReadByStranger(t *testing.T) {
	onTmpfs(t)
	mustRoot(t, "start processes of another user")
	dir, err := os.MkdirTemp("", "shm")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	seg := block(t, sparseSize, shm.Sparse(), shm.Perm(0o644))
	if _, err := seg.WriteAt(sparseContent(sparseSize)[:10], 0); err != nil {
		t.Fatal(err)
	}
	seg.WriteAt([]byte("middle"), sparseSize/2)
	seg.WriteAt([]byte("last"), sparseSize-4)
	cmd := proctest.Command(sparseReader, seg.Name(), dir)
	cmd.Path = "/proc/self/exe" // its directory is closed to other users
	stranger(cmd)
	c := proctest.StartCommand(t, cmd)
	c.Expect("read")
	if n := allocated(t, seg); n != 4 {
		t.Errorf("%d pages are allocated after reading", n)
	}
	c.Wait()
}

// TestSparseTruncate takes memory by reading the slice of View, of pages that
// were never written: Truncate gives it back.
func TestSparseTruncate(t *testing.T) {
	onTmpfs(t)
	for _, seg := range []*shm.Segment{block(t, sparseSize, shm.Sparse()), anonymous(t, sparseSize, shm.Sparse())} {
		reader := take(t, file(t, seg), shm.ReadOnly())
		touch := func() {
			t.Helper()
			err := reader.View(func(b []byte) error {
				for i, c := range b {
					if c != 0 {
						return fmt.Errorf("byte %d is %d", i, c)
					}
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}
		touch()
		if n := allocated(t, seg); n != 101 {
			t.Fatalf("%d pages are allocated by View", n)
		}
		for _, pages := range []int64{90, 10, 0} {
			if err := seg.Truncate(pages * 4096); err != nil {
				t.Fatal(err)
			}
			if n := allocated(t, seg); n != 1+pages {
				t.Errorf("%d pages are allocated after Truncate to %d", n, pages)
			}
		}
		seg.Truncate(sparseSize)
		touch()
	}
}
