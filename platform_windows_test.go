package shm_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/raw"
)

// section makes or opens a section by the calls of CPython's SharedMemory
// (_winapi.CreateFileMapping and mmap.mmap with a tagname), and so of nobody who
// knows of this package, and returns a view of it for the time of the test.
func section(t *testing.T, name string, size int) []byte {
	t.Helper()
	p, err := windows.UTF16PtrFromString(name)
	if err != nil {
		t.Fatal(err)
	}
	h, err := windows.CreateFileMapping(windows.InvalidHandle, nil, windows.PAGE_READWRITE, 0, uint32(size), p)
	if h == 0 {
		t.Fatal(err)
	}
	t.Cleanup(func() { windows.CloseHandle(h) })
	addr, err := windows.MapViewOfFile(h, windows.FILE_MAP_WRITE, 0, 0, uintptr(size))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { windows.UnmapViewOfFile(addr) })
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&addr)), size)
}

// TestForeignSection attaches to what others made, and others to ours.
func TestForeignSection(t *testing.T) {
	name := unique(t)
	theirs := section(t, name, 5000)
	copy(theirs, "from outside")
	_, err := shm.Open(name)
	mustFail(t, err, name, shm.ErrNotSegment)
	_, err = shm.Create(name, 10)
	mustFail(t, err, name, fs.ErrExist)
	_, err = shm.Create(name, 10, shm.Headerless())
	mustFail(t, err, name, fs.ErrExist)
	for _, opts := range [][]shm.Option{{shm.Headerless()}, {shm.Headerless(), shm.ReadOnly()}} {
		seg := attach(t, name, opts...)
		if seg.Size() != 8192 || string(seg.Bytes()[:12]) != "from outside" {
			t.Errorf("size %d, read %q", seg.Size(), seg.Bytes()[:12])
		}
		mustFail(t, seg.Unlink(), name, errors.ErrUnsupported)
	}
	info, err := shm.Stat(name)
	if err != nil || !info.Headerless || info.Size != 8192 {
		t.Errorf("Stat: %+v, %v", info, err)
	}

	ours := block(t, 5000, shm.Headerless())
	copy(ours.Bytes(), "from inside")
	if seen := section(t, ours.Name(), 5000); string(seen[:11]) != "from inside" {
		t.Errorf("read %q", seen[:11])
	}
	if slice := theirs[:len("from outside")]; string(slice) != "from outside" {
		t.Errorf("written into somebody else's section: %q", slice)
	}
}

// TestPython shares blocks with CPython itself, where there is one: on Windows,
// as no Python for Windows is to be had for the Wine of the gate.
func TestPython(t *testing.T) {
	const program = `
import sys
from multiprocessing.shared_memory import SharedMemory
theirs = SharedMemory(name=sys.argv[1])
theirs.buf[5:11] = bytes(theirs.buf[:5]) + b"!"
ours = SharedMemory(name=sys.argv[2], create=True, size=5000)
ours.buf[:6] = b"Python"
print(theirs.size, ours.size, flush=True)
sys.stdin.readline()
ours.close()
theirs.close()
`
	python, err := exec.LookPath(cmp.Or(os.Getenv("SHM_PYTHON"), "python"))
	if err != nil || exec.Command(python, "-c", "import multiprocessing.shared_memory").Run() != nil {
		if os.Getenv("SHM_PYTHON") != "" {
			t.Fatal(err)
		}
		t.Skip("no Python")
	}
	seg, name := block(t, 5000, shm.Headerless()), unique(t)
	copy(seg.Bytes(), "hello")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, python, "-c", program, seg.Name(), name)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	theirs := attach(t, name, shm.Headerless())
	// Who made a block is told the size that it asked for.
	if want := fmt.Sprint(seg.Size(), " 5000"); strings.TrimSpace(line) != want || seg.Size() != 8192 || theirs.Size() != 8192 {
		t.Errorf("Python says %q, want %q; Go says %d and %d", line, want, seg.Size(), theirs.Size())
	}
	if got := string(seg.Bytes()[5:11]); got != "hello!" {
		t.Errorf("read %q", got)
	}
	if got := string(theirs.Bytes()[:6]); got != "Python" {
		t.Errorf("read %q", got)
	}
	theirs.Close()
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	mustNotExist(t, name)
}

