//go:build !race

package shm_test

import (
	"io"
	"testing"
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
