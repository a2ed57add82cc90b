// Shm creates, reads, lists and removes blocks of shared memory.
//
//	shm put frames <video.raw      # create a block from a stream
//	shm ls                         # list the blocks
//	shm get frames | sha256sum     # write a block to standard output
//	shm rm frames
//
// A block exists while a process is attached to it. A command detaches when it
// exits, so put keeps the block that it has written: it stays until rm. Hold keeps a
// block for as long as a program runs instead:
//
//	shm hold frames --size 16MiB -- ./server --shm frames
//
// Processes can work on a block at the same time:
//
//	shm get frames --follow        # read along while put writes
//	shm wait frames --finished
//	shm lock frames -- ./update    # as flock(1)
//
// Commands:
//
//	demo [FILE]            stream a file through a block to other processes
//	put NAME               create a block from standard input
//	get NAME               write a block to standard output
//	wait NAME              wait for a block
//	lock NAME -- CMD...    run a command with the lock of a block
//	ls                     list blocks
//	stat NAME              show the details of a block
//	who NAME               show the processes that are attached to a block
//	rm NAME...             unlink blocks
//	reap                   remove stale blocks
//	hold NAME [-- CMD...]  stay attached to a block
//	run -- CMD...          run a command with blocks of its own
//	serve ADDRESS          serve blocks to other processes
//	completion SHELL       print the completion script of a shell
//
// "shm help COMMAND" describes a command, "shm help" names, sizes and exit statuses.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	// A write to a broken pipe returns an error instead of killing a process that
	// is attached to a block.
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

// newRoot returns the command tree. *running is set once the command line has
// been checked; an error before that is a usage error.
func newRoot() (root *cobra.Command, running *bool) {
	root = &cobra.Command{
		Use:   "shm",
		Short: "Named shared memory from the shell",
		Long: `Shm creates, reads, lists and removes blocks of named shared memory.

A NAME has 1 to 255 letters, digits, dots, hyphens and underscores, and does not
begin with a dot (on macOS, at most 30; on Windows, 240). A NAME that begins with
a hyphen comes after "--".

A SIZE is a number of bytes, or a number with the unit K, M, G, T, P or E (also
KiB, MiB and so on) for powers of 1024, or kB, MB, GB and so on for powers of
1000: 4096, 64MiB, 1.5G.

The exit status is
  0    on success
  1    on failure
  2    on a usage error
  3    if the process that wrote the block has ended without finishing it
  4    if the block was truncated while it was being read or written
  124  if --timeout has passed, or if the lock is held and --nonblock is given
  128  plus the number of the signal that ended the command: 130 after Ctrl-C,
       141 if the reader of its output has exited
"hold NAME -- CMD", "lock NAME -- CMD" and "run -- CMD" exit with the status of CMD,
or with 126 or 127 if CMD could not be started.`,
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
		putCommand(), getCommand(), waitCommand(), lockCommand(), holdCommand(),
		lsCommand(), statCommand(), whoCommand(), rmCommand(), reapCommand(),
		serveCommand(), runCmdCommand())
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
	addHelp(root)
	return root, running
}

// operands checks the arguments by the command's Use: NAME is one argument,
// [NAME] is optional, and "-- CMD..." is a command.
func operands(cmd *cobra.Command, args []string) error {
	use, _, command := strings.Cut(cmd.Use, "-- CMD...")
	use, optional := strings.CutSuffix(use, "[")
	dash := cmd.ArgsLenAtDash()
	if command && dash >= 0 {
		if dash == len(args) {
			return errors.New("no command after --")
		}
		args = args[:dash]
	}
	for _, name := range strings.Fields(use)[1:] {
		switch {
		case len(args) > 0:
			args = args[1:]
		case !strings.HasPrefix(name, "["):
			return fmt.Errorf("no %s given", name)
		}
	}
	switch {
	case command && dash < 0 && (len(args) > 0 || !optional):
		return errors.New(`no "--" before the command`)
	case len(args) > 0:
		return fmt.Errorf("unexpected argument %q", args[0])
	}
	return nil
}

// addHelp adds cobra's help command, which exits with status 0 for a command
// that does not exist; here that is a usage error.
func addHelp(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	help, _, _ := root.Find([]string{"help"})
	help.Use, help.Short, help.Long = "help [COMMAND]", "Show the help of a command", ""
	run := help.Run
	help.RunE = func(cmd *cobra.Command, args []string) error {
		if _, rest, err := root.Find(args); err != nil || len(rest) > 0 {
			return fmt.Errorf("no help for %q: unknown command", strings.Join(args, " "))
		}
		run(cmd, args)
		return nil
	}
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
