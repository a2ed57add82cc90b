package model

// A Property is something that must never, or always, be so. See the package
// comment for the exact form of each.
type Property uint8

// The properties; Holds is that none is violated.
const (
	Holds Property = iota
	S1
	S2
	S3
	S4
	S5
	S6
	S7
	S8
	S9
	S10
	R1 // the known residual of S1
)

func (p Property) String() string {
	return [...]string{"holds", "S1", "S2", "S3", "S4", "S5", "S6", "S7", "S8", "S9", "S10", "R1"}[p]
}

func (w *world) violate(p Property, why string) {
	if w.broken == Holds {
		w.broken, w.why = p, why
	}
}

// attach makes p a user of the block in p.fd.
func (w *world) attach(p *proc) {
	b, call := w.inode(&p.fd), w.program()[p.call]
	opened := !p.creating
	if opened && b.flags&persistent == 0 && !p.met {
		w.violate(S9, "attached to a block that had no user at any time of this Open")
	}
	if opened && call != OpenReadOnly && w.name != p.fd.ino && b.flags&removed == 0 {
		w.violate(S3, "attached to a block that had lost its name before")
	}
	if call != OpenReadOnly {
		p.fd.held |= counted
	}
	p.met = false
	w.meet(p, user)
}

// meet makes p a user, or about to be one, of the block in p.fd, and lets
// every Open and Create that this is of interest to know.
func (w *world) meet(p *proc, as uint8) {
	p.fd.held = p.fd.held&^inside | as
	for i := range w.procs {
		q := &w.procs[i]
		if q != p && w.wants(q, p.fd.ino) && q.counts()&as != 0 {
			q.met = true
		}
	}
}

// begun is called when an Open or Create has come upon a block. From then on
// p.met says whether it has had a user in p's time.
func (w *world) begun(p *proc) {
	d := ofd{ino: w.name}
	p.met = p.met || w.others(&d)&p.counts() != 0 ||
		p.creating && (w.inode(&d).flags&persistent != 0 || w.closing(&d))
}

// closing reports whether a last user has not returned from its Close. A
// Create at that time may pass for one before it.
func (w *world) closing(d *ofd) bool {
	for i := range w.procs {
		p := &w.procs[i]
		if p.pc > killed && w.Programs[i][p.call] == Close && p.fd.ino == d.ino {
			return true
		}
	}
	return w.Darwin && w.others(d)&dying != 0 // its slot is all that can be seen of it
}

// wants reports whether q.met is about the block ino: the one that an Open has
// opened, that has the name a Create wants, or that its reap looks at.
func (w *world) wants(q *proc, ino uint8) bool {
	if q.creating {
		return ino == w.name || ino == q.fd.ino
	}
	return openName < q.pc && q.pc < createTmp && ino == q.fd.ino
}

// counts is who passes for a user in the eyes of p. An Open under M knows
// better than to take another Open under M for one.
func (p *proc) counts() uint8 {
	if openName <= p.pc && p.pc < readName {
		return inside &^ joining
	}
	return inside
}

// checkExist is called when Create returns ErrExist.
func (w *world) checkExist(p *proc) {
	if !p.met {
		w.violate(S10, "ErrExist, but no block under the name had a user at any time of this Create")
	}
}

// noteKill remembers what a killed process leaves behind on d's block.
func (w *world) noteKill(d *ofd) {
	if d.held&(locks|counted) != 0 {
		w.inode(d).flags |= excused
	}
	if d.held&counted != 0 {
		w.inode(d).flags |= overcounted
	}
}

// excuse is called when a Close finds that it is not the last. Then the name
// is left to those who still hold L. Of these a counted user will see to it;
// a read-only or a dying one will not, and then the name may stay.
func (w *world) excuse(d *ofd) {
	b, sees, cannot := w.inode(d), false, false
	w.ofds(func(o *ofd) bool {
		if o != d && o.ino == d.ino && o.held&lifeL != 0 {
			sees = sees || o.held&counted != 0
			cannot = cannot || o.held&(inside|dying) != 0
		}
		return true
	})
	b.flags &^= excused
	if cannot && !sees {
		b.flags |= excused
	}
}

