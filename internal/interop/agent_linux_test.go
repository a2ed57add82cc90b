package interop_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/internal/pytest"
)

func TestMain(m *testing.M) {
	proctest.Main()
	os.Exit(proctest.Verify(m.Run()))
}

// agent is a process, of either language, that does what it is told.
type agent struct {
	*proctest.Child
	t testing.TB
}

func (a agent) do(format string, args ...any) string {
	a.t.Helper()
	a.Say(format, args...)
	return a.Hear()
}

func (a agent) must(want, format string, args ...any) {
	a.t.Helper()
	if got := a.do(format, args...); got != want {
		a.t.Fatalf("%s: %q, want %q", fmt.Sprintf(format, args...), got, want)
	}
}

func newGo(t testing.TB) agent { return agent{proctest.Start(t, goAgent), t} }

func newPython(t testing.TB, py pytest.Interpreter) agent {
	cmd := py.Command(filepath.Join("testdata", "agent.py"))
	return agent{proctest.StartCommand(t, cmd), t}
}

// goAgent understands the same lines as testdata/agent.py.
var goAgent = proctest.Register("go", func(p *proctest.Parent) error {
	var seg *shm.Segment
	var follower *shm.Follower
	ctx := context.Background()
	for {
		line, err := p.Hear()
		if err != nil {
			return nil
		}
		words := append(strings.Fields(line), "", "")
		answer, err := "done", error(nil)
		switch name := words[1]; words[0] {
		case "create":
			seg, err = shm.Create(name, int64(number(words[2])), options(words[3])...)
		case "open":
			seg, err = shm.Open(name, options(words[2])...)
		case "close":
			err = seg.Close()
		case "unlink":
			err = shm.Unlink(name)
		case "write":
			_, err = seg.WriteAt([]byte(words[2]), int64(number(words[1])))
		case "read":
			b := make([]byte, number(words[2]))
			_, err = seg.ReadAt(b, int64(number(words[1])))
			answer = string(b)
		case "truncate":
			err = seg.Truncate(int64(number(words[1])))
		case "size":
			answer = fmt.Sprint(seg.Size())
		case "refs":
			answer = fmt.Sprint(seg.Refs())
		case "holders":
			answer = holders(info(seg))
		case "id":
			answer = fmt.Sprintf("%x", info(seg).ID)
		case "linked":
			answer = fmt.Sprint(info(seg).Linked)
		case "append":
			_, err = seg.WriteAt([]byte(words[1]), seg.Size())
		case "finish":
			err = seg.Finish()
		case "keep":
			err = seg.Keep()
		case "notify":
			err = seg.Notify()
		case "follow":
			follower = seg.Follow(ctx)
		case "next":
			b := make([]byte, number(words[1]))
			n, readErr := follower.Read(b)
			answer, err = string(b[:n]), readErr
		case "drain":
			answer, err = drain(follower)
		case "stream":
			for i := range number(words[1]) {
				if _, err = fmt.Fprintln(seg, i); err != nil {
					break
				}
			}
		case "lock":
			answer, err = locked(seg.Lock(ctx))
		case "trylock":
			answer, err = locked(seg.TryLock())
		case "unlock":
			err = seg.Unlock()
		case "wait":
			err = seg.Wait(ctx, func() bool { return strings.HasPrefix(string(seg.Bytes()), words[1]) })
		case "openwait":
			seg, err = shm.OpenWait(ctx, name)
		case "count":
			p.Say("counting")
			answer, err = count(seg, number(words[1]))
		case "churn":
			p.Say("churning")
			answer, err = churn(name, number(words[2]))
		case "cycle":
			out := bufio.NewWriterSize(os.Stdout, 0)
			for {
				if seg, err = shm.Open(name); err != nil {
					return err
				}
				if b := seg.Bytes(); string(b[:4]) != "kept" {
					return fmt.Errorf("read %q", b[:4])
				}
				seg.Close()
				fmt.Fprintln(out, "cycle")
				out.Flush()
			}
		}
		p.Say("%s", word(answer, err))
	}
})

func locked(recovered bool, err error) (string, error) {
	switch {
	case errors.Is(err, shm.ErrLocked):
		return "busy", nil
	case recovered:
		return "recovered", err
	}
	return "locked", err
}

