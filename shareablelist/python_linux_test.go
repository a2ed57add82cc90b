package shareablelist_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/internal/pytest"
	"github.com/shmkit/shm/shareablelist"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// python is a process that has a ShareableList; see testdata/list.py.
type python struct {
	*proctest.Child
	t testing.TB
}

func newPython(t testing.TB, py pytest.Interpreter) python {
	return python{proctest.StartCommand(t, py.Command("testdata/list.py")), t}
}

// do returns the answer, or the name of the exception.
func (p python) do(verb string, args ...any) (answer []any, exception string) {
	p.t.Helper()
	line, err := json.Marshal(append([]any{verb}, args...))
	if err != nil {
		p.t.Fatal(err)
	}
	p.Say("%s", line)
	answer = []any{}
	got := []byte(p.Hear())
	if json.Unmarshal(got, &answer) != nil {
		if err := json.Unmarshal(got, &exception); err != nil {
			p.t.Fatalf("%s: %v", got, err)
		}
	}
	return answer, exception
}

func (p python) must(verb string, args ...any) []any {
	p.t.Helper()
	answer, exception := p.do(verb, args...)
	if exception != "" {
		p.t.Fatalf("%s %v: %s", verb, args, exception)
	}
	return answer
}

// encode writes a value as list.py does.
func encode(v any) any {
	switch v := v.(type) {
	case nil:
		return []any{"NoneType", ""}
	case bool:
		return []any{"bool", map[bool]string{true: "x"}[v]}
	case int64:
		return []any{"int", fmt.Sprint(v)}
	case float64:
		return []any{"float", strconv.FormatFloat(v, 'x', -1, 64)}
	case string:
		return []any{"str", v}
	case []byte:
		return []any{"bytes", hex.EncodeToString(v)}
	}
	panic(fmt.Sprintf("%T", v))
}

func encodeAll(values []any) []any {
	all := make([]any, len(values))
	for i, v := range values {
		all[i] = encode(v)
	}
	return all
}

// decode reads a value that list.py has written.
func decode(t testing.TB, v any) any {
	t.Helper()
	kind, text := v.([]any)[0].(string), v.([]any)[1].(string)
	var value any
	var err error
	switch kind {
	case "NoneType":
	case "bool":
		value = text != ""
	case "int":
		value, err = strconv.ParseInt(text, 10, 64)
	case "float":
		value, err = strconv.ParseFloat(text, 64)
	case "str":
		value = text
	case "bytes":
		value, err = hex.DecodeString(text)
	}
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func decodeAll(t testing.TB, all []any) (values []any) {
	for _, v := range all {
		values = append(values, decode(t, v))
	}
	return values
}

// randomValue returns a value that takes at most room bytes as a text. Its
// characters are bytes if it is ascii.
func randomValue(r *rand.Rand, room int, ascii bool) any {
	switch r.IntN(6) {
	case 0:
		return nil
	case 1:
		return r.IntN(2) == 0
	case 2:
		return int64(r.Uint64()) >> r.IntN(64)
	case 3:
		return []float64{0, math.Copysign(0, -1), math.Inf(1), math.Inf(-1), r.NormFloat64(), math.SmallestNonzeroFloat64, math.MaxFloat64}[r.IntN(7)]
	}
	n := r.IntN(room + 1)
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.IntN(256))
	}
	if n > 0 && b[n-1] == 0 {
		b[n-1] = 1
	}
	if r.IntN(2) == 0 {
		return b
	}
	var s []byte
	for _, c := range b {
		char := rune(c) & 0x7f
		if !ascii && c&0x80 != 0 {
			char = rune(c) << (c & 7)
		}
		if len(s)+utf8.RuneLen(char) > room {
			break
		}
		s = utf8.AppendRune(s, char)
	}
	return strings.TrimRight(string(s), "\x00")
}

var names atomic.Int64

