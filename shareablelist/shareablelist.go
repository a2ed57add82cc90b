// Package shareablelist reads and writes multiprocessing.shared_memory.ShareableList,
// the lists that Python processes share, byte for byte as CPython 3.9 and later do.
//
//	seg, err := shm.Open("settings", shm.Headerless()) // ShareableList([...], name="settings")
//	l, err := shareablelist.Open(seg)
//	v, err := l.Get(0)
//	err = l.Set(1, "a text")
//
// A list has a fixed number of items. An item is nil, a bool, an int64, a
// float64, a string of UTF-8 or a []byte. A string or []byte has room for a multiple
// of 8 bytes, which is fixed when the list is created.
//
// # Values that Python loses
//
// CPython loses some values without an error. This package returns an error for them,
// or keeps them:
//
//   - Every reader removes NUL bytes from the end of a str or bytes
//     (https://github.com/python/cpython/issues/106939): [fs.ErrInvalid].
//   - A str gets room for as many bytes as it has characters, and more bytes of UTF-8
//     are cut off (https://github.com/python/cpython/issues/145261). A list created
//     by this package has room for all bytes, and Python reads it correctly.
//   - An int beyond 64 bits is an error in Python only after it has created the block,
//     which it leaves behind: [fs.ErrInvalid].
//
// A value that a Python process has already lost cannot be recognized. If a character
// is cut in two, reading the item returns [shm.ErrCorrupt].
//
// # Concurrency
//
// CPython and this package change an item in three steps without a lock. A reader of
// an item that another goroutine or process is changing can see a part of the change,
// or get [shm.ErrCorrupt]. The users of a list must synchronize.
package shareablelist

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/shmkit/shm"
)

// The layout of n items. All numbers have 8 bytes, in the machine's own byte order.
//
//	number of items
//	n+1 offsets, of each item and of the end, from the first item
//	the items, each in a slot of a multiple of 8 bytes
//	n formats of Python's module struct, of 8 bytes, padded with NUL
//	n codes, of 1 byte: the Python type of the value
//
// See class ShareableList in Lib/multiprocessing/shared_memory.py of CPython.
// Before 3.9 it had sizes in place of the offsets, without one for the end.
const (
	word = 8

	// maxSlot is the size of the largest slot whose format has at most 8 bytes.
	maxSlot = 9_999_992

	codePlain, codeString, codeBytes, codeNil = 0, 1, 2, 3

	formatInt, formatFloat, formatBool, formatNil = "q", "d", "xxxxxxx?", "xxxxxx?x"
)

// Memory is the memory of a list: a [*shm.Segment], or anything else of a fixed size
// that can be read and written at an offset.
type Memory interface {
	io.ReaderAt
	io.WriterAt
	Size() int64
}

// List is a list of a fixed number of items. Its methods are safe for concurrent use
// if those of its Memory are; see the package comment for what concurrent readers see.
type List struct {
	mem     Memory
	offsets []int64 // of the slots from the beginning of the memory, and their end
}

// Marshal returns the bytes of a new list of values. A value has a type that Get
// returns, another integer type, float32, or a type derived from one of these. Write
// the bytes to a Headerless block of their size for Python to open. As with a list that
// Python creates, the block has its name before it has its contents; a process that
// opens it in between gets [shm.ErrCorrupt].
//
// The error is [fs.ErrInvalid] for a value that Python would lose or has no type for.
func Marshal(values ...any) ([]byte, error) {
	items := make([]item, len(values))
	size := word * (len(values) + 2)
	for i, v := range values {
		var err error
		if items[i], err = newItem(v); err != nil {
			return nil, fmt.Errorf("shareablelist: item %d: %w", i, err)
		}
		if slot := items[i].slot(); slot > maxSlot {
			return nil, fmt.Errorf("shareablelist: item %d: %w: %d bytes: must be less than %d", i, fs.ErrInvalid, len(items[i].value), maxSlot)
		}
		size += items[i].slot() + word + 1
	}
	b := make([]byte, 0, size)
	b = binary.NativeEndian.AppendUint64(b, uint64(len(values)))
	offset := 0
	for _, it := range items {
		b = binary.NativeEndian.AppendUint64(b, uint64(offset))
		offset += it.slot()
	}
	b = binary.NativeEndian.AppendUint64(b, uint64(offset))
	for _, it := range items {
		b = append(append(b, it.value...), make([]byte, it.slot()-len(it.value))...)
	}
	for _, it := range items {
		b = append(b, it.formatBytes(it.slot())...)
	}
	for _, it := range items {
		b = append(b, it.code)
	}
	return b, nil
}

