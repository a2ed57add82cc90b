package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm/internal/raw"
)

// A journal is what a process leaves behind however it ends: memory that it
// shares with the one who started it. The processes of one slot, of which there
// is one at a time, use the same journal one after the other.
//
//	offset  field, 8 bytes each
//	     0  operations begun
//	     8  when the process was about to be killed, 0 if it was not
//	    16  number of entries
//	    64  entries of 64 bytes:
//	         0  name, by its number
//	         8  block id, 16 bytes
//	        24  from: attached for certain, nanoseconds of the monotonic clock
//	        32  to: not for certain any more; 0 if it was attached to the end
//	        40  1 if the entry is about an Unlink and not an attachment
type journal []byte

const (
	journalSize = 1 << 14
	mostEntries = journalSize/64 - 1
)

func (j journal) operations() uint64    { return raw.Uint64(j, 0).Load() }
func (j journal) operation()            { raw.Uint64(j, 0).Add(1) }
func (j journal) killed() int64         { return int64(raw.Uint64(j, 8).Load()) }
func (j journal) kill()                 { raw.Uint64(j, 8).Store(uint64(now())) }
func (j journal) entries() int          { return int(raw.Uint64(j, 16).Load()) }
func (j journal) word(i, at int) uint64 { return raw.Uint64(j, 64+64*i+at).Load() }

func (j journal) set(i, at int, v uint64) { raw.Uint64(j, 64+64*i+at).Store(v) }

// clear makes the journal ready for the next process.
func (j journal) clear() { clear(j) }

// begin notes that this process is attached to a block from now on, and returns
// the number of the entry.
func (j journal) begin(name int, id blockID) int {
	return j.add(name, id, false)
}

// end notes that the attachment of entry i can end from now on.
func (j journal) end(i int) { j.set(i, 32, uint64(now())) }

// unlink notes that the block may lose its name from now on.
func (j journal) unlink(name int, id blockID) { j.add(name, id, true) }

func (j journal) add(name int, id blockID, unlink bool) int {
	i := j.entries()
	if i == mostEntries {
		panic("soak: the journal is full")
	}
	j.set(i, 0, uint64(name))
	copy(j[64+64*i+8:], id[:])
	j.set(i, 24, uint64(now()))
	if unlink {
		j.set(i, 40, 1)
	}
	raw.Uint64(j, 16).Store(uint64(i + 1)) // last: a half-made entry is none
	return i
}

// An entry is one of a journal's, made complete.
type entry struct {
	name     int
	id       blockID
	from, to int64
	unlink   bool
	who      string
}

func (e entry) String() string {
	return fmt.Sprintf("%s: name %d, block %x, from %d to %d", e.who, e.name, e.id[:4], e.from, e.to)
}

// read returns what the process that is gone has left.
func (j journal) read(who string) (list []entry) {
	for i := range j.entries() {
		e := entry{
			name:   int(j.word(i, 0)),
			id:     blockID(j[64+64*i+8:]),
			from:   int64(j.word(i, 24)),
			to:     int64(j.word(i, 32)),
			unlink: j.word(i, 40) != 0,
			who:    who,
		}
		if e.to == 0 {
			e.to = j.killed()
		}
		list = append(list, e)
	}
	return list
}

// now is a clock that all processes share.
func now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// newJournals returns n journals and the file they are in.
func newJournals(n int) ([]journal, *os.File, error) {
	fd, err := unix.MemfdCreate("soak", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fd), "soak")
	if err := f.Truncate(int64(n) * journalSize); err != nil {
		return nil, nil, err
	}
	var list []journal
	for i := range n {
		j, err := mapJournal(f, i)
		if err != nil {
			return nil, nil, err
		}
		list = append(list, j)
	}
	return list, f, nil
}

func mapJournal(f *os.File, i int) (journal, error) {
	return unix.Mmap(int(f.Fd()), int64(i)*journalSize, journalSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}
