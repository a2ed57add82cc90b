//go:build !linux && !darwin && !windows

package manager

import (
	"errors"
	"net"
	"os"
	"time"
)

// Elsewhere there are no anonymous blocks yet, so nothing that a server could
// give. What follows is never called.

const supported = false

var errUnsupported = errors.ErrUnsupported

func checkAddr(string) error                         { return errors.ErrUnsupported }
func credentials(int) (Peer, error)                  { return Peer{}, errors.ErrUnsupported }
func duplicate(uintptr, bool) (uintptr, error)       { return 0, errors.ErrUnsupported }
func rights(*os.File) []byte                         { return nil }
func received([]byte, int, string) (*os.File, error) { return nil, errors.ErrUnsupported }
func memorySize(uintptr) (int64, error)              { return 0, errors.ErrUnsupported }
func readMsg(*net.UnixConn, []byte, []byte) (n, oobn, flags int, err error) {
	return 0, 0, 0, errors.ErrUnsupported
}
func totalMemory() int64             { return 0 }
func lockDir(string) (func(), error) { return nil, errors.ErrUnsupported }

const (
	oobSize                  = 0
	restricts                = false
	refusedFor time.Duration = 0
)
