package shm_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shmkit/shm"
)

// model is a block as a slice of bytes and an offset.
type model struct {
	data     []byte // as far as Size
	cap      int64
	off      int64
	finished bool
}

func (m *model) readAt(n int, off int64) ([]byte, error) {
	if off < 0 {
		return nil, fs.ErrInvalid
	}
	if n == 0 {
		return nil, nil
	}
	got := m.data[min(off, int64(len(m.data))):]
	if len(got) < n {
		return got, io.EOF
	}
	return got[:n], nil
}

func (m *model) writeAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fs.ErrInvalid
	}
	var err error
	n := min(int64(len(p)), max(m.cap-off, 0))
	if n < int64(len(p)) {
		err = shm.ErrFull
	}
	size := int64(len(m.data))
	if n > 0 && m.finished && off+n > size {
		n, err = max(size-off, 0), shm.ErrFinished
	}
	if n > 0 {
		m.resize(max(size, off+n))
		copy(m.data[off:], p[:n])
	}
	return int(n), err
}

func (m *model) truncate(n int64) error {
	if n < 0 || n > m.cap {
		return fs.ErrInvalid
	}
	m.resize(n)
	m.finished = false
	return nil
}

func (m *model) resize(n int64) {
	grown := make([]byte, n)
	copy(grown, m.data)
	m.data = grown
}

func (m *model) seek(off int64, whence int) error {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		off += m.off
	case io.SeekEnd:
		off += int64(len(m.data))
	default:
		return fs.ErrInvalid
	}
	if off < 0 {
		return fs.ErrInvalid
	}
	m.off = off
	return nil
}

// FuzzReadWriteSeek does to a block what it does to a slice of bytes, by turns
// through two Segments, and compares after each step.
//
// A step is four bytes: what to do, through which Segment, and a number.
func FuzzReadWriteSeek(f *testing.F) {
	f.Add(uint16(100), []byte("\x00\x00\x00\x10\x01\x00\x00\x05\x02\x01\x00\x20\x03\x01\x00\x04"))
	f.Add(uint16(5000), []byte("\x08\x00\x00\x00\x01\x00\x10\x00\x04\x01\x00\x00\x09\x01\x00\x00\x0a\x00\x02\x00"))
	f.Add(uint16(100), []byte("\x08\x00\x00\x00\x00\x00\x00\x10\x0b\x01\x00\x00\x0c\x01\x00\x00\x00\x00\x00\x10\x0c\x00\x00\x00"))
	f.Add(uint16(1), []byte("\x05\x00\x00\x00\x06\x00\x00\x00\x07\x01\x00\x02"))
	f.Fuzz(func(t *testing.T, capacity uint16, steps []byte) {
		if capacity == 0 {
			return
		}
		shared := model{data: make([]byte, capacity), cap: int64(capacity)}
		seg := block(t, int64(capacity))
		segs := []*shm.Segment{seg, attach(t, seg.Name())}
		offs := []int64{0, 0}
		for i := 0; i+4 <= len(steps) && i < 400; i += 4 {
			who := int(steps[i+1] & 1)
			shared.off = offs[who]
			step(t, segs[who], &shared, int(steps[i]), int64(int16(binary.BigEndian.Uint16(steps[i+2:]))))
			offs[who] = shared.off
		}
		for _, s := range segs {
			if got := content(t, s); !bytes.Equal(got, shared.data) || s.Size() != int64(len(shared.data)) {
				t.Fatalf("the block holds %d bytes, %x, want %d, %x", s.Size(), got, len(shared.data), shared.data)
			}
		}
	})
}

