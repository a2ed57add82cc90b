package holders

import "fmt"

// Bounds of the model. An exploration that needs more panics: it never
// continues with a truncated world.
const (
	maxProcs  = 3
	maxInodes = 6
	maxLoose  = 4
)

// A state is all that the future depends on.
type state struct {
	name   uint8 // the inode that the name leads to; 0: there is no such name
	inodes [maxInodes]uint16
	procs  [maxProcs]proc
	// loose are the descriptions that outlive their process: those of a killed
	// process until the kernel drops them, and those that a forked child keeps
	// until its exec. Sorted, because their order means nothing.
	loose [maxLoose]ofd
	// What the surroundings may still do.
	kills, ghosts, rms uint8
}

// The flags of an inode, which are numbered from 1: two words of its header and
// what the properties need to know of its past.
const (
	inUse    uint16 = 1 << iota
	dead            // header: state is DEAD
	kept            // header: outlives its attachments
	unlinked        // lost its name to an explicit Unlink
	removed         // lost its name to an outsider
	excused         // may stay when all are gone: see world.excuse
	sized           // darwin: has its size, and so a lock page
	written         // header is complete
	ready           // darwin: the lock page says that it is a block
)

// An ofd is an open file description. Locks belong to it.
type ofd struct {
	ino  uint8 // 0: closed
	held uint16
}

const (
	byteU    uint16 = 1 << iota // the unlinkers' byte
	byteW                       // an own byte in the writers' range
	byteR                       // an own byte in the readers' range
	whole                       // all of the above, in one lock; includes them
	able                        // not a lock: open for writing, so that it can lock everything
	handed                      // not a lock: come by otherwise than by the name
	entering                    // an Open that has locked its own byte
	user                        // attached; ends with the own byte
	dying                       // its process was killed
	gone                        // its process has ended; a child holds the description

	own    = byteW | byteR
	life   = own | whole // what locks in the range of the own bytes
	locks  = byteU | life
	inside = entering | user
)

// A proc is a process: where it is in its program, and its descriptions.
type proc struct {
	pc   pc
	then pc    // where to continue after a detach or a release
	call uint8 // index into the program

	creating bool // in Create, perhaps of OpenOrCreate
	met      bool // see world.meet
	again    bool // Unlink: another block has the name
	late     bool // the block had lost its name before p locked its own byte
	fd       ofd  // the block opened or attached
	tmp      ofd  // the block Create is making; Unlink's own description

	// Of Refs: where it has come to; who was found, who has been attached all the
	// time, and who at some time, each a bit per process.
	scan                uint8
	found, always, ever uint8
}

// A world is a state in the course of one step, and what the step showed.
type world struct {
	state
	*Scenario
	self   int      // the process whose step it is
	choice bool     // what maybe returns
	asked  bool     // maybe was called
	broken property // what the step violated
	why    string
	log    []byte // what the system calls returned, if record
	record bool
}

// maybe is a choice that is not the process's own. Both ways are explored.
func (w *world) maybe() bool {
	w.asked = true
	return w.choice
}

func (w *world) say(format string, a ...any) {
	if !w.record {
		return
	}
	if len(w.log) > 0 {
		w.log = append(w.log, ", "...)
	}
	w.log = fmt.Appendf(w.log, format, a...)
}

func (w *world) flags(d *ofd) *uint16 { return &w.inodes[d.ino-1] }

// ofds calls f with every open description.
func (w *world) ofds(f func(*ofd)) {
	for i := range w.procs {
		for _, d := range []*ofd{&w.procs[i].fd, &w.procs[i].tmp} {
			if d.ino != 0 {
				f(d)
			}
		}
	}
	for i := range w.loose {
		if w.loose[i].ino != 0 {
			f(&w.loose[i])
		}
	}
}

// others returns what all descriptions of d's inode but d itself hold.
func (w *world) others(d *ofd) (held uint16) {
	w.ofds(func(o *ofd) {
		if o != d && o.ino == d.ino {
			held |= o.held
		}
	})
	return held
}

// open is open(2) by name.
func (w *world) open(d *ofd, flags uint16) bool {
	*d = ofd{ino: w.name}
	if d.ino != 0 {
		d.held = flags
	}
	if w.record {
		w.say("%s", pick(d.ino != 0, "block "+letter(d.ino), "ENOENT"))
	}
	return d.ino != 0
}

// tmpfile is open(2) with O_TMPFILE, and the writing of the header.
func (w *world) tmpfile(d *ofd, flags uint16) {
	w.create(d, flags|sized|written|ready)
}

// create makes a new inode.
func (w *world) create(d *ofd, flags uint16) {
	for i := range w.inodes {
		if w.inodes[i] == 0 {
			w.inodes[i] = inUse | flags
			*d = ofd{uint8(i + 1), able}
			if w.record {
				w.say("block %s", letter(d.ino))
			}
			return
		}
	}
	panic("holders: maxInodes is too small")
}

// link is linkat(2) of a nameless inode.
func (w *world) link(d *ofd) bool {
	ok := w.name == 0
	if ok {
		w.name = d.ino
	}
	if w.record {
		w.say("%s", pick(ok, "block "+letter(d.ino)+" has the name", "EEXIST, it is "+letter(w.name)))
	}
	return ok
}

// named is the identity check: stat(2) of the name gives d's inode.
func (w *world) named(d *ofd) bool {
	if w.record {
		w.say("%s", pick(w.name == d.ino, "same block", "another block or none"))
	}
	return w.name == d.ino
}

