package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
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
		`(?m)^ok +reader 4 +5,242,881 `,
		`(?m)^ok +attachments, others done +1$`,
		`(?m)^ok +hashes equal +3 of 3$`,
		`(?m)^ok +block survived SIGKILL +4.00 MiB written after it$`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("%s not in:\n%s", want, out)
		}
	}
	wantGone(t, name)
}

func TestDemoOfFile(t *testing.T) {
	skipUnsupported(t)
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, bytes.Repeat([]byte("0123456789"), 300_000), 0o600); err != nil {
		t.Fatal(err)
	}
	out := output(t, nil, 0, "demo", path, "--readers", "3")
	if n := bytes.Count(out, []byte(" 3,000,000 ")); n != 3 {
		t.Errorf("%d of 3 streams complete:\n%s", n, out)
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
		`(?m)^FAILED +reader 3 .* ` + killedStatus + `$`,
		`(?m)^FAILED +hashes equal +2 of 3$`,
		`(?m)^FAILED +attachments, one killed +3$`,
		`(?m)^ok +name ` + name + ` +gone after the last Close$`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("%s not in:\n%s", want, out)
		}
	}
	if got := demo.stderr.String(); got != "shm: demo: 3 failed checks\n" {
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

func TestBars(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	readers := []*reader{newReader(1), newReader(2), newReader(3)}
	for _, total := range []int64{1 << 20, 0, -1} {
		shown := make(chan string)
		go func() {
			// Until the line after the bars, so that no write blocks.
			var b strings.Builder
			for buf := make([]byte, 4<<10); !strings.HasSuffix(b.String(), "end"); {
				n, err := r.Read(buf)
				if err != nil {
					break
				}
				b.Write(buf[:n])
			}
			shown <- b.String()
		}()
		b := newBars(w, total, readers)
		b.event("nothing to see")
		b.progress(512 << 10)
		for _, r := range readers {
			r.read.Store(256 << 10)
			b.read(r)
		}
		b.killed(readers[0])
		b.wrote(1<<20, time.Second)
		readers[1].sum = make([]byte, 32)
		readers[1].took = time.Second
		readers[1].read.Store(1 << 20)
		b.done(readers[1])
		b.done(readers[2])
		b.stop()
		io.WriteString(w, "end")
		got := <-shown
		for _, want := range []string{"writer    1.00 MiB  1.0 MiB/s", " 25%", "reader 1   256 KiB", "killed", "reader 2  1.00 MiB  1.0 MiB/s", "failed", "100%"} {
			if !strings.Contains(got, want) {
				t.Errorf("total %d: %q not in\n%s", total, want, got)
			}
		}
	}
}
