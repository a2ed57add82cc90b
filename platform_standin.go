//go:build linux && standin

package shm

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm/internal/lockpage"
	"github.com/shmkit/shm/internal/shmobject"
)

// A stand-in for darwin: the system calls of posixshm.go on Linux, for tests of
// all that is built on them. Objects are files that real processes map, and that
// stay when these are killed. What a call refuses, and with which error, is what
// xnu does (bsd/kern/posix_shm.c); platform_darwin_test.go holds both to it.
//
// Build with the tag standin, and set SHM_STANDIN to a directory for the objects.
const (
	sysMaxName = 31

	pidBits = 22 // process ids end at 4194303: PID_MAX_LIMIT

	allocUnit = shmobject.Unit // that sizes are rounded up to, and files are longer by
)

var standinDir = sync.OnceValue(func() string {
	dir := os.Getenv("SHM_STANDIN")
	if dir == "" {
		panic("shm: built with the tag standin, for tests, and SHM_STANDIN does not name a directory")
	}
	return dir
})

func standinPath(name string) (string, error) {
	switch {
	case name == "":
		return "", unix.EINVAL
	case len(name) > sysMaxName:
		return "", unix.ENAMETOOLONG
	}
	return filepath.Join(standinDir(), "shm:"+url.PathEscape(name)), nil
}

func sysShmOpen(name string, flags int, mode uint32) (int, error) {
	lockpage.Step("shm_open")
	path, err := standinPath(name)
	if err != nil {
		return -1, err
	}
	access := flags & unix.O_ACCMODE
	if flags&unix.O_CREAT != 0 {
		fd, err := standinCreate(path, mode&0o7777)
		if !errors.Is(err, fs.ErrExist) || flags&unix.O_EXCL != 0 {
			return fd, err
		}
	}
	fd, err := unix.Open(path, access|unix.O_CLOEXEC, 0)
	if err == nil && flags&unix.O_TRUNC != 0 {
		if st, err := sysFstat(fd); err != nil || st.size != 0 {
			unix.Close(fd)
			return -1, unix.EINVAL
		}
	}
	return fd, err
}

// standinCreate makes a file that has its mode when it gets its name.
func standinCreate(path string, mode uint32) (int, error) {
	fd, err := unix.Open(standinDir(), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = unix.Fchmod(fd, mode)
	if err == nil {
		self := fmt.Sprintf("/proc/self/fd/%d", fd)
		err = unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func sysShmUnlink(name string) error {
	lockpage.Step("shm_unlink")
	path, err := standinPath(name)
	if err != nil {
		return unix.EINVAL
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	// Who made it may unlink it, and who may write to it.
	if int(st.Uid) != unix.Geteuid() && unix.Access(path, unix.W_OK) != nil {
		return unix.EACCES
	}
	return unix.Unlink(path)
}

func sysFtruncate(fd int, size int64) error {
	lockpage.Step("ftruncate")
	// One caller at a time: of the processes that try, one succeeds.
	if err := unix.Flock(fd, unix.LOCK_EX); err != nil {
		return err
	}
	defer unix.Flock(fd, unix.LOCK_UN)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if size < 0 || st.Size != 0 {
		return unix.EINVAL
	}
	size = (size+allocUnit-1)&^(allocUnit-1) + allocUnit
	err := unix.Ftruncate(fd, size)
	if err == unix.EINVAL && size > 0 { // a descriptor that is only for reading does as well
		var writer int
		if writer, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
			defer unix.Close(writer)
			err = unix.Ftruncate(writer, size)
		}
	}
	return err
}

func sysFstat(fd int) (objectStat, error) {
	lockpage.Step("fstat")
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return objectStat{mode: st.Mode & 0o7777, uid: st.Uid, size: max(st.Size-allocUnit, 0)}, err
}

func sysMmap(fd, length int, write bool) ([]byte, error) {
	lockpage.Step("mmap")
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if length <= 0 || int64(length) > st.Size-allocUnit {
		return nil, unix.EINVAL
	}
	if !write {
		return unix.Mmap(fd, 0, length, unix.PROT_READ, unix.MAP_SHARED)
	}
	mem, err := unix.Mmap(fd, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err == unix.EACCES {
		err = unix.EPERM
	}
	return mem, err
}

func sysProtect(mem []byte) error {
	lockpage.Step("mprotect")
	return unix.Mprotect(mem, unix.PROT_READ|unix.PROT_WRITE)
}

func sysMunmap(mem []byte) {
	lockpage.Step("munmap")
	unix.Munmap(mem)
}

func sysClose(fd int) {
	lockpage.Step("close")
	unix.Close(fd)
}

// sysStartTime returns when the process began, in clock ticks.
func sysStartTime(pid int) (uint64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, unix.ESRCH
	}
	if err != nil {
		return 0, err
	}
	// proc_pid_stat(5): the fields from the third on follow the last parenthesis.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const state, threads, startTime = 0, 17, 19 // the third, the 20th, the 22nd
	// The thread that a process began with can be gone before the others are.
	if s := fields[state][0]; (s == 'Z' || s == 'X') && string(fields[threads]) <= "1" {
		return 0, unix.ESRCH
	}
	return strconv.ParseUint(string(fields[startTime]), 10, 64)
}
