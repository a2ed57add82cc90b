package holders

import "github.com/shmkit/shm/internal/model/explore"

// The properties; see the package comment for the exact form of each.
const (
	S1  property = "S1"
	S2  property = "S2"
	S3  property = "S3"
	S4  property = "S4"
	S5  property = "S5"
	S6           = explore.NoWayOut
	S7  property = "S7"
	S9  property = "S9"
	S10 property = "S10"
	H1  property = "H1"
	R1  property = "R1" // the known residual of S1
)

func (w *world) violate(p property, why string) {
	if w.broken == explore.Holds {
		w.broken, w.why = p, why
	}
}

// attach makes p a user of the block in p.fd.
func (w *world) attach(p *proc) {
	b := *w.flags(&p.fd)
	if !p.creating && b&kept == 0 && !p.met {
		w.violate(S9, "attached to a block that had no user at any time of this Open")
	}
	if p.late {
		w.violate(S3, "attached to a block that had lost its name before the own byte was locked")
	}
	p.met = false
	w.meet(p, user)
}

// meet makes p a user, or about to be one, of the block in p.fd, and lets every
// Open and Create that this is of interest to know.
func (w *world) meet(p *proc, as uint16) {
	p.fd.held = p.fd.held&^inside | as
	for i := range w.procs {
		if q := &w.procs[i]; q != p && w.wants(q, p.fd.ino) {
			q.met = true
		}
	}
}

// begun is called when an Open or Create has come upon a block. From then on
// p.met says whether it has had a user in p's time.
func (w *world) begun(p *proc) {
	d := ofd{ino: w.name}
	seen := pick(w.Darwin, inside|own, inside) // its slot is all that can be seen of a process
	p.met = p.met || w.others(&d)&seen != 0 || p.creating && *w.flags(&d)&kept != 0
}

// wants reports whether q.met is about the block ino: the one that an Open has
// opened, that has the name a Create wants, or that its reap looks at.
func (w *world) wants(q *proc, ino uint8) bool {
	if q.creating {
		return ino == w.name || ino == q.fd.ino
	}
	return openName < q.pc && q.pc < createTmp && ino == q.fd.ino
}

// checkExist is called when Create returns ErrExist.
func (w *world) checkExist(p *proc) {
	if !p.met {
		w.violate(S10, "ErrExist, but no block under the name had a user at any time of this Create")
	}
}

// excuse is called when a Close finds that it is not the last, or cannot unlink.
// Then the name is left to those who hold locks. Of these a living one that can
// lock everything will see to it; others will not, and then the name may stay.
func (w *world) excuse(d *ofd) {
	sees := false
	w.ofds(func(o *ofd) {
		sees = sees || o != d && o.ino == d.ino && o.held&life != 0 && o.held&able != 0 && o.held&(dying|gone) == 0
	})
	*w.flags(d) &^= excused
	if !sees {
		*w.flags(d) |= excused
	}
}

// unlink is unlink(2) of the name by a process that has decided on d's block.
func (w *world) unlink(d *ofd, explicit bool) {
	switch b := *w.flags(d); {
	case w.name == 0:
	case w.name != d.ino && b&removed != 0:
		w.violate(R1, "an outsider removed the name, and the unlink hit the next block")
	case w.name != d.ino:
		w.violate(S1, "the unlink hit another block than the one decided on")
	case explicit:
		*w.flags(d) |= unlinked
	case b&kept != 0 && b&ready != 0:
		w.violate(S1, "the name of a kept block is unlinked")
	case w.used(d):
		w.violate(S1, "the name of a block with a user is unlinked")
	}
	if w.record {
		w.say("%s", pick(w.name == 0, "ENOENT", "block "+letter(w.name)+" has no name"))
	}
	w.name = 0
}

// used reports whether another process is attached, or a child that was forked
// by one still holds its locks.
func (w *world) used(d *ofd) (used bool) {
	w.ofds(func(o *ofd) { used = used || o != d && o.ino == d.ino && o.held&(user|gone) != 0 && o.held&dying == 0 })
	return used
}

// users has a bit for each process that is attached to a block.
func (w *world) users(ino uint8) (set uint8) {
	for i := range w.procs {
		if d := &w.procs[i].fd; d.ino == ino && d.held&user != 0 {
			set |= 1 << i
		}
	}
	return set
}

