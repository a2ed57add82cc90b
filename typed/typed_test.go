package typed_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"math"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/shmtest"
	"github.com/shmkit/shm/typed"
)

func TestMain(m *testing.M) { shmtest.VerifyTestMain(m) }

func block(t testing.TB, size int64) *shm.Segment {
	t.Helper()
	seg, err := shm.Create("", size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { seg.Close() })
	return seg
}

type (
	number uint16
	sample struct{ Left, Right int16 }
	frame  struct {
		Number uint64
		Width  uint32
		Height uint32
		Pixels [3]sample
		_      [4]byte
	}
	counters struct {
		Head atomic.Uint64
		_    [56]byte
		Tail atomic.Uint64
		_    [56]byte
	}
	complexes struct {
		A complex64
		B complex128
	}
	nested struct {
		A [2]struct {
			B uint8
			_ [1]byte
			C uint16
		}
		D float64
	}
)

// good returns an error unless values of type T lie in memory as package encoding/binary
// writes them, which knows of no gaps: so they lie there in the same way on every system.
func good[T any](t *testing.T, v T) {
	t.Helper()
	want, err := binary.Append(nil, binary.NativeEndian, []T{v, v})
	if err != nil {
		t.Fatal(err)
	}
	seg := block(t, 1000)
	s, err := typed.Slice[T](seg, 16, 2)
	if err != nil || len(s) != 2 || cap(s) != 2 {
		t.Errorf("%T: %v, length %d, capacity %d", v, err, len(s), cap(s))
		return
	}
	s[0], s[1] = v, v
	got := make([]byte, len(want))
	if seg.ReadAt(got, 16); !bytes.Equal(got, want) {
		t.Errorf("%T: %x, want %x", v, got, want)
	}
}

// bad fails the test unless T cannot be used, because of what is said.
func bad[T any](t *testing.T, reason string) {
	t.Helper()
	seg := block(t, 1000)
	var zero T
	for range 2 { // from the cache
		_, err := typed.Slice[T](seg, 0, 1)
		if !errors.Is(err, fs.ErrInvalid) || !bytes.Contains([]byte(err.Error()), []byte(reason)) {
			t.Errorf("%T: %v, want %q", zero, err, reason)
		}
		if _, err := typed.Pointer[T](seg, 0); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%T: Pointer: %v", zero, err)
		}
		if err := typed.View(seg, 0, 1, func([]T) error { return errors.New("called") }); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%T: View: %v", zero, err)
		}
	}
}

// TestTypes has the verdict on types, which is the same on every system.
func TestTypes(t *testing.T) {
	good[int8](t, -1)
	good[int16](t, math.MinInt16)
	good[int32](t, 1)
	good[int64](t, math.MaxInt64)
	good[uint8](t, 200)
	good[number](t, 0x1234)
	good[uint32](t, 0x12345678)
	good[uint64](t, 0x123456789abcdef0)
	good[float32](t, 1.5)
	good[float64](t, math.Pi)
	good[complex64](t, 1+2i)
	good[complex128](t, 1-2i)
	good(t, [3]uint16{1, 2, 3})
	good(t, [2][2]float32{{1, 2}, {3, 4}})
	good(t, sample{1, -1})
	good(t, frame{Number: 1, Width: 2, Height: 3, Pixels: [3]sample{{4, 5}, {6, 7}, {8, 9}}})
	good(t, complexes{1, 2i})
	good(t, nested{D: 1})
	good(t, struct {
		A uint32
		_ [4]byte
		B uint64
	}{A: 1, B: 2})

	bad[int](t, "is not a number of fixed size")
	bad[uint](t, "is not a number of fixed size")
	bad[uintptr](t, "is not a number of fixed size")
	bad[bool](t, "is not a number of fixed size")
	bad[string](t, "has a string")
	bad[[]byte](t, "has a slice")
	bad[map[int8]int8](t, "has a map")
	bad[func()](t, "has a func")
	bad[chan int8](t, "has a chan")
	bad[any](t, "has a interface")
	bad[*int32](t, "has a ptr")
	bad[unsafe.Pointer](t, "has a unsafe.Pointer")
	bad[[0]int32](t, "has size 0")
	bad[struct{}](t, "has size 0")
	bad[[2]bool](t, "has a bool")
	bad[atomic.Bool](t, "")
	bad[struct {
		A uint32
		B uint64
	}](t, "field B is at 4: must be at a multiple of 8")
	bad[struct {
		A uint64
		B uint32
	}](t, "has 12 bytes: must be a multiple of 8")
	bad[struct {
		A uint8
		B atomic.Int32
	}](t, "field B is at 1: must be at a multiple of 4")
	bad[struct {
		A uint64
		_ [0]uint64
	}](t, "has size 0")
	bad[struct{ A struct{ B string } }](t, "field A field B has a string")
	bad[struct {
		A float32
		B complex128
	}](t, "field B is at 4")
}

