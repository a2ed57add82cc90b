package shm_test

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
)

// creatorProgram creates a block whenever it is told to, and closes it when it
// is told to go on.
var creatorProgram = proctest.Register("creator", func(p *proctest.Parent) error {
	for {
		if _, err := p.Hear(); err != nil {
			return nil
		}
		seg, err := shm.Create(p.Args[0], number(p.Args[1]))
		if err != nil {
			p.Say("%s", errorWord(err))
		} else {
			p.Say("created")
		}
		if _, err := p.Hear(); err != nil {
			return nil
		}
		if err == nil {
			seg.Close()
		}
		p.Say("closed")
	}
})

// TestCreateCollision has processes create one name at once, with memory for one
// of them. One succeeds.
func TestCreateCollision(t *testing.T) {
	onTmpfs(t)
	if !privately(t, "tmpfs", "size=64m") {
		return
	}
	const name, size = "large", 40 << 20
	creators := make([]*proctest.Child, 3)
	for i := range creators {
		creators[i] = proctest.Start(t, creatorProgram, name, fmt.Sprint(size))
	}
	for round := range rounds(60) {
		for _, c := range creators {
			c.Say("create")
		}
		var answers []string
		created := 0
		for _, c := range creators {
			answer := c.Hear()
			if answer == "created" {
				created++
			}
			answers = append(answers, answer)
		}
		if created != 1 {
			t.Errorf("round %d: %q", round, answers)
		}
		for _, c := range creators {
			c.Say("close")
			c.Expect("closed")
		}
		mustBeFree(t, name)
	}
}

// TestNeverFits asks for more than the file system can ever hold: no call waits
// for memory that others could release.
func TestNeverFits(t *testing.T) {
	onTmpfs(t)
	if !privately(t, "tmpfs", "size=1m") {
		return
	}
	shm.SetPatience(t, time.Hour)
	for _, size := range []int64{1 << 20, 1 << 30, 1 << 62} {
		_, _, err := shm.OpenOrCreate("huge", size)
		wantErr(t, "OpenOrCreate", err, "huge", shm.ErrNoSpace)
	}
}

// TestNoSpaceSays reads in the error what was wanted, what is free, and where.
func TestNoSpaceSays(t *testing.T) {
	onTmpfs(t)
	if !privately(t, "tmpfs", "size=1m") {
		return
	}
	seg := block(t, 100<<10)
	free := free(t)[0] * 4096
	page := int64(os.Getpagesize())
	err := tryCreate("large", 2<<20)
	wantErr(t, "Create", err, "large", shm.ErrNoSpace)
	for _, part := range []string{fmt.Sprint(2<<20+page, " bytes"), fmt.Sprint(free, " free"), "/dev/shm"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
	seg.Close()
}

// TestFullReapsOnce has OpenOrCreate wait for memory. It looks for stale blocks
// once and not before each try.
func TestFullReapsOnce(t *testing.T) {
	onTmpfs(t)
	if !privately(t, "tmpfs", "size=1m") {
		return
	}
	tryCreate("first", 1) // the first Create of a process reaps anyway
	fill(t, 10)
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	if _, err := unix.InotifyAddWatch(fd, "/dev/shm", unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	shm.SetPatience(t, 100*time.Millisecond)
	_, _, err = shm.OpenOrCreate("name", 512<<10)
	wantErr(t, "OpenOrCreate", err, "name", shm.ErrNoSpace)
	b := make([]byte, 1<<20)
	n, err := events.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	scans := 0
	for b = b[:n]; len(b) > 0; b = b[unix.SizeofInotifyEvent+binary.NativeEndian.Uint32(b[12:]):] {
		if binary.NativeEndian.Uint32(b[4:])&unix.IN_ISDIR != 0 {
			scans++
		}
	}
	if scans != 1 {
		t.Errorf("the directory was read %d times", scans)
	}
}

func TestParseMeminfo(t *testing.T) {
	onTmpfs(t)
	for content, want := range map[string]int64{
		"MemTotal: 900 kB\nMemAvailable:  100 kB\nSwapFree: 20 kB\n": 120 << 10,
		"MemAvailable: 100 kB\nSwapFree: many\n":                     100 << 10,
		"MemAvailable: \nMemTotal: 900 kB\n":                         -1,
		"":                                                           -1,
	} {
		free, known := shm.ParseMeminfo(strings.NewReader(content))
		if !known {
			free = -1
		}
		if free != want {
			t.Errorf("%q: %d, want %d", content, free, want)
		}
	}
}

// TestJoinInvalidSize has sizes that no block can have be wrong where there is a
// block as well.
func TestJoinInvalidSize(t *testing.T) {
	onTmpfs(t)
	seg := block(t, 100)
	for _, size := range []int64{0, -1} {
		_, _, err := shm.OpenOrCreate(seg.Name(), size)
		wantErr(t, "OpenOrCreate", err, seg.Name(), fs.ErrInvalid)
	}
}
