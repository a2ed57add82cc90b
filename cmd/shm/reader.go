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
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/shmkit/shm"
)

// The readers of the demo and their parent talk in lines, through the standard
// input and output of the reader:
//
//	reader: attached
//	parent: more             there are new bytes
//	reader: read 8388608     so far
//	parent: end 268435456    this is how many bytes there are
//	reader: sum 3f2a...
//
// A reader whose standard input ends before that has lost its parent, and ends.

// readerCommand is what the demo runs as its readers.
func readerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "demo-reader NAME",
		Short:  "Read a block along and print its SHA-256 (run by demo)",
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			signal.Ignore(os.Interrupt) // the parent sees to what Ctrl-C means
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
	sum := sha256.New()
	m := &meter{out: out}
	for orders := bufio.NewScanner(in); orders.Scan(); {
		if _, err := io.Copy(io.MultiWriter(sum, m), seg); err != nil {
			return err
		}
		var end int64
		if n, _ := fmt.Sscanf(orders.Text(), "end %d", &end); n == 0 {
			continue
		}
		if m.n != end {
			return fmt.Errorf("read %d bytes of %d", m.n, end)
		}
		if _, err := fmt.Fprintf(out, "read %d\nsum %x\n", m.n, sum.Sum(nil)); err != nil {
			return err
		}
		return seg.Close()
	}
	return errors.New("the demo is gone")
}

// meter says now and then how many bytes have gone through it.
type meter struct {
	out     io.Writer
	n, said int64
}

func (m *meter) Write(p []byte) (int, error) {
	m.n += int64(len(p))
	if m.said == 0 || m.n-m.said >= 4<<20 {
		m.said = m.n
		if _, err := fmt.Fprintf(m.out, "read %d\n", m.n); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// reader is a reader process as the demo sees it.
type reader struct {
	number int
	cmd    *exec.Cmd // nil until started
	stderr bytes.Buffer

	news  chan struct{} // has one element if the reader is to be told "more"
	total chan int64    // to tell it the end

	read     atomic.Int64
	attached chan struct{} // closed when it is
	first    chan struct{} // closed when it has read something
	ended    chan struct{} // closed when the process is gone

	// To be read when ended is closed.
	killed bool
	sum    []byte // nil if it has not got so far
	took   time.Duration
	status string
}

func newReader(number int) *reader {
	return &reader{
		number:   number,
		news:     make(chan struct{}, 1),
		total:    make(chan int64, 1),
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
	cmd.Args[0] = os.Args[0] // as it was called, which programs of many names go by
	cmd.Stderr = &r.stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return fileError{err}
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fileError{err}
	}
	if err := cmd.Start(); err != nil {
		return fileError{err}
	}
	r.cmd = cmd
	r.wake() // for what is in the block already
	go r.tell(in)
	go r.listen(out, d.view)
	return r.await(ctx, r.attached)
}

func (r *reader) pid() int { return r.cmd.Process.Pid }

// wake tells the reader that there are new bytes. It does not wait for one that
// is slow to listen.
func (r *reader) wake() {
	select {
	case r.news <- struct{}{}:
	default:
	}
}

// end tells the reader how many bytes there are.
func (r *reader) end(total int64) { r.total <- total }

func (r *reader) tell(in io.WriteCloser) {
	defer in.Close()
	for {
		select {
		case <-r.news:
			if _, err := fmt.Fprintln(in, "more"); err != nil {
				return
			}
		case total := <-r.total:
			fmt.Fprintln(in, "end", total)
			return
		case <-r.ended:
			return
		}
	}
}

func (r *reader) listen(out io.Reader, v view) {
	var start time.Time
	var once sync.Once
	for reports := bufio.NewScanner(out); reports.Scan(); {
		word, value, _ := strings.Cut(reports.Text(), " ")
		switch word {
		case "attached":
			start = time.Now()
			close(r.attached)
		case "read":
			var n int64
			fmt.Sscan(value, &n)
			r.read.Store(n)
			v.read(r)
			if n > 0 {
				once.Do(func() { close(r.first) })
			}
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

// await waits for an event in the life of the reader, which must not end first.
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

// wait waits for the end of the process.
func (r *reader) wait(ctx context.Context) error {
	select {
	case <-r.ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// kill ends the process by SIGKILL if it runs, and waits until it is gone.
func (r *reader) kill() {
	if r.cmd == nil {
		return
	}
	r.killed = true
	r.cmd.Process.Kill()
	<-r.ended
}

// saw reports whether the reader has ended well and seen the bytes with that hash.
func (r *reader) saw(want []byte) bool {
	return r.cmd.ProcessState.Success() && bytes.Equal(r.sum, want)
}
