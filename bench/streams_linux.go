package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/shmkit/shm"
	"golang.org/x/sys/unix"
)

const piece = 1 << 20 // of one read(2) or write

func streams(b *bench) (all []contest) {
	lengths := []int{64 << 20, 1 << 30}
	if b.quick {
		lengths = []int{4 << 20}
	}
	for _, length := range lengths {
		all = append(all, intoFresh(length)...)
	}
	length := lengths[0]
	all = append(all, intoWarm(length)...)
	for _, kind := range []string{"pipe", "TCP connection", "Unix socket"} {
		all = append(all, fromStream(kind, length))
	}
	for _, kind := range []string{"file", "pipe", "TCP connection", "Unix socket"} {
		all = append(all, toStream(kind, length))
	}
	return append(all, toHashes(length)...)
}

// fresh returns a contender that works on a new Segment each time. Its creation is
// part of the work.
func fresh(name string, length int, work func(seg *shm.Segment), opts ...shm.Option) contender {
	var seg *shm.Segment
	return contender{name: name, once: true,
		run: func(int) {
			seg = check2(shm.Create("", int64(length), opts...))
			work(seg)
		},
		after: func() { seg.Close() },
	}
}

// freshFile is like fresh, for a new file in /dev/shm.
func (b *bench) freshFile(name string, work func(path string)) contender {
	path := b.path("fresh")
	return contender{name: name, once: true,
		run:   func(int) { work(path) },
		after: func() { os.Remove(path) },
	}
}

func stream(w io.Writer, r io.Reader, length int) {
	if n := check2(io.Copy(w, r)); n != int64(length) {
		check(fmt.Errorf("copied %d of %d bytes", n, length))
	}
}

func rewind(s io.Seeker) { check2(s.Seek(0, io.SeekStart)) }

// readInto fills mem from the file by read(2).
func readInto(f *os.File, mem []byte) {
	for off := 0; off < len(mem); {
		off += check2(unix.Read(int(f.Fd()), mem[off:min(off+piece, len(mem))]))
	}
}

func intoFresh(length int) []contest {
	const cp, loop, write, whole, reserved, prefault = "cp", "read(2) into a new mapping", "write(2) to a new file", "os.File, io.Copy to a new file", "shm, reserved", "shm, Prefault"
	group := "io.Copy of " + size(length) + " into a new block"
	return []contest{
		{group, "from a file", []goal{{ours, cp, 1}, {ours, loop, 0.5}, {ours, whole, 0}, {reserved, ours, 0}, {prefault, ours, 0}}, func(b *bench) []contender {
			f := b.file(b.disk, length)
			in := func(seg *shm.Segment) { rewind(f); stream(seg, f, length) }
			return []contender{
				fresh(ours, length, in, shm.Sparse()), fresh(reserved, length, in), fresh(prefault, length, in, shm.Prefault()),
				b.freshFile(cp, func(path string) {
					if out, err := exec.CommandContext(b.ctx, "cp", f.Name(), path).CombinedOutput(); err != nil {
						check(fmt.Errorf("cp: %w: %s", err, out))
					}
				}),
				b.freshFile(whole, func(path string) {
					rewind(f)
					out := check2(os.Create(path))
					stream(out, f, length)
					check(out.Close())
				}),
				b.newMapping(loop, length, func(mem []byte) { rewind(f); readInto(f, mem) }),
			}
		}},
		{group, "from memory", []goal{{ours, write, 1}, {ours, "copy into a new mapping", 0}}, func(b *bench) []contender {
			data := make([]byte, length)
			for i := range data {
				data[i] = byte(i)
			}
			return []contender{
				fresh(ours, length, func(seg *shm.Segment) { stream(seg, bytes.NewReader(data), length) }, shm.Sparse()),
				b.freshFile(write, func(path string) {
					out := check2(os.Create(path))
					check2(out.Write(data))
					check(out.Close())
				}),
				b.newMapping("copy into a new mapping", length, func(mem []byte) { copy(mem, data) }),
			}
		}},
	}
}

// newMapping is like fresh, for a new mapping of a new file.
func (b *bench) newMapping(name string, length int, work func(mem []byte)) contender {
	var mem []byte
	var fd int
	return contender{name: name, once: true,
		run: func(int) {
			fd = check2(unix.Open(shmDir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600))
			check(unix.Ftruncate(fd, int64(length)))
			mem = check2(unix.Mmap(fd, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED))
			work(mem)
		},
		after: func() {
			unix.Munmap(mem)
			unix.Close(fd)
		},
	}
}

func intoWarm(length int) []contest {
	group := "io.Copy of " + size(length) + " into a warm block"
	return []contest{
		{group, "from a file", []goal{{ours, "read(2) into the mapping", 1.05}}, func(b *bench) []contender {
			f, seg, m := b.file(b.disk, length), b.block(int64(length), shm.Prefault()), b.mapped(length)
			return []contender{
				{name: ours, once: true, run: func(int) { rewind(seg); rewind(f); stream(seg, f, length) }},
				{name: "read(2) into the mapping", once: true, run: func(int) { rewind(f); readInto(f, m.b) }},
			}
		}},
		{group, "from memory", []goal{{ours, floor, 1.05}}, func(b *bench) []contender {
			data, seg, m := make([]byte, length), b.block(int64(length), shm.Prefault()), b.mapped(length)
			return []contender{
				{name: ours, once: true, run: func(int) { rewind(seg); stream(seg, bytes.NewReader(data), length) }},
				{name: floor, once: true, run: func(int) { copy(m.b, data) }},
			}
		}},
	}
}

