//go:build linux || darwin

package posixshm_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/lockpage"
	"github.com/shmkit/shm/internal/posixshm"
	"github.com/shmkit/shm/internal/raw"
	"github.com/shmkit/shm/internal/sysunix"
)

// The facts that this package rests on come first. On a new system run them first:
//
//	go test -run TestSystem ./internal/posixshm
//
// The stand-in is held to the same ones.

var (
	system *posixshm.System // that package shm uses
	kernel posixshm.Kernel  // of system
)

var systemNames struct {
	sync.Mutex
	n int
}

// systemName returns a name, with its slash, that is free, and free again after
// the test.
func systemName(t testing.TB) string {
	systemNames.Lock()
	defer systemNames.Unlock()
	systemNames.n++
	name := fmt.Sprintf("/shm-%d-%d", os.Getpid(), systemNames.n)
	kernel.ShmUnlink(name)
	t.Cleanup(func() { kernel.ShmUnlink(name) })
	return name
}

// systemOpen opens an object for the time of the test.
func systemOpen(t testing.TB, name string, flags int, mode uint32) int {
	t.Helper()
	fd, err := kernel.ShmOpen(name, flags, mode)
	if err != nil {
		t.Fatalf("shm_open(%q, %#x, %#o): %v", name, flags, mode, err)
	}
	t.Cleanup(func() { kernel.Close(fd) })
	return fd
}

const systemCreate = syscall.O_RDWR | syscall.O_CREAT | syscall.O_EXCL

// systemNew creates an object that has a size.
func systemNew(t testing.TB, size int64) (name string, fd int) {
	t.Helper()
	name = systemName(t)
	fd = systemOpen(t, name, systemCreate, 0o600)
	if err := kernel.Truncate(fd, size); err != nil {
		t.Fatal(err)
	}
	return name, fd
}

func systemMmap(t testing.TB, fd, length int, write bool) []byte {
	t.Helper()
	mem, err := kernel.Map(fd, length, write)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kernel.Unmap(mem) })
	return mem
}

func systemStat(t testing.TB, fd int) posixshm.Stat {
	t.Helper()
	st, err := kernel.Stat(fd)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func mustBe(t testing.TB, what string, err error, want ...error) {
	t.Helper()
	for _, w := range want {
		if errors.Is(err, w) {
			return
		}
	}
	t.Errorf("%s: %v, want %v", what, err, want)
}

func TestSystemNames(t *testing.T) {
	name := systemName(t)
	long := name + strings.Repeat("n", 31-len(name))
	fd, err := kernel.ShmOpen(long, systemCreate, 0o600)
	mustBe(t, "31 bytes", err, nil)
	kernel.Close(fd)
	mustBe(t, "unlinking 31 bytes", kernel.ShmUnlink(long), nil)
	_, err = kernel.ShmOpen(long+"n", systemCreate, 0o600)
	mustBe(t, "32 bytes", err, syscall.ENAMETOOLONG)
	mustBe(t, "unlinking 32 bytes", kernel.ShmUnlink(long+"n"), syscall.EINVAL)
	_, err = kernel.ShmOpen("", systemCreate, 0o600)
	mustBe(t, "empty", err, syscall.EINVAL)

	// The slash is a byte like any other, so without it the name is another.
	systemOpen(t, name, systemCreate, 0o600)
	_, err = kernel.ShmOpen(name[1:], syscall.O_RDWR, 0)
	mustBe(t, "without slash", err, syscall.ENOENT)
	_, err = kernel.ShmOpen(strings.ToUpper(name), syscall.O_RDWR, 0)
	mustBe(t, "upper case", err, syscall.ENOENT)
}

func TestSystemCreate(t *testing.T) {
	name := systemName(t)
	_, err := kernel.ShmOpen(name, syscall.O_RDWR, 0)
	mustBe(t, "opening nothing", err, syscall.ENOENT)
	mustBe(t, "unlinking nothing", kernel.ShmUnlink(name), syscall.ENOENT)
	fd := systemOpen(t, name, systemCreate, 0o600)
	_, err = kernel.ShmOpen(name, systemCreate, 0o600)
	mustBe(t, "O_EXCL", err, syscall.EEXIST)
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("not closed on exec: %#x, %v", flags, err)
	}
	// Of several at once, one creates it.
	name = systemName(t)
	wins := race(8, func() error {
		fd, err := kernel.ShmOpen(name, systemCreate, 0o600)
		if err == nil {
			kernel.Close(fd)
		}
		return err
	})
	if wins != 1 {
		t.Errorf("%d have created the object", wins)
	}
}

