package shm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
)

// holding returns a function that returns the descriptors and mappings that this
// process has of the file that has the name now. Only its number tells: one made
// by O_TMPFILE has another name in /proc.
func holding(t testing.TB, name string) (kept func() []string) {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(shmPath(name), &st); err != nil {
		t.Fatal(err)
	}
	return func() (list []string) {
		maps, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(maps)) {
			if fields := strings.Fields(line); fields[4] == fmt.Sprint(st.Ino) && strings.HasPrefix(fields[5], shmPath("")) {
				list = append(list, line)
			}
		}
		descriptors, err := filepath.Glob("/proc/self/fd/*")
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range descriptors {
			var other syscall.Stat_t
			if syscall.Stat(fd, &other) == nil && other.Dev == st.Dev && other.Ino == st.Ino {
				list = append(list, fd)
			}
		}
		return list
	}
}

func mustKeepNothing(t testing.TB, kept func() []string) {
	t.Helper()
	if list := kept(); len(list) > 0 {
		t.Errorf("still open or mapped:\n%s", strings.Join(list, "\n"))
	}
}

// TestCallbacks has functions, Readers and Writers of the program's own do what
// they can to keep a Segment from being closed, or from being used further.
func TestCallbacks(t *testing.T) {
	onTmpfs(t)
	page := os.Getpagesize()
	failure := errors.New("mine")
	for what, tt := range map[string]struct {
		f    func(seg *shm.Segment) error
		want error // nil if f ends by panic or Goexit
	}{
		"View panics": {func(seg *shm.Segment) error { return seg.View(func([]byte) error { panic(failure) }) }, nil},
		"View exits":  {func(seg *shm.Segment) error { return seg.View(func([]byte) error { runtime.Goexit(); return nil }) }, nil},
		"View is nil": {func(seg *shm.Segment) error { return seg.View(nil) }, nil},
		"View in View": {func(seg *shm.Segment) error {
			return seg.View(func(b []byte) error {
				return seg.View(func([]byte) error { b[0] = 1; return failure })
			})
		}, failure},
		"View closes and panics": {func(seg *shm.Segment) error {
			return seg.View(func([]byte) error { seg.Close(); panic(failure) })
		}, nil},
		"View faults": {func(seg *shm.Segment) error {
			return seg.View(func(b []byte) error {
				os.Truncate(shmPath(seg.Name()), int64(page))
				b[len(b)-1] = 1
				return nil
			})
		}, shm.ErrFault},
		"View faults in View of another": {func(seg *shm.Segment) error {
			other, err := shm.Create("", 100)
			if err != nil {
				return err
			}
			defer other.Close()
			return seg.View(func(b []byte) error {
				return other.View(func([]byte) error {
					os.Truncate(shmPath(seg.Name()), int64(page))
					b[len(b)-1] = 1
					return nil
				})
			})
		}, shm.ErrFault},
		"View streams, seeks, truncates": {func(seg *shm.Segment) error {
			return seg.View(func(b []byte) error {
				return errors.Join(seg.Truncate(0), second(seg.ReadFrom(strings.NewReader("x"))), second(seg.Seek(0, io.SeekStart)),
					second(seg.WriteTo(io.Discard)), seg.Unlink(), failure)
			})
		}, failure},
		"Reader panics": {func(seg *shm.Segment) error {
			return second(seg.ReadFrom(readFunc(func([]byte) (int, error) { panic(failure) })))
		}, nil},
		"Reader exits": {func(seg *shm.Segment) error {
			return second(seg.ReadFrom(readFunc(func([]byte) (int, error) { runtime.Goexit(); return 0, nil })))
		}, nil},
		"Reader closes": {func(seg *shm.Segment) error {
			return second(seg.ReadFrom(readFunc(func([]byte) (int, error) { return 1, seg.Close() })))
		}, fs.ErrClosed},
		"Reader reads, seeks, truncates": {func(seg *shm.Segment) error {
			return second(seg.ReadFrom(readFunc(func(p []byte) (int, error) {
				n, _ := seg.Read(p[:10])
				seg.Seek(0, io.SeekStart)
				return n, errors.Join(seg.Truncate(10), failure)
			})))
		}, failure},
		"Writer panics": {func(seg *shm.Segment) error {
			return second(seg.WriteTo(writeFunc(func([]byte) (int, error) { panic(failure) })))
		}, nil},
		"Writer closes": {func(seg *shm.Segment) error {
			return second(seg.WriteTo(writeFunc(func(p []byte) (int, error) { return len(p), seg.Close() })))
		}, fs.ErrClosed},
		"Writer writes, seeks, truncates": {func(seg *shm.Segment) error {
			return second(seg.WriteTo(writeFunc(func(p []byte) (int, error) {
				seg.Seek(0, io.SeekStart)
				return 0, errors.Join(second(seg.Write(p[:10])), seg.Truncate(10), failure)
			})))
		}, failure},
	} {
		t.Run(what, func(t *testing.T) {
			seg := block(t, int64(4*page))
			kept := holding(t, seg.Name())
			done := make(chan bool)
			go func() {
				defer close(done)
				ended := false
				defer func() {
					recover()
					if debug.SetPanicOnFault(false) {
						t.Error("faults of this goroutine would still be panics")
					}
					if ended != (tt.want != nil) {
						t.Errorf("came back: %v", ended)
					}
				}()
				if err := tt.f(seg); !errors.Is(err, tt.want) {
					t.Errorf("%v, want %v", err, tt.want)
				}
				ended = true
			}()
			<-done
			everything(seg)
			seg.Close()
			mustKeepNothing(t, kept)
			mustBeFree(t, seg.Name())
		})
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
		"dead": managed, "scribbled": scribbled,
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

// TestOneHolder has a goroutine unlink a block through a Segment while another
// one holds the mutex lane through it. For the kernel they are one, so it would
// let both in; the Segment must not.
func TestOneHolder(t *testing.T) {
	onTmpfs(t)
	seg := block(t, 100)
	release := shm.HoldMutex(t, seg)
	done := make(chan error, 1)
	go func() { done <- seg.Unlink() }()
	for range 1000 {
		select {
		case err := <-done:
			t.Fatalf("Unlink did not wait: %v", err)
		default:
			runtime.Gosched()
		}
	}
	mustStay(t, seg.Name())
	release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	seg.Close()
	mustBeFree(t, seg.Name())
}

// TestDeadMark has a second name lead to a block when the last one leaves it.
// What is left is marked, so that who has opened it, but not yet attached, does
// not take it for alive.
func TestDeadMark(t *testing.T) {
	onTmpfs(t)
	if !undisturbed(t) {
		return
	}
	seg, other := block(t, 100), unique(t)
	if err := os.Link(shmPath(seg.Name()), shmPath(other)); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(shmPath(other))
	seg.Close()
	left, err := os.ReadFile(shmPath(other))
	if err != nil || binary.NativeEndian.Uint32(left[64:]) != 2 {
		t.Errorf("state %v, %v", left[64:68], err)
	}
}

// TestBlockingDescriptors streams from and to descriptors that the other side
// keeps waiting in the kernel. Close must get the memory back all the same.
func TestBlockingDescriptors(t *testing.T) {
	onTmpfs(t)
	t.Run("ReadFrom", func(t *testing.T) {
		for range rounds(200) {
			seg := block(t, 100)
			kept := holding(t, seg.Name())
			seg.Truncate(0)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			r.Fd() // makes it blocking
			w.WriteString("x")
			done := make(chan error, 1)
			go func() { done <- second(seg.ReadFrom(r)) }()
			for seg.Size() == 0 {
				runtime.Gosched()
			}
			runtime.Gosched() // it goes on to read what is not there
			seg.Close()
			list := kept() // it may just be finding out that it would have to wait
			for end := time.Now().Add(10 * time.Second); len(list) > 0 && time.Now().Before(end); list = kept() {
				runtime.Gosched()
			}
			w.WriteString("x")
			w.Close()
			if err := <-done; !errors.Is(err, fs.ErrClosed) && err != nil {
				t.Errorf("ReadFrom: %v", err)
			}
			r.Close()
			if len(list) > 0 {
				t.Fatalf("kept while the pipe is silent:\n%s", strings.Join(list, "\n"))
			}
		}
	})
	t.Run("WriteTo", func(t *testing.T) {
		seg := block(t, 1<<20)
		kept := holding(t, seg.Name())
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		room, err := unix.FcntlInt(w.Fd(), unix.F_GETPIPE_SZ, 0) // Fd makes it blocking
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- second(seg.WriteTo(w)) }()
		for full := 0; full < room; {
			if full, err = unix.IoctlGetInt(int(r.Fd()), unix.TIOCINQ); err != nil {
				t.Fatal(err)
			}
		}
		seg.Close()
		mustKeepNothing(t, kept)
		r.Close()
		if err := <-done; err == nil {
			t.Error("WriteTo a pipe that nobody reads: no error")
		}
		w.Close()
	})
}

// TestWritesNothing streams to a descriptor of which write(2) says that it has
// taken no byte and that all is well, as a device driver can.
func TestWritesNothing(t *testing.T) {
	onTmpfs(t)
	if !limited(t) {
		return
	}
	seg := block(t, 100)
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	// seccomp(2) has each write to the file return 0 (an error number of 0).
	const nr, arg0 = 0, 16 // in struct seccomp_data, of a little-endian machine
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: nr},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_WRITE, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: arg0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(file.Fd()), Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Skip(err)
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, reflect.ValueOf(&program).Pointer(), 0, 0); err != nil {
		t.Skip(err)
	}
	if n, err := seg.WriteTo(file); n != 0 || err == nil {
		t.Errorf("WriteTo: %d, %v", n, err)
	}
}
