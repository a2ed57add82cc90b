package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"syscall"

	"github.com/shmkit/shm"
)

// usageError is an error in the command line.
type usageError struct{ error }

// exitStatus is an exit status that needs no message, or whose message has been
// printed.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// fileError is an error about a file or a stream; a [fs.PathError] that is not in
// one is about a block.
type fileError struct{ error }

func (e fileError) Unwrap() error { return e.error }

func aboutFile(err error) error {
	if err == nil {
		return nil
	}
	return fileError{err}
}

// hintError adds to an error what the user can do about it.
type hintError struct {
	error
	hint string
}

func (e hintError) Unwrap() error { return e.error }

const (
	abandonedStatus = 3
	truncatedStatus = 4
	timeoutStatus   = 124 // as that of timeout(1)
)

// exitCode returns the exit status for err.
func exitCode(err error) int {
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, new(usageError)):
		return 2
	case errors.Is(err, syscall.EPIPE):
		return int(signalError(syscall.SIGPIPE))
	case errors.Is(err, shm.ErrAbandoned):
		return abandonedStatus
	case errors.Is(err, shm.ErrTruncated):
		return truncatedStatus
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, shm.ErrLocked):
		return timeoutStatus
	}
	return 1
}

// orCause returns the cause of ctx in place of an error that comes from its end.
func orCause(ctx context.Context, err error) error {
	if ended := ctx.Err(); ended != nil && errors.Is(err, ended) {
		return context.Cause(ctx)
	}
	return err
}

// signalError returns the exit status that a shell reports for a process killed
// by sig.
func signalError(sig os.Signal) exitStatus { return exitStatus(128 + sig.(syscall.Signal)) }

// message returns the message to print for err, "" for a signal and for a pipe
// whose reader has exited.
func message(err error) string {
	if err == nil || errors.Is(err, syscall.EPIPE) {
		return ""
	}
	switch e := err.(type) {
	case exitStatus:
		return ""
	case hintError:
		return message(e.error) + "; " + e.hint
	case *fs.PathError:
		if e.Path == "" {
			return e.Op + ": " + reason(e.Err)
		}
		return e.Op + " " + e.Path + ": " + reason(e.Err)
	}
	return err.Error()
}

// reason describes the error of a block, for which package fs has the words of files.
func reason(err error) string {
	switch {
	case errors.Is(err, shm.ErrFault) && errors.Is(err, shm.ErrNoSpace): // of a sparse block
		return "no memory left for shared memory"
	case errors.Is(err, fs.ErrNotExist):
		return "no such block"
	case errors.Is(err, fs.ErrExist):
		return "block exists"
	case errors.Is(err, shm.ErrFull):
		return "block is full"
	case errors.Is(err, shm.ErrFinished):
		return "block is finished"
	case errors.Is(err, shm.ErrAbandoned):
		return "block is not finished, and no writer is attached"
	case errors.Is(err, context.DeadlineExceeded):
		return "timed out"
	case errors.Is(err, shm.ErrReadOnly):
		return "block is read-only"
	case errors.Is(err, fs.ErrPermission):
		return "permission denied"
	case errors.Is(err, errors.ErrUnsupported):
		return "not supported on this system"
	}
	return err.Error()
}

// makeRoom adds a hint to an error that wraps [shm.ErrNoSpace]: how to enlarge
// /dev/shm if that is full, or else how much memory was wanted, which the library
// says only of a full /dev/shm.
func makeRoom(err error, wanted int64) error {
	fault := errors.Is(err, shm.ErrFault) // of a sparse block
	switch {
	case !errors.Is(err, shm.ErrNoSpace):
	case runtime.GOOS == "linux" && (fault || errors.Is(err, syscall.ENOSPC)):
		err = hintError{err, "to enlarge it: mount -o remount,size=SIZE /dev/shm, or docker run --shm-size=SIZE"}
	case !fault:
		err = hintError{err, iec(wanted) + " wanted"}
	}
	return err
}