// race calls f by n goroutines at once and returns how often it succeeded.
func race(n int, f func() error) (wins int) {
	var all sync.WaitGroup
	var mu sync.Mutex
	begin := make(chan bool)
	for range n {
		all.Go(func() {
			<-begin
			err := f()
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				wins++
			}
		})
	}
	close(begin)
	all.Wait()
	return wins
}

// TestSystemMode: the umask takes nothing away, and the birth mark stays.
func TestSystemMode(t *testing.T) {
	old := syscall.Umask(0o777)
	defer syscall.Umask(old)
	for _, mode := range []uint32{0, 0o400, 0o600, 0o640, 0o666, 0o777} {
		for _, mark := range []uint32{0, posixshm.BirthMark} {
			name := systemName(t)
			fd := systemOpen(t, name, systemCreate, mode|mark)
			want := posixshm.Stat{Mode: mode | mark, UID: uint32(os.Geteuid())}
			if got := systemStat(t, fd); got != want {
				t.Errorf("mode %#o: %+v, want %+v", mode|mark, got, want)
			}
			if mode&0o600 != 0o600 {
				continue
			}
			if err := kernel.Truncate(fd, 1); err != nil {
				t.Fatal(err)
			}
			again := systemStat(t, systemOpen(t, name, syscall.O_RDWR, 0))
			if again.Mode != want.Mode || again.UID != want.UID {
				t.Errorf("opened again: %+v, want %+v", again, want)
			}
		}
	}
}

func TestSystemPermission(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may do anything")
	}
	name := systemName(t)
	systemOpen(t, name, systemCreate, 0o400|posixshm.BirthMark)
	systemOpen(t, name, syscall.O_RDONLY, 0)
	_, err := kernel.ShmOpen(name, syscall.O_RDWR, 0)
	mustBe(t, "writing", err, syscall.EACCES)
	mustBe(t, "unlinking what one has created", kernel.ShmUnlink(name), nil)
}

// TestSystemSize: an object gets its size once, whoever is first.
func TestSystemSize(t *testing.T) {
	name := systemName(t)
	fd := systemOpen(t, name, systemCreate, 0o600)
	if st := systemStat(t, fd); st.Size != 0 {
		t.Errorf("size %d before there is one", st.Size)
	}
	_, err := kernel.Map(fd, 1, true)
	mustBe(t, "mapping without a size", err, syscall.EINVAL)
	mustBe(t, "size", kernel.Truncate(fd, 3*posixshm.ObjectPage), nil)
	for _, size := range []int64{0, 1, posixshm.ObjectPage, 3 * posixshm.ObjectPage, 4 * posixshm.ObjectPage} {
		mustBe(t, "another size", kernel.Truncate(fd, size), syscall.EINVAL)
	}
	if st := systemStat(t, fd); st.Size != 3*posixshm.ObjectPage {
		t.Errorf("size %d", st.Size)
	}
	_, err = kernel.ShmOpen(name, syscall.O_RDWR|syscall.O_TRUNC, 0)
	mustBe(t, "O_TRUNC", err, syscall.EINVAL)

	nothing := systemOpen(t, systemName(t), systemCreate, 0o600)
	mustBe(t, "size 0", kernel.Truncate(nothing, 0), nil)
	mustBe(t, "size after 0", kernel.Truncate(nothing, 1), syscall.EINVAL)

	name = systemName(t)
	systemOpen(t, name, systemCreate, 0o600)
	mustBe(t, "size by a reader", kernel.Truncate(systemOpen(t, name, syscall.O_RDONLY, 0), posixshm.ObjectPage), nil)

	for range 100 {
		name := systemName(t)
		systemOpen(t, name, systemCreate, 0o600)
		wins := race(8, func() error {
			fd := systemOpen(t, name, syscall.O_RDWR, 0)
			return kernel.Truncate(fd, posixshm.ObjectPage)
		})
		if wins != 1 {
			t.Fatalf("%d have set the size", wins)
		}
	}
}