// unlink is unlink(2) of the name by one who has decided on d's block.
func (w *world) unlink(d *ofd, explicit bool) {
	switch {
	case w.name == 0:
	case w.name != d.ino && w.inode(d).flags&removed != 0:
		w.violate(R1, "an outsider removed the name, and the unlink hit the next block")
	case w.name != d.ino:
		w.violate(S1, "the unlink hit another block than the one decided on")
	case explicit:
		w.inode(d).flags |= unlinked
	case w.usedByOther(d):
		w.violate(S1, "the name of a block with a user is unlinked")
	}
	if w.record {
		w.say("%s", pick(w.name == 0, "ENOENT", "block "+letter(w.name)+" has no name"))
	}
	w.name = 0
}

// usedByOther reports whether a living process other than d's is attached.
func (w *world) usedByOther(d *ofd) bool {
	for i := range w.procs {
		q := &w.procs[i]
		if &q.fd != d && q.fd.ino == d.ino && q.fd.held&user != 0 {
			return true
		}
	}
	return false
}

// check finds what is wrong with a state by itself.
func (w *world) check() {
	var first *ofd
	for i := range w.procs {
		d := &w.procs[i].fd
		if d.held&user == 0 {
			continue
		}
		b := w.inode(d)
		lost := b.flags&(unlinked|removed) != 0
		if first != nil && first.ino != d.ino && !lost && w.inode(first).flags&(unlinked|removed) == 0 {
			w.violate(S2, "two users of different blocks under one name")
		}
		first = d
		if w.name != d.ino && !lost {
			w.violate(S3, "a user's block has no name")
		}
		if b.flags&stale != 0 {
			w.violate(S3, "a user's block is marked stale")
		}
	}
	for i := range w.inodes {
		switch w.inodes[i].flags & (written | ready) {
		case written | ready:
			w.checkCount(uint8(i + 1))
		case ready:
			w.violate(S7, "a block can be opened before its header is written")
		}
	}
}

func (w *world) checkCount(ino uint8) {
	n, busy := int8(0), false
	w.ofds(func(o *ofd) bool {
		if o.ino == ino {
			busy = busy || o.held&mutexM != 0
			n += int8(o.held & counted / counted)
		}
		return true
	})
	b := w.inodes[ino-1]
	switch reachable := w.name == ino || n > 0; {
	case b.count < n:
		w.violate(S8, "the count is less than the number of counted users")
	case reachable && b.count > n && !busy && b.flags&overcounted == 0:
		w.violate(S8, "no user crashed, and the count is more than the number of counted users")
	}
}

// finished reports whether no process will make another step.
func (s *state) finished() bool {
	for i := range s.procs {
		if s.procs[i].pc > killed {
			return false
		}
	}
	return true
}

// quiet reports whether everybody is gone, descriptions and all.
func (s *state) quiet() bool { return s.finished() && s.loose == [maxLoose]ofd{} }

// checkQuiet finds what is wrong with what a quiet state leaves behind.
func (w *world) checkQuiet() {
	if w.name == 0 {
		return
	}
	b := w.inodes[w.name-1]
	if b.flags&persistent != 0 && b.flags&ready != 0 {
		w.checkAdoption()
		return
	}
	if b.flags&excused == 0 {
		w.violate(S4, "everybody left cleanly, and a name remains")
	}
	for _, call := range []Call{Open, Create, Reap} {
		// What is not a block yet does not exist for others than Create.
		kept := b.flags&ready == 0 && call != Create
		if end, users := w.alone(call, Close); (end.name != 0) != kept || users != (call == Create) {
			w.violate(S5, "an orphan is not reclaimed by "+call.String())
		}
	}
}

// checkAdoption has a new process Open a persistent block without users.
func (w *world) checkAdoption() {
	end, attached := w.alone(Open, Close)
	if !attached || end.name == 0 || end.inodes[end.name-1].count != 0 {
		w.violate(S5, "a persistent block is not taken over with a count of its own")
	}
}

// alone runs one process in what w has left behind, and reports whether it
// was attached on its way.
func (w *world) alone(calls ...Call) (end state, attached bool) {
	sc := &Scenario{Programs: [][]Call{calls}, Darwin: w.Darwin, Without: w.Without}
	v := world{Scenario: sc, state: w.state, choice: true}
	v.procs = sc.start().procs
	v.kills, v.ghosts, v.rms = 0, 0, 0
	for range 100 {
		if v.tidy(); v.quiet() {
			break
		}
		v.step(&v.procs[0])
		attached = attached || v.procs[0].fd.held&user != 0
	}
	return v.state, attached
}
