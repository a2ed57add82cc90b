package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/shmkit/shm"
)

func holdCommand() *cobra.Command {
	var f blockFlags
	cmd := &cobra.Command{
		Use:   "hold NAME [-- CMD...]",
		Short: "Stay attached to a block, so that it stays",
		Long: `Hold attaches to the block NAME and stays attached, so that the block exists at
least as long. With --size it makes the block if there is none.

Without CMD, hold prints "holding NAME" when it is attached and ends on Ctrl-C
or SIGTERM, with exit status 0.

With CMD, hold runs it and ends when it ends, with its exit status: 126 or 127
if CMD could not be started, 128 and the number of the signal if one ended it.
` + signalHelp,
		Example: `  shm hold frames &
  shm hold frames --size 16MiB -- ./server --shm frames`,
		Args: func(cmd *cobra.Command, args []string) error {
			names := cmd.ArgsLenAtDash()
			switch {
			case names == len(args):
				return errors.New("no command after --")
			case names < 0 && len(args) > 1:
				return errors.New(`no "--" before the command`)
			case names < 0:
				names = len(args)
			}
			return operands(cmd, args[:names])
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 0 { // the words of CMD
				return nil, cobra.ShellCompDirectiveDefault
			}
			return completeNames(1, managed)(cmd, args, prefix)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			name, command := args[0], args[1:]
			seg, err := f.attach(name)
			if err != nil {
				return err
			}
			defer seg.Close()
			if len(command) > 0 {
				return runCommand(command, func(*exec.Cmd) {})
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			return holdUntil(ctx, seg, cmd.OutOrStdout())
		},
	}
	f.add(cmd, "make the block if there is none, with this much room")
	return cmd
}

func (f *blockFlags) attach(name string) (*shm.Segment, error) {
	if name == "" {
		return nil, usageError{errors.New("empty name")}
	}
	if f.size == 0 {
		return shm.Open(name, shm.ReadOnly())
	}
	seg, _, err := shm.OpenOrCreate(name, int64(f.size), f.options()...)
	if errors.Is(err, fs.ErrPermission) { // to write; to hold, reading will do
		return shm.Open(name, shm.ReadOnly())
	}
	return seg, makeRoom(err, int64(f.size))
}

// holdUntil says that the block is held and stays attached until a signal,
// which is the way it is meant to end.
func holdUntil(ctx context.Context, seg *shm.Segment, out io.Writer) error {
	if _, err := fmt.Fprintln(out, "holding", seg.Name()); err != nil {
		return fileError{err}
	}
	<-ctx.Done()
	return seg.Close()
}

// signalHelp says for hold and run what runCommand does with signals.
const signalHelp = `It forwards SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and SIGALRM to
CMD, except SIGINT and SIGQUIT while it is in the foreground of a terminal, which
sends Ctrl-C and Ctrl-\ to CMD itself.`

// runCommand runs a command, as prepare has changed it, to its end and returns
// how it ended.
func runCommand(args []string, prepare func(*exec.Cmd)) error {
	cmd := exec.Command(args[0], args[1:]...)
	prepare(cmd)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr

	// No signal that is forwarded may end this process, which must outlast the
	// command.
	signals := make(chan os.Signal, 8)
	notify(signals, forwarded...)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		fmt.Fprintf(os.Stderr, "shm: cannot run %s: %v\n", args[0], cause(err))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
			return exitStatus(127)
		}
		return exitStatus(126)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case sig := <-signals:
			// The terminal sends the signals of its keys to the command as well,
			// which must not get them twice.
			if key := sig == os.Interrupt || sig == syscall.SIGQUIT; !key || !inForeground() {
				cmd.Process.Signal(sig)
			}
		case err := <-done:
			return commandStatus(err)
		}
	}
}

// cause returns why exec.Cmd.Start failed, without what it failed at.
func cause(err error) error {
	var path *fs.PathError
	var lookup *exec.Error
	switch {
	case errors.As(err, &path):
		return path.Err
	case errors.As(err, &lookup):
		return lookup.Err
	}
	return err
}

func commandStatus(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return exitStatus(signalStatus(status.Signal()))
	}
	return exitStatus(exit.ExitCode())
}
