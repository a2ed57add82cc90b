package model

// A Call is what a process asks of the library.
type Call uint8

// The calls: the functions of the library, with the options that matter here.
const (
	Open Call = iota
	OpenReadOnly
	Create
	CreatePersistent
	OpenOrCreate
	OpenOrCreatePersistent
	Close
	Reap
	Unlink
)

func (c Call) String() string {
	return [...]string{"Open", "OpenReadOnly", "Create", "CreatePersistent", "OpenOrCreate",
		"OpenOrCreatePersistent", "Close", "Reap", "Unlink"}[c]
}

// opens and creates say what c does: OpenOrCreate both.
func (c Call) opens() bool {
	return c == Open || c == OpenReadOnly || c == OpenOrCreate || c == OpenOrCreatePersistent
}

func (c Call) creates() bool {
	return c == Create || c == CreatePersistent || c == OpenOrCreate || c == OpenOrCreatePersistent
}

// start is the first place of c, if that is not Create alone; flags are those of
// a block that it creates.
func (c Call) start() pc {
	return [...]pc{Open: openName, OpenReadOnly: readName,
		OpenOrCreate: openName, OpenOrCreatePersistent: openName, Reap: reapName, Unlink: unlinkName}[c]
}

func (c Call) flags() uint16 {
	if c == CreatePersistent || c == OpenOrCreatePersistent {
		return persistent
	}
	return 0
}

// A Guard is a part of the protocol that a mutant can go without.
type Guard uint32

// The guards, each of which a mutant shows to be needed.
const (
	OpenChecksName   Guard = 1 << iota // identity check once L is held
	OpenChecksState                    // state check once L is held
	OpenTakesM                         // M around the attachment
	ReadOnlyAsks                       // GETLK before L shared
	ReadOnlyYields                     // an exclusive holder found by GETLK means: again
	CreateLocksFirst                   // L shared before linkat
	ReapYields                         // an exclusive holder found by GETLK means: again
	ReapTakesM
	RemoveMarks      // state=stale before the unlink
	RemoveChecksName // identity check before the unlink
	CloseTakesM
	CloseKeepsL // L is held until the attempt at L exclusive
	LProvesLast // rather than the count
	UnlinkTakesM
	UnlinkChecksName
	ExplicitUnlock // F_UNLCK before close(2)

	// Of darwin.
	OpenChecksReady // what is not a block yet does not exist
	CreateTakesM    // from before the block is one until it is
	CreateChecksName
	CreateReadyLast
	AbortElects // ftruncate, before an object without size is taken for abandoned
	AbortTakesM
	AbortChecksReady // again, under M
	AbortChecksName
	DeathDropsLocks // the locks of processes that have ended count for nothing

	allGuards = 1<<iota - 1
)

// A Scenario is a question to the model: programs, at most maxProcs, on one
// name, that close what they open, and what the surroundings may do to them.
type Scenario struct {
	Programs [][]Call
	Kills    uint8 // processes killed, at most
	Ghosts   uint8 // descriptions kept by a child between fork and exec, at most
	Removals uint8 // times that an outsider removes the name, at most

	Darwin    bool // the lock page, and blocks that have their names before they are ready
	Refuse    bool // an Open may turn down the block that it has locked
	Impatient bool // a Close may give up waiting for M

	Without  Guard      // 0: the protocol as it stands
	Tolerate []Property // steps that violate these are counted and not gone on from
}

func (sc *Scenario) lacks(g Guard) bool { return sc.Without&g != 0 }

// start is the state before anybody's first step.
func (sc *Scenario) start() state {
	w := world{Scenario: sc, state: state{kills: sc.Kills, ghosts: sc.Ghosts, rms: sc.Removals}}
	for i := range sc.Programs {
		w.self = i
		w.begin(&w.procs[i])
	}
	return w.state
}

func (w *world) program() []Call { return w.Programs[w.self] }
