package holders

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/posixshm"
	"github.com/shmkit/shm/internal/standin"
)

// The model shares no code with the library. What ties them together is this
// test: the library makes its calls in a given situation, on a System that notes
// the steps; one process of the model makes the same calls in the same situation;
// and the two have to take the same steps with the same outcomes. A step that is
// missing, new, or in another place on one side alone fails the test.

// steps has what a place of the model is in the contract of internal/object. Places
// that are missing are part of the step before, or cannot be seen from outside the
// process: a word of the header that is read or counted in.
var steps = map[pc]string{
	openName: "Open", openAsk: "Others", openWhole: "TryAlone", openShare: "Join", openCheck: "Linked",
	createTmp: "Create", createLink: "Publish",
	reapName: "Open", reapAsk: "Others", reapWhole: "TryAlone",
	removeCheck: "Linked", removeUnlink: "Unlink", removeMark: "stale",
	closeAtOnce: "TryAlone", closeDrop: "Leave", closeAsk: "Others", closeWhole: "TryAlone",
	unlinkName: "Open", unlinkLock: "TryLock", unlinkCheck: "Linked", unlinkUnlink: "Unlink", unlinkRelease: "Leave",
	release: "Leave",

	// On darwin the steps within Create and Publish are those of the kernel and of
	// the lock page.
	bornName: "shm_open", bornSize: "ftruncate", bornM: "mutex", bornCheck: "shm_open",
	bornHeader: "header", bornReady: "ready", bornUnlockM: "unlock",
	lookName: "shm_open", lookSize: "ftruncate", lookM: "mutex", abortCheck: "shm_open", abortUnlink: "shm_unlink",
}

// outcome is how a step is noted of which the model says this.
func outcome(said string) string {
	for _, o := range [][2]string{
		{"EAGAIN", " fails"}, {"ENOENT", " fails"}, {"EEXIST", " fails"}, {"another block or none", " fails"},
		{"nobody", " nobody"}, {"only processes that have ended", " ending"},
		{"somebody has locked everything", " deciding"}, {"somebody", " somebody"},
	} {
		if strings.HasPrefix(said, o[0]) {
			return o[1]
		}
	}
	return ""
}

// A stage is what surrounds the process that is traced. There is one of the model
// and a real one.
type stage interface {
	peer(persistent bool) // another process creates the block
	dies()                // that process is killed, and another one that was attached
	hold(locks uint16)    // yet another process has these locks
	letGo()               // and no longer has them
	mark()                // the block is marked stale
	remove()              // an outsider removes the name
	unborn(sizeToo bool)  // on darwin: a process is killed that had created the name, or its size too
}

// A play is a situation, and calls in it. What happens in the meantime is called
// before the first, second, ... step of a kind.
type play struct {
	before    func(s stage)
	calls     []Call
	meanwhile cues
	system    string // where it can be played; anywhere if empty
	cued      int
}

type cues map[string]func(s stage)

func (p *play) cue(s stage, count map[string]int, step string) {
	count[step]++
	if f := p.meanwhile[fmt.Sprint(step, " ", count[step])]; f != nil {
		p.cued++
		f(s)
	}
}

// A rehearsal is a play in the model.
type rehearsal struct {
	world
	count [maxInodes + 1]int // of attachments, in the header
}

func (r *rehearsal) peer(persistent bool) {
	r.Programs[1] = []Call{pick(persistent, CreatePersistent, Create), Close}
	r.procs[1] = proc{}
	r.self = 1
	for r.begin(&r.procs[1]); r.procs[1].call == 0; {
		r.step(&r.procs[1])
	}
	r.self = 0
	r.count[r.name] = 1
}

func (r *rehearsal) dies() {
	r.kills++
	r.count[r.procs[1].fd.ino]++
	r.kill(&r.procs[1])
	r.letGo()
}

