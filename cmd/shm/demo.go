package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/shmkit/shm"
)

func demoCommand() *cobra.Command {
	o := demoOptions{readers: 4}
	cmd := &cobra.Command{
		Use:   "demo [FILE]",
		Short: "Stream a file through a block to other processes",
		Long: `Demo streams FILE into a new block by io.Copy. Meanwhile it starts reader
processes, which attach to the block by its name, stream it out again while it
is still being filled, and compute the SHA-256 of what they see. One of them is
killed by SIGKILL half way. In the end the table shows whether

  - the other readers have seen the bytes of FILE, all of them,
  - the attachments were counted as they came and went,
  - the block has survived the killed reader, and
  - its name was gone after the last Close, although one never came.

The exit status is 0 only if all of it held.

Without FILE, pseudo-random bytes are made on the spot. FILE "-" is standard
input. Of a pipe nobody knows how much will come: there is then room for 1GiB,
or --size.`,
		Example: `  shm demo
  shm demo /usr/lib/os-release
  zcat dump.gz | shm demo - --size 8GiB`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.readers < 2 {
				return usageError{errors.New("--readers: at least 2, of which one is killed")}
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			src, err := demoSource(args, int64(o.size))
			if err != nil {
				return err
			}
			return runDemo(ctx, src, o, os.Stdout)
		},
	}
	cmd.Flags().Var(&o.size, "size", "how much to make without FILE (default 32MiB), or room for a pipe (default 1GiB)")
	cmd.Flags().IntVar(&o.readers, "readers", o.readers, "how many readers to start, the killed one included")
	cmd.RegisterFlagCompletionFunc("size", cobra.NoFileCompletions)
	cmd.RegisterFlagCompletionFunc("readers", cobra.NoFileCompletions)
	return cmd
}

type demoOptions struct {
	size    byteSize
	readers int
}

func demoSource(args []string, size int64) (source, error) {
	switch {
	case len(args) == 0:
		if size == 0 {
			size = 32 << 20 // fits the /dev/shm of a container
		}
		return madeSource(size), nil
	case args[0] == "-":
		return newSource(os.Stdin)
	}
	f, err := os.Open(args[0])
	if err != nil {
		return source{}, fileError{err}
	}
	return newSource(f)
}

// madeSource returns size bytes that look random.
func madeSource(size int64) source {
	var seed [32]byte
	stream := func() io.Reader { return io.LimitReader(rand.NewChaCha8(seed), size) }
	return source{Reader: stream(), size: size, again: stream}
}

