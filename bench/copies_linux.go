package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	"github.com/edsrzf/mmap-go"
	sysv "github.com/gen2brain/shm"
	"github.com/shmkit/shm"
	xmmap "golang.org/x/exp/mmap"
	"golang.org/x/sys/unix"
)

const capacity = 1 << 20

// memory is the floor: a copy from or to mapped memory that checks only the
// bounds.
type memory struct{ b []byte }

//go:noinline
func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(m.b)) {
		return 0, io.ErrUnexpectedEOF
	}
	return copy(p, m.b[off:]), nil
}

//go:noinline
func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(m.b)) {
		return 0, io.ErrUnexpectedEOF
	}
	return copy(m.b[off:], p), nil
}

// Names of contenders.
const (
	ours   = "shm"
	floor  = "bare copy"
	osFile = "os.File on /dev/shm"
	xExp   = "x/exp/mmap"
	edsrzf = "edsrzf/mmap-go"
	gen2   = "gen2brain/shm"
)

// block creates a block that exists until the end of the contest.
func (b *bench) block(size int64, opts ...shm.Option) *shm.Segment {
	seg := check2(shm.Create("", size, opts...))
	b.cleanup(func() {
		seg.Unlink()
		seg.Close()
	})
	return seg
}

// file creates a file of size bytes in dir.
func (b *bench) file(dir string, size int) *os.File {
	f := check2(os.CreateTemp(dir, ""))
	b.cleanup(func() {
		f.Close()
		os.Remove(f.Name())
	})
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i * 7)
	}
	check2(f.Write(data))
	return f
}

// mapped maps a new unnamed file of size bytes in /dev/shm, with all its pages.
func (b *bench) mapped(size int) *memory {
	fd := check2(unix.Open(shmDir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600))
	defer unix.Close(fd)
	check(unix.Ftruncate(fd, int64(size)))
	mem := check2(unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE))
	b.cleanup(func() { unix.Munmap(mem) })
	return &memory{mem}
}

// readers returns the contenders that read from size bytes of memory, by name.
func (b *bench) readers(size int) map[string]io.ReaderAt {
	f := b.file(b.dir, size)
	x := check2(xmmap.Open(f.Name()))
	b.cleanup(func() { x.Close() })
	m := check2(mmap.Map(f, mmap.RDWR, 0))
	b.cleanup(func() { m.Unmap() })
	readers := map[string]io.ReaderAt{
		ours: b.block(int64(size), shm.Prefault()), floor: b.mapped(size), osFile: f, xExp: x, edsrzf: &memory{m},
	}
	if id, err := sysv.Get(sysv.IPC_PRIVATE, size, sysv.IPC_CREAT|0o600); err == nil {
		mem := check2(sysv.At(id, 0, 0))
		check(sysv.Rm(id)) // removed after the last detach
		b.cleanup(func() { sysv.Dt(mem) })
		readers[gen2] = &memory{mem}
	}
	return readers
}

func copies() (all []contest) {
	for _, c := range []struct {
		size          int
		floor, osFile float64
	}{{64, 3, 1.0 / 40}, {4 << 10, 1.15, 0}, {64 << 10, 1.03, 0}, {1 << 20, 1.03, 0}} {
		goals := []goal{
			{ours, floor, c.floor}, {ours, osFile, c.osFile}, {ours, xExp, 0}, {ours, edsrzf, 0}, {ours, gen2, 0},
		}
		all = append(all, contest{"Copies, warm", "ReadAt " + size(c.size), goals, func(b *bench) (list []contender) {
			for name, r := range b.readers(capacity) {
				p := make([]byte, c.size)
				list = append(list, contender{name: name, run: func(n int) {
					for range n {
						if got, err := r.ReadAt(p, 0); got != len(p) {
							check(fmt.Errorf("%s: read %d bytes: %w", name, got, err))
						}
					}
				}})
			}
			return list
		}})
		all = append(all, contest{"Copies, warm", "WriteAt " + size(c.size), goals, func(b *bench) (list []contender) {
			for name, r := range b.readers(capacity) {
				w, ok := r.(io.WriterAt)
				if !ok {
					continue
				}
				p := make([]byte, c.size)
				list = append(list, contender{name: name, run: func(n int) {
					for range n {
						check2(w.WriteAt(p, 0))
					}
				}})
			}
			return list
		}})
	}
	one, two := "one goroutine", "two goroutines"
	for _, c := range []struct {
		name  string
		limit float64
		pair  func(b *bench) [2]io.ReaderAt
	}{
		{"ReadAt 64 B, one Segment", 1 / 1.7, func(b *bench) [2]io.ReaderAt {
			seg := b.block(capacity, shm.Prefault())
			return [2]io.ReaderAt{seg, seg}
		}},
		{"ReadAt 64 B, two Segments on one block", 1 / 1.7, func(b *bench) [2]io.ReaderAt {
			seg := b.block(capacity, shm.Prefault())
			peer := check2(shm.Open(seg.Name(), shm.Prefault()))
			b.cleanup(func() { peer.Close() })
			return [2]io.ReaderAt{seg, peer}
		}},
		{"bare copy of 64 B", 0, func(b *bench) [2]io.ReaderAt {
			m := b.mapped(capacity)
			return [2]io.ReaderAt{m, m}
		}},
	} {
		all = append(all, contest{"Time per call with two cores", c.name, []goal{{two, one, c.limit}}, func(b *bench) []contender {
			pair := c.pair(b)
			return []contender{
				{name: one, run: func(n int) { readAll(n, pair[:1]) }},
				{name: two, run: func(n int) { readAll(n, pair[:]) }},
			}
		}})
	}
	return all
}

// readAll reads 64 bytes n times in all, in one goroutine for each reader.
func readAll(n int, readers []io.ReaderAt) {
	var all sync.WaitGroup
	for _, r := range readers {
		all.Go(func() {
			p := make([]byte, 64)
			for range n / len(readers) {
				r.ReadAt(p, 0)
			}
		})
	}
	all.Wait()
	runtime.KeepAlive(readers)
}

func size[T int | int64](n T) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d B", n)
}
