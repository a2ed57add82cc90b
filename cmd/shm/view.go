package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// view shows the progress of a demo. Its methods are safe for concurrent use.
type view interface {
	event(format string, args ...any)
	progress(size int64) // of the block
	read(r *reader)      // after r.read has changed
	killed(r *reader)
	wrote(n int64, took time.Duration)
	done(r *reader) // after r.ended, unless killed
	stop()
}

// lines prints a line for every event, and the progress once a second.
type lines struct {
	out   io.Writer
	total int64 // -1 if unknown

	mu   sync.Mutex // guards the fields below, and out
	last time.Time  // of the last progress, or the start
	size int64      // at last
}

func (l *lines) event(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.out, format+"\n", args...)
}

func (l *lines) progress(size int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	since := time.Since(l.last)
	if since < time.Second {
		return
	}
	of := ""
	if l.total >= 0 {
		of = " of " + iec(l.total)
	}
	fmt.Fprintf(l.out, "wrote %s%s, %s\n", iec(size), of, speed(size-l.size, since))
	l.last, l.size = l.last.Add(since), size
}

func (l *lines) read(*reader)   {}
func (l *lines) killed(*reader) {}
func (l *lines) stop()          {}

func (l *lines) wrote(n int64, took time.Duration) {
	l.event("wrote %s, %s", iec(n), speed(n, took))
}

func (l *lines) done(r *reader) {
	if r.sum == nil {
		l.event("reader %d failed: %s", r.number, r.status)
		return
	}
	l.event("reader %d done: %s, %s", r.number, iec(r.read.Load()), speed(r.read.Load(), r.took))
}

// bars shows a bar for the writer and one for each reader.
type bars struct {
	*screen
	writer  *bar
	readers []*bar
	victim  atomic.Pointer[bar] // nil until it is killed
}

func newBars(out *os.File, total int64, readers []*reader) *bars {
	b := &bars{screen: newScreen(out, total)}
	b.writer = b.add("writer")
	for _, r := range readers {
		b.readers = append(b.readers, b.add(fmt.Sprintf("reader %d", r.number)))
	}
	return b
}

func (b *bars) event(string, ...any) {}

func (b *bars) progress(size int64) {
	b.writer.progress(size)
	b.bound(size)
}

// bound shows the victim's bar as its part of size while the total is unknown: a
// bar without an end would keep moving.
func (b *bars) bound(size int64) {
	if v := b.victim.Load(); v != nil && b.total <= 0 {
		v.full(size)
	}
}

func (b *bars) read(r *reader) {
	b.readers[r.number-1].progress(r.read.Load())
}

func (b *bars) killed(r *reader) {
	t := b.readers[r.number-1]
	t.show(r.read.Load(), text.FgYellow.Sprint("killed"))
	b.victim.Store(t)
	b.bound(b.writer.Value())
}

func (b *bars) wrote(n int64, took time.Duration) {
	b.bound(n)
	b.writer.full(n)
	b.writer.show(n, speed(n, took))
}

func (b *bars) done(r *reader) {
	t := b.readers[r.number-1]
	n := r.read.Load()
	if r.sum == nil {
		t.show(n, text.FgRed.Sprint("failed"))
		return
	}
	t.full(n)
	t.show(n, speed(n, r.took))
}

// report prints the results of the run and returns an error if a check has failed.
func (d *demo) report(out *os.File) error {
	failures := 0
	mark := func(ok bool) string {
		word, color := "ok", text.FgGreen
		if !ok {
			failures++
			word, color = "FAILED", text.FgRed
		}
		if isTerminal(out) {
			word = color.Sprint(word)
		}
		return word
	}

	streams := newTable(3, 4, 5)
	streams.AppendHeader(table.Row{"", "STREAM", "BYTES", "TIME", "MiB/s", "SHA-256"})
	stream := func(name string, n int64, took time.Duration, note string, ok bool) {
		duration := "-"
		if took > 0 {
			duration = fmt.Sprintf("%.3f s", took.Seconds())
		}
		streams.AppendRow(table.Row{mark(ok), name, humanize.Comma(n), duration, perSecond(n, took), note})
	}
	stream("writer", d.wrote, d.took, short(d.want[:]), true)
	for _, r := range d.readers {
		note, ok := r.status, false
		switch {
		case r.killed:
			note, ok = "killed on the way", d.survived
		case r.sum != nil:
			note, ok = short(r.sum), r.saw(d.want[:])
		}
		stream(fmt.Sprintf("reader %d", r.number), r.read.Load(), r.took, note, ok)
	}

	checks := newTable()
	checks.AppendHeader(table.Row{"", "CHECK", "RESULT"})
	for _, c := range d.checks {
		checks.AppendRow(table.Row{mark(c.ok), c.what, c.result})
	}

	if _, err := fmt.Fprintf(out, "\n%s\n\n%s\n", streams.Render(), checks.Render()); err != nil {
		return fileError{err}
	}
	if failures > 0 {
		return fmt.Errorf("demo: %s", english.Plural(failures, "failed check", ""))
	}
	return nil
}

// short returns the first digits of a hash.
func short(sum []byte) string { return hex.EncodeToString(sum[:8]) + "…" }
