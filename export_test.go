package shm

import (
	"runtime"
	"testing"
	"time"
)

const (
	MaxName   = maxName
	BornNamed = bornNamed
	NamesStay = namesStay
	Files     = runtime.GOOS == "linux" && !bornNamed // blocks are files in /dev/shm
)

// Straight reports whether bytes from or to v go straight to the mapping.
func Straight(v any) bool { return rawConn(v) != nil }

// SetPatience changes how long to wait for peers, for the time of the test.
func SetPatience(t testing.TB, d time.Duration) {
	old := patience
	patience = d
	t.Cleanup(func() { patience = old })
}
