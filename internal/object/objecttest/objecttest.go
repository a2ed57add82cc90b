// Package objecttest has the tests that every implementation of package object
// must pass, and an implementation in ordinary memory that passes them.
package objecttest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/raw"
)

// Run tests that sys keeps the contract of package object, as far as one process
// can see. What the system does when a process ends takes more than one, and is
// what the tests of package shm that kill processes are about.
func Run(t *testing.T, sys object.System) {
	for name, test := range map[string]func(*testing.T, fixture){
		"Birth":     testBirth,
		"Taken":     testTaken,
		"Memory":    testMemory,
		"Mutex":     testMutex,
		"Joined":    testJoined,
		"Holders":   testHolders,
		"Writers":   testWriters,
		"Tags":      testTags,
		"Sleep":     testSleep,
		"Watch":     testWatch,
		"Leave":     testLeave,
		"Unlink":    testUnlink,
		"List":      testList,
		"Handed":    testHanded,
		"Anonymous": testAnonymous,
		"Sent":      testSent,
		"Errors":    testErrors,
	} {
		t.Run(name, func(t *testing.T) { test(t, fixture{sys, t}) })
	}
}

// size is that of most objects here: room for a header on every system.
const size = 64 << 10

type fixture struct {
	object.System
	t *testing.T
}

// name returns one that no object has, removed when the test ends.
func (f fixture) name() string {
	name := "object-" + strings.ToLower(rand.Text()[:16])
	f.t.Cleanup(func() {
		if o, err := f.Open(name, true); err == nil {
			f.check(o.Unlink())
			f.close(o)
		}
	})
	return name
}

func (f fixture) check(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Error(err)
	}
}

func (f fixture) want(got bool, err error, want bool, what string) {
	f.t.Helper()
	if err != nil || got != want {
		f.t.Errorf("%s: %v, %v, want %v", what, got, err, want)
	}
}

func (f fixture) present(o object.Object, want object.Presence) {
	f.t.Helper()
	if got, err := o.Others(); err != nil || got != want {
		f.t.Errorf("Others: %v, %v, want %v", got, err, want)
	}
}

