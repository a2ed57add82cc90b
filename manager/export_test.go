package manager

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/shmkit/shm/internal/object"
)

// SetStall changes how long the other side may stand still, for the time of the
// test.
func SetStall(t testing.TB, d time.Duration) {
	old := stall
	stall = d
	t.Cleanup(func() { stall = old })
}

// Restricts is whether there can be clients that may only read.
func Restricts() bool { return object.Current.Limits().Restricts }

// MaxRequest is the length of the longest request.
const MaxRequest = maxRequest

// Knock connects to a server without any manners.
func Knock(addr string) (net.Conn, error) { return connect(context.Background(), addr) }

// CreatesMemory is whether a server takes no descriptors.
func CreatesMemory() bool { return createsMemory() }

// SetAttempts changes how often an OpenOrCreate begins anew, for the time of the
// test.
func SetAttempts(t testing.TB, n int) {
	old := attempts
	attempts = n
	t.Cleanup(func() { attempts = old })
}