// lock is F_OFD_SETLK. When it fails, d keeps what it had. On darwin byteU is the
// mutex, the others are slots: taken while it is free, and all looked at while it
// is held.
func (w *world) lock(d *ofd, want uint16) bool {
	var conflict uint16
	switch {
	case want == whole:
		conflict = pick(w.lacks(WholeHasU), life, locks)
	case want == byteU:
		conflict = pick(w.lacks(WholeHasU), byteU, byteU|whole)
	default:
		conflict = pick(w.Darwin, byteU|whole, whole)
	}
	ok := w.others(d)&conflict == 0
	if ok {
		if want == whole {
			d.held &^= pick(w.Darwin, inside, locks|inside) // on darwin the slot stays
		}
		d.held |= want
	}
	if w.record {
		w.say("%s", pick(ok, "granted", "EAGAIN"))
	}
	return ok
}

// ask is F_OFD_GETLK on the range of the own bytes, and kill(2) of the process
// that the lock is said to belong to. If it has ended, the other locks are looked
// at, too. The model takes these calls together: every lock that is found was
// held when it was found, and the rest is a reason to come again.
func (w *world) ask(d *ofd) answer {
	a := nobody
	w.ofds(func(o *ofd) {
		switch {
		case o == d || o.ino != d.ino || o.held&pick(w.Darwin, own, life) == 0:
		case w.Darwin:
			a = somebody
		case o.held&whole != 0:
			a = max(a, ending)
		case o.held&gone != 0:
			a = max(a, ghosts)
		default:
			a = max(a, somebody)
		}
	})
	if w.record {
		w.say("%s", [...]string{"nobody", "only processes that have ended", "somebody", "somebody has locked everything"}[a])
	}
	return a
}

type answer int

const (
	nobody answer = iota
	ghosts
	somebody
	ending // somebody has locked everything, to find out whether the block is dead
)

// unlock is F_UNLCK.
func (w *world) unlock(d *ofd, what uint16) {
	d.held &^= what
	if what == locks {
		d.held &^= inside
	}
}

// close is close(2) by a living process. A child between fork and exec may keep
// the description, and so the locks that were not taken off it before.
func (w *world) close(d *ofd) {
	if w.ghosts > 0 && d.held&locks != 0 && w.maybe() {
		w.ghosts--
		w.loosen(ofd{d.ino, d.held &^ inside})
		w.say("a forked child still holds the locks")
	}
	*d = ofd{}
}

// loosen keeps a description without its process.
func (w *world) loosen(d ofd) {
	for i := range w.loose {
		if w.loose[i].ino == 0 {
			w.loose[i] = d
			return
		}
	}
	panic("holders: maxLoose is too small")
}

// kill is SIGKILL. The locks stay until the kernel drops them, each description's
// by itself.
func (w *world) kill(p *proc) {
	w.kills--
	if p.fd.ino != 0 && p.fd.held&locks != 0 || p.then != 0 && p.fd.ino != 0 {
		*w.flags(&p.fd) |= excused
	}
	for _, d := range []ofd{p.fd, p.tmp} {
		if w.Darwin && p.creating && d.ino != 0 && *w.flags(&d)&ready == 0 { // it has its name already
			*w.flags(&d) |= excused
		}
		if d.held&locks != 0 {
			d.held |= dying
			w.loosen(d)
		}
	}
	*p = proc{pc: killed}
}

// vanish is the end of a loose description, with all its locks. Instead, that
// of a killed process may be kept by a child: then the process has ended, and
// been waited for, and the locks are there.
func (w *world) vanish(d *ofd) {
	if d.held&dying != 0 && w.ghosts > 0 && w.maybe() {
		w.ghosts--
		d.held = d.held&^(dying|inside) | gone
		if w.record {
			w.say("waited for, and a child still holds the locks on block %s", letter(d.ino))
		}
		return
	}
	if w.record {
		w.say("the locks on block %s are gone", letter(d.ino))
	}
	*d = ofd{}
}

// rm is an outsider's unlink(2) of the name.
func (w *world) rm() {
	w.rms--
	if w.record {
		w.say("block %s has no name", letter(w.name))
	}
	w.inodes[w.name-1] |= removed
	w.name = 0
}

// tidy brings a state to its one form: what nobody can reach any more is gone
// and loose descriptions are in order.
func (w *world) tidy() {
	var reach [maxInodes + 1]bool
	reach[w.name] = true
	for i := range w.procs {
		reach[w.procs[i].fd.ino], reach[w.procs[i].tmp.ino] = true, true
	}
	for i := range w.loose {
		if !reach[w.loose[i].ino] {
			w.loose[i] = ofd{}
		}
	}
	for i := range w.inodes {
		if !reach[i+1] {
			w.inodes[i] = 0
		}
	}
	for i := 1; i < len(w.loose); i++ {
		for j := i; j > 0 && w.loose[j].before(w.loose[j-1]); j-- {
			w.loose[j], w.loose[j-1] = w.loose[j-1], w.loose[j]
		}
	}
}

func (d ofd) before(o ofd) bool {
	if d.ino != o.ino {
		return d.ino > o.ino
	}
	return d.held > o.held
}

func letter(ino uint8) string { return string('@' + rune(ino)) }

func pick[T any](ok bool, yes, no T) T {
	if ok {
		return yes
	}
	return no
}