func (r *rehearsal) hold(locks uint16) { r.loosen(ofd{r.name, locks}) }
func (r *rehearsal) letGo()            { r.loose = [maxLoose]ofd{} }
func (r *rehearsal) mark()             { r.inodes[r.name-1] |= dead }
func (r *rehearsal) remove()           { r.rms++; r.rm() }

func (r *rehearsal) unborn(sizeToo bool) {
	var d ofd
	r.create(&d, pick(sizeToo, sized, 0))
	r.name = d.ino
}

// hint counts as the library does, which selects what Close tries first.
func (r *rehearsal) hint(p *proc, asked answer) {
	n := &r.count[p.fd.ino]
	switch {
	case p.pc == createLink && r.name == 0, p.pc == bornReady:
		r.count[p.tmp.ino] = 1
	case p.fd.held&able == 0:
	case p.pc == openReturn:
		*n = pick(asked == nobody, 1, *n+1)
	case p.pc == closeStart:
		*n--
		r.choice = *n == 0
	}
}

// rehearse returns the steps of the first process.
func (p *play) rehearse(darwin bool) (trace []string) {
	sc := &Scenario{Programs: [][]Call{p.calls, nil}, Darwin: darwin}
	r := &rehearsal{world: world{Scenario: sc}}
	r.begin(&r.procs[0])
	p.before(r)
	count := map[string]int{}
	var asked answer
	for self := &r.procs[0]; self.pc > killed; r.tidy() {
		at := *self
		step := steps[at.pc]
		if at.pc == release && at.then == reapName { // of darwin's Create
			step = "unlock"
		}
		if step != "" {
			p.cue(r, count, step)
		}
		if at.pc == openAsk {
			asked = r.ask(&self.fd)
		}
		r.choice = true
		r.hint(self, asked)
		r.log, r.record = nil, true
		r.step(self)
		r.record = false
		switch said := string(r.log); {
		case said == "not a block yet": // Open looks for itself
			trace[len(trace)-1] = "Open fails"
		case step == "" || at.pc == reapAsk && r.log == nil: // it did not ask
		case step == "Create":
			trace = append(trace, "Create", "Join", "header")
		case step == "header":
			trace = append(trace, "Join", "header")
		case slices.Contains(kernelSteps, step):
			trace = append(trace, step)
		default:
			reader := step == "Join" && p.calls[at.call].byte() == byteR
			trace = append(trace, step+pick(reader, " reader", "")+outcome(said))
		}
		// What Create made and did not publish nobody sees, so that to release it is no
		// step of the model.
		if at.creating && at.tmp.ino != 0 && self.tmp.ino == 0 && self.fd.ino != at.tmp.ino {
			trace = append(trace, "Leave")
		}
		if call := p.calls[at.call]; (self.pc == finished || self.call != at.call) && call < Close {
			trace = append(trace, returned(call, self.fd.held&user != 0))
		}
	}
	return trace
}

func returned(c Call, attached bool) string {
	return fmt.Sprintf("%v: attached %v", c, attached)
}

// A tracer is a System that notes what is done to the object of one name.
type tracer struct {
	object.System
	t     *testing.T
	play  *play
	name  string
	on    bool
	count map[string]int
	trace []string

	readOnly bool            // the process may not write to the block
	made     *traced         // by the peer
	others   []object.Object // that hold locks
	ended    bool            // their processes have
}

func (tr *tracer) cue(step string) {
	if tr.on {
		tr.on = false // what others do is not noted
		tr.play.cue(tr, tr.count, step)
		tr.on = true
	}
}

func (tr *tracer) note(step string, ok bool) {
	if tr.on {
		tr.trace = append(tr.trace, step+pick(ok, "", " fails"))
	}
}

// A traced object is one of the name.
type traced struct {
	object.Object
	tr    *tracer
	locks uint16 // that it has
}

func (tr *tracer) wrap(o object.Object) *traced {
	return &traced{Object: o, tr: tr}
}

