package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// signals is a program that prints "ready" and then the signals it receives. On
// SIGTERM it exits with status 7.
func signals() {
	got := make(chan os.Signal, 10)
	signal.Notify(got, append(forwarded, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)...)
	fmt.Println("ready")
	for sig := range got {
		fmt.Println(sig)
		if sig == syscall.SIGTERM {
			os.Exit(7)
		}
	}
}

// terminal is the screen and the keyboard of a terminal.
type terminal struct {
	*os.File
	t     *testing.T
	shown bytes.Buffer
}

// startOn starts a command that has a new terminal as its controlling terminal,
// and as its standard input, output and error unless they are set.
func startOn(t *testing.T, cmd *exec.Cmd) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	conn, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number uint32
	conn.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetUint32(int(fd), unix.TIOCGPTN)
		}
		if err == nil {
			err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80})
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	if cmd.Stdin == nil {
		cmd.Stdin = slave
	}
	if cmd.Stdout == nil {
		cmd.Stdout = slave
	}
	if cmd.Stderr == nil {
		cmd.Stderr = slave
	}
	cmd.ExtraFiles = []*os.File{slave}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 3}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	master.SetReadDeadline(time.Now().Add(patience))
	return &terminal{File: master, t: t}
}

// await reads until the terminal has shown text, and returns what it has shown
// since the last call.
func (term *terminal) await(text string) string {
	term.t.Helper()
	for buf := make([]byte, 4<<10); ; {
		shown := term.shown.String()
		if at := strings.Index(shown, text); at >= 0 {
			term.shown.Next(at + len(text))
			return shown[:at+len(text)]
		}
		n, err := term.Read(buf)
		term.shown.Write(buf[:n])
		if err != nil {
			term.t.Fatalf("%v, and no %q in %q", err, text, &term.shown)
		}
	}
}

// end waits until the command exits and returns what else the terminal has shown.
func (term *terminal) end(cmd *exec.Cmd, status int) string {
	term.t.Helper()
	io.Copy(&term.shown, term.File) // EIO: it is closed on the other side
	cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != status {
		term.t.Fatalf("%v: %v, want status %d\n%s", cmd.Args, cmd.ProcessState, status, &term.shown)
	}
	return term.shown.String()
}

func runners(t *testing.T) map[string][]string {
	return map[string][]string{
		"run":  {"run", "--", "signals"},
		"hold": {"hold", newName(t), "--size", "4K", "--", "signals"},
		"lock": {"lock", newName(t), "--size", "4K", "--", "signals"},
	}
}

// Run, hold and lock forward signals to CMD and are not ended by them.
func TestForwardedSignals(t *testing.T) {
	skipWithoutManager(t)
	for name, args := range runners(t) {
		t.Run(name, func(t *testing.T) {
			cmd := command(t, "shm", args...)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // without a terminal
			p := startCommand(t, cmd)
			p.expect("ready")
			for _, sig := range append(forwarded, os.Interrupt, syscall.SIGHUP) {
				p.Process.Signal(sig)
				p.expect(sig.String())
			}
			p.Process.Signal(syscall.SIGTERM)
			p.expect("terminated")
			p.expectStatus(7)
		})
	}
}

// CMD gets one signal for a key, from the terminal.
func TestKeys(t *testing.T) {
	skipWithoutManager(t)
	for name, args := range runners(t) {
		t.Run(name, func(t *testing.T) {
			cmd := command(t, "shm", args...)
			term := startOn(t, cmd)
			term.await("ready\r\n")
			io.WriteString(term, "\x03")
			term.await("interrupt\r\n")
			io.WriteString(term, "\x1c")
			shown := term.await("quit\r\n")
			cmd.Process.Signal(syscall.SIGTERM)
			shown += term.end(cmd, 7)
			if strings.Contains(shown, "interrupt") || strings.Count(shown, "quit") != 1 {
				t.Errorf("CMD gets a key twice: %q", shown)
			}
		})
	}
}

// Binary data is not written to a terminal without --force; text is.
func TestGetOnTerminal(t *testing.T) {
	name := newName(t)
	for _, test := range []struct {
		data  string
		shown bool
	}{
		{"text\n", true},
		{"", true},
		{"\x1b[1mwörter\x1b[m\n", true},
		{strings.Repeat("ö", 40<<10)[1:], false},
		{"x" + strings.Repeat("ö", 40<<10), true}, // cut in the middle of an ö
		{"text\x00\n", false},
		{"\xff\n", false},
		{"ends within an \xc3", false},
	} {
		output(t, strings.NewReader(test.data), 0, "put", "--force", name)
		get := command(t, "shm", "get", name)
		want, status := strings.ReplaceAll(test.data, "\n", "\r\n"), 0
		if !test.shown {
			want, status = "shm: get "+name+": binary data is not for a terminal; use a file or a pipe, or --force\r\n", 1
		}
		if got := startOn(t, get).end(get, status); got != want {
			t.Errorf("get of %.20q shows %.200q", test.data, got)
		}
		get = command(t, "shm", "get", "--force", name)
		if got := startOn(t, get).end(get, 0); got != strings.ReplaceAll(test.data, "\n", "\r\n") {
			t.Errorf("get --force of %.20q shows %.200q", test.data, got)
		}
		if !strings.HasPrefix(test.data, "ends") { // more might have come
			get = command(t, "shm", "get", "--follow", name)
			if got := startOn(t, get).end(get, status); got != want {
				t.Errorf("get --follow of %.20q shows %.200q", test.data, got)
			}
		}
	}
}

