package holders

// A pc is a place in the protocol, just before one system call.
type pc uint8

const (
	finished pc = iota
	killed

	openName  // Open
	openReady // on darwin
	openAsk
	openWhole
	openShare
	openCheck
	openReturn

	createTmp // Create
	createLink
	createLate

	bornName // Create on darwin
	bornSize
	bornM
	bornCheck
	bornHeader
	bornReady
	bornUnlockM

	lookName // what has the name that Create wants, on darwin
	lookState
	lookSize
	lookM
	lookAgain
	abortCheck
	abortUnlink

	reapName  // reap, by Create or by itself
	reapReady // on darwin
	reapAsk
	reapWhole

	removeCheck // remove: after proof that the block is dead
	removeUnlink
	removeMark

	closeStart // Close, and an Open that gives up
	closeAtOnce
	closeDrop
	closeAsk
	closeWhole

	keepSet // Keep

	asideLock // Aside
	asideLet
	backLock // Back
	backLet

	refsStart // Refs
	refsScan

	unlinkName  // Unlink
	unlinkReady // on darwin
	unlinkLock
	unlinkCheck
	unlinkUnlink
	unlinkRelease

	release // the end of all that opened by name

	// Places where a call returns; no process ever stands there.
	attached
	notExist
	exist
	done
)

// places is what a trace says.
var places = [...]string{
	openName: "Open [1] open(name)", openAsk: "Open [2] ask", openWhole: "Open [3] try the whole range",
	openShare: "Open [4] own byte", openCheck: "Open [5] stat(name), state", openReturn: "Open [6] return",
	createTmp: "Create [1] O_TMPFILE, header, [2] own byte", createLink: "Create [3] linkat",
	createLate: "Create (mutant) own byte",
	openReady:  "Open [1a] ready?", reapReady: "reap [1a] ready?", unlinkReady: "Unlink [1a] ready?",
	bornName: "Create [1] shm_open(name)", bornSize: "Create [2] ftruncate", bornM: "Create [3] mutex", bornCheck: "Create [4] stat(name)",
	bornHeader: "Create [5] own slot, header", bornReady: "Create [6] ready", bornUnlockM: "Create [7] release the mutex",
	lookName: "look [1] open(name)", lookState: "look [2] size, ready?", lookSize: "look [3] ftruncate",
	lookM: "look [4] try the mutex", lookAgain: "look [5] ready?",
	abortCheck: "abort [1] stat(name)", abortUnlink: "abort [2] unlink(name)",
	reapName: "reap [1] open(name)", reapAsk: "reap [2] ask", reapWhole: "reap [3] try the whole range",
	removeCheck: "remove [1] stat(name)", removeUnlink: "remove [2] unlink(name)", removeMark: "remove [3] state=DEAD",
	closeStart: "Close [0] count", closeAtOnce: "Close [0] try the whole range", closeDrop: "Close [1] F_UNLCK",
	closeAsk: "Close [2] ask", closeWhole: "Close [3] try the whole range",
	keepSet: "Keep", asideLock: "Aside [1] reader's byte", asideLet: "Aside [2] F_UNLCK writer's byte",
	backLock: "Back [1] writer's byte", backLet: "Back [2] F_UNLCK reader's byte",
	refsStart: "Refs", refsScan: "Refs: ask on",
	unlinkName: "Unlink [1] open(name)", unlinkLock: "Unlink [2] try U", unlinkCheck: "Unlink [3] stat(name)",
	unlinkUnlink: "Unlink [4] unlink(name)", unlinkRelease: "Unlink [5] F_UNLCK, close",
	release: "release: F_UNLCK, close",
}

