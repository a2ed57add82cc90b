package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/shmkit/shm"
)

func TestMain(m *testing.M) {
	// Under -race every process sleeps for a second before it exits by default, and
	// the tests start hundreds.
	os.Setenv("GORACE", strings.TrimSpace(os.Getenv("GORACE")+" atexit_sleep_ms=0"))
	testscript.Main(tests{m}, map[string]func(){"shm": main, "client": client, "signals": signals, "confined": confined}) // and puts them into PATH
}

type tests struct{ *testing.M }

// Run runs the tests. In the background of a shell SIGINT is ignored, and under nohup
// SIGHUP; the commands that the tests start would inherit that.
func (t tests) Run() int {
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGHUP} {
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
	return t.M.Run()
}

func TestScripts(t *testing.T) {
	skipUnsupported(t)
	testscript.Run(t, testscript.Params{
		Dir:                filepath.Join("testdata", "script"),
		RequireUniqueNames: true,
		Deadline:           time.Now().Add(3 * patience),
		Setup: func(env *testscript.Env) error {
			name := uniqueName()
			env.Setenv("NAME", name)
			for _, key := range []string{"GORACE", "SHM_STANDIN"} {
				env.Setenv(key, os.Getenv(key))
			}
			env.Defer(func() {
				if err := shm.Unlink(name); !errors.Is(err, fs.ErrNotExist) {
					env.T().Log("left by the script:", name, err)
				}
			})
			return nil
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "sh":
				return hasShell(), nil
			case "large":
				return strconv.IntSize == 64, nil
			case "lists":
				_, err := shm.List()
				return !errors.Is(err, errors.ErrUnsupported), nil
			case "stays":
				return staysPut(t), nil
			case "manager":
				return hasManager(t), nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"status": status},
	})
}

// hasShell reports whether there is a Unix shell. One on Windows would have other
// processes, paths and signals than the tests.
func hasShell() bool {
	_, err := exec.LookPath("sh")
	return err == nil && runtime.GOOS != "windows"
}

// staysPut reports whether the system has persistent blocks, as put creates them.
func staysPut(t *testing.T) bool {
	seg, err := shm.Create("", 1, shm.Persistent())
	if errors.Is(err, errors.ErrUnsupported) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	seg.Unlink()
	seg.Close()
	return true
}

// status runs a command and checks its exit status.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND [ARG...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("exit status %d, want %s", got, args[0])
	}
}

func TestStreamOfBinaryData(t *testing.T) {
	name := newName(t)
	needsToStay(t)
	data := make([]byte, 5<<20+123)
	rand.Read(data)
	// Through pipes, whose size is unknown.
	if out := output(t, bytes.NewReader(data), 0, "put", name); len(out) != 0 {
		t.Errorf("put prints %q", out)
	}
	if got := output(t, nil, 0, "get", name); !bytes.Equal(got, data) {
		t.Errorf("get returns %d bytes, and not the %d put", len(got), len(data))
	}
	// From a file, beginning at its offset.
	path := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.Seek(100, io.SeekStart)
	output(t, f, 0, "put", "--force", name)
	if got := output(t, nil, 0, "get", name); !bytes.Equal(got, data[100:]) {
		t.Errorf("get returns %d bytes, and not the %d put", len(got), len(data)-100)
	}
	output(t, nil, 0, "rm", name)
}

func TestForeignBlock(t *testing.T) {
	name := newName(t)
	seg, err := shm.Create(name, 5, shm.Headerless())
	if err != nil {
		t.Fatal(err)
	}
	defer seg.Close()
	size := seg.Size()
	io.WriteString(seg, "bytes")
	// Some systems round the size up.
	if got := output(t, nil, 0, "get", name); strings.TrimRight(string(got), "\x00") != "bytes" {
		t.Errorf("get returns %q", got)
	}
	if b := list(t)[name]; b != nil {
		t.Errorf("ls shows it: %+v", b)
	}
	b := list(t, "--all")[name]
	if b == nil || b.State != "raw" || !b.Headerless || b.Size != size || !b.Created.IsZero() {
		t.Errorf("ls --all shows %+v", b)
	}
}

