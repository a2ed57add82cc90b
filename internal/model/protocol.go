package model

// A pc is a place in the protocol, just before one system call.
type pc uint8

const (
	finished pc = iota
	killed

	openName  // Open, with write permission
	openReady // on darwin
	openM
	openProbe
	openAdopt
	openShare
	openCheck
	openCount
	openUnlockM

	readName // Open, read-only: uncounted
	readAsk
	readShare
	readCheck
	readState

	createTmp // Create
	createLink
	createLateL

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
	reapM
	reapProbe

	removeMark // removeStale: a process that proved a block stale
	removeCheck
	removeUnlink

	closeDropL // Close
	closeM
	closeCount
	closeProbe

	unlinkName  // Unlink
	unlinkReady // on darwin
	unlinkM
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
	openName: "Open [1] open(name)", openM: "Open [2] try M", openProbe: "Open [3] try L exclusive",
	openAdopt: "Open [3] count=0", openShare: "Open [4] L shared", openCheck: "Open [5] stat(name), state",
	openCount: "Open [6] count+1", openUnlockM: "Open [7] release M",
	readName: "OpenRO [1] open(name)", readAsk: "OpenRO [2] ask for L", readShare: "OpenRO [3] L shared",
	readCheck: "OpenRO [4] stat(name)", readState: "OpenRO [5] state",
	createTmp: "Create [1] O_TMPFILE, header, [2] L shared", createLink: "Create [3] linkat",
	createLateL: "Create (mutant) L shared",
	openReady:   "Open [1a] ready?", reapReady: "reap [1a] ready?", unlinkReady: "Unlink [1a] ready?",
	bornName: "Create [1] shm_open(name)", bornSize: "Create [2] ftruncate", bornM: "Create [3] M", bornCheck: "Create [4] stat(name)",
	bornHeader: "Create [5] L shared, header", bornReady: "Create [6] ready", bornUnlockM: "Create [7] release M",
	lookName: "look [1] open(name)", lookState: "look [2] size, ready?", lookSize: "look [3] ftruncate",
	lookM: "look [4] try M", lookAgain: "look [5] ready?",
	abortCheck: "abort [1] stat(name)", abortUnlink: "abort [2] unlink(name)",
	reapName: "reap [1] open(name)", reapAsk: "reap [2] ask for L", reapM: "reap [3] try M",
	reapProbe:  "reap [4] try L exclusive",
	removeMark: "remove [1] state=stale", removeCheck: "remove [2] stat(name)", removeUnlink: "remove [3] unlink(name)",
	closeDropL: "Close (mutant) drop L",
	closeM:     "Close [1] try M", closeCount: "Close [2] count-1", closeProbe: "Close [3] try L exclusive",
	unlinkName: "Unlink [1] open(name)", unlinkM: "Unlink [2] try M", unlinkCheck: "Unlink [3] stat(name)",
	unlinkUnlink: "Unlink [4] unlink(name)", unlinkRelease: "Unlink [5] F_UNLCK, close",
	release: "release: F_UNLCK, close",
}

