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

// bar shows progress on a terminal, followed by a text with more than go-pretty would
// show.
type bar struct {
	progress.Writer
	tracker  progress.Tracker
	name     string
	start    time.Time
	rendered chan struct{} // closed when Render has returned
}

// redraw is a terminal on which go-pretty redraws its lines. It moves the cursor
// up to the first of them, but stays in the column of the cursor, which after the
// "^C" that the terminal echoes is not the first.
type redraw struct{ io.Writer }

func (r redraw) Write(p []byte) (int, error) {
	n, err := r.Writer.Write(append([]byte("\r"), p...))
	return max(n-1, 0), err
}

// newBar shows a bar; total is -1 if it is unknown.
func newBar(out *os.File, name string, total int64, start time.Time) *bar {
	b := &bar{Writer: progress.NewWriter(), name: name, start: start, rendered: make(chan struct{})}
	b.tracker = progress.Tracker{
		Message:          name,
		Total:            max(total, 0), // 0 is unknown
		AutoStopDisabled: true,          // a full bar stays
	}
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
	b.AppendTracker(&b.tracker)
	go func() {
		b.Render()
		close(b.rendered)
	}()
	return b
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
	var b *bar
	for {
		select {
		case err := <-ended:
			if b != nil {
				if err == nil {
					b.tracker.UpdateTotal(max(done(), 1))
				}
				b.show(done())
			}
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-next:
			if b == nil {
				b = newBar(os.Stderr, name, total, start)
				defer b.stop()
			}
			b.show(done())
			next = time.After(50 * time.Millisecond)
		}
	}
}

// canShow reports whether out is a terminal that can show bars.
func canShow(out *os.File) bool {
	return isTerminal(out) && os.Getenv("TERM") != "dumb"
}

func (b *bar) show(n int64) {
	b.tracker.SetValue(n)
	b.tracker.UpdateMessage(fmt.Sprintf("%-9s %8s  %s", b.name, iec(n), speed(n, time.Since(b.start))))
}

func (b *bar) stop() {
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
func speed(n int64, took time.Duration) string {
	if n == 0 || took <= 0 {
		return "- MiB/s"
	}
	mib := float64(n) / (1 << 20) / took.Seconds()
	if mib < 10 {
		return fmt.Sprintf("%.1f MiB/s", mib)
	}
	return humanize.Comma(int64(mib)) + " MiB/s"
}