func (f fixture) fails(err, want error, what string) {
	f.t.Helper()
	if !errors.Is(err, want) {
		f.t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// busy fails the test unless another Object has the mutex. It asks by a goroutine
// of its own, because a mutex can be a thread's.
func (f fixture) busy(o object.Object) {
	f.t.Helper()
	f.elsewhere(func() {
		err := o.TryLock()
		if err == nil {
			o.Unlock()
		}
		f.fails(err, object.ErrBusy, "TryLock of what another has")
	})
}

// elsewhere calls check on a goroutine of its own.
func (f fixture) elsewhere(check func()) {
	done := make(chan bool)
	go func() {
		defer close(done)
		check()
	}()
	<-done
}

// ready returns o, which can be locked, until the test ends or close.
func (f fixture) ready(o object.Object, err error) object.Object {
	f.t.Helper()
	if err == nil && !o.Sealed() {
		err = o.Lockable()
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return o
}

func (f fixture) close(o object.Object) {
	o.Leave()
	o.Close()
}

// unpublished returns a new object that has joined, as the creator of a block has.
func (f fixture) unpublished(name string) object.Object {
	f.t.Helper()
	o := f.ready(f.Create(name, size, object.Options{Perm: 0o600}))
	f.check(o.Join(true, nil))
	return o
}

func (f fixture) create(name string) object.Object {
	f.t.Helper()
	o := f.unpublished(name)
	f.check(o.Publish())
	return o
}

func (f fixture) open(name string) object.Object {
	f.t.Helper()
	return f.ready(f.Open(name, true))
}

// handed returns o as another process has it that is sent a descriptor.
func (f fixture) handed(o object.Object, readOnly bool) object.Object {
	f.t.Helper()
	fd, err := o.Descriptor(readOnly)
	if err != nil {
		f.t.Fatal(err)
	}
	defer os.NewFile(fd, "").Close()
	return f.ready(f.FromFD(fd))
}

func (f fixture) mapped(o object.Object, length, writable int) []byte {
	f.t.Helper()
	mem, err := o.Map(length, writable, false)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { f.Unmap(mem) })
	return mem
}

func (f fixture) listed(name string) (found bool) {
	f.t.Helper()
	err := f.List(func(n string) bool {
		found = n == name
		return !found
	})
	if !errors.Is(err, errors.ErrUnsupported) {
		f.check(err)
	}
	return found
}

func testBirth(t *testing.T, f fixture) {
	name := f.name()
	o := f.unpublished(name)
	_, err := f.Open(name, true)
	if !errors.Is(err, fs.ErrNotExist) && !errors.As(err, new(object.RetryError)) {
		t.Errorf("Open before Publish: %v", err)
	}
	f.close(o)
	_, err = f.Open(name, true)
	f.fails(err, fs.ErrNotExist, "Open of what was closed before Publish")

	o = f.create(name)
	defer f.close(o)
	linked, err := o.Linked()
	f.want(linked, err, true, "linked after Publish")
	if o.Name() != name || !o.Writable() || o.Sealed() {
		t.Errorf("created %q, writable %v, sealed %v", o.Name(), o.Writable(), o.Sealed())
	}
	for _, write := range []bool{false, true} {
		p, err := f.Open(name, write)
		if err != nil {
			t.Fatal(err)
		}
		if p.Name() != name || p.Writable() != write || p.Sealed() {
			t.Errorf("opened %q, writable %v, sealed %v", p.Name(), p.Writable(), p.Sealed())
		}
		st, err := p.Stat()
		if err != nil || st.Size < size || st.Mode != 0o600 {
			t.Errorf("%+v, %v", st, err)
		}
		f.close(p)
	}
}

func testTaken(t *testing.T, f fixture) {
	name := f.name()
	first := f.create(name)
	defer f.close(first)
	second, err := f.Create(name, size, object.Options{Perm: 0o600})
	if err == nil {
		f.ready(second, nil)
		f.check(second.Join(true, nil))
		err = second.Publish()
		f.close(second)
	}
	f.fails(err, fs.ErrExist, "a name that is taken")
	linked, err := first.Linked()
	f.want(linked, err, true, "the first still linked")
}

func testMemory(t *testing.T, f fixture) {
	name := f.name()
	o := f.create(name)
	mem := f.mapped(o, size, size)
	head := f.Limits().HeaderLength
	for i, b := range mem {
		if b != 0 && (i < object.HeaderUsed || i >= head) {
			t.Fatalf("byte %d is %d", i, b)
		}
	}
	p := f.open(name)
	there := f.mapped(p, size, head)
	mem[size-1], mem[0], there[1] = 1, 2, 3
	if there[size-1] != 1 || there[0] != 2 || mem[1] != 3 {
		t.Error("two mappings, two memories")
	}
	if n, err := p.WriteAt([]byte{4, 5}, 100); n != 2 || err != nil || mem[100] != 4 || mem[101] != 5 {
		t.Errorf("WriteAt: %d, %v, % x", n, err, mem[100:102])
	}
	got := make([]byte, 3)
	if n, err := o.ReadAt(got, 99); n != 3 || err != nil || !bytes.Equal(got, []byte{0, 4, 5}) {
		t.Errorf("ReadAt: %d, %v, % x", n, err, got)
	}
	if f.Limits().Files {
		if n, _ := o.ReadAt(got, size-1); n != 1 {
			t.Errorf("ReadAt at the end: %d bytes", n)
		}
	}
	if err := o.Punch(int64(head), int64(head)); err == nil && !bytes.Equal(mem[head:2*head], make([]byte, head)) {
		t.Error("punched, and not zero")
	}
	f.close(p)
	f.close(o)
	if mem[size-1] != 1 || there[size-1] != 1 {
		t.Error("the memory went with the Object")
	}
}

func testMutex(t *testing.T, f fixture) {
	name := f.name()
	a := f.create(name)
	b := f.open(name)
	defer f.close(a)
	defer f.close(b)
	f.check(a.TryLock())
	f.busy(b)
	b.Unlock()
	f.busy(b)
	a.Unlock()
	a.Unlock()
	f.check(b.TryLock())
	f.busy(a)
	b.Unlock()
}

func (f fixture) count(o object.Object, want int) {
	f.t.Helper()
	if n, err := o.Count(); err != nil || n != want {
		f.t.Errorf("Count: %d, %v, want %d", n, err, want)
	}
}

// notAlone fails the test unless another Object keeps o from being alone.
func (f fixture) notAlone(o object.Object) {
	f.t.Helper()
	f.fails(o.TryAlone(), object.ErrBusy, "TryAlone beside another")
}

func testJoined(t *testing.T, f fixture) {
	name := f.name()
	a := f.create(name)
	b := f.open(name)
	defer f.close(a)
	defer f.close(b)
	f.present(a, object.Nobody)
	f.present(b, object.Somebody)
	f.count(a, 0)
	f.count(b, 1)

	// Two have joined, and neither is alone.
	f.notAlone(b)
	f.check(b.Join(false, nil))
	f.present(a, object.Somebody)
	f.count(a, 1)
	f.notAlone(a)
	f.notAlone(b)
	f.present(b, object.Somebody)

	// One is left, who is alone.
	b.Leave()
	f.present(a, object.Nobody)
	f.check(a.TryAlone())
	f.busy(b)
	f.elsewhere(func() { f.fails(b.Join(true, nil), object.ErrBusy, "Join beside one that is alone") })
	f.elsewhere(func() {
		if got, err := b.Others(); err != nil || got == object.Nobody {
			t.Errorf("Others beside one that is alone: %v, %v", got, err)
		}
	})
	a.Leave()
	f.present(b, object.Nobody)
	f.check(b.Join(true, nil))
	f.present(a, object.Somebody)
}

func testHolders(t *testing.T, f fixture) {
	name := f.name()
	a := f.create(name)
	defer f.close(a)
	if _, err := a.Holders(); errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	var others []object.Object
	for i := range 20 {
		o := f.open(name)
		defer f.close(o)
		f.check(o.Join(i%2 == 0, nil))
		others = append(others, o)
	}
	f.count(a, 20)
	list, err := a.Holders()
	f.check(err)
	writers := 0
	for _, h := range list {
		if h.PID != os.Getpid() || h.Gone {
			t.Errorf("%+v", h)
		}
		if h.Writer {
			writers++
		}
	}
	if writers != 10 {
		t.Errorf("%d of 20 are writers, want 10", writers)
	}
	for i, o := range others {
		f.count(o, 20-i)
		o.Leave()
		f.count(a, 19-i)
	}
}

func testWriters(t *testing.T, f fixture) {
	name := f.name()
	a := f.create(name) // joined as a writer
	defer f.close(a)
	b, c := f.open(name), f.open(name)
	defer f.close(b)
	defer f.close(c)
	writers := func(o object.Object, want bool) {
		t.Helper()
		got, err := o.Writers()
		f.want(got, err, want, "Writers")
	}
	f.check(b.Join(false, nil))
	writers(a, false)
	writers(b, true)
	f.check(a.SetWriter(false))
	writers(b, false)
	f.present(b, object.Somebody)
	f.count(b, 1)
	f.check(b.SetWriter(true))
	f.check(b.SetWriter(true))
	writers(a, true)
	writers(b, false)
	f.check(c.Join(true, nil))
	writers(b, true)
	f.count(a, 2)
	c.Leave()
	b.Leave()
	writers(a, false)
	writers(c, false)
	f.present(c, object.Somebody)
	f.check(c.Join(true, nil))
	writers(b, true) // who has not joined
	c.Leave()
	f.check(a.SetWriter(true)) // the creator
	f.check(b.Join(false, nil))
	writers(b, true)
	a.Leave()
	writers(b, false)
}

func testTags(t *testing.T, f fixture) {
	name := f.name()
	a := f.create(name)
	defer f.close(a)
	b, c := f.open(name), f.open(name)
	defer f.close(b)
	defer f.close(c)
	f.check(b.Join(true, nil))
	f.check(c.Join(true, nil))
	for _, o := range []object.Object{a, b, c} {
		if tag := o.Tag(); tag == 0 || tag >= 1<<60 {
			t.Errorf("tag %x", tag)
		}
		f.want(a.Gone(o.Tag()), nil, false, "Gone of one that is there")
		f.want(o.Gone(o.Tag()), nil, false, "Gone of itself")
	}
	f.want(a.Gone(1<<60-2), nil, true, "Gone of nobody")
	f.check(b.SetWriter(false))
	f.check(b.SetWriter(true))
	f.want(a.Gone(b.Tag()), nil, false, "Gone of one that has moved")
	tag := b.Tag()
	b.Leave()
	f.want(a.Gone(tag), nil, true, "Gone of one that has left")
	d := f.open(name)
	defer f.close(d)
	tags := []uint64{a.Tag(), c.Tag()}
	f.check(d.Join(true, func(tag uint64) bool {
		tags = append(tags, tag)
		return len(tags) < 6
	}))
	if len(tags) != 6 || d.Tag() != tags[5] || slices.Contains(tags[:5], d.Tag()) {
		t.Errorf("tag %x after a Join that was offered %x", d.Tag(), tags)
	}
}

func testSleep(t *testing.T, f fixture) {
	name := f.name()
	a := f.create(name)
	defer f.close(a)
	b := f.open(name)
	defer f.close(b)
	f.check(b.Join(false, nil))
	const off, other = 320, 400
	sleepers, headers := []object.Object{a, b}, [2][]byte{}
	for i, o := range sleepers {
		mem, err := o.Map(size, size, false)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Unmap(mem)
		headers[i] = mem[:object.HeaderUsed:object.HeaderUsed]
	}
	word := raw.Uint32(headers[0], off)
	a.Sleep(headers[0], off, 1, time.Hour, nil) // the word is not equal to it
	a.Sleep(headers[0], off, 0, time.Millisecond, nil)
	a.Wake(headers[0], off, true)
	for round := range 150 {
		if round == 100 {
			b.Leave()
			sleepers = sleepers[:1]
		}
		before := word.Load()
		woken := make(chan bool)
		for i := range 12 {
			go func() {
				i %= len(sleepers)
				for raw.Uint32(headers[i], off).Load() == before {
					sleepers[i].Sleep(headers[i], off, before, time.Minute, nil)
				}
				woken <- true
			}()
		}
		stop := make(chan bool)
		go func() { // beside one for another word
			defer close(stop)
			for raw.Uint32(headers[0], other).Load() == uint32(round) {
				a.Sleep(headers[0], other, uint32(round), time.Minute, nil)
			}
		}()
		word.Add(1)
		a.Wake(headers[0], off, true)
		for range 12 {
			<-woken
		}
		raw.Uint32(headers[0], other).Add(1)
		b.Wake(headers[1], other, false)
		<-stop
	}
	a.Yield()
}

func testWatch(t *testing.T, f fixture) {
	w, err := f.Watch()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	f.check(err)
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f.fails(w.Next(ctx), context.Canceled, "Next when it is too late")
	w, err = f.Watch()
	f.check(err)
	defer w.Close()
	defer f.close(f.create(f.name()))
	f.check(w.Next(t.Context()))
}

func testLeave(t *testing.T, f fixture) {
	name := f.name()
	a := f.create(name)
	b := f.open(name)
	defer f.close(a)
	defer f.close(b)
	f.check(a.TryAlone())
	a.Leave()
	a.Leave()
	f.present(b, object.Nobody)
	f.check(b.TryAlone())
	b.Leave()
	f.check(a.TryLock())
	f.elsewhere(func() { f.notAlone(b) })
	a.Leave()
	f.present(a, object.Nobody)
	f.check(a.Join(true, nil))
	f.present(b, object.Somebody)
}

func testUnlink(t *testing.T, f fixture) {
	name := f.name()
	old := f.create(name)
	defer f.close(old)
	mem := f.mapped(old, size, size)
	mem[0] = 1
	f.check(old.TryLock())
	f.check(old.Unlink())
	old.Unlock()
	linked, err := old.Linked()
	f.want(linked, err, false, "linked after Unlink")
	_, err = f.Open(name, true)
	f.fails(err, fs.ErrNotExist, "Open after Unlink")
	if f.listed(name) && !f.Limits().NamesStay {
		t.Error("listed after Unlink")
	}

	next := f.create(name)
	defer f.close(next)
	linked, err = old.Linked()
	f.want(linked, err, false, "the old one linked when there is a new one")
	linked, err = next.Linked()
	f.want(linked, err, true, "the new one linked")
	if f.mapped(next, size, size)[0] != 0 || mem[0] != 1 {
		t.Error("the two share memory")
	}
	f.present(next, object.Nobody)
	there := f.open(name)
	defer f.close(there)
	b := make([]byte, 1)
	if n, err := there.ReadAt(b, 0); n != 1 || err != nil || b[0] != 0 {
		t.Errorf("Open found %d, %v, % x", n, err, b)
	}
}

func testList(t *testing.T, f fixture) {
	name := f.name()
	o := f.unpublished(name)
	defer f.close(o)
	if err := f.List(func(string) bool { return true }); errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	f.check(o.Publish())
	if !f.listed(name) {
		t.Error("not listed")
	}
	calls := 0
	f.check(f.List(func(string) bool { calls++; return false }))
	if calls != 1 {
		t.Errorf("%d names after the one that was enough", calls)
	}
}

func testHanded(t *testing.T, f fixture) {
	name := f.name()
	o := f.create(name)
	defer f.close(o)
	mem := f.mapped(o, size, size)
	for _, readOnly := range []bool{false, true} {
		p := f.handed(o, readOnly)
		if p.Writable() == readOnly || p.Sealed() {
			t.Errorf("writable %v, sealed %v", p.Writable(), p.Sealed())
		}
		if p.Name() != name && !readOnly {
			t.Errorf("its name is %q", p.Name())
		}
		mem[0]++
		b := make([]byte, 1)
		if n, err := p.ReadAt(b, 0); n != 1 || err != nil || b[0] != mem[0] {
			t.Errorf("%d, %v, % x", n, err, b)
		}
		if !readOnly { // locks of its own
			f.check(o.TryLock())
			f.busy(p)
			o.Unlock()
			f.present(p, object.Somebody)
		}
		f.close(p)
	}
}

func testAnonymous(t *testing.T, f fixture) {
	o := f.ready(f.CreateAnonymous(size, false))
	defer f.close(o)
	if !o.Sealed() || !o.Writable() {
		t.Errorf("sealed %v, writable %v", o.Sealed(), o.Writable())
	}
	mem := f.mapped(o, size, size)
	p := f.handed(o, false)
	defer f.close(p)
	if !p.Sealed() || !p.Writable() || p.Name() != "" {
		t.Errorf("sealed %v, writable %v, called %q", p.Sealed(), p.Writable(), p.Name())
	}
	f.mapped(p, size, size)[size-1] = 1
	if mem[size-1] != 1 {
		t.Error("two memories")
	}
}

// Memory that one process has created is an anonymous object to another.
func testSent(t *testing.T, f fixture) {
	fd, err := f.CreateMemory(size)
	if err != nil {
		t.Fatal(err)
	}
	if !f.IsMemory(fd) {
		t.Error("not memory")
	}
	var seen []byte
	for _, readOnly := range []bool{false, true} {
		own, err := f.DuplicateMemory(fd, readOnly)
		if err != nil {
			t.Fatal(err)
		}
		o, err := f.FromFD(own)
		if err != nil {
			t.Fatal(err)
		}
		defer f.close(o)
		st, err := o.Stat()
		if err != nil || st.Size < size || !o.Sealed() || o.Name() != "" {
			t.Errorf("%+v, %v, sealed %v, called %q", st, err, o.Sealed(), o.Name())
		}
		if want := !readOnly || !f.Limits().Restricts; o.Writable() != want {
			t.Errorf("writable %v, want %v", o.Writable(), want)
		}
		if readOnly {
			if mem := f.mapped(o, size, 0); !bytes.Equal(mem, seen) {
				t.Error("two memories")
			}
			continue
		}
		f.check(o.Reserve(size))
		seen = f.mapped(o, size, size)
		if !bytes.Equal(seen, make([]byte, size)) {
			t.Error("not all zero")
		}
		seen[size-1] = 1
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if f.IsMemory(r.Fd()) {
		t.Error("a pipe is memory")
	}
}

func testErrors(t *testing.T, f fixture) {
	name := f.name()
	for _, write := range []bool{false, true} {
		_, err := f.Open(name, write)
		f.fails(err, fs.ErrNotExist, "Open")
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	_, err = f.FromFD(r.Fd())
	f.fails(err, object.ErrNotSegment, "FromFD of a pipe")
}
