//go:build !standin

package shm_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/raw"
)

// inUse reports whether anything is mapped, or kept from being mapped, at &b[0].
func inUse(t testing.TB, b []byte) bool {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	addr := uintptr(raw.Pointer(b))
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
			t.Fatal(err)
		}
		if from <= addr && addr < to {
			return true
		}
	}
	return false
}

// TestBytesBudget closes Segments with slices until their addresses come to more
// than Close keeps: those that were closed first are free again.
func TestBytesBudget(t *testing.T) {
	if !limited(t) {
		return
	}
	limit := shm.Revocable()
	if limit == 0 {
		t.Skip("Close keeps no addresses on this system")
	}
	lend := func(size int64) []byte {
		seg, err := shm.Create("", size, shm.Sparse())
		if err != nil {
			t.Fatal(err)
		}
		defer seg.Close()
		return seg.Bytes()
	}
	check := func(what string, want []bool, b ...[]byte) {
		t.Helper()
		var got []bool
		for _, b := range b {
			got = append(got, inUse(t, b))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: kept are %v, want %v", what, got, want)
		}
	}
	first, second := lend(limit/8*3), lend(limit/8*3)
	check("two", []bool{true, true}, first, second)
	check("one that is too large", []bool{true, true, false}, first, second, lend(limit+1))
	third := lend(limit / 8 * 3)
	check("three", []bool{false, true, true}, first, second, third)
	// The number is limited, too.
	small := lend(1)
	n := int(limit / (8 << 20))
	for range n - 1 {
		lend(1)
	}
	check("many", []bool{false, false, true}, second, third, small)
	lend(1)
	check("one more", []bool{false}, small)
}
