package shm

import (
	"fmt"
	"reflect"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/shmkit/shm/internal/backoff"
	"github.com/shmkit/shm/internal/gate"
	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/raw"
)

// mapping is the memory of a block, which Close releases while calls use it.
//
// A call uses it in one of two ways. Most calls pass the gate, and the memory stays
// until they leave. Calls that only copy a few bytes do not pass the gate, which is
// faster. Close may then revoke the memory in the middle of such a call, but not its
// addresses: the call gets a fault, as any access to the memory may, and finds the
// gate closed. The addresses stay unused until drop, when no call can be left.
type mapping struct {
	file   object.Object // reads and writes without the mapping
	mem    []byte        // all that is mapped
	head   header        // in mem; that of a raw block is in ordinary memory
	data   []byte        // the bytes of the block: mem from start on
	start  int64         // where the bytes of the block begin in the object
	sparse bool          // pages may be without memory
	hollow bool          // pages are read without the mapping, which would allocate them

	gate gate.Gate     // keeps mem and file while calls use them
	pass atomic.Uint32 // one of the pass values, first set by decideQuick, last by close
	lent atomic.Bool   // set by Bytes: the program may have a slice, which the collector does not see
	kept bool          // set by close: the addresses of mem stay unused until drop

	sleepers atomic.Int32    // calls that sleep, or are about to
	spins    backoff.Backoff // of waitAwake
	yields   backoff.Backoff

	warmed atomic.Uint64 // the largest end of a long write to data; see fresh
}

const (
	passUndecided = iota // there was no short copy: Close need not keep addresses
	passQuick            // short copies do not pass the gate
	passGate             // all calls pass the gate
)

// mapObject maps the first length bytes of the object, the first writable ones of
// them for writing. The first headerSize bytes are the header; 0 means none.
func (m *mapping) mapObject(o object.Object, headerSize, length, writable int, populate bool) error {
	mem, err := o.Map(length, writable, populate)
	if err != nil {
		return err
	}
	m.mem, m.data, m.start = mem, mem[headerSize:], int64(headerSize)
	m.head = header(mem)
	if headerSize == 0 {
		m.head = newRawHeader(len(mem))
	}
	if populate {
		m.warm(int64(len(m.data)))
	}
	return nil
}

// free releases the memory and the object. The gate calls it when the last call that
// has passed the gate has left.
func (m *mapping) free() {
	switch {
	case m.kept:
		object.Current.Revoke(m.mem) // if that fails, the memory stays until drop
	case m.lent.Load():
		retire(m.mem)
	case m.mem != nil:
		object.Current.Unmap(m.mem)
	}
	m.file.Close()
}

// release releases the addresses that were kept for quick calls: none is left.
func (m *mapping) release() {
	if !m.kept {
		return
	}
	if m.lent.Load() {
		retire(m.mem)
	} else {
		object.Current.Unmap(m.mem)
	}
	kept.Add(-keeps(m.mem))
}

// decideQuick decides whether later short copies pass the gate. They do if too many
// addresses would be kept until the collector runs, and if reads use the descriptor,
// which Close closes.
func (m *mapping) decideQuick() {
	if m.pass.Load() != passUndecided {
		return
	}
	pass, n := uint32(passQuick), keeps(m.mem)
	if kept.Add(n) > object.Current.Revocable() || raw.Race || m.hollow {
		pass = passGate
	}
	if !m.pass.CompareAndSwap(passUndecided, pass) || pass == passGate {
		kept.Add(-n)
	}
}

// kept is the address space, in bytes, that is or will be kept until drop.
var kept atomic.Int64

// keeps returns what a mapping counts for in kept. The number of mappings is limited
// as well (vm.max_map_count, 65,530), so a small mapping counts for more than its
// length.
func keeps(mem []byte) int64 { return max(int64(len(mem)), 8<<20) }

// retired has the mappings of closed Segments whose Bytes had been called, oldest
// first. No call uses them, but the program may still have a slice. If the addresses
// were free, the next mapping of this size would get them, and a store to the slice
// would change another block.
var retired struct {
	sync.Mutex
	mem  [][]byte
	size int64
}

// retire releases the memory of a mapping and keeps its addresses, until mappings
// retired later and this one add up to more than Revocable.
func retire(mem []byte) {
	limit := object.Current.Revocable()
	if keeps(mem) > limit {
		object.Current.Unmap(mem)
		return
	}
	object.Current.Revoke(mem) // if that fails, the memory stays as long as the addresses
	retired.Lock()
	defer retired.Unlock()
	retired.mem = append(retired.mem, mem)
	retired.size += keeps(mem)
	for retired.size > limit {
		oldest := retired.mem[0]
		retired.mem = retired.mem[1:]
		retired.size -= keeps(oldest)
		object.Current.Unmap(oldest)
	}
}

// A mapping can lose its memory at any time: another process truncates the object,
// or there is no memory for a page of a Sparse block. The kernel then raises SIGBUS,
// which ends a Go program unless the goroutine has called debug.SetPanicOnFault. So
// every access to a mapping is made under guard, tryRead or tryWrite.

