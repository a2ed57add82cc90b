package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shmkit/shm"
)

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{
		"1": 1, "4096": 4096, "64K": 64 << 10, "64k": 64 << 10, "64KiB": 64 << 10, "64 KiB": 64 << 10,
		"64kB": 64_000, "1.5G": 3 << 29, "2T": 2 << 40, "10B": 10, "9223372036854775807": math.MaxInt64,
		"": -1, "0": -1, "-1": -1, "K": -1, "1X": -1, "9223372036854775808": -1, "8E": -1, "16E": -1, "1e3": -1, "many": -1,
	} {
		var s byteSize
		err := s.Set(text)
		if (err != nil) != (want < 0) || err == nil && int64(s) != want {
			t.Errorf("Set(%q) = %d, %v; want %d", text, s, err, want)
		}
	}
}

func TestMessagesAndStatus(t *testing.T) {
	block := func(err error) error { return &fs.PathError{Op: "open", Path: "frames", Err: err} }
	for _, test := range []struct {
		err    error
		text   string
		status int
	}{
		{nil, "", 0},
		{block(fs.ErrNotExist), "open frames: no such block", 1},
		{block(syscall.ENOENT), "open frames: no such block", 1},
		{block(fs.ErrExist), "open frames: block exists", 1},
		{block(fs.ErrPermission), "open frames: permission denied", 1},
		{block(shm.ErrReadOnly), "open frames: block is read-only", 1},
		{block(shm.ErrFull), "open frames: block is full", 1},
		{block(errors.ErrUnsupported), "open frames: not supported on this system", 1},
		{block(shm.ErrCorrupt), "open frames: damaged block header", 1},
		{hintError{block(shm.ErrFull), "see --size"}, "open frames: block is full; see --size", 1},
		{&fs.PathError{Op: "list", Err: fs.ErrPermission}, "list: permission denied", 1},
		{fileError{&fs.PathError{Op: "open", Path: "x", Err: syscall.ENOENT}}, "open x: " + syscall.ENOENT.Error(), 1},
		{fileError{&fs.PathError{Op: "write", Path: "x", Err: syscall.EPIPE}}, "", 141},
		{&fs.PathError{Op: "write", Path: "x", Err: syscall.EPIPE}, "", 141},
		{block(shm.ErrAbandoned), "open frames: block is not finished, and no writer is attached", 3},
		{block(shm.ErrTruncated), "open frames: block was truncated", 4},
		{block(shm.ErrFinished), "open frames: block is finished", 1},
		{block(shm.ErrLocked), "open frames: block is locked", 124},
		{block(context.DeadlineExceeded), "open frames: timed out", 124},
		{usageError{errors.New("no command")}, "no command", 2},
		{signalError(os.Interrupt), "", 130},
		{signalError(syscall.SIGTERM), "", 143},
		{exitStatus(7), "", 7},
	} {
		if got := message(test.err); got != test.text {
			t.Errorf("message(%#v) = %q, want %q", test.err, got, test.text)
		}
		if got := exitCode(test.err); got != test.status {
			t.Errorf("exitCode(%#v) = %d, want %d", test.err, got, test.status)
		}
	}
}

func TestTables(t *testing.T) {
	now := time.Now()
	infos := []shm.Info{
		{Name: "frames", Size: 120 << 20, Cap: 256 << 20, Refs: 2, Attached: true, Mode: 0o600, Created: now.Add(-time.Minute)},
		{Name: "kept", Cap: 1, Persistent: true, Mode: 0o640, Created: now.Add(-3 * time.Hour)},
		{Name: "of-a-killed-one", Size: 12, Cap: 12, Refs: 1, Mode: 0o600, Created: now.Add(-2 * time.Second)},
		{Name: "psm_1234", Size: 4096, Cap: 4096, Headerless: true, Mode: 0o600},
	}
	var b strings.Builder
	if err := printBlocks(&b, infos, now); err != nil {
		t.Fatal(err)
	}
	want := `NAME                 SIZE       CAP  REFS  STATE     MODE        CREATED
frames            120 MiB   256 MiB     2  attached  -rw-------  1 minute ago
kept                  0 B       1 B     0  kept      -rw-r-----  3 hours ago
of-a-killed-one      12 B      12 B     1  stale     -rw-------  2 seconds ago
psm_1234         4.00 KiB  4.00 KiB     -  raw       -rw-------  -
`
	if b.String() != want {
		t.Errorf("blocks:\n%s\nwant:\n%s", b.String(), want)
	}

	b.Reset()
	if err := printBlocks(&b, nil, now); err != nil || b.Len() > 0 {
		t.Errorf("no blocks: %q, %v", b.String(), err)
	}
}

func TestJSONOfNothing(t *testing.T) {
	var b bytes.Buffer
	if err := printJSON(&b, listOf[shm.Info](nil)); err != nil || b.String() != "[]\n" {
		t.Errorf("ls: %q, %v", &b, err)
	}
	b.Reset()
	if err := printReaped(&b, nil, true); err != nil || b.String() != "[]\n" {
		t.Errorf("reap: %q, %v", &b, err)
	}
}

func TestReapedNames(t *testing.T) {
	var b bytes.Buffer
	if err := printReaped(&b, []string{"b", "a"}, false); err != nil || b.String() != "a\nb\n" {
		t.Errorf("%q, %v", &b, err)
	}
	b.Reset()
	if err := printReaped(&b, []string{"b", "a"}, true); err != nil || b.String() != "[\n  \"a\",\n  \"b\"\n]\n" {
		t.Errorf("%q, %v", &b, err)
	}
}