// Open returns the list in mem. The error is [shm.ErrCorrupt] if mem does not have a
// list of Python 3.9 or later, or the error of mem.
func Open(mem Memory) (*List, error) {
	size := mem.Size()
	n, err := readWord(mem, 0)
	if err != nil {
		return nil, err
	}
	// Each item has an offset, a slot, a format and a code at least.
	if n < 0 || size < 2*word || n > (size-2*word)/(3*word+1) {
		return nil, fmt.Errorf("%w: %d items in %d bytes", shm.ErrCorrupt, n, size)
	}
	b := make([]byte, word*(n+1))
	if err := readFull(mem, b, word); err != nil {
		return nil, err
	}
	l := &List{mem, make([]int64, n+1)}
	start := word * (n + 2)
	last := size - start - n*(word+1)
	for i := range l.offsets {
		offset := int64(binary.NativeEndian.Uint64(b[word*i:]))
		if i == 0 && offset != 0 || offset%word != 0 || offset > last ||
			i > 0 && offset-(l.offsets[i-1]-start) < word {
			return nil, fmt.Errorf("%w: offset %d of item %d", shm.ErrCorrupt, offset, i)
		}
		l.offsets[i] = start + offset
	}
	return l, nil
}

// Len returns the number of items.
func (l *List) Len() int { return len(l.offsets) - 1 }

// Get returns item i: nil, a bool, an int64, a float64, a string or a []byte.
// The error is [fs.ErrInvalid] if there is no item i, [shm.ErrCorrupt] if Python does
// not write such an item, or the error of the memory.
func (l *List) Get(i int) (any, error) {
	if err := l.check(i); err != nil {
		return nil, err
	}
	format, code, err := l.kind(i)
	if err != nil {
		return nil, err
	}
	length, text := textLength(format)
	if !text {
		length = word
	}
	if length > l.room(i) {
		return nil, l.corrupt(i, "format %q in a slot of %d bytes", format, l.room(i))
	}
	b := make([]byte, length)
	if err := readFull(l.mem, b, l.offsets[i]); err != nil {
		return nil, err
	}
	switch {
	case format == formatInt && code == codePlain:
		return int64(binary.NativeEndian.Uint64(b)), nil
	case format == formatFloat && code == codePlain:
		return math.Float64frombits(binary.NativeEndian.Uint64(b)), nil
	case format == formatBool && code == codePlain:
		return b[7] != 0, nil
	case format == formatNil && code == codeNil:
		return nil, nil
	case text && code == codeBytes:
		return bytes.TrimRight(b, "\x00"), nil
	case text && code == codeString:
		if b = bytes.TrimRight(b, "\x00"); !utf8.Valid(b) {
			return nil, l.corrupt(i, "a character is cut or not UTF-8")
		}
		return string(b), nil
	}
	return nil, l.corrupt(i, "format %q with code %d", format, code)
}

// Set sets item i to a value of a type that Marshal takes. A string or []byte has at
// most [List.Room] bytes.
//
// The error is [fs.ErrInvalid] if there is no item i or for a value that Python would
// lose or has no type for, [shm.ErrFull] for a string or []byte that is too long, or
// the error of the memory, with which the item may have been changed in part.
func (l *List) Set(i int, value any) error {
	if err := l.check(i); err != nil {
		return err
	}
	it, err := newItem(value)
	if err != nil {
		return fmt.Errorf("shareablelist: item %d: %w", i, err)
	}
	room := l.room(i)
	length := word // of the value and the padding that Python writes
	if it.text() {
		if len(it.value) > room {
			return fmt.Errorf("shareablelist: item %d: %w: %d bytes: must be at most %d", i, shm.ErrFull, len(it.value), room)
		}
		length = room
	}
	for _, step := range []struct {
		bytes  []byte
		offset int64
	}{
		{it.formatBytes(length), l.formatOffset(i)},
		{[]byte{it.code}, l.codeOffset(i)},
		{append(it.value, make([]byte, length-len(it.value))...), l.offsets[i]},
	} {
		if _, err := l.mem.WriteAt(step.bytes, step.offset); err != nil {
			return err
		}
	}
	return nil
}

// Room returns how many bytes a string or []byte in item i can have, 0 if there is no
// item i.
func (l *List) Room(i int) int {
	if l.check(i) != nil {
		return 0
	}
	return l.room(i)
}

// All returns the values of all items as Get returns them, in order.
func (l *List) All() iter.Seq2[any, error] {
	return func(yield func(any, error) bool) {
		for i := range l.Len() {
			if !yield(l.Get(i)) {
				return
			}
		}
	}
}

// Index returns the index of the first item that has the type and value of value, or
// -1 if there is none. The errors are those of Get and Marshal.
func (l *List) Index(value any) (int, error) {
	found := -1
	err := l.equal(value, func(i int) bool {
		found = i
		return false
	})
	return found, err
}

// Count returns the number of items that have the type and value of value. The errors
// are those of Index.
func (l *List) Count(value any) (n int, err error) {
	err = l.equal(value, func(int) bool {
		n++
		return true
	})
	return n, err
}

// equal calls f with the index of each item that has the type and value of value,
// until f returns false.
func (l *List) equal(value any, f func(i int) bool) error {
	it, err := newItem(value)
	if err != nil {
		return fmt.Errorf("shareablelist: %w", err)
	}
	i := 0
	for v, err := range l.All() {
		if err != nil {
			return err
		}
		if same(v, it) && !f(i) {
			break
		}
		i++
	}
	return nil
}

