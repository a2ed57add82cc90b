package shm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
)

// Where things are in a header; see header.go.
const (
	atVersion, atHeaderSize, atCapacity, atFlags = 8, 12, 16, 24
	atCreator, atCreated, atID, atZero, atSum    = 28, 32, 40, 56, 60
	atState, atKeep, atCount, atSize, atWritten  = 64, 68, 128, 192, 256
	atGeneration, atDirty, atHeld, atGuest       = 208, 216, 384, 392
	fixedEnd, headerEnd                          = 64, 768

	version = 2 // of that layout
)

// image returns what the file of a new block with the given capacity holds.
func image(t testing.TB, capacity int64, opts ...shm.Option) []byte {
	t.Helper()
	seg := block(t, capacity, opts...)
	b, err := os.ReadFile(shmPath(seg.Name()))
	if err != nil {
		t.Fatal(err)
	}
	seg.Unlink()
	seg.Close()
	return b
}

func checksum(b []byte) {
	binary.NativeEndian.PutUint32(b[atSum:], crc32.Checksum(b[:atSum], crc32.MakeTable(crc32.Castagnoli)))
}

// put stores v at off, in as many bytes as the field has.
func put(b []byte, off int, v uint64) {
	switch off {
	case atCapacity, atCreated, atID, atSize, atWritten:
		binary.NativeEndian.PutUint64(b[off:], v)
	default:
		binary.NativeEndian.PutUint32(b[off:], uint32(v))
	}
}

var extremes = []uint64{
	0, 1, 2, 3, 4095, 4096, 4097, 8192, 65535, 65536, 65537, 1 << 31, math.MaxInt32, math.MaxUint32,
	1 << 40, 1 << 46, 1 << 47, 1 << 62, 1<<62 + 1, math.MaxInt64 - 65536, math.MaxInt64 - 65535, math.MaxInt64, 1 << 63, math.MaxUint64,
}

// TestHeaderFields has the fields of the header at their extremes, under a
// checksum that is right, on a stale block and on one in use.
func TestHeaderFields(t *testing.T) {
	onTmpfs(t)
	if !undisturbed(t) {
		return
	}
	shm.SetPatience(t, time.Millisecond)
	const capacity = 10000
	for _, off := range []int{atVersion, atHeaderSize, atCapacity, atFlags, atCreator, atCreated, atID, atZero} {
		for _, v := range extremes {
			if (off < atCapacity || off == atFlags || off == atCreator || off == atZero) && v > math.MaxUint32 {
				continue
			}
			what := fmt.Sprintf("field %d = %#x", off, v)
			b := image(t, capacity)
			put(b, off, v)
			checksum(b)
			var want error // of whoever does not look whether it is stale
			switch {
			case off == atVersion && v != version:
				want = shm.ErrVersion
			case off == atHeaderSize && (v == 4096 || v == 8192 || v == 65536) || off == atCapacity && 1 <= v && v <= capacity:
			case off == atHeaderSize, off == atCapacity:
				want = shm.ErrCorrupt
			}
			name := plant(t, b)
			if off == atHeaderSize { // so that it is not simply too short
				if err := os.Truncate(shmPath(name), max(int64(v)+capacity, int64(len(b)))); err != nil {
					t.Fatal(err)
				}
			}
			wantErr(t, what+": Stat", second(shm.Stat(name)), name, want)
			persistent := off == atFlags && v&1 != 0
			wantRaw := fs.ErrInvalid
			if want == nil && !persistent && !(off == atFlags && v&4 != 0) { // stale
				wantRaw = fs.ErrNotExist
			}
			wantErr(t, what+": Open Headerless", tryOpen(name, shm.Headerless()), name, wantRaw)
			switch {
			case want != nil:
				wantErr(t, what+": Open", tryOpen(name), name, want)
				wantErr(t, what+": Open ReadOnly", tryOpen(name, shm.ReadOnly()), name, want)
				mustStay(t, name)
			case off == atFlags && v&4 != 0: // anonymous, and yet it has a name
				wantErr(t, what+": Open", tryOpen(name), name, shm.ErrCorrupt)
				mustStay(t, name)
			case persistent:
				wantErr(t, what+": Open", tryOpen(name), name, nil)
				mustStay(t, name)
			default:
				wantErr(t, what+": Open", tryOpen(name), name, fs.ErrNotExist)
				mustBeFree(t, name)
			}
			os.Remove(shmPath(name))

			scribbled(t, what, b[:64])
		}
	}
}

