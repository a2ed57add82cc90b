package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jedib0t/go-pretty/v6/progress"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/term"
)

// view shows a demo while it runs. Its methods are safe for concurrent use.
type view interface {
	event(format string, args ...any)
	progress(size int64) // of the block
	read(r *reader)      // r.read has changed
	killed(r *reader)
	wrote(n int64, took time.Duration)
	done(r *reader) // well or not
	stop()
}

// lines shows a line for every event, and how far things are once a second.
type lines struct {
	out   io.Writer
	total int64 // -1 if unknown

	mu   sync.Mutex // guards what follows, and out
	last time.Time
	size int64 // at last
}

func (l *lines) event(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.out, format+"\n", args...)
}

func (l *lines) progress(size int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.last.IsZero() {
		l.last = now
	}
	since := now.Sub(l.last)
	if since < time.Second {
		return
	}
	of := ""
	if l.total >= 0 {
		of = " of " + iec(l.total)
	}
	fmt.Fprintf(l.out, "wrote %s%s, %s\n", iec(size), of, speed(size-l.size, since))
	l.last, l.size = now, size
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

// screen shows bars on a terminal.
type screen struct {
	progress.Writer
	total    int64         // of every bar, -1 if unknown
	rendered chan struct{} // closed when Render is done
}

// bars shows a bar for the writer and one for each reader.
type bars struct {
	*screen
	writer  *bar
	readers []*bar
	victim  atomic.Pointer[bar] // nil until it is killed
}

// bar is a tracker with a text behind it that tells more than go-pretty would.
type bar struct {
	*progress.Tracker
	name  string
	start time.Time
}

// redraw is a terminal on which go-pretty draws over what it has drawn. It goes
// some lines up for that, from the column where the cursor is: after the "^C" of
// the terminal that is not the first.
type redraw struct{ io.Writer }

func (r redraw) Write(p []byte) (int, error) {
	n, err := r.Writer.Write(append([]byte("\r"), p...))
	return max(n-1, 0), err
}

func newScreen(out *os.File, total int64) *screen {
	b := &screen{Writer: progress.NewWriter(), total: total, rendered: make(chan struct{})}
	b.SetOutputWriter(redraw{out})
	width := 80
	if w, _, err := term.GetSize(int(out.Fd())); err == nil && w > 0 {
		width = w
	}
	b.SetTerminalWidth(width)
	b.SetTrackerLength(min(max(width-46, 10), 40))
	b.SetTrackerPosition(progress.PositionLeft)
	b.SetUpdateFrequency(50 * time.Millisecond)
	style := progress.StyleBlocks
	style.Chars = progress.StyleChars{
		Finished: "█", Finished25: "░", Finished50: "▒", Finished75: "▓", Unfinished: "░",
		Indeterminate: progress.IndeterminateIndicatorMovingBackAndForth("███", 100*time.Millisecond),
	}
	style.Colors = progress.StyleColors{Tracker: text.Colors{text.FgCyan}}
	style.Options.PercentFormat = "%3.0f%%"
	style.Options.PercentIndeterminate = "    "
	style.Options.Separator = "  "
	style.Visibility = progress.StyleVisibility{Percentage: true, Tracker: true}
	b.SetStyle(style)
	return b
}

func (b *screen) add(name string) *bar {
	t := &bar{name: name, start: time.Now(), Tracker: &progress.Tracker{
		Message:          name,
		Total:            max(b.total, 0), // 0 is unknown
		AutoStopDisabled: true,            // a full bar stays
	}}
	b.AppendTracker(t.Tracker)
	return t
}

func (b *screen) begin() {
	go func() {
		b.Render()
		close(b.rendered)
	}()
}

func newBars(out *os.File, total int64, readers []*reader) *bars {
	b := &bars{screen: newScreen(out, total)}
	b.writer = b.add("writer")
	for _, r := range readers {
		b.readers = append(b.readers, b.add(fmt.Sprintf("reader %d", r.number)))
	}
	b.begin()
	return b
}

// showing calls f, and shows on standard error how far it is if it takes longer
// than a second and that is a terminal, unless quiet.
func showing(name string, quiet bool, total int64, done func() int64, f func() error) error {
	if quiet || !canShow(os.Stderr) {
		return f()
	}
	start := time.Now()
	ended := make(chan error, 1)
	go func() { ended <- f() }()
	select {
	case err := <-ended:
		return err
	case <-time.After(time.Second):
	}
	s := newScreen(os.Stderr, total)
	t := s.add(name)
	t.start = start
	s.begin()
	defer s.stop()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		t.progress(done())
		select {
		case err := <-ended:
			if err == nil {
				t.full(done())
			}
			t.progress(done())
			return err
		case <-ticker.C:
		}
	}
}

