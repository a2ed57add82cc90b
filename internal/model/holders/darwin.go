package holders

// isReady is what openObject of darwin asks of what p has opened.
func (w *world) isReady(p *proc) bool {
	is := *w.flags(&p.fd)&ready != 0
	if w.record {
		w.say("%s", pick(is, "a block", "not a block yet"))
	}
	if !is && w.lacks(OpenChecksReady) {
		w.violate(S7, "took for a block what is not one yet")
		return true
	}
	return is
}

// beaten has p start over, because its object was taken for abandoned, or has
// lost its name. Whoever did that sees to the name.
func (w *world) beaten(p *proc) {
	w.say("beaten")
	p.tmp = ofd{}
	w.enter(p, reapName)
}

// stepDarwin has the steps of Create that are only there on darwin.
func (w *world) stepDarwin(p *proc) {
	switch p.pc {

	case bornName: // O_CREAT and O_EXCL
		if w.name != 0 {
			w.say("EEXIST")
			w.enter(p, lookName)
			break
		}
		w.create(&p.tmp, w.program()[p.call].flags())
		w.name = p.tmp.ino
		w.enter(p, bornSize)
	case bornSize: // the system lets one succeed
		if *w.flags(&p.tmp)&sized != 0 {
			w.beaten(p)
			break
		}
		*w.flags(&p.tmp) |= sized
		w.enter(p, pick(w.lacks(CreateTakesM), pick(w.lacks(CreateChecksName), bornHeader, bornCheck), bornM))
	case bornM:
		if !w.lock(&p.tmp, byteU) {
			w.beaten(p)
			break
		}
		w.enter(p, pick(w.lacks(CreateReadyLast), bornReady, pick(w.lacks(CreateChecksName), bornHeader, bornCheck)))
	case bornCheck:
		if !w.named(&p.tmp) {
			w.beaten(p) // and M is free again
			break
		}
		w.enter(p, bornHeader)
	case bornHeader: // nobody looks at it yet, so one step
		if !w.lacks(CreateLocksFirst) {
			w.lock(&p.tmp, byteW)
		}
		*w.flags(&p.tmp) |= written
		w.enter(p, pick(w.lacks(CreateReadyLast), bornUnlockM, bornReady))
	case bornReady:
		*w.flags(&p.tmp) |= ready
		if p.fd, p.tmp = p.tmp, (ofd{}); p.fd.held&own != 0 {
			w.attach(p)
		}
		w.enter(p, bornUnlockM)
	case bornUnlockM:
		w.unlock(&p.fd, byteU)
		w.enter(p, pick(w.lacks(CreateLocksFirst), createLate, attached))

	case lookName:
		if !w.open(&p.fd, able) {
			w.leave(p, reapName)
			break
		}
		w.enter(p, lookState)
	case lookState: // the creator's time is up, or is not
		switch b := *w.flags(&p.fd); {
		case b&ready != 0:
			w.leave(p, reapName)
		case !w.maybe():
		case b&sized != 0:
			w.enter(p, pick(w.lacks(AbortTakesM), lookAgain, lookM))
		case w.lacks(AbortElects):
			p.then = reapName
			w.enter(p, abortCheck)
		default:
			w.enter(p, lookSize)
		}
	case lookSize: // the creator cannot set it any more, and starts over
		*w.flags(&p.fd) |= sized
		w.enter(p, lookState)
	case lookM: // busy: the creator is at work, or another like p
		w.enterIf(p, w.lock(&p.fd, byteU), lookAgain, reapName)
	case lookAgain:
		if *w.flags(&p.fd)&ready != 0 && !w.lacks(AbortChecksReady) {
			w.leave(p, reapName)
			break
		}
		p.then = reapName
		w.enter(p, pick(w.lacks(AbortChecksName), abortUnlink, abortCheck))
	case abortCheck:
		w.enter(p, pick(w.named(&p.fd), abortUnlink, release))
	case abortUnlink:
		w.unlink(&p.fd, false)
		w.enter(p, release)

	default:
		panic("holders: no step at " + places[p.pc])
	}
}