func TestListJSON(t *testing.T) {
	name := newName(t)
	needsToStay(t)
	output(t, strings.NewReader("some"), 0, "put", "--size", "1MiB", "--perm", "0640", name)
	b := list(t)[name]
	if b == nil || b.Size != 4 || b.Cap != 1<<20 || b.Refs != 0 || b.State != "kept" || state(b.Info) != b.State || b.Octal != "0640" || len(b.Hex) != 32 {
		t.Errorf("ls --json shows %+v", b)
	}
	if b != nil && (b.Created.IsZero() || b.Creator == 0) {
		t.Errorf("created %v by %d", b.Created, b.Creator)
	}
}

func TestHoldUntilSignal(t *testing.T) {
	skipWithoutSignals(t)
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			name := newName(t)
			hold := start(t, "hold", name, "--size", "64KiB")
			hold.expect("holding " + name)
			if b := list(t)[name]; b == nil || b.Refs != 1 || b.State != "attached" || state(b.Info) != b.State {
				t.Errorf("held block: %+v", b)
			}
			hold.Process.Signal(sig)
			hold.expectStatus(0)
			wantGone(t, name)
		})
	}
}

// TestIgnoredSignals starts the command as nohup does, and as a shell starts a
// background job: SIGHUP and SIGINT stay ignored, also in what the command runs.
func TestIgnoredSignals(t *testing.T) {
	skipWithoutSignals(t)
	if !hasShell() {
		t.Skip("no shell")
	}
	const ignoring = `trap "" HUP INT; exec "$@"`
	name := newName(t)
	put := startCommand(t, command(t, "sh", "-c", ignoring, "sh", "shm", "put", name))
	put.write(make([]byte, 1<<20)) // more than a pipe holds: put has begun
	for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM} {
		put.Process.Signal(sig)
	}
	put.expectStatus(128 + int(syscall.SIGTERM))

	hold := startCommand(t, command(t, "sh", "-c", ignoring, "sh", "shm", "hold", name, "--size", "64KiB", "--",
		"sh", "-c", "kill -HUP $$; kill -INT $$; echo alive"))
	hold.expect("alive")
	hold.expectStatus(0)
}

func TestPutHold(t *testing.T) {
	name := newName(t)
	put := start(t, "put", "--hold", name)
	io.WriteString(put.in, "content")
	put.in.Close()
	put.expect("holding " + name)
	if got := output(t, nil, 0, "get", name); string(got) != "content" {
		t.Errorf("get returns %q", got)
	}
	put.interrupt()
	wantGone(t, name)
}

func TestPutInterrupted(t *testing.T) {
	skipWithoutSignals(t)
	name := newName(t)
	put := start(t, "put", name)
	// More than a pipe holds: put has begun to read, so the block is there.
	put.write(make([]byte, 1<<20))
	if _, err := shm.Stat(name); err != nil {
		t.Error(err)
	}
	put.Process.Signal(os.Interrupt)
	put.expectStatus(130)
	wantGone(t, name)
}

func TestBrokenPipe(t *testing.T) {
	name := newName(t)
	needsToStay(t)
	output(t, bytes.NewReader(make([]byte, 1<<20)), 0, "put", name)
	get := start(t, "get", name)
	if _, err := io.ReadFull(get.out, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	get.closeOut()
	get.expectStatus(128 + int(syscall.SIGPIPE))
	if get.stderr.Len() > 0 {
		t.Errorf("get says %q", &get.stderr)
	}
}

// A killed process leaves a stale block, which any process may remove.
func TestReap(t *testing.T) {
	name := newName(t)
	hold := start(t, "hold", name, "--size", "64KiB")
	hold.expect("holding " + name)
	hold.Process.Kill()
	hold.Wait()
	if _, err := shm.Open(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open of a stale block: %v", err)
	}
	needsList(t)
	// Reap skips a block that another process is reaping.
	for end := time.Now().Add(time.Minute); ; {
		var names []string
		out := output(t, nil, 0, "reap", "--json")
		if err := json.Unmarshal(out, &names); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		if _, err := shm.Stat(name); err != nil || time.Now().After(end) {
			break
		}
	}
	wantGone(t, name)
}

// listed is a block as ls --json shows it.
type listed struct {
	shm.Info
	State, Octal, Hex string
}

func (l *listed) UnmarshalJSON(data []byte) error {
	words := struct{ State, Mode, ID *string }{&l.State, &l.Octal, &l.Hex}
	return errors.Join(json.Unmarshal(data, &l.Info), json.Unmarshal(data, &words))
}

func list(t *testing.T, args ...string) map[string]*listed {
	t.Helper()
	needsList(t)
	var blocks []*listed
	out := output(t, nil, 0, append([]string{"ls", "--json"}, args...)...)
	if err := json.Unmarshal(out, &blocks); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	byName := map[string]*listed{}
	for _, b := range blocks {
		byName[b.Name] = b
	}
	return byName
}

func needsList(t *testing.T) {
	t.Helper()
	if _, err := shm.List(); errors.Is(err, errors.ErrUnsupported) {
		t.Skip("blocks cannot be listed on this system")
	}
}

func needsToStay(t *testing.T) {
	t.Helper()
	if !staysPut(t) {
		t.Skip("no blocks that stay on this system")
	}
}

func skipUnsupported(t *testing.T) {
	t.Helper()
	if _, err := shm.Stat("a"); errors.Is(err, errors.ErrUnsupported) {
		t.Skip("no shared memory on this system")
	}
}

func uniqueName() string { return "shmcmd-" + strings.ToLower(rand.Text()[:16]) }

// newName returns a name for a block, which is removed at the end of the test.
func newName(t *testing.T) string {
	t.Helper()
	skipUnsupported(t)
	name := uniqueName()
	t.Cleanup(func() { shm.Unlink(name) })
	return name
}

func wantGone(t *testing.T, name string) {
	t.Helper()
	if info, err := shm.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("block is still there: %+v, %v", info, err)
	}
}

