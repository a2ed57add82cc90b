package shm_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
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
	t.Parallel() // in a process of its own
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

// TestSparseOnFull touches pages that are not to be had.
func TestSparseOnFull(t *testing.T) {
	onTmpfs(t)
	if !privately(t, "tmpfs", "size=1m") {
		return
	}
	const page, capacity = 4096, 4 << 20
	data := noise(10 * page)
	path := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for what, write := range map[string]func(seg *shm.Segment) (int64, error){
		"WriteAt": func(seg *shm.Segment) (int64, error) {
			n, err := seg.WriteAt(data, 0)
			return int64(n), err
		},
		"Write": func(seg *shm.Segment) (int64, error) {
			n, err := seg.Write(data)
			return int64(n), err
		},
		"ReadFrom":       func(seg *shm.Segment) (int64, error) { return seg.ReadFrom(bytes.NewReader(data)) },
		"ReadFrom(file)": func(seg *shm.Segment) (int64, error) { file.Seek(0, io.SeekStart); return seg.ReadFrom(file) },
		"ReadFrom(pipe)": func(seg *shm.Segment) (int64, error) {
			r, w, err := os.Pipe()
			if err != nil {
				return 0, err
			}
			defer r.Close()
			defer w.Close()
			w.Write(data)
			return seg.ReadFrom(r)
		},
		"View": func(seg *shm.Segment) (int64, error) {
			return 3 * page, seg.View(func(b []byte) error {
				for i, c := range data { // copy goes in an order that depends on the processor
					b[:len(data)][i] = c
				}
				return nil
			})
		},
	} {
		t.Run(what, func(t *testing.T) {
			seg := block(t, capacity, shm.Sparse())
			remove := fill(t, 3)
			n, err := write(seg)
			mustFail(t, err, seg.Name(), shm.ErrFault, shm.ErrNoSpace)
			if n != 3*page {
				t.Errorf("%d bytes, want those of 3 pages", n)
			}
			p := bytes.Repeat([]byte{0xaa}, 6*page)
			if n, err := seg.ReadAt(p, 0); n != len(p) || err != nil || !bytes.Equal(p, append(data[:3*page:3*page], make([]byte, 3*page)...)) {
				t.Errorf("read %d bytes, %v: not what was written and zeros behind", n, err)
			}
			seg.Seek(0, io.SeekStart)
			if n, err := seg.WriteTo(io.Discard); n != capacity || err != nil {
				t.Errorf("WriteTo: %d, %v", n, err)
			}
			out, err := os.Create(filepath.Join(t.TempDir(), "out"))
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			seg.Seek(0, io.SeekStart)
			if n, err := seg.WriteTo(out); n != capacity || err != nil {
				t.Errorf("WriteTo a file: %d, %v", n, err)
			}
			sum, want := sha256.New(), sha256.New()
			seg.Seek(0, io.SeekStart)
			seg.WriteTo(struct{ io.Writer }{want})
			seg.Seek(0, io.SeekStart)
			if n, err := seg.WriteTo(sum); n != capacity || err != nil || !bytes.Equal(sum.Sum(nil), want.Sum(nil)) {
				t.Errorf("WriteTo a hash: %d, %v", n, err)
			}
			// With memory, it goes on.
			remove()
			if n, err := seg.WriteAt(data, 0); n != len(data) || err != nil {
				t.Errorf("WriteAt with memory: %d, %v", n, err)
			}
			used := free(t)[0]
			if err := seg.Truncate(page); err != nil {
				t.Fatal(err)
			}
			if back := free(t)[0] - used; back != 9 {
				t.Errorf("Truncate gives back %d pages, want 9", back)
			}
			name := seg.Name()
			seg.Close()
			mustBeFree(t, name)
		})
	}
	if left := free(t)[0]; left != 256 {
		t.Errorf("%d of 256 pages are free in the end", left)
	}
}

