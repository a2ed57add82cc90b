package shm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/shmkit/shm"
)

// begun returns a block of that capacity that a stream can begin in.
func begun(t testing.TB, capacity int64, opts ...shm.Option) *shm.Segment {
	t.Helper()
	seg := block(t, capacity, opts...)
	if err := seg.Truncate(0); err != nil {
		t.Fatal(err)
	}
	return seg
}

func appendTo(t testing.TB, seg *shm.Segment, text string) {
	t.Helper()
	if _, err := seg.WriteAt([]byte(text), seg.Size()); err != nil {
		t.Fatal(err)
	}
}

// mustRead reads from r until it has want.
func mustRead(t testing.TB, r io.Reader, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(r, b); err != nil || string(b) != want {
		t.Fatalf("read %q, %v, want %q", b[:n], err, want)
	}
}

// mustEnd reads from r, which has no bytes.
func mustEnd(t testing.TB, r io.Reader, want error) {
	t.Helper()
	if n, err := r.Read(make([]byte, 10)); n != 0 || !errors.Is(err, want) {
		t.Fatalf("read %d bytes, %v, want %v", n, err, want)
	}
}

// TestFollow streams a file from one process to several that follow it, beside all kinds
// of blocks and readers.
func TestFollow(t *testing.T) {
	for _, opts := range [][]shm.Option{nil, {shm.Sparse()}} {
		want := noise(3 << 20)
		seg := begun(t, 4<<20, opts...)
		var all sync.WaitGroup
		for i := range 6 {
			var readOnly []shm.Option
			if i%2 == 0 {
				readOnly = append(readOnly, shm.ReadOnly())
			}
			f := attach(t, seg.Name(), readOnly...).Follow(t.Context())
			all.Go(func() {
				defer f.Close()
				var got bytes.Buffer
				var r io.Reader = f
				if i > 2 {
					r = struct{ io.Reader }{f} // without WriteTo
				}
				n, err := io.Copy(&got, r)
				if err != nil || n != int64(len(want)) || !bytes.Equal(got.Bytes(), want) {
					t.Errorf("follower %d: %d bytes, %v", i, n, err)
				}
			})
		}
		path := filepath.Join(t.TempDir(), "data")
		if err := os.WriteFile(path, want[1<<20:], 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range []io.Reader{iotest.OneByteReader(bytes.NewReader(want[:1000])), bytes.NewReader(want[1000 : 1<<20]), file} {
			if _, err := io.Copy(seg, r); err != nil {
				t.Fatal(err)
			}
		}
		file.Close()
		if err := seg.Finish(); err != nil {
			t.Fatal(err)
		}
		all.Wait()
		if n, err := io.Copy(io.Discard, seg.Follow(t.Context())); n != int64(len(want)) || err != nil {
			t.Errorf("late: %d bytes, %v", n, err)
		}
	}
}

// TestFollowProcesses follows what another process writes, and the other way round.
func TestFollowProcesses(t *testing.T) {
	seg := begun(t, 100)
	peer := newAgent(t)
	peer.attach("open %s", seg.Name())
	peer.Say("follow")
	appendTo(t, seg, "ab")
	appendTo(t, seg, "cd")
	if err := seg.Finish(); err != nil {
		t.Fatal(err)
	}
	peer.Expect(`"abcd"`)

	if err := seg.Truncate(0); err != nil {
		t.Fatal(err)
	}
	f := seg.Follow(t.Context())
	peer.must("appended", "append efg")
	mustRead(t, f, "efg")
	peer.must("finished", "finish")
	mustEnd(t, f, io.EOF)
	peer.must("closed", "close")
}

// TestFollowAbandoned has the last process that could write go, in every way, and come
// back.
func TestFollowAbandoned(t *testing.T) {
	for _, end := range []string{"close", "kill"} {
		writer := newAgent(t)
		name := unique(t)
		writer.attach("create %s", name)
		writer.must("truncated", "truncate 0")
		attach(t, name, shm.ReadOnly())
		seg := attach(t, name) // it only follows, and so is no writer
		f, g := seg.Follow(t.Context()), attach(t, name).Follow(t.Context())
		writer.must("appended", "append abc")
		mustRead(t, f, "abc")
		mustRead(t, g, "abc")
		result := begin(func() error {
			_, err := f.Read(make([]byte, 1))
			return err
		})
		asleep(t, seg, 1)
		if end == "kill" {
			writer.Kill()
		} else {
			writer.must("closed", "close")
		}
		mustFail(t, <-result, name, shm.ErrAbandoned, io.ErrUnexpectedEOF)
		mustEnd(t, f, shm.ErrAbandoned)
		mustEnd(t, g, shm.ErrAbandoned)

		// It is not final.
		writer = newAgent(t)
		writer.attach("open %s", name)
		writer.must("appended", "append def")
		mustRead(t, f, "def")
		writer.must("closed", "close")
		mustEnd(t, f, shm.ErrAbandoned)

		// One that has followed becomes a writer when it writes.
		appendTo(t, seg, "ghi")
		mustRead(t, g, "defghi")
		if err := seg.Finish(); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, g, io.EOF)
	}
}

