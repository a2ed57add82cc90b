package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/shmkit/shm"
)

type putFlags struct {
	blockFlags
	force, hold bool
}

func putCommand() *cobra.Command {
	var f putFlags
	cmd := &cobra.Command{
		Use:   "put NAME",
		Short: "Create a block from standard input",
		Long: `Put creates the block NAME and streams standard input into it.

The block is persistent: it stays after put has exited, until "shm rm NAME". With
--hold it is not persistent: put prints "holding NAME" once all input is in the
block, stays attached until Ctrl-C or SIGTERM, and then exits with status 0. The
block is removed when no other process is attached to it any more.

If the input is a file, the block has room for exactly its bytes. The length of a
pipe is not known in advance: the block then has room for 1GiB, or --size, and
uses only as much memory as is written. Input that does not fit is an error, and
so is a block that exists. With --force, put replaces its content, which all
attached processes see, and the flags for a new block have no effect.

If put takes longer than a second, it shows its progress on a terminal, unless
the input is typed there. Other processes can attach and read while put is
writing. If put fails or is interrupted, it removes a block that it has created; a
block that existed keeps what was written to it.`,
		Example: `  shm put frames <video.raw
  tar c . | shm put backup --size 4GiB
  shm put config --hold <config.json &`,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if !f.force {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return completeNames(1, false)(cmd, args, "")
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			return put(ctx, args[0], os.Stdin, cmd.OutOrStdout(), f)
		},
	}
	f.add(cmd, "capacity of a new block (default: the size of the input, 1GiB for a pipe)")
	cmd.Flags().BoolVarP(&f.force, "force", "f", false, "replace the content of an existing block")
	cmd.Flags().BoolVar(&f.hold, "hold", false, "stay attached instead of making the block persistent")
	return cmd
}

func put(ctx context.Context, name string, in *os.File, out io.Writer, f putFlags) error {
	src, err := newSource(in)
	if err != nil {
		return err
	}
	seg, made, err := f.target(name, src)
	if err != nil {
		return err
	}
	defer seg.Close()
	if src.size > seg.Cap() { // keep the content of an existing block
		err = &fs.PathError{Op: "write", Path: seg.Name(), Err: shm.ErrFull}
	} else {
		err = seg.Truncate(0)
	}
	if err == nil {
		err = showing(ctx, "put", isTerminal(in), src.size, seg.Size, func() error {
			_, err := io.Copy(seg, src.Reader)
			return streamError(err, seg.Name(), "read", "standard input")
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

// target returns the block to write to, and whether it was created.
func (f *putFlags) target(name string, src source) (seg *shm.Segment, made bool, err error) {
	if name == "" {
		return nil, false, usageError{errors.New("empty name")}
	}
	if f.force {
		if seg, err = shm.Open(name); !errors.Is(err, fs.ErrNotExist) {
			return seg, false, err
		}
	}
	room, opts := src.room(int64(f.size))
	opts = append(opts, f.options()...)
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
		Long: `Get streams the block NAME to standard output, up to its size. It also reads
blocks without a header, which other programs create by shm_open.

Get does not write binary data to a terminal, which could interpret it as
commands, except with --force. Data is binary if its first 64KiB contain a zero
byte or are not UTF-8.

If get takes longer than a second, it shows its progress on a terminal, unless its
output is a terminal, or a pipe whose reader may be using the terminal.`,
		Example: `  shm get frames >video.raw
  shm get frames | head -c 16 | xxd`,
		ValidArgsFunction: completeNames(1, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			return get(ctx, args[0], os.Stdout, force)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "write binary data even to a terminal")
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
		if err := checkText(seg); err != nil {
			return err
		}
	}
	if info, err := out.Stat(); err == nil && info.Mode().Type() == fs.ModeNamedPipe {
		quiet = true
	}
	done := func() int64 {
		n, _ := seg.Seek(0, io.SeekCurrent)
		return n
	}
	return showing(ctx, "get", quiet, seg.Size(), done, func() error {
		_, err := io.Copy(out, seg)
		return streamError(err, seg.Name(), "write", "standard output")
	})
}

// checkText returns an error if the block begins with binary data.
func checkText(seg *shm.Segment) error {
	text := make([]byte, 64<<10)
	n, err := seg.ReadAt(text, 0)
	if err != nil && err != io.EOF {
		return err
	}
	text = text[:n]
	for i := 1; i < utf8.UTFMax && err == nil && !utf8.Valid(text); i++ {
		text = text[:n-i] // of the block, it may end within a character
	}
	if bytes.IndexByte(text, 0) >= 0 || !utf8.Valid(text) {
		return fmt.Errorf("get %s: binary data is not for a terminal; use a file or a pipe, or --force", seg.Name())
	}
	return nil
}

// source is a stream that fills a block.
type source struct {
	io.Reader
	size  int64            // -1 if it is not known in advance
	again func() io.Reader // returns the same bytes again; nil if they cannot be read twice
}

// newSource returns f from its offset on. A regular file of size 0 may be one that
// is generated when it is read, as in /proc: whether it is empty is found by reading.
func newSource(f *os.File) (source, error) {
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = &fs.PathError{Op: "read", Path: f.Name(), Err: syscall.EISDIR}
	}
	if err != nil {
		return source{}, fileError{err}
	}
	if !info.Mode().IsRegular() {
		return source{Reader: f, size: -1}, nil
	}
	from, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return source{}, fileError{err}
	}
	if size := info.Size() - from; size > 0 {
		again := func() io.Reader { return io.NewSectionReader(f, from, size) }
		return source{Reader: f, size: size, again: again}, nil
	}
	first := make([]byte, 1)
	switch _, err := io.ReadFull(f, first); err {
	case nil:
		return source{Reader: io.MultiReader(bytes.NewReader(first), f), size: -1}, nil
	case io.EOF:
		return source{Reader: f, size: 0}, nil
	default:
		return source{}, fileError{err}
	}
}

// room returns the capacity of a block for the source, unless wanted is set, and
// options: the memory is not reserved if the size of the source is unknown.
func (s source) room(wanted int64) (capacity int64, opts []shm.Option) {
	if s.size < 0 {
		return cmp.Or(wanted, 1<<30), []shm.Option{shm.Sparse()}
	}
	return cmp.Or(wanted, s.size, 1), nil // the least capacity of a block is 1
}

// streamError returns the error of a copy between the block called name and
// another stream. An error that does not name a path is given the name of that
// stream.
func streamError(err error, name, op, stream string) error {
	var path *fs.PathError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &path):
		err = &fs.PathError{Op: op, Path: stream, Err: err}
	case path.Path == name:
		return err
	}
	return fileError{err}
}
