package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
)

// startDemo starts a demo of a stream from the test. It returns the process ids of
// the four readers when they are attached.
func startDemo(t *testing.T) (demo *process, name string, readers []int) {
	t.Helper()
	skipUnsupported(t)
	demo = start(t, "demo", "-", "--size", "64MiB")
	if _, err := fmt.Sscanf(demo.hear(), "created %s with", &name); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		var number, pid int
		line := demo.hear()
		if _, err := fmt.Sscanf(line, "reader %d (process %d) attached", &number, &pid); err != nil || number != i+1 {
			t.Fatalf("%v in %q", err, line)
		}
		readers = append(readers, pid)
	}
	return demo, name, readers
}

func TestDemoOfStream(t *testing.T) {
	demo, name, _ := startDemo(t)
	demo.write(make([]byte, 5<<20+1))
	demo.in.Close()
	out := demo.expectStatus(0)
	for _, want := range []string{
		`(?m)^reader 1 killed at 1.00 MiB: 4 attachments left$`,
		`(?m)^reader 4: 5242881 bytes, SHA-256 [0-9a-f]{32}…$`,
		`(?m)^ok +attachments, one killed +4$`,
		`(?m)^ok +attachments, readers done +1$`,
		`(?m)^ok +hashes equal +3 of 3$`,
		`(?m)^ok +block survived SIGKILL +4.00 MiB written after it$`,
		`(?m)^reader 1: 2097152 bytes, .*\n    follow ` + name + `-2: block is not finished, and no writer is attached$`,
		`(?m)^ok +writer killed, readers told +4 of 4, after all 2.00 MiB$`,
		`(?m)^ok +name ` + name + `-2 +gone after the last Close$`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("%s not in:\n%s", want, out)
		}
	}
	wantGone(t, name)
	wantGone(t, name+"-2")
}

func TestDemoOfFile(t *testing.T) {
	skipUnsupported(t)
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, bytes.Repeat([]byte("0123456789"), 300_000), 0o600); err != nil {
		t.Fatal(err)
	}
	out := output(t, nil, 0, "demo", path, "--readers", "3")
	want := fmt.Sprintf(": 3000000 bytes, SHA-256 %.16x…\n", sha256.Sum256(bytes.Repeat([]byte("0123456789"), 300_000)))
	if n := bytes.Count(out, []byte(want)); n != 2 {
		t.Errorf("%d of 2 streams complete:\n%s", n, out)
	}
}

// If a reader is killed, its checks fail and the demo goes on.
func TestDemoReaderFails(t *testing.T) {
	demo, name, readers := startDemo(t)
	reader, err := os.FindProcess(readers[2])
	if err == nil {
		err = reader.Kill()
	}
	if err != nil {
		t.Fatal(err)
	}
	demo.write(make([]byte, 3<<20))
	demo.in.Close()
	out := demo.expectStatus(1)
	for _, want := range []string{
		`(?m)^reader 3: ` + killedStatus + `$`,
		`(?m)^FAILED +hashes equal +2 of 3$`,
		`(?m)^FAILED +attachments, one killed +3$`,
		`(?m)^ok +name ` + name + ` +gone after the last Close$`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("%s not in:\n%s", want, out)
		}
	}
	if got := demo.stderr.String(); got != "shm: demo: 2 failed checks\n" {
		t.Errorf("demo says %q", got)
	}
	wantGone(t, name)
}

func TestDemoInterrupted(t *testing.T) {
	skipWithoutSignals(t)
	for sig, status := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		t.Run(sig.String(), func(t *testing.T) {
			demo, name, readers := startDemo(t)
			demo.write([]byte("some"))
			demo.Process.Signal(sig)
			demo.expectStatus(status)
			if demo.stderr.Len() > 0 {
				t.Errorf("demo says %q", &demo.stderr)
			}
			for i, pid := range readers {
				reader, err := os.FindProcess(pid)
				if err == nil {
					err = reader.Signal(syscall.Signal(0))
				}
				if !errors.Is(err, os.ErrProcessDone) {
					t.Errorf("reader %d: %v, want %v", i+1, err, os.ErrProcessDone)
				}
			}
			wantGone(t, name)
		})
	}
}