func TestSystemRounding(t *testing.T) {
	_, fd := systemNew(t, 1)
	st := systemStat(t, fd)
	if st.Size%int64(os.Getpagesize()) != 0 || st.Size > posixshm.ObjectPage {
		t.Errorf("size 1 is rounded to %d", st.Size)
	}
	mem := systemMmap(t, fd, int(st.Size), true)
	mem[st.Size-1] = 1 // there
	_, fd = systemNew(t, posixshm.ObjectPage)
	if st := systemStat(t, fd); st.Size != posixshm.ObjectPage {
		t.Errorf("%d is rounded to %d", posixshm.ObjectPage, st.Size)
	}
}

func TestSystemMmap(t *testing.T) {
	name, fd := systemNew(t, 2*posixshm.ObjectPage)
	mem := systemMmap(t, fd, 2*posixshm.ObjectPage, true)
	for i, b := range mem {
		if b != 0 {
			t.Fatalf("byte %d is %d", i, b)
		}
	}
	_, err := kernel.Map(fd, 2*posixshm.ObjectPage+1, true)
	mustBe(t, "mapping beyond the end", err, syscall.EINVAL)
	reader := systemOpen(t, name, syscall.O_RDONLY, 0)
	_, err = kernel.Map(reader, posixshm.ObjectPage, true)
	mustBe(t, "mapping to write what is open to read", err, syscall.EPERM)
	view := systemMmap(t, reader, posixshm.ObjectPage, false)
	if err := kernel.Protect(view); err == nil {
		t.Error("what is open to read was made writable")
	}
	half := systemMmap(t, fd, 2*posixshm.ObjectPage, false)
	mustBe(t, "making one page writable", kernel.Protect(half[:posixshm.ObjectPage]), nil)
	copy(half, "seen by all")
	if string(view[:11]) != "seen by all" || string(mem[:11]) != "seen by all" {
		t.Errorf("%q, %q", view[:11], mem[:11])
	}
}

