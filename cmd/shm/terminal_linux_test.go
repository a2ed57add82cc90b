package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// signals is a program that prints "ready", and then the signals it gets until
// SIGTERM, which ends it with status 7.
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

// terminal is the side of the screen and the keys of a terminal.
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

// end waits for the end of the command and returns what else it has shown.
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
	}
}

// What is sent to run and hold reaches CMD, and does not end them.
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

// A key is one signal for CMD, which has it from the terminal.
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
