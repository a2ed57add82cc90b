package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// byteSize is a flag for a number of bytes.
type byteSize int64

func (s *byteSize) String() string { return strconv.FormatInt(int64(*s), 10) }
func (s *byteSize) Type() string   { return "SIZE" }

// Set takes K, M, G and so on without B as powers of 1024, as dd, head and
// truncate do.
func (s *byteSize) Set(text string) error {
	if last := len(text) - 1; last > 0 && strings.IndexByte("kKmMgGtTpPeE", text[last]) >= 0 {
		text += "iB"
	}
	n, err := humanize.ParseBytes(text)
	if err != nil || n < 1 || n > math.MaxInt64 {
		return errors.New("not a size of 1 byte or more, such as 4096 or 64MiB")
	}
	*s = byteSize(n)
	return nil
}

// permissions is a flag for permission bits in octal.
type permissions fs.FileMode

func (p *permissions) String() string { return fmt.Sprintf("%#o", *p) }
func (p *permissions) Type() string   { return "MODE" }

func (p *permissions) Set(text string) error {
	n, err := strconv.ParseUint(text, 8, 32)
	if err != nil || fs.FileMode(n)&^fs.ModePerm != 0 {
		return errors.New("not octal permissions such as 0640")
	}
	*p = permissions(n)
	return nil
}

// timeout is a flag for a limit of time, which may be 0. It is in seconds if it has no
// unit, as that of timeout(1).
type timeout struct {
	limit time.Duration
	set   bool
}

func (t *timeout) Type() string { return "DURATION" }

func (t *timeout) String() string {
	if !t.set {
		return ""
	}
	return t.limit.String()
}

func (t *timeout) Set(text string) error {
	limit, err := time.ParseDuration(text)
	if err != nil {
		limit, err = time.ParseDuration(text + "s")
	}
	if err != nil || limit < 0 {
		return errors.New("not a duration such as 10, 1.5s or 2m")
	}
	*t = timeout{limit, true}
	return nil
}

// context returns a context that ends after the limit, if there is one, and says which
// operation on which block has taken too long.
func (t *timeout) context(ctx context.Context, op, name string) (context.Context, context.CancelFunc) {
	if !t.set {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, t.limit, &fs.PathError{Op: op, Path: name, Err: context.DeadlineExceeded})
}

// iec formats n bytes in powers of 1024.
func iec(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", max(n, 0))
	}
	return humanize.IBytesN(uint64(n), 3)
}