// TestSystemUnlink: the name goes at once, the memory with its last user, and
// without users it stays as long as the name.
func TestSystemUnlink(t *testing.T) {
	name := systemName(t)
	fd, err := kernel.ShmOpen(name, systemCreate, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	mustBe(t, "size", kernel.Truncate(fd, posixshm.ObjectPage), nil)
	mem, err := kernel.Map(fd, posixshm.ObjectPage, true)
	if err != nil {
		t.Fatal(err)
	}
	copy(mem, "stays")
	kernel.Unmap(mem)
	kernel.Close(fd)

	fd = systemOpen(t, name, syscall.O_RDWR, 0)
	view := systemMmap(t, fd, posixshm.ObjectPage, true)
	if string(view[:5]) != "stays" {
		t.Errorf("%q after nobody had used it", view[:5])
	}
	mustBe(t, "unlink", kernel.ShmUnlink(name), nil)
	_, err = kernel.ShmOpen(name, syscall.O_RDWR, 0)
	mustBe(t, "open after unlink", err, syscall.ENOENT)
	mustBe(t, "unlink after unlink", kernel.ShmUnlink(name), syscall.ENOENT)
	if st := systemStat(t, fd); st.Size != posixshm.ObjectPage || string(view[:5]) != "stays" {
		t.Errorf("%+v, %q after unlink", st, view[:5])
	}
	other := systemOpen(t, name, systemCreate, 0o600)
	mustBe(t, "size of the next", kernel.Truncate(other, posixshm.ObjectPage), nil)
	if fresh := systemMmap(t, other, posixshm.ObjectPage, true); fresh[0] != 0 {
		t.Errorf("%q in the next object of the name", fresh[:5])
	}
}

// TestSystemSleep: a word in one mapping wakes who sleeps on it in another, of a process
// that may only read as well, unless the system is one without the call.
func TestSystemSleep(t *testing.T) {
	name, fd := systemNew(t, posixshm.ObjectPage)
	word := raw.Uint32(systemMmap(t, fd, posixshm.ObjectPage, true), 320)
	reader := systemMmap(t, systemOpen(t, name, syscall.O_RDONLY, 0), posixshm.ObjectPage, false)
	err := kernel.Sleep(word, 1, time.Hour) // it is 0
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	mustBe(t, "another value", err, nil)
	mustBe(t, "no time", kernel.Sleep(word, 0, 0), nil)
	mustBe(t, "some time", kernel.Sleep(word, 0, time.Millisecond), nil)
	kernel.Wake(word, false)
	kernel.Wake(word, true)
	for _, all := range []bool{false, true} {
		for range 200 {
			before := word.Load()
			woken := make(chan error)
			go func() {
				var err error
				for there := raw.Uint32(reader, 320); there.Load() == before && err == nil; {
					err = kernel.Sleep(there, before, time.Hour)
				}
				woken <- err
			}()
			if before%2 == 0 {
				time.Sleep(time.Millisecond) // most often it sleeps by then
			}
			word.Add(1)
			kernel.Wake(word, all)
			mustBe(t, "sleep", <-woken, nil)
		}
	}
}

// TestSystemStartTime: a process has a start time that exec does not change,
// and none once it has ended, waited for or not.
func TestSystemStartTime(t *testing.T) {
	me, err := kernel.StartTime(os.Getpid())
	again, err2 := kernel.StartTime(os.Getpid())
	if err != nil || err2 != nil || me == 0 || me != again {
		t.Fatalf("my own: %d, %v, then %d, %v", me, err, again, err2)
	}
	cmd := exec.Command("/bin/sh", "-c", "echo sh; read line; exec cat")
	stdin, _ := cmd.StdinPipe()
	stdout, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(stdout)
	lines.ReadString('\n')
	sh, err := kernel.StartTime(cmd.Process.Pid)
	io.WriteString(stdin, "to cat\nfrom cat\n")
	if line, err := lines.ReadString('\n'); line != "from cat\n" {
		t.Fatalf("cat: %q, %v", line, err)
	}
	cat, err2 := kernel.StartTime(cmd.Process.Pid)
	if err != nil || err2 != nil || sh != cat || sh < me {
		t.Errorf("%d, %v before exec; %d, %v after; my own %d", sh, err, cat, err2, me)
	}
	if system.Token(cmd.Process.Pid, sh)>>(63-kernel.PIDBits()) != uint64(cmd.Process.Pid) {
		t.Errorf("process id %d does not fit", cmd.Process.Pid)
	}
	cmd.Process.Kill()
	for end := time.Now().Add(10 * time.Second); !errors.Is(err, syscall.ESRCH); {
		if _, err = kernel.StartTime(cmd.Process.Pid); time.Now().After(end) {
			t.Fatalf("killed: %v", err)
		}
	}
	if err := syscall.Kill(cmd.Process.Pid, 0); err != nil {
		t.Errorf("kill thinks that a process not waited for is gone: %v", err)
	}
	cmd.Wait()
	_, err = kernel.StartTime(cmd.Process.Pid)
	mustBe(t, "waited for", err, syscall.ESRCH)

	if _, err := kernel.StartTime(1); err != nil {
		t.Errorf("of another user's process: %v", err)
	}
}

// The rest are the ways of a block on such a system.

// TestToken tells processes apart that have, or had, one process id.
func TestToken(t *testing.T) {
	cmd := exec.Command("cat")
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	start, err := kernel.StartTime(pid)
	me, err2 := system.Self()
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	for _, tt := range []struct {
		what  string
		token uint64
		gone  bool
	}{
		{"this process", me, false},
		{"one before this process", system.Token(os.Getpid(), 1), true},
		{"a child", system.Token(pid, start), false},
		{"one before the child", system.Token(pid, start-1), true},
		{"no process", system.Token(0, 0), true},
	} {
		if got := system.Gone(tt.token); got != tt.gone {
			t.Errorf("%s is gone: %v", tt.what, got)
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
	if !system.Gone(system.Token(pid, start)) {
		t.Error("the child is not gone")
	}
}

// mustStay checks that an object is as another program has made it, that it is
// taken for no block, and that no block gets its name.
func mustStay(t *testing.T, name string, size int64) {
	t.Helper()
	clean := name[1:]
	for _, opts := range [][]shm.Option{nil, {shm.ReadOnly()}} {
		_, err := shm.Open(clean, opts...)
		mustBe(t, "Open", err, shm.ErrNotSegment)
	}
	_, err := shm.Create(clean, 1)
	mustBe(t, "Create", err, fs.ErrExist)
	_, _, err = shm.OpenOrCreate(clean, 1)
	mustBe(t, "OpenOrCreate", err, shm.ErrNotSegment)
	fd := systemOpen(t, name, syscall.O_RDWR, 0)
	if st := systemStat(t, fd); st.Size != size {
		t.Errorf("size %d has become %d", size, st.Size)
	}
	if size == 0 {
		return
	}
	for i, b := range systemMmap(t, fd, int(size), false) {
		if b != 0 {
			t.Fatalf("byte %d has become %d", i, b)
		}
	}
}

// TestForeign has objects of other programs, even such as could be blocks in the
// making but for the mark.
func TestForeign(t *testing.T) {
	name := systemName(t)
	fd := systemOpen(t, name, systemCreate, 0o600)
	mustStay(t, name, 0)
	_, err := shm.Open(name[1:], shm.Headerless())
	mustBe(t, "Headerless without a size", err, shm.ErrNotSegment)
	mustBe(t, "size", kernel.Truncate(fd, 2*posixshm.ObjectPage), nil)
	mustStay(t, name, 2*posixshm.ObjectPage)
	seg, err := shm.Open(name[1:], shm.Headerless())
	if err != nil {
		t.Fatal(err)
	}
	defer seg.Close()
	if seg.Size() != 2*posixshm.ObjectPage || seg.Refs() != 0 {
		t.Errorf("size %d, %d references", seg.Size(), seg.Refs())
	}
	mustBe(t, "Unlink", shm.Unlink(name[1:]), nil)
	mustBe(t, "Unlink again", shm.Unlink(name[1:]), fs.ErrNotExist)
}

// TestUnborn has objects whose creator was killed: without a size, with one, and
// with the mutex. For all but Create they do not exist.
func TestUnborn(t *testing.T) {
	for what, prepare := range map[string]func(fd int){
		"without size": func(int) {},
		"sized":        func(fd int) { kernel.Truncate(fd, posixshm.ObjectPage) },
		"locked": func(fd int) {
			kernel.Truncate(fd, 3*posixshm.ObjectPage)
			page := systemMmap(t, fd, posixshm.ObjectPage, true)[posixshm.LockPageStart:]
			lockpage.New(page, system.Token(os.Getpid(), 1), system.Gone, kernel.Step).Lock()
		},
	} {
		t.Run(what, func(t *testing.T) {
			name := systemName(t)
			fd := systemOpen(t, name, systemCreate, 0o600|posixshm.BirthMark)
			prepare(fd)
			for _, opts := range [][]shm.Option{nil, {shm.ReadOnly()}, {shm.Headerless()}} {
				_, err := shm.Open(name[1:], opts...)
				mustBe(t, "Open", err, fs.ErrNotExist)
			}
			_, err := shm.Stat(name[1:])
			mustBe(t, "Stat", err, fs.ErrNotExist)
			mustBe(t, "Unlink", shm.Unlink(name[1:]), fs.ErrNotExist)
			seg, err := shm.Create(name[1:], 10)
			if err != nil {
				t.Fatal(err)
			}
			// The creator was not killed, only slow: it must start over.
			if what != "locked" {
				mustBe(t, "a creator that was too slow", system.PrepareUnborn(fd, name[1:], 10), fs.ErrExist)
			}
			if info, err := shm.Stat(name[1:]); err != nil || !info.Attached {
				t.Errorf("%+v, %v", info, err)
			}
			seg.Close()
			_, err = kernel.ShmOpen(name, syscall.O_RDONLY, 0)
			mustBe(t, "the name in the end", err, syscall.ENOENT)
		})
	}
}

// TestNameTaken has another program take the name from a block and make an
// object of its own of it. Nobody who is attached to the block touches that.
func TestNameTaken(t *testing.T) {
	name := systemName(t)
	seg, err := shm.Create(name[1:], 10)
	if err != nil {
		t.Fatal(err)
	}
	peer, err := shm.Open(name[1:])
	if err != nil {
		t.Fatal(err)
	}
	mustBe(t, "unlink by another program", kernel.ShmUnlink(name), nil)
	fd := systemOpen(t, name, systemCreate, 0o600)
	mustBe(t, "Unlink", peer.Unlink(), fs.ErrNotExist)
	peer.Close()
	seg.Close()
	mustStay(t, name, 0)
	mustBe(t, "size", kernel.Truncate(fd, posixshm.ObjectPage), nil)
	mustStay(t, name, posixshm.ObjectPage)
}

// TestSlotsTaken attaches until there is no slot left, which with a descriptor
// for each would not be possible everywhere.
func TestSlotsTaken(t *testing.T) {
	name := systemName(t)
	seg, err := shm.Create(name[1:], 10)
	if err != nil {
		t.Fatal(err)
	}
	defer seg.Close()
	me, _ := system.Self()
	page := head(t, name)[posixshm.LockPageStart:]
	var crowd []*lockpage.Page
	for slots := lockpage.New(page, me, system.Gone, kernel.Step).Slots(); len(crowd) < slots-1; {
		p := lockpage.New(page, me, system.Gone, kernel.Step)
		if !p.Lock() || !p.Join(true, nil) {
			t.Fatalf("slot %d of %d", len(crowd)+1, p.Slots())
		}
		p.Unlock()
		crowd = append(crowd, p)
	}
	_, err = shm.Open(name[1:])
	mustBe(t, "Open", err, shm.ErrNoSpace)
	mustBe(t, "Open", err, syscall.ENOLCK)
	crowd[0].Leave()
	peer, err := shm.Open(name[1:])
	mustBe(t, "Open with a slot", err, nil)
	peer.Close()
	for _, p := range crowd[1:] {
		p.Leave()
	}
}

// TestTooLarge: what the system refuses leaves no name.
func TestTooLarge(t *testing.T) {
	name := systemName(t)
	_, err := shm.Create(name[1:], 1<<60)
	mustBe(t, "Create", err, shm.ErrNoSpace)
	_, err = kernel.ShmOpen(name, syscall.O_RDONLY, 0)
	mustBe(t, "the name", err, syscall.ENOENT)
}

// TestSystemRevoke: a mapping can be replaced by addresses that fault, and the
// fault is a panic that says where.
func TestSystemRevoke(t *testing.T) {
	_, fd := systemNew(t, 2*posixshm.ObjectPage)
	mem := systemMmap(t, fd, 2*posixshm.ObjectPage, true)
	mem[posixshm.ObjectPage] = 1
	mustBe(t, "revoke", sysunix.Revoke(mem), nil)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		fault, ok := recover().(interface{ Addr() uintptr })
		if !ok || raw.Index(mem, fault.Addr()) != posixshm.ObjectPage {
			t.Errorf("recovered %v", fault)
		}
	}()
	t.Error("read", mem[posixshm.ObjectPage])
}

// head maps the first page of the object called name, for the time of the test.
func head(t testing.TB, name string) []byte {
	t.Helper()
	return systemMmap(t, systemOpen(t, name, syscall.O_RDWR, 0), posixshm.ObjectPage, true)
}

// setFlags writes other flags into the header of a block, with the right checksum.
func setFlags(head []byte, flags uint32) {
	binary.NativeEndian.PutUint32(head[24:], flags)
	binary.NativeEndian.PutUint32(head[60:], crc32.Checksum(head[:60], crc32.MakeTable(crc32.Castagnoli)))
}

// copyID gives one lock page the id of another.
func copyID(to, from []byte) {
	view := func(page []byte) *lockpage.Page {
		return lockpage.New(page, 0, func(uint64) bool { return false }, func(string) {})
	}
	view(to).SetID(view(from).ID())
}

// handed returns a file of what fd is open on.
func handed(t testing.TB, fd int) *os.File {
	t.Helper()
	own, err := sysunix.Duplicate(uintptr(fd))
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(own), "handed")
	t.Cleanup(func() { f.Close() })
	return f
}

// TestSystemNameless: an object can lose its name before it gets a size, and one
// without permissions is nobody's but who has made it, who may also unlink it.
func TestSystemNameless(t *testing.T) {
	name := systemName(t)
	fd := systemOpen(t, name, systemCreate, posixshm.AnonymousMode)
	if os.Geteuid() != 0 {
		_, err := kernel.ShmOpen(name, syscall.O_RDONLY, 0)
		mustBe(t, "opening what nobody may", err, syscall.EACCES)
	}
	mustBe(t, "unlink without a size", kernel.ShmUnlink(name), nil)
	mustBe(t, "size without a name", kernel.Truncate(fd, posixshm.ObjectPage), nil)
	mem := systemMmap(t, fd, posixshm.ObjectPage, true)
	mem[posixshm.ObjectPage-1] = 1 // there
	if st := systemStat(t, fd); st.Mode != posixshm.AnonymousMode || st.Size != posixshm.ObjectPage {
		t.Errorf("%+v", st)
	}
}

// TestSystemDescriptor: a duplicate is as good, and tells what access it has.
func TestSystemDescriptor(t *testing.T) {
	name, fd := systemNew(t, posixshm.ObjectPage)
	for _, tt := range []struct{ fd, access int }{
		{fd, syscall.O_RDWR},
		{systemOpen(t, name, syscall.O_RDONLY, 0), syscall.O_RDONLY},
		{systemOpen(t, name, syscall.O_WRONLY, 0), syscall.O_WRONLY},
	} {
		f := handed(t, tt.fd)
		access, err := sysunix.AccessMode(f.Fd())
		if err != nil || access != tt.access {
			t.Errorf("access %d, %v, want %d", access, err, tt.access)
		}
		if size, err := kernel.ObjectSize(f.Fd()); err != nil || size != posixshm.ObjectPage {
			t.Errorf("size %d, %v", size, err)
		}
		if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("not closed on exec: %#x, %v", flags, err)
		}
	}
	systemMmap(t, int(handed(t, fd).Fd()), posixshm.ObjectPage, true)[0] = 1
	unsized := systemOpen(t, systemName(t), systemCreate, 0o600)
	if size, err := kernel.ObjectSize(uintptr(unsized)); err != nil || size != 0 {
		t.Errorf("without a size: %d, %v", size, err)
	}
}