// guard calls f, which may access the mapping. It returns ErrFault if an access
// failed, otherwise the error of f.
func (m *mapping) guard(f func() error) error {
	at, err := m.try(f)
	if at < 0 { // f has called panic(nil); after runtime.Goexit try does not return
		panic(nil)
	}
	if err == ErrFault {
		err = m.faultReason(int64(at))
	}
	return err
}

// try is guard without the reason: it returns ErrFault and where in the mapping the
// fault was, and at < 0 if f ended in another way without a value to recover.
func (m *mapping) try(f func() error) (at int, err error) {
	before := debug.SetPanicOnFault(true)
	done := false
	defer func() {
		debug.SetPanicOnFault(before)
		if done {
			return
		}
		if at = m.faultAt(recover()); at >= 0 {
			err = ErrFault
		}
	}()
	err = f()
	done = true
	return 0, err
}

// faultAt returns where in the mapping the fault was that r, a result of recover,
// stands for. It returns -1 if r is nil, and panics again with any other value.
func (m *mapping) faultAt(r any) int {
	if r == nil {
		return -1
	}
	// The type of a fault is not exported, and a program can define one like it.
	if fault, ok := r.(interface{ Addr() uintptr }); ok && packageOf(r) == "runtime" {
		if at := raw.Index(m.mem, fault.Addr()); at >= 0 {
			return at
		}
	}
	panic(r)
}

// packageOf returns the import path of the package that v's type is from.
func packageOf(v any) string {
	t := reflect.TypeOf(v)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.PkgPath()
}

// faultReason returns ErrFault with the reason why the byte at offset at of the
// object is not there.
func (m *mapping) faultReason(at int64) error {
	st, err := m.file.Stat()
	switch {
	case err != nil || st.Size <= at:
		return fmt.Errorf("%w: the block has been truncated", ErrFault)
	case m.sparse:
		return fmt.Errorf("%w: %w", ErrFault, ErrNoSpace)
	}
	return ErrFault
}

// words calls f with the words of the header. It returns ErrFault if another process
// has truncated the object so far that the header is lost.
func (m *mapping) words(f func(h header)) error {
	return m.guard(func() error {
		f(m.head)
		return nil
	})
}

// size returns the Size of the block, or ErrFault if the header is lost.
func (m *mapping) size() (size int64, err error) {
	err = m.guard(func() error {
		size = m.loadSize()
		return nil
	})
	return size, err
}

// loadSize is size for a caller that is under guard itself. A word larger than Cap
// was written by another program.
func (m *mapping) loadSize() int64 {
	return int64(min(m.head.loadSize().length(), uint64(len(m.data))))
}

// tryRead copies from the mapping. It returns how many bytes it has copied and the
// size of the block, or a negative size if there was a fault.
func (m *mapping) tryRead(p []byte, off int64) (n int, size int64) {
	size = -1
	before := debug.SetPanicOnFault(true)
	defer func() { // short and with few variables: it is the largest cost of a short read
		debug.SetPanicOnFault(before)
		if size < 0 {
			m.faultAt(recover())
		}
	}()
	have := m.loadSize()
	if off < have {
		n = copy(p, m.data[off:have])
	}
	size = have
	return n, size
}

// readAround reads by system calls, not through the mapping. Where the mapping would
// fault they return an error, and for pages of a sparse block that were never written
// they return zeros and allocate nothing.
func (m *mapping) readAround(p []byte, off int64) (n int, err error) {
	return m.around(p, m.start+off, m.file.ReadAt)
}

// around calls move, which is ReadAt or WriteAt, until it has moved all of p.
func (m *mapping) around(p []byte, at int64, move func(p []byte, off int64) (int, error)) (n int, err error) {
	for n < len(p) {
		moved, err := move(raw.Unkept(p[n:]), at+int64(n))
		if moved <= 0 || err != nil {
			return n, m.faultReason(at + int64(n))
		}
		n += moved
	}
	return n, nil
}

// writeAround writes by system calls, not through the mapping. It does not lengthen
// a truncated object.
func (m *mapping) writeAround(p []byte, off int64) (n int, err error) {
	at := m.start + off
	st, err := m.file.Stat()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrFault, err)
	}
	fits := int(min(max(st.Size-at, 0), int64(len(p))))
	if n, err = m.around(p[:fits], at, m.file.WriteAt); err == nil && n < len(p) {
		err = m.faultReason(at + int64(n))
	}
	return n, err
}

// fresh reports whether a long write up to end goes by the file and not by the
// mapping. In the mapping the first write to a page costs a page fault, which is
// half of its time, and later writes are three times faster than by the file. So
// a write goes by the file if it goes beyond all earlier long writes and Prefault.
func (m *mapping) fresh(end int64) bool {
	return object.Current.Limits().Files && uint64(end) > m.warmed.Load()
}

func (m *mapping) warm(end int64) { raise(&m.warmed, uint64(end)) }

// reaches reports whether the object is long enough for the data up to end. A write
// by the file would lengthen an object that another program has truncated.
func (m *mapping) reaches(end int64) bool {
	info, err := m.file.Stat()
	return err == nil && info.Size >= m.start+end
}
