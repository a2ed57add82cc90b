package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/manager"
)

// client is a program that uses the manager in its environment: "client put NAME
// TEXT", "client get NAME", "client hold NAME", "client pass NAME TEXT", which puts
// and starts another client to get, and "client leave NAME", which starts another
// client to hold and exits.
func client() {
	time.AfterFunc(patience, func() { os.Exit(2) })
	if err := useManager(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}

func useManager(verb, name string, args []string) error {
	c, err := manager.Dial(context.Background(), "")
	if err != nil {
		return err
	}
	defer c.Close()
	if verb == "get" {
		seg, err := c.Open(name, shm.ReadOnly())
		if err != nil {
			return err
		}
		defer seg.Close()
		_, err = io.Copy(os.Stdout, seg)
		return err
	}
	if verb == "leave" {
		hold := exec.Command("client", "hold", name)
		hold.Stdin, hold.Stdout, hold.Stderr = os.Stdin, os.Stdout, os.Stderr
		if err := hold.Start(); err != nil {
			return err
		}
		for {
			if seg, err := c.Open(name); !errors.Is(err, fs.ErrNotExist) {
				return errors.Join(err, seg.Close())
			}
		}
	}
	seg, err := c.Create(name, 1<<20)
	if err != nil {
		return err
	}
	defer seg.Close()
	if err := seg.Truncate(0); err != nil {
		return err
	}
	if verb == "hold" {
		fmt.Println(os.Getenv(manager.Env))
		_, err = io.Copy(seg, os.Stdin)
		fmt.Println("held")
		return err
	}
	_, err = io.WriteString(seg, strings.Join(args, " "))
	if verb == "pass" {
		get := exec.Command("client", "get", name)
		get.Stdout, get.Stderr = os.Stdout, os.Stderr
		err = errors.Join(err, seg.Close(), get.Run())
	}
	return err
}

// address returns an address for a manager.
func address(t *testing.T) string {
	t.Helper()
	if runtime.GOOS == "windows" {
		return "@shm-test-" + rand.Text()
	}
	return filepath.Join(t.TempDir(), "socket")
}

func hasManager(t *testing.T) bool {
	t.Helper()
	l, err := manager.Listen(address(t))
	if errors.Is(err, errors.ErrUnsupported) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return true
}

func skipWithoutManager(t *testing.T) {
	t.Helper()
	if !hasManager(t) {
		t.Skip("no manager on this system")
	}
}

func skipWithoutSignals(t *testing.T) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("no signals on this system")
	}
}

func mustBeGone(t *testing.T, addr string) {
	t.Helper()
	c, err := manager.Dial(t.Context(), addr)
	if !errors.Is(err, manager.ErrGone) {
		t.Errorf("manager is still there: %v", err)
	}
	if err == nil {
		c.Close()
	}
}

// Blocks outlive the processes that create them, and end with the job and run.
func TestRunJob(t *testing.T) {
	skipWithoutManager(t)
	if got := output(t, nil, 0, "run", "--", "client", "pass", "block", "some", "text"); string(got) != "some text" {
		t.Errorf("the job says %q", got)
	}
	output(t, nil, 1, "run", "--", "client", "get", "block")
	output(t, nil, 1, "run", "--max-bytes", "64K", "--", "client", "put", "block", "text")
	output(t, nil, 127, "run", "--", "no-such-command-anywhere")
}

// A process that the job has started outlives run.
func TestRunLeaves(t *testing.T) {
	skipWithoutManager(t)
	run := start(t, "run", "--", "client", "leave", "block")
	addr := run.hear()
	if _, err := run.Process.Wait(); err != nil {
		t.Fatal(err)
	}
	mustBeGone(t, addr)
	run.in.Close()
	run.expect("held")
	run.Wait()
}

