package model

import "fmt"

// Bounds of the model. An exploration that needs more panics: it never goes
// on with a truncated world.
const (
	maxProcs  = 3
	maxInodes = 6
	maxLoose  = 4
)

// A state is all that the future depends on, and nothing else, so that equal
// states are one. It holds only bytes: map keys of it are cheap to hash.
type state struct {
	name   uint8 // the inode that the name leads to; 0: there is no such name
	inodes [maxInodes]inode
	procs  [maxProcs]proc
	// loose are the descriptions that outlive their process: those of a killed
	// one until the kernel comes to them, and closed ones that a forked child
	// keeps until its exec. Sorted, because their order means nothing.
	loose [maxLoose]ofd
	// What the surroundings may still do.
	kills, ghosts, rms uint8
}

// An inode is a block: two words of its header, and what the properties need
// to know about its past. Inodes are numbered from 1.
type inode struct {
	flags uint16
	count int8
}

const (
	inUse       uint16 = 1 << iota
	stale              // header: state is stale
	persistent         // header: outlives its users
	unlinked           // lost its name to an explicit Unlink
	removed            // lost its name to an outsider
	excused            // may stay when all are gone: see world.excuse
	overcounted        // a counted user was killed
	sized              // darwin: has its size, and so a lock page
	written            // header is complete
	ready              // darwin: the lock page says that it is a block
)

// An ofd is an open file description. Locks belong to it: not to the process,
// not to the descriptor.
type ofd struct {
	ino  uint8 // 0: closed
	held uint8
}

const (
	mutexM  uint8 = 1 << iota // exclusive
	sharedL                   // excludes exclusiveL of others
	exclusiveL
	// The rest are no locks but what the holder believes.
	entering // an Open, read-only, that has got sharedL
	joining  // an Open, under M, that has got sharedL
	user     // attached; ends when sharedL goes
	counted  // has added 1 to the count and not yet taken it back
	dying    // was killed

	lifeL  = sharedL | exclusiveL
	locks  = mutexM | lifeL
	inside = entering | joining | user
)

// A proc is a process: where it is in its program, and its descriptions.
type proc struct {
	pc   pc
	then pc    // where to go on after release
	call uint8 // index into the program

	creating bool // in Create, perhaps of OpenOrCreate
	met      bool // see world.meet
	fd       ofd  // the block opened or attached
	tmp      ofd  // the block Create is making; Unlink's own description
}

// A world is a state in the course of one step, and what the step showed.
type world struct {
	state
	*Scenario
	self   int      // the process whose step it is
	choice bool     // what maybe returns
	asked  bool     // maybe was called
	broken Property // what the step violated, if anything
	why    string
	log    []byte // what the system calls returned, if record
	record bool
}

// maybe is a choice that is not the process's own. The explorer takes both ways.
func (w *world) maybe() bool {
	w.asked = true
	return w.choice
}

// say adds to the record. Where it has arguments the caller asks for w.record
// first, so that a search does not pay for them.
func (w *world) say(format string, a ...any) {
	if !w.record {
		return
	}
	if len(w.log) > 0 {
		w.log = append(w.log, ", "...)
	}
	w.log = fmt.Appendf(w.log, format, a...)
}

func (w *world) inode(d *ofd) *inode { return &w.inodes[d.ino-1] }

// ofds calls f with every open description, loose ones included, until f
// returns false.
func (w *world) ofds(f func(*ofd) bool) {
	for i := range w.procs {
		p := &w.procs[i]
		if p.fd.ino != 0 && !f(&p.fd) || p.tmp.ino != 0 && !f(&p.tmp) {
			return
		}
	}
	for i := range w.loose {
		if w.loose[i].ino != 0 && !f(&w.loose[i]) {
			return
		}
	}
}

// others returns what all descriptions of d's inode but d itself hold.
func (w *world) others(d *ofd) (held uint8) {
	w.ofds(func(o *ofd) bool {
		if o != d && o.ino == d.ino {
			held |= o.held
		}
		return true
	})
	return held
}

// open is open(2) by name.
func (w *world) open(d *ofd) bool {
	*d = ofd{ino: w.name}
	if w.record {
		w.say("%s", pick(d.ino != 0, "block "+letter(d.ino), "ENOENT"))
	}
	return d.ino != 0
}