func unique(t testing.TB) string {
	name := fmt.Sprintf("test-list-%d-%d", os.Getpid(), names.Add(1))
	t.Cleanup(func() { shm.Unlink(name) })
	return name
}

func newBlock(t testing.TB, b []byte) *shm.Segment {
	t.Helper()
	seg, err := shm.Create(unique(t), int64(len(b)), shm.Headerless())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { seg.Close() })
	if _, err := seg.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return seg
}

func openBlock(t testing.TB, name string) *shm.Segment {
	t.Helper()
	seg, err := shm.Open(name, shm.Headerless())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { seg.Close() })
	return seg
}

func rounds() int {
	if testing.Short() {
		return 10
	}
	return 50
}

// eachList is Each for the interpreters that have the layout of Python 3.9.
func eachList(t *testing.T, f func(t *testing.T, py pytest.Interpreter)) {
	pytest.Each(t, func(t *testing.T, py pytest.Interpreter) {
		if !py.AtLeast(3, 9) {
			t.Skip("Python 3.8 has another layout: see TestPython38")
		}
		f(t, py)
	})
}

// TestSameBytes has Go and Python make the same lists and change them in the
// same ways, each on its own memory, and compares all bytes after each step.
func TestSameBytes(t *testing.T) {
	eachList(t, func(t *testing.T, py pytest.Interpreter) {
		p := newPython(t, py)
		for round := range rounds() {
			r := rand.New(rand.NewPCG(1, uint64(round)))
			values := make([]any, r.IntN(8))
			for i := range values {
				values[i] = randomValue(r, 30, true)
			}
			mine := mustMarshal(t, values...)
			l := mustOpen(t, mine)
			name := unique(t)
			p.must("new", name, encodeAll(values))
			theirs := openBlock(t, name)
			same := func(after any) {
				t.Helper()
				if b := theirs.Bytes(); !bytes.Equal(b, mine) {
					t.Fatalf("round %d, after %v: Python has\n%q, Go\n%q", round, after, b, mine)
				}
			}
			same("making it")
			for range 20 * min(len(values), 1) {
				i := r.IntN(len(values))
				v := randomValue(r, l.Room(i), false)
				p.must("set", i, encode(v))
				if err := l.Set(i, v); err != nil {
					t.Fatal(err)
				}
				same(fmt.Sprintf("setting item %d to %#v", i, v))
			}
			if format, err := l.Format(); err != nil || format != p.must("format")[0] {
				t.Errorf("round %d: format %s, %v", round, format, err)
			}
		}
		p.Wait()
	})
}

// TestSharedList has Go and Python take turns with one list, made by one of them.
func TestSharedList(t *testing.T) {
	eachList(t, func(t *testing.T, py pytest.Interpreter) {
		p := newPython(t, py)
		for round := range rounds() {
			r := rand.New(rand.NewPCG(2, uint64(round)))
			values := make([]any, 1+r.IntN(8))
			for i := range values {
				values[i] = randomValue(r, 30, round%2 == 0)
			}
			var seg *shm.Segment
			if round%2 == 0 {
				name := unique(t)
				p.must("new", name, encodeAll(values))
				seg = openBlock(t, name)
			} else {
				seg = newBlock(t, mustMarshal(t, values...))
				p.must("open", seg.Name())
			}
			l := mustOpen(t, seg)
			for turn := range 10 {
				i := r.IntN(len(values))
				values[i] = randomValue(r, l.Room(i), false)
				if turn%2 == 0 {
					p.must("set", i, encode(values[i]))
				} else if err := l.Set(i, values[i]); err != nil {
					t.Fatal(err)
				}
				if got := contents(l); !reflect.DeepEqual(got, values) {
					t.Fatalf("round %d, turn %d: Go has\n%#v, want\n%#v", round, turn, got, values)
				}
				if got := decodeAll(t, p.must("all")); !reflect.DeepEqual(got, values) {
					t.Fatalf("round %d, turn %d: Python has\n%#v, want\n%#v", round, turn, got, values)
				}
			}
		}
		p.Wait()
	})
}

