package shareablelist_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/big"
	"reflect"
	"strings"
	"testing"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/shareablelist"
)

// memory is memory that cannot grow.
type memory []byte

func (m memory) Size() int64 { return int64(len(m)) }

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m).ReadAt(p, off)
}

func (m memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(m)) {
		return 0, shm.ErrFull
	}
	n := copy(m[off:], p)
	if n < len(p) {
		return n, shm.ErrFull
	}
	return n, nil
}

func mustMarshal(t testing.TB, values ...any) memory {
	t.Helper()
	b, err := shareablelist.Marshal(values...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustOpen(t testing.TB, m shareablelist.Memory) *shareablelist.List {
	t.Helper()
	l, err := shareablelist.Open(m)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func contents(l *shareablelist.List) (all []any) {
	for v, err := range l.All() {
		if err != nil {
			v = err
		}
		all = append(all, v)
	}
	return all
}

func TestRoundTrip(t *testing.T) {
	type mine string
	values := []any{
		nil, true, false, int64(math.MinInt64), int64(math.MaxInt64), 0.1, math.Inf(-1),
		"", "text", "exactly8", strings.Repeat("long ", 1000), "with \x00 inside", "ä€😀",
		[]byte{}, []byte("bytes\xff"), []byte("\x00x"),
	}
	l := mustOpen(t, mustMarshal(t, values...))
	if got := contents(l); !reflect.DeepEqual(got, values) {
		t.Errorf("got  %q\nwant %q", got, values)
	}
	l = mustOpen(t, mustMarshal(t, 1, int8(-2), uint16(3), uint64(math.MaxInt64), float32(0.5), mine("m")))
	want := []any{int64(1), int64(-2), int64(3), int64(math.MaxInt64), 0.5, "m"}
	if got := contents(l); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if l := mustOpen(t, mustMarshal(t)); l.Len() != 0 {
		t.Errorf("an empty list of %d items", l.Len())
	}
}

// TestLost has values that Python would lose, or has no type for.
func TestLost(t *testing.T) {
	m := mustMarshal(t, "some text", 1)
	l := mustOpen(t, m)
	before := bytes.Clone(m)
	for _, v := range []any{
		"NUL at the end\x00", []byte{0}, "not UTF-8 \xff", "\xed\xa0\x80",
		uint64(math.MaxInt64) + 1, big.NewInt(1), 1i, []int{1}, struct{}{}, (*int)(nil), t,
	} {
		if _, err := shareablelist.Marshal(v); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Marshal of %T %v: %v", v, v, err)
		}
		if err := l.Set(0, v); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Set to %T %v: %v", v, v, err)
		}
		if _, err := l.Index(v); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Index of %T %v: %v", v, v, err)
		}
	}
	if err := l.Set(0, "seventeen bytes!!"); !errors.Is(err, shm.ErrFull) {
		t.Errorf("Set to a text that is too long: %v", err)
	}
	if err := l.Set(1, "nine byte"); !errors.Is(err, shm.ErrFull) {
		t.Errorf("Set of a number to a text that is too long: %v", err)
	}
	if !bytes.Equal(m, before) {
		t.Error("a Set that failed changed something")
	}
	if _, err := shareablelist.Marshal(strings.Repeat("x", 9_999_992)); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("Marshal of a text without a format: %v", err)
	}
	if _, err := shareablelist.Marshal(strings.Repeat("x", 9_999_991)); err != nil {
		t.Errorf("Marshal of the longest text: %v", err)
	}
}

func TestNoItem(t *testing.T) {
	l := mustOpen(t, mustMarshal(t, 1, 2))
	for _, i := range []int{-1, 2, math.MaxInt, math.MinInt} {
		if _, err := l.Get(i); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Get(%d): %v", i, err)
		}
		if err := l.Set(i, 1); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Set(%d): %v", i, err)
		}
		if n := l.Room(i); n != 0 {
			t.Errorf("Room(%d): %d", i, n)
		}
	}
}