// TestClosedAddressSpace has address space for one mapping of the block, and no
// garbage collector that would come by.
func TestClosedAddressSpace(t *testing.T) {
	onTmpfs(t)
	if !limited(t) {
		return
	}
	const large = 1 << 30
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages := number(strings.Fields(string(b))[0])
	limit(t, syscall.RLIMIT_AS, uint64(pages)*4096+large+large/2)
	debug.SetGCPercent(-1)
	for range 10 {
		seg, err := shm.Create("", large, shm.Sparse())
		if err != nil {
			t.Fatal(err)
		}
		b := seg.Bytes()
		seg.Close()
		if inUse(t, b) {
			t.Fatal("Close keeps addresses where there are few")
		}
	}
}

// TestManyClosed keeps more closed Segments than Close keeps addresses of.
func TestManyClosed(t *testing.T) {
	t.Parallel() // in a process of its own
	onTmpfs(t)
	if !limited(t) {
		return
	}
	seg := block(t, 100)
	var closed []*shm.Segment
	quick := 0
	for range 10_000 {
		peer, err := shm.Open(seg.Name())
		if err != nil {
			t.Fatal(err)
		}
		if shm.Quick(peer) {
			quick++
		}
		if n, err := peer.WriteAt([]byte("x"), 0); n != 1 || err != nil {
			t.Fatalf("WriteAt: %d, %v", n, err)
		}
		if err := peer.Close(); err != nil {
			t.Fatal(err)
		}
		if n, err := peer.ReadAt(make([]byte, 1), 0); n != 0 || !errors.Is(err, fs.ErrClosed) {
			t.Fatalf("ReadAt after Close: %d, %v", n, err)
		}
		closed = append(closed, peer)
	}
	if quick == len(closed) || quick < 1000 && math.MaxInt > math.MaxInt32 && !raw.Race {
		t.Errorf("%d of %d were quick", quick, len(closed))
	}
	runtime.KeepAlive(closed)
	clear(closed)
	for shm.Kept() > 64<<20 { // or the test runs into its timeout
		runtime.GC()
	}
	if peer := attach(t, seg.Name()); shm.Quick(peer) != (quick > 0) {
		t.Error("the collector has not helped")
	}
}

// cut is a block whose object somebody else has cut off.
type cut struct {
	length int64 // of the object now
	start  int64 // where its data begins
	cap    int64
}

// there returns how many of n bytes at off can be had: those up to the end of
// the object, or, as only pages fault, all of them in its last page.
func (c cut) there(off, n int64) (int64, error) {
	page := int64(os.Getpagesize())
	from := c.start + off
	if end := (c.length + page - 1) / page * page; n == 0 || from+n <= end {
		return n, nil
	}
	return min(max(c.length-from, 0), n), shm.ErrFault
}

// pages is there for bytes that the system moves, which sees pages only.
func (c cut) pages(off, n int64) (int64, error) {
	page := int64(os.Getpagesize())
	end := (c.length + page - 1) / page * page
	if m := max(end-c.start-off, 0); m < n {
		return m, shm.ErrFault
	}
	return n, nil
}

// exact is there for bytes that are read by system calls.
func (c cut) exact(off, n int64) (int64, error) {
	if m := max(c.length-c.start-off, 0); m < n {
		return m, shm.ErrFault
	}
	return n, nil
}

