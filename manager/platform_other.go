//go:build !linux && !darwin && !windows

package manager

import (
	"context"
	"errors"
	"net"
	"time"
)

// Systems without servers: see supported. Nothing here is called.

var passing []error

func dialOnce(context.Context, string) (conn, error) { return nil, errors.ErrUnsupported }
func busyFor(error) time.Duration                    { return 0 }
func listen(string) (net.Listener, error)            { return nil, errors.ErrUnsupported }
func accepted(net.Conn) (conn, error)                { return nil, errors.ErrUnsupported }
func totalMemory() int64                             { return 0 }
func cutShort(func())                                {}