// step makes the next system call of p. This is the protocol; a case is one
// atomic step and ends by naming the place of the next one. w.lacks is false
// but in a mutant.
func (w *world) step(p *proc) {
	switch p.pc {

	case openName:
		if !w.open(&p.fd, w.program()[p.call].access()) {
			w.leave(p, notExist)
			break
		}
		w.begun(p)
		w.enter(p, pick(w.Darwin, openReady, pick(w.lacks(OpenAsks), openShare, openAsk)))
	case openReady:
		w.enterIf(p, w.isReady(p), pick(w.lacks(OpenAsks), openShare, openAsk), notExist)
	case openAsk:
		switch a := w.ask(&p.fd); {
		case a == ending && !w.lacks(OpenYields): // being proved dead
			w.leave(p, openName)
		case a == ghosts && w.lacks(GhostsLive):
			w.remove(p, notExist)
		case a == ghosts && !w.lacks(OpenWaits):
			w.wait(p, openShare, openName)
		case a != nobody || *w.flags(&p.fd)&kept != 0:
			w.enter(p, openShare)
		case p.fd.held&able == 0:
			w.leave(p, notExist)
		default:
			w.enter(p, openWhole)
		}
	case openWhole:
		switch {
		case !w.lock(&p.fd, whole): // attached, or unlinking, in the meantime
			w.leave(p, openName)
		case *w.flags(&p.fd)&kept != 0 && !w.lacks(KeepInside):
			w.leave(p, openName)
		default:
			w.remove(p, notExist)
		}
	case openShare:
		ok := w.lock(&p.fd, w.program()[p.call].byte())
		if ok {
			w.meet(p, entering)
			p.late = w.name != p.fd.ino && p.fd.held&handed == 0
		}
		w.enterIf(p, ok, openCheck, openName)
	case openCheck: // with the own byte locked the state cannot change: reading it is no step of its own
		ok := p.fd.held&handed != 0 || w.lacks(OpenChecksName) || w.named(&p.fd)
		ok = ok && (w.lacks(OpenChecksState) || *w.flags(&p.fd)&dead == 0)
		if !ok {
			w.detach(p, openName)
			break
		}
		w.enter(p, openReturn)
	case openReturn:
		if w.Refuse && w.maybe() { // version, size, context: any reason of its own
			w.say("refused")
			w.detach(p, notExist)
			break
		}
		w.attach(p)
		w.enter(p, attached)

	case createTmp: // private until the link, so one step
		w.tmpfile(&p.tmp, w.program()[p.call].flags())
		if !w.lacks(CreateLocksFirst) {
			w.lock(&p.tmp, byteW)
		}
		w.enter(p, createLink)
	case createLink:
		if !w.link(&p.tmp) {
			w.enter(p, reapName)
			break
		}
		p.fd, p.tmp = p.tmp, ofd{}
		w.attach(p)
		w.enter(p, pick(w.lacks(CreateLocksFirst), createLate, attached))
	case createLate:
		if w.lock(&p.fd, byteW) {
			w.attach(p)
			w.enter(p, attached)
		}

	case reapName:
		p.creating = w.program()[p.call].creates()
		if !w.open(&p.fd, able) {
			w.leave(p, done)
			break
		}
		if p.creating {
			w.begun(p)
		}
		w.enter(p, pick(w.Darwin, reapReady, reapAsk))
	case reapReady:
		w.enterIf(p, w.isReady(p), reapAsk, done)
	case reapAsk: // what is kept is not asked: reading that is no step of its own
		if *w.flags(&p.fd)&kept != 0 {
			w.leave(p, exist)
			break
		}
		switch a := w.ask(&p.fd); {
		case a == somebody || a == ending && w.lacks(ReapYields) || a == ghosts && w.lacks(ReapWaits):
			w.leave(p, exist)
		case a == ghosts:
			w.wait(p, exist, done)
		case a == ending:
			w.leave(p, done)
		default:
			w.enter(p, reapWhole)
		}
	case reapWhole:
		switch {
		case !w.lock(&p.fd, whole):
			w.leave(p, done)
		case *w.flags(&p.fd)&kept != 0:
			w.leave(p, exist)
		default:
			w.remove(p, done)
		}

	case removeCheck:
		w.enter(p, pick(w.named(&p.fd), removeUnlink, w.mark()))
	case removeUnlink:
		w.unlink(&p.fd, false)
		w.enter(p, w.mark())
	case removeMark: // what has its name is never marked
		*w.flags(&p.fd) |= dead
		w.enter(p, pick(w.lacks(MarkLast), removeCheck, release))

	case closeStart: // the count is a hint: whichever way it points must be right
		atOnce := p.fd.held&able != 0 && *w.flags(&p.fd)&kept == 0 && w.maybe()
		w.enter(p, pick(atOnce, closeAtOnce, pick(w.lacks(DropFirst), closeAsk, closeDrop)))
	case closeAtOnce:
		w.removeOr(p, closeDrop)
	case closeDrop:
		w.unlock(&p.fd, locks)
		if p.fd.held&able == 0 || *w.flags(&p.fd)&kept != 0 {
			w.excuse(&p.fd)
			w.leave(p, p.then)
			break
		}
		w.enter(p, closeAsk)
	case closeAsk:
		switch w.ask(&p.fd) {
		case nobody:
			w.enter(p, closeWhole)
		case ending: // it may have no right to unlink
			if w.Impatient && w.maybe() {
				*w.flags(&p.fd) |= excused
				w.leave(p, p.then)
			}
		default:
			w.excuse(&p.fd)
			w.leave(p, p.then)
		}
	case closeWhole:
		switch {
		case w.lacks(LockProves):
			w.remove(p, p.then)
		case w.Impatient && w.maybe():
			*w.flags(&p.fd) |= excused
			w.leave(p, p.then)
		case w.lacks(AskAgain):
			w.removeOr(p, release)
		default:
			w.removeOr(p, closeAsk)
		}
	case keepSet:
		*w.flags(&p.fd) |= kept
		w.enter(p, done)

	case asideLock:
		w.shift(p, byteR, byteW, asideLet)
	case asideLet:
		w.shift(p, byteR, byteW, done)
	case backLock:
		w.shift(p, byteW, byteR, backLet)
	case backLet:
		w.shift(p, byteW, byteR, done)

	case refsStart:
		p.always = w.users(p.fd.ino)
		p.ever = p.always
		w.enter(p, refsScan)
	case refsScan: // the writers' range, then the readers', as the own bytes lie in them
		i, half := p.scan%maxProcs, pick(p.scan < maxProcs, byteW, byteR)
		if o := &w.procs[i].fd; o.ino == p.fd.ino && o.held&half != 0 {
			p.found |= 1 << i
		}
		if p.scan++; p.scan == 2*maxProcs {
			w.checkRefs(p)
			p.scan, p.found, p.always, p.ever = 0, 0, 0, 0
			w.enter(p, done)
		}

	case unlinkName:
		if !w.open(&p.tmp, able) {
			w.enter(p, done)
			break
		}
		w.enter(p, pick(w.Darwin, unlinkReady, pick(w.lacks(UnlinkLocks), unlinkCheck, unlinkLock)))
	case unlinkReady:
		if *w.flags(&p.tmp)&ready == 0 {
			p.tmp = ofd{}
			w.enter(p, done)
			break
		}
		w.enter(p, pick(w.lacks(UnlinkLocks), unlinkCheck, unlinkLock))
	case unlinkLock:
		if !w.lock(&p.tmp, byteU) {
			p.tmp = ofd{}
			w.enter(p, unlinkName)
			break
		}
		w.enter(p, pick(w.lacks(UnlinkChecksName), unlinkUnlink, unlinkCheck))
	case unlinkCheck: // if another block has the name now, Unlink is about that
		p.again = !w.named(&p.tmp)
		w.enter(p, pick(p.again, unlinkRelease, unlinkUnlink))
	case unlinkUnlink:
		w.unlink(&p.tmp, true)
		w.enter(p, unlinkRelease)
	case unlinkRelease:
		w.unlock(&p.tmp, locks)
		w.close(&p.tmp)
		again := p.again
		p.again = false
		w.enter(p, pick(again, unlinkName, done))

	case release: // the explicit unlock: close(2) alone leaves the locks to a forked child
		if !w.lacks(ExplicitUnlock) {
			w.unlock(&p.fd, locks)
		}
		w.close(&p.fd)
		to := p.then
		p.then = 0
		w.enter(p, to)

	default:
		w.stepDarwin(p)
	}
}