// canShow reports whether out is a terminal that bars can be drawn on.
func canShow(out *os.File) bool {
	return isTerminal(out) && os.Getenv("TERM") != "dumb"
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	// Fd changes the mode of a pipe.
	return err == nil && info.Mode()&fs.ModeCharDevice != 0 && term.IsTerminal(int(f.Fd()))
}

func (t *bar) progress(n int64) { t.show(n, speed(n, time.Since(t.start))) }

func (t *bar) show(n int64, note string) {
	t.SetValue(n)
	t.UpdateMessage(fmt.Sprintf("%-9s %8s  %s", t.name, iec(n), note))
}

func (b *bars) event(string, ...any) {}

func (b *bars) progress(size int64) {
	b.writer.progress(size)
	b.bound(size)
}

// bound shows the victim's bar as a part of what there is while nobody knows how
// much will come, as bars of an unknown end keep moving.
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

// full makes the bar one of which the end is known.
func (t *bar) full(n int64) { t.UpdateTotal(max(n, 1)) }

func (b *screen) stop() {
	// Stop does nothing before Render has come as far as to look for it.
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for {
		b.Stop()
		select {
		case <-b.rendered:
			return
		case <-ticker.C:
		}
	}
}

// speed returns n bytes in that time for people.
func speed(n int64, took time.Duration) string { return perSecond(n, took) + " MiB/s" }

func perSecond(n int64, took time.Duration) string {
	if n == 0 || took <= 0 {
		return "-"
	}
	mib := float64(n) / (1 << 20) / took.Seconds()
	if mib < 10 {
		return fmt.Sprintf("%.1f", mib)
	}
	return humanize.Comma(int64(mib))
}

// report prints what the run has shown and returns nil if all of it held.
func (d *demo) report(out *os.File) error {
	paint := func(c text.Color, s string) string { return s }
	if isTerminal(out) {
		paint = func(c text.Color, s string) string { return c.Sprint(s) }
	}
	failures := 0
	mark := func(ok bool) string {
		if !ok {
			failures++
			return paint(text.FgRed, "FAILED")
		}
		return paint(text.FgGreen, "ok")
	}

	streams := newTable()
	alignRight(streams, 3, 4, 5)
	streams.AppendHeader(table.Row{"", "STREAM", "BYTES", "TIME", "MiB/s", "SHA-256"})
	stream := func(name string, n int64, took time.Duration, note, mark string) {
		duration := "-"
		if took > 0 {
			duration = fmt.Sprintf("%.3f s", took.Seconds())
		}
		streams.AppendRow(table.Row{mark, name, humanize.Comma(n), duration, perSecond(n, took), note})
	}
	stream("writer", d.wrote, d.took, short(d.want[:]), mark(true))
	equal := 0
	for _, r := range d.readers {
		name, n := fmt.Sprintf("reader %d", r.number), r.read.Load()
		switch {
		case r.killed:
			stream(name, n, 0, "killed on the way", mark(d.survived))
		case r.saw(d.want[:]):
			equal++
			stream(name, n, r.took, short(r.sum), mark(true))
		case r.sum != nil:
			stream(name, n, r.took, short(r.sum), mark(false))
		default:
			stream(name, n, 0, r.status, mark(false))
		}
	}

	checks := newTable()
	checks.AppendHeader(table.Row{"", "CHECK", "RESULT"})
	check := func(what, result string, ok bool) { checks.AppendRow(table.Row{mark(ok), what, result}) }
	var order []string // of events, of which several can be alike
	counts := map[string][]string{}
	good := map[string]bool{}
	for _, c := range d.counts {
		if counts[c.when] == nil {
			order = append(order, c.when)
			good[c.when] = true
		}
		counts[c.when] = append(counts[c.when], fmt.Sprint(c.got))
		good[c.when] = good[c.when] && c.got == c.want
	}
	for _, when := range order {
		result := strings.Join(counts[when], " ")
		if when == eventKilled || when == eventDone {
			result += " (one killed is counted until the block ends)"
		}
		check("attachments, "+when, result, good[when])
	}
	readers := len(d.readers) - 1
	check("block survived SIGKILL", fmt.Sprintf("%s written after it", iec(d.after)), d.survived)
	check("hashes equal", fmt.Sprintf("%d of %d", equal, readers), equal == readers)
	gone := "gone after the last Close"
	if len(d.left) > 0 {
		gone = strings.Join(d.left, ", ")
	}
	check("name "+d.seg.Name(), gone, len(d.left) == 0)

	for _, part := range []any{"", streams.Render(), "", checks.Render()} {
		if _, err := fmt.Fprintln(out, part); err != nil {
			return fileError{err}
		}
	}
	if failures > 0 {
		return fmt.Errorf("demo: %s", plural(failures, "failed check"))
	}
	return nil
}

// short returns the beginning of a hash.
func short(sum []byte) string { return hex.EncodeToString(sum[:8]) + "…" }
