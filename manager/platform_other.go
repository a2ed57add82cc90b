//go:build !linux && !darwin && !windows

package manager

import (
	"context"
	"errors"
	"net"
	"os"
	"time"
)

// Elsewhere there are no anonymous blocks yet, so nothing that a server could
// give. What follows is never called.

const (
	supported = false

	refusedFor time.Duration = 0
)

var (
	errUnsupported = errors.ErrUnsupported
	errBacklog     = errors.ErrUnsupported
	errNoSocket    = errors.ErrUnsupported
	errRefused     = errors.ErrUnsupported
	errUnderWay    = errors.ErrUnsupported
	passing        []error
)

type conn struct {
	net.Conn
	want request
}

func (c *conn) send([]byte, *os.File) error   { return errors.ErrUnsupported }
func (c *conn) take(string) (*os.File, error) { return nil, errors.ErrUnsupported }
func (c *conn) sameUser(Peer) Access          { return NoAccess }
func (c *conn) peer() (Peer, error)           { return Peer{}, errors.ErrUnsupported }
func (c *conn) unread() bool                  { return false }
func (c *conn) hangUp()                       {}

func dialOnce(context.Context, string) (*conn, error) { return nil, errors.ErrUnsupported }
func listen(string) (net.Listener, error)             { return nil, errors.ErrUnsupported }
func accepted(net.Conn) (*conn, error)                { return nil, errors.ErrUnsupported }
func createMemory(int64) (*os.File, error)            { return nil, errors.ErrUnsupported }
func sectionOf(*os.File) string                       { return "" }
func totalMemory() int64                              { return 0 }
func cutShort(func())                                 {}