func step(t *testing.T, seg *shm.Segment, m *model, what int, n int64) {
	t.Helper()
	same := func(got, want []byte, err, wantErr error) {
		t.Helper()
		if !bytes.Equal(got, want) || !errors.Is(err, wantErr) || (err == nil) != (wantErr == nil) {
			t.Fatalf("step %d with %d: %x, %v; want %x, %v", what%13, n, got, err, want, wantErr)
		}
	}
	size := int(max(n, 0)) // of buffers
	switch what % 13 {
	case 0: // Write
		p := noise(size)
		got, err := seg.Write(p)
		want, wantErr := m.writeAt(p, m.off)
		m.off += int64(want)
		same(p[:got], p[:want], err, wantErr)
	case 1: // WriteAt
		p := noise(size % 100)
		got, err := seg.WriteAt(p, n)
		want, wantErr := m.writeAt(p, n)
		if len(p) == 0 && n >= 0 {
			want, wantErr = 0, nil
		}
		same(p[:got], p[:want], err, wantErr)
	case 2: // Read
		p := make([]byte, size)
		got, err := seg.Read(p)
		want, wantErr := m.readAt(size, m.off)
		if len(want) > 0 {
			wantErr = nil
		}
		m.off += int64(len(want))
		same(p[:got], want, err, wantErr)
	case 3: // ReadAt
		p := make([]byte, 64)
		got, err := seg.ReadAt(p, n)
		want, wantErr := m.readAt(len(p), n)
		same(p[:got], want, err, wantErr)
	case 4, 5, 6, 7: // Seek
		_, err := seg.Seek(n, what%13-4)
		same(nil, nil, err, m.seek(n, what%13-4))
	case 8: // Truncate
		same(nil, nil, seg.Truncate(n), m.truncate(n))
	case 9: // WriteTo
		var b bytes.Buffer
		_, err := seg.WriteTo(&b)
		want := m.data[min(m.off, int64(len(m.data))):]
		m.off += int64(len(want))
		same(b.Bytes(), want, err, nil)
	case 10: // ReadFrom
		p := noise(size)
		got, err := seg.ReadFrom(bytes.NewReader(p))
		want, wantErr := m.writeAt(p, m.off)
		m.off += int64(want)
		same(p[:got], p[:want], err, wantErr)
	case 11: // Finish
		same(nil, nil, seg.Finish(), nil)
		m.finished = true
	case 12: // Follow
		if m.finished {
			got, err := io.ReadAll(seg.Follow(context.Background()))
			same(got, m.data, err, nil)
		}
	}
	if off, _ := seg.Seek(0, io.SeekCurrent); off != m.off {
		t.Fatalf("step %d with %d: offset %d, want %d", what%13, n, off, m.off)
	}
}

// FuzzHeader writes what it likes over the header of a block that is in use,
// with a checksum that is right if it says so, and changes the length of the
// object. Everything may then fail, but only with an error.
func FuzzHeader(f *testing.F) {
	if !shm.Files() {
		f.Skip("the header is reached through the file system")
	}
	name := ""
	func() {
		seg := block(f, 10000)
		defer seg.Close()
		name = "/dev/shm/" + seg.Name()
		header, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(header[:320], int64(len(header)), true)
		f.Add(header[:320], int64(320), false)
		f.Add(header[:64], int64(0), false)
		f.Add(bytes.Repeat([]byte{0xff}, 320), int64(1<<20), true)
		f.Add(append(header[:64:64], bytes.Repeat([]byte{0xff}, 256)...), int64(len(header)), true)
	}()
	f.Fuzz(func(t *testing.T, header []byte, length int64, checksum bool) {
		shm.SetPatience(t, time.Millisecond)
		seg := block(t, 10000)
		path := "/dev/shm/" + seg.Name()
		if checksum && len(header) >= 64 {
			binary.NativeEndian.PutUint32(header[60:], crc32.Checksum(header[:60], crc32.MakeTable(crc32.Castagnoli)))
		}
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		defer os.Remove(path) // what has no header any more is nobody's to unlink
		if len(header) > 4096 {
			header = header[:4096]
		}
		if _, err := file.WriteAt(header, 0); err != nil {
			t.Fatal(err)
		}
		if err := file.Truncate(max(length, 0) % (1 << 30)); err != nil {
			t.Fatal(err)
		}
		everything(seg)
		for _, opts := range [][]shm.Option{nil, {shm.ReadOnly()}, {shm.Headerless(), shm.ReadOnly()}} {
			peer, err := shm.Open(seg.Name(), opts...)
			if err != nil {
				continue
			}
			if peer.Cap() <= 1<<20 {
				everything(peer)
			}
			peer.Close()
		}
		shm.Stat(seg.Name())
		if _, err := shm.Create(seg.Name(), 1); err == nil {
			t.Error("created over a block in use")
		}
		seg.Close()
		if peer, err := shm.Open(seg.Name()); err == nil {
			peer.Close()
		}
		shm.Unlink(seg.Name())
	})
}

// everything calls all methods but Close.
func everything(seg *shm.Segment) {
	p := make([]byte, 5000)
	seg.Size()
	seg.Refs()
	seg.Stat()
	seg.ReadAt(p, 0)
	seg.ReadAt(p, 9000)
	seg.WriteAt(p, 100)
	seg.WriteAt(p, 9000)
	seg.Seek(-10, io.SeekEnd)
	seg.Read(p)
	seg.Write(p)
	seg.Seek(0, io.SeekStart)
	seg.WriteTo(io.Discard)
	seg.Seek(0, io.SeekStart)
	seg.ReadFrom(bytes.NewReader(p))
	seg.ReadByte()
	seg.WriteByte(1)
	seg.WriteString("string")
	seg.Truncate(10)
	seg.Truncate(9999)
	now, cancel := context.WithCancel(context.Background())
	cancel()
	seg.Wait(now, func() bool { return false })
	seg.Follow(now).Read(p)
	seg.Lock(now)
	seg.Unlock()
	seg.Notify()
	seg.Finish()
	seg.Bytes()
	seg.View(func(b []byte) error {
		for i := range b {
			b[i]++
		}
		return nil
	})
}

