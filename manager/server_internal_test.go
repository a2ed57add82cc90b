//go:build linux || darwin

package manager

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// To free much memory takes long, and others do not wait for it.
func TestFreeing(t *testing.T) {
	for what, letGo := range map[string]func(*server, *client){
		"release": func(s *server, _ *client) { s.release("block") },
		"lease":   func(s *server, c *client) { s.leave(c) },
	} {
		t.Run(what, func(t *testing.T) {
			file, freed := longToClose(t)
			c := &client{conn: connected(t)}
			s := &server{clients: map[*client]bool{c: true}}
			if err := s.add(&block{info: Info{Name: "block", Cap: 1, Leased: true}, owner: c, file: file}); err != nil {
				t.Fatal(err)
			}
			done := make(chan bool)
			go func() {
				defer close(done)
				letGo(s, c)
			}()
			for gone, end := false, time.Now().Add(10*time.Second); !gone; runtime.Gosched() {
				if s.mu.TryLock() {
					gone = len(s.blocks) == 0
					s.mu.Unlock()
				} else if time.Now().After(end) {
					t.Error("the server stands still")
					break
				}
			}
			select {
			case <-done:
				t.Error("the memory is free already")
			default:
			}
			freed()
			<-done
			if s.used != (Quota{}) || c.used != (Quota{}) {
				t.Errorf("%+v and %+v are in use", s.used, c.used)
			}
		})
	}
}

// Serve does not wait for ever for a client, or for memory, when it ends.
func TestShutdownBounded(t *testing.T) {
	SetStall(t, 10*time.Millisecond)
	file, freed := longToClose(t)
	c := &client{conn: connected(t)}
	s := &server{ending: make(chan struct{}), clients: map[*client]bool{c: true}}
	if err := s.add(&block{info: Info{Name: "block", Cap: 1}, owner: c, file: file}); err != nil {
		t.Fatal(err)
	}
	stuck := make(chan bool)
	s.serving.Go(func() { <-stuck })
	s.shutdown()
	if err := s.add(&block{info: Info{Name: "late", Cap: 1}, owner: c, file: file}); err == nil {
		t.Error("there is a new block")
	}
	if n, err := c.conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the connection goes on: %d, %v", n, err)
	}
	freed()
	close(stuck)
	s.serving.Wait()
	c.conn.Close()
}

// Serve ends in time with many blocks, too.
func TestShutdownOfMany(t *testing.T) {
	const n = 200_000
	c := &client{conn: connected(t)}
	s := &server{ending: make(chan struct{}), clients: map[*client]bool{c: true}}
	for i := range n {
		if err := s.add(&block{info: Info{Name: fmt.Sprintf("%06d", i), Cap: 1, Leased: i%2 == 0}, owner: c}); err != nil {
			t.Fatal(err)
		}
	}
	late := time.AfterFunc(stall, func() { t.Error("it has not ended in time") })
	defer late.Stop()
	s.leave(c)
	if s.used.Blocks != n/2 {
		t.Errorf("%d blocks are left", s.used.Blocks)
	}
	s.shutdown()
	if s.used != (Quota{}) {
		t.Errorf("%+v are in use", s.used)
	}
}

// Descriptors that reach a server all the same are closed and end the connection.
func TestDescriptorsReachServer(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		conn, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ends[i] = conn.(*net.UnixConn)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s := &socket{UnixConn: ends[0], server: true, oob: make([]byte, oobSize), fd: -1}
	if _, _, err := ends[1].WriteMsgUnix([]byte("x"), unix.UnixRights(int(w.Fd())), nil); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, errRights) {
		t.Errorf("Read: %v", err)
	}
	r.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the descriptor is open: %v", err)
	}
}

// Of several that lock an address, whose file each holder removes, one has it.
func TestLockExcludes(t *testing.T) {
	addr := filepath.Join(t.TempDir(), "socket")
	var holders atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 500 {
				unlock, err := lock(addr, time.Minute)
				if err != nil {
					t.Error(err)
					return
				}
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d have it", n)
				}
				runtime.Gosched()
				holders.Add(-1)
				unlock()
			}
		})
	}
	all.Wait()
}

// longToClose returns a file whose Close waits until freed is called.
func longToClose(t *testing.T) (f *os.File, freed func()) {
	t.Helper()
	f, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	used, free, done := make(chan bool), make(chan bool), make(chan bool)
	go func() {
		defer close(done)
		raw.Control(func(uintptr) { // for whose end Close waits
			close(used)
			<-free
		})
	}()
	<-used
	return f, func() {
		close(free)
		<-done
	}
}

func connected(t *testing.T) conn {
	t.Helper()
	dir, err := os.MkdirTemp("", "") // short enough for a socket in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	addr := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := dialOnce(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// bare returns the connection without what a client does with descriptors.
func (s *socket) bare() net.Conn { return s.UnixConn }
