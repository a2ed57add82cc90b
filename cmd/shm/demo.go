package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/dustin/go-humanize/english"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/shmkit/shm"
)

func demoCommand() *cobra.Command {
	var size byteSize
	readers := 4
	cmd := &cobra.Command{
		Use:   "demo [FILE]",
		Short: "Stream a file through a block to other processes",
		Long: `Demo streams FILE into a new block by io.Copy. Meanwhile reader processes follow the
block and compute the SHA-256 of what they read. One reader is killed by SIGKILL
halfway. Then "shm put" streams into another block that the same number of readers
follow, and is killed halfway itself.

At the end a table shows whether the number of attachments followed the readers as
they came, went and were killed, the other readers have read exactly the bytes of
FILE, the readers of the killed writer were told so after they had read all that it
wrote, and the names of both blocks were gone after the last Close, although killed
processes never called it. The exit status is 0 only if all of this holds.

Without FILE, demo generates pseudo-random bytes. FILE "-" is standard input. For a
pipe, whose length is unknown, the block has room for 1GiB, or --size. If streaming
takes longer than a second, demo shows its progress on a terminal.`,
		Example: `  shm demo
  shm demo /usr/lib/os-release
  zcat dump.gz | shm demo - --size 8GiB`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if readers < 2 {
				return usageError{errors.New("--readers: at least 2, of which one is killed")}
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			src, err := demoSource(args, int64(size))
			if err != nil {
				return err
			}
			if src.size >= 0 {
				size = 0 // which is for pipes
			}
			d := &demo{out: os.Stdout, checks: newTable()}
			d.checks.AppendHeader(table.Row{"", "CHECK", "RESULT"})
			name, err := d.killReader(ctx, readers, src, int64(size))
			if err == nil {
				err = d.killWriter(ctx, readers, name+"-2")
			}
			if err != nil {
				return err
			}
			return d.report()
		},
	}
	cmd.Flags().Var(&size, "size", "how much to generate without FILE (default 32MiB), or room for a pipe (default 1GiB)")
	cmd.Flags().IntVar(&readers, "readers", readers, "number of readers, including the killed one")
	cmd.RegisterFlagCompletionFunc("size", cobra.NoFileCompletions)
	cmd.RegisterFlagCompletionFunc("readers", cobra.NoFileCompletions)
	return cmd
}

func demoSource(args []string, size int64) (source, error) {
	if len(args) == 0 {
		return generatedSource(cmp.Or(size, 32<<20)), nil // the default fits the /dev/shm of a container
	}
	in := os.Stdin
	if args[0] != "-" {
		var err error
		if in, err = os.Open(args[0]); err != nil {
			return source{}, fileError{err}
		}
	}
	return newSource(in)
}

// generatedSource returns a source of size pseudo-random bytes.
func generatedSource(size int64) source {
	return source{Reader: io.LimitReader(rand.NewChaCha8([32]byte{}), size), size: size}
}

// readerCommand is the command that the demo starts as its readers.
func readerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "demo-reader NAME",
		Short:  "Follow a block, and print its length and SHA-256 (run by demo)",
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			signal.Ignore(os.Interrupt) // on Ctrl-C the demo kills its readers
			seg, err := shm.Open(args[0], shm.ReadOnly())
			if err != nil {
				return err
			}
			defer seg.Close()
			if err := seg.Notify(); err != nil { // the demo waits for attachments
				return err
			}
			sum := sha256.New()
			n, err := io.Copy(sum, seg.Follow(cmd.Context()))
			fmt.Print(digest(n, sum.Sum(nil)))
			return cmp.Or(err, seg.Close())
		},
	}
}

// digest is what a reader prints.
func digest(n int64, sum []byte) string { return fmt.Sprintf("%d bytes, SHA-256 %.16x…\n", n, sum) }

