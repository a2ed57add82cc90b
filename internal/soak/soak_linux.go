package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/shmkit/shm"
)

// storm is a run of the command.
type storm struct {
	seed       uint64
	duration   time.Duration
	processes  int // at a time
	names      int
	operations int // at least
	kills      int // at least
	log        io.Writer
}

// figures are what a storm has done so far.
type figures struct {
	lives, operations, kills, exits, execs, epochs, attachments, unlinks int
}

func (f *figures) add(o figures) {
	f.lives += o.lives
	f.operations += o.operations
	f.kills += o.kills
	f.exits += o.exits
	f.execs += o.execs
	f.epochs += o.epochs
	f.attachments += o.attachments
	f.unlinks += o.unlinks
}

func (f figures) String() string {
	return fmt.Sprintf("%d processes (%d killed, %d ended; %d started programs), %d operations, %d attachments, %d unlinks, %d times all gone",
		f.lives, f.kills, f.exits, f.execs, f.operations, f.attachments, f.unlinks, f.epochs)
}

func main() {
	workerMain()
	s := storm{log: os.Stdout}
	flag.Uint64Var(&s.seed, "seed", uint64(time.Now().UnixNano()), "what the processes do follows from it")
	flag.DurationVar(&s.duration, "duration", time.Minute, "at least")
	flag.IntVar(&s.processes, "processes", 8, "at a time")
	flag.IntVar(&s.names, "names", 3, "they use")
	flag.IntVar(&s.operations, "operations", 100_000, "at least")
	flag.IntVar(&s.kills, "kills", 10_000, "at least")
	flag.Parse()
	start := time.Now()
	f, err := s.run()
	fmt.Printf("seed %d: %v in %v\n", s.seed, f, time.Since(start).Round(time.Millisecond))
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

// livesInEpoch is how many processes of a slot live one after the other before
// all wait for each other, and what is left is looked at.
const livesInEpoch = 25

// run returns what it has done, and the first violation.
func (s storm) run() (sum figures, err error) {
	journals, file, err := newJournals(s.processes)
	if err != nil {
		return sum, err
	}
	defer file.Close()
	names := make([]string, s.names)
	for i := range names {
		names[i] = fmt.Sprintf("soak-%d-%d", os.Getpid(), i)
	}
	defer func() {
		for _, name := range names {
			shm.Unlink(name)
		}
	}()
	report := time.Now()
	for start := time.Now(); time.Since(start) < s.duration || sum.operations < s.operations || sum.kills < s.kills; {
		f, err := s.epoch(sum.epochs, names, journals, file)
		if sum.add(f); err != nil {
			return sum, err
		}
		if time.Since(report) > 10*time.Second {
			report = time.Now()
			fmt.Fprintln(s.log, sum)
		}
	}
	return sum, nil
}

// epoch lets all slots live their lives, and then sees what they have done.
func (s storm) epoch(number int, names []string, journals []journal, file *os.File) (sum figures, err error) {
	var (
		all     sync.WaitGroup
		mu      sync.Mutex // guards sum, entries and errs
		entries []entry
		errs    []error
	)
	for slot, j := range journals {
		all.Go(func() {
			for n := range livesInEpoch {
				l := life{s.seed, slot, number*livesInEpoch + n, names, (slot+n)%2 == 0}
				f, list, err := l.run(j, file)
				mu.Lock()
				sum.add(f)
				entries = append(entries, list...)
				errs = append(errs, err)
				stop := err != nil
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	all.Wait()
	sum.epochs++
	errs = append(errs, compare(entries), nothingLeft(number, names))
	return sum, errors.Join(errs...)
}

// run starts the process that leads the life, waits until it is gone, and
// returns what it has done.
func (l life) run(j journal, file *os.File) (figures, []entry, error) {
	j.clear()
	who := fmt.Sprintf("seed %d, slot %d, life %d", l.Seed, l.Slot, l.Number)
	cmd, err := l.start(file)
	if err != nil {
		return figures{}, nil, err
	}
	err = cmd.Wait() // and not for the children that it has just started, which hold its locks
	f := figures{lives: 1, operations: int(j.operations())}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case status.Signaled() && status.Signal() == syscall.SIGKILL && j.killed() != 0:
		f.kills++
	case err == nil:
		f.exits++
	default:
		return f, nil, fmt.Errorf("%s: %w", who, err)
	}
	if l.Exec {
		f.execs++
	}
	entries := j.read(who)
	for _, e := range entries {
		if e.unlink {
			f.unlinks++
		} else {
			f.attachments++
		}
	}
	return f, entries, nil
}

// start starts a process with the journals as descriptor 3. No pipe leads to it:
// its children would have that as well.
func (l life) start(file *os.File) (*exec.Cmd, error) {
	text, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envLife+"="+string(text))
	cmd.ExtraFiles = []*os.File{file}
	cmd.Stderr = os.Stderr
	return cmd, cmd.Start()
}

// compare returns an error if two different blocks were attached to under one
// name at one time, neither of them unlinked.
func compare(entries []entry) error {
	unlinked := map[blockID]bool{}
	for _, e := range entries {
		if e.unlink {
			unlinked[e.id] = true
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(a.from, b.from) })
	active := map[int][]entry{}
	for _, e := range entries {
		if e.unlink || unlinked[e.id] {
			continue
		}
		list := slices.DeleteFunc(active[e.name], func(old entry) bool { return old.to < e.from })
		for _, old := range list {
			if old.id != e.id {
				return fmt.Errorf("two blocks under one name at one time:\n%v\n%v", old, e)
			}
		}
		active[e.name] = append(list, e)
	}
	return nil
}

// nothingLeft returns an error if there is a name when nobody is attached. It
// looks in one of three ways.
func nothingLeft(number int, names []string) error {
	for i, name := range names {
		if info, err := shm.Stat(name); err == nil && info.Persistent {
			if err := shm.Unlink(name); err != nil {
				return err
			}
		}
		if err := look(number+i, name); err != nil {
			return fmt.Errorf("when all are gone: %w", err)
		}
		if info, err := shm.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("a name is left: %+v, %w", info, err)
		}
	}
	return nil
}

func look(how int, name string) error {
	switch how % 3 {
	case 0:
		seg, err := shm.Open(name)
		if err == nil {
			seg.Close()
			return errors.New(name + " can be opened")
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	case 1:
		seg, err := shm.Create(name, 1)
		if err != nil {
			return err
		}
		return seg.Close()
	case 2:
		// A block that another program is just reaping is passed over.
		for end := time.Now().Add(time.Minute); ; {
			if names, err := shm.Reap(); err != nil {
				return fmt.Errorf("reaped %s: %w", strings.Join(names, " "), err)
			}
			if _, err := shm.Stat(name); errors.Is(err, fs.ErrNotExist) || time.Now().After(end) {
				return nil
			}
		}
	}
	return nil
}