// The job and its blocks end when run is killed.
func TestRunKilled(t *testing.T) {
	skipWithoutManager(t)
	tmp, err := os.MkdirTemp("", "") // what a killed run leaves, where there is no address without a file
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(tmp)
	t.Setenv("TMPDIR", tmp)
	run := start(t, "run", "--", "client", "hold", "block")
	addr := run.hear()
	c, err := manager.Dial(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if list, err := c.List(); err != nil || len(list) != 1 {
		t.Errorf("list: %v, %v", list, err)
	}
	run.Process.Kill()
	if runtime.GOOS != "linux" {
		run.in.Close() // ends the command
	}
	io.Copy(io.Discard, run.out) // until the command is gone as well
	run.Wait()
	mustBeGone(t, addr)
	if _, err := c.List(); !errors.Is(err, manager.ErrGone) {
		t.Errorf("list: %v", err)
	}
}

// Run forwards SIGTERM and exits with the status of the command.
func TestRunSignal(t *testing.T) {
	skipWithoutManager(t)
	skipWithoutSignals(t)
	run := start(t, "run", "--", "client", "hold", "block")
	addr := run.hear()
	run.Process.Signal(syscall.SIGTERM)
	run.expectStatus(128 + int(syscall.SIGTERM))
	mustBeGone(t, addr)
}

func TestServeSignal(t *testing.T) {
	skipWithoutManager(t)
	addr := address(t)
	serve := start(t, "serve", addr)
	serve.expect("serving " + addr)
	c, err := manager.Dial(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	seg, err := c.Create("block", 100)
	if err != nil {
		t.Fatal(err)
	}
	defer seg.Close()
	serve.interrupt()
	mustBeGone(t, addr)
	if _, err := os.Stat(addr); err == nil {
		t.Error("socket is still there")
	}
	if _, err := seg.WriteAt([]byte("usable"), 0); err != nil {
		t.Error(err)
	}
}

// restricts reports whether the system has memory that can be handed on read-only.
func restricts(t *testing.T) bool {
	t.Helper()
	made, err := shm.Anonymous(1)
	if err != nil {
		t.Fatal(err)
	}
	defer made.Close()
	f, err := made.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	seg, err := shm.FromFile(f, shm.ReadOnly())
	if err != nil {
		t.Fatal(err)
	}
	defer seg.Close()
	reader, err := seg.File()
	reader.Close() // if there is one
	return !errors.Is(err, errors.ErrUnsupported)
}

// Other users may do what they are allowed to.
func TestServeAllow(t *testing.T) {
	skipWithoutManager(t)
	if runtime.GOOS == "windows" {
		output(t, nil, 2, "serve", address(t), "--allow", "1000")
		return
	}
	if otherUser() == nil {
		t.Skip("no processes of another user in the tests of this system")
	}
	if os.Getuid() != 0 {
		t.Skip("only root can start processes of another user: run as root")
	}
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		flags    []string
		get, put bool
	}{
		{nil, false, false},
		{[]string{"--allow-read", "1,65534"}, restricts(t), false},
		{[]string{"--allow", "65534"}, true, true},
		{[]string{"--allow", "65533"}, false, false},
	} {
		addr := filepath.Join(dir, "socket")
		serve := start(t, append([]string{"serve", addr}, tt.flags...)...)
		serve.expect("serving " + addr)
		t.Setenv(manager.Env, addr)
		if err := command(t, "client", "put", "block", "text").Run(); err != nil {
			t.Fatal(err)
		}
		for verb, want := range map[string]bool{"get": tt.get, "put": tt.put} {
			name := map[string]string{"get": "block", "put": "mine"}[verb]
			cmd := command(t, "client", verb, name, "text")
			cmd.Path, cmd.Dir = "/proc/self/exe", "/" // its directory is closed to other users
			cmd.SysProcAttr = otherUser()
			out, err := cmd.CombinedOutput()
			if (err == nil) != want {
				t.Errorf("%v: %s: %v\n%s", tt.flags, verb, err, out)
			}
		}
		serve.interrupt()
	}
}
