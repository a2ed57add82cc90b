package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize/english"
	"github.com/spf13/cobra"

	"github.com/shmkit/shm"
)

func demoCommand() *cobra.Command {
	var size byteSize
	readers := 4
	cmd := &cobra.Command{
		Use:   "demo [FILE]",
		Short: "Stream a file through a block to other processes",
		Long: `Demo streams FILE into a new block by io.Copy. Meanwhile it starts reader
processes. Each attaches to the block by its name, streams it out while it is
still being filled, and computes the SHA-256 of what it reads. One reader is killed
by SIGKILL halfway. At the end a table shows whether the other readers have read
exactly the bytes of FILE, the number of attachments followed the readers as they
came, went and were killed, the block has survived the killed reader, and its name
was gone after the last Close, although that reader never called it. The exit
status is 0 only if all of this holds.

Without FILE, demo generates pseudo-random bytes. FILE "-" is standard input. For a
pipe, whose length is unknown, the block has room for 1GiB, or --size.`,
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
			return runDemo(ctx, src, int64(size), readers, os.Stdout)
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
	var seed [32]byte
	stream := func() io.Reader { return io.LimitReader(rand.NewChaCha8(seed), size) }
	return source{Reader: stream(), size: size, again: stream}
}

// runDemo runs the demo on out and returns an error if a check has failed.
func runDemo(ctx context.Context, src source, size int64, readers int, out *os.File) error {
	if src.size >= 0 {
		size = 0 // which is for pipes
	}
	room, opts := src.room(size)
	seg, err := shm.Create("", room, opts...)
	if err != nil {
		return makeRoom(err, room)
	}
	d := &demo{seg: seg, src: src}
	for i := range readers {
		d.readers = append(d.readers, newReader(i+1))
	}
	d.view = &lines{out: out, total: src.size, last: time.Now()}
	if canShow(out) {
		d.view = newBars(out, src.size, d.readers)
	}
	err = d.stream(ctx)
	d.view.stop()
	if err != nil {
		// A killed reader that is the last one attached would leave the block stale.
		for _, r := range d.readers {
			r.kill()
		}
		seg.Close()
		if errors.Is(err, shm.ErrFull) {
			err = hintError{err, "it has room for " + iec(room) + "; see --size"}
		}
		return err
	}
	d.close()
	return d.report(out)
}

// demo is one run of the demo.
type demo struct {
	seg     *shm.Segment
	src     source
	readers []*reader // in the order of their start; the first one is killed
	view    view

	wrote    int64
	took     time.Duration // without the pause in which the reader is killed
	want     [sha256.Size]byte
	survived bool // the block, the kill
	checks   []check
}

// check is a check with its result.
type check struct {
	what, result string
	ok           bool
}

func (d *demo) check(what, result string, ok bool) {
	d.checks = append(d.checks, check{what, result, ok})
}

// count checks the number of attachments, and returns it in words.
func (d *demo) count(when string, want int) string {
	refs := d.seg.Refs()
	d.check("attachments, "+when, fmt.Sprint(refs), refs == want)
	return english.Plural(refs, "attachment", "")
}

// stream fills the block while the readers read it, and kills one of them.
func (d *demo) stream(ctx context.Context) error {
	if err := d.seg.Truncate(0); err != nil {
		return err
	}
	d.view.event("created %s with room for %s: %s", d.seg.Name(), iec(d.seg.Cap()), d.count("created", 1))

	ticking, stopTicking := context.WithCancel(ctx)
	defer stopTicking()
	go d.tick(ticking)

	// The first half is streamed while the readers attach, the second after one
	// of them has been killed.
	h := sha256.New()
	in := d.src.Reader
	if d.src.again == nil {
		in = io.TeeReader(in, h)
	}
	half := int64(1 << 20)
	if d.src.size >= 0 {
		half = d.src.size / 2
	}
	fill := func(r io.Reader) <-chan error {
		return begin(func() error {
			start := time.Now()
			n, err := io.Copy(d.seg, r)
			d.wrote += n
			d.took += time.Since(start)
			return streamError(err, d.seg.Name(), "read", "input")
		})
	}
	filled := fill(io.LimitReader(in, half))
	var counts []string
	counted := true
	for i, r := range d.readers {
		if err := r.start(ctx, d); err != nil {
			return err
		}
		refs := d.seg.Refs()
		counts, counted = append(counts, fmt.Sprint(refs)), counted && refs == 2+i
		d.view.event("reader %d (process %d) attached at %s: %s", r.number, r.cmd.Process.Pid, iec(d.seg.Size()), english.Plural(refs, "attachment", ""))
	}
	d.check("attachments, readers attaching", strings.Join(counts, " "), counted)
	if err := wait(ctx, filled); err != nil {
		return err
	}
	victim := d.readers[0]
	if d.wrote > 0 {
		if err := victim.await(ctx, victim.first); err != nil {
			return err
		}
	}
	victim.kill()
	attachments := d.count("one killed", len(d.readers)) // this process and the other readers
	d.view.killed(victim)
	d.view.event("reader %d killed at %s: %s left", victim.number, iec(d.seg.Size()), attachments)
	before := d.wrote
	if err := wait(ctx, fill(in)); err != nil {
		return err
	}
	stopTicking()
	d.view.wrote(d.wrote, d.took)

	for _, r := range d.readers[1:] {
		fmt.Fprintln(r.in, "end", d.wrote) // which fails if it has exited
	}
	hashed := begin(func() (err error) {
		if d.src.again != nil {
			_, err = io.Copy(h, d.src.again())
		}
		h.Sum(d.want[:0])
		return streamError(err, d.seg.Name(), "read", "input")
	})
	for _, r := range d.readers[1:] {
		select {
		case <-r.ended:
			d.view.done(r)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err := wait(ctx, hashed); err != nil {
		return err
	}
	d.survived = d.seg.Size() == d.wrote && victim.status == killedStatus
	d.count("others done", 1) // this process
	d.check("block survived SIGKILL", iec(d.wrote-before)+" written after it", d.survived)
	equal := 0
	for _, r := range d.readers[1:] {
		if r.saw(d.want[:]) {
			equal++
		}
	}
	others := len(d.readers) - 1
	d.check("hashes equal", fmt.Sprintf("%d of %d", equal, others), equal == others)
	return nil
}

// tick shows the progress while the block is being filled.
func (d *demo) tick(ctx context.Context) {
	var last int64
	for range time.Tick(10 * time.Millisecond) {
		if ctx.Err() != nil {
			return
		}
		if size := d.seg.Size(); size != last {
			last = size
			d.view.progress(size)
		}
	}
}

// close closes the last Segment and checks that the block is gone.
func (d *demo) close() {
	name := d.seg.Name()
	var left []string
	check := func(found bool, where string) {
		if found {
			left = append(left, where)
		}
	}
	err := d.seg.Close()
	check(err != nil, message(err))
	_, err = shm.Stat(name)
	check(!errors.Is(err, fs.ErrNotExist), "shm.Stat finds it")
	list, err := shm.List()
	check(err != nil && !errors.Is(err, errors.ErrUnsupported), message(err))
	check(slices.ContainsFunc(list, func(i shm.Info) bool { return i.Name == name }), "shm.List has it")
	_, err = os.Lstat(filepath.Join("/dev/shm", name))
	check(!errors.Is(err, fs.ErrNotExist), "it is in /dev/shm")
	result := "gone after the last Close"
	if len(left) > 0 {
		shm.Unlink(name)
		result = strings.Join(left, ", ")
	}
	d.check("name "+name, result, len(left) == 0)
}