// TestNameOfMutex meets names that are something else's.
func TestNameOfMutex(t *testing.T) {
	name := unique(t)
	p, _ := windows.UTF16PtrFromString(name)
	h, err := windows.CreateMutex(nil, false, p)
	if err != nil {
		t.Fatal(err)
	}
	defer windows.CloseHandle(h)
	_, err = shm.Open(name)
	mustFail(t, err, name, shm.ErrNotSegment)
	_, err = shm.Create(name, 10)
	mustFail(t, err, name, fs.ErrExist)
	_, err = shm.Stat(name)
	mustFail(t, err, name, shm.ErrNotSegment)
	mustFail(t, shm.Unlink(name), name, shm.ErrNotSegment)
}

// TestNewborn meets a block whose creator has come as far as to its size: as long
// as it lives its block may be about to be born.
func TestNewborn(t *testing.T) {
	shm.SetPatience(t, 50*time.Millisecond)
	name := unique(t)
	p, _ := windows.UTF16PtrFromString(name + "!life")
	life, err := windows.CreateEvent(nil, 0, 0, p)
	if err != nil {
		t.Fatal(err)
	}
	view := section(t, name, 8192)
	for _, opts := range [][]shm.Option{nil, {shm.ReadOnly()}, {shm.Headerless()}} {
		start := time.Now()
		_, err = shm.Open(name, opts...)
		mustFail(t, err, name, shm.ErrNotSegment)
		if time.Since(start) < 50*time.Millisecond {
			t.Errorf("Open(%v) has not waited", opts)
		}
	}
	_, err = shm.Create(name, 1)
	mustFail(t, err, name, fs.ErrExist)
	if !bytes.Equal(view, make([]byte, 8192)) {
		t.Error("written to")
	}
	// Its birth, while others wait for it.
	shm.SetPatience(t, time.Minute)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			seg, err := shm.Open(name)
			if err != nil {
				t.Error(err)
				return
			}
			if seg.Cap() != 10 {
				t.Errorf("cap %d", seg.Cap())
			}
			seg.Close()
		})
	}
	born := section(t, block(t, 10).Name(), 8192)
	const mark = 4096 - 32
	copy(view[:mark], born)
	copy(view[mark:], born[mark:4096])
	all.Wait()
	windows.CloseHandle(life)
}

// TestGenerations unlinks blocks that stay in use, until there is no room for
// one more, and takes them away in any order.
func TestGenerations(t *testing.T) {
	shm.SetPatience(t, 50*time.Millisecond)
	name := unique(t)
	var old []*shm.Segment
	for i := range 8 {
		seg, err := shm.Create(name, int64(i+1))
		if err != nil {
			t.Fatal(err)
		}
		defer seg.Close()
		_, err = shm.Create(name, 1)
		mustFail(t, err, name, fs.ErrExist)
		if peer := attach(t, name, shm.ReadOnly()); peer.Cap() != int64(i+1) {
			t.Fatalf("attached to block %d, not %d", peer.Cap(), i+1)
		} else {
			peer.Close()
		}
		if err := seg.Unlink(); err != nil {
			t.Fatal(err)
		}
		mustNotExist(t, name)
		old = append(old, seg)
		if i == 0 { // one without header has no other name than its own
			_, err := shm.Create(name, 1, shm.Headerless())
			mustFail(t, err, name, fs.ErrExist)
		}
	}
	_, err := shm.Create(name, 1)
	mustFail(t, err, name, fs.ErrExist)
	for _, i := range rand.Perm(8) {
		old[i].Close()
		next, err := shm.Create(name, 100)
		if err != nil {
			t.Fatal(err)
		}
		list, err := shm.List()
		n := 0
		for _, info := range list {
			if info.Name == name && info.Cap == 100 {
				n++
			} else if strings.HasPrefix(info.Name, name) {
				t.Errorf("listed: %+v", info)
			}
		}
		if err != nil || n != 1 {
			t.Errorf("listed %d times, %v", n, err)
		}
		next.Close()
		mustNotExist(t, name)
	}
}