// FuzzName creates a block of any name: it is made under that name, or not at
// all.
func FuzzName(f *testing.F) {
	for _, name := range []string{"", "/", "a", "/a", "//a", "../a", "a/b", ".a", "a.", "a\x00", strings.Repeat("a", 256), "ä", "CON", "-"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if _, err := shm.Stat(name); err == nil {
			t.Skip("somebody else's")
		}
		seg, err := shm.Create(name, 1)
		if errors.Is(err, fs.ErrExist) {
			t.Skip("somebody else's")
		}
		if err != nil {
			mustFail(t, err, name, fs.ErrInvalid)
			return
		}
		defer seg.Close()
		clean := strings.Trim(seg.Name(), "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
		if clean != "" || seg.Name()[0] == '.' || name != "" && seg.Name() != strings.TrimPrefix(name, "/") {
			t.Errorf("Create(%q) made %q", name, seg.Name())
		}
		if shm.Files() {
			if _, err := os.Lstat("/dev/shm/" + seg.Name()); err != nil {
				t.Error(err)
			}
		}
		attach(t, seg.Name())
	})
}

// FuzzEmbedded streams through a type that embeds a Segment, in all the ways
// that io.Copy finds through such a type, against a bytes.Buffer.
func FuzzEmbedded(f *testing.F) {
	f.Add([]byte("some bytes"), uint16(100), uint8(0))
	f.Add([]byte("more bytes than there is room for"), uint16(10), uint8(1))
	f.Add(bytes.Repeat([]byte("x"), 5000), uint16(5000), uint8(2))
	f.Add([]byte{}, uint16(1), uint8(3))
	f.Fuzz(func(t *testing.T, data []byte, capacity uint16, way uint8) {
		if capacity == 0 {
			return
		}
		frame := &Frame{Segment: filled(t, int64(capacity), nil)}
		var src io.Reader = bytes.NewReader(data)
		var dst io.Writer = frame
		if way&1 != 0 {
			src = struct{ io.Reader }{src} // no WriteTo
		}
		if way&2 != 0 {
			dst = struct{ io.Writer }{frame} // no ReadFrom
		}
		var buffered *bufio.Writer
		if way&4 != 0 {
			buffered = bufio.NewWriterSize(dst, 16+int(way>>4))
			dst = buffered
		}
		if way&8 != 0 {
			src = io.LimitReader(src, int64(len(data)))
		}
		n, err := io.Copy(dst, src)
		if buffered != nil && err == nil {
			err = buffered.Flush()
			n = min(n, int64(capacity))
		}
		want := data[:min(len(data), int(capacity))]
		if len(data) > int(capacity) {
			mustFail(t, err, frame.Name(), shm.ErrFull, io.ErrShortWrite)
		} else if err != nil {
			t.Fatal(err)
		}
		if buffered == nil && n != int64(len(want)) {
			t.Errorf("copied %d bytes of %d", n, len(want))
		}
		frame.Seek(0, io.SeekStart)
		var got bytes.Buffer
		if way&2 != 0 {
			_, err = io.Copy(&got, struct{ io.Reader }{frame})
		} else {
			_, err = io.Copy(&got, frame)
		}
		if err != nil || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%q came back as %q, %v", want, got.Bytes(), err)
		}
	})
}

// FuzzFromFile attaches to a file with any content, sealed and not.
func FuzzFromFile(f *testing.F) {
	seg, err := shm.Anonymous(10000)
	if errors.Is(err, errors.ErrUnsupported) {
		f.Skip("no anonymous blocks on this system")
	}
	if err != nil {
		f.Fatal(err)
	}
	header := bytes.Clone(shm.Header(seg))
	seg.Close()
	f.Add(header, true)
	f.Add(header[:64], false)
	f.Add(bytes.Repeat([]byte{0xff}, 320), true)
	f.Add(append(header[:64:64], bytes.Repeat([]byte{0xff}, 256)...), true)
	f.Fuzz(func(t *testing.T, header []byte, checksum bool) {
		shm.SetPatience(t, time.Millisecond)
		if checksum && len(header) >= 64 {
			binary.NativeEndian.PutUint32(header[60:], crc32.Checksum(header[:60], crc32.MakeTable(crc32.Castagnoli)))
		}
		seg, err := shm.Anonymous(10000)
		if err != nil {
			t.Fatal(err)
		}
		defer seg.Close()
		file, err := seg.File()
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		copy(shm.Header(seg), header)
		everything(seg)
		for _, opts := range [][]shm.Option{nil, {shm.ReadOnly()}, {shm.Headerless()}, {shm.Headerless(), shm.ReadOnly()}} {
			peer, err := shm.FromFile(file, opts...)
			if err != nil {
				continue
			}
			everything(peer)
			peer.Close()
		}
	})
}
