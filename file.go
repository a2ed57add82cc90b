package shm

import (
	"fmt"
	"io/fs"
	"os"

	"github.com/shmkit/shm/internal/object"
)

// Anonymous creates a block without a name, with a Cap and Size of size bytes, all
// zero, and attaches to it. Another process attaches by [FromFile] if it is given
// the [Segment.File].
//
// The block exists as long as a process is attached to it or has a file of it, and
// then leaves nothing behind: it is not in /dev/shm. No process can truncate it. So
// unless it is [Sparse] no access to it can fail, not even through Bytes; on darwin,
// which does not reserve memory, the system can still end processes.
//
// A process that has a file of the block that is open for writing can write to the
// block, whatever its user. With a file that is open for reading only, only a process
// of the creator's user can.
//
// [Segment.Unlink] returns [fs.ErrNotExist]. [Segment.Refs] counts killed processes
// until the block ends. On Windows the section has a random name that is not the
// name of a block.
//
// The error is [fs.ErrInvalid] for a bad option or a size below 1, [ErrNoSpace] if
// the memory or the address space for the block cannot be allocated, or
// [errors.ErrUnsupported].
//
// Options: [Label], [Empty], [Sparse], [Prefault].
func Anonymous(size int64, opts ...Option) (*Segment, error) {
	c, err := newConfig(opts, anonymousOptions)
	var a *attachment
	if err == nil {
		a, err = anonymous(size, c)
	}
	return newSegment(a, pathError("create", c.label, err))
}

func anonymous(size int64, c config) (*attachment, error) {
	if err := checkSize(size); err != nil {
		return nil, err
	}
	c.optionSet |= optAnonymous
	return prepare(newAttempt(), c.label, size, c)
}

// File returns a file that is open on the block, with which another process attaches
// by [FromFile]. Pass it in [os/exec.Cmd.ExtraFiles] or over a Unix socket; on
// Windows make its handle inheritable and pass it in
// [syscall.SysProcAttr].AdditionalInheritedHandles. The file is open for reading
// only if the Segment is [ReadOnly]. It is independent of the Segment; the caller
// closes it.
//
// The file is not an attachment: a block with a name must still have an attachment
// when FromFile is called. The bytes of the file begin with the header, unless the
// block is [Headerless]. Do not read or write them directly; darwin does not permit
// it.
//
// The error is [fs.ErrClosed], [ErrBusy] if another process has a lease on the block
// (F_SETLEASE of fcntl(2)), [fs.ErrPermission] if the process itself attached by a
// file and is not permitted to open the block, or [errors.ErrUnsupported]: on Linux
// if that takes /proc and /proc is not mounted, and on darwin for a ReadOnly Segment
// of a block that is anonymous or unlinked.
func (s *Segment) File() (f *os.File, err error) {
	err = s.use("file", func(h *handle) error {
		fd, err := h.obj.Descriptor(h.readOnly)
		if err == nil {
			f = os.NewFile(fd, h.name)
		}
		return pathError("file", h.name, err)
	})
	return f, err
}

// FromFile attaches to the block that f is open on. It uses a descriptor of its own;
// the caller may close f at any time. For a block with a name the attachment is as
// one by [Open].
//
// If f is open for reading only, the option [ReadOnly] is required, and the
// attachment is not counted in [Segment.Refs]. On Linux the process must have the
// permissions of a block with a name. On darwin f is sufficient, and the Segment does
// not know the name of the block if f is open for reading only or the block is
// Headerless.
//
// f need not be trusted. The error is [ErrNotSegment] if f has no header: if it is a
// pipe, a socket, a directory, a file on a disk, or memory of another program (but see
// [Headerless]). It is [ErrCorrupt] or [ErrVersion] if the header is damaged or of
// another version, and ErrCorrupt for an anonymous block that could be truncated. It
// is [fs.ErrNotExist] if the block is stale, or is unlinked and no process is attached
// to it; [fs.ErrPermission] if f is open for reading only and ReadOnly is not given, or
// the block's permissions forbid it; [fs.ErrInvalid] for a nil f or a bad option;
// [fs.ErrClosed] if f is closed; [ErrBusy]; [ErrNoSpace]; or [errors.ErrUnsupported].
//
// Options: [ReadOnly], [Headerless], [Prefault].
func FromFile(f *os.File, opts ...Option) (*Segment, error) {
	if f == nil {
		return nil, pathError("open", "", fmt.Errorf("%w: nil file", fs.ErrInvalid))
	}
	a, err := fromFile(f, opts)
	return newSegment(a, pathError("open", f.Name(), err))
}

func fromFile(f *os.File, opts []Option) (a *attachment, err error) {
	c, err := newConfig(opts, openOptions)
	if err != nil {
		return nil, err
	}
	t := newAttempt()
	err = t.retry(func() (err error) {
		a, err = fromFileOnce(t, f, c)
		return err
	})
	return a, err
}

func fromFileOnce(t *attempt, f *os.File, c config) (*attachment, error) {
	o, err := object.WithFD(f, object.Current.FromFD)
	if err != nil {
		return nil, retryIfBusy(err)
	}
	if !o.Writable() && !c.has(optReadOnly) {
		o.Close()
		return nil, fmt.Errorf("%w: the file is open for reading only: use ReadOnly", fs.ErrPermission)
	}
	name := o.Name()
	if o.Sealed() {
		name = f.Name()
	}
	return attachTo(t, o, name, c)
}
