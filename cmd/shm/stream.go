package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"unicode/utf8"

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

If put takes longer than a second it shows on a terminal how far it is, unless
its input is typed there.

Other processes can attach and read along while put is at work. If put fails or
is interrupted, a block that it made is removed, and one that existed keeps what
it got.`,
		Example: `  shm put frames <video.raw
  tar c . | shm put backup --size 4GiB
  shm put config --hold <config.json &`,
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
		quiet := isTerminal(in) // where text is being typed
		err = showing("put", quiet, src.size, seg.Size, func() error {
			return attempt(ctx, func() error {
				_, err := io.Copy(seg, src.Reader)
				return streamError(err, seg.Name(), "read", "standard input")
			})
		})
	}
	if err != nil {
		if made {
			seg.Unlink()
		}
		err = makeRoom(err, src.size)
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
	return seg, true, makeRoom(err, room)
}

func getCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "get NAME",
		Short: "Write a block to standard output",
		Long: `Get streams the block NAME to standard output, up to the last byte that is in
it. It also takes the blocks without a header that other programs make with
shm_open.

Binary data is not written to a terminal, which could take it for commands,
except with --force. Data is binary if its first 64KiB have a zero byte or are
not UTF-8.

If get takes longer than a second it shows on a terminal how far it is, unless
its output is a terminal or a pipe, of which the reader may use the terminal.`,
		Example: `  shm get frames >video.raw
  shm get frames | head -c 16 | xxd`,
		ValidArgsFunction: completeNames(1, everyBlock),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			return get(ctx, args[0], os.Stdout, force)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "write binary data to a terminal as well")
	return cmd
}

func get(ctx context.Context, name string, out *os.File, force bool) error {
	seg, err := shm.Open(name, shm.ReadOnly())
	if errors.Is(err, shm.ErrNotSegment) {
		seg, err = shm.Open(name, shm.ReadOnly(), shm.Headerless())
	}
	if err != nil {
		return err
	}
	defer seg.Close()
	quiet := isTerminal(out)
	if quiet && !force {
		binary, err := isBinary(seg)
		if err != nil {
			return err
		}
		if binary {
			return fmt.Errorf("get %s: binary data is not for a terminal; use a file or a pipe, or --force", seg.Name())
		}
	}
	if info, err := out.Stat(); err == nil && info.Mode().Type() == fs.ModeNamedPipe {
		quiet = true
	}
	done := func() int64 {
		n, _ := seg.Seek(0, io.SeekCurrent)
		return n
	}
	err = showing("get", quiet, seg.Size(), done, func() error {
		return attempt(ctx, func() error {
			_, err := io.Copy(out, seg)
			return err
		})
	})
	return streamError(err, seg.Name(), "write", "standard output")
}

// isBinary guesses by the first bytes of a block whether they are text.
func isBinary(seg *shm.Segment) (bool, error) {
	first := make([]byte, 64<<10)
	n, err := seg.ReadAt(first, 0)
	if err != nil && err != io.EOF {
		return false, err
	}
	if first = first[:n]; err == nil { // the last rune may be cut off
		for i := 1; i <= min(n, utf8.UTFMax); i++ {
			if at := n - i; utf8.RuneStart(first[at]) {
				if !utf8.FullRune(first[at:]) {
					first = first[:at]
				}
				break
			}
		}
	}
	return bytes.IndexByte(first, 0) >= 0 || !utf8.Valid(first), nil
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
