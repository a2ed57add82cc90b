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

// Errors for conditions that io/fs has no error for. An error of this package
// matches, by [errors.Is], one of these, fs.ErrNotExist, fs.ErrExist,
// fs.ErrPermission, fs.ErrClosed, fs.ErrInvalid, errors.ErrUnsupported, or the error
// number of the system, such as syscall.EMFILE.
//
// It is a [*fs.PathError], except for a bare [io.EOF]. Path is the name of the block
// without a leading slash; a bad name as it was given; for [Anonymous] the Label; for
// [FromFile] the name of the file; or "" if there is none. WriteTo, ReadFrom and View
// return the errors of the Writers, Readers and functions passed to them unchanged.
var (
	// ErrFull is returned for a write that does not fit below Cap. It is also
	// io.ErrShortWrite.
	ErrFull = fmt.Errorf("block is full: %w", io.ErrShortWrite)

	// ErrFinished is returned for a write that would raise the Size of a finished block.
	// It is also io.ErrClosedPipe.
	ErrFinished = fmt.Errorf("block is finished: %w", io.ErrClosedPipe)

	// ErrTruncated is returned to a Follower whose stream was ended by Truncate, and to
	// ReadFrom if Truncate may have cleared bytes that it had read.
	ErrTruncated = errors.New("block was truncated")

	// ErrAbandoned is returned to a Follower if the stream is not finished and no process
	// is attached that could write to the block, whatever its permission: all others have
	// opened it ReadOnly or have only followed. It is also io.ErrUnexpectedEOF.
	ErrAbandoned = fmt.Errorf("no writer is attached: %w", io.ErrUnexpectedEOF)

	// ErrLocked is returned by TryLock if the block's lock is held.
	ErrLocked = errors.New("block is locked")

	// ErrNoSpace is returned when the memory or the address space for a block cannot
	// be allocated: the file system of shared memory is full, or a limit of the
	// process or the machine is reached.
	ErrNoSpace = object.ErrNoSpace

	// ErrCorrupt is returned for a block whose header is damaged.
	ErrCorrupt = object.ErrCorrupt

	// ErrNotSegment is returned for an object without a header: a block of another
	// program (see Headerless), or no block at all.
	ErrNotSegment = object.ErrNotSegment

	// ErrVersion is returned for a block whose header has another version of the
	// layout than this package uses.
	ErrVersion = errors.New("unknown version of block header")

	// ErrReadOnly is returned for a write to a Segment opened ReadOnly. It is also
	// fs.ErrPermission.
	ErrReadOnly = fmt.Errorf("segment is read-only: %w", fs.ErrPermission)

	// ErrFault is returned for an access to memory that is not there: another
	// program has truncated the block, or there is no memory left for a page of a
	// Sparse block. In the second case it is also ErrNoSpace.
	ErrFault = object.ErrFault

	// ErrBusy is returned after two seconds of waiting for another process: it was
	// stopped while it held the block's mutex or in Truncate, keeps truncating the block,
	// or has a lease on the file (Linux).
	ErrBusy = object.ErrBusy
)

// errWouldBlock is returned if a descriptor has no bytes, or no room for any.
var errWouldBlock = errors.New("shm: descriptor is not ready")

// nameError is pathError for a name that the caller passed.
func nameError(op, name string, err error) error {
	if clean, bad := checkName(name); bad == nil {
		name = clean
	}
	return pathError(op, name, err)
}

// checkName returns name without its leading slash.
func checkName(name string) (string, error) {
	name = strings.TrimPrefix(name, "/")
	if most := object.Current.Limits().MaxName; !blockname.Valid(name, most) {
		return "", fmt.Errorf("%w: a name has 1 to %d of A-Z a-z 0-9 . _ - and does not begin with a dot", fs.ErrInvalid, most)
	}
	return name, nil
}

// pathError wraps err in the error that exported functions return.
func pathError(op, name string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// isBlockError reports whether err concerns only one block. Any other error means
// that the process cannot read blocks, not that there are none.
func isBlockError(err error) bool {
	return slices.ContainsFunc([]error{
		fs.ErrNotExist, fs.ErrPermission, fs.ErrInvalid, errors.ErrUnsupported,
		ErrNotSegment, ErrCorrupt, ErrVersion, ErrBusy,
	}, func(target error) bool { return errors.Is(err, target) })
}
