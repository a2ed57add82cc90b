// Package raw has the portable code of the module that needs unsafe: it accesses bytes
// of a mapping as atomic words, and addresses as numbers.
package raw

import (
	"sync/atomic"
	"unsafe"
)

// Uint32 returns the four bytes at b[off] as an atomic word. It panics if they are not
// all in b. off must be a multiple of 4, and b page-aligned.
func Uint32(b []byte, off int) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&b[off : off+4][0]))
}

// Uint64 is Uint32 for eight bytes. off must be a multiple of 8.
func Uint64(b []byte, off int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&b[off : off+8][0]))
}

// Index returns i such that &b[i] is addr, or -1 if addr is not in b.
func Index(b []byte, addr uintptr) int {
	if i := addr - uintptr(unsafe.Pointer(unsafe.SliceData(b))); i < uintptr(len(b)) {
		return int(i)
	}
	return -1
}

// Within reports whether p, which is not empty, begins in b.
func Within(p, b []byte) bool { return Index(b, uintptr(unsafe.Pointer(&p[0]))) >= 0 }

// Pointer returns the address of b[0] for a system call.
func Pointer(b []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b)) }

// Slice returns the n bytes at p, which must stay there as long as the slice is used.
func Slice(p unsafe.Pointer, n int) []byte { return unsafe.Slice((*byte)(p), n) }

// Unkept returns p so that passing it to a method of an interface does not make the
// compiler move it to the heap. The method must not keep it.
//
//go:nocheckptr
func Unkept(p []byte) []byte {
	address := uintptr(unsafe.Pointer(unsafe.SliceData(p)))
	return unsafe.Slice((*byte)(unsafe.Add(nil, address)), len(p))
}

// Bytes returns the bytes of s, which must not be written to.
func Bytes(s string) []byte {
	return unsafe.Slice(unsafe.StringData(s), len(s))
}

// Spread returns a number, made from the address of the stack, that tends to differ
// between goroutines and to stay the same within one. Only speed may depend on it.
func Spread() uint32 {
	var here byte
	// Stacks are at least 2 KiB apart; the multiplication (Fibonacci hashing)
	// carries every bit of the address into the upper half of the result.
	return uint32(uint64(uintptr(unsafe.Pointer(&here))>>11) * 0x9E3779B97F4A7C15 >> 32)
}

// Cast returns the bytes of b as n values of type T. b must have as many bytes, and be
// aligned for T.
func Cast[T any](b []byte, n int) []T {
	if n == 0 {
		return []T{}
	}
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(b))), n)
}
