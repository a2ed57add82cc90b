package shm_test

import (
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shmkit/shm"
)

func TestCreateOpenClose(t *testing.T) {
	name := unique(t)
	seg, err := shm.Create(name, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if seg.Name() != name || seg.Size() != 1000 || seg.Cap() != 1000 || seg.Refs() != 1 {
		t.Errorf("new block: %q, size %d, cap %d, refs %d", seg.Name(), seg.Size(), seg.Cap(), seg.Refs())
	}
	peer := attach(t, name)
	if peer.Size() != 1000 || peer.Cap() != 1000 || peer.Refs() != 2 || seg.Refs() != 2 {
		t.Errorf("attached: size %d, cap %d, refs %d, %d", peer.Size(), peer.Cap(), peer.Refs(), seg.Refs())
	}
	_, err = shm.Create(name, 1)
	mustFail(t, err, name, fs.ErrExist)

	if _, err := seg.WriteAt([]byte("still here"), 990); err != nil {
		t.Fatal(err)
	}
	if err := seg.Close(); err != nil {
		t.Fatal(err)
	}
	mustFail(t, seg.Close(), name, fs.ErrClosed)
	if peer.Refs() != 1 {
		t.Errorf("refs %d after the creator left", peer.Refs())
	}
	late := attach(t, "/"+name)
	if late.Name() != name {
		t.Errorf("name %q", late.Name())
	}
	got := make([]byte, 10)
	if _, err := late.ReadAt(got, 990); err != nil || string(got) != "still here" {
		t.Errorf("read %q, %v", got, err)
	}
	for _, s := range []*shm.Segment{peer, late} {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	mustNotExist(t, name)
}

func TestCreateInventsNames(t *testing.T) {
	a, b := block(t, 1), block(t, 1)
	if a.Name() == b.Name() || a.Name() == "" || len(a.Name()) > 30 {
		t.Errorf("names %q and %q", a.Name(), b.Name())
	}
}

func TestOpenOrCreate(t *testing.T) {
	name := unique(t)
	seg, created, err := shm.OpenOrCreate(name, 100)
	if err != nil || !created {
		t.Fatal(created, err)
	}
	defer seg.Close()
	peer, created, err := shm.OpenOrCreate(name, 200, shm.Persistent(), shm.Perm(0o640), shm.Prefault())
	if err != nil || created || peer.Cap() != 100 {
		t.Fatal(created, err)
	}
	if err := peer.Close(); err != nil {
		t.Fatal(err)
	}
	fresh, created, err := shm.OpenOrCreate("", 100)
	if err != nil || !created {
		t.Fatal(created, err)
	}
	fresh.Close()
	_, _, err = shm.OpenOrCreate(name, 100, shm.ReadOnly())
	mustFail(t, err, name, fs.ErrInvalid)
}

func TestNames(t *testing.T) {
	for _, name := range []string{"a", "A.b_c-9", "-x", "_", strings.Repeat("n", shm.MaxName())} {
		for _, name := range []string{name, "/" + name} {
			seg, err := shm.Create(name, 1)
			if err != nil {
				t.Errorf("Create(%q): %v", name, err)
				continue
			}
			if want := strings.TrimPrefix(name, "/"); seg.Name() != want {
				t.Errorf("Create(%q) has the name %q", name, seg.Name())
			}
			seg.Close()
		}
	}
	for _, name := range []string{"/", "//a", ".", "..", ".a", "a/b", "../a", "a\x00", "a b", "ä", "a\n", "a\\b", strings.Repeat("n", shm.MaxName()+1)} {
		_, err := shm.Create(name, 1)
		mustFail(t, err, name, fs.ErrInvalid)
		_, err = shm.Open(name)
		mustFail(t, err, name, fs.ErrInvalid)
		_, _, err = shm.OpenOrCreate(name, 1)
		mustFail(t, err, name, fs.ErrInvalid)
		_, err = shm.Stat(name)
		mustFail(t, err, name, fs.ErrInvalid)
		mustFail(t, shm.Unlink(name), name, fs.ErrInvalid)
	}
	_, err := shm.Open("")
	mustFail(t, err, "", fs.ErrInvalid)
}

func TestSizes(t *testing.T) {
	for _, size := range []int64{1, 7, 4095, 4096, 4097, 1 << 20} {
		seg := block(t, size)
		if seg.Size() != size || seg.Cap() != size || len(seg.Bytes()) != int(size) || cap(seg.Bytes()) != int(size) {
			t.Errorf("size %d: Size %d, Cap %d, Bytes %d of %d", size, seg.Size(), seg.Cap(), len(seg.Bytes()), cap(seg.Bytes()))
		}
		if slices.ContainsFunc(seg.Bytes(), func(b byte) bool { return b != 0 }) {
			t.Errorf("size %d: not zero", size)
		}
	}
	for _, size := range []int64{0, -1, math.MinInt64} {
		_, err := shm.Create("", size)
		mustFail(t, err, "", fs.ErrInvalid)
	}
	for _, size := range []int64{1 << 50, math.MaxInt64 - 4096, math.MaxInt64} {
		_, err := shm.Create("", size)
		mustFail(t, err, "", shm.ErrNoSpace)
	}
}

func TestHeaderless(t *testing.T) {
	seg := block(t, 100, shm.Headerless())
	name := seg.Name()
	size := int64(100)
	if shm.BornNamed() { // what names its objects at birth rounds their sizes up
		size = seg.Size()
	}
	if seg.Size() != size || seg.Cap() != size || size < 100 || seg.Refs() != 0 {
		t.Errorf("size %d, cap %d, refs %d", seg.Size(), seg.Cap(), seg.Refs())
	}
	if n, err := seg.WriteAt(make([]byte, 200), size-50); n != 50 || !errors.Is(err, shm.ErrFull) {
		t.Errorf("WriteAt beyond the end: %d, %v", n, err)
	}
	mustFail(t, seg.Truncate(10), name, errors.ErrUnsupported)
	_, err := shm.Open(name)
	mustFail(t, err, name, shm.ErrNotSegment)

	peer := attach(t, name, shm.Headerless())
	seg.WriteAt([]byte("raw"), 0)
	if got := string(peer.Bytes()[:3]); got != "raw" {
		t.Errorf("read %q", got)
	}
	if shm.NamesStay() { // and nothing of ours is in it that could say otherwise
		mustFail(t, shm.Unlink(name), name, errors.ErrUnsupported)
		mustFail(t, peer.Unlink(), name, errors.ErrUnsupported)
	} else {
		seg.Close()
	}
	peer.Close()
	info, err := shm.Stat(name)
	if err != nil || !info.Headerless || info.Size != size || info.Stale() {
		t.Errorf("Stat: %+v, %v", info, err)
	}
	if err := shm.Unlink(name); err != nil && !shm.NamesStay() {
		t.Fatal(err)
	}
	seg.Close()
	mustNotExist(t, name)
	managed := block(t, 1)
	_, err = shm.Open(managed.Name(), shm.Headerless())
	mustFail(t, err, managed.Name(), fs.ErrInvalid)
}

func TestReadOnly(t *testing.T) {
	seg := block(t, 100)
	ro := attach(t, seg.Name(), shm.ReadOnly())
	if seg.Refs() != 2 {
		t.Errorf("refs %d", seg.Refs())
	}
	for name, err := range map[string]error{
		"WriteAt":     second(ro.WriteAt([]byte("x"), 0)),
		"Write":       second(ro.Write([]byte("x"))),
		"WriteString": second(ro.WriteString("x")),
		"WriteByte":   ro.WriteByte('x'),
		"Truncate":    ro.Truncate(1),
		"ReadFrom":    second(ro.ReadFrom(strings.NewReader("x"))),
	} {
		t.Run(name, func(t *testing.T) {
			mustFail(t, err, seg.Name(), shm.ErrReadOnly, fs.ErrPermission)
		})
	}
	seg.WriteAt([]byte("seen"), 0)
	if string(ro.Bytes()[:4]) != "seen" {
		t.Error("what is written is not seen")
	}
	raw := block(t, 100, shm.Headerless())
	for _, s := range []*shm.Segment{ro, attach(t, raw.Name(), shm.Headerless(), shm.ReadOnly())} {
		mustFail(t, s.View(func(b []byte) error { b[99] = 1; return nil }), s.Name(), shm.ErrFault)
	}
	seg.Close()
	ro.Close()
	mustNotExist(t, seg.Name())
}

func TestNotBlocks(t *testing.T) {
	if !shm.Files() {
		t.Skip("blocks are files on Linux alone")
	}
	name := unique(t)
	path := filepath.Join("/dev/shm", name)
	if err := os.WriteFile(path, []byte("foreign"), 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path)
	_, err := shm.Open(name)
	mustFail(t, err, name, shm.ErrNotSegment)
	_, err = shm.Create(name, 1)
	mustFail(t, err, name, fs.ErrExist)
	_, _, err = shm.OpenOrCreate(name, 1)
	mustFail(t, err, name, shm.ErrNotSegment)
	if names, err := shm.Reap(); err != nil || slices.Contains(names, name) {
		t.Errorf("Reap: %v, %v", names, err)
	}
	raw := attach(t, name, shm.Headerless())
	if got, err := io.ReadAll(raw); string(got) != "foreign" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	if err := raw.Unlink(); err != nil {
		t.Error(err)
	}
}

// TestCreateRace has processes create one block at the same time.
func TestCreateRace(t *testing.T) {
	p := newPool(t, 8)
	for range rounds(1000) {
		name := unique(t)
		winner := -1
		for i, answer := range p.race("create %s", name) {
			switch {
			case len(answer) == 32 && winner < 0:
				winner = i
				mustLead(t, name, answer)
			case answer != "exist":
				t.Fatalf("agent %d: %s; agent %d had won", i, answer, winner)
			}
		}
		if winner < 0 {
			t.Fatal("nobody has created the block")
		}
		p[winner].must("closed", "close")
		mustBeGone(t, name)
	}
}

// TestJoinRace has processes call OpenOrCreate at the same time, and then Close.
func TestJoinRace(t *testing.T) {
	p := newPool(t, 8)
	for range rounds(1000) {
		name := unique(t)
		var ids []string
		created := 0
		for _, answer := range p.race("join %s", name) {
			made, id, _ := strings.Cut(answer, " ")
			if made == "true" {
				created++
			}
			ids = append(ids, id)
		}
		if created != 1 || len(slices.Compact(ids)) != 1 || len(ids[0]) != 32 {
			t.Fatalf("%d have created the blocks %q", created, ids)
		}
		p[0].must("8", "refs")
		for i, answer := range p.race("close") {
			if answer != "closed" {
				t.Fatalf("agent %d: %s", i, answer)
			}
		}
		mustBeGone(t, name)
	}
}

// TestHeaderlessForStale has a stale block where a raw one is wanted.
func TestHeaderlessForStale(t *testing.T) {
	if shm.NamesStay() {
		t.Skip("no stale blocks on this system")
	}
	name := unique(t)
	a := newAgent(t)
	a.attach("create %s", name)
	_, _, err := shm.OpenOrCreate(name, 100, shm.Headerless())
	mustFail(t, err, name, fs.ErrInvalid)
	a.Kill()
	_, err = shm.Open(name, shm.Headerless())
	mustFail(t, err, name, fs.ErrNotExist)
	seg, created, err := shm.OpenOrCreate(name, 100, shm.Headerless())
	if err != nil || !created {
		t.Fatalf("created: %v, %v", created, err)
	}
	defer shm.Unlink(name)
	defer seg.Close()
	if info, err := shm.Stat(name); err != nil || !info.Headerless {
		t.Errorf("Stat: %+v, %v", info, err)
	}
}
