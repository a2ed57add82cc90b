package waiting

// step makes the next step of p: one access to a word, a byte copied or cleared,
// or one system call. This is the protocol.
func (w *world) step(p *proc) {
	switch p.pc {

	case wLoad:
		p.s, p.at = w.size, w.now
		w.look(p)
		w.write(p, true)
	case wCopy:
		w.put(p)
		p.pc = wSwap
	case wSwap:
		if !w.same(w.size, p.s) {
			w.say("fails")
			p.pc = wAfter
			break
		}
		w.publish(p)
	case wBelow:
		w.put(p)
		p.pc = wAfter
	case wAfter:
		s := w.size
		again := s.low != p.s.low && !w.lacks(SizeTellsWriter)
		again = again || w.lacks(SizeTellsWriter) && s.len < p.s.len
		p.s, p.at = s, w.now
		if !again && s.len > w.what(p).offset() {
			w.next(p)
			break
		}
		w.write(p, again)

	case tLock:
		if w.cut = uint8(w.self + 1); w.lacks(CutLock) {
			w.cut = 0
		}
		p.pc = tLoad
	case tLoad:
		p.s = w.size
		w.look(p)
		w.truncate(p)
	case tDirty:
		w.dirty = p.s.len
		p.pc = tGen
	case tGen:
		if w.gen%w.Low == p.s.low {
			w.gen++
		}
		p.pc = tMark
	case tMark:
		w.lower(p)
	case tDirtyLate:
		if w.lacks(GenerationFirst) {
			w.gen++
		} else {
			w.dirty = p.s.len
		}
		w.wake(p, tClear)
	case tRaise:
		if !w.same(w.size, p.s) {
			w.say("fails")
			p.pc = tLoad
			break
		}
		w.grow(w.what(p).offset())
		w.wake(p, tUnlock)
	case tClear:
		if end := pick(w.lacks(LowerFirst) && !p.marked, p.s.len, w.dirty); p.i < end {
			w.data[p.i], w.stained[p.i] = 0, false
			p.i++
			break
		}
		p.pc = pick(w.lacks(LowerFirst) && !p.marked, tGen, tUncut)
	case tUncut: // a store: nobody else changes size
		if p.i = 0; !w.size.cut || w.size.finished {
			w.violate(W4, "size was changed while it was cut")
		}
		w.size.cut = false
		p.pc = pick(p.marked, tUnlock, tLoad)
	case tUnlock:
		w.cut = 0
		switch w.what(p) {
		case Write0, Write1:
			p.pc = wLoad
		case Finish:
			p.pc = nLoad
		default:
			w.next(p)
		}

	case nLoad:
		p.s = w.size
		w.look(p)
		switch {
		case p.s.finished:
			w.next(p)
		case p.s.cut:
			p.pc = tLock
		default:
			p.pc = nSwap
		}
	case nSwap:
		if !w.same(w.size, p.s) {
			w.say("fails")
			p.pc = nLoad
			break
		}
		w.size.finished = true
		w.ended[w.now] = 1 + w.size.len
		w.wake(p, closed)

	case aLook:
		if p.pc = aSwap; !w.armed && !w.lacks(RaiseThenLook) {
			w.woken(p)
		}
	case aSwap:
		if p.pc = aEvent; !w.armed {
			w.woken(p)
		}
		w.armed = false
	case aEvent:
		for i := range w.procs {
			w.procs[i].fresh = w.procs[i].fresh && w.lacks(EventCounts)
		}
		p.pc = aWake
	case aWake:
		w.wakeSleepers()
		w.woken(p)

	case xAttach:
		p.writer = true
		w.next(p)
	case xDrop:
		p.writer = false
		if w.lacks(CloseWakes) || w.lacks(DropThenWake) {
			*p = proc{}
			break
		}
		w.wake(p, finished)

	default:
		w.follow(p)
	}
}

// look is that of a mutant.
func (w *world) look(p *proc) { p.seen = w.lacks(RaiseThenLook) && w.armed }

// write has p, which has loaded s, go on with WriteAt; again if it has not yet
// copied, or not to a block of this generation.
func (w *world) write(p *proc, again bool) {
	switch off := w.what(p).offset(); {
	case p.s.len > off:
		p.pc = wBelow
	case p.s.finished && !w.lacks(FinishStops):
		w.say("ErrFinished")
		w.stain(p)
		w.next(p)
	case p.s.cut && !w.lacks(CutBit):
		p.pc = tLock
	default:
		p.pc = pick(again, wCopy, wSwap)
	}
}

// put copies the byte. Another one is written for each generation and call.
func (w *world) put(p *proc) {
	off := w.what(p).offset()
	w.data[off] = w.value(p)
	if p.copied = true; off < w.size.len {
		w.wrote[w.now][off] = anything
	}
}

func (w *world) value(p *proc) uint8 { return 1 + p.call + 4*uint8(w.self) + 16*p.at }

