package shm_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/shmkit/shm"
)

func BenchmarkReadAt(b *testing.B) {
	for _, size := range []int{64, 4 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			seg, p := block(b, 1<<20, shm.Prefault()), make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := seg.ReadAt(p, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReadAtParallel is BenchmarkReadAt of 64 bytes by one goroutine per
// processor on one Segment.
func BenchmarkReadAtParallel(b *testing.B) {
	seg := block(b, 1<<20, shm.Prefault())
	b.SetBytes(64)
	b.RunParallel(func(pb *testing.PB) {
		p := make([]byte, 64)
		for pb.Next() {
			if _, err := seg.ReadAt(p, 0); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkWriteAt(b *testing.B) {
	for _, size := range []int{64, 4 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			seg, p := block(b, 1<<20, shm.Prefault()), make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := seg.WriteAt(p, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCopyIn streams 64 MiB into a block: "warm" is one that has been
// streamed into before, "fresh" a new one.
func BenchmarkCopyIn(b *testing.B) {
	const size = 64 << 20
	data := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	path := filepath.Join(b.TempDir(), "data")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		b.Fatal(err)
	}
	for name, open := range map[string]func() io.Reader{
		"memory": func() io.Reader { return bytes.NewReader(data) },
		"reader": func() io.Reader { return struct{ io.Reader }{bytes.NewReader(data)} },
		"file": func() io.Reader {
			f, err := os.Open(path)
			if err != nil {
				b.Fatal(err)
			}
			return f
		},
	} {
		copyIn := func(b *testing.B, seg *shm.Segment) {
			seg.Seek(0, io.SeekStart)
			r := open()
			if _, err := io.Copy(seg, r); err != nil {
				b.Fatal(err)
			}
			if c, ok := r.(io.Closer); ok {
				c.Close()
			}
		}
		b.Run("fresh/"+name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				seg := block(b, size, shm.Sparse())
				copyIn(b, seg)
				seg.Close()
			}
		})
		b.Run("warm/"+name, func(b *testing.B) {
			seg := block(b, size, shm.Prefault())
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				copyIn(b, seg)
			}
		})
	}
}

// BenchmarkAttach is Open and Close of a block that another Segment keeps.
func BenchmarkAttach(b *testing.B) {
	seg := block(b, 1<<20)
	b.ReportAllocs()
	for b.Loop() {
		peer, err := shm.Open(seg.Name())
		if err != nil {
			b.Fatal(err)
		}
		peer.Close()
	}
}

func BenchmarkCreate(b *testing.B) {
	for name, opts := range map[string][]shm.Option{"reserved": nil, "sparse": {shm.Sparse()}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				seg, err := shm.Create("", 1<<20, opts...)
				if err != nil {
					b.Fatal(err)
				}
				seg.Close()
			}
		})
	}
}

// BenchmarkLock is Lock and Unlock of a lock that nobody else wants.
func BenchmarkLock(b *testing.B) {
	seg := block(b, 100)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := seg.Lock(b.Context()); err != nil {
			b.Fatal(err)
		}
		seg.Unlock()
	}
}
