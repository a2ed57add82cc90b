//go:build darwin || standin

package shm

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// These are the facts that the backend rests on. They come first on a new system:
//
//	go test -run TestSystem .
//
// The stand-in is held to the same ones.

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
	sysShmUnlink(name)
	t.Cleanup(func() { sysShmUnlink(name) })
	return name
}

// systemOpen opens an object for the time of the test.
func systemOpen(t testing.TB, name string, flags int, mode uint32) int {
	t.Helper()
	fd, err := sysShmOpen(name, flags, mode)
	if err != nil {
		t.Fatalf("shm_open(%q, %#x, %#o): %v", name, flags, mode, err)
	}
	t.Cleanup(func() { sysClose(fd) })
	return fd
}

const systemCreate = syscall.O_RDWR | syscall.O_CREAT | syscall.O_EXCL

// systemNew creates an object that has a size.
func systemNew(t testing.TB, size int64) (name string, fd int) {
	t.Helper()
	name = systemName(t)
	fd = systemOpen(t, name, systemCreate, 0o600)
	if err := sysFtruncate(fd, size); err != nil {
		t.Fatal(err)
	}
	return name, fd
}

func systemMmap(t testing.TB, fd, length int, write bool) []byte {
	t.Helper()
	mem, err := sysMmap(fd, length, write)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sysMunmap(mem) })
	return mem
}

func systemStat(t testing.TB, fd int) objectStat {
	t.Helper()
	st, err := sysFstat(fd)
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
	fd, err := sysShmOpen(long, systemCreate, 0o600)
	mustBe(t, "31 bytes", err, nil)
	sysClose(fd)
	mustBe(t, "unlinking 31 bytes", sysShmUnlink(long), nil)
	_, err = sysShmOpen(long+"n", systemCreate, 0o600)
	mustBe(t, "32 bytes", err, syscall.ENAMETOOLONG)
	mustBe(t, "unlinking 32 bytes", sysShmUnlink(long+"n"), syscall.EINVAL)
	_, err = sysShmOpen("", systemCreate, 0o600)
	mustBe(t, "empty", err, syscall.EINVAL)

	// The slash is a byte like any other, so without it the name is another.
	systemOpen(t, name, systemCreate, 0o600)
	_, err = sysShmOpen(name[1:], syscall.O_RDWR, 0)
	mustBe(t, "without slash", err, syscall.ENOENT)
	_, err = sysShmOpen(strings.ToUpper(name), syscall.O_RDWR, 0)
	mustBe(t, "upper case", err, syscall.ENOENT)
}

