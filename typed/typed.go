// Package typed gives access to the memory of a block as numbers and structs, without
// package unsafe.
//
// A type can be used if it has the same layout on every system that Go runs on: so
// processes for different architectures can share it, and nothing in it is meaningless
// elsewhere. These are
//
//   - numbers of fixed size: int8 to int64, uint8 to uint64, float32, float64, complex64
//     and complex128, and types that are defined as these;
//   - [atomic.Int32], [atomic.Int64], [atomic.Uint32] and [atomic.Uint64];
//   - arrays and structs of them, without fields of size 0.
//
// In a struct each number must be at a multiple of its own size (a complex one of half of
// it), and its length must be a multiple of that of its largest number, without gaps that
// the compiler would fill: struct{ a uint32; b uint64 } has 12 bytes on one system and 16
// on another. Fill gaps with a blank array: struct{ a uint32; _ [4]byte; b uint64 }. Any
// other type is [fs.ErrInvalid], as are int, uint, uintptr, bool, strings and all that has
// pointers.
//
// Numbers are in the machine's own byte order. Processes that access the same number at
// the same time, of which one writes, must use the types of package sync/atomic.
package typed

import (
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"sync"
	"sync/atomic"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/raw"
)

// Slice returns n values of type T in the memory of the block, from offset off on, which
// can be anywhere below Cap. It is valid as long as the slice of [shm.Segment.Bytes] is,
// and using it later crashes the program as well; see [View].
//
// The error is [fs.ErrInvalid] for a type that has not the same layout everywhere, for an
// off that is negative or not a multiple of the type's largest number, and for values that
// do not fit below Cap; or [fs.ErrClosed].
func Slice[T any](seg *shm.Segment, off int64, n int) ([]T, error) {
	t, err := check[T](off, n, seg.Cap())
	if err != nil {
		return nil, err
	}
	b := seg.Bytes()
	if b == nil {
		return nil, fmt.Errorf("%w: no memory", fs.ErrClosed)
	}
	return raw.Cast[T](b[:cap(b)][off:off+int64(n)*t.size], n), nil
}

// Pointer returns a pointer to the value of type T at offset off. What is said of [Slice]
// holds for it. It is meant for a struct of atomic values, which must not be copied.
func Pointer[T any](seg *shm.Segment, off int64) (*T, error) {
	s, err := Slice[T](seg, off, 1)
	if err != nil {
		return nil, err
	}
	return &s[0], nil
}

// View calls f with what Slice returns, and returns the error of f. As in
// [shm.Segment.View] the memory stays valid until f returns, also if the Segment is closed
// in the meantime, and memory that is not there is [shm.ErrFault]. f must not keep the
// slice.
func View[T any](seg *shm.Segment, off int64, n int, f func(s []T) error) error {
	t, err := check[T](off, n, seg.Cap())
	if err != nil {
		return err
	}
	return seg.View(func(b []byte) error {
		return f(raw.Cast[T](b[:cap(b)][off:off+int64(n)*t.size], n))
	})
}

// layout is what there is to know of a type.
type layout struct {
	size  int64 // bytes
	align int64 // size of the largest number in it
	err   error // why it cannot be used
}

// layouts has those that have been used, by reflect.Type.
var layouts sync.Map

// check returns the layout of T, and an error unless n of them fit from off on.
func check[T any](off int64, n int, capacity int64) (*layout, error) {
	typ := reflect.TypeFor[T]()
	found, ok := layouts.Load(typ)
	if !ok {
		found, _ = layouts.LoadOrStore(typ, newLayout(typ))
	}
	t := found.(*layout)
	switch {
	case t.err != nil:
		return nil, t.err
	case off < 0 || off%t.align != 0:
		return nil, fmt.Errorf("%w: offset %d: must be a multiple of %d", fs.ErrInvalid, off, t.align)
	case n < 0 || off > capacity || int64(n) > (capacity-off)/t.size:
		return nil, fmt.Errorf("%w: %d values of %d bytes from %d: must end by %d", fs.ErrInvalid, n, t.size, off, capacity)
	}
	return t, nil
}

func newLayout(typ reflect.Type) *layout {
	size, align, err := measure(typ)
	switch {
	case err != nil:
	case size == 0:
		err = errors.New("has size 0")
	case size != int64(typ.Size()):
		err = fmt.Errorf("has %d bytes and not %d", typ.Size(), size)
	}
	if err != nil {
		err = fmt.Errorf("%w: type %v %w", fs.ErrInvalid, typ, err)
	}
	return &layout{size, max(align, 1), err}
}

// atomics are structs whose fields are not for others.
var atomics = map[reflect.Type]int64{
	reflect.TypeFor[atomic.Int32]():  4,
	reflect.TypeFor[atomic.Uint32](): 4,
	reflect.TypeFor[atomic.Int64]():  8,
	reflect.TypeFor[atomic.Uint64](): 8,
}

// measure returns the size of a type and of the largest number in it, without asking how
// this system lays it out.
func measure(typ reflect.Type) (size, align int64, err error) {
	if size, ok := atomics[typ]; ok {
		return size, size, nil
	}
	switch typ.Kind() {
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		size = int64(typ.Size())
		return size, size, nil
	case reflect.Complex64, reflect.Complex128:
		size = int64(typ.Size())
		return size, size / 2, nil
	case reflect.Array:
		size, align, err = measure(typ.Elem())
		return size * int64(typ.Len()), align, err
	case reflect.Struct:
		return measureStruct(typ)
	}
	return 0, 0, fmt.Errorf("has a %v, which is not a number of fixed size", typ.Kind())
}

func measureStruct(typ reflect.Type) (size, align int64, err error) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		n, a, err := measure(f.Type)
		switch {
		case err != nil:
			return 0, 0, fmt.Errorf("field %s %w", f.Name, err)
		case n == 0:
			return 0, 0, fmt.Errorf("field %s has size 0", f.Name)
		case size%a != 0:
			return 0, 0, fmt.Errorf("field %s is at %d: must be at a multiple of %d", f.Name, size, a)
		}
		size, align = size+n, max(align, a)
	}
	if align > 0 && size%align != 0 {
		return 0, 0, fmt.Errorf("has %d bytes: must be a multiple of %d", size, align)
	}
	return size, align, nil
}
