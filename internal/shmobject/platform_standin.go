//go:build linux && standin

package shmobject

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

var errNone = errors.New("not a shared memory object")

// Unit is by how many bytes the file of an object is longer than the object,
// once that has a size: an object can get the size 0, and a new file is empty.
const Unit = 16 << 10

// Size is that of darwin, for the files that are objects of the stand-in.
func Size(fd uintptr) (int64, error) {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil || !strings.HasPrefix(path, os.Getenv("SHM_STANDIN")+"/") {
		return 0, errNone
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(fd), &st); err != nil {
		return 0, err
	}
	return max(st.Size-Unit, 0), nil
}