func (tr *tracer) Create(name string, size int64, opts object.Options) (object.Object, error) {
	var o object.Object
	err := tr.steps("Create", func() (err error) {
		o, err = tr.System.Create(name, size, opts)
		return err
	})
	if err != nil {
		return nil, err
	}
	d := tr.wrap(o)
	if tr.kernel() != nil {
		d.locks = byteU
	}
	if !tr.on {
		tr.made = d
	}
	return d, nil
}

func (tr *tracer) Open(name string, write bool) (object.Object, error) {
	if write && tr.readOnly {
		return nil, fs.ErrPermission
	}
	tr.cue("Open")
	o, err := tr.System.Open(name, write)
	tr.note("Open", err == nil)
	if err != nil {
		return nil, err
	}
	return tr.wrap(o), nil
}

// List has Reap look at the one name, whether it is there or not.
func (tr *tracer) List(f func(name string) bool) error {
	f(tr.name)
	return nil
}

// kernel returns the stand-in for darwin's, nil on Linux.
func (tr *tracer) kernel() *standin.Kernel {
	if s, ok := tr.System.(*posixshm.System); ok {
		return s.Kernel().(*standin.Kernel)
	}
	return nil
}

// kernelSteps are what is noted of the steps of darwin's kernel, and of the lock page.
var kernelSteps = []string{"shm_open", "ftruncate", "mutex", "ready", "unlock", "shm_unlink"}

// steps notes a step, f, of the System, or on darwin the steps that it consists of.
func (tr *tracer) steps(name string, f func() error) error {
	k := tr.kernel()
	if k == nil || !tr.on {
		tr.cue(name)
		err := f()
		tr.note(name, err == nil)
		return err
	}
	k.BeforeStep = func(what string) {
		if slices.Contains(kernelSteps, what) {
			tr.cue(what)
			tr.note(what, true)
		}
	}
	defer func() { k.BeforeStep = nil }()
	return f()
}

func (d *traced) step(name string, f func() bool) {
	d.tr.cue(name)
	d.tr.note(name, f())
}

func (d *traced) Publish() error {
	if d.tr.kernel() != nil {
		d.locks &^= byteU
	}
	return d.tr.steps("Publish", d.Object.Publish)
}

func (d *traced) TryLock() (err error) {
	d.step("TryLock", func() bool { err = d.Object.TryLock(); return err == nil })
	d.locks |= pick(err == nil, byteU, 0)
	return err
}

func (d *traced) Unlock() {
	if d.locks&byteU != 0 {
		d.step("Unlock", func() bool { d.Object.Unlock(); return true })
		d.locks &^= byteU
	}
}

func (d *traced) Join(writer bool, used func(uint64) bool) (err error) {
	d.tr.cue("Join")
	err = d.Object.Join(writer, used)
	d.tr.note(pick(writer, "Join", "Join reader"), err == nil)
	d.locks |= pick(err == nil, own, 0)
	return err
}

func (d *traced) TryAlone() (err error) {
	d.step("TryAlone", func() bool { err = d.Object.TryAlone(); return err == nil })
	d.locks |= pick(err == nil, whole, 0)
	return err
}

func (d *traced) Others() (p object.Presence, err error) {
	d.tr.cue("Others")
	p, err = d.Object.Others()
	if p == object.Somebody && d.tr.ended {
		p = object.Ending
	}
	d.tr.note("Others "+[]string{"nobody", "somebody", "ending", "deciding"}[p], true)
	return p, err
}

func (d *traced) Linked() (is bool, err error) {
	d.step("Linked", func() bool { is, err = d.Object.Linked(); return is })
	return is, err
}

func (d *traced) Unlink() (err error) {
	d.step("Unlink", func() bool { err = d.Object.Unlink(); return err == nil })
	return err
}