// publish raises Size over what p has copied.
func (w *world) publish(p *proc) {
	off := w.what(p).offset()
	w.grow(off)
	w.size.len, w.length[w.now] = off+1, off+1
	w.wrote[w.now][off] = w.value(p)
	if w.ended[w.now] != 0 {
		w.violate(W3, "Size is raised after Finish")
	}
	if w.data[off] != w.value(p) {
		if w.wrote[w.now][off] = anything; !w.contended(off) {
			w.violate(W4, "Size is raised over a byte that is not there")
		}
	}
	p.copied = false
	w.wake(p, closed)
}

// grow raises Size to n. What comes into the block is zero, or what a write at
// the same time, or one that failed, has put there.
func (w *world) grow(n uint8) {
	for i := w.size.len; i < n; i++ {
		if w.wrote[w.now][i] = 0; w.stained[i] || w.flying(i) {
			w.wrote[w.now][i] = anything
		}
	}
	w.size.len, w.size.begun, w.length[w.now] = n, true, n
}

// contended reports whether more than one call writes the byte at off.
func (w *world) contended(off uint8) bool {
	n := 0
	for _, calls := range w.Programs {
		for _, c := range calls {
			if c == Write0+Call(off) {
				n++
			}
		}
	}
	return n > 1
}

// flying reports whether a write has put a byte at off that is not, or not
// known to it to be, part of the block.
func (w *world) flying(off uint8) bool {
	for i := range w.procs {
		if p := &w.procs[i]; p.copied && w.Programs[i][p.call].offset() == off {
			return true
		}
	}
	return false
}

// stain remembers the byte that a write which comes to nothing leaves.
func (w *world) stain(p *proc) {
	if off := w.what(p).offset(); p.copied && off >= w.size.len {
		w.stained[off] = true
	}
	p.copied = false
}

// truncate has p, which holds the lock and has loaded s, go on.
func (w *world) truncate(p *proc) {
	n, c := w.what(p).offset(), w.what(p)
	up := n >= p.s.len && !p.s.finished
	switch write := c == Write0 || c == Write1 || c == Finish; { // is there only to clear
	case (write || n >= p.s.len) && p.s.cut:
		p.i, p.pc = p.s.len, tClear
	case write || up && n == p.s.len:
		p.pc = tUnlock
	case up:
		p.pc = tRaise
	case w.lacks(LowerFirst):
		p.i, p.pc = n, tClear
	case w.lacks(DirtyFirst) || p.s.cut && !w.lacks(DirtyStays):
		p.pc = pick(w.lacks(GenerationFirst), tMark, tGen)
	default:
		p.pc = tDirty
	}
	if w.lacks(GenerationFirst) && p.pc == tDirty {
		w.dirty = p.s.len
		p.pc = tMark
	}
}

// lower is the step at which a Truncate that begins a new generation takes
// effect.
func (w *world) lower(p *proc) {
	if !w.same(w.size, p.s) {
		w.say("fails")
		p.pc = tLoad
		return
	}
	n, old := w.what(p).offset(), w.size
	w.size = word{len: n, cut: (old.cut || n < old.len) && !w.lacks(LowerFirst), low: w.gen % w.Low}
	if w.lacks(GenerationFirst) {
		w.size.low = (old.low + 1) % w.Low
	}
	if w.now++; w.now == maxGens {
		panic("waiting: maxGens is too small")
	}
	copy(w.wrote[w.now][:n], w.wrote[w.now-1][:])
	for i := old.len; i < n; i++ { // a finished block is opened again, and longer
		if w.wrote[w.now][i] = 0; w.stained[i] || w.flying(i) {
			w.wrote[w.now][i] = anything
		}
	}
	w.length[w.now] = n
	for i := range w.procs {
		if q := &w.procs[i]; !q.adopted && q.fits != 0 {
			q.fits |= 1 << w.now
		}
	}
	p.i, p.marked = n, true
	switch {
	case w.lacks(GenerationFirst) || w.lacks(DirtyFirst) && !old.cut:
		p.pc = tDirtyLate
	default:
		w.wake(p, pick(w.size.cut, tClear, tUnlock))
	}
}

// wakeSleepers is FUTEX_WAKE of all.
func (w *world) wakeSleepers() {
	one := -1
	for i := range w.procs {
		if w.procs[i].pc == fAsleep && w.lacks(WakesAll) && (one < 0 || w.maybe()) {
			one = i
		}
	}
	for i := range w.procs {
		if p := &w.procs[i]; p.pc == fAsleep && (one < 0 || one == i) {
			w.rise(i)
		}
	}
}

// rise has a sleeper look again.
func (w *world) rise(i int) {
	p := &w.procs[i]
	p.phase, p.fresh = 0, false
	p.pc = pick(w.Programs[i][p.call] == Follow && !p.adopted, fGen, fSize)
}

