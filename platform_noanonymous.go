//go:build (!linux && !windows) || standin

package shm

import (
	"errors"
	"os"
)

// Systems where there are no blocks without a name yet, none is handed on as a
// file, and bytes reach an object by its mapping alone.

func createAnonymous(int64, bool) (*object, error)         { return nil, errors.ErrUnsupported }
func fromFD(uintptr) (*object, error)                      { return nil, errors.ErrUnsupported }
func (o *object) file(string, bool) (*os.File, error)      { return nil, errors.ErrUnsupported }
func (o *object) asFile(string) *os.File                   { return nil }
func (o *object) isSealed() bool                           { return false }
func (o *object) findName() string                         { return "" }
func (o *object) receive(uintptr, int64, int) (int, error) { return 0, errors.ErrUnsupported }