// WriteAt is for the header before the block is published, and for its state.
func (d *traced) WriteAt(p []byte, off int64) (n int, err error) {
	switch off {
	case 0:
		d.step("header", func() bool { n, err = d.Object.WriteAt(p, off); return err == nil })
	case 64:
		d.step("stale", func() bool { n, err = d.Object.WriteAt(p, off); return err == nil })
	default:
		d.tr.t.Errorf("WriteAt offset %d", off)
	}
	return n, err
}

// Leave is no step where there is nothing to release.
func (d *traced) Leave() {
	if d.locks == 0 {
		d.Object.Leave()
		return
	}
	d.step("Leave", func() bool { d.Object.Leave(); return true })
	d.locks = 0
}

func (d *traced) Close() {
	if d.locks != 0 {
		d.tr.note("Close with locks", true)
	}
	d.Object.Close()
}

func (tr *tracer) peer(persistent bool) {
	seg := must(shm.Create(tr.name, 100, options(persistent)...))
	tr.t.Cleanup(func() { seg.Close() })
}

func (tr *tracer) dies() {
	count := make([]byte, 4)
	must(tr.made.Object.ReadAt(count, 128))
	must(tr.made.Object.WriteAt(binary.NativeEndian.AppendUint32(nil, binary.NativeEndian.Uint32(count)+1), 128))
	tr.made.Object.Leave()
}

func (tr *tracer) hold(locks uint16) {
	o := must(tr.System.Open(tr.name, true))
	tr.others = append(tr.others, o)
	must(0, o.Lockable())
	if locks&byteU != 0 {
		must(0, o.TryLock())
	}
	if locks&byteW != 0 {
		must(0, o.Join(true, nil))
	}
	if locks&whole != 0 {
		must(0, o.TryAlone())
	}
	tr.ended = locks&gone != 0
}

func (tr *tracer) letGo() {
	for _, o := range tr.others {
		o.Leave()
		o.Close()
	}
	tr.others, tr.ended = nil, false
}

func (tr *tracer) mark() {
	tr.with(func(o object.Object) { must(o.WriteAt(binary.NativeEndian.AppendUint32(nil, 2), 64)) })
}

func (tr *tracer) remove() {
	tr.with(func(o object.Object) { must(0, o.Unlink()) })
}

func (tr *tracer) with(f func(o object.Object)) {
	o := must(tr.System.Open(tr.name, true))
	defer o.Close()
	f(o)
}

