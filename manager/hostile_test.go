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
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/manager"
)

// knock connects to a server without any manners.
func knock(t testing.TB, addr string) *net.UnixConn {
	t.Helper()
	conn, err := net.Dial("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.UnixConn)
}

const hello = `{"version":1}` + "\n"

// hangsUp checks that the server answers with the line and ends the connection.
func hangsUp(t testing.TB, conn net.Conn, line string) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	got, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) { // with bytes it has not read
		t.Error(err)
	}
	if string(got) != hello+line {
		t.Errorf("answer %q, want %q", got, hello+line)
	}
}

const badRequest = `{"code":"invalid","error":"invalid argument: bad request"}` + "\n"

// atWork checks that the server serves.
func atWork(t testing.TB, c *manager.Client) {
	t.Helper()
	seg, err := c.Create("at-work", 4096)
	if err != nil {
		t.Fatal(err)
	}
	write(t, seg, "work")
	peer, err := c.Open("at-work")
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, peer, 4); got != "work" {
		t.Errorf("holds %q", got)
	}
	if err := errors.Join(seg.Close(), peer.Close(), c.Release("at-work")); err != nil {
		t.Error(err)
	}
}

func TestHostileRequests(t *testing.T) {
	addr, _ := serve(t)
	c := dial(t, addr)
	long := `{"op":"list","name":"` + strings.Repeat("a", manager.MaxRequest) + `"}` + "\n"
	for what, data := range map[string]string{
		"no JSON":       "GET / HTTP/1.1\r\n\r\n",
		"zeros":         string(make([]byte, 100)) + "\n",
		"empty line":    "\n",
		"two values":    `{"op":"list"} {"op":"list"}` + "\n",
		"array":         "[]\n",
		"types":         `{"op":7}` + "\n",
		"cap too large": `{"op":"create","cap":9223372036854775808}` + "\n",
		"too long":      long,
		"endless":       strings.Repeat("x", 10*manager.MaxRequest),
		"deep":          strings.Repeat("[", manager.MaxRequest-1) + "\n",
	} {
		t.Run(what, func(t *testing.T) {
			conn := knock(t, addr)
			conn.Write([]byte(data))
			hangsUp(t, conn, badRequest)
			atWork(t, c)
		})
	}
	t.Run("half a request", func(t *testing.T) {
		conn := knock(t, addr)
		conn.Write([]byte(`{"op":"li`))
		conn.CloseWrite()
		hangsUp(t, conn, "")
	})
	t.Run("longest", func(t *testing.T) {
		conn := knock(t, addr)
		const request = `{"op":"list"`
		fmt.Fprintf(conn, "%s%*s\n", request, manager.MaxRequest-1-len(request), "}")
		conn.CloseWrite()
		hangsUp(t, conn, "{}\n")
	})
	t.Run("unknown operation", func(t *testing.T) {
		conn := knock(t, addr)
		fmt.Fprintln(conn, `{"op":"explode","name":"a"}`)
		fmt.Fprintln(conn, `{"op":"list","unknown":[1]}`)
		conn.CloseWrite()
		hangsUp(t, conn, `{"code":"invalid","error":"invalid argument: unknown operation"}`+"\n{}\n")
	})
	if got := names(t, c); len(got) != 0 {
		t.Errorf("list: %v", got)
	}
}

// A client that begins a request and does not end it is dropped. One that has
// nothing to say is not.
func TestHostileSlow(t *testing.T) {
	manager.SetStall(t, 100*time.Millisecond)
	addr, _ := serve(t)
	c := dial(t, addr)
	slow := knock(t, addr)
	slow.Write([]byte(`{"op":`))
	atWork(t, c)
	hangsUp(t, slow, "")
	atWork(t, c)
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
		deaf := knock(t, addr)
		deaf.SetWriteDeadline(time.Now().Add(30 * time.Second))
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
		most := 20
		if runtime.GOOS == "darwin" { // where the bytes alone count
			most = 4096 / len("{}\n")
		}
		if n := bytes.Count(underWay, []byte("{}")); n == 0 || n > most {
			t.Errorf("%d descriptors under way", n)
		}
		atWork(t, c)
		deaf.Close()
	}
	eventually(t, "all descriptors are back", func() bool { return ownDescriptors(t) <= before })
	seg.Close()
}

