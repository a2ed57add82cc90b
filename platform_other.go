//go:build !linux && !darwin && !windows

package shm

import "errors"

// Systems without a backend: programs that import this package still build, and
// every attempt to come by a block is errors.ErrUnsupported. See object.Unsupported.

func pollable(uintptr) bool                { return false }
func readFD(uintptr, []byte) (int, error)  { return 0, errors.ErrUnsupported }
func writeFD(uintptr, []byte) (int, error) { return 0, errors.ErrUnsupported }