// A long copy shows its progress; a short one shows nothing.
func TestProgress(t *testing.T) {
	name := newName(t)
	put := command(t, "shm", "put", name)
	in, err := put.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	term := startOn(t, put)
	if _, err := in.Write(make([]byte, 8<<20)); err != nil {
		t.Fatal(err)
	}
	term.await("put       8.00 MiB  ")
	in.Close()
	if got := term.end(put, 0); !strings.Contains(got, "100%") {
		t.Errorf("at the end put shows %q", got)
	}

	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	get := command(t, "shm", "get", name)
	get.Stdout = theirs
	term = startOn(t, get)
	theirs.Close()
	shown := term.await(" KiB  ")
	if !regexp.MustCompile(` +\d+%.*get +\d+ KiB  $`).MatchString(shown) {
		t.Errorf("get shows %q", shown)
	}
	if n, err := io.Copy(io.Discard, ours); n != 8<<20 || err != nil {
		t.Errorf("get writes %d bytes, %v", n, err)
	}
	if got := term.end(get, 0); !strings.Contains(got, "100%") || !strings.Contains(got, "get       8.00 MiB") {
		t.Errorf("at the end get shows %q", got)
	}

	// The reader of a pipe may use the terminal itself; a short copy shows nothing.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	get = command(t, "shm", "get", name)
	get.Stdout = w
	term = startOn(t, get)
	w.Close()
	io.Copy(io.Discard, r)
	if got := term.end(get, 0); got != "" {
		t.Errorf("into a pipe get shows %q", got)
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	get = command(t, "shm", "get", name)
	get.Stdout = file
	if got := startOn(t, get).end(get, 0); got != "" {
		t.Errorf("into a file get shows %q", got)
	}
}

// After Ctrl-C the prompt of the shell is on a line of its own.
func TestInterruptOnTerminal(t *testing.T) {
	name := newName(t)
	for _, args := range [][]string{
		{"hold", name, "--size", "4K"},
		{"serve", filepath.Join(t.TempDir(), "socket")},
		{"put", name, "--hold"},
	} {
		cmd := command(t, "shm", args...)
		if args[0] == "put" {
			cmd.Stdin = strings.NewReader("text")
		}
		term := startOn(t, cmd)
		term.await("ing " + args[1])
		term.await("\r\n")
		io.WriteString(term, "\x03")
		if got := term.end(cmd, 0); got != "^C\r\n" {
			t.Errorf("%v shows %q after Ctrl-C", args, got)
		}
	}
}

// screenOf returns the lines that out shows on a terminal of unlimited width.
func screenOf(t *testing.T, out string) []string {
	var lines [][]rune
	row, column := 0, 0
	for out != "" {
		if m := regexp.MustCompile(`^\x1b\[(\d*)([AKm])`).FindStringSubmatch(out); m != nil {
			switch out = out[len(m[0]):]; m[2] {
			case "A":
				row--
			case "K":
				lines[row] = lines[row][:min(column, len(lines[row]))]
			}
			continue
		}
		r := []rune(out)[0]
		out = out[len(string(r)):]
		switch r {
		case '\r':
			column = 0
		case '\n':
			row++
		default:
			for len(lines) <= row {
				lines = append(lines, nil)
			}
			for len(lines[row]) <= column {
				lines[row] = append(lines[row], ' ')
			}
			lines[row][column] = r
			column++
		}
	}
	var all []string
	for _, line := range lines {
		all = append(all, strings.TrimRight(string(line), " "))
	}
	return all
}

// After Ctrl-C the demo has one bar, and the prompt is on a line of its own.
func TestDemoInterruptedOnTerminal(t *testing.T) {
	skipUnsupported(t)
	demo := command(t, "shm", "demo", "-")
	in, err := demo.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	term := startOn(t, demo)
	if _, err := in.Write([]byte("some")); err != nil {
		t.Fatal(err)
	}
	shown := term.await("demo           4 B")
	io.WriteString(term, "\x03")
	lines := screenOf(t, shown+term.end(demo, 130)+"$ ")
	want := []string{"created", "reader 1", "reader 2", "reader 3", "reader 4", "demo", "^C", "$"}
	ok := len(lines) == len(want)
	for i := 0; ok && i < len(want); i++ {
		ok = strings.Contains(lines[i], want[i])
	}
	if !ok {
		t.Errorf("the screen is\n%s\nwant lines with %q", strings.Join(lines, "\n"), want)
	}
}

// Tab completes the names of blocks in bash without the package bash-completion.
func TestBashCompletion(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("no bash")
	}
	needsList(t)
	name := newName(t)
	output(t, strings.NewReader("text"), 0, "put", name)
	bash := command(t, "bash", "--norc", "--noprofile", "-i")
	term := startOn(t, bash)
	io.WriteString(term, "source <(shm completion bash); echo 'rea''dy'\n")
	term.await("ready\r\n")
	io.WriteString(term, "shm get "+name[:len(name)-8]+"\t")
	term.await(name)
	io.WriteString(term, "\n")
	term.await("text")
	io.WriteString(term, "exit\n")
	term.end(bash, 0)
}