// drain reads f to its end, and returns how many numbered lines there were, in order.
func drain(f *shm.Follower) (string, error) {
	n, lines := 0, bufio.NewScanner(f)
	for ; lines.Scan(); n++ {
		if lines.Text() != fmt.Sprint(n) {
			return "", fmt.Errorf("line %d is %q", n, lines.Text())
		}
	}
	return fmt.Sprint(n), lines.Err()
}

// count adds to the count in word slot and to the sum in word 0, with the lock, until
// word 2 is set. A holder that was killed may have added to its count alone. Any other
// difference is noted in word 1.
func count(seg *shm.Segment, slot int) (string, error) {
	b, ne, n := seg.Bytes(), binary.NativeEndian, 0
	load := func(i int) uint64 { return ne.Uint64(b[8*i:]) }
	for ; load(2) == 0; n++ {
		recovered, err := seg.Lock(context.Background())
		if err != nil {
			return "", err
		}
		total, counted := load(0), uint64(0)
		for i := 3; i < len(b)/8; i++ {
			counted += load(i)
		}
		if counted != total && (!recovered || counted != total+1) {
			ne.PutUint64(b[8:], 1)
		}
		ne.PutUint64(b[8*slot:], load(slot)+1)
		if counted%7 == 0 {
			runtime.Gosched()
		}
		ne.PutUint64(b, counted+1)
		if err := seg.Unlock(); err != nil {
			return "", err
		}
	}
	return fmt.Sprint(n), nil
}

// churn attaches to a block, or creates it, and detaches n times.
func churn(name string, n int) (string, error) {
	for range n {
		seg, _, err := shm.OpenOrCreate(name, 100)
		if err != nil {
			return "", err
		}
		if !info(seg).Linked {
			return "attached, and the name is gone", nil
		}
		twin, err := shm.Open(name)
		if err != nil {
			return "", err
		}
		if info(seg).ID != info(twin).ID {
			return "attached, and the name leads elsewhere", nil
		}
		twin.Close()
		seg.Close()
	}
	return "done", nil
}

// holders returns who is attached as the agents say it.
func holders(info *shm.Info) string {
	var words []string
	for _, h := range info.Holders {
		words = append(words, holder(h.PID, h.ReadOnly, h.Here, h.Gone))
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}

func holder(pid int, readOnly, here, gone bool) string {
	digit := map[bool]int{true: 1}
	return fmt.Sprintf("%d:%d:%d:%d", pid, digit[readOnly], digit[here], digit[gone])
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

func options(word string) []shm.Option {
	switch word {
	case "raw":
		return []shm.Option{shm.Headerless()}
	case "readonly":
		return []shm.Option{shm.ReadOnly()}
	}
	return nil
}

// word is what both agents answer.
func word(answer string, err error) string {
	switch {
	case err == nil:
		return answer
	case err == io.EOF:
		return "eof"
	case errors.Is(err, shm.ErrTruncated):
		return "truncated"
	case errors.Is(err, shm.ErrAbandoned):
		return "abandoned"
	case errors.Is(err, shm.ErrFinished):
		return "finished"
	case errors.Is(err, fs.ErrExist):
		return "exist"
	case errors.Is(err, fs.ErrNotExist):
		return "notexist"
	case errors.Is(err, fs.ErrPermission):
		return "permission"
	case errors.Is(err, fs.ErrInvalid):
		return "invalid"
	}
	return err.Error()
}

func info(seg *shm.Segment) *shm.Info {
	fi, err := seg.Stat()
	if err != nil {
		panic(err)
	}
	return fi.Sys().(*shm.Info)
}

var names atomic.Int64

// unique returns a name for one block of one test, which is gone at its end.
func unique(t testing.TB) string {
	name := fmt.Sprintf("test-python-%d-%d", os.Getpid(), names.Add(1))
	t.Cleanup(func() { shm.Unlink(name) })
	return name
}

func exists(t testing.TB, name string) bool {
	t.Helper()
	_, err := os.Stat("/dev/shm/" + name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func mustExist(t testing.TB, name string, want bool) {
	t.Helper()
	if got := exists(t, name); got != want {
		t.Fatalf("the name is there: %v, want %v", got, want)
	}
}
