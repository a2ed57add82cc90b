//go:build linux || darwin

package manager_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/manager"
)

func knockUnix(t testing.TB, addr string) *net.UnixConn {
	t.Helper()
	conn, err := net.Dial("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.UnixConn)
}

// A client that does not read its responses is dropped, with the descriptors
// that are under way to it.
func TestHostileDeaf(t *testing.T) {
	manager.SetStall(t, 100*time.Millisecond)
	addr, _ := serve(t)
	c := dial(t, addr)
	seg := must(t)(c.Create("block", 4096))
	before := ownDescriptors(t)
	for range 10 {
		deaf := knockUnix(t, addr)
		deaf.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.ReadFull(deaf, make([]byte, len(hello))); err != nil {
			t.Fatal(err)
		}
		for {
			if _, err := fmt.Fprintln(deaf, `{"op":"open","name":"block"}`); err != nil {
				if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
					t.Error(err)
				}
				break
			}
		}
		// What is on its way to it is bounded, for the sake of others.
		underWay, _ := io.ReadAll(deaf)
		most := 1
		if runtime.GOOS == "darwin" { // where the bytes alone count
			most = 4096 / len("{}\n")
		}
		if n := bytes.Count(underWay, []byte("{}\n")); n == 0 || n > most {
			t.Errorf("%d descriptors under way", n)
		}
		atWork(t, c)
		deaf.Close()
	}
	eventually(t, "all descriptors are back", func() bool { return ownDescriptors(t) <= before })
	seg.Close()
}

// file returns a file of the Segment; the test closes it.
func file(t testing.TB, seg *shm.Segment) *os.File {
	t.Helper()
	f, err := seg.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// spoil makes memory that is a block none.
func spoil(t testing.TB, f *os.File) {
	t.Helper()
	mem, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	clear(mem[:8]) // the magic
	unix.Munmap(mem)
}

// Whatever a client does to the memory, the server and other clients go on.
func TestHostileMemory(t *testing.T) {
	addr, _ := serve(t)
	c := dial(t, addr)
	seg := must(t)(c.Create("block", 4096))
	f := file(t, seg)
	must(t)(c.Open("block")).Close()
	spoil(t, f)
	mustFail(t, second(c.Open("block")), "block", shm.ErrNotSegment)
	mustFail(t, second(dial(t, addr).Open("block")), "block", shm.ErrNotSegment)
	write(t, seg, "usable")
	if err := errors.Join(c.Release("block"), seg.Close()); err != nil {
		t.Error(err)
	}
	atWork(t, c)
}

// TestHostileServerFiles has a client talk to something that sends it files.
func TestHostileServerFiles(t *testing.T) {
	manager.SetStall(t, 100*time.Millisecond)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	fds := []int{int(r.Fd()), int(w.Fd())}
	const opened = `{"name":"block"}` + "\n"
	before := ownDescriptors(t)
	for what, answers := range map[string][]struct {
		text string
		fds  []int
	}{
		"with descriptor": {{text: hello, fds: fds[:1]}, {text: opened}},
		"a pipe":          {{text: hello}, {text: opened, fds: fds[:1]}},
		"many":            {{text: hello}, {text: opened, fds: fds}},
		"too many":        {{text: hello}, {text: opened, fds: []int{fds[0], fds[1], fds[0], fds[1]}}},
		"error with one":  {{text: hello}, {text: `{"code":"exist"}` + "\n", fds: fds[:1]}},
		"half an answer":  {{text: hello}, {text: `{"name":`, fds: fds[:1]}},
	} {
		t.Run(what, func(t *testing.T) {
			mustNotAttach(t, len(answers), func(conn net.Conn, i int) {
				conn.(*net.UnixConn).WriteMsgUnix([]byte(answers[i].text), syscall.UnixRights(answers[i].fds...), nil)
			})
		})
	}
	eventually(t, "all descriptors are closed", func() bool { return ownDescriptors(t) <= before })
}

func noBlocks(c *manager.Client) func() bool {
	return func() bool {
		list, err := c.List()
		return err == nil && len(list) == 0
	}
}

// FuzzRequest sends bytes to a server as a client, and looks that it survives.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		`{"op":"create","name":"a","cap":100}` + "\n" + `{"op":"open","name":"a"}` + "\n",
		`{"op":"memory","name":"a","cap":100,"size":4196}` + "\n" + `{"op":"create","name":"a","cap":100,"lease":true}` + "\n" + `{"op":"open","name":"a"}` + "\n",
		`{"op":"memory","name":"a","cap":100,"size":4196}` + "\n" + `{"op":"create","name":"a","cap":10}` + "\n" + `{"op":"memory","size":1}` + "\n" + `{"op":"memory"}` + "\n",
		`{"op":"create","name":"a","cap":100,"lease":true}` + "\n" + `{"op":"list"}` + "\n",
		`{"op":"create","name":"b","cap":100}` + "\n" + `{"op":"open","name":"b","read_only":true}` + "\n" + `{"op":"release","name":"b"}` + "\n",
		`{"op":"create","name":"c","cap":9223372036854775807}` + "\n" + `{"op":"list","name":"a"}` + "\n",
		`{"op":"create"` + "\n" + `{"op":"release","name":"../x"}` + "\n{}\n[]\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		addr, stop := serve(t, manager.Total(manager.Quota{Blocks: 10, Bytes: 1 << 20}))
		conn := knockUnix(t, addr)
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		sent := make(chan bool)
		go func() {
			defer close(sent)
			conn.Write(data)
			conn.CloseWrite()
		}()
		if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the server does not end the connection: %v", err)
		}
		conn.Close()
		<-sent
		c, err := manager.Dial(context.Background(), addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		list, err := c.List()
		if err != nil {
			t.Fatal(err)
		}
		var total int64
		for _, info := range list {
			total += info.Cap
			if info.Cap <= 0 || info.Name == "" {
				t.Errorf("block %+v", info)
			}
			if !info.Leased {
				if seg, err := c.Open(info.Name); err == nil {
					seg.Close()
				} else if !errors.Is(err, shm.ErrNotSegment) { // nobody has built a block in it
					t.Fatal(err)
				}
				if err := c.Release(info.Name); err != nil {
					t.Error(err)
				}
			}
		}
		if len(list) > 10 || total > 1<<20 {
			t.Errorf("%d blocks, %d bytes", len(list), total)
		}
		eventually(t, "nothing is left", noBlocks(c))
		atWork(t, c)
		c.Close()
		stop()
	})
}
