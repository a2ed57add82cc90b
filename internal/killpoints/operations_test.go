//go:build linux && (amd64 || arm64)

package killpoints

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"testing"

	"github.com/shmkit/shm"
)

const size = 4096 // of blocks

// content is what the peer has written and must find intact.
var content = bytes.Repeat([]byte("intact! "), size/8)

// An operation is what the victim does when it is killed.
type operation struct {
	prepare func(name string) (*shm.Segment, error) // before Begin
	run     func(name string, seg *shm.Segment) error
	unlinks bool // takes the name also from a block in use
	creates bool // what it creates is Persistent
	needs   bool // there must be a block that it can attach to
	waits   bool // for good, where another process removes the block
	alien   bool // the victim is another user's process
}

func keep(seg *shm.Segment, err error) error {
	kept = append(kept, seg)
	return err
}

var kept []*shm.Segment // until the victim is killed

func joined(name string) (*shm.Segment, error) {
	seg, _, err := shm.OpenOrCreate(name, size, shm.Perm(0o644)) // for the alien to read
	return seg, err
}

var operations = map[string]operation{
	"Create":           {run: func(name string, _ *shm.Segment) error { return keep(shm.Create(name, size)) }},
	"CreateSparse":     {run: func(name string, _ *shm.Segment) error { return keep(shm.Create(name, size, shm.Sparse())) }},
	"CreatePersistent": {creates: true, run: func(name string, _ *shm.Segment) error { return keep(shm.Create(name, size, shm.Persistent())) }},
	"Open":             {run: func(name string, _ *shm.Segment) error { return keep(shm.Open(name)) }},
	"OpenReadOnly":     {run: func(name string, _ *shm.Segment) error { return keep(shm.Open(name, shm.ReadOnly())) }},
	"OpenWait":         {needs: true, waits: true, run: func(name string, _ *shm.Segment) error { return keep(shm.OpenWait(context.Background(), name)) }},
	"OpenOrCreate":     {run: func(name string, _ *shm.Segment) error { return keep(joined(name)) }},
	"Close":            {prepare: joined, run: func(_ string, seg *shm.Segment) error { return seg.Close() }},
	"CloseReadOnly": {
		prepare: func(name string) (*shm.Segment, error) { return shm.Open(name, shm.ReadOnly()) },
		run:     func(_ string, seg *shm.Segment) error { return seg.Close() },
		needs:   true,
	},
	"OpenReader": {alien: true, run: func(name string, _ *shm.Segment) error { return keep(shm.Open(name, shm.ReadOnly())) }},
	"CloseReader": {
		prepare: func(name string) (*shm.Segment, error) { return shm.Open(name, shm.ReadOnly()) },
		run:     func(_ string, seg *shm.Segment) error { return seg.Close() },
		needs:   true,
		alien:   true,
	},
	"Unlink":        {unlinks: true, run: func(name string, _ *shm.Segment) error { return shm.Unlink(name) }},
	"SegmentUnlink": {unlinks: true, prepare: joined, run: func(_ string, seg *shm.Segment) error { return seg.Unlink() }},
	"Reap":          {run: func(string, *shm.Segment) error { _, err := shm.Reap(); return err }},
}

// errorWord returns a word for err; those that a race can end in have one.
func errorWord(err error) string {
	switch {
	case err == nil:
		return "done"
	case errors.Is(err, fs.ErrExist):
		return "exist"
	case errors.Is(err, fs.ErrNotExist):
		return "notexist"
	}
	return err.Error()
}

// whereabouts says which block the first open Segment is attached to, and
// whether that has its name.
func whereabouts(segs []*shm.Segment) string {
	for _, seg := range segs {
		if info, err := seg.Stat(); err == nil {
			info := info.Sys().(*shm.Info)
			return fmt.Sprintf("%x %v", info.ID, info.Linked)
		}
	}
	return "nowhere"
}

// intact returns an error if the block does not hold what its first owner wrote.
func intact(seg *shm.Segment) error {
	b := make([]byte, size)
	if _, err := seg.ReadAt(b, 0); err != nil {
		return err
	}
	if !bytes.Equal(b, content) {
		return errors.New("the data has changed")
	}
	return nil
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func blockID(t *testing.T, seg *shm.Segment) [16]byte {
	t.Helper()
	return must(seg.Stat())(t).Sys().(*shm.Info).ID
}

func sorted[T any](m map[string]T) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
