package shm

import (
	"fmt"
	"reflect"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/shmkit/shm/internal/gate"
	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/raw"
)

// mapping is the memory of a block, which Close takes away while calls use it.
//
// A call uses it in one of two ways. Most pass the gate: the memory stays until
// they leave. Those that only copy a few bytes do without, which is quicker: Close
// then revokes the memory in the middle of the call, but not its addresses. The
// call gets a fault, which it has to expect of all access to the memory, and finds
// the gate closed. The addresses stay unused until drop, when no call can be left.
type mapping struct {
	file   object.Object // moves bytes past the mapping
	mem    []byte        // all that is mapped
	head   header        // in mem; that of a raw block is in ordinary memory
	data   []byte        // the bytes of the block: mem from start on
	start  int64         // where the bytes of the block begin in the object
	sparse bool          // pages may be without memory
	hollow bool          // so they are read past the mapping, to take none

	gate gate.Gate     // keeps mem and file while calls use them
	pass atomic.Uint32 // one of the pass values, first set by decideQuick, last by close
	lent atomic.Bool   // set by Bytes: slices may be left, which the collector does not know
	kept bool          // set by close: the addresses of mem stay unused until drop

	warmed atomic.Uint64 // how far long writes have come in data; see fresh
}

const (
	passUndecided = iota // no short copy so far: Close need not keep addresses
	passQuick            // short copies do without the gate
	passGate             // all calls pass the gate
)

// mapObject maps the first length bytes of the object, which begin with a header
// of headerSize bytes, or with none. The first writable bytes can be written to.
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

// free releases the memory and the object. The gate calls it when no call that has
// passed it is left.
func (m *mapping) free() {
	switch {
	case m.kept:
		object.Current.Revoke(m.mem) // or else the memory stays until drop
	case m.lent.Load():
		retire(m.mem)
	case m.mem != nil:
		object.Current.Unmap(m.mem)
	}
	m.file.Close()
}

// release ends the keeping of addresses for quick calls: there can be none.
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

// decideQuick has short copies from now on do without the gate, unless the
// addresses that are kept could come to too much until the collector runs, or
// reading takes the descriptor, which Close closes.
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

// kept is how much address space is or will be kept until drop.
var kept atomic.Int64

// keeps is how much of it a mapping counts for. There is a limit to the number
// of mappings as well (vm.max_map_count, 65,530), so a small one counts for more
// than it is.
func keeps(mem []byte) int64 { return max(int64(len(mem)), 8<<20) }

// retired has the mappings of closed Segments whose Bytes had been called, oldest
// first. No call uses them, but the program may have a slice left, of which the
// collector knows nothing. Were the addresses free, the next mapping of the size
// would get them, and a store to the slice would change another block.
var retired struct {
	sync.Mutex
	mem  [][]byte
	size int64
}

// retire gives back the memory of a mapping and keeps its addresses, until so
// many have been retired after it that they come to more than Revocable.
func retire(mem []byte) {
	limit := object.Current.Revocable()
	if keeps(mem) > limit {
		object.Current.Unmap(mem)
		return
	}
	object.Current.Revoke(mem) // or else the memory stays as long as the addresses
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
// or there is none for a page of a Sparse block. The kernel then raises SIGBUS,
// which ends a Go program unless the goroutine has asked for a panic instead. So
// every access to a mapping runs where that has been asked for.

// guard runs f, which may access the mapping. It returns ErrFault if that failed,
// otherwise what f returns.
func (m *mapping) guard(f func() error) error {
	at, err := m.try(f)
	if at < 0 { // f has panicked with nil: after runtime.Goexit nothing gets here
		panic(nil)
	}
	if err == ErrFault {
		err = m.faultReason(int64(at))
	}
	return err
}

// try is guard, with ErrFault for a fault and where it was, and at < 0 if f
// ended otherwise without a value to recover.
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

// faultAt returns where in the mapping the fault was that r, from recover, came
// of. It lets all other panics go on, and returns -1 if r is nil.
func (m *mapping) faultAt(r any) int {
	if r == nil {
		return -1
	}
	// debug.SetPanicOnFault names no type; a program can have one that looks alike.
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

// faultReason says why the byte at offset at of the object is not there.
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

// words runs f on the words of the header. It returns ErrFault if the header is
// gone because another process has truncated the object.
func (m *mapping) words(f func(h header)) error {
	return m.guard(func() error {
		f(m.head)
		return nil
	})
}

// size returns the Size of the block, or ErrFault if the header is gone.
func (m *mapping) size() (size int64, err error) {
	err = m.guard(func() error {
		size = m.loadSize()
		return nil
	})
	return size, err
}

// loadSize is size for a caller that is under guard itself. A size beyond the
// capacity is what another process has scribbled.
func (m *mapping) loadSize() int64 { return int64(min(m.head.size().Load(), uint64(len(m.data)))) }

// tryRead returns how many bytes it has copied and the size of the block, or a
// negative size if there was a fault.
func (m *mapping) tryRead(p []byte, off int64) (n int, size int64) {
	size = -1
	before := debug.SetPanicOnFault(true)
	defer func() { // short and with little to carry: it is what a short read costs most
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

// readAround reads by system calls, which return an error where the mapping would
// fault: they end where the object ends, and find zeros, for which they take no
// memory, where a page of a sparse block was never written.
func (m *mapping) readAround(p []byte, off int64) (n int, err error) {
	for at := m.start + off; n < len(p); {
		got, err := m.file.ReadAt(raw.Unkept(p[n:]), at+int64(n))
		if got <= 0 || err != nil {
			return n, m.faultReason(at + int64(n))
		}
		n += got
	}
	return n, nil
}

// writeAround is readAround for a write. It leaves a truncated object as short
// as it is.
func (m *mapping) writeAround(p []byte, off int64) (n int, err error) {
	at := m.start + off
	st, err := m.file.Stat()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrFault, err)
	}
	fits := int(min(max(st.Size-at, 0), int64(len(p))))
	for n < fits {
		put, err := m.file.WriteAt(raw.Unkept(p[n:fits]), at+int64(n))
		if put <= 0 || err != nil {
			return n, m.faultReason(at + int64(n))
		}
		n += put
	}
	if n < len(p) {
		return n, m.faultReason(at + int64(n))
	}
	return n, nil
}

// fresh reports whether a long write up to end goes by the file and not by the
// mapping. The first write to a page costs a page fault in the mapping, which is
// half of the time, and none by the file; any later write is three times faster
// in the mapping. So each goes by the file that goes beyond where a long one,
// or Prefault, has been before.
func (m *mapping) fresh(end int64) bool {
	return object.Current.Limits().Files && uint64(end) > m.warmed.Load()
}

func (m *mapping) warm(end int64) { raise(&m.warmed, uint64(end)) }

// reaches reports whether the object has all bytes of the data up to end, which
// a write by the file would otherwise add.
func (m *mapping) reaches(end int64) bool {
	info, err := m.file.Stat()
	return err == nil && info.Size >= m.start+end
}
