package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/shmkit/shm"
)

// blockFlags say how a block is made.
type blockFlags struct {
	size   byteSize
	perm   permissions
	sparse bool
}

func (b *blockFlags) add(cmd *cobra.Command, size string) {
	b.perm = 0o600
	cmd.Flags().Var(&b.size, "size", size)
	cmd.Flags().Var(&b.perm, "perm", "permissions of a block that is made")
	cmd.Flags().BoolVar(&b.sparse, "sparse", false, "use memory as bytes are written instead of reserving it")
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

type putFlags struct {
	blockFlags
	force bool
	hold  bool
}

func putCommand() *cobra.Command {
	var f putFlags
	cmd := &cobra.Command{
		Use:   "put NAME",
		Short: "Make a block from standard input",
		Long: `Put makes the block NAME and streams standard input into it.

The block is persistent: it stays when put is done, until "shm rm NAME". With
--hold it is not; instead put prints "holding NAME" once all input is in the
block, and stays attached until Ctrl-C or SIGTERM, which is its normal end. The
block is then gone as soon as nobody else is attached to it.

The block has room for exactly the input if that is a file. Of a pipe nobody
knows how much will come: the block then has room for 1GiB, or --size, of which
only as much memory is used as is written. Input that does not fit is an error.

A block that exists already is an error. With --force it gets the new content
instead, seen by everybody who is attached to it; it stays what it is otherwise,
and the flags on how to make a block do not count.

Other processes can attach and read along while put is at work. If put fails or
is interrupted, a block that it made is removed, and one that existed keeps what
it got.`,
		Example: `  shm put frames <video.raw
  tar c . | shm put backup --size 4GiB
  shm put config --hold <config.json &`,
		Args: cobra.ExactArgs(1),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if !f.force {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return completeNames(1, managed)(cmd, args, "")
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			return put(ctx, args[0], os.Stdin, cmd.OutOrStdout(), f)
		},
	}
	f.add(cmd, "room in a block that is made (default: the size of the input, 1GiB for a pipe)")
	cmd.Flags().BoolVarP(&f.force, "force", "f", false, "replace the content of a block that exists")
	cmd.Flags().BoolVar(&f.hold, "hold", false, "stay attached instead of making the block persistent")
	return cmd
}

func put(ctx context.Context, name string, in *os.File, out io.Writer, f putFlags) (err error) {
	src, err := newSource(in)
	if err != nil {
		return err
	}
	seg, made, err := f.target(name, src)
	if err != nil {
		return err
	}
	defer seg.Close()
	if src.size > seg.Cap() { // before anything is lost
		err = &fs.PathError{Op: "write", Path: seg.Name(), Err: shm.ErrFull}
	} else {
		err = seg.Truncate(0)
	}
	if err == nil {
		err = attempt(ctx, func() error {
			_, err := io.Copy(seg, src.Reader)
			return streamError(err, seg.Name(), "read", "standard input")
		})
	}
	if err != nil {
		if made {
			seg.Unlink()
		}
		if errors.Is(err, shm.ErrFull) {
			err = hintError{err, "it has room for " + iec(seg.Cap())}
			if made {
				err = hintError{err, "see --size"}
			}
		}
		return err
	}
	if !f.hold {
		return seg.Close()
	}
	return holdUntil(ctx, seg, out)
}

// target returns the block to write to, and whether it is a new one.
func (f *putFlags) target(name string, src source) (seg *shm.Segment, made bool, err error) {
	if name == "" {
		return nil, false, usageError{errors.New("empty name")}
	}
	if f.force {
		if seg, err = shm.Open(name); !errors.Is(err, fs.ErrNotExist) {
			return seg, false, err
		}
	}
	room, reserve := src.room(int64(f.size))
	opts := f.options()
	if !reserve && !f.sparse {
		opts = append(opts, shm.Sparse())
	}
	if !f.hold {
		opts = append(opts, shm.Persistent())
	}
	seg, err = shm.Create(name, room, opts...)
	if errors.Is(err, shm.ErrNoSpace) {
		err = hintError{err, iec(room) + " wanted"}
	}
	return seg, true, err
}

func getCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "get NAME",
		Short: "Write a block to standard output",
		Long: `Get streams the block NAME to standard output, up to the last byte that is in
it. It also takes the blocks without a header that other programs make with
shm_open.`,
		Example: `  shm get frames >video.raw
  shm get frames | head -c 16 | xxd`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeNames(1, everyBlock),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			return get(ctx, args[0], os.Stdout)
		},
	}
}

func get(ctx context.Context, name string, out io.Writer) error {
	seg, err := shm.Open(name, shm.ReadOnly())
	if errors.Is(err, shm.ErrNotSegment) {
		seg, err = shm.Open(name, shm.ReadOnly(), shm.Headerless())
	}
	if err != nil {
		return err
	}
	defer seg.Close()
	err = attempt(ctx, func() error {
		_, err := io.Copy(out, seg)
		return err
	})
	return streamError(err, seg.Name(), "write", "standard output")
}

// streamError returns err of a copy between the block called name and another
// stream, which it names if it was that which failed and does not say so.
func streamError(err error, name, op, stream string) error {
	var path *fs.PathError
	switch {
	case err == nil || errors.As(err, new(signalError)):
		return err
	case !errors.As(err, &path):
		err = &fs.PathError{Op: op, Path: stream, Err: err}
	case path.Path == name:
		return err
	}
	return fileError{err}
}
