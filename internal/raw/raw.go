// Package raw is the only portable place of the module that imports unsafe: it
// looks at bytes of a mapping as atomic words, and at addresses as numbers.
package raw

import (
	"sync/atomic"
	"unsafe"
)

// Uint32 returns the four bytes at b[off] as an atomic word. It panics where
// they are not all inside b; off must be a multiple of 4 and b page-aligned.
func Uint32(b []byte, off int) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&b[off : off+4][0]))
}

// Uint64 is Uint32 for eight bytes; off must be a multiple of 8.
func Uint64(b []byte, off int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&b[off : off+8][0]))
}

// Index returns i such that &b[i] is addr, or -1 where addr is not in b.
func Index(b []byte, addr uintptr) int {
	if i := addr - uintptr(unsafe.Pointer(unsafe.SliceData(b))); i < uintptr(len(b)) {
		return int(i)
	}
	return -1
}

// Within reports whether p, which is not empty, begins in b.
func Within(p, b []byte) bool { return Index(b, uintptr(unsafe.Pointer(&p[0]))) >= 0 }

// Pointer returns the address of b[0] as system calls take it.
func Pointer(b []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b)) }

// Slice returns the n bytes at p, which the caller keeps there.
func Slice(p unsafe.Pointer, n int) []byte { return unsafe.Slice((*byte)(p), n) }

// Unkept returns p in a form that the compiler does not move to the heap for being
// passed to a method of an interface. The method must not keep it.
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

// Spread returns a number that tends to differ between goroutines that run at
// the same time, and to stay the same within one: it is drawn from the address
// of the stack. Nothing but speed may depend on it.
func Spread() uint32 {
	var here byte
	// Stacks are at least 2 KiB apart; the multiplication (Fibonacci hashing)
	// carries every bit of the address into the upper half of the result.
	return uint32(uint64(uintptr(unsafe.Pointer(&here))>>11) * 0x9E3779B97F4A7C15 >> 32)
}
