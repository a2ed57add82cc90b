package manager

import (
	"errors"
	"os"
)

func createMemory(int64) (*os.File, error) { return nil, errors.ErrUnsupported }

// hangUp ends the connection; it waits for nothing.
func (c *conn) hangUp() { c.Close() }

// unread: no descriptors are under way.
func (c *conn) unread() bool { return false }

// errUnderWay never is.
var errUnderWay = errors.New("too many descriptors under way")

func cutShort(f func()) { f() }
