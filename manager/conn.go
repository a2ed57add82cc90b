package manager

import (
	"errors"
	"net"
	"os"
	"runtime"
	"slices"
	"time"
)

// supported reports whether there are servers on this system: elsewhere there are
// no anonymous blocks for them to keep.
const supported = runtime.GOOS == "linux" || runtime.GOOS == "darwin" || runtime.GOOS == "windows"

// conn is a connection between a server and a client: a Unix socket, or a pipe of
// Windows.
type conn interface {
	net.Conn

	// peer returns the process that connected, and what it may do by default.
	peer() (Peer, Access, error)

	// sendFile sends r and with it a file of memory. If the error is ErrQuota,
	// nothing was sent.
	sendFile(r response, f *os.File) error

	// takeFile returns the file that came with r, the response to req. It is nil if
	// there was none; the error is why there is none although one came. A client
	// calls it once after each response.
	takeFile(r response, req request) (*os.File, error)

	// unread reports whether the other side has still to read a part of what was
	// sent, where the system says so.
	unread() bool

	// hangUp ends the connection for both sides, calls in progress included. It does
	// not wait, and Close is still to be called.
	hangUp()
}

// stall bounds how long a client may take to complete a request that it has begun,
// and to read the response.
var stall = 10 * time.Second // a variable for tests alone

// sendBuffer bounds what waits for a client that does not read.
const sendBuffer = 4 << 10

// closing has room for the calls of closeLater that run at the same time. Each can
// cost a thread.
var closing = make(chan struct{}, 64)

// closeLater calls f, which closes what another process has made. That can take as
// long as that process wants, so nothing waits for it.
func closeLater(f func()) {
	go func() {
		closing <- struct{}{}
		cutShort(f)
		<-closing
	}()
}

// isPassing reports whether err is a lack of resources in this process or system
// that can pass.
func isPassing(err error) bool {
	return slices.ContainsFunc(passing, func(e error) bool { return errors.Is(err, e) })
}