// TestRange has offsets and numbers of values at their limits.
func TestRange(t *testing.T) {
	seg := block(t, 100)
	for _, c := range []struct {
		off  int64
		n    int
		fits bool
	}{
		{0, 0, true}, {0, 12, true}, {96, 0, true}, {88, 1, true}, {4, 1, false}, {-8, 1, false}, {0, -1, false},
		{0, 13, false}, {96, 1, false}, {104, 0, false}, {0, math.MaxInt, false}, {math.MaxInt64 - 7, 1, false},
	} {
		s, err := typed.Slice[uint64](seg, c.off, c.n)
		if fits := err == nil; fits != c.fits || !fits && !errors.Is(err, fs.ErrInvalid) || fits && len(s) != c.n {
			t.Errorf("%d from %d: %v, length %d", c.n, c.off, err, len(s))
		}
	}
	seg.Close()
	if _, err := typed.Slice[uint64](seg, 0, 1); !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}
	if err := typed.View(seg, 0, 1, func([]uint64) error { return nil }); !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}
	if _, err := typed.Slice[uint64](nil, 0, 1); !errors.Is(err, fs.ErrInvalid) {
		t.Error(err)
	}
}

// TestView closes the Segment inside, and returns an error.
func TestView(t *testing.T) {
	seg := block(t, 100)
	mine := errors.New("mine")
	err := typed.View(seg, 8, 2, func(s []uint32) error {
		if err := seg.Close(); err != nil {
			t.Error(err)
		}
		s[1] = 7
		return mine
	})
	if err != mine {
		t.Error(err)
	}
}

// TestAtomics has goroutines count through Segments of their own.
func TestAtomics(t *testing.T) {
	name := block(t, 1000).Name()
	var all sync.WaitGroup
	for range 4 {
		seg, err := shm.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer seg.Close()
		c, err := typed.Pointer[counters](seg, 64)
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			for range 1000 {
				c.Head.Add(1)
				c.Tail.Add(2)
			}
		})
	}
	all.Wait()
	seg, err := shm.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer seg.Close()
	c, _ := typed.Pointer[counters](seg, 64)
	if c.Head.Load() != 4000 || c.Tail.Load() != 8000 {
		t.Error(c.Head.Load(), c.Tail.Load())
	}
}

func TestAllocations(t *testing.T) {
	seg := block(t, 1000)
	use := func() {
		if _, err := typed.Slice[frame](seg, 0, 3); err != nil {
			t.Error(err)
		}
		if err := typed.View(seg, 0, 3, func(s []frame) error { s[1].Number++; return nil }); err != nil {
			t.Error(err)
		}
	}
	use()
	if n := testing.AllocsPerRun(100, use); n != 0 {
		t.Errorf("%v allocations", n)
	}
	runtime.KeepAlive(seg)
}

func Example() {
	type position struct{ X, Y float64 }
	seg, err := shm.Create("example-typed", 1<<16)
	if err != nil {
		log.Fatal(err)
	}
	defer seg.Close()
	all, err := typed.Slice[position](seg, 0, 1000)
	if err != nil {
		log.Fatal(err)
	}
	all[3] = position{1, 2}

	// Another process:
	peer, err := shm.Open("example-typed")
	if err != nil {
		log.Fatal(err)
	}
	defer peer.Close()
	err = typed.View(peer, 0, 1000, func(all []position) error {
		_, err := fmt.Fprintln(os.Stdout, all[3].X, all[3].Y)
		return err
	})
	fmt.Println(err)
	// Output:
	// 1 2
	// <nil>
}