func (tr *tracer) unborn(sizeToo bool) {
	const birthMark = 0o1000 // see package posixshm
	fd := must(tr.kernel().ShmOpen("/"+tr.name, os.O_RDWR|os.O_CREATE|os.O_EXCL, birthMark|0o600))
	defer tr.kernel().Close(fd)
	if sizeToo {
		must(0, tr.kernel().Truncate(fd, 1<<16))
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func options(persistent bool) (opts []shm.Option) {
	if persistent {
		opts = append(opts, shm.Persistent())
	}
	return opts
}

// perform is the play with the library, on a System.
func (p *play) perform(t *testing.T, system object.System) []string {
	previous := object.Current
	tr := &tracer{System: system, t: t, play: p, name: fmt.Sprintf("trace-%d", os.Getpid()), count: map[string]int{}}
	object.Current = tr
	t.Cleanup(func() {
		shm.Unlink(tr.name)
		object.Current = previous
	})
	p.before(tr)
	var seg *shm.Segment
	for _, c := range p.calls {
		tr.on, tr.readOnly = true, c == OpenReader
		var err error
		switch c {
		case Open:
			seg, err = shm.Open(tr.name)
		case OpenReadOnly, OpenReader:
			seg, err = shm.Open(tr.name, shm.ReadOnly())
		case Create, CreatePersistent:
			seg, err = shm.Create(tr.name, 100, options(c == CreatePersistent)...)
		case OpenOrCreate, OpenOrCreatePersistent:
			seg, _, err = shm.OpenOrCreate(tr.name, 100, options(c == OpenOrCreatePersistent)...)
		case Close:
			if seg != nil {
				err = seg.Close()
			}
		case Reap:
			_, err = shm.Reap()
		case Unlink:
			err = shm.Unlink(tr.name)
		}
		tr.on = false
		if err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		if c < Close {
			tr.trace = append(tr.trace, returned(c, err == nil))
		}
	}
	tr.letGo()
	return tr.trace
}

// plays has every call in every situation, and what can come in between.
func plays() map[string]play {
	list := map[string]play{}
	for name, before := range map[string]func(s stage){
		"no block":                            func(stage) {},
		"block":                               func(s stage) { s.peer(false) },
		"stale block":                         func(s stage) { s.peer(false); s.dies() },
		"persistent block":                    func(s stage) { s.peer(true) },
		"persistent block without attachment": func(s stage) { s.peer(true); s.dies() },
	} {
		for _, c := range []Call{Open, OpenReadOnly, OpenReader, Create, CreatePersistent, OpenOrCreate, OpenOrCreatePersistent, Reap, Unlink} {
			list[fmt.Sprint(c, ", ", name)] = play{before: before, calls: []Call{c, Close}}
		}
	}
	nothing := func(stage) {}
	block := func(s stage) { s.peer(false) }
	stale := func(s stage) { s.peer(false); s.dies() }
	locked := func(s stage) { s.peer(false); s.hold(byteU) }
	staleLocked := func(s stage) { stale(s); s.hold(byteU) }
	staleDeciding := func(s stage) { stale(s); s.hold(whole) }
	staleEnding := func(s stage) { stale(s); s.hold(byteW | gone) }
	marked := func(s stage) { block(s); s.mark() }
	joins := func(s stage) { s.hold(byteW) }
	letGo, remove := stage.letGo, stage.remove
	open, create, reader := []Call{Open, Close}, []Call{Create, Close}, []Call{OpenReader, Close}
	maps.Copy(list, map[string]play{
		"Open, the name goes":                     {before: block, calls: open, meanwhile: cues{"Linked 1": remove}},
		"Open, the name of a stale block goes":    {before: stale, calls: open, meanwhile: cues{"Linked 1": remove}},
		"Open, marked stale":                      {before: marked, calls: open, meanwhile: cues{"Open 2": remove}},
		"Open, U of a stale block is held":        {before: staleLocked, calls: open, meanwhile: cues{"Open 2": letGo}},
		"Open, another attaches to a stale block": {before: stale, calls: open, meanwhile: cues{"TryAlone 1": joins}},
		"Open, another decides":                   {before: staleDeciding, calls: open, meanwhile: cues{"Others 2": letGo}, system: "linux"},
		"Open, another decides after all": {before: block, calls: open,
			meanwhile: cues{"Join 1": func(s stage) { s.dies(); s.hold(whole) }, "Open 2": letGo}, system: "linux"},
		"Open, all processes have ended": {before: staleEnding, calls: open, meanwhile: cues{"Others 2": letGo}, system: "linux"},

		"OpenReader, another decides": {before: staleDeciding, calls: reader, meanwhile: cues{"Others 2": letGo}, system: "linux"},
		"OpenReader, the name goes":   {before: block, calls: reader, meanwhile: cues{"Linked 1": remove}},
		"OpenReader, marked stale":    {before: marked, calls: reader, meanwhile: cues{"Open 2": remove}},

		"Create, a block comes":              {before: nothing, calls: create, meanwhile: cues{"Publish 1": block, "shm_open 1": block}},
		"Create, a stale block comes":        {before: nothing, calls: create, meanwhile: cues{"Publish 1": stale, "shm_open 1": stale}},
		"Create, U of a stale block is held": {before: staleLocked, calls: create, meanwhile: cues{"TryAlone 3": letGo}},
		"Create, another decides":            {before: staleDeciding, calls: create, meanwhile: cues{"Others 3": letGo}, system: "linux"},
		"Create, all processes have ended":   {before: staleEnding, calls: create, meanwhile: cues{"Others 3": letGo}, system: "linux"},
		"Create, abandoned without size":     {before: func(s stage) { s.unborn(false) }, calls: create, system: "darwin"},
		"Create, abandoned with size":        {before: func(s stage) { s.unborn(true) }, calls: create, system: "darwin"},

		"OpenOrCreate, a block comes": {before: nothing, calls: []Call{OpenOrCreate, Close},
			meanwhile: cues{"Publish 1": block, "shm_open 1": block}},

		"Close, U is held": {before: nothing, calls: create,
			meanwhile: cues{"TryAlone 1": func(s stage) { s.hold(byteU) }, "TryAlone 3": letGo}},
		"Close, another attaches":          {before: nothing, calls: create, meanwhile: cues{"TryAlone 1": joins}},
		"Close, another attaches and ends": {before: nothing, calls: create, meanwhile: cues{"TryAlone 1": joins, "Others 1": letGo}},
		"Close, another decides": {before: nothing, calls: create,
			meanwhile: cues{"TryAlone 1": joins, "Others 1": func(s stage) { s.letGo(); s.hold(whole) }, "Others 2": letGo}, system: "linux"},
		"Close, the others have been killed": {before: block, calls: open, meanwhile: cues{"Others 2": stage.dies}},
		"Close, the name goes":               {before: nothing, calls: create, meanwhile: cues{"TryAlone 1": remove}},

		"Reap, U is held":                {before: staleLocked, calls: []Call{Reap}},
		"Reap, another decides":          {before: staleDeciding, calls: []Call{Reap}, system: "linux"},
		"Reap, all processes have ended": {before: staleEnding, calls: []Call{Reap}, system: "linux"},
		"Reap, another attaches":         {before: stale, calls: []Call{Reap}, meanwhile: cues{"TryAlone 1": joins}},
		"Reap, the name goes":            {before: stale, calls: []Call{Reap}, meanwhile: cues{"Linked 1": remove}},

		"Unlink, U is held":       {before: locked, calls: []Call{Unlink}, meanwhile: cues{"Open 2": letGo}},
		"Unlink, another decides": {before: staleDeciding, calls: []Call{Unlink}, meanwhile: cues{"Open 2": letGo}},
		"Unlink, the name goes":   {before: block, calls: []Call{Unlink}, meanwhile: cues{"Linked 1": remove}},
		"Unlink, the name goes to another block": {before: block, calls: []Call{Unlink},
			meanwhile: cues{"Linked 1": func(s stage) { s.remove(); s.peer(false) }}},
	})
	return list
}

// TestTrace plays everything on both sides.
func TestTrace(t *testing.T) {
	must(shm.Create("", 1)).Close() // the first looks at all names that there are
	dir := must(os.MkdirTemp("/dev/shm", ".trace-"))
	t.Cleanup(func() { os.RemoveAll(dir) })
	darwin := posixshm.New(&standin.Kernel{Dir: dir})
	darwin.Grace = -1
	for name, system := range map[string]object.System{"linux": object.Current, "darwin": darwin} {
		if name == "linux" && standin.Used() != nil {
			continue
		}
		for what, play := range plays() {
			if play.system != "" && play.system != name || name == "darwin" && slices.Contains(play.calls, OpenReader) {
				continue
			}
			t.Run(name+"/"+what, func(t *testing.T) {
				real, model := play.perform(t, system), play.rehearse(name == "darwin")
				t.Log(strings.Join(real, ", "))
				if len(play.meanwhile) > 0 && play.cued < 2 {
					t.Error("what should come in between has not")
				}
				if !slices.Equal(real, model) {
					t.Errorf("steps of the library:\n%s\nsteps of the model:\n%s", strings.Join(real, "\n"), strings.Join(model, "\n"))
				}
			})
		}
	}
}
