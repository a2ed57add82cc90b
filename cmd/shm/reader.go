package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/shmkit/shm"
)

// A reader and the demo exchange lines, through the standard input and output of
// the reader:
//
//	reader: attached
//	reader: read 8388608     so far
//	demo:   end 268435456    the size of the whole stream
//	reader: sum 3f2a...
//
// A reader whose standard input ends before that exits: the demo has exited.

// readerCommand is the command that the demo starts as its readers.
func readerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "demo-reader NAME",
		Short:  "Read a block while it is filled, and print its SHA-256 (run by demo)",
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			signal.Ignore(os.Interrupt) // on Ctrl-C the demo kills its readers
			return readAlong(args[0], os.Stdin, os.Stdout)
		},
	}
}

func readAlong(name string, in io.Reader, out io.Writer) error {
	seg, err := shm.Open(name, shm.ReadOnly())
	if err != nil {
		return err
	}
	defer seg.Close()
	if _, err := fmt.Fprintln(out, "attached"); err != nil {
		return err
	}
	var end int64
	ended := begin(func() error {
		_, err := fmt.Fscanln(in, new(string), &end)
		return err
	})
	sum := sha256.New()
	m := &meter{out: out}
	for filling := true; filling; {
		select {
		case err := <-ended:
			if err != nil {
				return errors.New("the demo has exited")
			}
			filling = false // one last copy
		case <-time.After(10 * time.Millisecond):
		}
		if _, err := io.Copy(io.MultiWriter(sum, m), seg); err != nil {
			return err
		}
	}
	if m.n != end {
		return fmt.Errorf("read %d bytes of %d", m.n, end)
	}
	if _, err := fmt.Fprintf(out, "read %d\nsum %x\n", m.n, sum.Sum(nil)); err != nil {
		return err
	}
	return seg.Close()
}

// meter reports the number of bytes written to it, every 4 MiB.
type meter struct {
	out     io.Writer
	n, said int64
}

func (m *meter) Write(p []byte) (int, error) {
	m.n += int64(len(p))
	if m.said > 0 && m.n-m.said < 4<<20 {
		return len(p), nil
	}
	m.said = m.n
	_, err := fmt.Fprintf(m.out, "read %d\n", m.n)
	return len(p), err
}

// reader is a reader process of the demo.
type reader struct {
	number int
	cmd    *exec.Cmd // nil until started
	in     io.Writer
	stderr bytes.Buffer

	read     atomic.Int64
	attached chan struct{} // closed when it has attached
	first    chan struct{} // closed when it has read the first bytes
	ended    chan struct{} // closed when the process has exited

	// May be read when ended is closed.
	killed bool
	sum    []byte // nil if it has not sent one
	took   time.Duration
	status string
}

func newReader(number int) *reader {
	return &reader{
		number:   number,
		attached: make(chan struct{}),
		first:    make(chan struct{}),
		ended:    make(chan struct{}),
	}
}

// start starts the process and waits until it is attached.
func (r *reader) start(ctx context.Context, d *demo) error {
	exe, err := os.Executable()
	if err != nil {
		return fileError{err}
	}
	cmd := exec.Command(exe, "demo-reader", d.seg.Name())
	cmd.Args[0] = os.Args[0] // programs with several names go by it
	cmd.Stderr = &r.stderr
	r.in, err = cmd.StdinPipe()
	var out io.Reader
	if err == nil {
		out, err = cmd.StdoutPipe()
	}
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return fileError{err}
	}
	r.cmd = cmd
	go r.listen(out, d.view)
	return r.await(ctx, r.attached)
}

func (r *reader) listen(out io.Reader, v view) {
	var start time.Time
	for reports := bufio.NewScanner(out); reports.Scan(); {
		word, value, _ := strings.Cut(reports.Text(), " ")
		switch word {
		case "attached":
			start = time.Now()
			close(r.attached)
		case "read":
			var n int64
			fmt.Sscan(value, &n)
			if r.read.Swap(n) == 0 && n > 0 {
				close(r.first)
			}
			v.read(r)
		case "sum":
			r.took = time.Since(start)
			r.sum, _ = hex.DecodeString(value)
		}
	}
	r.cmd.Wait()
	r.status = r.cmd.ProcessState.String()
	if text := strings.TrimSpace(r.stderr.String()); text != "" {
		r.status = strings.TrimPrefix(text, "shm: ")
	}
	close(r.ended)
}

// await waits for an event of the process. It is an error if the process exits
// first.
func (r *reader) await(ctx context.Context, event <-chan struct{}) error {
	select {
	case <-event:
		return nil
	case <-r.ended:
		return fmt.Errorf("reader %d: %s", r.number, r.status)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// kill kills the process if it runs, and waits for its end.
func (r *reader) kill() {
	if r.cmd == nil {
		return
	}
	r.killed = true
	r.cmd.Process.Kill()
	<-r.ended
}

// saw reports whether the process succeeded and read the bytes with that hash.
func (r *reader) saw(want []byte) bool {
	return r.cmd.ProcessState.Success() && bytes.Equal(r.sum, want)
}