// access is what a descriptor that c opens is good for.
func (c Call) access() uint16 {
	switch c {
	case OpenReader:
		return 0
	case OpenHanded:
		return able | handed
	}
	return able
}

// byte is the range that c locks its byte in.
func (c Call) byte() uint16 {
	return pick(c == OpenReadOnly || c == OpenReader, byteR, byteW)
}

// wait is what p does about the locks of processes that have ended: it starts
// over, or gives up waiting and goes on to late, as if they were alive.
func (w *world) wait(p *proc, late, over pc) {
	if !w.Daemon || !w.maybe() {
		w.leave(p, over)
		return
	}
	w.say("waited long enough")
	p.met = true
	if late == exist {
		w.leave(p, late)
		return
	}
	w.enter(p, late)
}

// shift is one half of a move from one range to the other.
func (w *world) shift(p *proc, to, from uint16, next pc) {
	switch first := next != done; {
	case first == w.lacks(LockThenLet):
		w.unlock(&p.fd, from)
	case !w.lock(&p.fd, to):
		return
	}
	w.enter(p, next)
}

// detach has p give up the block that it has its own byte of, and go to.
func (w *world) detach(p *proc, to pc) {
	p.then = to
	w.forget(p)
	if w.lacks(AbortDetaches) {
		w.leave(p, to)
		return
	}
	w.enter(p, closeDrop)
}

