package main

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// A source is a stream to fill a block from.
type source struct {
	io.Reader
	size  int64            // -1 if only the end of the stream will tell
	again func() io.Reader // the same bytes once more, nil if that cannot be
}

// newSource returns f from its offset on. A regular file has a size; one that
// says it is empty may be of a kind that has its content made while it is read,
// like those in /proc, so it is tried.
func newSource(f *os.File) (source, error) {
	info, err := f.Stat()
	if err != nil {
		return source{}, fileError{err}
	}
	if info.IsDir() {
		return source{}, fileError{&fs.PathError{Op: "read", Path: f.Name(), Err: syscall.EISDIR}}
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
	var first [1]byte
	switch _, err := io.ReadFull(f, first[:]); {
	case errors.Is(err, io.EOF):
		return source{Reader: f, size: 0}, nil
	case err != nil:
		return source{}, fileError{err}
	}
	return source{Reader: io.MultiReader(bytes.NewReader(first[:]), f), size: -1}, nil
}

// unknownRoom is the capacity of a block for a source of unknown size.
const unknownRoom = 1 << 30

// room returns the capacity for a block that takes the source in, and whether
// so much should be reserved: not if nobody knows how much will come.
func (s source) room(wanted int64) (capacity int64, reserve bool) {
	switch {
	case wanted > 0:
		return wanted, s.size >= 0
	case s.size >= 0:
		return max(s.size, 1), true // a block has one byte at least
	}
	return unknownRoom, false
}