// confined is shm with a /dev/shm of its own, as large as its first argument says.
// It exits with status 99 if this user cannot mount one.
func confined() {
	size := "size=" + os.Args[1]
	os.Args = append([]string{"shm"}, os.Args[2:]...) // which the demo starts again
	if err := unix.Mount("shm", "/dev/shm", "tmpfs", 0, size); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(99)
	}
	main()
}

// confine runs shm with a /dev/shm of that size and returns its standard error.
func confine(t *testing.T, size string, in io.Reader, status int, args ...string) string {
	t.Helper()
	needsList(t) // or the stand-in for another system has its blocks elsewhere
	cmd := command(t, "confined", append([]string{size}, args...)...)
	cmd.Stdin = in
	var stderr strings.Builder
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if uid, gid := os.Getuid(), os.Getgid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
		cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN}
	}
	err := cmd.Run()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() == 99 {
		t.Skipf("this user cannot mount a /dev/shm (%v): run as root", err)
	}
	if cmd.ProcessState.ExitCode() != status {
		t.Errorf("%v: %v, want status %d\n%s", args, err, status, &stderr)
	}
	return stderr.String()
}

// The demo without arguments fits into the /dev/shm of a container.
func TestDemoInContainer(t *testing.T) {
	confine(t, "64m", nil, 0, "demo")
}

// If /dev/shm is too small, the error says how much is free and how to enlarge it.
func TestNoSpace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	const enlarge = `to enlarge it: mount -o remount,size=SIZE /dev/shm, or docker run --shm-size=SIZE\n$`
	for _, test := range []struct {
		in   io.Reader
		args []string
		want string
	}{
		{file, []string{"put", "block"}, `^shm: create block: no space for shared memory: \d+ bytes wanted, \d+ free in .*; ` + enlarge},
		{nil, []string{"hold", "block", "--size", "1MiB"}, `^shm: open block: no space for shared memory: \d+ bytes wanted, \d+ free in .*; ` + enlarge},
		{nil, []string{"demo"}, `^shm: create: no space for shared memory: \d+ bytes wanted, \d+ free in .*; ` + enlarge},
		{io.LimitReader(rand.Reader, 2<<20), []string{"put", "block"}, `^shm: write block: no memory left for shared memory; ` + enlarge},
		{nil, []string{"hold", "block", "--size", "8000000000000000000"}, `^shm: open block: no space for shared memory: .*\n$`},
	} {
		got := confine(t, "1m", test.in, 1, test.args...)
		if !regexp.MustCompile(test.want).MatchString(got) {
			t.Errorf("%v: %q", test.args, got)
		}
	}
}

// Ctrl-C in the second act of the demo, which a stopped reader keeps from ending.
func TestDemoInterruptedLater(t *testing.T) {
	demo, name, _ := startDemo(t)
	demo.in.Close()
	pid := 0
	for pid == 0 {
		fmt.Sscanf(demo.hear(), "reader 1 (process %d) attached", &pid)
	}
	reader, err := os.FindProcess(pid)
	if err == nil {
		err = reader.Signal(syscall.SIGSTOP)
	}
	if err != nil {
		t.Fatal(err)
	}
	demo.Process.Signal(os.Interrupt)
	demo.expectStatus(130)
	wantGone(t, name)
	wantGone(t, name+"-2")
}

// A killed put leaves a stale block, which reap removes.
func TestReapKilledPut(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script")
	const text = `set -e
mkfifo "$0-in"
shm put killed <"$0-in" &
put=$!
exec 3>"$0-in"
printf some >&3
shm wait killed --size 4
shm stat killed | grep '^state  *attached$'
kill -KILL $put
shm wait killed --gone
shm ls | grep '^killed  *4 B .* stale '
shm reap | grep '^killed$'
test "$(shm ls -q)" = other
`
	if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	confine(t, "1m", nil, 0, "hold", "other", "--size", "4K", "--", "sh", script)
}