func TestIndexAndCount(t *testing.T) {
	l := mustOpen(t, mustMarshal(t, 1, true, 1.0, "1", []byte("1"), nil, "1", math.NaN(), 0.0))
	for _, c := range []struct {
		value        any
		index, count int
	}{
		{1, 0, 1}, {true, 1, 1}, {1.0, 2, 1}, {"1", 3, 2}, {[]byte("1"), 4, 1}, {nil, 5, 1},
		{math.NaN(), -1, 0}, {math.Copysign(0, -1), 8, 1}, {"2", -1, 0}, {false, -1, 0},
	} {
		index, err := l.Index(c.value)
		count, err2 := l.Count(c.value)
		if index != c.index || count != c.count || err != nil || err2 != nil {
			t.Errorf("%T %v: Index %d, Count %d, want %d, %d (%v, %v)", c.value, c.value, index, count, c.index, c.count, err, err2)
		}
	}
}

// TestRoom sets texts of every length that fits, over every kind of item.
func TestRoom(t *testing.T) {
	for _, first := range []any{"", "1234567", "12345678", []byte("123456789012345"), 1, nil, true, 2.5} {
		m := mustMarshal(t, "before", first, "behind")
		l := mustOpen(t, m)
		for n := range l.Room(1) + 1 {
			for _, v := range []any{strings.Repeat("x", n), bytes.Repeat([]byte("y"), n), int64(n), nil, 0.5, n%2 == 0} {
				if err := l.Set(1, v); err != nil {
					t.Fatalf("Set(%v) over %v: %v", v, first, err)
				}
				if got := contents(l); !reflect.DeepEqual(got, []any{"before", v, "behind"}) {
					t.Fatalf("set %v, got %v", v, got)
				}
			}
		}
		if err := l.Set(1, strings.Repeat("x", l.Room(1)+1)); !errors.Is(err, shm.ErrFull) {
			t.Errorf("a text longer than its room: %v", err)
		}
	}
}

func TestHostile(t *testing.T) {
	sound := mustMarshal(t, "text", 1)
	word := func(offset int, v int64) memory {
		b := bytes.Clone(sound)
		copy(b[offset:], mustMarshal(t, v)[24:32])
		return b
	}
	offsets := func(a, b, c uint64) memory { // with room for 8 more bytes
		m := append(bytes.Clone(sound), make([]byte, 8)...)
		for i, v := range []uint64{a, b, c} {
			binary.NativeEndian.PutUint64(m[8+8*i:], v)
		}
		return m
	}
	mustOpen(t, offsets(0, 8, 24))
	for name, m := range map[string]memory{
		"begins late": offsets(8, 16, 24), "crooked": offsets(0, 12, 20), "crooked end": offsets(0, 8, 20),
		"empty": {}, "short": sound[:7], "no offsets": sound[:8], "cut": sound[:len(sound)-1],
		"no items": make(memory, 8),
		"negative": word(0, -1), "one more": word(0, 3), "huge": word(0, math.MaxInt64), "overflow": word(0, 1<<61-1),
		"first not 0": word(8, 8), "no slot": word(16, 0), "back": word(24, 8),
		"far": word(24, math.MaxInt64-7), "below": word(24, -8),
		"Python 3.8": append(append(append(memory{2, 7: 0, 8: 8, 15: 0, 16: 8, 23: 0}, make(memory, 16)...), "8s\x00\x00\x00\x00\x00\x008s\x00\x00\x00\x00\x00\x00"...), 1, 1),
	} {
		if l, err := shareablelist.Open(m); !errors.Is(err, shm.ErrCorrupt) {
			t.Errorf("%s: %v, %v", name, l, err)
		}
	}
	const huge = 10_000_000
	forged := make(memory, 24+huge+9)
	binary.NativeEndian.PutUint64(forged, 1)
	binary.NativeEndian.PutUint64(forged[16:], huge)
	l := mustOpen(t, forged)
	if err := l.Set(0, strings.Repeat("x", huge)); !errors.Is(err, shm.ErrFull) {
		t.Errorf("Set to a text without a format: %v", err)
	}
	if err := l.Set(0, "text"); err != nil || contents(l)[0] != "text" {
		t.Errorf("Set of an item in a huge slot: %v, %.10q", err, contents(l))
	}
	formats, codes := len(sound)-2-16, len(sound)-2
	for _, format := range []string{"", "s", "-1s", "+8s", "9s", "16s", "9999999s", "8s8s", "8p", "Q", "P", " 8s", "q\x00q", "\xff"} {
		for code := range 6 {
			m := bytes.Clone(sound)
			copy(m[formats:], make([]byte, 8))
			copy(m[formats:], format)
			m[codes] = byte(code) - 1
			l := mustOpen(t, memory(m))
			if v, err := l.Get(0); !errors.Is(err, shm.ErrCorrupt) {
				t.Errorf("format %q with code %d: %v, %v", format, m[codes], v, err)
			}
			if _, err := l.Index(1); !errors.Is(err, shm.ErrCorrupt) {
				t.Errorf("Index: %v", err)
			}
			if err := l.Set(0, "again"); err != nil {
				t.Errorf("Set over format %q with code %d: %v", format, code, err)
			}
			if got := contents(l); !reflect.DeepEqual(got, []any{"again", int64(1)}) {
				t.Errorf("Set over format %q with code %d: %v", format, code, got)
			}
		}
	}
	m := bytes.Clone(sound)
	copy(m[32:], "\xff\xfe")
	if v, err := mustOpen(t, memory(m)).Get(0); !errors.Is(err, shm.ErrCorrupt) {
		t.Errorf("a str that is not UTF-8: %q, %v", v, err)
	}
}

