package shm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
)

func TestFull(t *testing.T) {
	onTmpfs(t)
	if !privately(t, "tmpfs", "size=1m") {
		return
	}
	for _, opts := range [][]shm.Option{nil, {shm.Headerless()}, {shm.Prefault()}} {
		for _, pages := range []uint64{0, 1, 15, 16} {
			remove := fill(t, pages)
			before := free(t)
			size := int64(16 * 4096)
			if len(opts) == 0 {
				size++ // with the header it is 18 pages
			}
			err := tryCreate("full", size, opts...)
			if len(opts) == 1 && pages == 16 && err == nil { // Headerless has no more than the data
				shm.Unlink("full")
			} else {
				wantErr(t, "Create", err, "full", shm.ErrNoSpace)
			}
			if after := free(t); after != before {
				t.Errorf("%d pages and inodes are free, before it were %d", after, before)
			}
			mustBeFree(t, "full")
			remove()
		}
	}
	for _, size := range []int64{1 << 21, 1 << 40, 1 << 62, math.MaxInt64 - 65536} {
		before := free(t)
		wantErr(t, "Create", tryCreate("huge", size), "huge", shm.ErrNoSpace)
		if err := tryCreate("huge", size, shm.Sparse()); size >= 1<<47 || err != nil {
			wantErr(t, "Create Sparse", err, "huge", shm.ErrNoSpace)
		}
		if after := free(t); after != before {
			t.Errorf("%d pages and inodes are free, before it were %d", after, before)
		}
		mustBeFree(t, "huge")
	}
}

// TestNoRoomForTwo has a block take so much memory that there is none for
// another: to whoever wants to create it again it is there, not out of space.
func TestNoRoomForTwo(t *testing.T) {
	t.Parallel() // in a process of its own
	onTmpfs(t)
	if !privately(t, "tmpfs", "size=8m") {
		return
	}
	const name, size = "large", 5 << 20
	for range rounds(100) {
		type result struct {
			seg     *shm.Segment
			created bool
			err     error
		}
		results := make(chan result, 4)
		for range cap(results) {
			go func() {
				seg, created, err := shm.OpenOrCreate(name, size)
				results <- result{seg, created, err}
			}()
		}
		created := 0
		var segs []*shm.Segment
		for range cap(results) {
			r := <-results
			if r.err != nil {
				t.Errorf("OpenOrCreate: %v", r.err)
				continue
			}
			segs = append(segs, r.seg)
			if r.created {
				created++
			}
		}
		if created != 1 {
			t.Errorf("created %d times", created)
		}
		before := free(t)
		wantErr(t, "Create", tryCreate(name, size), name, fs.ErrExist)
		if after := free(t); after != before {
			t.Errorf("%d pages and inodes are free, before it were %d", after, before)
		}
		for _, seg := range segs {
			seg.Close()
		}
		mustBeFree(t, name)
	}
}

// TestFullOfStale has blocks of killed processes fill the file system.
func TestFullOfStale(t *testing.T) {
	onTmpfs(t)
	if !privately(t, "tmpfs", "size=1m") {
		return
	}
	tryCreate("first", 1) // the first Create of a process reaps anyway
	names := plantStale(t, 15, 15*4096)
	if left := free(t)[0]; left > 20 {
		t.Fatalf("%d pages are free", left)
	}
	seg, err := shm.Create("new", 30*4096)
	if err != nil {
		t.Fatal(err)
	}
	defer seg.Close()
	for _, name := range names {
		mustBeFree(t, name)
	}
}

// TestNoInodes has no inode left for one more file.
func TestNoInodes(t *testing.T) {
	onTmpfs(t)
	if !privately(t, "tmpfs", "size=1m,nr_inodes=4") {
		return
	}
	tryCreate("first", 1)
	for i := range free(t)[1] {
		plantAt(t, fmt.Sprint("foreign-", i), []byte("foreign"))
	}
	wantErr(t, "Create", tryCreate("new", 1), "new", shm.ErrNoSpace)
	os.Remove(shmPath("foreign-0"))
	plantStale(t, 1, 1)
	if err := tryCreate("new", 1); err != nil {
		t.Error(err)
	}
}