// TestFromFileObjects hands over objects of all kinds: what other programs make,
// what is not a block yet, and what only seems to be an anonymous one.
func TestFromFileObjects(t *testing.T) {
	for _, tt := range []struct {
		what  string
		mode  uint32
		size  int64
		flags int // to open it again with
		want  error
	}{
		{"foreign", 0o600, 2 * posixshm.ObjectPage, 0, shm.ErrNotSegment},
		{"foreign, unsized", 0o600, 0, 0, shm.ErrNotSegment},
		{"foreign, to write only", 0o600, posixshm.ObjectPage, syscall.O_WRONLY, fs.ErrPermission},
		{"unborn", 0o600 | posixshm.BirthMark, 0, 0, fs.ErrNotExist},
		{"unborn, sized", 0o600 | posixshm.BirthMark, 2 * posixshm.ObjectPage, 0, fs.ErrNotExist},
		{"anonymous, unsized", posixshm.AnonymousMode, 0, 0, shm.ErrNotSegment},
		{"anonymous, empty", posixshm.AnonymousMode, 2 * posixshm.ObjectPage, 0, shm.ErrNotSegment},
	} {
		name := systemName(t)
		fd := systemOpen(t, name, systemCreate, tt.mode)
		if tt.size > 0 {
			mustBe(t, "size", kernel.Truncate(fd, tt.size), nil)
		}
		if tt.flags != 0 {
			fd = systemOpen(t, name, tt.flags, 0)
		}
		for _, opts := range [][]shm.Option{nil, {shm.ReadOnly()}} {
			_, err := shm.FromFile(handed(t, fd), opts...)
			mustBe(t, tt.what, err, tt.want)
		}
	}
	name, fd := systemNew(t, 2*posixshm.ObjectPage)
	raw, err := shm.FromFile(handed(t, fd), shm.Headerless())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if raw.Size() != 2*posixshm.ObjectPage || raw.Name() != "" {
		t.Errorf("%q has %d bytes", raw.Name(), raw.Size())
	}
	mustBe(t, "Unlink", raw.Unlink(), fs.ErrNotExist)
	reader := systemOpen(t, name, syscall.O_RDONLY, 0)
	_, err = shm.FromFile(handed(t, reader), shm.Headerless())
	mustBe(t, "more than it is open for", err, fs.ErrPermission)
}