// memory returns what a client sends to create a block.
func memory(t testing.TB, size int64, opts ...shm.Option) *os.File {
	t.Helper()
	seg := must(t)(shm.Anonymous(size, opts...))
	f, err := seg.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// What a client gives out as the memory of a block must be memory.
func TestHostileCreate(t *testing.T) {
	addr, _ := serve(t)
	c := dial(t, addr)
	conn := knock(t, addr)
	if _, err := io.ReadFull(conn, make([]byte, len(hello))); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	disk, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	disk.Truncate(4096 + 100)
	good := memory(t, 100)
	before := ownDescriptors(t)
	for _, tt := range []struct {
		what string
		f    *os.File
		cap  string
	}{
		{"nothing", nil, "100"},
		{"a pipe", r, "100"},
		{"a file", disk, "100"},
		{"the socket", must2(conn.File()), "100"},
		{"no capacity", good, "0"},
		{"negative capacity", good, "-9223372036854775808"},
		{"more than there is", good, "50000"},
		{"far more than there is", good, "9223372036854775807"},
	} {
		var oob []byte
		if tt.f != nil {
			oob = syscall.UnixRights(int(tt.f.Fd()))
		}
		if _, _, err := conn.WriteMsgUnix([]byte(`{"op":"create","name":"a","cap":`+tt.cap+"}\n"), oob, nil); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 1000)
		n, err := conn.Read(answer)
		if err != nil || !bytes.HasPrefix(answer[:n], []byte(`{"code":"invalid"`)) {
			t.Errorf("%s: %s, %v", tt.what, answer[:n], err)
		}
		if tt.what == "the socket" {
			tt.f.Close()
		}
	}
	if after := ownDescriptors(t); after >= before+1 {
		t.Errorf("%d descriptors, before %d", after, before)
	}
	if got := names(t, c); len(got) != 0 {
		t.Errorf("list: %v", got)
	}
	// Memory that is none of this package's is found out by those who open it.
	large := memory(t, 1<<20, shm.Sparse())
	spoil(t, large)
	conn.WriteMsgUnix([]byte(`{"op":"create","name":"a","cap":1048576}`+"\n"), syscall.UnixRights(int(large.Fd())), nil)
	if _, err := io.ReadFull(conn, make([]byte, len("{}\n"))); err != nil {
		t.Fatal(err)
	}
	mustFail(t, second(c.Open("a")), "a", shm.ErrNotSegment)
	atWork(t, c)
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

func must2(f *os.File, err error) *os.File {
	if err != nil {
		panic(err)
	}
	return f
}

// Thousands of connections are refused beyond the limit and disturb nobody.
func TestHostileConnections(t *testing.T) {
	addr, _ := serve(t, manager.MaxClients(50))
	c := dial(t, addr)
	refused := 0
	for i := range 2000 {
		conn, err := net.Dial("unix", addr)
		if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ECONNREFUSED) { // the server has not come to accept the last ones
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if i%100 == 0 {
			atWork(t, c)
		}
		if i >= 100 {
			answer, err := io.ReadAll(conn)
			if err != nil || !bytes.HasPrefix(answer, []byte(`{"code":"quota"`)) {
				t.Fatalf("connection %d: %q, %v", i, answer, err)
			}
			refused++
		}
	}
	if refused == 0 {
		t.Error("none refused")
	}
}

// Whatever a client does to the memory, the server and other clients go on.
func TestHostileMemory(t *testing.T) {
	addr, _ := serve(t)
	c := dial(t, addr)
	seg := must(t)(c.Create("block", 4096))
	f, err := seg.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
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

// TestHostileServer has a client talk to something that is no server.
func TestHostileServer(t *testing.T) {
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
		"nothing":         {},
		"silence":         {{text: ""}},
		"no JSON":         {{text: "SSH-2.0-OpenSSH\r\n"}},
		"endless":         {{text: strings.Repeat("x", 1<<20)}},
		"other version":   {{text: `{"version":2}` + "\n"}},
		"with descriptor": {{text: hello, fds: fds[:1]}, {text: opened}},
		"no descriptor":   {{text: hello}, {text: opened}},
		"a pipe":          {{text: hello}, {text: opened, fds: fds[:1]}},
		"many":            {{text: hello}, {text: opened, fds: fds}},
		"too many":        {{text: hello}, {text: opened, fds: []int{fds[0], fds[1], fds[0], fds[1]}}},
		"error with one":  {{text: hello}, {text: `{"code":"exist"}` + "\n", fds: fds[:1]}},
		"unknown error":   {{text: hello}, {text: `{"code":"x","error":"y"}` + "\n"}},
		"endless answer":  {{text: hello}, {text: strings.Repeat("x", 1<<20)}},
		"half an answer":  {{text: hello}, {text: `{"name":`, fds: fds[:1]}},
	} {
		t.Run(what, func(t *testing.T) {
			addr := address(t)
			l, err := net.Listen("unix", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			done := make(chan bool)
			go func() {
				defer close(done)
				conn, err := l.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				for i, a := range answers {
					if i > 0 {
						conn.Read(make([]byte, 1000))
					}
					var oob []byte
					if a.fds != nil {
						oob = syscall.UnixRights(a.fds...)
					}
					conn.(*net.UnixConn).WriteMsgUnix([]byte(a.text), oob, nil)
					if a.text == "" {
						conn.Read(make([]byte, 1))
					}
				}
			}()
			c, err := manager.Dial(t.Context(), addr)
			if err == nil {
				seg, openErr := c.Open("block")
				if err = openErr; err == nil {
					seg.Close()
				}
				c.Close()
			}
			if err == nil {
				t.Error("attached")
			} else {
				t.Log(err)
			}
			<-done
		})
	}
	eventually(t, "all descriptors are closed", func() bool { return ownDescriptors(t) <= before })
}

// FuzzRequest sends bytes to a server as a client, and looks that it survives.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		`{"op":"create","name":"a","cap":100}` + "\n" + `{"op":"open","name":"a"}` + "\n",
		`{"op":"create","name":"a","cap":100,"lease":true}` + "\n" + `{"op":"list"}` + "\n",
		`{"op":"create","name":"b","cap":100}` + "\n" + `{"op":"open","name":"b","read_only":true}` + "\n" + `{"op":"release","name":"b"}` + "\n",
		`{"op":"create","name":"c","cap":9223372036854775807}` + "\n" + `{"op":"list","name":"a"}` + "\n",
		`{"op":"create"` + "\n" + `{"op":"release","name":"../x"}` + "\n{}\n[]\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		addr, stop := serve(t, manager.Total(manager.Quota{Blocks: 10, Bytes: 1 << 20}))
		conn := knock(t, addr)
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		memory := memory(t, 100, shm.Sparse())
		sent := make(chan bool)
		go func() {
			defer close(sent)
			for line := range bytes.Lines(data) { // each with a descriptor
				conn.WriteMsgUnix(line, syscall.UnixRights(int(memory.Fd())), nil)
			}
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
				seg, err := c.Open(info.Name)
				if err != nil {
					t.Fatal(err)
				}
				seg.Close()
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
