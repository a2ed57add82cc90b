//go:build linux || darwin

package manager

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// To free much memory takes long, and others do not wait for it.
func TestFreeing(t *testing.T) {
	for what, letGo := range map[string]func(*server, *client){
		"release": func(s *server, _ *client) { s.release("block") },
		"lease":   func(s *server, c *client) { s.leave(c) },
	} {
		t.Run(what, func(t *testing.T) {
			file, freed := longToClose(t)
			c := &client{conn: connected(t), owned: make(map[*block]bool)}
			s := &server{clients: map[*client]bool{c: true}, blocks: make(map[string]*block)}
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
					gone = s.blocks["block"] == nil
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
	c := &client{conn: connected(t), owned: make(map[*block]bool)}
	s := &server{ending: make(chan struct{}), clients: map[*client]bool{c: true}, blocks: make(map[string]*block)}
	if err := s.add(&block{info: Info{Name: "block", Cap: 1}, owner: c, file: file}); err != nil {
		t.Fatal(err)
	}
	stuck := make(chan bool)
	s.done.Go(func() { <-stuck })
	s.shutdown()
	if err := s.add(&block{info: Info{Name: "late", Cap: 1}, owner: c, file: file}); err == nil {
		t.Error("there is a new block")
	}
	if n, err := c.conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the connection goes on: %d, %v", n, err)
	}
	freed()
	close(stuck)
	s.done.Wait()
	c.conn.Close()
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

func connected(t *testing.T) *conn {
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
