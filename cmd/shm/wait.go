package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/spf13/cobra"

	"github.com/shmkit/shm"
)

type waitFlags struct {
	exists, finished, gone bool
	size                   byteSize
	timeout                timeout
}

func waitCommand() *cobra.Command {
	var f waitFlags
	cmd := &cobra.Command{
		Use:   "wait NAME",
		Short: "Wait for a block",
		Long: `Wait exits with status 0 as soon as the block NAME

  --exists    exists and is not stale. This is the default.
  --size N    has N bytes that were written as a stream, as "shm put" does: before
              its first byte, a new block has none, whatever its size. It fails if
              the block is finished with less.
  --finished  is finished, as by "shm put". It may have been so before.
  --gone      is gone: it is stale, or the name is that of another block or of none.

--size and --finished exit with status 3 if the writer has ended without finishing
the block. If the block is truncated, they wait for what is written after that. They
attach to the block, which keeps it while they wait. --gone does not: it looks at the
block ten times a second.

After --timeout the exit status is 124. With 0 wait looks once. Without a unit, the
timeout is in seconds.`,
		Example: `  shm wait frames && ./player --shm frames
  shm wait frames --finished --timeout 1m
  shm wait frames --gone --timeout 10 || kill $player`,
		ValidArgsFunction: completeNames(1, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			ctx, cancel := f.timeout.context(ctx, "wait", args[0])
			defer cancel()
			return orCause(ctx, f.wait(ctx, args[0]))
		},
	}
	cmd.Flags().BoolVar(&f.exists, "exists", false, "wait until the block exists (default)")
	cmd.Flags().Var(&f.size, "size", "wait until so much has been written to the block")
	cmd.Flags().BoolVar(&f.finished, "finished", false, "wait until the block is finished")
	cmd.Flags().BoolVar(&f.gone, "gone", false, "wait until the block is gone or stale")
	cmd.MarkFlagsMutuallyExclusive("exists", "size", "finished", "gone")
	cmd.Flags().Var(&f.timeout, "timeout", "how long to wait at most")
	cmd.RegisterFlagCompletionFunc("size", cobra.NoFileCompletions)
	cmd.RegisterFlagCompletionFunc("timeout", cobra.NoFileCompletions)
	return cmd
}

func (f *waitFlags) wait(ctx context.Context, name string) error {
	if f.gone {
		return waitGone(ctx, name)
	}
	seg, err := shm.OpenWait(ctx, name, shm.ReadOnly())
	streams := f.finished || f.size > 0
	if errors.Is(err, shm.ErrNotSegment) && !streams { // it exists
		return nil
	}
	if err != nil {
		return err
	}
	defer seg.Close()
	for streams {
		if err := f.follow(ctx, seg); !errors.Is(err, shm.ErrTruncated) {
			return err
		}
	}
	return nil
}

// follow reads the stream as far as the command waits for it. The size of a block that
// is not begun says nothing of a stream.
func (f *waitFlags) follow(ctx context.Context, seg *shm.Segment) error {
	stream := seg.Follow(ctx)
	defer stream.Close()
	if f.finished {
		_, err := io.Copy(io.Discard, stream)
		return err
	}
	n, err := io.CopyN(io.Discard, stream, int64(f.size))
	if err == io.EOF {
		err = &fs.PathError{Op: "wait", Path: seg.Name(), Err: fmt.Errorf("finished with %d of %d bytes", n, f.size)}
	}
	return err
}

// waitGone waits until the block that has the name is gone or stale. It looks from time
// to time: to attach would be to keep the block.
func waitGone(ctx context.Context, name string) error {
	first, err := shm.Stat(name)
	for info := first; err == nil && !info.Stale() && info.ID == first.ID; info, err = shm.Stat(name) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