// TestCutWhileAttached cuts off the object under a Segment.
func TestCutWhileAttached(t *testing.T) {
	onTmpfs(t)
	page := int64(os.Getpagesize())
	capacity := 3*page + 100
	full := noise(int(capacity))
	for kind, opts := range map[string][]shm.Option{"reserved": nil, "sparse": {shm.Sparse()}, "headerless": {shm.Headerless()}} {
		start := page
		if kind == "headerless" {
			start = 0
		}
		var lengths []int64
		for _, n := range []int64{0, 1, 100, 300, 320, page - 1, page, page + 1, page + 10, 2*page - 1, 2 * page, 2*page + 10, 3*page + 7, 4*page + 50} {
			if n < start+capacity {
				lengths = append(lengths, n)
			}
		}
		for _, length := range lengths {
			t.Run(fmt.Sprintf("%s/%d", kind, length), func(t *testing.T) {
				fresh := func() *shm.Segment {
					seg := block(t, capacity, opts...)
					seg.WriteAt(full, 0)
					if err := os.Truncate(shmPath(seg.Name()), length); err != nil {
						t.Fatal(err)
					}
					return seg
				}
				managed := start > 0
				c := cut{length, start, capacity}
				readable, streamable := c.there, c.pages
				if kind == "sparse" {
					readable, streamable = c.exact, c.exact
				}
				size, headerErr := capacity, error(nil)
				if managed && length <= atSize {
					size = 0 // a zero now
				}
				if managed && length == 0 {
					headerErr = shm.ErrFault
				}
				reads := func(what string, n int64, err error, wantN int64, want error) {
					t.Helper()
					if n != wantN || !errors.Is(err, want) || want == nil && err != nil {
						t.Errorf("%s: %d, %v; want %d, %v", what, n, err, wantN, want)
					}
					if err != nil && err != io.EOF && !errors.Is(err, io.EOF) {
						var path *fs.PathError
						if !errors.As(err, &path) {
							t.Errorf("%s: %T", what, err)
						}
					}
				}

				seg := fresh()
				for _, r := range []struct{ off, n int64 }{{0, capacity}, {0, 10}, {5, page}, {page - 5, 10}, {page, page}, {2*page + 1, 2 * page}, {capacity - 1, 1}} {
					wantN, want := int64(0), headerErr
					if want == nil {
						wantN, want = readable(r.off, max(min(r.n, size-r.off), 0))
						if want == nil && wantN < r.n {
							want = io.EOF
						}
					}
					p := bytes.Repeat([]byte{0xaa}, int(r.n))
					n, err := seg.ReadAt(p, r.off)
					reads(fmt.Sprintf("ReadAt(%d, %d)", r.n, r.off), int64(n), err, wantN, want)
					below := min(max(length-start-r.off, 0), wantN)
					if !bytes.Equal(p[:below], full[r.off:r.off+below]) || slices.ContainsFunc(p[below:wantN], func(b byte) bool { return b != 0 }) {
						t.Errorf("ReadAt(%d, %d): other bytes", r.n, r.off)
					}
					if seg.Seek(r.off, io.SeekStart); wantN > 0 && want == io.EOF {
						want = nil
					}
					n, err = seg.Read(p)
					reads(fmt.Sprintf("Read %d at %d", r.n, r.off), int64(n), err, wantN, want)
					if off, _ := seg.Seek(0, io.SeekCurrent); off != r.off+wantN {
						t.Errorf("Read: offset %d", off)
					}
				}

				if got := seg.Size(); headerErr == nil && got != size || headerErr != nil && got != 0 {
					t.Errorf("Size %d", got)
				}
				_, err := seg.Stat()
				wantErr(t, "Stat", err, seg.Name(), headerErr)
				_, err = seg.Seek(0, io.SeekEnd)
				wantErr(t, "Seek", err, seg.Name(), headerErr)
				if b := seg.Bytes(); (b == nil) != (headerErr != nil) {
					t.Errorf("Bytes: %d", len(b))
				}
				touch := headerErr
				if _, fault := c.there(0, capacity); fault != nil {
					touch = fault
				}
				err = seg.View(func(b []byte) error {
					clear(b[:capacity])
					return nil
				})
				wantErr(t, "View", err, seg.Name(), touch)
				seg.Refs()

				// The system moves bytes of a file.
				pageN, pageErr := streamable(0, size)
				if headerErr != nil {
					pageN, pageErr = 0, headerErr
				}
				seg.Seek(0, io.SeekStart)
				out, err := os.Create(filepath.Join(t.TempDir(), "out"))
				if err != nil {
					t.Fatal(err)
				}
				defer out.Close()
				moved, err := seg.WriteTo(out)
				reads("WriteTo(file)", moved, err, pageN, pageErr)
				seg.Seek(0, io.SeekStart)
				var plain bytes.Buffer
				moved, err = seg.WriteTo(&plain)
				if headerErr == nil && moved != int64(plain.Len()) {
					t.Errorf("WriteTo: %d bytes, %d arrived", moved, plain.Len())
				}
				if off, _ := seg.Seek(0, io.SeekCurrent); off != moved {
					t.Errorf("WriteTo: offset %d after %d bytes, %v", off, moved, err)
				}

				seg = fresh()
				for _, w := range []struct{ off, n int64 }{{0, capacity}, {0, 10}, {page - 5, 10}, {2*page + 1, page}, {capacity - 1, 1}} {
					wantN, want := int64(0), headerErr
					if want == nil {
						wantN, want = c.there(w.off, w.n)
					}
					n, err := seg.WriteAt(full[:w.n], w.off)
					reads(fmt.Sprintf("WriteAt(%d, %d)", w.n, w.off), int64(n), err, wantN, want)
					seg.Seek(w.off, io.SeekStart)
					n, err = seg.Write(full[:w.n])
					reads(fmt.Sprintf("Write %d at %d", w.n, w.off), int64(n), err, wantN, want)
					seg.Seek(w.off, io.SeekStart)
					m, err := seg.ReadFrom(bytes.NewReader(full[:w.n]))
					reads(fmt.Sprintf("ReadFrom %d at %d", w.n, w.off), m, err, wantN, want)
				}
				if fi, err := os.Stat(shmPath(seg.Name())); err != nil || fi.Size() != length {
					t.Errorf("writing has changed the object: %v, %v", fi, err)
				}
				pageN, pageErr = c.pages(0, capacity)
				if headerErr != nil {
					pageN, pageErr = 0, headerErr
				}
				in, err := os.Create(filepath.Join(t.TempDir(), "in"))
				if err != nil {
					t.Fatal(err)
				}
				defer in.Close()
				in.WriteAt(full, 0)
				in.Seek(0, io.SeekStart)
				seg.Seek(0, io.SeekStart)
				moved, err = seg.ReadFrom(in)
				reads("ReadFrom(file)", moved, err, pageN, pageErr)

				seg = fresh()
				if err := seg.Truncate(7); managed && kind == "reserved" && headerErr == nil && size > 0 {
					wantErr(t, "Truncate", err, seg.Name(), touch)
				}
				seg.Truncate(capacity)

				// Others find out from the header; the one attached is the last.
				seg = fresh()
				want := shm.ErrNotSegment
				if managed && length >= fixedEnd {
					want = shm.ErrCorrupt
				}
				wantErr(t, "Open", tryOpen(seg.Name()), seg.Name(), want)
				wantErr(t, "Create", tryCreate(seg.Name(), 1), seg.Name(), fs.ErrExist)
				ro, _ := shm.Reap()
				if slices.Contains(ro, seg.Name()) {
					t.Error("reaped in use")
				}

				// What is extended again is zero, and there.
				if err := os.Truncate(shmPath(seg.Name()), start+capacity); err != nil {
					t.Fatal(err)
				}
				p := make([]byte, capacity)
				if n, err := seg.ReadAt(p, 0); int64(n) != size || err != nil && err != io.EOF {
					t.Errorf("ReadAt when extended: %d, %v", n, err)
				}
				if n, err := seg.WriteAt(full, 0); n != len(full) || err != nil {
					t.Errorf("WriteAt when extended: %d, %v", n, err)
				}
				if err := os.Truncate(shmPath(seg.Name()), length); err != nil {
					t.Fatal(err)
				}
				if err := seg.Close(); err != nil {
					t.Error(err)
				}
				if managed {
					mustBeFree(t, seg.Name())
				} else {
					shm.Unlink(seg.Name())
				}
			})
		}
	}
}

