package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"runtime"
	"sync/atomic"
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
		Long: `Put creates the block NAME and streams standard input into it. Other processes
can read along: see "shm get --follow". At the end of the input put finishes the
block, which tells them that it is complete, and keeps it: it stays until "shm rm".

With --hold put does not keep the block: it prints "holding NAME" once all input is
in it, stays attached until Ctrl-C or SIGTERM, and then exits with status 0. The
block is removed when no other process is attached to it any more.

If the input is a file, the block has room for exactly its bytes. The length of a
pipe is not known in advance: the block then has room for 1GiB, or --size, and
uses only as much memory as is written. Input that does not fit is an error, and
so is a block that exists. With --force, put replaces its content, which all
attached processes see, and the flags for a new block have no effect. Those that
follow the old content are told that it was truncated.

If put takes longer than a second, it shows its progress on a terminal, unless
the input is typed there.

If put fails or is interrupted, it removes a block that it has created. If it is
killed, the block is not kept: it goes with the last process that is attached, or
is stale if there is none. A block that existed keeps what was written to it. It is
not finished in any of these cases, and "shm get --follow" fails.`,
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
	cmd.Flags().BoolVar(&f.hold, "hold", false, "stay attached instead of keeping the block")
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
	if err == nil {
		err = seg.Finish()
	}
	if err == nil && !f.hold {
		if err = seg.Keep(); !made && errors.Is(err, errors.ErrUnsupported) {
			err = nil
		}
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
	if !f.hold && runtime.GOOS == "windows" { // before the input is read
		err = &fs.PathError{Op: "create", Path: name, Err: errors.ErrUnsupported}
		return nil, false, hintError{err, "Windows keeps no blocks: see --hold"}
	}
	room, opts := src.room(int64(f.size))
	seg, err = shm.Create(name, room, append(opts, f.options()...)...)
	return seg, true, makeRoom(err, room)
}

type getFlags struct{ force, follow bool }

func getCommand() *cobra.Command {
	var f getFlags
	cmd := &cobra.Command{
		Use:   "get NAME",
		Short: "Write a block to standard output",
		Long: `Get streams the block NAME to standard output, up to its size. It also reads
blocks without a header, which other programs create by shm_open.

With --follow, get waits until there is such a block, writes what another process
puts into it as it arrives, and exits with status 0 when the block is finished. It
exits with status 3 if the writer has ended without that, and 4 if the block was
truncated, as by "shm put --force". What it has written by then stays written. A
block into which nothing was ever written is not begun: get waits for its first
bytes. That a writer was killed takes up to a quarter of a second to notice.

Get does not write binary data to a terminal, which could interpret it as
commands, except with --force. Data is binary if its first 64KiB, or with --follow
what comes first, contain a zero byte or are not UTF-8.

If get takes longer than a second, it shows its progress on a terminal, unless its
output is a terminal, or a pipe whose reader may be using the terminal.`,
		Example: `  shm get frames >video.raw
  shm get frames --follow | ffplay -
  shm get frames | head -c 16 | xxd`,
		ValidArgsFunction: completeNames(1, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			return get(ctx, args[0], os.Stdout, f)
		},
	}
	cmd.Flags().BoolVarP(&f.force, "force", "f", false, "write binary data even to a terminal")
	cmd.Flags().BoolVar(&f.follow, "follow", false, "wait for the block, and for more until it is finished")
	return cmd
}

func get(ctx context.Context, name string, out *os.File, f getFlags) error {
	seg, err := f.open(ctx, name)
	if err != nil {
		return err
	}
	defer seg.Close()
	quiet, total := isTerminal(out), seg.Size()
	var to io.Writer = out
	if quiet && !f.force {
		to = &textOnly{to: out, name: name, more: f.follow || total > textChecked}
	}
	if info, err := out.Stat(); err == nil && info.Mode().Type() == fs.ModeNamedPipe {
		quiet = true
	}
	var from io.Reader = seg
	done := func() int64 {
		n, _ := seg.Seek(0, io.SeekCurrent)
		return n
	}
	if f.follow {
		var n counter
		from, to, total, done = seg.Follow(ctx), io.MultiWriter(to, &n), -1, n.Load
	}
	return showing(ctx, "get", quiet, total, done, func() error {
		_, err := io.Copy(to, from)
		return streamError(err, seg.Name(), "write", "standard output")
	})
}

// open opens the block to read.
func (f *getFlags) open(ctx context.Context, name string) (*shm.Segment, error) {
	if f.follow {
		seg, err := shm.OpenWait(ctx, name, shm.ReadOnly())
		return seg, orCause(ctx, err)
	}
	seg, err := shm.Open(name, shm.ReadOnly())
	if errors.Is(err, shm.ErrNotSegment) {
		seg, err = shm.Open(name, shm.ReadOnly(), shm.Headerless())
	}
	return seg, err
}

// counter counts the bytes that are written to it.
type counter struct{ atomic.Int64 }

func (n *counter) Write(p []byte) (int, error) {
	n.Add(int64(len(p)))
	return len(p), nil
}

// textOnly passes on what is written to it unless that begins with binary data.
type textOnly struct {
	to   io.Writer
	name string // of the block
	more bool   // than textChecked bytes may come: these may end within a character
	some bool   // were written
}

const textChecked = 64 << 10

func (t *textOnly) Write(p []byte) (int, error) {
	if !t.some {
		text := p[:min(len(p), textChecked)]
		for i := 1; i < min(utf8.UTFMax, len(text)+1) && t.more; i++ {
			if !utf8.FullRune(text[len(text)-i:]) {
				text = text[:len(text)-i]
				break
			}
		}
		if bytes.IndexByte(text, 0) >= 0 || !utf8.Valid(text) {
			err := errors.New("binary data is not for a terminal; use a file or a pipe, or --force")
			return 0, &fs.PathError{Op: "get", Path: t.name, Err: err}
		}
		t.some = true
	}
	return t.to.Write(p)
}

// source is a stream that fills a block.
type source struct {
	io.Reader
	size int64 // -1 if it is not known in advance
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
		return source{Reader: f, size: size}, nil
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