// check finds what is wrong with a state by itself.
func (w *world) check() {
	var first *ofd
	for i := range w.procs {
		if w.procs[i].pc == refsScan {
			w.watch(&w.procs[i])
		}
		d := &w.procs[i].fd
		if d.held&user == 0 {
			continue
		}
		b := *w.flags(d)
		lost := b&(unlinked|removed) != 0 || d.held&handed != 0
		if first != nil && first.ino != d.ino && !lost && *w.flags(first)&(unlinked|removed) == 0 && first.held&handed == 0 {
			w.violate(S2, "two users of different blocks under one name")
		}
		first = d
		if w.name != d.ino && !lost {
			w.violate(S3, "a user's block has no name")
		}
		if b&dead != 0 {
			w.violate(S3, "a user's block is marked dead")
		}
	}
	for _, b := range w.inodes {
		if b&(written|ready) == ready {
			w.violate(S7, "a block can be opened before its header is written")
		}
	}
}

// watch keeps account of what p's Refs may say. Who moves from one range to the
// other meanwhile may be missed.
func (w *world) watch(p *proc) {
	p.always &= w.users(p.fd.ino)
	for j := range w.procs {
		q := &w.procs[j]
		if q.fd.ino == p.fd.ino && q.fd.held&inside != 0 {
			p.ever |= 1 << j
		}
		if asideLock <= q.pc && q.pc <= backLet {
			p.always &^= 1 << j
		}
	}
}

// checkRefs is called when Refs returns.
func (w *world) checkRefs(p *proc) {
	if p.always&^p.found != 0 {
		w.violate(H1, "a process was attached all the time, and not counted")
	}
	if p.found&^p.ever != 0 {
		w.violate(H1, "a process was counted that was not attached at any time")
	}
}

// Finished reports whether no process will make another step.
func (sc *Scenario) Finished(s state) bool {
	for i := range s.procs {
		if s.procs[i].pc > killed {
			return false
		}
	}
	return true
}

// quiet reports whether everybody is gone, descriptions and all.
func (sc *Scenario) quiet(s *state) bool { return sc.Finished(*s) && s.loose == [maxLoose]ofd{} }

// Check finds what is wrong with what a quiet state leaves behind.
func (sc *Scenario) Check(s state) (property, string) {
	if s.name == 0 || !sc.quiet(&s) {
		return explore.Holds, ""
	}
	w := world{Scenario: sc, state: s}
	b := s.inodes[s.name-1]
	if b&kept != 0 && b&ready != 0 {
		for _, call := range []Call{Open, OpenReadOnly, OpenReader, Reap} {
			if sc.Darwin && call == OpenReader { // which is not modelled
				continue
			}
			if end, attached := w.alone(call, Close); end.name == 0 || attached != (call != Reap) {
				w.violate(S5, "a kept block without users: "+call.String())
			}
		}
		return w.broken, w.why
	}
	if b&excused == 0 {
		w.violate(S4, "everybody left cleanly, and a name remains")
	}
	for _, call := range []Call{Open, OpenReadOnly, Create, Reap} {
		// What is not a block yet does not exist for others than Create.
		stays := b&ready == 0 && call != Create
		if end, attached := w.alone(call, Close); (end.name != 0) != stays || attached != (call == Create) {
			w.violate(S5, "an orphan is not reclaimed by "+call.String())
		}
	}
	if _, attached := w.alone(OpenReader, Close); attached && !sc.Darwin {
		w.violate(S5, "an orphan is attached to by OpenReader")
	}
	return w.broken, w.why
}

// alone runs one process in what w has left behind, and reports whether it
// was attached on its way.
func (w *world) alone(calls ...Call) (end state, attached bool) {
	sc := &Scenario{Programs: [][]Call{calls}, Darwin: w.Darwin, Without: w.Without}
	v := world{Scenario: sc, state: w.state, choice: true}
	v.procs = sc.Start().procs
	v.kills, v.ghosts, v.rms = 0, 0, 0
	for range 100 {
		if v.tidy(); sc.quiet(&v.state) {
			break
		}
		v.step(&v.procs[0])
		attached = attached || v.procs[0].fd.held&user != 0
	}
	return v.state, attached
}