// TestSelfCopy copies the memory of a block that has been cut off to the block
// itself: the fault is then in what is copied from, or in both.
func TestSelfCopy(t *testing.T) {
	onTmpfs(t)
	page := int64(os.Getpagesize())
	for lo := page; lo <= 9*page; lo += page { // the pages of data that stay are 0 to 3
		seg := block(t, 12*page)
		if err := os.Truncate(shmPath(seg.Name()), 5*page); err != nil {
			t.Fatal(err)
		}
		for what, move := range map[string]func(p []byte) error{
			"WriteAt": func(p []byte) error { return second(seg.WriteAt(p, page/2)) },
			"ReadAt":  func(p []byte) error { return second(seg.ReadAt(p, page/2)) },
		} {
			want := error(nil)
			if lo+2*page > 4*page {
				want = shm.ErrFault
			}
			err := seg.View(func(b []byte) error { return move(b[lo : lo+2*page]) })
			wantErr(t, fmt.Sprintf("%s of page %d", what, lo/page), err, seg.Name(), want)
		}
		// And the memory of one block to another.
		other := block(t, 2*page)
		err := seg.View(func(b []byte) error { return second(other.WriteAt(b[8*page:9*page], 0)) })
		if !errors.Is(err, shm.ErrFault) {
			t.Errorf("WriteAt of another block's memory: %v", err)
		}
		if err := other.Close(); err != nil {
			t.Error(err)
		}
		mustBeFree(t, other.Name())
	}
}