// step makes the next system call of p. This is the protocol; a case is one
// atomic step and ends by naming the place of the next one. w.lacks is false
// but in a mutant.
func (w *world) step(p *proc) {
	switch p.pc {

	case openName:
		if !w.open(&p.fd) {
			w.leave(p, notExist)
			break
		}
		w.begun(p)
		w.enter(p, pick(w.Darwin, openReady, pick(w.lacks(OpenTakesM), openProbe, openM)))
	case openReady:
		w.enterIf(p, w.isReady(p), pick(w.lacks(OpenTakesM), openProbe, openM), notExist)
	case openM: // busy: its holder is at work or dying, and the block's fate open
		w.enterIf(p, w.lock(&p.fd, mutexM), openProbe, openName)
	case openProbe:
		switch {
		case !w.lock(&p.fd, exclusiveL):
			w.enter(p, openShare)
		case w.inode(&p.fd).flags&persistent != 0:
			w.enter(p, openAdopt)
		default:
			w.removeStale(p, notExist)
		}
	case openAdopt: // nobody is attached, so whoever the count speaks of has crashed
		w.inode(&p.fd).count = 0
		w.inode(&p.fd).flags &^= overcounted
		w.enter(p, openShare)
	case openShare:
		ok := w.lock(&p.fd, sharedL)
		if ok {
			w.meet(p, joining)
		}
		w.enterIf(p, ok, openCheck, openName)
	case openCheck: // L is shared, so the state cannot change: reading it is no step of its own
		ok := w.lacks(OpenChecksName) || w.named(&p.fd)
		ok = ok && (w.lacks(OpenChecksState) || w.inode(&p.fd).flags&stale == 0)
		w.enterIf(p, ok, openCount, openName)
	case openCount:
		if w.Refuse && w.maybe() { // version, size, context: any reason of its own
			w.say("refused")
			w.leave(p, notExist)
			break
		}
		w.inode(&p.fd).count++
		w.attach(p)
		w.enter(p, openUnlockM)
	case openUnlockM:
		w.unlock(&p.fd, mutexM)
		w.enter(p, attached)

	case readName:
		if !w.open(&p.fd) {
			w.leave(p, notExist)
			break
		}
		w.begun(p)
		w.enter(p, pick(w.lacks(ReadOnlyAsks), readShare, readAsk))
	case readAsk:
		switch held := w.ask(&p.fd); {
		case held&exclusiveL != 0 && !w.lacks(ReadOnlyYields): // being proved stale, or Persistent and adopted
			w.leave(p, readName)
		case held != 0 || w.inode(&p.fd).flags&persistent != 0:
			w.enter(p, readShare)
		default:
			w.leave(p, notExist)
		}
	case readShare:
		ok := w.lock(&p.fd, sharedL)
		if ok {
			w.meet(p, entering)
		}
		w.enterIf(p, ok, readCheck, readName)
	case readCheck:
		w.enterIf(p, w.lacks(OpenChecksName) || w.named(&p.fd), readState, readName)
	case readState:
		switch {
		case w.inode(&p.fd).flags&stale != 0 && !w.lacks(OpenChecksState):
			w.leave(p, readName)
		case w.Refuse && w.maybe():
			w.say("refused")
			w.leave(p, notExist)
		default:
			w.attach(p)
			w.enter(p, attached)
		}

	case createTmp: // private until the link, so one step
		w.tmpfile(&p.tmp, w.program()[p.call].flags())
		if !w.lacks(CreateLocksFirst) {
			w.lock(&p.tmp, sharedL)
		}
		w.enter(p, createLink)
	case createLink:
		if !w.link(&p.tmp) {
			w.enter(p, reapName)
			break
		}
		p.fd, p.tmp = p.tmp, ofd{}
		w.attach(p)
		w.enter(p, pick(w.lacks(CreateLocksFirst), createLateL, attached))
	case createLateL:
		if w.lock(&p.fd, sharedL) {
			w.attach(p)
			w.enter(p, attached)
		}

	case reapName:
		p.creating = w.program()[p.call].creates()
		if !w.open(&p.fd) {
			w.leave(p, done)
			break
		}
		if p.creating {
			w.begun(p)
		}
		w.enter(p, pick(w.Darwin, reapReady, reapAsk))
	case reapReady:
		w.enterIf(p, w.isReady(p), reapAsk, done)
	case reapAsk: // what is persistent is not asked: reading that is no step of its own
		if w.inode(&p.fd).flags&persistent != 0 {
			w.leave(p, exist)
			break
		}
		switch held := w.ask(&p.fd); {
		case held&sharedL != 0 || held != 0 && w.lacks(ReapYields):
			w.leave(p, exist)
		case held != 0:
			w.leave(p, done)
		default:
			w.enter(p, pick(w.lacks(ReapTakesM), reapProbe, reapM))
		}
	case reapM:
		w.enterIf(p, w.lock(&p.fd, mutexM), reapProbe, done)
	case reapProbe:
		if !w.lock(&p.fd, exclusiveL) { // another process has attached in the meantime
			w.leave(p, done)
			break
		}
		w.removeStale(p, done)

	case removeMark:
		w.inode(&p.fd).flags |= stale
		w.enter(p, pick(w.lacks(RemoveChecksName), removeUnlink, removeCheck))
	case removeCheck:
		w.enter(p, pick(w.named(&p.fd), removeUnlink, release))
	case removeUnlink:
		w.unlink(&p.fd, false)
		w.enter(p, release)

	case closeDropL:
		w.unlock(&p.fd, lifeL)
		w.enter(p, closeM)
	case closeM:
		switch {
		case w.lacks(CloseTakesM), w.lock(&p.fd, mutexM):
			w.enter(p, closeCount)
		case w.Impatient && w.maybe():
			w.inode(&p.fd).flags |= excused
			w.inode(&p.fd).count--
			p.fd.held &^= counted
			w.leave(p, done)
		}
	case closeCount:
		w.inode(&p.fd).count--
		p.fd.held &^= counted
		if w.inode(&p.fd).flags&persistent != 0 {
			w.leave(p, done)
			break
		}
		w.enter(p, closeProbe)
	case closeProbe:
		last := w.lacks(LProvesLast) && w.inode(&p.fd).count == 0
		if last = last || !w.lacks(LProvesLast) && w.lock(&p.fd, exclusiveL); last {
			w.removeStale(p, done)
			break
		}
		w.excuse(&p.fd)
		w.leave(p, done)

	case unlinkName:
		if !w.open(&p.tmp) {
			w.enter(p, done)
			break
		}
		w.enter(p, pick(w.Darwin, unlinkReady, pick(w.lacks(UnlinkTakesM), unlinkCheck, unlinkM)))
	case unlinkReady:
		if w.inode(&p.tmp).flags&ready == 0 {
			p.tmp = ofd{}
			w.enter(p, done)
			break
		}
		w.enter(p, pick(w.lacks(UnlinkTakesM), unlinkCheck, unlinkM))
	case unlinkM:
		if !w.lock(&p.tmp, mutexM) {
			p.tmp = ofd{}
			w.enter(p, unlinkName)
			break
		}
		w.enter(p, pick(w.lacks(UnlinkChecksName), unlinkUnlink, unlinkCheck))
	case unlinkCheck: // if another block has the name now, Unlink is about that
		named := w.named(&p.tmp)
		p.then = pick(named, done, unlinkName)
		w.enter(p, pick(named, unlinkUnlink, unlinkRelease))
	case unlinkUnlink:
		w.unlink(&p.tmp, true)
		w.enter(p, unlinkRelease)
	case unlinkRelease:
		w.unlock(&p.tmp, locks)
		w.close(&p.tmp)
		to := p.then
		p.then = 0
		w.enter(p, pick(to == 0, done, to))

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

// removeStale has p remove the block that it holds exclusively, release it and go to.
func (w *world) removeStale(p *proc, to pc) {
	p.then = to
	p.fd.held &^= user
	w.enter(p, pick(w.lacks(RemoveMarks), removeCheck, removeMark))
}

// leave has p release its block and go to. Closing a description without
// locks is nothing that anybody could notice, and so no step.
func (w *world) leave(p *proc, to pc) {
	p.met = p.met && p.creating // only Create goes on to ask
	if p.fd.held&locks == 0 {
		p.fd = ofd{}
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
	p.creating, p.met = false, false
	w.begin(p)
}

// begin goes to the first place of the call that p has come to. A Close of
// what did not open is no call.
func (w *world) begin(p *proc) {
	if int(p.call) == len(w.program()) {
		*p = proc{pc: finished}
		return
	}
	switch call := w.program()[p.call]; {
	case call == Close && p.fd.ino == 0:
		w.next(p)
	case call == Close && p.fd.held&counted == 0:
		w.leave(p, done)
	case call == Close:
		p.pc = pick(w.lacks(CloseKeepsL), closeDropL, closeM)
	case call.opens() || !call.creates():
		p.pc = call.start()
	default: // Create looks at what has the name before it makes anything
		p.pc = reapName
	}
}