// TestAnonymousObject has an anonymous block that whoever has its file can do
// nothing to but change what is in it.
func TestAnonymousObject(t *testing.T) {
	seg, err := shm.Anonymous(100)
	if err != nil {
		t.Fatal(err)
	}
	defer seg.Close()
	f, err := seg.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int64{0, 1, posixshm.ObjectPage, 100 * posixshm.ObjectPage} {
		mustBe(t, "another size", kernel.Truncate(int(f.Fd()), size), syscall.EINVAL)
	}
	// A header that says it has a name makes no other kind of it.
	setFlags(systemMmap(t, int(f.Fd()), posixshm.ObjectPage, true), 0)
	_, err = shm.FromFile(f)
	mustBe(t, "not anonymous, it says", err, shm.ErrCorrupt)
}

// TestNamedAnonymous has a block with a name say that it is anonymous.
func TestNamedAnonymous(t *testing.T) {
	name := systemName(t)[1:]
	seg, err := shm.Create(name, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer seg.Unlink()
	defer seg.Close()
	f, err := seg.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const anonymous = 4
	setFlags(head(t, "/"+name), anonymous)
	_, err = shm.FromFile(f)
	mustBe(t, "FromFile", err, shm.ErrCorrupt)
	_, err = shm.Open(name)
	mustBe(t, "Open", err, shm.ErrCorrupt)
}

// TestWrongName has a block say that it has another name: whoever is attached by
// a file must not take that from the block that has it.
func TestWrongName(t *testing.T) {
	victim, err := shm.Create(systemName(t)[1:], 100, shm.Persistent())
	if err != nil {
		t.Fatal(err)
	}
	defer victim.Close()
	defer victim.Unlink()
	for _, name := range []string{victim.Name(), "", "../x", "no-such-name", "/" + victim.Name(), strings.Repeat("n", 32)} {
		seg, err := shm.Create(systemName(t)[1:], 100)
		if err != nil {
			t.Fatal(err)
		}
		f, err := seg.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		head, theirs := head(t, "/"+seg.Name()), head(t, "/"+victim.Name())
		clear(head[posixshm.NameStart:posixshm.LockPageStart])
		copy(head[posixshm.NameStart:], name)
		copyID(head[posixshm.LockPageStart:], theirs[posixshm.LockPageStart:])
		peer, err := shm.FromFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if peer.Name() != "" {
			t.Errorf("%q is called %q", name, peer.Name())
		}
		mustBe(t, "Unlink", peer.Unlink(), fs.ErrNotExist)
		seg.Close()
		peer.Close()
		if info, err := shm.Stat(victim.Name()); err != nil || !info.Attached {
			t.Errorf("%q: the block of that name: %+v, %v", name, info, err)
		}
	}
}

// TestUnlinkedReadOnly: without its name, a block gives no file to read only.
func TestUnlinkedReadOnly(t *testing.T) {
	seg, err := shm.Create(systemName(t)[1:], 100)
	if err != nil {
		t.Fatal(err)
	}
	defer seg.Close()
	reader, err := shm.Open(seg.Name(), shm.ReadOnly())
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	f, err := reader.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if access, err := sysunix.AccessMode(f.Fd()); err != nil || access != syscall.O_RDONLY {
		t.Errorf("access %d, %v", access, err)
	}
	mustBe(t, "Unlink", seg.Unlink(), nil)
	other, err := shm.Create(seg.Name(), 100)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	_, err = reader.File()
	mustBe(t, "File", err, errors.ErrUnsupported)
	late, err := shm.FromFile(f, shm.ReadOnly()) // what was handed out before is as good
	if err != nil {
		t.Fatal(err)
	}
	late.Close()
}
