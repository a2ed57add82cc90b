//go:build !race

package shm_test

import (
	"io"
	"runtime"
	"testing"

	"github.com/shmkit/shm"
)

// The race detector makes some of what is counted here itself.
func TestAllocations(t *testing.T) {
	seg := block(t, 1<<16)
	p := make([]byte, 64)
	for name, f := range map[string]func(){
		"ReadAt":      func() { seg.ReadAt(p, 0) },
		"WriteAt":     func() { seg.WriteAt(p, 0) },
		"Read":        func() { seg.Seek(0, io.SeekStart); seg.Read(p) },
		"Write":       func() { seg.Seek(0, io.SeekStart); seg.Write(p) },
		"WriteString": func() { seg.Seek(0, io.SeekStart); seg.WriteString("string") },
		"ReadByte":    func() { seg.Seek(0, io.SeekStart); seg.ReadByte() },
		"WriteByte":   func() { seg.Seek(0, io.SeekStart); seg.WriteByte(1) },
		"Size":        func() { seg.Size() },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

// TestSegmentMemory uses many Segments where there are many processors. What
// each takes beyond what it had when it was opened would be there ten thousand
// times in a program that has as many.
func TestSegmentMemory(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(64))
	var segs []*shm.Segment
	for range 100 {
		segs = append(segs, block(t, 100))
	}
	p := make([]byte, 10)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, seg := range segs {
		seg.ReadAt(p, 0)
		seg.WriteAt(p, 0)
		seg.Seek(0, io.SeekEnd)
		seg.Bytes()
	}
	runtime.ReadMemStats(&after)
	if n := (after.TotalAlloc - before.TotalAlloc) / uint64(len(segs)); n > 256 {
		t.Errorf("a Segment takes %d more bytes", n)
	}
}