// tmpfile is open(2) with O_TMPFILE, and the writing of the header.
func (w *world) tmpfile(d *ofd, flags uint16) {
	w.create(d, flags|sized|written|ready)
	w.inode(d).count = 1
}

// create makes a new inode.
func (w *world) create(d *ofd, flags uint16) {
	for i := range w.inodes {
		if w.inodes[i].flags == 0 {
			w.inodes[i] = inode{flags: inUse | flags}
			*d = ofd{ino: uint8(i + 1)}
			if w.record {
				w.say("block %s", letter(d.ino))
			}
			return
		}
	}
	panic("model: maxInodes is too small")
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

// named is the identity check: stat(2) of the name gives d's inode. An inode
// that is open keeps its number, so equal numbers mean the same inode.
func (w *world) named(d *ofd) bool {
	if w.record {
		w.say("%s", pick(w.name == d.ino, "same block", "another block or none"))
	}
	return w.name == d.ino
}

// lock is F_OFD_SETLK. It converts a lock that d has of that kind, in one step;
// when it fails, d keeps what it had.
func (w *world) lock(d *ofd, want uint8) bool {
	kind, conflict := mutexM, mutexM
	if want&lifeL != 0 {
		kind, conflict = lifeL, exclusiveL
		if want == exclusiveL {
			conflict = lifeL
		}
	}
	ok := w.others(d)&conflict == 0
	if ok && want == exclusiveL && w.Darwin {
		// Under M, all slots but one's own seen free. Nothing is stored.
	} else if ok {
		d.held = d.held&^kind | want
		if d.held&sharedL == 0 {
			d.held &^= inside
		}
	}
	if w.record {
		w.say("%s", pick(ok, "granted", "EAGAIN"))
	}
	return ok
}

// ask is F_OFD_GETLK on L: sharedL, exclusiveL or 0, whichever others hold.
func (w *world) ask(d *ofd) uint8 {
	held := w.others(d) & lifeL
	if w.record {
		w.say("%s", pick(held == 0, "no holder", pick(held&sharedL != 0, "a shared holder", "an exclusive holder")))
	}
	return held
}

// unlock is F_UNLCK.
func (w *world) unlock(d *ofd, which uint8) {
	d.held &^= which
	if d.held&sharedL == 0 {
		d.held &^= inside
	}
}

// close is close(2) by a living process. A child between fork and exec may
// keep the description, and so the locks that were not taken off it before.
func (w *world) close(d *ofd) {
	if w.ghosts > 0 && d.held&locks != 0 && w.maybe() {
		w.ghosts--
		w.loosen(ofd{d.ino, d.held &^ inside})
		if w.record {
			w.say("a forked child still holds the locks")
		}
	}
	*d = ofd{}
}

// loosen keeps a description without its process.
func (w *world) loosen(d ofd) {
	d.held &^= counted
	for i := range w.loose {
		if w.loose[i].ino == 0 {
			w.loose[i] = d
			return
		}
	}
	panic("model: maxLoose is too small")
}

// kill is SIGKILL. The locks stay until vanish, each description's by itself.
func (w *world) kill(p *proc) {
	w.kills--
	if p.fd.ino != 0 {
		w.noteKill(&p.fd)
	}
	if w.Darwin && p.creating {
		for _, d := range []ofd{p.fd, p.tmp} { // they have their names already
			if d.ino != 0 && w.inode(&d).flags&ready == 0 {
				w.inode(&d).flags |= excused | overcounted
			}
		}
	}
	for _, d := range []ofd{p.fd, p.tmp} {
		if d.held&locks != 0 {
			d.held |= dying
			w.loosen(d)
		}
	}
	*p = proc{pc: killed}
}

// vanish is the kernel dropping a loose description with all its locks.
func (w *world) vanish(i int) {
	if w.record {
		w.say("the locks on block %s are gone", letter(w.loose[i].ino))
	}
	w.loose[i] = ofd{}
}

// rm is an outsider's unlink(2) of the name.
func (w *world) rm() {
	w.rms--
	if w.record {
		w.say("block %s has no name", letter(w.name))
	}
	w.inodes[w.name-1].flags |= removed
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
			w.inodes[i] = inode{}
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
