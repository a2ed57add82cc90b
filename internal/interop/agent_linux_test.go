package interop_test

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
