package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/raw"
)

// A block of the storm begins with a page of words, behind which there is a
// stream that follows from the block's id.
//
//	offset  field, 8 bytes each
//	     0  1 once the stream has been begun
//	     8  1 once somebody has been about to unlink the block
//	    16  raised first by a process that has the lock
//	    24  and then this one, so that they are equal while nobody has it
//	   512  one for each slot, raised by its process
const (
	offBegun    = 0
	offUnlinked = 8
	offFirst    = 16
	offThen     = 24
	offSlots    = 512
	streamStart = 4096
	streamSize  = 20_000
	blockSize   = streamStart + streamSize
)

type blockID = [16]byte

// life is what a process has to do.
type life struct {
	Seed   uint64
	Slot   int
	Number int
	Names  []string
	Exec   bool // start programs at the same time
}

const envLife = "SHM_SOAK_LIFE"

// workerMain leads the life that this process was started for, if it was, and
// does not return then.
func workerMain() {
	s := os.Getenv(envLife)
	if s == "" {
		return
	}
	var l life
	if err := json.Unmarshal([]byte(s), &l); err != nil {
		panic(err)
	}
	unix.CloseOnExec(3) // see start
	j, err := mapJournal(os.NewFile(3, "soak"), l.Slot)
	if err != nil {
		panic(err)
	}
	if err := l.lead(j); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	os.Exit(0)
}

// worker is a process of the storm.
type worker struct {
	life
	journal
	random *rand.Rand
	open   []*attached
}

// attached is a Segment of the worker's.
type attached struct {
	*shm.Segment
	id       blockID
	name     int
	entry    int
	readOnly bool
	words    []byte
	count    uint64 // in the slot's word
}

const operationsInLife = 24

// lead does the operations of the life, until its death if that comes before.
func (l life) lead(j journal) error {
	w := &worker{life: l, journal: j, random: rand.New(rand.NewPCG(l.Seed, uint64(l.Slot)<<32|uint64(l.Number)))}
	deathAt := w.random.IntN(operationsInLife * 5 / 4) // one in five survives
	delay := w.random.Int64N(150_000)
	if l.Exec {
		go execAllTheTime()
	}
	for i := range operationsInLife {
		if i == deathAt {
			go w.die(delay)
		}
		w.operation()
		if err := w.step(); err != nil {
			return fmt.Errorf("operation %d: %w", i, err)
		}
	}
	for len(w.open) > 0 {
		if err := w.close(0); err != nil {
			return err
		}
	}
	if deathAt < operationsInLife {
		select {} // it is on its way
	}
	return w.clean()
}

// die kills this process a few nanoseconds from now, to no other end than that
// nobody can tell where the goroutine that does the operations is then.
func (w *worker) die(delay int64) {
	runtime.LockOSThread()
	for end := now() + delay; now() < end; {
	}
	w.kill()
	unix.Kill(unix.Getpid(), unix.SIGKILL)
}

// execAllTheTime starts one program after the other.
func execAllTheTime() {
	for {
		if err := exec.Command("/bin/true").Run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
	}
}

// step does one operation. What comes out of it must be as promised.
func (w *worker) step() error {
	n := len(w.open)
	switch dice := w.random.IntN(100); {
	case n == 0 || n < 3 && dice < 35:
		return w.attach()
	case dice < 60:
		return w.close(w.random.IntN(n))
	case dice < 68:
		return w.open[w.random.IntN(n)].check()
	case dice < 74:
		return w.open[w.random.IntN(n)].follow()
	case dice < 83:
		return w.meet(w.open[w.random.IntN(n)])
	case dice < 89:
		return w.open[w.random.IntN(n)].lock()
	case dice < 90:
		return w.open[w.random.IntN(n)].keep()
	case dice < 94:
		return w.unlink(w.open[w.random.IntN(n)])
	case dice < 97:
		_, err := shm.Reap()
		return err
	default:
		_, err := shm.List()
		return err
	}
}

func (w *worker) attach() error {
	a := &attached{name: w.random.IntN(len(w.Names))}
	name := w.Names[a.name]
	var opts []shm.Option
	if w.random.IntN(20) == 0 {
		opts = append(opts, shm.Persistent())
	}
	var created bool
	var err error
	switch w.random.IntN(4) {
	case 0:
		if a.Segment, err = shm.Create(name, blockSize, opts...); errors.Is(err, fs.ErrExist) {
			return nil
		}
		created = true
	case 1:
		a.readOnly = w.random.IntN(2) == 0
		if opts = nil; a.readOnly {
			opts = append(opts, shm.ReadOnly())
		}
		if a.Segment, err = shm.Open(name, opts...); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	default:
		a.Segment, created, err = shm.OpenOrCreate(name, blockSize, opts...)
	}
	if err != nil {
		return err
	}
	if a.id, err = idOf(a.Segment); err != nil {
		return err
	}
	a.entry = w.begin(a.name, a.id)
	a.words = a.Bytes()[:streamStart]
	a.count = raw.Uint64(a.words, offSlots+8*w.Slot).Load()
	w.open = append(w.open, a)
	if created {
		return a.fill()
	}
	return a.check()
}

func idOf(seg *shm.Segment) (blockID, error) {
	info, err := seg.Stat()
	if err != nil {
		return blockID{}, err
	}
	return info.Sys().(*shm.Info).ID, nil
}

func (a *attached) word(off int) uint64 { return raw.Uint64(a.words, off).Load() }

func stream(id blockID) io.Reader {
	var seed [32]byte
	copy(seed[:], id[:])
	return io.LimitReader(rand.NewChaCha8(seed), streamSize)
}