// TestPythonLoses shows what CPython loses without a word, and that Go takes it
// as an error. What CPython has learnt to keep, it may keep.
func TestPythonLoses(t *testing.T) {
	eachList(t, func(t *testing.T, py pytest.Interpreter) {
		p := newPython(t, py)
		for _, c := range []struct{ value, left any }{
			{"a\x00", "a"},
			{[]byte("\x00"), []byte{}},
			{[]byte{1, 0, 0}, []byte{1}},
			{"ääääää", "ääää"}, // 6 characters: 8 bytes for 12
			{"€€€€", nil},      // cut in a character
		} {
			name := unique(t)
			p.must("new", name, []any{encode(c.value)})
			l := mustOpen(t, openBlock(t, name))
			got, err := l.Get(0)
			if c.left == nil {
				if _, exception := p.do("get", 0); !errors.Is(err, shm.ErrCorrupt) || exception != "UnicodeDecodeError" {
					t.Errorf("%q: Go reads %q, %v, Python raises %s", c.value, got, err, exception)
				}
			} else if theirs := decode(t, p.must("get", 0)); !reflect.DeepEqual(got, c.left) || !reflect.DeepEqual(theirs, c.left) {
				t.Errorf("%q: Go reads %q, Python %q, want %q", c.value, got, theirs, c.left)
			}
			b, err := shareablelist.Marshal(c.value)
			if s, ok := c.value.(string); ok && !strings.HasSuffix(s, "\x00") {
				// Go makes room for all of it, and then Python reads it too.
				p.must("open", newBlock(t, b).Name())
				if got := decode(t, p.must("get", 0)); got != s {
					t.Errorf("Python reads %q, want %q", got, s)
				}
			} else if err == nil {
				t.Errorf("Marshal(%q) is no error", c.value)
			}
		}
		if _, exception := p.do("new", unique(t), []any{[]any{"int", "9223372036854775808"}}); exception == "" {
			t.Error("Python has made a list of an int beyond 64 bits")
		}
		// Of what is too long for its room both make an error.
		seg := newBlock(t, mustMarshal(t, "short"))
		p.must("open", seg.Name())
		if _, exception := p.do("set", 0, encode("nine byte")); exception != "ValueError" {
			t.Errorf("a text too long: %s", exception)
		}
	})
}

// TestIndexLikePython compares Index and Count with Python's for values that
// have no equals of other types.
func TestIndexLikePython(t *testing.T) {
	eachList(t, func(t *testing.T, py pytest.Interpreter) {
		values := []any{int64(7), "a", nil, []byte("a"), "a", 2.5, int64(7), "ä"}
		seg := newBlock(t, mustMarshal(t, values...))
		l := mustOpen(t, seg)
		p := newPython(t, py)
		p.must("open", seg.Name())
		for _, v := range values {
			index, err := l.Index(v)
			count, err2 := l.Count(v)
			want := p.must("index", encode(v))
			if float64(index) != want[0] || float64(count) != want[1] || err != nil || err2 != nil {
				t.Errorf("%v: Index %d, Count %d, Python %v (%v, %v)", v, index, count, want, err, err2)
			}
		}
	})
}

// TestPython38 has the layout that Python 3.8 wrote, which is not ours.
func TestPython38(t *testing.T) {
	pytest.Each(t, func(t *testing.T, py pytest.Interpreter) {
		if py.AtLeast(3, 9) {
			t.Skip("not Python 3.8")
		}
		name := unique(t)
		newPython(t, py).must("new", name, encodeAll([]any{int64(1), "text", nil}))
		if l, err := shareablelist.Open(openBlock(t, name)); !errors.Is(err, shm.ErrCorrupt) {
			t.Errorf("%v, %v", l, err)
		}
	})
}