// TestWriteToReadOnly writes to memory that is mapped without permission.
func TestWriteToReadOnly(t *testing.T) {
	seg := block(t, 10000)
	peer := attach(t, seg.Name(), shm.ReadOnly())
	err := peer.View(func(b []byte) error { b[9000] = 1; return nil })
	mustFail(t, err, seg.Name(), shm.ErrFault)
	if n, err := peer.ReadAt(make([]byte, 10), 9995); n != 5 {
		t.Error(n, err)
	}
}

// onWine reports whether this is Wine, which is not Windows in all.
func onWine() bool {
	return windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version").Find() == nil
}

// TestReserved meets a section of another program's that has no memory behind any
// of its pages. Wine gives it memory.
func TestReserved(t *testing.T) {
	const secReserve = 0x4000000
	name := unique(t)
	p, _ := windows.UTF16PtrFromString(name)
	h, err := windows.CreateFileMapping(windows.InvalidHandle, nil, windows.PAGE_READWRITE|secReserve, 0, 1<<20, p)
	if err != nil {
		t.Fatal(err)
	}
	defer windows.CloseHandle(h)
	_, err = shm.Open(name)
	mustFail(t, err, name, shm.ErrNotSegment)
	seg := attach(t, name, shm.Headerless(), shm.Prefault())
	for _, call := range []string{"ReadAt", "WriteAt", "WriteTo", "View"} {
		if err := calls[call](seg); err != nil || !onWine() {
			mustFail(t, err, name, shm.ErrFault)
		}
	}
}

// TestSectionOfFile meets a section of another program's that is a file, which
// this package does not map: who knows where the file is.
func TestSectionOfFile(t *testing.T) {
	disk, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	name := unique(t)
	p, _ := windows.UTF16PtrFromString(name)
	h, err := windows.CreateFileMapping(windows.Handle(disk.Fd()), nil, windows.PAGE_READWRITE, 0, 8192, p)
	if err != nil {
		t.Fatal(err)
	}
	defer windows.CloseHandle(h)
	for _, opts := range [][]shm.Option{nil, {shm.ReadOnly()}, {shm.Headerless()}} {
		_, err = shm.Open(name, opts...)
		mustFail(t, err, name, shm.ErrNotSegment)
	}
	_, err = shm.Stat(name)
	mustFail(t, err, name, shm.ErrNotSegment)
	_, err = shm.Create(name, 10)
	mustFail(t, err, name, fs.ErrExist)
	list, err := shm.List()
	if err != nil || slices.ContainsFunc(list, func(i shm.Info) bool { return i.Name == name }) {
		t.Errorf("listed: %v, %v", list, err)
	}
}

// TestAccess looks that all objects of a block are for this user, the
// administrators and the system, and for nobody else.
func TestAccess(t *testing.T) {
	seg := block(t, 10)
	name16 := func(suffix string) *uint16 {
		p, _ := windows.UTF16PtrFromString(seg.Name() + suffix)
		return p
	}
	mustBeOurs(t, "section", windows.Handle(file(t, seg).Fd()))
	mutex, err := windows.OpenMutex(windows.READ_CONTROL, false, name16("!mutex"))
	if err != nil {
		t.Fatal(err)
	}
	defer windows.CloseHandle(mutex)
	mustBeOurs(t, "mutex", mutex)
	life, err := windows.OpenEvent(windows.READ_CONTROL, false, name16("!life"))
	if err != nil {
		t.Fatal(err)
	}
	defer windows.CloseHandle(life)
	mustBeOurs(t, "event", life)
	wait(t, seg)
	for _, suffix := range []string{"!writers", "!wake0"} {
		event, err := windows.OpenEvent(windows.READ_CONTROL, false, name16(suffix))
		if err != nil {
			t.Fatal(suffix, err)
		}
		defer windows.CloseHandle(event)
		mustBeOurs(t, suffix, event)
	}
	mustBeOurs(t, "anonymous section", windows.Handle(file(t, anonymous(t, 10)).Fd()))
}