// Format returns the formats of all items as one string, as Python's attribute format
// does. The errors are those of the memory.
func (l *List) Format() (string, error) {
	var all strings.Builder
	for i := range l.Len() {
		format, _, err := l.kind(i)
		if err != nil {
			return "", err
		}
		all.WriteString(format)
	}
	return all.String(), nil
}

func (l *List) check(i int) error {
	if i < 0 || i >= l.Len() {
		return fmt.Errorf("shareablelist: %w: item %d: there are %d", fs.ErrInvalid, i, l.Len())
	}
	return nil
}

func (l *List) corrupt(i int, format string, args ...any) error {
	return fmt.Errorf("shareablelist: item %d: %w: %s", i, shm.ErrCorrupt, fmt.Sprintf(format, args...))
}

// room is at most maxSlot, even if a slot that Python did not write is longer.
func (l *List) room(i int) int { return int(min(l.offsets[i+1]-l.offsets[i], maxSlot)) }

func (l *List) formatOffset(i int) int64 { return l.offsets[l.Len()] + int64(word*i) }
func (l *List) codeOffset(i int) int64   { return l.formatOffset(l.Len()) + int64(i) }

// kind returns the format and the code of item i.
func (l *List) kind(i int) (format string, code byte, err error) {
	var b [word + 1]byte
	if err := readFull(l.mem, b[:word], l.formatOffset(i)); err != nil {
		return "", 0, err
	}
	if err := readFull(l.mem, b[word:], l.codeOffset(i)); err != nil {
		return "", 0, err
	}
	return strings.TrimRight(string(b[:word]), "\x00"), b[word], nil
}

// textLength returns N and true for a format "Ns", that of a string or []byte.
func textLength(format string) (int, bool) {
	digits, ok := strings.CutSuffix(format, "s")
	n, err := strconv.ParseUint(digits, 10, 31)
	return int(n), ok && err == nil
}

// item is a value as it is stored.
type item struct {
	format string // "s", without the length, for a string or []byte
	code   byte
	value  []byte
}

func (it item) text() bool { return it.format == "s" }

// slot is the size of the slot that Python gives a new item. After a string or []byte
// there is at least one NUL.
func (it item) slot() int {
	if it.text() {
		return word * (len(it.value)/word + 1)
	}
	return word
}

// formatBytes returns the format of the item. length is for a string or []byte.
func (it item) formatBytes(length int) []byte {
	format := it.format
	if it.text() {
		format = strconv.Itoa(length) + format
	}
	return append([]byte(format), make([]byte, word-len(format))...)
}

func newItem(value any) (item, error) {
	ne := binary.NativeEndian
	if value == nil {
		return item{formatNil, codeNil, make([]byte, word)}, nil
	}
	switch v := reflect.ValueOf(value); {
	case v.Kind() == reflect.Bool:
		b := make([]byte, word)
		if v.Bool() {
			b[7] = 1
		}
		return item{formatBool, codePlain, b}, nil
	case v.CanInt():
		return item{formatInt, codePlain, ne.AppendUint64(nil, uint64(v.Int()))}, nil
	case v.CanUint():
		if v.Uint() > math.MaxInt64 {
			return item{}, fmt.Errorf("%w: %d: must be at most %d", fs.ErrInvalid, v.Uint(), int64(math.MaxInt64))
		}
		return item{formatInt, codePlain, ne.AppendUint64(nil, v.Uint())}, nil
	case v.CanFloat():
		return item{formatFloat, codePlain, ne.AppendUint64(nil, math.Float64bits(v.Float()))}, nil
	case v.Kind() == reflect.String:
		if !utf8.ValidString(v.String()) {
			return item{}, fmt.Errorf("%w: string is not UTF-8", fs.ErrInvalid)
		}
		return newText(codeString, []byte(v.String()))
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8:
		return newText(codeBytes, bytes.Clone(v.Bytes()))
	}
	return item{}, fmt.Errorf("%w: Python's ShareableList has no %T", fs.ErrInvalid, value)
}

func newText(code byte, b []byte) (item, error) {
	if bytes.HasSuffix(b, []byte{0}) {
		return item{}, fmt.Errorf("%w: Python would lose the NUL at the end", fs.ErrInvalid)
	}
	return item{"s", code, b}, nil
}

// same reports whether v, a value of a list, is stored as it.
func same(v any, it item) bool {
	if f, ok := v.(float64); ok && it.format == formatFloat { // 0 and -0 are equal, NaN is not
		return f == math.Float64frombits(binary.NativeEndian.Uint64(it.value))
	}
	other, err := newItem(v)
	return err == nil && other.format == it.format && other.code == it.code && bytes.Equal(other.value, it.value)
}

func readWord(mem Memory, off int64) (int64, error) {
	var b [word]byte
	err := readFull(mem, b[:], off)
	return int64(binary.NativeEndian.Uint64(b[:])), err
}

// readFull fills b from offset off. It returns shm.ErrCorrupt if the memory ends before.
func readFull(mem Memory, b []byte, off int64) error {
	n, err := mem.ReadAt(b, off)
	switch {
	case n == len(b):
		return nil
	case err == io.EOF, err == nil:
		return fmt.Errorf("shareablelist: %w: too short", shm.ErrCorrupt)
	}
	return err
}
