package shm_test

import (
	"bytes"
	"errors"
	"io/fs"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/internal/raw"
)

// bytesKeeper closes Segments, makes new blocks of the same size, and stores to
// the slices that Bytes of the old ones returned.
var bytesKeeper = proctest.Register("bytes keeper", func(p *proctest.Parent) error {
	const size, n = 1 << 20, 5
	var segs []*shm.Segment
	var slices [][]byte
	for range n {
		seg, err := bytesKinds[p.Args[0]](size)
		if err != nil {
			return err
		}
		segs, slices = append(segs, seg), append(slices, seg.Bytes())
	}
	for _, seg := range segs {
		if p.Args[1] == "read" || p.Args[1] == "dropped" {
			seg.ReadAt(make([]byte, 1), 0)
		}
		if err := seg.Close(); err != nil {
			return err
		}
	}
	if p.Args[1] == "dropped" {
		clear(segs)
		for range 3 {
			runtime.GC()
		}
	}
	var names []string
	for range 2 * n {
		seg, err := shm.Create("", size)
		if err != nil {
			return err
		}
		defer seg.Close()
		names = append(names, seg.Name())
	}
	p.Say("%s", strings.Join(names, " "))
	p.Hear()
	if p.Args[1] == "unguarded" {
		slices[0][0] = 1
		return nil
	}
	faults := 0
	for _, b := range slices {
		for _, i := range []int{0, size / 2, size - 1} {
			if faulty(func() { b[i] = 1 }) {
				faults++
			}
		}
	}
	runtime.KeepAlive(segs)
	p.Say("%d faults", faults)
	p.Hear()
	return nil
})

// bytesKinds makes one Segment of each kind.
var bytesKinds = map[string]func(size int64) (*shm.Segment, error){
	"Create":    func(size int64) (*shm.Segment, error) { return shm.Create("", size) },
	"Anonymous": func(size int64) (*shm.Segment, error) { return shm.Anonymous(size) },
	"Headerless": func(size int64) (*shm.Segment, error) {
		seg, err := shm.Create("", size, shm.Headerless())
		if err == nil {
			seg.Unlink()
		}
		return seg, err
	},
	"FromFile": func(size int64) (*shm.Segment, error) {
		seg, err := shm.Create("", size)
		if err != nil {
			return nil, err
		}
		defer seg.Close()
		f, err := seg.File()
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return shm.FromFile(f)
	},
	"ReadOnly": func(size int64) (*shm.Segment, error) {
		seg, err := shm.Create("", size)
		if err != nil {
			return nil, err
		}
		defer seg.Close()
		return shm.Open(seg.Name(), shm.ReadOnly())
	},
}

// faulty reports whether f ends by a memory fault.
func faulty(f func()) (fault bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { fault = recover() != nil }()
	f()
	return false
}

// TestBytesAfterClose stores to slices from Bytes after Close, in a process of
// its own: no other block that the process attaches to may get the bytes.
func TestBytesAfterClose(t *testing.T) {
	if shm.Revocable() == 0 {
		t.Skip("Close keeps no addresses on this system")
	}
	for kind := range bytesKinds {
		for _, use := range []string{"nothing", "read", "dropped", "unguarded"} {
			t.Run(kind+"/"+use, func(t *testing.T) {
				c := proctest.Start(t, bytesKeeper, kind, use)
				var blocks []*shm.Segment
				for name := range strings.FieldsSeq(c.Hear()) {
					blocks = append(blocks, attach(t, name))
				}
				c.Say("go on")
				if use == "unguarded" {
					if err := c.Cmd.Wait(); err == nil {
						t.Error("the child goes on")
					}
				} else {
					if got := c.Hear(); got != "15 faults" {
						t.Errorf("of 15 stores the child reports %s", got)
					}
					c.Wait()
				}
				for _, seg := range blocks {
					for i, b := range content(t, seg) {
						if b != 0 {
							t.Fatalf("byte %d of a new block is %d", i, b)
						}
					}
				}
			})
		}
	}
}

// ownFault is an error of the program's own that looks like the one of the
// runtime that says where a fault was.
type ownFault struct{ addr uintptr }

func (f ownFault) Error() string { return "own fault" }
func (f ownFault) RuntimeError() {}
func (f ownFault) Addr() uintptr { return f.addr }

// ownAddress is the same without being a runtime.Error.
type ownAddress uintptr

func (f ownAddress) Addr() uintptr { return uintptr(f) }

