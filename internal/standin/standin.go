//go:build linux

// Package standin is a stand-in for darwin's kernel on Linux, for tests of all
// that is built on package posixshm. Objects are files that real processes map,
// and that stay when these are killed. What a call refuses, and with which error,
// is what xnu does (bsd/kern/posix_shm.c); the tests of package posixshm hold both
// to it.
//
// A program that imports it uses it if the environment variable SHM_STANDIN names a
// directory, for the objects. If SHM_STANDIN_LOOKS is set as well, it is a system that has
// no call to sleep on a word, as macOS before 14.4. No program but tests imports it.
package standin

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm/internal/futex"
	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/posixshm"
)

const env = "SHM_STANDIN"

const (
	maxName = 31 // PSHMNAMLEN of bsd/sys/posix_shm.h
	pidBits = 22 // process ids end at 4194303: PID_MAX_LIMIT

	// unit is what sizes are rounded up to. The file of an object with a size is
	// longer by as much: an object can get the size 0, and a new file is empty.
	unit = 16 << 10
)

func init() {
	if dir := os.Getenv(env); dir != "" {
		object.Current = posixshm.New(&Kernel{Dir: dir, Looks: os.Getenv(env+"_LOOKS") != ""})
	}
}

// Used returns the stand-in that this process uses, nil if none.
func Used() *Kernel {
	if s, ok := object.Current.(*posixshm.System); ok {
		return s.Kernel().(*Kernel)
	}
	return nil
}

// Kernel implements [posixshm.Kernel].
type Kernel struct {
	Dir   string // of the files
	Looks bool   // it has no Sleep

	// BeforeStep is called, unless nil, before every call, with its name, and before
	// every store to a lock page.
	BeforeStep func(what string)
}

func (k *Kernel) Step(what string) {
	if k.BeforeStep != nil {
		k.BeforeStep(what)
	}
}

func (k *Kernel) MaxName() int { return maxName }
func (k *Kernel) PIDBits() int { return pidBits }

// Path returns the file of the object called name.
func (k *Kernel) Path(name string) string {
	return filepath.Join(k.Dir, "shm:"+url.PathEscape(name))
}

func (k *Kernel) ShmOpen(name string, flags int, mode uint32) (int, error) {
	k.Step("shm_open")
	switch {
	case name == "":
		return -1, unix.EINVAL
	case len(name) > maxName:
		return -1, unix.ENAMETOOLONG
	}
	path, access := k.Path(name), flags&unix.O_ACCMODE
	if flags&unix.O_CREAT != 0 {
		fd, err := k.create(path, mode&0o7777)
		if !errors.Is(err, fs.ErrExist) || flags&unix.O_EXCL != 0 {
			return fd, err
		}
	}
	fd, err := unix.Open(path, access|unix.O_CLOEXEC, 0)
	if err == nil && flags&unix.O_TRUNC != 0 {
		if st, err := k.Stat(fd); err != nil || st.Size != 0 {
			unix.Close(fd)
			return -1, unix.EINVAL
		}
	}
	return fd, err
}

// create makes a file that has its mode when it gets its name.
func (k *Kernel) create(path string, mode uint32) (int, error) {
	fd, err := unix.Open(k.Dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0)
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

func (k *Kernel) ShmUnlink(name string) error {
	k.Step("shm_unlink")
	if name == "" || len(name) > maxName {
		return unix.EINVAL
	}
	path := k.Path(name)
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	// The creator of an object may unlink it, and a process that may write to it.
	if int(st.Uid) != unix.Geteuid() && unix.Access(path, unix.W_OK) != nil {
		return unix.EACCES
	}
	return unix.Unlink(path)
}

func (k *Kernel) Truncate(fd int, size int64) error {
	k.Step("ftruncate")
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
	size = (size+unit-1)&^(unit-1) + unit
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

func (k *Kernel) Stat(fd int) (posixshm.Stat, error) {
	k.Step("fstat")
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return posixshm.Stat{Mode: st.Mode & 0o7777, UID: st.Uid, Size: max(st.Size-unit, 0)}, err
}

func (k *Kernel) Map(fd, length int, write bool) ([]byte, error) {
	k.Step("mmap")
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if length <= 0 || int64(length) > st.Size-unit {
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

func (k *Kernel) Protect(mem []byte) error {
	k.Step("mprotect")
	return unix.Mprotect(mem, unix.PROT_READ|unix.PROT_WRITE)
}

func (k *Kernel) Unmap(mem []byte) {
	k.Step("munmap")
	unix.Munmap(mem)
}

func (k *Kernel) Close(fd int) {
	k.Step("close")
	unix.Close(fd)
}

func (k *Kernel) Sleep(word *atomic.Uint32, value uint32, most time.Duration) error {
	if k.Looks {
		return unix.ENOSYS
	}
	futex.Sleep(word, value, most, nil)
	return nil
}

func (k *Kernel) Wake(word *atomic.Uint32, all bool) {
	if !k.Looks {
		futex.Wake(word, all)
	}
}

// StartTime returns when the process began, in clock ticks.
func (k *Kernel) StartTime(pid int) (uint64, error) {
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

// ObjectSize knows the objects by the directory of their files.
func (k *Kernel) ObjectSize(fd uintptr) (int64, error) {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil || !strings.HasPrefix(path, k.Dir+"/") {
		return 0, errors.New("not a shared memory object")
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(fd), &st); err != nil {
		return 0, err
	}
	return max(st.Size-unit, 0), nil
}
