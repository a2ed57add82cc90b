package shm

import (
	"fmt"
	"io/fs"
	"os"

	"github.com/shmkit/shm/internal/object"
)

// Anonymous creates a block without a name, with a Cap and Size of size bytes,
// all zero, and attaches to it. The only way to it is its [Segment.File]: a
// process that is given the file attaches by [FromFile]. Nothing of the block is
// in /dev/shm, so nothing can be left behind, and nobody can truncate it: unless
// it is [Sparse], no access to it can fail, not even through Bytes (on darwin,
// which does not reserve memory, the system can end processes). Whoever has a file
// of it that is open for writing can write to it, whatever user he is; one that is
// open for reading only gives no way to, but to the creator's user.
//
// An anonymous block exists as long as somebody is attached to it or has a file
// of it. [Segment.Unlink] returns [fs.ErrNotExist]. Processes that were killed
// are in [Segment.Refs] until the block ends.
//
// On Windows its section has a random name, which is that of no
// block and not in List.
//
// The error is [fs.ErrInvalid] for a bad option or a size below 1, [ErrNoSpace]
// if there is not the memory or the address space for it, or
// [errors.ErrUnsupported] elsewhere than on Linux, darwin and Windows.
//
// Options: [Label], [Sparse], [Prefault].
func Anonymous(size int64, opts ...Option) (*Segment, error) {
	c, err := newConfig(opts, anonymousOptions)
	var a *attachment
	if err == nil {
		a, err = anonymous(size, c)
	}
	if err != nil {
		return nil, pathError("create", c.label, err)
	}
	return &Segment{watch(a, 1)}, nil
}

func anonymous(size int64, c config) (*attachment, error) {
	if err := checkSize(size); err != nil {
		return nil, err
	}
	c.optionSet |= optAnonymous
	return prepare(newAttempt(), c.label, size, c)
}

// File returns a file open on the block, for another process to attach to it
// by [FromFile]: pass it in [os/exec.Cmd.ExtraFiles], or over a Unix socket; on
// Windows make its handle inheritable and pass it in
// [syscall.SysProcAttr].AdditionalInheritedHandles. It is open for reading only
// if the Segment is [ReadOnly], and independent of the Segment; close it when it
// is passed on.
//
// The file is no attachment: a block with a name must still have somebody
// attached when FromFile is called. Its bytes begin with the header, unless the
// block is [Headerless], and reading and writing them directly is not for this;
// darwin only lets them be mapped.
//
// The error is [fs.ErrClosed], [fs.ErrPermission] for a process that came to
// the block by a file and that its permissions keep from opening it, [ErrBusy]
// if another process has a lease on it (F_SETLEASE of fcntl(2)), or
// [errors.ErrUnsupported]: on Linux where it takes /proc and there is none, and on
// darwin for a ReadOnly Segment of a block that is anonymous or has lost its name.
func (s *Segment) File() (*os.File, error) {
	h, token, err := s.enter("file")
	if err != nil {
		return nil, err
	}
	defer h.leave(token)
	fd, err := h.obj.Descriptor(h.readOnly)
	if err != nil {
		return nil, pathError("file", h.name, err)
	}
	return os.NewFile(fd, h.name), nil
}

// FromFile attaches to the block that f is open on. It uses a descriptor of its
// own; f remains the caller's, to close whenever he likes. Of a block that has a
// name it is one more attachment, as if by [Open].
// An f that is open for reading only attaches only [ReadOnly], and such an
// attachment is not in the count of references. On Linux the permissions of a
// block with a name are asked for; on darwin f is all that is needed, and the
// Segment does not know the name if f is open for reading only or the block is
// Headerless.
//
// f may come from anybody and be anything. The error is [ErrNotSegment] for
// what has no header (a pipe, a socket, a directory, a file on a disk, memory
// of another program; but see [Headerless]); [ErrCorrupt] or [ErrVersion] if the
// header is not to be relied on, and for an anonymous block that somebody could
// truncate; [fs.ErrNotExist] if the block has or had a name and no process is
// attached to it, unless it is [Persistent] and has its name still; [fs.ErrPermission] if f is not open for what is asked
// for; [ErrBusy]; [ErrNoSpace]; [fs.ErrInvalid] for a nil f or a bad option;
// [fs.ErrClosed] for a closed one; or [errors.ErrUnsupported].
//
// Options: [ReadOnly], [Headerless], [Prefault].
func FromFile(f *os.File, opts ...Option) (*Segment, error) {
	if f == nil {
		return nil, pathError("open", "", fmt.Errorf("%w: nil file", fs.ErrInvalid))
	}
	a, err := fromFile(f, opts)
	if err != nil {
		return nil, pathError("open", f.Name(), err)
	}
	return &Segment{watch(a, 1)}, nil
}

func fromFile(f *os.File, opts []Option) (a *attachment, err error) {
	c, err := newConfig(opts, openOptions)
	if err != nil {
		return nil, err
	}
	err = retry(func() (err error) {
		a, err = fromFileOnce(f, c)
		return err
	})
	return a, err
}

func fromFileOnce(f *os.File, c config) (*attachment, error) {
	o, err := handedObject(f, object.Current.FromFD)
	if err != nil {
		return nil, retryIfBusy(err)
	}
	if !o.Writable() && !c.has(optReadOnly) {
		o.Close()
		return nil, fmt.Errorf("%w: file is open for reading only", fs.ErrPermission)
	}
	name := o.Name()
	if o.Sealed() {
		name = f.Name()
	}
	return attachTo(o, name, c)
}
