package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"
)

// notify relays the signals that ask a command to exit, and others. Signals that
// are ignored at start, as under nohup or in a background job of a script, stay
// ignored, also in the commands that hold and run start.
func notify(signals chan<- os.Signal, others ...os.Signal) {
	for _, sig := range append([]os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP}, others...) {
		if !signal.Ignored(sig) {
			signal.Notify(signals, sig)
		}
	}
}

// untilSignal returns a context that is cancelled by the first signal that asks
// the command to exit, with its signalError as the cause.
func untilSignal(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	notify(signals)
	go func() {
		select {
		case sig := <-signals:
			cancel(signalError(sig))
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
		// End the line on which the terminal has echoed "^C".
		if context.Cause(ctx) == signalError(os.Interrupt) && isTerminal(os.Stderr) {
			fmt.Fprintln(os.Stderr)
		}
	}
}

// begin calls f in a goroutine and returns a channel that receives its result.
func begin(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	// Only then Fd, which makes a pipe blocking.
	return err == nil && info.Mode()&fs.ModeCharDevice != 0 && term.IsTerminal(int(f.Fd()))
}