// TestFollowNotBegun has blocks whose content is nobody's stream.
func TestFollowNotBegun(t *testing.T) {
	seg := block(t, 3)
	f := seg.Follow(t.Context())
	result := begin(func() error {
		b, err := io.ReadAll(f)
		if err == nil && string(b) != "xyz" {
			err = fmt.Errorf("read %q", b)
		}
		return err
	})
	asleep(t, seg, 1)
	if _, err := seg.WriteAt([]byte("xyz"), 0); err != nil { // which does not raise Size
		t.Fatal(err)
	}
	asleep(t, seg, 1)
	if err := seg.Finish(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
}

// TestFollowTruncated has a stream end by Truncate: a follower gets nothing of the next.
func TestFollowTruncated(t *testing.T) {
	seg := begun(t, 100)
	peer := newAgent(t)
	peer.attach("open %s", seg.Name())
	for i, change := range []string{"truncate 0", "truncate 1", "truncate 3"} {
		if err := seg.Truncate(0); err != nil {
			t.Fatal(err)
		}
		before, after := seg.Follow(t.Context()), seg.Follow(t.Context())
		appendTo(t, seg, "abc")
		mustRead(t, before, "a")
		if i == 2 { // which opens a finished block again
			if err := seg.Finish(); err != nil {
				t.Fatal(err)
			}
		}
		peer.must("truncated", "%s", change)
		peer.must("appended", "append defg")
		mustEnd(t, before, shm.ErrTruncated)
		mustEnd(t, before, shm.ErrTruncated)
		mustRead(t, after, []string{"defg", "adefg", "abcdefg"}[i])
	}
	// A Truncate that raises Size is of the stream.
	f := seg.Follow(t.Context())
	mustRead(t, f, "abcdefg")
	if err := seg.Truncate(10); err != nil {
		t.Fatal(err)
	}
	mustRead(t, f, "\x00\x00\x00")
}

// TestFollowEnds has what ends a Follower.
func TestFollowEnds(t *testing.T) {
	seg := begun(t, 100)
	name := seg.Name()
	read := func(f *shm.Follower) <-chan error {
		return begin(func() error { return second(f.Read(make([]byte, 1))) })
	}
	f := seg.Follow(t.Context())
	if n, err := f.Read(nil); n != 0 || err != nil {
		t.Error(n, err)
	}
	result := read(f)
	asleep(t, seg, 1)
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	mustFail(t, <-result, name, fs.ErrClosed)
	mustFail(t, f.Close(), name, fs.ErrClosed)
	appendTo(t, seg, "x")
	mustEnd(t, f, fs.ErrClosed)
	seg.Truncate(0)

	ctx, cancel := context.WithCancel(t.Context())
	result = read(seg.Follow(ctx))
	asleep(t, seg, 1)
	cancel()
	mustFail(t, <-result, name, context.Canceled)

	result = read(seg.Follow(t.Context()))
	asleep(t, seg, 1)
	seg.Close()
	mustFail(t, <-result, name, fs.ErrClosed)
	mustEnd(t, seg.Follow(t.Context()), fs.ErrClosed)
}

// TestFinish has writes to a finished block: those that do not raise Size succeed.
func TestFinish(t *testing.T) {
	seg := begun(t, 100)
	peer := newAgent(t)
	peer.attach("open %s", seg.Name())
	appendTo(t, seg, "abcdef")
	peer.must("finished", "finish")
	peer.must("finished", "finish") // again
	peer.must("finished", "append x")
	check := func(what string, n int, err error, want int) {
		t.Helper()
		if n != want {
			t.Errorf("%s: %d bytes, want %d", what, n, want)
		}
		mustFail(t, err, seg.Name(), shm.ErrFinished, io.ErrClosedPipe)
	}
	n, err := seg.WriteAt([]byte("XYZ"), 4)
	check("half below Size", n, err, 2)
	n, err = seg.WriteAt([]byte("XYZ"), 50)
	check("beyond Size", n, err, 0)
	n, err = seg.WriteAt(make([]byte, 99), 1) // beyond Cap as well
	check("all of it", n, err, 5)
	seg.Seek(0, io.SeekEnd)
	moved, err := seg.ReadFrom(bytes.NewReader(make([]byte, 10)))
	check("ReadFrom", int(moved), err, 0)
	for _, content := range []string{"", "q"} { // the system copies
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		w.WriteString(content)
		w.Close()
		moved, err := seg.ReadFrom(r)
		r.Close()
		if content == "" {
			if moved != 0 || err != nil {
				t.Errorf("ReadFrom at its end: %d, %v", moved, err)
			}
			continue
		}
		check("ReadFrom(pipe)", int(moved), err, 0)
	}
	if _, err := seg.WriteAt([]byte("below"), 0); err != nil {
		t.Error(err)
	}
	fi, err := seg.Stat()
	if err != nil || !fi.Sys().(*shm.Info).Finished || seg.Size() != 6 {
		t.Errorf("%+v, %v, Size %d", fi, err, seg.Size())
	}
	if info, err := shm.Stat(seg.Name()); err != nil || !info.Finished || info.Size != 6 {
		t.Errorf("%+v, %v", info, err)
	}
	if err := seg.Truncate(6); err != nil { // opens it again
		t.Fatal(err)
	}
	peer.must("appended", "append x")
	if size := seg.Size(); size != 7 {
		t.Errorf("Size %d, want 7", size)
	}
}

// TestTruncateMany has processes truncate and append at the same time: no byte is below
// Size that nobody has written in this stream.
func TestTruncateMany(t *testing.T) {
	seg := begun(t, 64<<10)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all sync.WaitGroup
	for i := range 2 {
		writer := attach(t, seg.Name())
		all.Go(func() {
			p := bytes.Repeat([]byte{byte(i + 1)}, 50_000)
			for n := 1; ctx.Err() == nil; n = (7*n + 1) % len(p) {
				if _, err := writer.WriteAt(p[:n], 0); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 3 {
		reader := attach(t, seg.Name(), shm.ReadOnly())
		all.Go(func() {
			for ctx.Err() == nil {
				_, err := io.Copy(noZeros{t}, reader.Follow(ctx))
				if !errors.Is(err, shm.ErrTruncated) && ctx.Err() == nil {
					t.Error(err)
				}
			}
		})
	}
	for range rounds(2000) {
		if err := seg.Truncate(0); err != nil {
			t.Error(err)
		}
	}
	cancel()
	all.Wait()
}

// noZeros is a Writer that takes no zeros.
type noZeros struct{ t *testing.T }

func (w noZeros) Write(p []byte) (int, error) {
	if i := bytes.IndexByte(p, 0); i >= 0 {
		w.t.Errorf("byte %d of %d is zero", i, len(p))
	}
	return len(p), nil
}