func mustBeOurs(t *testing.T, what string, h windows.Handle) {
	t.Helper()
	const information = windows.OWNER_SECURITY_INFORMATION | windows.DACL_SECURITY_INFORMATION
	sd, err := windows.GetSecurityInfo(h, windows.SE_KERNEL_OBJECT, information)
	if err != nil {
		t.Fatal(err)
	}
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		t.Fatal(err)
	}
	if owner, _, err := sd.Owner(); err != nil || !owner.Equals(user.User.Sid) {
		t.Errorf("%s: owner %v, %v", what, owner, err)
	}
	dacl, _, err := sd.DACL()
	if err != nil || dacl == nil {
		t.Fatalf("%s: no list of who may do what: %v, %v", what, sd, err)
	}
	var allowed []string
	for i := range uint32(dacl.AceCount) {
		var ace *windows.ACCESS_ALLOWED_ACE
		if err := windows.GetAce(dacl, i, &ace); err != nil {
			t.Fatal(err)
		}
		allowed = append(allowed, (*windows.SID)(unsafe.Pointer(&ace.SidStart)).String())
	}
	const system, administrators = "S-1-5-18", "S-1-5-32-544"
	if want := []string{system, administrators, user.User.Sid.String()}; !slices.Equal(allowed, want) {
		t.Errorf("%s: for %q, want %q", what, allowed, want)
	}
}

// wait has a call of seg wait, and be woken by another attachment.
func wait(t *testing.T, seg *shm.Segment) {
	t.Helper()
	peer := attach(t, seg.Name())
	var woken atomic.Bool
	result := begin(func() error { return seg.Wait(t.Context(), woken.Load) })
	asleep(t, seg, 1)
	for end := time.Now().Add(time.Minute); len(table(seg)) == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond) // it is just about to sleep
	}
	woken.Store(true)
	if err := errors.Join(peer.Notify(), <-result); err != nil {
		t.Error(err)
	}
	peer.Close()
}

// table returns the words of the processes that wait on the block: those that are not 0.
func table(seg *shm.Segment) (taken []int) {
	for i := range 64 {
		if raw.Uint32(shm.Header(seg), 512+4*i).Load() != 0 {
			taken = append(taken, i)
		}
	}
	return taken
}

// event creates the event of a process that waits on the block in place i, for the time of
// the test or until release. It fails if there is one.
func event(t *testing.T, seg *shm.Segment, i int) (release func()) {
	t.Helper()
	name, err := windows.UTF16PtrFromString(fmt.Sprintf("%s!wake%d", seg.Name(), i))
	if err != nil {
		t.Fatal(err)
	}
	h, err := windows.CreateEvent(nil, 0, 0, name)
	if err != nil {
		t.Fatal(i, err)
	}
	release = sync.OnceFunc(func() { windows.CloseHandle(h) })
	t.Cleanup(release)
	return release
}