func TestSystemCreate(t *testing.T) {
	name := systemName(t)
	_, err := sysShmOpen(name, syscall.O_RDWR, 0)
	mustBe(t, "opening nothing", err, syscall.ENOENT)
	mustBe(t, "unlinking nothing", sysShmUnlink(name), syscall.ENOENT)
	fd := systemOpen(t, name, systemCreate, 0o600)
	_, err = sysShmOpen(name, systemCreate, 0o600)
	mustBe(t, "O_EXCL", err, syscall.EEXIST)
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("not closed on exec: %#x, %v", flags, err)
	}
	// Of several at once, one creates it.
	name = systemName(t)
	wins := race(8, func() error {
		fd, err := sysShmOpen(name, systemCreate, 0o600)
		if err == nil {
			sysClose(fd)
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
		for _, mark := range []uint32{0, birthMark} {
			name := systemName(t)
			fd := systemOpen(t, name, systemCreate, mode|mark)
			want := objectStat{mode: mode | mark, uid: uint32(os.Geteuid())}
			if got := systemStat(t, fd); got != want {
				t.Errorf("mode %#o: %+v, want %+v", mode|mark, got, want)
			}
			if mode&0o600 != 0o600 {
				continue
			}
			if err := sysFtruncate(fd, 1); err != nil {
				t.Fatal(err)
			}
			again := systemStat(t, systemOpen(t, name, syscall.O_RDWR, 0))
			if again.mode != want.mode || again.uid != want.uid {
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
	systemOpen(t, name, systemCreate, 0o400|birthMark)
	systemOpen(t, name, syscall.O_RDONLY, 0)
	_, err := sysShmOpen(name, syscall.O_RDWR, 0)
	mustBe(t, "writing", err, syscall.EACCES)
	mustBe(t, "unlinking what one has created", sysShmUnlink(name), nil)
}

// TestSystemSize: an object gets its size once, whoever is first.
func TestSystemSize(t *testing.T) {
	name := systemName(t)
	fd := systemOpen(t, name, systemCreate, 0o600)
	if st := systemStat(t, fd); st.size != 0 {
		t.Errorf("size %d before there is one", st.size)
	}
	_, err := sysMmap(fd, 1, true)
	mustBe(t, "mapping without a size", err, syscall.EINVAL)
	mustBe(t, "size", sysFtruncate(fd, 3*objectPage), nil)
	for _, size := range []int64{0, 1, objectPage, 3 * objectPage, 4 * objectPage} {
		mustBe(t, "another size", sysFtruncate(fd, size), syscall.EINVAL)
	}
	if st := systemStat(t, fd); st.size != 3*objectPage {
		t.Errorf("size %d", st.size)
	}
	_, err = sysShmOpen(name, syscall.O_RDWR|syscall.O_TRUNC, 0)
	mustBe(t, "O_TRUNC", err, syscall.EINVAL)

	nothing := systemOpen(t, systemName(t), systemCreate, 0o600)
	mustBe(t, "size 0", sysFtruncate(nothing, 0), nil)
	mustBe(t, "size after 0", sysFtruncate(nothing, 1), syscall.EINVAL)

	name = systemName(t)
	systemOpen(t, name, systemCreate, 0o600)
	mustBe(t, "size by a reader", sysFtruncate(systemOpen(t, name, syscall.O_RDONLY, 0), objectPage), nil)

	for range 100 {
		name := systemName(t)
		systemOpen(t, name, systemCreate, 0o600)
		wins := race(8, func() error {
			fd := systemOpen(t, name, syscall.O_RDWR, 0)
			return sysFtruncate(fd, objectPage)
		})
		if wins != 1 {
			t.Fatalf("%d have set the size", wins)
		}
	}
}

func TestSystemRounding(t *testing.T) {
	_, fd := systemNew(t, 1)
	st := systemStat(t, fd)
	if st.size%int64(os.Getpagesize()) != 0 || st.size > objectPage {
		t.Errorf("size 1 is rounded to %d", st.size)
	}
	mem := systemMmap(t, fd, int(st.size), true)
	mem[st.size-1] = 1 // there
	_, fd = systemNew(t, objectPage)
	if st := systemStat(t, fd); st.size != objectPage {
		t.Errorf("%d is rounded to %d", objectPage, st.size)
	}
}

func TestSystemMmap(t *testing.T) {
	name, fd := systemNew(t, 2*objectPage)
	mem := systemMmap(t, fd, 2*objectPage, true)
	for i, b := range mem {
		if b != 0 {
			t.Fatalf("byte %d is %d", i, b)
		}
	}
	_, err := sysMmap(fd, 2*objectPage+1, true)
	mustBe(t, "mapping beyond the end", err, syscall.EINVAL)
	reader := systemOpen(t, name, syscall.O_RDONLY, 0)
	_, err = sysMmap(reader, objectPage, true)
	mustBe(t, "mapping to write what is open to read", err, syscall.EPERM)
	view := systemMmap(t, reader, objectPage, false)
	if err := sysProtect(view); err == nil {
		t.Error("what is open to read was made writable")
	}
	half := systemMmap(t, fd, 2*objectPage, false)
	mustBe(t, "making one page writable", sysProtect(half[:objectPage]), nil)
	copy(half, "seen by all")
	if string(view[:11]) != "seen by all" || string(mem[:11]) != "seen by all" {
		t.Errorf("%q, %q", view[:11], mem[:11])
	}
}

// TestSystemUnlink: the name goes at once, the memory with its last user, and
// without users it stays as long as the name.
func TestSystemUnlink(t *testing.T) {
	name := systemName(t)
	fd, err := sysShmOpen(name, systemCreate, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	mustBe(t, "size", sysFtruncate(fd, objectPage), nil)
	mem, err := sysMmap(fd, objectPage, true)
	if err != nil {
		t.Fatal(err)
	}
	copy(mem, "stays")
	sysMunmap(mem)
	sysClose(fd)

	fd = systemOpen(t, name, syscall.O_RDWR, 0)
	view := systemMmap(t, fd, objectPage, true)
	if string(view[:5]) != "stays" {
		t.Errorf("%q after nobody had used it", view[:5])
	}
	mustBe(t, "unlink", sysShmUnlink(name), nil)
	_, err = sysShmOpen(name, syscall.O_RDWR, 0)
	mustBe(t, "open after unlink", err, syscall.ENOENT)
	mustBe(t, "unlink after unlink", sysShmUnlink(name), syscall.ENOENT)
	if st := systemStat(t, fd); st.size != objectPage || string(view[:5]) != "stays" {
		t.Errorf("%+v, %q after unlink", st, view[:5])
	}
	other := systemOpen(t, name, systemCreate, 0o600)
	mustBe(t, "size of the next", sysFtruncate(other, objectPage), nil)
	if fresh := systemMmap(t, other, objectPage, true); fresh[0] != 0 {
		t.Errorf("%q in the next object of the name", fresh[:5])
	}
}

// TestSystemStartTime: a process has a start time that exec does not change,
// and none once it has ended, waited for or not.
func TestSystemStartTime(t *testing.T) {
	me, err := sysStartTime(os.Getpid())
	again, err2 := sysStartTime(os.Getpid())
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
	sh, err := sysStartTime(cmd.Process.Pid)
	io.WriteString(stdin, "to cat\nfrom cat\n")
	if line, err := lines.ReadString('\n'); line != "from cat\n" {
		t.Fatalf("cat: %q, %v", line, err)
	}
	cat, err2 := sysStartTime(cmd.Process.Pid)
	if err != nil || err2 != nil || sh != cat || sh < me {
		t.Errorf("%d, %v before exec; %d, %v after; my own %d", sh, err, cat, err2, me)
	}
	if newToken(cmd.Process.Pid, sh)>>startBits != uint64(cmd.Process.Pid) {
		t.Errorf("process id %d does not fit", cmd.Process.Pid)
	}
	cmd.Process.Kill()
	for end := time.Now().Add(10 * time.Second); !errors.Is(err, syscall.ESRCH); {
		if _, err = sysStartTime(cmd.Process.Pid); time.Now().After(end) {
			t.Fatalf("killed: %v", err)
		}
	}
	if err := syscall.Kill(cmd.Process.Pid, 0); err != nil {
		t.Errorf("kill thinks that a process not waited for is gone: %v", err)
	}
	cmd.Wait()
	_, err = sysStartTime(cmd.Process.Pid)
	mustBe(t, "waited for", err, syscall.ESRCH)

	if _, err := sysStartTime(1); err != nil {
		t.Errorf("of another user's process: %v", err)
	}
}
