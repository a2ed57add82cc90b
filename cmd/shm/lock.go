package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"

	"github.com/spf13/cobra"

	"github.com/shmkit/shm"
)

// recoveredEnv is set for CMD if the last process that had the lock died with it.
const recoveredEnv = "SHM_LOCK_RECOVERED"

func lockCommand() *cobra.Command {
	var f blockFlags
	var limit timeout
	var nonblock bool
	cmd := &cobra.Command{
		Use:   "lock NAME -- CMD...",
		Short: "Run a command with the lock of a block",
		Long: `Lock waits until no other process has the lock of the block NAME, takes it, runs
CMD, and releases it when CMD exits. It is the lock that Lock of the Go package
takes, and it protects only from those that take it, as flock(1) does. With --size
lock creates the block if there is none; it is removed when no process is attached
to it any more.

If the last process that had the lock was killed, what it was changing may be half
changed: lock says so on standard error and sets ` + recoveredEnv + `=1 for CMD.
Only the next one is told, and only if the block has outlived the killed process.

With --nonblock, or after --timeout, the exit status is 124 if another process has
the lock. Without a unit, the timeout is in seconds. If lock itself is killed, CMD is
killed as well: on Linux unless it has changed its credentials, as sudo, su and
set-user-ID programs do; on Windows with all that it has started; not on macOS. What
outlives lock goes on without the lock.

` + commandHelp,
		Example: `  shm lock frames -- ./update --shm frames
  shm lock jobs --size 4K --timeout 10 -- make -C jobs`,
		ValidArgsFunction: completeNameAndCommand,
		RunE: func(cmd *cobra.Command, args []string) error {
			seg, err := f.attach(args[0])
			if f.size == 0 && errors.Is(err, fs.ErrNotExist) {
				err = hintError{err, "to create it: --size"}
			}
			if err != nil {
				return err
			}
			defer seg.Close()
			recovered, err := takeLock(cmd.Context(), seg, nonblock, &limit)
			if err != nil {
				return err
			}
			defer seg.Unlock()        // to close with the lock is to die with it
			os.Unsetenv(recoveredEnv) // of a lock around this one
			if recovered {
				os.Setenv(recoveredEnv, "1")
				fmt.Fprintf(os.Stderr, "shm: lock %s: the last process that had it was killed: what it was changing may be half changed\n", args[0])
			}
			c := exec.Command(args[1], args[2:]...)
			survive := dieWithUs(c)
			defer survive()
			return runCommand(c)
		},
	}
	f.add(cmd, "create the block if there is none, with this capacity")
	cmd.Flags().BoolVarP(&nonblock, "nonblock", "n", false, "do not wait for the lock")
	cmd.Flags().Var(&limit, "timeout", "how long to wait for the lock at most")
	cmd.MarkFlagsMutuallyExclusive("nonblock", "timeout")
	cmd.RegisterFlagCompletionFunc("timeout", cobra.NoFileCompletions)
	return cmd
}

// takeLock takes the block's lock, and reports whether the last holder died with it.
func takeLock(ctx context.Context, seg *shm.Segment, nonblock bool, limit *timeout) (recovered bool, err error) {
	if nonblock {
		return seg.TryLock()
	}
	ctx, stop := untilSignal(ctx)
	defer stop()
	ctx, cancel := limit.context(ctx, "lock", seg.Name())
	defer cancel()
	recovered, err = seg.Lock(ctx)
	return recovered, orCause(ctx, err)
}