// runDemo shows on out what a block can do and returns nil if it all held.
func runDemo(ctx context.Context, src source, o demoOptions, out *os.File) (err error) {
	room, reserve := src.room(int64(o.size))
	if src.size >= 0 {
		room = max(src.size, 1) // --size is for pipes
	}
	var opts []shm.Option
	if !reserve {
		opts = append(opts, shm.Sparse())
	}
	seg, err := shm.Create("", room, opts...)
	if err != nil {
		return makeRoom(err, room)
	}
	d := &demo{seg: seg, src: src}
	for i := range o.readers {
		d.readers = append(d.readers, newReader(i+1))
	}
	if canShow(out) {
		d.view = newBars(out, src.size, d.readers)
	} else {
		d.view = &lines{out: out, total: src.size}
	}
	err = d.stream(ctx)
	d.view.stop()
	if err != nil {
		// The last to close is to be the one who can take the name away.
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

// demo is one run. Readers are in the order in which they start; the first one
// is the victim.
type demo struct {
	seg     *shm.Segment
	src     source
	readers []*reader
	view    view

	wrote    int64
	took     time.Duration // without the wait for the victim's end
	want     [sha256.Size]byte
	counts   []count
	left     []string // ways in which the name is still there
	after    int64    // bytes written after the victim's end
	survived bool
}

// Events at which attachments are counted.
const (
	eventCreated  = "created"
	eventAttached = "readers attaching"
	eventKilled   = "one killed"
	eventDone     = "others done"
)

// count is how many attachments there were at some time.
type count struct {
	when      string
	got, want int
}

func (d *demo) count(when string, want int) {
	d.counts = append(d.counts, count{when, d.seg.Refs(), want})
}

// stream fills the block and has the readers empty it.
func (d *demo) stream(ctx context.Context) error {
	if err := d.seg.Truncate(0); err != nil {
		return err
	}
	d.count(eventCreated, 1)
	d.view.event("created %s with room for %s: %s", d.seg.Name(), iec(d.seg.Cap()), plural(d.seg.Refs(), "attachment"))

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
	fill := func(r io.Reader) chan error {
		done := make(chan error, 1)
		go func() {
			start := time.Now()
			n, err := io.Copy(d.seg, r)
			d.wrote += n
			d.took += time.Since(start)
			done <- streamError(err, d.seg.Name(), "read", "input")
		}()
		return done
	}
	filled := fill(io.LimitReader(in, half))
	for i, r := range d.readers {
		if err := r.start(ctx, d); err != nil {
			return err
		}
		d.count(eventAttached, 2+i)
		d.view.event("reader %d (process %d) attached at %s: %s", r.number, r.pid(), iec(d.seg.Size()), plural(d.seg.Refs(), "attachment"))
	}
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
	d.count(eventKilled, 1+len(d.readers))
	d.view.killed(victim)
	d.view.event("reader %d killed at %s: still %s counted", victim.number, iec(d.seg.Size()), plural(d.seg.Refs(), "attachment"))
	before := d.wrote
	filled = fill(in)
	if err := wait(ctx, filled); err != nil {
		return err
	}
	stopTicking()
	d.after = d.wrote - before
	d.view.wrote(d.wrote, d.took)

	for _, r := range d.readers[1:] {
		r.end(d.wrote)
	}
	hashed := make(chan error, 1)
	go func() {
		var err error
		if d.src.again != nil {
			_, err = io.Copy(h, d.src.again())
		}
		h.Sum(d.want[:0])
		hashed <- streamError(err, d.seg.Name(), "read", "input")
	}()
	for _, r := range d.readers[1:] {
		if err := r.wait(ctx); err != nil {
			return err
		}
		d.view.done(r)
	}
	if err := wait(ctx, hashed); err != nil {
		return err
	}
	d.survived = d.seg.Size() == d.wrote && victim.status == killedStatus
	d.count(eventDone, 2) // this process, and the killed one
	return nil
}

// wait returns what comes first, a result or a signal.
func wait(ctx context.Context, done <-chan error) error {
	return attempt(ctx, func() error { return <-done })
}

// tick lets the readers know of new bytes, and people of progress, while the
// block is being filled. A block cannot be waited on, but a pipe can.
func (d *demo) tick(ctx context.Context) {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	var last int64
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if size := d.seg.Size(); size != last {
			last = size
			d.view.progress(size)
			for _, r := range d.readers {
				r.wake()
			}
		}
	}
}

// close is the last Close, and looks what is left of the block.
func (d *demo) close() {
	name := d.seg.Name()
	if err := d.seg.Close(); err != nil {
		d.left = append(d.left, message(err))
	}
	if _, err := shm.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		d.left = append(d.left, "shm.Stat finds it")
	}
	list, err := shm.List()
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		d.left = append(d.left, message(err))
	}
	if slices.ContainsFunc(list, func(i shm.Info) bool { return i.Name == name }) {
		d.left = append(d.left, "shm.List has it")
	}
	if runtime.GOOS == "linux" {
		if _, err := os.Lstat(filepath.Join("/dev/shm", name)); !errors.Is(err, fs.ErrNotExist) {
			d.left = append(d.left, "it is in /dev/shm")
		}
	}
	if len(d.left) > 0 {
		shm.Unlink(name)
	}
}
