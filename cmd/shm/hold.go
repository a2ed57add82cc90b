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
		Short: "Stay attached to a block",
		Long: `Hold attaches to the block NAME and stays attached, so that the block exists at
least as long as hold runs. With --size it creates the block if there is none.

Without CMD, hold prints "holding NAME" when it is attached, and exits with
status 0 on Ctrl-C or SIGTERM. With CMD, hold runs CMD and exits when CMD does.

` + commandHelp,
		Example: `  shm hold frames &
  shm hold frames --size 16MiB -- ./server --shm frames`,
		ValidArgsFunction: completeNameAndCommand,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, command := args[0], args[1:]
			seg, err := f.attach(name, shm.ReadOnly()) // which needs less permission
			if err != nil {
				return err
			}
			defer seg.Close()
			seg.Follow(cmd.Context()).Close() // to hold is not to write: see shm.ErrAbandoned
			if len(command) > 0 {
				return runCommand(exec.Command(command[0], command[1:]...))
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			return holdUntil(ctx, seg, cmd.OutOrStdout())
		},
	}
	f.add(cmd, "create the block if there is none, with this capacity")
	return cmd
}

// completeNameAndCommand completes the name of a block, and then as the shell does.
func completeNameAndCommand(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 { // the words of CMD
		return nil, cobra.ShellCompDirectiveDefault
	}
	return completeNames(1, false)(cmd, args, prefix)
}

// blockFlags are the properties of a new block.
type blockFlags struct {
	size   byteSize
	perm   permissions
	sparse bool
}

func (b *blockFlags) add(cmd *cobra.Command, size string) {
	b.perm = 0o600
	cmd.Flags().Var(&b.size, "size", size)
	cmd.Flags().Var(&b.perm, "perm", "permissions of a new block")
	cmd.Flags().BoolVar(&b.sparse, "sparse", false, "allocate memory when bytes are written instead of reserving it")
	cmd.RegisterFlagCompletionFunc("size", cobra.NoFileCompletions)
	cmd.RegisterFlagCompletionFunc("perm", cobra.NoFileCompletions)
}

func (b *blockFlags) options() []shm.Option {
	opts := []shm.Option{shm.Perm(fs.FileMode(b.perm))}
	if b.sparse {
		opts = append(opts, shm.Sparse())
	}
	return opts
}

// attach opens the block, with the options if it exists, or creates it if its size is set.
func (f *blockFlags) attach(name string, opts ...shm.Option) (*shm.Segment, error) {
	if name == "" {
		return nil, usageError{errors.New("empty name")}
	}
	if f.size == 0 {
		return shm.Open(name, opts...)
	}
	seg, _, err := shm.OpenOrCreate(name, int64(f.size), f.options()...)
	if errors.Is(err, fs.ErrPermission) && len(opts) > 0 {
		return shm.Open(name, opts...)
	}
	return seg, makeRoom(err, int64(f.size))
}

// holdUntil prints that the block is held, and detaches from it when ctx is
// cancelled.
func holdUntil(ctx context.Context, seg *shm.Segment, out io.Writer) error {
	if _, err := fmt.Fprintln(out, "holding", seg.Name()); err != nil {
		return fileError{err}
	}
	<-ctx.Done()
	return seg.Close()
}

// commandHelp describes in the help of hold, lock and run what runCommand does.
const commandHelp = `The exit status is that of CMD, or 126 or 127 if CMD could not be started, or 128
plus the number of the signal that killed it. SIGINT, SIGQUIT, SIGTERM, SIGHUP,
SIGUSR1, SIGUSR2 and SIGALRM are forwarded to CMD, except SIGINT and SIGQUIT in the
foreground of a terminal, which sends Ctrl-C and Ctrl-\ to CMD itself.`

// runCommand runs a command with the standard streams of this process, and
// returns its exit status.
func runCommand(cmd *exec.Cmd) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr

	// A forwarded signal must not kill this process, which has to outlive the
	// command.
	signals := make(chan os.Signal, 8)
	notify(signals, forwarded...)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		cause := err // without what failed, which is said here
		for errors.Unwrap(cause) != nil {
			cause = errors.Unwrap(cause)
		}
		fmt.Fprintf(os.Stderr, "shm: cannot run %s: %v\n", cmd.Args[0], cause)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
			return exitStatus(127)
		}
		return exitStatus(126)
	}
	done := begin(cmd.Wait)
	for {
		select {
		case sig := <-signals:
			// The terminal sends the signals of its keys to the command as well:
			// do not send them twice.
			if key := sig == os.Interrupt || sig == syscall.SIGQUIT; !key || !inForeground() {
				cmd.Process.Signal(sig)
			}
		case err := <-done:
			return commandStatus(err)
		}
	}
}

func commandStatus(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return signalError(status.Signal())
	}
	return exitStatus(exit.ExitCode())
}