// TestPlaces has processes take and release places in the table of those that wait.
func TestPlaces(t *testing.T) {
	seg := block(t, 100)
	mustBeTaken := func(what string, want ...int) {
		t.Helper()
		if got := table(seg); !slices.Equal(got, want) {
			t.Errorf("%s: %v are taken, want %v", what, got, want)
		}
	}
	mustBeTaken("nobody has waited")
	wait(t, seg)
	wait(t, seg)
	mustBeTaken("one process", 0)
	twin := attach(t, seg.Name())
	wait(t, twin)
	mustBeTaken("one process with two Segments", 0)

	a, b := newAgent(t), newAgent(t)
	for i, p := range []agent{a, b} {
		p.attach("open %s", seg.Name())
		p.Say("wait %d", 1)
		for end := time.Now().Add(time.Minute); len(table(seg)) < 2+i; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("does not wait")
			}
		}
	}
	mustBeTaken("three processes", 0, 1, 2)
	a.Kill()
	mustBeTaken("one is killed", 0, 1, 2)
	event(t, seg, 1) // nobody has it
	raw.Uint32(seg.Bytes(), 0).Store(1)
	if err := seg.Notify(); err != nil {
		t.Error(err)
	}
	b.Expect("seen")
	b.must("closed", "close")
	mustBeTaken("one is closed", 0, 1)
	event(t, seg, 2)

	name := seg.Name()
	seg.Close()
	seg = twin
	wait(t, seg)
	mustBeTaken("one of two Segments is closed", 0, 1)
	seg.Close()
	if _, err := shm.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestNoPlace has all places of a block taken: processes look, and wait for a place.
func TestNoPlace(t *testing.T) {
	seg := block(t, 100)
	var release func()
	for i := range 64 {
		release = event(t, seg, i)
	}
	wait(t, seg)
	if got := table(seg); got != nil {
		t.Errorf("place %v that another process has", got)
	}
	release()
	for end := time.Now().Add(time.Minute); table(seg) == nil; {
		if wait(t, seg); time.Now().After(end) {
			t.Fatal("takes no place that is free")
		}
	}
	if got := table(seg); !slices.Equal(got, []int{63}) {
		t.Errorf("place %v", got)
	}
}

// TestTooMuch asks for more memory than there is, or addresses.
func TestTooMuch(t *testing.T) {
	for _, size := range []int64{1 << 44, 1 << 46, 1 << 48, 1 << 62} {
		_, err := shm.Create("", size)
		mustFail(t, err, "", shm.ErrNoSpace)
	}
}

// TestHostileHeader writes over the header of a block that is in use, with the
// checksum of who knows how.
func TestHostileHeader(t *testing.T) {
	shm.SetPatience(t, time.Millisecond)
	random := rand.New(rand.NewPCG(3, 4))
	for i := range rounds(5000) {
		seg := block(t, 10000)
		header := section(t, seg.Name(), 4096)
		for range 1 + random.IntN(8) {
			at := random.IntN(320)
			if i%7 == 0 {
				at = 4064 + random.IntN(32)
			}
			header[at] = byte(random.Uint32())
		}
		if i%2 == 0 {
			binary.NativeEndian.PutUint32(header[60:], crc32.Checksum(header[:60], crc32.MakeTable(crc32.Castagnoli)))
		}
		everything(seg)
		for _, opts := range [][]shm.Option{nil, {shm.ReadOnly()}, {shm.Headerless(), shm.ReadOnly()}} {
			if peer, err := shm.Open(seg.Name(), opts...); err == nil {
				everything(peer)
				peer.Close()
			}
		}
		shm.Stat(seg.Name())
		if _, err := shm.Create(seg.Name(), 1); err == nil {
			t.Error("created over a block in use")
		}
		shm.Unlink(seg.Name())
		seg.Close()
	}
}

// TestListUnderLoad has blocks listed while they come and go: looking at a block
// keeps it no longer than anybody can tell.
func TestListUnderLoad(t *testing.T) {
	done := make(chan bool)
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					shm.List()
				}
			}
		})
	}
	name := unique(t)
	for i := range rounds(20_000) {
		seg, err := shm.Create(name, 10)
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if err := seg.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := shm.Open(name); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("round %d: %v", i, fmt.Sprint(err))
		}
	}
	close(done)
	all.Wait()
}
