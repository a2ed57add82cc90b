package manager_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/manager"
)

func knock(t testing.TB, addr string) net.Conn {
	t.Helper()
	conn, err := manager.Knock(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

const hello = `{"version":2}` + "\n"

// hangsUp checks that the server answers with the line and ends the connection.
func hangsUp(t testing.TB, conn net.Conn, line string) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	got, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, errReset) { // with bytes it has not read
		t.Error(err)
	}
	if string(got) != hello+line {
		t.Errorf("answer %q, want %q", got, hello+line)
	}
}

// answers checks that the server answers with the lines and goes on.
func answers(t testing.TB, conn net.Conn, lines string) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	got := make([]byte, len(hello+lines))
	if n, err := io.ReadFull(conn, got); err != nil || string(got) != hello+lines {
		t.Errorf("answer %q, %v, want %q", got[:n], err, hello+lines)
	}
}

// line reads one, and nothing behind it.
func line(t testing.TB, conn net.Conn) string {
	t.Helper()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	b := make([]byte, 1000)
	n, err := conn.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
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
		conn.Close()
		atWork(t, c)
	})
	t.Run("longest", func(t *testing.T) {
		conn := knock(t, addr)
		const request = `{"op":"list"`
		fmt.Fprintf(conn, "%s%*s\n", request, manager.MaxRequest-1-len(request), "}")
		answers(t, conn, "{}\n")
	})
	t.Run("unknown operation", func(t *testing.T) {
		conn := knock(t, addr)
		fmt.Fprintln(conn, `{"op":"explode","name":"a"}`)
		fmt.Fprintln(conn, `{"op":"list","unknown":[1]}`)
		answers(t, conn, `{"code":"invalid","error":"invalid argument: unknown operation"}`+"\n{}\n")
	})
	if got := names(t, c); len(got) != 0 {
		t.Errorf("list: %v", got)
	}
}

// A block takes memory of the server's, of the size that it has asked for.
func TestHostileCreate(t *testing.T) {
	addr, _ := serve(t, manager.Total(manager.Quota{Bytes: 1 << 20}))
	c := dial(t, addr)
	must(t)(c.Create("taken", 100))
	conn := knock(t, addr)
	answers(t, conn, "")
	left := watch(t, os.Getpid())
	const none = `{"code":"invalid","error":"invalid argument: no memory was asked for"}`
	memory := "{}"
	if runtime.GOOS == "windows" {
		memory = `{"section":"!`
	}
	for _, tt := range []struct{ request, answer string }{
		{`{"op":"create","name":"a","cap":100}`, none},
		{`{"op":"memory","name":"a","cap":100,"size":100}`, `{"code":"invalid","error":"invalid argument: 100 bytes for a Cap of 100"}`},
		{`{"op":"memory","name":"a","cap":100,"size":99}`, `{"code":"invalid"`},
		{`{"op":"memory","name":"a","cap":100,"size":1000000}`, `{"code":"invalid"`},
		{`{"op":"memory","name":"a","cap":-100,"size":100}`, `{"code":"invalid"`},
		{`{"op":"memory","name":"a","cap":100,"size":-9223372036854775808}`, `{"code":"invalid"`},
		{`{"op":"memory","name":"a","cap":-9223372036854775808,"size":9223372036854775807}`, `{"code":"invalid"`},
		{`{"op":"memory","name":"a","cap":9223372036854771711,"size":9223372036854775807}`, `{"code":"quota"`},
		{`{"op":"memory","name":"taken","cap":100,"size":200}`, `{"code":"exist"`},
		{`{"op":"memory","name":"../a","cap":100,"size":200}`, `{"code":"invalid"`},
		{`{"op":"memory"}`, `{"code":"invalid"`},
		{`{"op":"create","name":"a","cap":100}`, none},
		{`{"op":"memory","name":"a","cap":100,"size":200}`, memory},
		{`{"op":"create","name":"a","cap":1000}`, `{"code":"invalid","error":"invalid argument: 200 bytes for a Cap of 1000"}`},
		{`{"op":"create","name":"a","cap":100}`, none},
		{`{"op":"memory","name":"a","cap":100,"size":200}`, memory},
		{`{"op":"memory","name":"a","cap":200,"size":300}`, memory}, // in place of the other
		{`{"op":"create","name":"a","cap":100}`, `{}`},
		{`{"op":"create","name":"b","cap":100}`, none},
		{`{"op":"memory","name":"b","cap":200,"size":300}`, memory},
		{`{"op":"memory","name":"b"}`, `{}`}, // given back
		{`{"op":"create","name":"b","cap":200}`, none},
	} {
		if _, err := fmt.Fprintln(conn, tt.request); err != nil {
			t.Fatal(err)
		}
		if got := line(t, conn); !strings.HasPrefix(got, tt.answer) {
			t.Errorf("%s: %s, want %s", tt.request, got, tt.answer)
		}
	}
	if got := names(t, c); !slices.Equal(got, []string{"a", "taken"}) {
		t.Errorf("list: %v", got)
	}
	// Memory without a block in it is found out by those who open it.
	mustFail(t, second(c.Open("a")), "a", shm.ErrNotSegment)
	if err := c.Release("a"); err != nil {
		t.Error(err)
	}
	left("the block is released")
	atWork(t, c)
}