// TestNoDescriptors has no file descriptor left.
func TestNoDescriptors(t *testing.T) {
	onTmpfs(t)
	if !limited(t) {
		return
	}
	seg := block(t, 100)
	name := seg.Name()
	restore := limit(t, syscall.RLIMIT_NOFILE, 0)
	defer restore()
	wantErr(t, "Create", tryCreate("", 100), "", syscall.EMFILE)
	wantErr(t, "Open", tryOpen(name), name, syscall.EMFILE)
	wantErr(t, "Stat", second(shm.Stat(name)), name, syscall.EMFILE)
	wantErr(t, "Unlink", shm.Unlink(name), name, syscall.EMFILE)
	wantErr(t, "List", second(shm.List()), "", syscall.EMFILE)
	wantErr(t, "Reap", second(shm.Reap()), "", syscall.EMFILE)
	everything(seg)
	if err := seg.Close(); err != nil { // needs none
		t.Error(err)
	}
	mustBeFree(t, name)
}

// TestNoAddressSpace has hardly any address space left.
func TestNoAddressSpace(t *testing.T) {
	onTmpfs(t)
	if !limited(t) {
		return
	}
	const large = 1 << 30
	seg := block(t, large, shm.Sparse())
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages := number(strings.Fields(string(b))[0])
	restore := limit(t, syscall.RLIMIT_AS, uint64(pages)*4096+large/4)
	defer restore()
	wantErr(t, "Create", tryCreate("", large, shm.Sparse()), "", shm.ErrNoSpace)
	wantErr(t, "Open", tryOpen(seg.Name()), seg.Name(), shm.ErrNoSpace)
	wantErr(t, "Open ReadOnly", tryOpen(seg.Name(), shm.ReadOnly()), seg.Name(), shm.ErrNoSpace)
	if seg.Refs() != 1 {
		t.Errorf("refs %d", seg.Refs())
	}
	if err := tryCreate("", 1<<20); err != nil {
		t.Error(err)
	}
}

// TestFileSizeLimit has files limited to less than a block. The signal that
// comes with it is nothing to a Go program.
func TestFileSizeLimit(t *testing.T) {
	onTmpfs(t)
	if !limited(t) {
		return
	}
	seg := block(t, 4<<20)
	name, limited := seg.Name(), unique(t)
	path := filepath.Join(t.TempDir(), "input")
	if err := os.WriteFile(path, noise(1<<20-4096), 0o600); err != nil {
		t.Fatal(err)
	}
	input, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer input.Close()
	restore := limit(t, syscall.RLIMIT_FSIZE, 1<<20)
	defer restore()
	for _, opts := range [][]shm.Option{nil, {shm.Sparse()}, {shm.Headerless()}} {
		wantErr(t, "Create", tryCreate(limited, 2<<20, opts...), limited, shm.ErrNoSpace)
		mustBeFree(t, limited)
	}
	if err := tryCreate(limited, 1<<20-4096); err != nil {
		t.Error(err)
	}
	// What is there already can be used.
	peer := attach(t, name)
	if n, err := peer.WriteAt([]byte("beyond"), 3<<20); n != 6 || err != nil {
		t.Errorf("WriteAt: %d, %v", n, err)
	}
	want := noise(2 << 20)
	if n, err := peer.WriteAt(want, 1<<19); n != len(want) || err != nil {
		t.Errorf("WriteAt across the limit: %d, %v", n, err)
	}
	if got := content(t, peer)[1<<19:][:len(want)]; !bytes.Equal(got, want) {
		t.Error("it is not what was written")
	}
	peer.Seek(1<<20-1, io.SeekStart)
	if n, err := io.Copy(peer, input); n != 1<<20-4096 || err != nil {
		t.Errorf("Copy across the limit: %d, %v", n, err)
	}
	everything(peer)
	peer.Close()
	seg.Close()
	mustBeFree(t, name)
}

