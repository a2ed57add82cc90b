package shm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/shmkit/shm/internal/blockname"
	"github.com/shmkit/shm/internal/object"
)

// Errors that io/fs has no name for. All errors of this package but a bare
// [io.EOF] are a [*fs.PathError]. Its Path is the name of the block without a
// leading slash; a bad name is there as it was given. For [Anonymous] it is the
// Label, for [FromFile] the name of the file, and "" where there is none.
//
// By [errors.Is] they match one of these, or fs.ErrNotExist, fs.ErrExist,
// fs.ErrPermission, fs.ErrClosed, fs.ErrInvalid or errors.ErrUnsupported, or
// the system's own error number (syscall.EMFILE, say).
var (
	// ErrFull is a write that did not fit the block's Cap. It is
	// io.ErrShortWrite as well.
	ErrFull = fmt.Errorf("block is full: %w", io.ErrShortWrite)

	// ErrNoSpace is memory that could not be had: the shared-memory file system
	// is full, or a limit of the process or the machine is reached.
	ErrNoSpace = object.ErrNoSpace

	// ErrCorrupt is a block with a header that cannot be true.
	ErrCorrupt = errors.New("damaged block header")

	// ErrNotSegment is something without our header: a block of another program
	// (see Headerless), or no block at all.
	ErrNotSegment = object.ErrNotSegment

	// ErrVersion is a block with a header of another version of this package.
	ErrVersion = errors.New("unknown version of block header")

	// ErrReadOnly is a write through a Segment opened ReadOnly. It is
	// fs.ErrPermission as well.
	ErrReadOnly = fmt.Errorf("segment is read-only: %w", fs.ErrPermission)

	// ErrFault is an access to memory that is no longer there: another program
	// has truncated the block, or (then it is ErrNoSpace as well) the memory for
	// a page of a Sparse block could not be had.
	ErrFault = object.ErrFault

	// ErrBusy is a block that a process keeps locked that was stopped in the
	// middle of attaching or detaching, for longer than the two seconds that
	// this package waits.
	ErrBusy = object.ErrBusy
)

// errWouldBlock is a descriptor without bytes, or without room for any.
var errWouldBlock = errors.New("shm: descriptor is not ready")

// nameError is pathError for a name that the caller has given.
func nameError(op, name string, err error) error {
	if clean, bad := checkName(name); bad == nil {
		name = clean
	}
	return pathError(op, name, err)
}

// checkName returns name as the platform functions take it.
func checkName(name string) (string, error) {
	name = strings.TrimPrefix(name, "/")
	if most := object.Current.Limits().MaxName; !blockname.Valid(name, most) {
		return "", fmt.Errorf("%w: a name has 1 to %d of A-Z a-z 0-9 . _ - and does not begin with a dot", fs.ErrInvalid, most)
	}
	return name, nil
}

// pathError makes err what all exported functions return.
func pathError(op, name string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// isBlockError reports whether err says something of one block alone. Any other
// means that this process cannot look at blocks, and so not that there are none.
func isBlockError(err error) bool {
	return slices.ContainsFunc([]error{
		fs.ErrNotExist, fs.ErrPermission, fs.ErrInvalid, errors.ErrUnsupported,
		ErrNotSegment, ErrCorrupt, ErrVersion, ErrBusy,
	}, func(target error) bool { return errors.Is(err, target) })
}