// follow has the steps of those who wait.
func (w *world) follow(p *proc) {
	switch p.pc {

	case fGen:
		p.gen = w.gen
		p.pc = fSize
	case fSize:
		p.s = w.size
		switch {
		case w.what(p) == Follow:
			p.pc = fGenAgain
		case p.s.len >= 1:
			w.next(p)
		default:
			w.nothing(p)
		}
	case fGenAgain:
		switch {
		case p.adopted && !w.unchanged(p, p.s, w.gen):
			w.truncated(p)
		case !p.adopted && w.gen != p.gen:
			p.pc = fGen
		default:
			if !p.adopted {
				p.gen = w.current(p.s, w.gen)
			}
			w.read(p)
		}
	case fCopy:
		p.buf[p.i] = w.data[p.i]
		if p.i++; p.i == p.s.len {
			p.pc = fSizeAfter
			if w.lacks(LooksAfter) {
				w.deliver(p)
			}
		}
	case fSizeAfter:
		p.s = w.size
		p.pc = fGenAfter
	case fGenAfter:
		switch {
		case w.unchanged(p, p.s, w.gen):
			w.deliver(p)
		case p.adopted:
			w.truncated(p)
		default:
			p.buf, p.i = [cells]uint8{}, 0
			p.pc = fGen
		}

	case fEvent:
		p.fresh = true
		p.pc = pick(w.lacks(ArmThenLook), w.again(p), fArm)
	case fArm:
		w.armed = true
		p.pc = pick(w.lacks(ArmThenLook), fSleep, w.again(p))
	case fAsk:
		switch none := !w.writers(); {
		case !none:
			w.say("there is one")
			w.sleep(p)
		case w.lacks(LooksAgain):
			w.abandoned(p)
		default:
			w.say("there is none")
			p.phase = 2
			p.pc = fSize
		}
	case fEventLate:
		p.fresh = true
		p.pc = fSleep
	case fSleep: // the system compares and sleeps in one step
		if p.pc = fAsleep; !p.fresh {
			w.say("event has changed")
			w.rise(w.self)
		}
	case fAsleep:
		w.rise(w.self)

	default:
		panic("waiting: no step at " + places[p.pc])
	}
}

// again is where p looks again.
func (w *world) again(p *proc) pc {
	return pick(w.what(p) == Follow && !p.adopted, fGen, fSize)
}

// read has p, which has loaded s of the generation gen, go on.
func (w *world) read(p *proc) {
	switch {
	case !p.adopted && !p.s.begun && !p.s.finished:
		w.nothing(p)
	case p.off < p.s.len:
		p.i, p.pc = p.off, fCopy
	case p.s.finished:
		w.eof(p)
	default:
		w.nothing(p)
	}
}

// nothing is what p does where it has found nothing.
func (w *world) nothing(p *proc) {
	switch {
	case p.phase == 0:
		p.phase, p.pc = 1, pick(w.lacks(EventThenLook), fArm, fEvent)
	case p.phase == 1 && p.adopted:
		p.pc = fAsk
	case p.phase == 2:
		w.abandoned(p)
	default:
		w.sleep(p)
	}
}

func (w *world) sleep(p *proc) {
	switch {
	case w.lacks(ArmThenLook):
		p.pc = fArm
	case w.lacks(EventThenLook):
		p.pc = fEventLate
	default:
		p.pc = fSleep
	}
}

// deliver is the success of one Read.
func (w *world) deliver(p *proc) {
	for g := range w.now + 1 {
		for i := p.off; i < p.i; i++ {
			if want := w.wrote[g][i]; i >= w.length[g] || want != anything && want != p.buf[i] {
				p.fits &^= 1 << g
			}
		}
	}
	if w.record {
		w.say("delivers %d to %d: %d", p.off, p.i, p.buf[p.off:p.i])
	}
	if p.fits == 0 {
		w.violate(W5, "the bytes delivered are of no one generation")
	}
	*p = proc{call: p.call, writer: p.writer, pc: fSize, adopted: true, gen: p.gen, off: p.i, fits: p.fits}
}

func (w *world) eof(p *proc) {
	w.say("io.EOF")
	ok := false
	for g := range w.now + 1 {
		ok = ok || p.fits&(1<<g) != 0 && w.ended[g] == 1+p.off
	}
	if !ok {
		w.violate(W3, "io.EOF that was not declared")
	}
	w.next(p)
}

func (w *world) truncated(p *proc) {
	w.say("ErrTruncated")
	if p.fits == 1<<w.now {
		w.violate(W6, "ErrTruncated, and the generation is the same")
	}
	w.next(p)
}

func (w *world) abandoned(p *proc) {
	w.say("ErrAbandoned")
	if !p.alone {
		w.violate(W7, "ErrAbandoned, and at no time of the Read there was neither a writer nor a byte to read")
	}
	w.next(p)
}
