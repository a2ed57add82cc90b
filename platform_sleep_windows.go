package shm

import (
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/raw"
	"github.com/shmkit/shm/internal/section"
)

// How a process sleeps until another one wakes it. WaitOnAddress wakes within a process
// only. So a process that sleeps on words of a block has an event with a name, and a
// word in the table at object.SleepTable that says so to those that wake:
//
//	sleep: create event i, for the first i that has none; word[i] = 1; sleep while the
//	       word has its value
//	wake:  (the word has changed); set event i for each word[i] that is not 0
//
// One of the two sees the other. The names come from that of the section, and nothing in
// the table is believed: a word of a process that has been killed stays until the next
// one gets its event.
const (
	tableLength = (object.HeaderUsed - object.SleepTable) / 4

	// mostThreads bounds how many goroutines of the process sleep in a thread each. A Go
	// program may have 10,000.
	mostThreads = 1000

	// fullWait is how long an Object looks before it asks again whether there is a place
	// in the table.
	fullWait = time.Second
)

func sleepName(section string, i int) string { return section + "!wake" + strconv.Itoa(i) }

// tableWord returns a word of the table in a header.
func tableWord(header []byte, i int) *atomic.Uint32 {
	return raw.Uint32(header, object.SleepTable+4*i)
}

// place is what the Objects of this process have in common that sleep on words of a
// section: an event, and a word of the table.
type place struct {
	section string
	users   int            // Objects, and calls that sleep; guarded by places
	view    uintptr        // of the header, independent of any Object
	word    *atomic.Uint32 // in view
	event   windows.Handle

	mu      sync.Mutex
	waiting bool          // a goroutine waits for the event
	woken   chan struct{} // closed when it does not any more
}

// places are those of this process, by section.
var places = struct {
	sync.Mutex
	m map[string]*place
}{m: map[string]*place{}}

// sleeper is an Object's part in a place.
type sleeper struct {
	mu    sync.Mutex
	place *place
	left  bool      // by Leave
	full  time.Time // when the table had no place
}

// sleepPlace returns the place of the Object, for a call of Sleep, which releases it. It
// returns nil if there is none.
func (o *sectionObject) sleepPlace() *place {
	s := &o.sleeper
	s.mu.Lock()
	defer s.mu.Unlock()
	name := o.sectionName()
	if s.left || name == "" || !o.writable || time.Since(s.full) < fullWait {
		return nil
	}
	places.Lock()
	defer places.Unlock()
	if s.place == nil {
		p := places.m[name]
		if p == nil {
			if p = newPlace(name, o.handle); p == nil {
				s.full = time.Now()
				return nil
			}
			places.m[name] = p
		}
		p.users++
		s.place = p
	}
	s.place.users++
	return s.place
}

// newPlace takes a place in the table of the section h, or returns nil.
func newPlace(name string, h windows.Handle) *place {
	security, err := section.Security()
	if err != nil {
		return nil
	}
	view, err := windows.MapViewOfFile(h, windows.FILE_MAP_READ|windows.FILE_MAP_WRITE, 0, 0, headerLength)
	if err != nil {
		return nil
	}
	for i := range tableLength {
		event, err := windows.CreateEvent(security, 0, 0, utf16(sleepName(name, i)))
		if err != nil { // such as that another process has it
			closeHandle(&event)
			continue
		}
		header := unsafe.Slice(*(**byte)(unsafe.Pointer(&view)), headerLength)
		p := &place{section: name, view: view, word: tableWord(header, i), event: event, woken: make(chan struct{})}
		p.word.Store(1)
		return p
	}
	windows.UnmapViewOfFile(view)
	return nil
}

// release ends a use of the place. The word goes before the event, which the next process
// can have then.
func (p *place) release() {
	places.Lock()
	defer places.Unlock()
	if p.users--; p.users > 0 {
		return
	}
	delete(places.m, p.section)
	p.word.Store(0)
	windows.UnmapViewOfFile(p.view)
	closeHandle(&p.event)
}

// sleep sleeps until the event is set, at most for most, or for a shorter time. The word
// is looked at when the event cannot be missed any more.
//
// One goroutine waits for the event, which is set once for all. When it does not any
// more, the others return as well: the next of them to sleep waits for the event.
func (p *place) sleep(word *atomic.Uint32, value uint32, most time.Duration) {
	p.mu.Lock()
	woken, first := p.woken, !p.waiting
	p.waiting = true
	p.mu.Unlock()
	if !first {
		if word.Load() == value {
			select {
			case <-woken:
			case <-time.After(most):
			}
		}
		return
	}
	if word.Load() == value {
		milliseconds := min(max(most.Milliseconds(), 1), 1<<30)
		windows.WaitForSingleObject(p.event, uint32(milliseconds))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting = false
	close(p.woken)
	p.woken = make(chan struct{})
}

// sleeping is how many calls of Sleep there are in the process.
var sleeping atomic.Int32

// Sleep implements [object.Sleeper]. Without a place it lets some time pass.
func (o *sectionObject) Sleep(header []byte, off int, value uint32, most time.Duration, _ func() bool) {
	defer sleeping.Add(-1)
	if sleeping.Add(1) <= mostThreads {
		if p := o.sleepPlace(); p != nil {
			defer p.release()
			p.sleep(raw.Uint32(header, off), value, most)
			return
		}
	}
	o.Looks.Sleep(header, off, value, most, nil)
}

// Wake implements [object.Sleeper]. An event is that of a process for all words of the
// block, so it wakes all that sleep.
func (o *sectionObject) Wake(header []byte, _ int, _ bool) {
	name := o.sectionName()
	if name == "" {
		return
	}
	for i := range tableLength {
		if tableWord(header, i).Load() == 0 {
			continue
		}
		event, err := windows.OpenEvent(windows.EVENT_MODIFY_STATE, false, utf16(sleepName(name, i)))
		if err == nil {
			windows.SetEvent(event)
			windows.CloseHandle(event)
		}
	}
}

// sleepAgain lets the Object sleep, after Leave; leave ends that.
func (s *sleeper) sleepAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = false
}

func (s *sleeper) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = true
	if s.place != nil {
		s.place.release()
		s.place = nil
	}
}

// sectionName returns the name of the section, which never changes. That of another
// program can have none.
func (o *sectionObject) sectionName() string {
	if o.section != "" {
		return o.section
	}
	o.findName.Do(func() { o.ownName, _ = section.Name(o.handle) })
	return o.ownName
}