// pair returns the two ends of a stream.
func (b *bench) pair(kind string) (r io.ReadCloser, w io.WriteCloser) {
	switch kind {
	case "pipe":
		r, w, err := os.Pipe()
		check(err)
		return r, w
	case "TCP connection":
		return connect("tcp", "127.0.0.1:0")
	}
	path := filepath.Join(b.disk, "socket")
	defer os.Remove(path)
	return connect("unix", path)
}

func connect(network, addr string) (r io.ReadCloser, w io.WriteCloser) {
	l := check2(net.Listen(network, addr))
	defer l.Close()
	w = check2(net.Dial(network, l.Addr().String()))
	return check2(l.Accept()), w
}

// end works at one end of a stream. If it writes, it closes w.
type end func(r io.Reader, w io.WriteCloser)

// streaming returns a contender that works at one end of a stream, with a
// goroutine at the other end.
func (b *bench) streaming(name, kind string, here, there end) contender {
	var r io.ReadCloser
	var w io.WriteCloser
	return contender{name: name, once: true,
		before: func() { r, w = b.pair(kind) },
		run: func(int) {
			done := make(chan bool)
			go func() {
				there(r, w)
				close(done)
			}()
			here(r, w)
			<-done
		},
		after: func() {
			r.Close()
			w.Close()
		},
	}
}

// drain returns an end that reads everything into a buffer of n bytes.
func drain(n int) end {
	buf := make([]byte, n)
	return func(r io.Reader, _ io.WriteCloser) {
		for {
			if _, err := r.Read(buf); err != nil {
				return
			}
		}
	}
}

func fromStream(kind string, length int) contest {
	const heap, whole = "read into a buffer", "read into as much of the heap"
	group := "io.Copy of " + size(length) + " into a warm block"
	return contest{group, "from a " + kind, []goal{{ours, whole, 1}, {ours, heap + " of 128 KiB", 1}, {ours, heap + " of 1 MiB", 1}}, func(b *bench) []contender {
		data, memory, seg := make([]byte, piece), make([]byte, length), b.block(int64(length), shm.Prefault())
		feed := func(_ io.Reader, w io.WriteCloser) {
			for range length / len(data) {
				w.Write(data)
			}
			w.Close()
		}
		return []contender{
			b.streaming(ours, kind, func(r io.Reader, _ io.WriteCloser) { rewind(seg); stream(seg, r, length) }, feed),
			b.streaming(whole, kind, func(r io.Reader, _ io.WriteCloser) { check2(io.ReadFull(r, memory)) }, feed),
			b.streaming(heap+" of 128 KiB", kind, drain(128<<10), feed),
			b.streaming(heap+" of 1 MiB", kind, drain(1<<20), feed),
		}
	}}
}

func toStream(kind string, length int) contest {
	group := "io.Copy of " + size(length) + " out of a warm block"
	return contest{group, "to a " + kind, []goal{{ours, osFile, 1}}, func(b *bench) []contender {
		seg, f := b.block(int64(length), shm.Prefault()), b.file(b.dir, length)
		if kind == "file" {
			to := func(name string, src io.ReadSeeker) contender {
				var out *os.File
				return contender{name: name, once: true,
					before: func() { out = check2(os.Create(filepath.Join(b.disk, "out"))) },
					run:    func(int) { rewind(src); stream(out, src, length) },
					after:  func() { out.Close(); os.Remove(out.Name()) },
				}
			}
			return []contender{to(ours, seg), to(osFile, f)}
		}
		other := drain(256 << 10)
		to := func(src io.ReadSeeker) end {
			return func(_ io.Reader, w io.WriteCloser) { rewind(src); stream(w, src, length); w.Close() }
		}
		return []contender{b.streaming(ours, kind, to(seg), other), b.streaming(osFile, kind, to(f), other)}
	}}
}

func toHashes(length int) (all []contest) {
	const inMemory = "hashing memory"
	group := "io.Copy of " + size(length) + " out of a warm block"
	for name, h := range map[string]io.Writer{"SHA-256": sha256.New(), "CRC-32C": crc32.New(crc32.MakeTable(crc32.Castagnoli))} {
		all = append(all, contest{group, "to " + name, []goal{{ours, inMemory, 1.03}, {ours, osFile, 0}}, func(b *bench) []contender {
			seg, f, m := b.block(int64(length), shm.Prefault()), b.file(b.dir, length), b.mapped(length)
			return []contender{
				{name: ours, once: true, run: func(int) { rewind(seg); stream(h, seg, length) }},
				{name: inMemory, once: true, run: func(int) { check2(h.Write(m.b)) }},
				{name: osFile, once: true, run: func(int) { rewind(f); stream(h, f, length) }},
			}
		}})
	}
	return all
}