// demo is one run of the demo.
type demo struct {
	out    *os.File
	checks table.Writer
	failed int
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

func (d *demo) check(what string, ok bool, result string, args ...any) {
	word, color := "ok", text.FgGreen
	if !ok {
		d.failed++
		word, color = "FAILED", text.FgRed
	}
	if isTerminal(d.out) {
		word = color.Sprint(word)
	}
	d.checks.AppendRow(table.Row{word, what, fmt.Sprintf(result, args...)})
}

// report prints the checks and returns an error if one has failed.
func (d *demo) report() error {
	if _, err := fmt.Fprintf(d.out, "\n%s\n", d.checks.Render()); err != nil {
		return fileError{err}
	}
	if d.failed > 0 {
		return fmt.Errorf("demo: %s", english.Plural(d.failed, "failed check", ""))
	}
	return nil
}

// killReader streams src into a block that readers follow, and kills one of them. It
// returns the name of the block.
func (d *demo) killReader(ctx context.Context, count int, src source, size int64) (name string, err error) {
	room, opts := src.room(size)
	seg, err := shm.Create("", room, opts...)
	if err != nil {
		return "", makeRoom(err, room)
	}
	defer seg.Close() // after its readers were killed, or the last of these would leave it stale
	if err := seg.Truncate(0); err != nil {
		return "", err
	}
	d.say("created %s with room for %s: %s", seg.Name(), iec(room), d.attachments(seg, "created", 1))
	readers, stop, err := d.startReaders(ctx, seg, count)
	defer stop()
	if err != nil {
		return "", err
	}

	sum := sha256.New()
	in := io.TeeReader(src.Reader, sum)
	var took time.Duration
	fill := func(in io.Reader) error {
		start := time.Now()
		typed := src.size < 0 && isTerminal(os.Stdin)
		err := showing(ctx, "demo", typed, src.size, seg.Size, func() error {
			_, err := io.Copy(seg, in)
			return streamError(err, seg.Name(), "read", "input")
		})
		took += time.Since(start)
		if errors.Is(err, shm.ErrFull) {
			return hintError{err, "it has room for " + iec(room) + "; see --size"}
		}
		return makeRoom(err, src.size)
	}
	half := int64(1 << 20)
	if src.size >= 0 {
		half = src.size / 2
	}
	if err := fill(io.LimitReader(in, half)); err != nil {
		return "", err
	}
	half = seg.Size()
	readers[0].kill()
	d.say("reader 1 killed at %s: %s left", iec(half), d.attachments(seg, "one killed", count))
	if err := fill(in); err != nil {
		return "", err
	}
	if err := seg.Finish(); err != nil {
		return "", err
	}
	d.say("wrote %s, %s", iec(seg.Size()), speed(seg.Size(), took))
	killed := readers[0].ProcessState.String() == killedStatus
	d.check("block survived SIGKILL", killed, "%s written after it", iec(seg.Size()-half))
	equal, err := d.await(ctx, readers[1:], digest(seg.Size(), sum.Sum(nil)), 0)
	if err != nil {
		return "", err
	}
	d.check("hashes equal", equal == count-1, "%d of %d", equal, count-1)
	d.end(seg)
	return seg.Name(), nil
}

// killWriter has "shm put" stream into a block that readers follow, and kills it.
func (d *demo) killWriter(ctx context.Context, count int, name string) error {
	data := make([]byte, 2<<20)
	rand.NewChaCha8([32]byte{}).Read(data)
	sum := sha256.Sum256(data)

	alive, ended := context.WithCancelCause(ctx)
	defer ended(nil)
	writer, err := startChild("writer", ended, "put", "--hold", "--size", "4MiB", name)
	if err != nil {
		return err
	}
	defer shm.Unlink(name) // if it is interrupted
	defer writer.kill()
	seg, err := shm.OpenWait(alive, name, shm.ReadOnly())
	if err != nil {
		return orCause(alive, err)
	}
	defer seg.Close()
	d.say("writer (process %d) created %s", writer.Process.Pid, name)
	readers, stop, err := d.startReaders(alive, seg, count)
	defer stop()
	if err != nil {
		return err
	}
	begin(func() error {
		_, err := writer.in.Write(data) // and no end
		return err
	})
	if _, err := io.CopyN(io.Discard, seg.Follow(alive), int64(len(data))); err != nil {
		return orCause(alive, err)
	}
	writer.kill()
	d.say("writer killed at %s", iec(seg.Size()))
	told, err := d.await(ctx, readers, digest(seg.Size(), sum[:]), abandonedStatus)
	if err != nil {
		return err
	}
	d.check("writer killed, readers told", told == count, "%d of %d, after all %s", told, count, iec(seg.Size()))
	d.end(seg)
	return nil
}

// attachments checks the number of attachments, and returns it in words.
func (d *demo) attachments(seg *shm.Segment, when string, want int) string {
	refs := seg.Refs()
	d.check("attachments, "+when, refs == want, "%d", refs)
	return english.Plural(refs, "attachment", "")
}

// end closes the last Segment and checks that the block is gone.
func (d *demo) end(seg *shm.Segment) {
	d.attachments(seg, "readers done", 1)
	closed := seg.Close()
	_, found := shm.Stat(seg.Name())
	_, file := os.Lstat(filepath.Join("/dev/shm", seg.Name()))
	if closed == nil && errors.Is(found, fs.ErrNotExist) && errors.Is(file, fs.ErrNotExist) {
		d.check("name "+seg.Name(), true, "gone after the last Close")
		return
	}
	shm.Unlink(seg.Name())
	d.check("name "+seg.Name(), false, "Close: %v; shm.Stat: %v; /dev/shm: %v", closed, found, file)
}

// startReaders starts readers of the block, one after the other has attached. stop kills
// those that run.
func (d *demo) startReaders(ctx context.Context, seg *shm.Segment, count int) (readers []*child, stop func(), err error) {
	stop = func() {
		for _, r := range readers {
			r.kill()
		}
	}
	alive, ended := context.WithCancelCause(ctx)
	defer ended(nil)
	before := seg.Refs()
	var counts []string
	exact := true
	for i := range count {
		r, err := startChild(fmt.Sprint("reader ", i+1), ended, "demo-reader", seg.Name())
		if err != nil {
			return readers, stop, err
		}
		readers = append(readers, r)
		want := before + len(readers)
		if err := seg.Wait(alive, func() bool { return seg.Refs() >= want }); err != nil {
			return readers, stop, orCause(alive, err)
		}
		refs := seg.Refs()
		counts, exact = append(counts, fmt.Sprint(refs)), exact && refs == want
		d.say("%s (process %d) attached: %d attachments", r.what, r.Process.Pid, refs)
	}
	d.check("attachments, readers attaching", exact, "%s", strings.Join(counts, " "))
	return readers, stop, nil
}

// await waits until the readers have ended, and returns how many have printed want and
// exited with that status.
func (d *demo) await(ctx context.Context, readers []*child, want string, status int) (good int, err error) {
	for _, r := range readers {
		select {
		case <-r.ended:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
		d.say("%s: %s", r.what, r.said())
		if r.stdout.String() == want && r.ProcessState.ExitCode() == status {
			good++
		}
	}
	return good, nil
}

// child is a process of the demo.
type child struct {
	*exec.Cmd
	what           string
	in             io.Writer
	stdout, stderr bytes.Buffer
	ended          chan struct{} // closed when the process has exited
	survive        func()
}

// startChild starts this program with these arguments. It calls onEnd when that exits.
func startChild(what string, onEnd context.CancelCauseFunc, args ...string) (*child, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fileError{err}
	}
	c := &child{Cmd: exec.Command(exe, args...), what: what, ended: make(chan struct{})}
	c.Args[0] = os.Args[0] // programs with several names go by it
	c.Stdout, c.Stderr = &c.stdout, &c.stderr
	if c.in, err = c.StdinPipe(); err != nil {
		return nil, fileError{err}
	}
	c.survive = dieWithUs(c.Cmd)
	if err := c.Start(); err != nil {
		return nil, fileError{err}
	}
	go func() {
		c.Wait()
		close(c.ended)
		if cause := signalError(os.Interrupt); c.ProcessState.ExitCode() == int(cause) {
			onEnd(cause) // Ctrl-C, which this process gets as well
		}
		onEnd(fmt.Errorf("%s: %s", what, c.said()))
	}()
	return c, nil
}

// kill kills the process if it runs, and waits for its end.
func (c *child) kill() {
	c.Process.Kill()
	<-c.ended
	c.survive()
}

// said returns the output of a process that has ended, or else how it has ended.
func (c *child) said() string {
	said := strings.TrimSpace(c.stdout.String() + strings.TrimPrefix(c.stderr.String(), "shm: "))
	return cmp.Or(strings.ReplaceAll(said, "\n", "\n    "), c.ProcessState.String())
}
