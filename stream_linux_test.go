package shm_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
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

// TestSignals sends signals to all threads all the time, which interrupt every
// system call that can be; fallocate(2) is one of them on older kernels.
func TestSignals(t *testing.T) {
	onTmpfs(t)
	if !limited(t) {
		return
	}
	got := make(chan os.Signal, 1)
	signal.Notify(got, syscall.SIGUSR1)
	c := proctest.Start(t, stormProgram, strconv.Itoa(os.Getpid()))
	c.Expect("ready")
	<-got
	const size = 64 << 20
	for range 2 {
		seg, err := shm.Create("", size)
		if err != nil {
			t.Fatal(err)
		}
		var st syscall.Stat_t
		if err := syscall.Stat(shmPath(seg.Name()), &st); err != nil || st.Blocks*512 < size {
			t.Errorf("%d bytes are reserved, %v", st.Blocks*512, err)
		}
		seg.Truncate(0)
		data := noise(8 << 20)
		if n, err := seg.ReadFrom(sources["pipe"](t, data)); n != int64(len(data)) || err != nil {
			t.Errorf("ReadFrom: %d, %v", n, err)
		}
		seg.Seek(0, io.SeekStart)
		w, arrived := sinks["pipe"](t)
		if n, err := seg.WriteTo(w); n != int64(len(data)) || err != nil {
			t.Errorf("WriteTo: %d, %v", n, err)
		}
		if !bytes.Equal(arrived(), data) {
			t.Error("other bytes arrived")
		}
		attach(t, seg.Name()).Close()
		seg.Close()
		mustBeFree(t, seg.Name())
	}
	c.Kill()
	signal.Stop(got)
}

// stormProgram sends signals to the threads of a process until it is killed.
var stormProgram = proctest.Register("storm", func(p *proctest.Parent) error {
	pid := int(number(p.Args[0]))
	p.Say("ready")
	for os.Getppid() == pid {
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return nil
		}
		for range 100 {
			for _, thread := range threads {
				unix.Tgkill(pid, int(number(thread.Name())), syscall.SIGUSR1)
			}
			time.Sleep(20 * time.Microsecond) // a storm, not a standstill
		}
	}
	return nil
})

// TestNoConnection streams from and to connections that are none.
func TestNoConnection(t *testing.T) {
	onTmpfs(t)
	seg := block(t, 10)
	var file *os.File
	for _, c := range []io.ReadWriter{&net.UnixConn{}, &net.TCPConn{}, file} {
		if _, err := seg.ReadFrom(c); err == nil {
			t.Errorf("ReadFrom(%T): no error", c)
		}
		if _, err := seg.WriteTo(c); err == nil {
			t.Errorf("WriteTo(%T): no error", c)
		}
		seg.Seek(0, io.SeekStart)
	}
}

// shrinkProgram cuts an object off and extends it until it is killed.
var shrinkProgram = proctest.Register("shrink", func(p *proctest.Parent) error {
	file, err := os.OpenFile(shmPath(p.Args[0]), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	header := make([]byte, headerEnd)
	if _, err := file.ReadAt(header, 0); err != nil {
		return err
	}
	p.Say("ready")
	p.Hear()
	for os.Getppid() != 1 {
		file.Truncate(rand.Int64N(info.Size()))
		file.WriteAt(header, 0)
		file.Truncate(info.Size())
		file.WriteAt(header, 0)
	}
	return nil
})

// TestCutWhileStreaming has another process cut the object off and extend it
// again, all the time.
func TestCutWhileStreaming(t *testing.T) {
	onTmpfs(t)
	shm.SetPatience(t, time.Millisecond)
	const capacity = 1 << 20
	seg := block(t, capacity)
	name := seg.Name()
	t.Cleanup(func() { os.Remove(shmPath(name)) })
	in, err := os.Create(filepath.Join(t.TempDir(), "in"))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	data := noise(capacity)
	in.Write(data)
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c := proctest.Start(t, shrinkProgram, name)
	c.Expect("ready")
	c.Say("go")
	faults := 0
	mine := []error{shm.ErrFull, fs.ErrInvalid, shm.ErrBusy, shm.ErrFinished, shm.ErrTruncated} // ErrBusy: Size changes all the time
	check := func(what string, n int64, err error) {
		t.Helper()
		if errors.Is(err, shm.ErrFault) {
			faults++
		} else if err != nil && err != io.EOF && !slices.ContainsFunc(mine, func(e error) bool { return errors.Is(err, e) }) {
			t.Errorf("%s: %d, %v", what, n, err)
		}
		if n < 0 || n > capacity {
			t.Errorf("%s: %d bytes", what, n)
		}
	}
	for i := 0; i < rounds(100) || faults == 0; i++ {
		seg.Seek(0, io.SeekStart)
		n, err := seg.ReadFrom(bytes.NewReader(data))
		check("ReadFrom", n, err)
		seg.Seek(0, io.SeekStart)
		in.Seek(0, io.SeekStart)
		n, err = seg.ReadFrom(in)
		check("ReadFrom(file)", n, err)
		seg.Seek(0, io.SeekStart)
		n, err = seg.WriteTo(io.Discard)
		check("WriteTo", n, err)
		seg.Seek(0, io.SeekStart)
		out.Seek(0, io.SeekStart)
		n, err = seg.WriteTo(out)
		check("WriteTo(file)", n, err)
		check("Truncate", 0, seg.Truncate(100))
		check("View", 0, seg.View(func(b []byte) error {
			clear(b[:cap(b)])
			return nil
		}))
		everything(seg)
		if peer, err := shm.Open(name); err == nil {
			everything(peer)
			peer.Close()
		}
	}
	c.Kill()
	if err := seg.Close(); err != nil {
		t.Error(err)
	}
	mustBeFree(t, name)
}

// TestLongSelfCopy moves a part of a block over itself, into parts that have not
// been written to before.
func TestLongSelfCopy(t *testing.T) {
	onTmpfs(t)
	const to, n = 300_000, 400_000
	seg, data := block(t, 1<<20), noise(to+n/2)
	seg.WriteAt(data, 0)
	want := append(data[:to:to], data[:n]...)
	seg.View(func(b []byte) error {
		if put, err := seg.WriteAt(b[:n], to); put != n || err != nil {
			t.Errorf("WriteAt: %d, %v", put, err)
		}
		return nil
	})
	if !bytes.Equal(content(t, seg)[:to+n], want) {
		t.Error("it is not what was there before")
	}
}

// TestCutLong writes much to a block that has lost its end: what there is room
// for is written, and the object does not grow again.
func TestCutLong(t *testing.T) {
	onTmpfs(t)
	const left = 100_000
	seg, data := block(t, 1<<20), noise(500_000)
	head := os.Getpagesize()
	if err := os.Truncate(shmPath(seg.Name()), int64(head+left)); err != nil {
		t.Fatal(err)
	}
	if n, err := seg.WriteAt(data, 0); n != left || !errors.Is(err, shm.ErrFault) {
		t.Errorf("WriteAt: %d, %v", n, err)
	}
	got, err := os.ReadFile(shmPath(seg.Name()))
	if err != nil || !bytes.Equal(got[head:], data[:left]) {
		t.Errorf("the object has %d bytes of data, %v", len(got)-head, err)
	}
}
