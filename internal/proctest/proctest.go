// Package proctest runs functions of a test binary in processes of their own,
// so that tests of what happens between processes have real ones, to be killed.
//
// A test file registers a program and a test starts it:
//
//	var holder = proctest.Register("holder", func(p *proctest.Parent) error {
//		seg, err := shm.Open(p.Args[0])
//		...
//		p.Say("attached")
//		p.Hear() // until told, or until the parent is gone
//		return seg.Close()
//	})
//
//	c := proctest.Start(t, holder, name)
//	c.Expect("attached")
//	c.Kill()
//
// and its TestMain begins with proctest.Main() and ends with proctest.Verify.
// Parent and child talk in lines
// through pipes, never by waiting for a time to pass.
package proctest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shmkit/shm/shmtest"
)

const envProgram = "SHM_PROCTEST_PROGRAM"

// A Program is the name of a registered function.
type Program string

var programs = map[Program]func(*Parent) error{}

// Register makes f a program; it must be called while variables are initialised.
func Register(name string, f func(*Parent) error) Program {
	if programs[Program(name)] != nil {
		panic("proctest: two programs called " + name)
	}
	programs[Program(name)] = f
	return Program(name)
}

// Main runs the program that this process was started for, if it was, and does
// not return then. It exits with status 0 if the program returns no error.
func Main() {
	name := os.Getenv(envProgram)
	if name == "" {
		return
	}
	os.Unsetenv(envProgram)
	p := &Parent{Args: os.Args[1:], in: bufio.NewReader(os.Stdin)}
	if err := programs[Program(name)](p); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Verify returns exitCode, or 1 if that is 0 and the tests have left shared
// memory or goroutines behind, which it then says on os.Stderr.
func Verify(exitCode int, opts ...shmtest.Option) int {
	for _, err := range []error{shmtest.Find(opts...), goleak.Find()} {
		if exitCode == 0 && err != nil {
			fmt.Fprintln(os.Stderr, err)
			exitCode = 1
		}
	}
	return exitCode
}

// Parent is the test, as its child sees it.
type Parent struct {
	Args []string
	in   *bufio.Reader
}

// Say sends a line to the test.
func (p *Parent) Say(format string, args ...any) {
	fmt.Fprintf(os.Stdout, format+"\n", args...)
}

// Hear waits for a line from the test. It returns io.EOF, and so the child
// ends, when the test is gone.
func (p *Parent) Hear() (string, error) {
	line, err := p.in.ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

// Child is a started program.
type Child struct {
	*exec.Cmd
	t      testing.TB
	in     io.WriteCloser
	out    *bufio.Reader
	stderr strings.Builder
	ended  bool
}

// Command returns the command that runs p, to be changed before StartCommand.
func Command(p Program, args ...string) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), envProgram+"="+string(p))
	return cmd
}

// Start runs p. At the end of the test it is killed if it still runs.
func Start(t testing.TB, p Program, args ...string) *Child {
	t.Helper()
	return StartCommand(t, Command(p, args...))
}

// StartCommand is Start for a command from Command, perhaps with another
// command before it: its environment is what counts.
func StartCommand(t testing.TB, cmd *exec.Cmd) *Child {
	t.Helper()
	c := &Child{Cmd: cmd, t: t}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = &c.stderr
	c.in, c.out = stdin, bufio.NewReader(stdout)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !c.ended {
			c.Kill()
		}
	})
	return c
}

// Say sends a line to the child.
func (c *Child) Say(format string, args ...any) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.in, format+"\n", args...); err != nil {
		c.fatalf("telling the child: %v", err)
	}
}

// patience is how long a child may say nothing or not end before it is killed.
const patience = 3 * time.Minute

// Hear waits for a line from the child and fails the test if none comes.
func (c *Child) Hear() string {
	c.t.Helper()
	defer time.AfterFunc(patience, func() { c.Process.Kill() }).Stop()
	line, err := c.out.ReadString('\n')
	if err != nil {
		c.fatalf("waiting for a line from the child: %v", err)
	}
	return strings.TrimSuffix(line, "\n")
}

// Expect waits for a line from the child and fails the test if it is another.
func (c *Child) Expect(line string) {
	c.t.Helper()
	if got := c.Hear(); got != line {
		c.fatalf("child says %q, want %q", got, line)
	}
}

// Kill ends the child by SIGKILL and waits until it is gone.
func (c *Child) Kill() {
	c.t.Helper()
	c.Process.Signal(syscall.SIGKILL)
	c.ended = true
	c.in.Close() // a child of its own that it leaves must not read on, and keep stderr open
	c.Cmd.Wait()
}

// KillHear is Kill, and returns the lines that the child had said by then and
// that nobody has heard.
func (c *Child) KillHear() []string {
	c.t.Helper()
	c.Process.Signal(syscall.SIGKILL)
	rest, _ := io.ReadAll(c.out)
	c.ended = true
	c.Cmd.Wait()
	lines := strings.Split(string(rest), "\n")
	return lines[:len(lines)-1] // behind the last newline is nothing, or half a line
}

// Wait waits for the child to end and fails the test if it did not end well.
func (c *Child) Wait() {
	c.t.Helper()
	defer time.AfterFunc(patience, func() { c.Process.Kill() }).Stop()
	c.in.Close()
	rest, _ := io.ReadAll(c.out)
	c.ended = true
	if err := c.Cmd.Wait(); err != nil {
		c.t.Fatalf("child: %v\n%s%s", err, rest, c.stderr.String())
	}
}

func (c *Child) fatalf(format string, args ...any) {
	c.t.Helper()
	c.Kill()
	c.t.Fatalf(format+"\n%s", append(args, c.stderr.String())...)
}