// A client that may only read gets no memory.
func TestReadAccessMemory(t *testing.T) {
	addr, _ := serve(t, manager.Authorize(func(manager.Peer) manager.Access { return manager.ReadAccess }))
	conn := knock(t, addr)
	fmt.Fprintln(conn, `{"op":"memory","name":"a","cap":100,"size":200}`)
	answers(t, conn, "")
	if got := line(t, conn); !strings.HasPrefix(got, `{"code":"permission"`) {
		t.Error(got)
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

// Thousands of connections are refused beyond the limit and disturb nobody.
func TestHostileConnections(t *testing.T) {
	addr, _ := serve(t, manager.MaxClients(50))
	c := dial(t, addr)
	refused := 0
	for i := range 2000 {
		conn, err := manager.Knock(addr)
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

// TestHostileServer has a client talk to something that is no server.
func TestHostileServer(t *testing.T) {
	manager.SetStall(t, 100*time.Millisecond)
	for what, answers := range map[string][]string{
		"nothing":        {},
		"no JSON":        {"SSH-2.0-OpenSSH\r\n"},
		"endless":        {strings.Repeat("x", 1<<20)},
		"other version":  {`{"version":3}` + "\n"},
		"no memory":      {hello, `{"name":"block"}` + "\n"},
		"a foreign name": {hello, `{"section":"Global\\x"}` + "\n"},
		"a missing name": {hello, `{"section":"!aaaaaaaaaaaaaaaaaaaaaaaaaa"}` + "\n"},
		"unknown error":  {hello, `{"code":"x","error":"y"}` + "\n"},
		"endless answer": {hello, strings.Repeat("x", 1<<20)},
		"half an answer": {hello, `{"name":`},
	} {
		t.Run(what, func(t *testing.T) {
			mustNotAttach(t, len(answers), func(conn net.Conn, i int) { conn.Write([]byte(answers[i])) })
		})
	}
}

// mustNotAttach checks that a client's Open gets an error from what is no server: it
// says n things, the second and all that follow as answers.
func mustNotAttach(t *testing.T, n int, say func(conn net.Conn, i int)) {
	t.Helper()
	mustNotAttachBy(t, n, say, func(c *manager.Client) error { return second(c.Open("block")) })
}

func mustNotAttachBy(t *testing.T, n int, say func(conn net.Conn, i int), attach func(*manager.Client) error) {
	t.Helper()
	addr := address(t)
	l := listen(t, addr)
	defer l.Close()
	var serving sync.WaitGroup
	defer serving.Wait()
	serving.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		for i := range n {
			if i > 0 {
				conn.Read(make([]byte, 1000))
			}
			say(conn, i)
		}
	})
	c, err := manager.Dial(t.Context(), addr)
	if err == nil {
		defer c.Close()
		err = attach(c)
	}
	if err == nil {
		t.Fatal("attached")
	}
	t.Log(err)
}