// output runs shm and returns its standard output.
func output(t *testing.T, in io.Reader, status int, args ...string) []byte {
	t.Helper()
	cmd := command(t, "shm", args...)
	cmd.Stdin = in
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, _ := cmd.Output()
	if got := cmd.ProcessState.ExitCode(); got != status {
		t.Fatalf("shm %q: exit status %d, want %d\n%.4000s%s", args, got, status, out, &stderr)
	}
	return out
}

// patience is the limit for every wait of a test.
const patience = time.Minute

// command returns a command that is killed if it takes too long.
func command(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second // for those it has left behind with its output
	return cmd
}

// process is a running shm, which is killed at the end of the test.
type process struct {
	*exec.Cmd
	t        *testing.T
	in       io.WriteCloser
	out      *bufio.Reader
	closeOut func() error
	stderr   bytes.Buffer
	waited   sync.Once
}

// Wait is the Wait of exec.Cmd, except that further calls do nothing.
func (p *process) Wait() { p.waited.Do(func() { p.Cmd.Wait() }) }

func start(t *testing.T, args ...string) *process {
	t.Helper()
	return startCommand(t, command(t, "shm", args...))
}

func startCommand(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{Cmd: cmd, t: t}
	p.Stderr = &p.stderr
	in, err := p.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in, p.out, p.closeOut = in, bufio.NewReader(out), out.Close
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Process.Kill()
		p.Wait()
	})
	return p
}

func (p *process) write(data []byte) {
	p.t.Helper()
	if _, err := p.in.Write(data); err != nil {
		p.t.Fatal(err)
	}
}

// hear returns the next line of standard output.
func (p *process) hear() string {
	p.t.Helper()
	line, err := p.out.ReadString('\n')
	if err != nil {
		p.Process.Kill()
		p.Wait()
		p.t.Fatalf("%v: %v after %q\n%s", p.Args, err, line, &p.stderr)
	}
	return strings.TrimSuffix(line, "\n")
}

func (p *process) expect(line string) {
	p.t.Helper()
	if got := p.hear(); got != line {
		p.t.Fatalf("%v prints %q, want %q", p.Args, got, line)
	}
}

// interrupt ends a process that exits with status 0 on Ctrl-C. On Windows, where
// Ctrl-C cannot be sent to a single process, it kills the process.
func (p *process) interrupt() {
	p.t.Helper()
	if runtime.GOOS == "windows" {
		p.Process.Kill()
		p.Wait()
		return
	}
	p.Process.Signal(os.Interrupt)
	p.expectStatus(0)
}

// expectStatus waits until the process exits and returns its remaining output.
func (p *process) expectStatus(status int) string {
	p.t.Helper()
	rest, _ := io.ReadAll(p.out)
	p.Wait()
	if got := p.ProcessState.ExitCode(); got != status {
		p.t.Fatalf("%v: %v, want status %d\n%s%s", p.Args, p.ProcessState, status, rest, &p.stderr)
	}
	return string(rest)
}
