//go:build !linux && !darwin && !windows

package shm

import (
	"errors"
	"os"

	"github.com/shmkit/shm/internal/memsource"
)

// Systems without a backend: programs that import this package still build, and
// every attempt to come by a block is errors.ErrUnsupported. As nobody can have
// an object, its methods are never called.

const (
	maxName   = 255
	bornNamed = false
	namesStay = false
	hasFile   = false
)

var headerLength = os.Getpagesize()

type object struct{ writable bool }

func createAnonymous(int64, bool) (*object, error) { return nil, errors.ErrUnsupported }
func adoptAnonymous(*memsource.Source, int64, bool) (*object, error) {
	return nil, errors.ErrUnsupported
}
func fromFD(uintptr) (*object, error)                     { return nil, errors.ErrUnsupported }
func createObject(string, int64, config) (*object, error) { return nil, errors.ErrUnsupported }
func openObject(string, bool) (*object, error)            { return nil, errors.ErrUnsupported }
func unlinkUnopened(string) error                         { return errors.ErrUnsupported }
func listObjects(func(string) bool) error                 { return errors.ErrUnsupported }

func (o *object) stat() (objectInfo, error)                { return objectInfo{}, errors.ErrUnsupported }
func (o *object) newborn() error                           { return nil }
func (o *object) lockable() error                          { return errors.ErrUnsupported }
func (o *object) publish(string) error                     { return errors.ErrUnsupported }
func (o *object) unlink(string) error                      { return errors.ErrUnsupported }
func (o *object) named(string) (bool, error)               { return false, errors.ErrUnsupported }
func (o *object) mmap(int, int, bool) ([]byte, error)      { return nil, errors.ErrUnsupported }
func (o *object) readAt([]byte, int64) (int, error)        { return 0, errors.ErrUnsupported }
func (o *object) writeAt([]byte, int64) (int, error)       { return 0, errors.ErrUnsupported }
func (o *object) punch(off, n int64) error                 { return errors.ErrUnsupported }
func (o *object) lock(lane, hold) error                    { return errors.ErrUnsupported }
func (o *object) holder(lane) (hold, error)                { return unheld, errors.ErrUnsupported }
func (o *object) file(string, bool) (*os.File, error)      { return nil, errors.ErrUnsupported }
func (o *object) isSealed() bool                           { return false }
func (o *object) findName() string                         { return "" }
func (o *object) receive(uintptr, int64, int) (int, error) { return 0, errors.ErrUnsupported }
func (o *object) unlock()                                  {}
func (o *object) close()                                   {}
func munmap([]byte)                                        {}
func revoke([]byte) error                                  { return errors.ErrUnsupported }
func revocable() int64                                     { return 0 }
func pollable(uintptr) bool                                { return false }
func readFD(uintptr, []byte) (int, error)                  { return 0, errors.ErrUnsupported }
func writeFD(uintptr, []byte) (int, error)                 { return 0, errors.ErrUnsupported }