// scribbled writes b over the header of a block in use, and uses it.
func scribbled(t *testing.T, what string, b []byte) {
	t.Helper()
	seg := block(t, 10000)
	name := seg.Name()
	file, err := os.OpenFile(shmPath(name), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	everything(seg)
	if size, count := seg.Size(), seg.Refs(); size < 0 || size > 10000 || count < 0 {
		t.Errorf("%s: size %d, refs %d", what, size, count)
	}
	if peer, err := shm.Open(name); err == nil {
		if c := peer.Cap(); c <= 10000 {
			everything(peer)
		}
		peer.Close()
	}
	if err := tryCreate(name, 1); !errors.Is(err, fs.ErrExist) {
		t.Errorf("%s: Create over a block in use: %v", what, err)
	}
	if err := seg.Close(); err != nil {
		t.Errorf("%s: Close: %v", what, err)
	}
	mustBeFree(t, name)
}

// TestHeaderLength has a block of a huge capacity in a file that is as long.
func TestHeaderLength(t *testing.T) {
	onTmpfs(t)
	for _, capacity := range []int64{1 << 47, 1 << 61, math.MaxInt64 - 65536} {
		b := image(t, 10)
		put(b, atCapacity, uint64(capacity))
		put(b, atFlags, 1) // Persistent, so that it is not simply stale
		checksum(b)
		name := plant(t, b)
		if err := os.Truncate(shmPath(name), capacity+4096); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "Open", tryOpen(name), name, shm.ErrNoSpace)
		wantErr(t, "Open ReadOnly", tryOpen(name, shm.ReadOnly()), name, shm.ErrNoSpace)
		if info, err := shm.Stat(name); err != nil || info.Cap != capacity || info.Size != 10 {
			t.Errorf("Stat: %+v, %v", info, err)
		}
		if err := shm.Unlink(name); err != nil {
			t.Error(err)
		}
	}
}

// TestHeaderBits turns each bit of the checksummed part around.
func TestHeaderBits(t *testing.T) {
	onTmpfs(t)
	b := image(t, 100)
	for bit := range 8 * 64 {
		b[bit/8] ^= 1 << (bit % 8)
		name := plant(t, b)
		b[bit/8] ^= 1 << (bit % 8)
		want, wantStat := shm.ErrCorrupt, shm.ErrCorrupt
		if bit < 64 {
			want, wantStat = shm.ErrNotSegment, nil
		}
		what := fmt.Sprintf("bit %d", bit)
		wantErr(t, what+": Open", tryOpen(name), name, want)
		wantErr(t, what+": Open ReadOnly", tryOpen(name, shm.ReadOnly()), name, want)
		wantErr(t, what+": Create", tryCreate(name, 1), name, fs.ErrExist)
		wantErr(t, what+": Stat", second(shm.Stat(name)), name, wantStat)
		mustStay(t, name)
		if err := shm.Unlink(name); err != nil {
			t.Errorf("%s: Unlink: %v", what, err)
		}
		mustBeFree(t, name)
	}
}

// TestCutOff has every length that a stale block can be cut to.
func TestCutOff(t *testing.T) {
	onTmpfs(t)
	if !undisturbed(t) {
		return
	}
	b := image(t, 5000)
	var lengths []int
	for n := range 400 {
		lengths = append(lengths, n)
	}
	lengths = append(lengths, 4094, 4095, 4096, 4097, 8191, 8192, 8193, len(b)-1, len(b), len(b)+1)
	for _, n := range lengths {
		what := fmt.Sprintf("cut off at %d", n)
		name := plant(t, append(slices.Clone(b), 0)[:n])
		want, wantCreate, wantRaw := shm.ErrNotSegment, fs.ErrExist, error(nil)
		switch {
		case n >= len(b):
			want, wantCreate, wantRaw = fs.ErrNotExist, nil, fs.ErrNotExist
		case n >= fixedEnd: // it is plain that it was a block, and that nobody can use it
			want, wantCreate, wantRaw = shm.ErrCorrupt, nil, fs.ErrInvalid
		case n == 0:
			wantRaw = shm.ErrNotSegment
		}
		wantErr(t, what+": Open Headerless", tryOpen(name, shm.Headerless()), name, wantRaw)
		wantErr(t, what+": Open", tryOpen(name), name, want)
		wantErr(t, what+": Create", tryCreate(name, 1), name, wantCreate)
		if wantCreate == nil {
			mustBeFree(t, name)
			continue
		}
		mustStay(t, name)
		os.Remove(shmPath(name))
	}
}