// TestViewForeignFault has the function of View panic with values that have an
// address in the block, and are not the runtime's: they are its own.
func TestViewForeignFault(t *testing.T) {
	seg := block(t, 100)
	for what, make := range map[string]func(addr uintptr) any{
		"error":         func(addr uintptr) any { return ownFault{addr} },
		"pointer":       func(addr uintptr) any { return &ownFault{addr} },
		"address":       func(addr uintptr) any { return ownAddress(addr) },
		"runtime.Error": func(addr uintptr) any { return struct{ runtime.Error }{ownFault{addr}} },
	} {
		t.Run(what, func(t *testing.T) {
			var want any
			defer func() {
				if r := recover(); r != want || r == nil {
					t.Errorf("recovered %v, want %v", r, want)
				}
			}()
			err := seg.View(func(b []byte) error {
				want = make(uintptr(raw.Pointer(b)))
				panic(want)
			})
			t.Errorf("View returned %v", err)
		})
	}
}

// nilPanic reports whether View returns although its function panics with nil,
// in a process in which recover returns nil for that.
var nilPanic = proctest.Register("nil panic", func(p *proctest.Parent) error {
	seg, err := shm.Create("", 100)
	if err != nil {
		return err
	}
	defer seg.Close()
	returned := false
	func() {
		defer func() {
			if r := recover(); r != nil {
				err = errors.New("recover returns something")
			}
		}()
		seg.View(func([]byte) error {
			var nothing any
			panic(nothing)
		})
		returned = true
	}()
	done := make(chan bool)
	go func() {
		defer close(done)
		seg.View(func([]byte) error { runtime.Goexit(); return nil })
		err = errors.New("Goexit does not end the goroutine")
	}()
	<-done
	if returned {
		err = errors.New("View returns")
	}
	return err
})

func TestViewNilPanic(t *testing.T) {
	cmd := proctest.Command(nilPanic)
	cmd.Env = append(cmd.Env, "GODEBUG=panicnil=1")
	proctest.StartCommand(t, cmd).Wait()
}

// TestCloseUnderCopy closes Segments while goroutines copy without the gate, and
// makes a new block at once. Copies that Close overtakes end with fs.ErrClosed,
// and none reaches the new block. The race detector has all copies go by the
// gate, so this is for the build without it.
func TestCloseUnderCopy(t *testing.T) {
	if !shm.Quick(block(t, 1)) {
		t.Skip("all copies go by the gate")
	}
	const size = 16 << 10 // as much as is copied without it
	var overtaken atomic.Int64
	for range rounds(100) {
		const old, new = 0xaa, 0x55
		seg := block(t, size)
		peer := attach(t, seg.Name())
		fill := bytes.Repeat([]byte{old}, size)
		if _, err := seg.WriteAt(fill, 0); err != nil || !shm.Quick(seg) {
			t.Fatalf("quick: %v, %v", shm.Quick(seg), err)
		}
		var closing atomic.Bool
		var all sync.WaitGroup
		started := make(chan bool, 4)
		for i := range cap(started) {
			p := slices.Clone(fill)
			all.Go(func() {
				for first := true; ; first = false {
					before := !closing.Load()
					var n int
					var err error
					if i%2 == 0 {
						clear(p)
						n, err = seg.ReadAt(p, 0)
					} else {
						n, err = seg.WriteAt(p, 0)
					}
					if first {
						started <- true
					}
					if errors.Is(err, fs.ErrClosed) {
						if n != 0 {
							t.Errorf("%d bytes of a closed Segment", n)
						}
						if before {
							overtaken.Add(1)
						}
						return
					}
					if n != size || err != nil || !bytes.Equal(p, fill) {
						t.Errorf("%d bytes, %v, equal: %v", n, err, bytes.Equal(p, fill))
						return
					}
				}
			})
		}
		for range cap(started) {
			<-started
		}
		closing.Store(true)
		if err := seg.Close(); err != nil {
			t.Error(err)
		}
		next := block(t, size)
		next.WriteAt(bytes.Repeat([]byte{new}, size), 0)
		all.Wait()
		if got := content(t, next); bytes.Count(got, []byte{new}) != size {
			t.Fatal("a copy has reached the next block")
		}
		if !bytes.Equal(content(t, peer), fill) {
			t.Fatal("the old block has changed")
		}
		next.Close()
		peer.Close()
	}
	t.Logf("%d copies were overtaken", overtaken.Load())
	if overtaken.Load() == 0 && runtime.GOMAXPROCS(0) > 1 {
		t.Error("Close has not overtaken any copy")
	}
}
