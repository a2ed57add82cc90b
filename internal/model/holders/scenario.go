package holders

import (
	"fmt"

	"github.com/shmkit/shm/internal/model/explore"
)

// A Call is what a process asks of the library.
type Call uint8

// The calls: the functions of the library, with the options that matter here.
const (
	Open         Call = iota
	OpenReadOnly      // option ReadOnly, where the process may write: in the readers' range
	OpenReader        // where it may only read
	Create
	CreatePersistent
	OpenOrCreate
	OpenOrCreatePersistent
	Close
	Keep
	Aside // from the writers' range to the readers', as a Segment that only follows
	Back
	Refs
	Reap
	Unlink
	OpenHanded // by a descriptor: no name need lead to the block
)

func (c Call) String() string {
	return [...]string{"Open", "OpenReadOnly", "OpenReader", "Create", "CreatePersistent", "OpenOrCreate",
		"OpenOrCreatePersistent", "Close", "Keep", "Aside", "Back", "Refs", "Reap", "Unlink", "OpenHanded"}[c]
}

// opens and creates say what c does: OpenOrCreate both. attached is what only
// a process that is attached can do.
func (c Call) opens() bool {
	return c <= OpenReader || c == OpenOrCreate || c == OpenOrCreatePersistent || c == OpenHanded
}
func (c Call) creates() bool  { return Create <= c && c <= OpenOrCreatePersistent }
func (c Call) attached() bool { return Close <= c && c <= Refs }

// start is the first place of c.
func (c Call) start() pc {
	switch {
	case c.opens():
		return openName
	case c.creates(): // Create looks at what has the name before it makes anything
		return reapName
	}
	return map[Call]pc{Close: closeStart, Keep: keepSet, Aside: asideLock, Back: backLock,
		Refs: refsStart, Reap: reapName, Unlink: unlinkName}[c]
}

func (c Call) flags() uint16 {
	return pick(c == CreatePersistent || c == OpenOrCreatePersistent, kept, 0)
}

// A Guard is a part of the protocol that a mutant can go without.
type Guard uint32

// The guards, each of which a mutant shows to be needed.
const (
	OpenAsks         Guard = 1 << iota // GETLK before the own byte
	OpenYields                         // everything locked means: again
	OpenChecksName                     // identity check once the own byte is locked
	OpenChecksState                    // state check once the own byte is locked
	OpenWaits                          // for the locks of processes that have ended
	GhostsLive                         // and does not take such a block for dead
	AbortDetaches                      // an Open that gives up after its own byte has the duty of Close
	CreateLocksFirst                   // own byte before linkat
	ReapYields
	ReapWaits
	LockProves  // the lock on everything, not the answer of GETLK, says that nobody is there
	DropFirst   // Close drops its byte before it asks
	AskAgain    // Close does not give up when it finds nobody and cannot lock everything
	WholeHasU   // the lock on everything includes the unlinkers' byte
	KeepInside  // the keep word is read with everything locked
	LockThenLet // Aside and Back lock the new byte before they unlock the old one
	RemoveMarks
	MarkLast // and that after the unlink
	RemoveChecksName
	UnlinkLocks
	UnlinkChecksName
	ExplicitUnlock // F_UNLCK before close(2)

	// Of darwin.
	OpenChecksReady // what is not a block yet does not exist
	CreateTakesM    // the mutex, from before the block is one until it is
	CreateChecksName
	CreateReadyLast
	AbortElects // ftruncate, before an object without size is taken for abandoned
	AbortTakesM
	AbortChecksReady // again, with the mutex
	AbortChecksName
	DeathDropsLocks // the locks of processes that have ended count for nothing

	allGuards = 1<<iota - 1
)

// A Scenario is a question to the model: programs, at most maxProcs, on one name,
// and what the surroundings may do to them.
type Scenario struct {
	Programs [][]Call
	Kills    uint8 // processes killed, at most
	Ghosts   uint8 // descriptions kept by a child between fork and exec, at most
	Removals uint8 // times that an outsider removes the name, at most

	Darwin    bool // the lock page, and blocks that have their names before they are ready
	Daemon    bool // such a child may stay for good, so that an Open gives up waiting
	Refuse    bool // an Open may turn down the block that it has locked
	Impatient bool // a Close may give up waiting for the lock on everything

	Without  Guard // 0: the protocol as it stands
	Tolerate []property
	Limit    int
}

type property = explore.Property

func (sc *Scenario) lacks(g Guard) bool { return sc.Without&g != 0 }

// Start is the state before anybody's first step.
func (sc *Scenario) Start() state {
	w := world{Scenario: sc, state: state{kills: sc.Kills, ghosts: sc.Ghosts, rms: sc.Removals}}
	for i := range sc.Programs {
		w.self = i
		w.begin(&w.procs[i])
	}
	return w.state
}

func (w *world) program() []Call { return w.Programs[w.self] }

// A move is one thing that can happen next.
type move struct {
	kind  moveKind
	who   int  // of procs or loose
	other bool // the other way, where there is a choice
}

type moveKind uint8

const (
	stepped moveKind = iota
	vanished
	slain
	removedName
)

// Steps is explore.Model's.
func (sc *Scenario) Steps(s state, record bool, f func(explore.Step[state]) bool) {
	try := func(m move) bool {
		for {
			w := sc.apply(s, m, record)
			step := explore.Step[state]{To: w.state, Broken: w.broken, Why: w.why, Certain: sc.certain(s, m)}
			if record {
				step.Line = sc.line(s, m, w.log)
			}
			if !f(step) {
				return false
			}
			if !w.asked || m.other {
				return true
			}
			m.other = true
		}
	}
	for i := range s.procs {
		if s.procs[i].pc <= killed {
			continue
		}
		if !try(move{kind: stepped, who: i}) || s.kills > 0 && !try(move{kind: slain, who: i}) {
			return
		}
	}
	for i := range s.loose {
		if s.loose[i].ino != 0 && !sc.lacks(DeathDropsLocks) && !try(move{kind: vanished, who: i}) {
			return
		}
	}
	if s.rms > 0 && s.name != 0 {
		try(move{kind: removedName})
	}
}

// apply makes a move and checks what it leads to.
func (sc *Scenario) apply(s state, m move, record bool) world {
	w := world{Scenario: sc, state: s, self: m.who, choice: m.other, record: record}
	switch m.kind {
	case stepped:
		w.step(&w.procs[m.who])
	case slain:
		w.kill(&w.procs[m.who])
	case vanished:
		w.vanish(&w.loose[m.who])
	case removedName:
		w.rm()
	}
	w.tidy()
	w.check()
	return w
}

// certain reports whether m is bound to happen if nothing else does. A kill is
// not, nor an outsider's act, nor the exec of a child, unless its parent was
// killed; and then a daemon has none, except that of a child that holds the lock
// on everything, which cannot be waited out: Open is ErrBusy.
func (sc *Scenario) certain(s state, m move) bool {
	if m.kind == vanished {
		held := s.loose[m.who].held
		return held&dying != 0 || held&gone != 0 && (!sc.Daemon || held&whole != 0)
	}
	return m.kind == stepped
}

func (sc *Scenario) line(s state, m move, log []byte) string {
	who, what := fmt.Sprintf("P%d", m.who+1), ""
	switch m.kind {
	case stepped:
		what = places[s.procs[m.who].pc]
	case slain:
		what = "killed before " + places[s.procs[m.who].pc]
	case vanished:
		who, what = "kernel", "drop locks"
	case removedName:
		who, what = "rm", "unlink(name)"
	}
	return fmt.Sprintf("%-6s %-42s %s", who, what, log)
}