// failing is memory that fails from byte limit on.
type failing struct {
	memory
	limit int64
}

var errBroken = errors.New("broken")

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.limit {
		return 0, errBroken
	}
	return f.memory.ReadAt(p, off)
}

func (f failing) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.limit {
		return 0, errBroken
	}
	return f.memory.WriteAt(p, off)
}

func TestMemoryFails(t *testing.T) {
	m := mustMarshal(t, "text", 1)
	for limit := range int64(len(m)) {
		l, err := shareablelist.Open(failing{bytes.Clone(m), limit})
		if err == nil {
			_, err = l.Get(1)
			if errFormat := second(l.Format()); err == nil || limit < int64(len(m)-2) && errFormat == nil {
				t.Errorf("limit %d: Get %v, Format %v", limit, err, errFormat)
			}
		}
		if !errors.Is(err, errBroken) {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
}

func second(_ any, err error) error { return err }

// FuzzShareableList opens anything as a list and sets every item of it.
func FuzzShareableList(f *testing.F) {
	for _, values := range [][]any{{}, {"text", 1, nil, true, 0.5, []byte("b")}, {"a", "b", "c"}} {
		f.Add([]byte(mustMarshal(f, values...)), "new", int64(7))
	}
	f.Fuzz(func(t *testing.T, b []byte, text string, n int64) {
		l, err := shareablelist.Open(memory(b))
		if err != nil {
			if !errors.Is(err, shm.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		before := contents(l)
		for i, v := range before {
			if err, bad := v.(error); bad && !errors.Is(err, shm.ErrCorrupt) {
				t.Fatal(err)
			}
			for _, v := range []any{n, text, []byte(text), nil, n%2 == 0, float64(n)} {
				err := l.Set(i, v)
				if errors.Is(err, fs.ErrInvalid) || errors.Is(err, shm.ErrFull) {
					continue
				}
				if err != nil {
					t.Fatalf("Set(%d, %v): %v", i, v, err)
				}
				if got, err := l.Get(i); err != nil || fmt.Sprintf("%T%v", got, got) != fmt.Sprintf("%T%v", v, v) {
					t.Fatalf("set item %d to %T %v, got %T %v, %v", i, v, v, got, got, err)
				}
				if index, err := l.Index(v); index > i || index < 0 && err == nil {
					t.Fatalf("Index(%v) is %d, %v", v, index, err)
				}
			}
			for j, other := range contents(l) {
				if j > i && fmt.Sprint(other) != fmt.Sprint(before[j]) {
					t.Fatalf("Set of item %d changed item %d from %v to %v", i, j, before[j], other)
				}
			}
		}
		l.Format()
	})
}

var _ io.ReaderAt = memory(nil)
