//go:build darwin || standin

package manager

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm/internal/shmobject"
)

// The memory is POSIX shared memory objects here, or those of the stand-in.

// checkAddr returns the error for an address that there cannot be: one without a
// file would be taken for the name of one.
func checkAddr(addr string) error {
	if strings.HasPrefix(addr, "@") {
		return fmt.Errorf("%w: address without a file", errors.ErrUnsupported)
	}
	return nil
}

// restricts is whether duplicate can make a descriptor to read only.
const restricts = false

// duplicate returns another descriptor of the memory that fd is open on, for what
// that is open for: an object without a name cannot be opened anew.
func duplicate(fd uintptr, _ bool) (uintptr, error) {
	n, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	return uintptr(n), err
}

// oobSize has room for all that one message can bring (MCLBYTES: sockargs of
// bsd/kern/uipc_syscalls.c), because the kernel does not close what has none.
const oobSize = 2 << 10

// memorySize is sealedSize for a descriptor. An object gets its size once.
func memorySize(fd uintptr) (int64, error) { return shmobject.Size(fd) }

// isMemory reports whether fd, which can be anything, is memory.
func isMemory(fd uintptr) bool {
	_, err := memorySize(fd)
	return err == nil
}

// createsMemory is whether the server creates the memory of blocks, and not the
// client.
const createsMemory = false

func createMemory(int64) (*os.File, error) { return nil, errors.ErrUnsupported }

func refuseRights(uintptr) error { return errors.ErrUnsupported }
func refusesRights(uintptr) bool { return false }

func (c *conn) receive(p []byte) (n, oobn, flags int, err error) {
	n, oobn, flags, _, err = c.ReadMsgUnix(p, c.oob)
	return n, oobn, flags, err
}