// removeOr has p remove the block if it can lock everything, and else go to.
func (w *world) removeOr(p *proc, to pc) {
	switch {
	case !w.lock(&p.fd, whole):
		w.enter(p, to)
	case *w.flags(&p.fd)&kept != 0 && !w.lacks(KeepInside):
		w.leave(p, p.then)
	default:
		w.remove(p, p.then)
	}
}

// remove has p remove the block that it has locked, release it and go to.
func (w *world) remove(p *proc, to pc) {
	p.then = to
	w.forget(p)
	first := pick(w.lacks(RemoveChecksName), removeUnlink, removeCheck)
	w.enter(p, pick(w.lacks(MarkLast) && *w.flags(&p.fd)&dead == 0, removeMark, first))
}

// mark is what follows the unlink.
func (w *world) mark() pc {
	return pick(w.lacks(RemoveMarks) || w.lacks(MarkLast), release, removeMark)
}

// forget is the end of an attempt: only Create goes on to ask what it has met.
func (w *world) forget(p *proc) { p.met, p.late = p.met && p.creating, false }

// leave has p release its block and go to. Closing a description without
// locks is nothing that anybody could notice, and so no step.
func (w *world) leave(p *proc, to pc) {
	w.forget(p)
	if p.fd.held&locks == 0 {
		p.fd, p.then = ofd{}, 0
		w.enter(p, to)
		return
	}
	p.then = to
	w.enter(p, release)
}

// enterIf goes on to yes, or releases the block and goes to no.
func (w *world) enterIf(p *proc, ok bool, yes, no pc) {
	if ok {
		w.enter(p, yes)
		return
	}
	w.leave(p, no)
}

// enter moves p to its next place. Where that is the end of a function, p goes
// on in the caller: OpenOrCreate alternates between Open and Create, and Create
// calls reap.
func (w *world) enter(p *proc, to pc) {
	call := w.program()[p.call]
	switch {
	case to == notExist && call.creates():
		p.met = false
		p.pc = reapName
	case to == done && p.creating:
		p.pc = pick(w.Darwin, bornName, pick(p.tmp.ino == 0, createTmp, createLink))
	case to == exist && call.opens():
		p.tmp, p.creating, p.met = ofd{}, false, false
		p.pc = openName
	case to == exist && call.creates():
		w.checkExist(p)
		p.tmp = ofd{}
		w.next(p)
	case to >= attached:
		w.next(p)
	default:
		p.pc = to
	}
}

// next begins the next call of the program of p.
func (w *world) next(p *proc) {
	p.call++
	p.creating, p.met, p.late = false, false, false
	w.begin(p)
}

// begin goes to the first place of the call that p has come to. What needs a
// block that p is not attached to is no call.
func (w *world) begin(p *proc) {
	if int(p.call) == len(w.program()) {
		*p = proc{pc: finished}
		return
	}
	call := w.program()[p.call]
	if call.attached() && p.fd.ino == 0 {
		w.next(p)
		return
	}
	p.pc = call.start()
	if call == Close {
		p.then = done
	}
}
