// Shm handles blocks of shared memory from the shell.
//
//	shm put frames <video.raw      # make a block from a stream
//	shm ls                         # see what blocks there are
//	shm get frames | sha256sum     # stream a block out
//	shm rm frames
//
// A block exists as long as some process is attached to it. Commands end and
// are then no longer attached, so the blocks that put makes are persistent: they
// stay until rm. To lend a block to other programs for as long as something
// runs, hold it instead:
//
//	shm hold frames --size 16MiB -- ./server --shm frames
//
// Commands:
//
//	demo [FILE]            stream a file through a block to other processes
//	put NAME               make a block from standard input
//	get NAME               write a block to standard output
//	ls                     list blocks
//	stat NAME              show all that is known of a block
//	rm NAME...             take the names of blocks away
//	reap                   remove what killed processes left behind
//	hold NAME [-- CMD...]  stay attached to a block
//	run -- CMD...          run a job with blocks of its own
//	serve ADDRESS          keep blocks for other processes
//	completion SHELL       print the script that completes names in a shell
//
// Each has --help. "shm help" says what sizes, names and exit codes there are.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/shmkit/shm"
)

func main() {
	// A write to a broken pipe shall be an error, and not the end of a process
	// that is attached to a block.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	os.Exit(run(os.Args[1:], os.Stderr))
}

// run executes the command line and returns the exit status.
func run(args []string, stderr io.Writer) int {
	root, running := newRoot()
	root.SetArgs(args)
	root.SetErr(stderr)
	cmd, err := root.ExecuteC()
	if err != nil && !*running {
		err = usageError{err}
	}
	status := exitCode(err)
	if text := message(err); text != "" {
		fmt.Fprintln(stderr, "shm:", text)
	}
	if status == 2 {
		if cmd.Name() == "help" {
			cmd = root
		}
		fmt.Fprintf(stderr, "Try '%s --help'.\n", cmd.CommandPath())
	}
	return status
}

// newRoot returns the command tree. *running is set as soon as the command line
// has been found good, from when on an error is no longer one of usage.
func newRoot() (root *cobra.Command, running *bool) {
	root = &cobra.Command{
		Use:   "shm",
		Short: "Named shared memory that behaves like a file",
		Long: `Shm makes, reads, lists and removes blocks of named shared memory.

A NAME has 1 to 255 letters, digits, dots, hyphens and underscores, and does not
begin with a dot (on macOS, 30). One that begins with a hyphen comes after "--".

A SIZE is a number of bytes, or one with K, M, G, T, P or E (KiB, MiB and so on)
for powers of 1024, or with kB, MB, GB and so on for powers of 1000: 4096, 64MiB,
1.5G.

The exit status is
  0    if all went well
  1    if not
  2    if the command line makes no sense
  128  plus the number of the signal that ended the command: 130 after Ctrl-C,
       141 if nothing reads its output any more
"hold NAME -- CMD" and "run -- CMD" exit as CMD does, or with 126 or 127 if CMD
could not be started.`,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("no command given")}
		},
	}
	root.SetVersionTemplate("shm {{.Version}}\n")
	root.AddCommand(demoCommand(), readerCommand(),
		putCommand(), getCommand(), holdCommand(),
		lsCommand(), statCommand(), rmCommand(), reapCommand(),
		serveCommand(), runCmdCommand())
	root.SetHelpCommand(helpCommand())
	addCompletion(root)

	running = new(bool)
	for _, c := range root.Commands() {
		if c.Args == nil {
			c.Args = operands
		}
		runE := c.RunE
		c.RunE = func(cmd *cobra.Command, args []string) error {
			*running = true
			return runE(cmd, args)
		}
	}
	return root, running
}

// operands checks the number of arguments against what the command's Use names:
// NAME is one, [NAME] one that may be left out, NAME... one or more.
func operands(cmd *cobra.Command, args []string) error {
	use, _, _ := strings.Cut(cmd.Use, " [--")
	for _, name := range strings.Fields(use)[1:] {
		many := strings.HasSuffix(name, "...")
		switch {
		case len(args) > 0 && many:
			return nil
		case len(args) > 0:
			args = args[1:]
		case !strings.HasPrefix(name, "["):
			return fmt.Errorf("no %s given", strings.TrimSuffix(name, "..."))
		}
	}
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q", args[0])
	}
	return nil
}