// TestWords has the words that change at their extremes.
func TestWords(t *testing.T) {
	onTmpfs(t)
	if !undisturbed(t) {
		return
	}
	shm.SetPatience(t, time.Millisecond)
	for _, off := range []int{atState, atCount, atSize, atWritten} {
		for _, v := range extremes {
			if off < atSize && v > math.MaxUint32 {
				continue
			}
			what := fmt.Sprintf("word %d = %#x", off, v)
			stale := image(t, 10000)
			put(stale, off, v)
			name := plant(t, stale)
			info, err := shm.Stat(name)
			if err != nil || info.Size < 0 || info.Size > info.Cap || info.Refs < 0 {
				t.Errorf("%s: Stat: %+v, %v", what, info, err)
			}
			wantErr(t, what+": Open", tryOpen(name), name, fs.ErrNotExist)
			mustBeFree(t, name)

			kept := image(t, 10000, shm.Persistent())
			put(kept, off, v)
			name = plant(t, kept)
			seg, err := shm.Open(name)
			if off == atState && v != 1 {
				wantErr(t, what+": Open", err, name, shm.ErrCorrupt)
			} else if err != nil {
				t.Errorf("%s: Open: %v", what, err)
			}
			if err == nil {
				if seg.Refs() != 1 || seg.Size() < 0 || seg.Size() > 10000 || len(seg.Bytes()) != int(seg.Size()) {
					t.Errorf("%s: refs %d, size %d", what, seg.Refs(), seg.Size())
				}
				everything(seg)
				seg.Close()
			}
			wantErr(t, what+": Unlink", shm.Unlink(name), name, nil)

			scribbled(t, what, kept[:headerEnd])
		}
	}
}

// scribbleProgram writes at random over a header until it is killed.
var scribbleProgram = proctest.Register("scribble", func(p *proctest.Parent) error {
	file, err := os.OpenFile(shmPath(p.Args[0]), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	m, err := syscall.Mmap(int(file.Fd()), 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return err
	}
	saved := bytes.Clone(m[:headerEnd])
	p.Say("ready")
	p.Hear()
	for i := 0; ; i++ {
		switch i % 4 {
		case 0: // the words
			words := []int{atState, atCount, atSize, atWritten, atGeneration, atDirty, atHeld, atGuest}
			off := words[rand.IntN(len(words))]
			put(m, off, extremes[rand.IntN(len(extremes))]+rand.Uint64N(3)*5000)
		case 1:
			put(m, []int{atSize, atWritten}[rand.IntN(2)], rand.Uint64())
		case 2: // anything
			m[rand.IntN(headerEnd)] = byte(rand.Uint32())
		case 3:
			copy(m, saved)
		}
		if os.Getppid() == 1 {
			return nil
		}
	}
})

// TestScribblers has other processes write over the header of a block while it
// is being used in all ways.
func TestScribblers(t *testing.T) {
	onTmpfs(t)
	shm.SetPatience(t, time.Millisecond)
	seg := block(t, 10000)
	name := seg.Name()
	t.Cleanup(func() { os.Remove(shmPath(name)) })
	var scribblers []*proctest.Child
	for range 2 {
		c := proctest.Start(t, scribbleProgram, name)
		c.Expect("ready")
		c.Say("go")
		scribblers = append(scribblers, c)
	}
	mine := []error{fs.ErrNotExist, fs.ErrExist, fs.ErrInvalid, shm.ErrCorrupt, shm.ErrVersion, shm.ErrNotSegment, shm.ErrBusy, shm.ErrFull, shm.ErrFinished, shm.ErrTruncated, io.EOF}
	for range rounds(200) {
		everything(seg)
		if size := seg.Size(); size < 0 || size > 10000 || seg.Refs() < 0 {
			t.Errorf("size %d", size)
		}
		for what, call := range calls {
			if what == "Close" || what == "Unlink" || strings.HasSuffix(what, "File") {
				continue
			}
			if err := call(seg); err != nil && !slices.ContainsFunc(mine, func(e error) bool { return errors.Is(err, e) }) {
				t.Errorf("%s: %v", what, err)
			}
		}
		for _, opts := range [][]shm.Option{nil, {shm.ReadOnly()}, {shm.Headerless()}} {
			peer, err := shm.Open(name, opts...)
			if err == nil {
				everything(peer)
				peer.Close()
			} else if !slices.ContainsFunc(mine, func(e error) bool { return errors.Is(err, e) }) {
				t.Errorf("Open: %v", err)
			}
		}
		if err := tryCreate(name, 1); !errors.Is(err, fs.ErrExist) {
			t.Fatalf("Create over a block in use: %v", err)
		}
		shm.Stat(name)
		shm.Reap()
		mustStay(t, name)
	}
	for _, c := range scribblers {
		c.Kill()
	}
	clear(shm.Header(seg)[atKeep : atKeep+4]) // a block that is kept stays
	seg.Close()
	mustBeFree(t, name)
}
