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

// Knock connects to a server without any manners. Descriptors that come are dropped.
func Knock(addr string) (net.Conn, error) {
	c, err := connect(context.Background(), addr)
	if s, ok := c.(interface{ bare() net.Conn }); ok {
		return s.bare(), err
	}
	return c, err
}

// SetAttempts changes how often an OpenOrCreate begins anew, for the time of the
// test.
func SetAttempts(t testing.TB, n int) {
	old := attempts
	attempts = n
	t.Cleanup(func() { attempts = old })
}
