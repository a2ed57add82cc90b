// Package futex lets goroutines sleep on words that processes share, by futex(2).
//
// A goroutine that sleeps takes a thread. Beyond some of them the others share
// threads, each of which sleeps on many words at once: futex_waitv(2), Linux 5.16.
package futex

import (
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The operations of futex(2) are those for words that processes share: the kernel
// goes by the memory, not by its address.
const (
	futexWait = 0
	futexWake = 1
)

// mostThreads is how many goroutines sleep in threads of their own.
const mostThreads = 8

var sleeping atomic.Int32 // in threads of their own

// mostTimes is how often a goroutine that shares a thread goes on sleeping by still.
const mostTimes = 64

// Sleep implements Sleep of [object.Sleeper].
func Sleep(word *atomic.Uint32, value uint32, most time.Duration, still func() bool) {
	if sleeping.Add(1) > mostThreads && waitv() {
		sleeping.Add(-1)
		shared.sleep(&sleeper{word: word, value: value, most: most, still: still})
		return
	}
	defer sleeping.Add(-1)
	timeout := unix.NsecToTimespec(int64(next(most) - time.Since(start)))
	unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWait, uintptr(value), uintptr(unsafe.Pointer(&timeout)), 0, 0)
}

// Wake wakes one that sleeps on the word, or all. The caller has changed the word.
func Wake(word *atomic.Uint32, all bool) {
	n := uintptr(1)
	if all {
		n = 1<<31 - 1
	}
	// It does not sleep, so the scheduler need not know.
	unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWake, n, 0, 0, 0)
}

// Yield lets another thread of the machine run.
func Yield() { unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// waitv reports whether the kernel has futex_waitv(2). No words at all are EINVAL.
var waitv = sync.OnceValue(func() bool {
	_, _, errno := unix.Syscall6(unix.SYS_FUTEX_WAITV, 0, 0, 0, 0, 0, 0)
	return errno == unix.EINVAL
})

// waiter is struct futex_waitv.
type waiter struct {
	value    uint64
	address  uint64
	flags    uint32
	reserved uint32
}

const (
	size32         = 2  // FUTEX2_SIZE_U32
	wordsPerThread = 64 // of 128 that the kernel takes
)

// threads share the sleepers beyond mostThreads. One timer for all looks after those
// whose time has passed: a time-out for each thread would wake it as often.
type threads struct {
	mu    sync.Mutex
	list  []*thread
	timer *time.Timer
	end   time.Duration // when timer is due, 0 if it is not
}

var shared threads

// A thread sleeps for up to wordsPerThread-1 goroutines. Its first word is its own, by
// which it is woken for a new one.
type thread struct {
	control  atomic.Uint32
	sleepers []*sleeper // guarded by threads.mu
}

// sleeper is a goroutine that sleeps.
type sleeper struct {
	word  *atomic.Uint32
	value uint32
	most  time.Duration
	still func() bool

	end   time.Duration // of most, since start
	times int           // that it went on by still
	woken chan struct{}
}

// next returns when most will have passed, or somewhat earlier: all that sleep as long
// wake up at one time, which costs the process less than one after the other.
func next(most time.Duration) time.Duration { return (time.Since(start) + most).Truncate(most) }

var start = time.Now()

// over reports whether the goroutine need not sleep any more.
func (p *sleeper) over(now time.Duration) bool {
	if changed(p.word, p.value) {
		return true
	}
	if now < p.end {
		return false
	}
	if p.times++; p.still == nil || p.times == mostTimes || !p.still() {
		return true
	}
	p.end = next(p.most)
	return false
}

func (s *threads) sleep(me *sleeper) {
	me.end, me.woken = next(me.most), make(chan struct{})
	s.mu.Lock()
	t := s.room()
	t.sleepers = append(t.sleepers, me)
	s.setTimer(me.end)
	t.control.Add(1)
	s.mu.Unlock()
	Wake(&t.control, true)
	<-me.woken
}

// setTimer has the timer be due at end, or before, with the lock held.
func (s *threads) setTimer(end time.Duration) {
	if s.end != 0 && s.end <= end {
		return
	}
	s.end = end
	d := end - time.Since(start)
	if s.timer == nil {
		s.timer = time.AfterFunc(d, s.tick)
	} else {
		s.timer.Reset(d)
	}
}

// tick wakes the sleepers whose time has passed.
func (s *threads) tick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end = 0
	now := time.Since(start)
	for _, t := range s.list {
		t.keep(func(p *sleeper) bool { return !p.over(now) })
		for _, p := range t.sleepers {
			s.setTimer(p.end)
		}
		if len(t.sleepers) == 0 { // it ends
			t.control.Add(1)
			Wake(&t.control, true)
		}
	}
}

// keep wakes the sleepers of t for which f returns false, with the lock of threads held.
func (t *thread) keep(f func(p *sleeper) bool) {
	t.sleepers = slices.DeleteFunc(t.sleepers, func(p *sleeper) bool {
		if f(p) {
			return false
		}
		close(p.woken)
		return true
	})
}

// room returns a thread that has room for a sleeper, with the lock held.
func (s *threads) room() *thread {
	for _, t := range s.list {
		if len(t.sleepers) < wordsPerThread-1 {
			return t
		}
	}
	t := &thread{}
	s.list = append(s.list, t)
	go s.run(t)
	return t
}

// run sleeps for the sleepers of t until it has none.
func (s *threads) run(t *thread) {
	var list [wordsPerThread]waiter
	for n := s.words(t, &list); n > 1; n = s.words(t, &list) {
		_, _, errno := unix.Syscall6(unix.SYS_FUTEX_WAITV, uintptr(unsafe.Pointer(&list[0])), uintptr(n), 0, 0, 0, 0)
		if errno == unix.EFAULT { // by a word that is truncated between the look and the call
			time.Sleep(time.Millisecond)
		}
	}
}

// words wakes the sleepers of t whose words have changed. It makes a list of the words of
// t, the first of which is its own, and returns the length. If it is 1, t ends.
func (s *threads) words(t *thread, list *[wordsPerThread]waiter) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.keep(func(p *sleeper) bool { return !changed(p.word, p.value) })
	list[0] = newWaiter(&t.control, t.control.Load())
	for i, p := range t.sleepers {
		list[i+1] = newWaiter(p.word, p.value)
	}
	if len(t.sleepers) == 0 {
		s.list = slices.DeleteFunc(s.list, func(other *thread) bool { return other == t })
	}
	return 1 + len(t.sleepers)
}

func newWaiter(word *atomic.Uint32, value uint32) waiter {
	return waiter{value: uint64(value), address: uint64(uintptr(unsafe.Pointer(word))), flags: size32}
}

// changed reports whether the word is not equal to value. Memory that has gone is
// changed: the sleeper finds out what has happened.
func changed(word *atomic.Uint32, value uint32) (result bool) {
	before := debug.SetPanicOnFault(true)
	result = true
	defer func() {
		debug.SetPanicOnFault(before)
		if result {
			recover()
		}
	}()
	result = word.Load() != value
	return result
}