// TestOthersBlock has a block that belongs to another user.
func TestOthersBlock(t *testing.T) {
	onTmpfs(t)
	if os.Getenv("SHM_OTHERS") == "" {
		mustRoot(t, "start processes of another user")
	}
	for _, tt := range []struct {
		perm               fs.FileMode
		open, readOnly     error
		stat, create, join error
	}{
		{0o600, fs.ErrPermission, fs.ErrPermission, fs.ErrPermission, fs.ErrExist, fs.ErrPermission},
		{0o644, fs.ErrPermission, nil, nil, fs.ErrExist, fs.ErrPermission},
		{0o666, nil, nil, nil, fs.ErrExist, nil},
	} {
		t.Run(fmt.Sprintf("%o", tt.perm), func(t *testing.T) {
			name := os.Getenv("SHM_OTHERS")
			if name == "" {
				seg := block(t, 100, shm.Perm(tt.perm))
				apart(t, "", func(cmd *exec.Cmd) {
					stranger(cmd)
					cmd.Env = append(cmd.Env, "SHM_OTHERS="+seg.Name())
				})
				// The stranger has come and gone; nothing has changed for us.
				if seg.Refs() != 1 {
					t.Errorf("refs %d", seg.Refs())
				}
				seg.Close()
				mustNotExist(t, seg.Name())
				mustBeFree(t, seg.Name())
				return
			}
			wantErr(t, "Open", tryOpen(name), name, tt.open)
			wantErr(t, "Open ReadOnly", tryOpen(name, shm.ReadOnly()), name, tt.readOnly)
			wantErr(t, "Stat", second(shm.Stat(name)), name, tt.stat)
			wantErr(t, "Create", tryCreate(name, 1), name, tt.create)
			wantErr(t, "Unlink", shm.Unlink(name), name, fs.ErrPermission) // the directory is sticky
			if seg, err := shm.Open(name); err == nil {
				wantErr(t, "Segment.Unlink", seg.Unlink(), name, fs.ErrPermission)
				seg.Close()
			}
			seg, _, err := shm.OpenOrCreate(name, 1)
			wantErr(t, "OpenOrCreate", err, name, tt.join)
			if err == nil {
				seg.Close()
			}
			if names, err := shm.Reap(); err != nil || slices.Contains(names, name) {
				t.Errorf("Reap: %v, %v", names, err)
			}
		})
	}
}

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
	t.Parallel() // in a process of its own
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

// TestFailureKeepsNothing has everything fail that takes a name.
func TestFailureKeepsNothing(t *testing.T) {
	onTmpfs(t)
	if !undisturbed(t) {
		return
	}
	shm.SetPatience(t, 0)
	managed := image(t, 100)
	damaged, version := bytes.Clone(managed), bytes.Clone(managed)
	damaged[20]++
	put(version, 8, 77)
	checksum(version)
	scribbled := bytes.Clone(managed)
	put(scribbled, 64, 77) // state
	for what, content := range map[string][]byte{
		"foreign": []byte("foreign"), "empty": nil, "damaged": damaged, "version": version, "cut off": managed[:len(managed)-50],
		"stale": managed, "scribbled": scribbled,
	} {
		t.Run(what, func(t *testing.T) {
			name := plant(t, content)
			kept := holding(t, name)
			for _, opts := range [][]shm.Option{nil, {shm.ReadOnly()}, {shm.Headerless()}, {shm.Headerless(), shm.ReadOnly()}, {shm.Persistent()}} {
				if err := tryOpen(name, opts...); err == nil && what != "foreign" {
					t.Errorf("Open %v: no error", opts)
				}
				if _, err := os.Stat(shmPath(name)); err != nil {
					mustKeepNothing(t, kept)
					plantAgain(t, name, content)
					kept = holding(t, name)
				}
			}
			shm.Stat(name)
			shm.List()
			if err := tryCreate(name, 100); err != nil && !errors.Is(err, fs.ErrExist) {
				t.Errorf("Create: %v", err)
			}
			shm.Unlink(name)
			mustKeepNothing(t, kept)
		})
	}
}

func plantAgain(t *testing.T, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(shmPath(name), content, 0o600); err != nil {
		t.Fatal(err)
	}
}
