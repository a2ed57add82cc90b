package shm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
)

// kept returns the descriptors and mappings that this process has of a block.
func kept(t testing.TB, name string) (list []string) {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, shmPath(name)) {
			list = append(list, strings.TrimSpace(line))
		}
	}
	descriptors, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range descriptors {
		if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, shmPath(name)) {
			list = append(list, fd+" "+target)
		}
	}
	return list
}

type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

type writeFunc func(p []byte) (int, error)

func (f writeFunc) Write(p []byte) (int, error) { return f(p) }

// TestCallbacks has functions, Readers and Writers of the program's own do what
// they can to keep a Segment from being closed, or from being used further.
func TestCallbacks(t *testing.T) {
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
			if list := kept(t, seg.Name()); len(list) > 0 {
				t.Errorf("kept after Close:\n%s", strings.Join(list, "\n"))
			}
			mustBeFree(t, seg.Name())
		})
	}
}

// TestFailureKeepsNothing has everything fail that takes a name.
func TestFailureKeepsNothing(t *testing.T) {
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
			for _, opts := range [][]shm.Option{nil, {shm.ReadOnly()}, {shm.Headerless()}, {shm.Headerless(), shm.ReadOnly()}, {shm.Persistent()}} {
				if err := tryOpen(name, opts...); err == nil && what != "foreign" {
					t.Errorf("Open %v: no error", opts)
				}
				plantAgain(t, name, content)
			}
			shm.Stat(name)
			shm.List()
			if list := kept(t, name); len(list) > 0 {
				t.Errorf("kept:\n%s", strings.Join(list, "\n"))
			}
			if err := tryCreate(name, 100); err != nil && !errors.Is(err, fs.ErrExist) {
				t.Errorf("Create: %v", err)
			}
			plantAgain(t, name, content)
			shm.Unlink(name)
			if list := kept(t, name); len(list) > 0 {
				t.Errorf("kept:\n%s", strings.Join(list, "\n"))
			}
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
	seg, other := block(t, 100), unique(t)
	if err := os.Link(shmPath(seg.Name()), shmPath(other)); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(shmPath(other))
	seg.Close()
	left, err := os.ReadFile(shmPath(other))
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("reaped by another process")
	}
	if err != nil || binary.NativeEndian.Uint32(left[64:]) != 2 {
		t.Errorf("state %v, %v", left[64:68], err)
	}
}

// TestBlockingDescriptors streams from and to descriptors that the other side
// keeps waiting in the kernel. Close must get the memory back all the same.
func TestBlockingDescriptors(t *testing.T) {
	t.Run("ReadFrom", func(t *testing.T) {
		for range rounds(200) {
			seg := block(t, 100)
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
			list := kept(t, seg.Name())
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
		if list := kept(t, seg.Name()); len(list) > 0 {
			t.Errorf("kept while the pipe is full:\n%s", strings.Join(list, "\n"))
		}
		r.Close()
		if err := <-done; err == nil {
			t.Error("WriteTo a pipe that nobody reads: no error")
		}
		w.Close()
	})
}