// fill streams into a block that this process has created what belongs there.
func (a *attached) fill() error {
	if err := a.Truncate(streamStart); err != nil {
		return err
	}
	raw.Uint64(a.words, offBegun).Store(1)
	if _, err := a.Seek(streamStart, io.SeekStart); err != nil {
		return err
	}
	if _, err := io.Copy(a.Segment, stream(a.id)); err != nil {
		return err
	}
	return a.Finish()
}

// follow follows what is filled into the block, for a moment. It is not truncated again,
// and comes to an end only if it is complete.
func (a *attached) follow() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
	defer cancel()
	f := a.Follow(ctx)
	defer f.Close()
	c := &comparer{want: stream(a.id)}
	if _, err := io.CopyN(io.Discard, f, streamStart); err != nil {
		return a.mayEnd(err)
	}
	_, err := io.Copy(c, f)
	if err == nil && c.n != streamSize {
		err = fmt.Errorf("%d bytes followed to their end", c.n)
	}
	return a.mayEnd(err)
}

func (a *attached) mayEnd(err error) error {
	if err == nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, shm.ErrAbandoned) {
		return nil
	}
	return fmt.Errorf("block %x: %w", a.id[:4], err)
}

// lock raises two words under the lock. They differ only if a process has died between.
func (a *attached) lock() error {
	if a.readOnly {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	recovered, err := a.Lock(ctx)
	if err != nil {
		return fmt.Errorf("block %x: %w", a.id[:4], err)
	}
	first, then := raw.Uint64(a.words, offFirst), raw.Uint64(a.words, offThen)
	if n, m := first.Load(), then.Load(); n != m && !recovered || n-m > 1 {
		return fmt.Errorf("block %x: %d and %d under the lock, recovered %v", a.id[:4], n, m, recovered)
	}
	then.Store(first.Load())
	first.Add(1)
	runtime.Gosched()
	then.Store(first.Load())
	return a.Unlock()
}

func (a *attached) keep() error {
	if a.readOnly {
		return nil
	}
	return a.Keep()
}

// check compares what is in the block, as far as it has been filled, and makes
// sure that the block still has its name.
func (a *attached) check() error {
	if a.word(offBegun) != 0 {
		if _, err := a.Seek(streamStart, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.Copy(&comparer{want: stream(a.id)}, a.Segment); err != nil {
			return fmt.Errorf("block %x: %w", a.id[:4], err)
		}
	}
	info, err := a.Stat()
	if err != nil {
		return err
	}
	// The mark is set before Unlink, and looked at after.
	if !info.Sys().(*shm.Info).Linked && a.word(offUnlinked) == 0 {
		return fmt.Errorf("block %x has lost its name, and nobody has unlinked it", a.id[:4])
	}
	return nil
}

// comparer is a Writer that takes only what it wants.
type comparer struct {
	want io.Reader
	n    int
}

func (c *comparer) Write(p []byte) (int, error) {
	want := make([]byte, len(p))
	if _, err := io.ReadFull(c.want, want); err != nil {
		return 0, fmt.Errorf("more data than was written: %w", err)
	}
	if !bytes.Equal(p, want) {
		return 0, fmt.Errorf("other data than was written, in %d bytes from %d on", len(p), c.n)
	}
	c.n += len(p)
	return len(p), nil
}

// meet attaches once more to a block under its name, which must lead to it.
func (w *worker) meet(a *attached) error {
	peer, err := shm.Open(w.Names[a.name])
	if a.word(offUnlinked) != 0 {
		if err == nil {
			peer.Close() // whatever it is
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("block %x is in use: %w", a.id[:4], err)
	}
	defer peer.Close()
	id, err := idOf(peer)
	if err != nil {
		return err
	}
	if id != a.id && a.word(offUnlinked) == 0 {
		return fmt.Errorf("block %x is in use, but its name leads to %x", a.id[:4], id[:4])
	}
	return w.add(a, peer)
}

// add raises the word of this slot through one Segment, and looks at it through
// another: nobody else has written to it.
func (w *worker) add(a *attached, peer *shm.Segment) error {
	var b [8]byte
	off := int64(offSlots + 8*w.Slot)
	binary.NativeEndian.PutUint64(b[:], a.count+1)
	if _, err := peer.WriteAt(b[:], off); err != nil {
		return err
	}
	got := a.word(int(off))
	for _, other := range w.open {
		if other.id == a.id {
			other.count++
		}
	}
	if got != a.count && a.word(offUnlinked) == 0 {
		return fmt.Errorf("block %x: the word is %d, not %d", a.id[:4], got, a.count)
	}
	return nil
}

func (w *worker) unlink(a *attached) error {
	if a.readOnly { // cannot say so
		return nil
	}
	raw.Uint64(a.words, offUnlinked).Store(1)
	w.journal.unlink(a.name, a.id)
	if err := a.Unlink(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// close checks and closes attachment i.
func (w *worker) close(i int) error {
	a := w.open[i]
	if err := a.check(); err != nil {
		return err
	}
	w.end(a.entry)
	w.open = append(w.open[:i], w.open[i+1:]...)
	return a.Close()
}

// clean returns an error if this process, which has closed everything, still has a
// descriptor or a mapping of a block. Close does not wait for calls in progress, such as
// those that end a wait with its context.
func (w *worker) clean() (err error) {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if err = w.left(); err == nil {
			break
		}
	}
	return err
}

func (w *worker) left() error {
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		return err
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, "/dev/shm/") {
			return fmt.Errorf("a descriptor is left: %s", target)
		}
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, " /dev/shm/") {
			return fmt.Errorf("a mapping is left: %s", line)
		}
	}
	return nil
}