// TestCloseStorm has all methods, Close and Unlink called at once, from several
// goroutines, with streams that stand still.
func TestCloseStorm(t *testing.T) {
	onTmpfs(t)
	for range rounds(60) {
		seg := block(t, 1<<18)
		peer := attach(t, seg.Name())
		silent, silentEnd, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		fullEnd, full, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		started := make(chan bool, 2*len(calls)+2)
		for _, s := range []*shm.Segment{seg, peer} {
			for what, call := range calls {
				if what == "Close" || strings.HasSuffix(what, "File") {
					continue
				}
				all.Go(func() {
					for i := 0; ; i++ {
						err := call(s)
						if i == 0 {
							started <- true
						}
						if errors.Is(err, fs.ErrClosed) {
							return
						}
						if !beside(err) {
							t.Errorf("%s: %v", what, err)
							return
						}
						runtime.Gosched()
					}
				})
			}
		}
		all.Go(func() {
			// ErrFull and ErrFinished are a read that had begun before Close, with the offset
			// at Cap, or of a finished block.
			if _, err := seg.ReadFrom(silent); !errors.Is(err, fs.ErrClosed) && !errors.Is(err, shm.ErrFull) && !errors.Is(err, shm.ErrFinished) {
				t.Errorf("ReadFrom a silent pipe: %v", err)
			}
		})
		all.Go(func() {
			for {
				seg.Seek(0, io.SeekStart)
				if _, err := seg.WriteTo(full); err != nil {
					if !errors.Is(err, fs.ErrClosed) {
						t.Errorf("WriteTo a full pipe: %v", err)
					}
					return
				}
			}
		})
		for range 2 * (len(calls) - 3) {
			<-started
		}
		// Close comes back while the pipes stand still.
		var closing sync.WaitGroup
		closed := make(chan bool, 8)
		for _, s := range []*shm.Segment{seg, peer} {
			for range 4 {
				closing.Go(func() { closed <- s.Close() == nil })
			}
		}
		closing.Wait()
		close(closed)
		first := 0
		for ok := range closed {
			if ok {
				first++
			}
		}
		if first != 2 {
			t.Errorf("%d of 8 calls closed 2 Segments", first)
		}
		mustBeFree(t, seg.Name())
		// When the pipes move again, their streams find out.
		silentEnd.WriteString("x")
		var drained sync.WaitGroup
		drained.Go(func() { io.Copy(io.Discard, fullEnd) })
		all.Wait()
		full.Close()
		drained.Wait()
		for _, end := range []*os.File{silent, silentEnd, fullEnd} {
			end.Close()
		}
	}
}

// TestRevoked looks at what Close leaves of the mapping: no memory, and no room
// for another mapping until the Segment is out of reach.
func TestRevoked(t *testing.T) {
	onTmpfs(t)
	seg := block(t, 1<<20)
	if !shm.Quick(seg) {
		t.Skip("Close leaves nothing on this system")
	}
	b := seg.Bytes()
	err := seg.View(func([]byte) error {
		err := seg.Close()
		b[0] = 1 // View keeps all of it
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(maps), seg.Name()) {
		t.Error("still mapped after Close")
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	for range 10 {
		block(t, 1<<20)
		func() {
			defer func() {
				if recover() == nil {
					t.Error("another mapping lies where the old one was")
				}
			}()
			b[0]++
		}()
	}
	runtime.KeepAlive(seg)
}
