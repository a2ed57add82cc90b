package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jedib0t/go-pretty/v6/progress"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/term"
)

// screen shows bars on a terminal.
type screen struct {
	progress.Writer
	total    int64         // of every bar, -1 if unknown
	rendered chan struct{} // closed when Render has returned
}

// bar is a tracker followed by a text with more than go-pretty would show.
type bar struct {
	*progress.Tracker
	name  string
	start time.Time
}

// redraw is a terminal on which go-pretty redraws its lines. It moves the cursor
// up to the first of them, but stays in the column of the cursor, which after the
// "^C" that the terminal echoes is not the first.
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
	go func() {
		b.Render()
		close(b.rendered)
	}()
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

// showing calls f, and returns the cause of ctx if that is cancelled first. If f
// takes longer than a second, it shows the progress on standard error, unless that
// is no terminal or quiet is set.
func showing(ctx context.Context, name string, quiet bool, total int64, done func() int64, f func() error) error {
	start, ended := time.Now(), begin(f)
	next := time.After(time.Second)
	if quiet || !canShow(os.Stderr) {
		next = nil
	}
	var t *bar
	for {
		select {
		case err := <-ended:
			if t != nil {
				if err == nil {
					t.full(done())
				}
				t.progress(done())
			}
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-next:
			if t == nil {
				s := newScreen(os.Stderr, total)
				t = s.add(name)
				t.start = start
				defer s.stop()
			}
			t.progress(done())
			next = time.After(50 * time.Millisecond)
		}
	}
}

// canShow reports whether out is a terminal that can show bars.
func canShow(out *os.File) bool {
	return isTerminal(out) && os.Getenv("TERM") != "dumb"
}

func (t *bar) progress(n int64) { t.show(n, speed(n, time.Since(t.start))) }

func (t *bar) show(n int64, note string) {
	t.SetValue(n)
	t.UpdateMessage(fmt.Sprintf("%-9s %8s  %s", t.name, iec(n), note))
}

// full sets n as the end of the bar.
func (t *bar) full(n int64) { t.UpdateTotal(max(n, 1)) }

func (b *screen) stop() {
	// Stop has no effect until Render has reached a certain point: repeat it.
	for {
		b.Stop()
		select {
		case <-b.rendered:
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// speed formats the speed of n bytes in that time.
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