// helpCommand is the help command of cobra, but for one that does not exist it
// is an error.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show the help of a command",
		Args:  cobra.ArbitraryArgs,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			var names []cobra.Completion
			if parent, rest, err := cmd.Root().Find(args); err == nil && len(rest) == 0 {
				for _, c := range parent.Commands() {
					if c.IsAvailableCommand() {
						names = append(names, cobra.CompletionWithDesc(c.Name(), c.Short))
					}
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			topic, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return usageError{fmt.Errorf("no help for %q: unknown command", strings.Join(args, " "))}
			}
			topic.InitDefaultHelpFlag() // which cobra adds when the command is called
			topic.InitDefaultVersionFlag()
			return topic.Help()
		},
	}
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// usageError is a command line that makes no sense.
type usageError struct{ error }

// exitStatus is an error of which all has been said; only the status is left.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// signalError is a signal that ended the command.
type signalError struct{ os.Signal }

func (e signalError) Error() string { return e.String() }

// fileError is about a file, where others are about a block.
type fileError struct{ error }

func (e fileError) Unwrap() error { return e.error }

// hintError adds to an error what to do about it.
type hintError struct {
	error
	hint string
}

func (e hintError) Unwrap() error { return e.error }

// exitCode returns the exit status that err stands for.
func exitCode(err error) int {
	var status exitStatus
	var sig signalError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, new(usageError)):
		return 2
	case errors.As(err, &sig):
		return signalStatus(sig.Signal)
	case errors.Is(err, syscall.EPIPE):
		return signalStatus(syscall.SIGPIPE)
	}
	return 1
}

// signalStatus returns what a shell says of a process that a signal ended.
func signalStatus(sig os.Signal) int {
	if n, ok := sig.(syscall.Signal); ok {
		return 128 + int(n)
	}
	return 1
}

// message returns err in the words of a command, "" for what is better not
// spoken of: a signal, and a pipe that nobody reads any more.
func message(err error) string {
	switch e := err.(type) {
	case nil, exitStatus, signalError:
		return ""
	case hintError:
		return message(e.error) + "; " + e.hint
	case *fs.PathError:
		if errors.Is(e, syscall.EPIPE) {
			return ""
		}
		text := reason(e.Err)
		if e.Path == "" {
			return e.Op + ": " + text
		}
		return e.Op + " " + e.Path + ": " + text
	}
	if errors.Is(err, syscall.EPIPE) {
		return ""
	}
	return err.Error()
}

// reason says of a block what package fs says of files.
func reason(err error) string {
	switch {
	case errors.Is(err, shm.ErrFault) && errors.Is(err, shm.ErrNoSpace): // of a sparse block
		return "no memory left for shared memory"
	case errors.Is(err, fs.ErrNotExist):
		return "no such block"
	case errors.Is(err, fs.ErrExist):
		return "block exists"
	case errors.Is(err, shm.ErrFull):
		return "block is full"
	case errors.Is(err, shm.ErrReadOnly):
		return "block is read-only"
	case errors.Is(err, fs.ErrPermission):
		return "permission denied"
	case errors.Is(err, errors.ErrUnsupported):
		return "not supported on this system"
	}
	return err.Error()
}

// notify relays the signals that ask a command to end, and others. Those that
// the command was started to ignore, by nohup or as a job in the background of a
// script, stay ignored, here and in what hold runs.
func notify(signals chan<- os.Signal, others ...os.Signal) {
	for _, sig := range append([]os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP}, others...) {
		if !signal.Ignored(sig) {
			signal.Notify(signals, sig)
		}
	}
}

// untilSignal returns a context that is cancelled by the first signal of those
// that ask a command to end, with a signalError as its cause.
func untilSignal(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	notify(signals)
	go func() {
		select {
		case sig := <-signals:
			cancel(signalError{sig})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
		// The terminal has shown "^C", and the shell's prompt would follow it.
		if context.Cause(ctx) == (signalError{os.Interrupt}) && isTerminal(os.Stderr) {
			fmt.Fprintln(os.Stderr)
		}
	}
}

// makeRoom adds to an error for want of memory how to enlarge a full /dev/shm,
// of which the library says how much was wanted and is free, and else how much
// was wanted.
func makeRoom(err error, wanted int64) error {
	fault := errors.Is(err, shm.ErrFault) // of a sparse block
	switch {
	case !errors.Is(err, shm.ErrNoSpace):
	case runtime.GOOS == "linux" && (fault || errors.Is(err, syscall.ENOSPC)):
		err = hintError{err, "to enlarge it: mount -o remount,size=SIZE /dev/shm, or docker run --shm-size=SIZE"}
	case !fault:
		err = hintError{err, iec(wanted) + " wanted"}
	}
	return err
}

// attempt calls f and returns its error, or the cause of ctx if that comes
// first. Then f, which may be blocked in a read for good, is left to itself.
func attempt(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
