package shm

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/posixshm"
)

func init() { object.SetDefault(posixshm.New(darwin{})) }

// darwin implements [posixshm.Kernel]. What is said of the system calls there and
// here is what xnu does (bsd/kern/posix_shm.c); the tests of package posixshm have
// one for each.
type darwin struct{}

func (darwin) MaxName() int { return 31 } // PSHMNAMLEN of bsd/sys/posix_shm.h
func (darwin) PIDBits() int { return 17 } // process ids end at 99999: PID_MAX of bsd/sys/proc_internal.h
func (darwin) Step(string)  {}

var errNoObject = errors.New("not a shared memory object")

// shm_open, shm_unlink and dlsym are called in libSystem, as golang.org/x/sys/unix
// calls what it has; it has not got these. The trampolines are in
// platform_darwin.s. Without cgo this is the only way that Apple supports.

//go:cgo_import_dynamic libc_dlsym dlsym "/usr/lib/libSystem.B.dylib"
//go:cgo_import_dynamic libc_shm_open shm_open "/usr/lib/libSystem.B.dylib"
//go:cgo_import_dynamic libc_shm_unlink shm_unlink "/usr/lib/libSystem.B.dylib"

var (
	libc_dlsym_trampoline_addr      uintptr
	libc_shm_open_trampoline_addr   uintptr
	libc_shm_unlink_trampoline_addr uintptr
)

//go:linkname syscall_syscall syscall.syscall
func syscall_syscall(fn, a1, a2, a3 uintptr) (r1, r2 uintptr, err syscall.Errno)

//go:linkname syscall_syscall6 syscall.syscall6
func syscall_syscall6(fn, a1, a2, a3, a4, a5, a6 uintptr) (r1, r2 uintptr, err syscall.Errno)

//go:linkname syscall_syscallPtr syscall.syscallPtr
func syscall_syscallPtr(fn, a1, a2, a3 uintptr) (r1, r2 uintptr, err syscall.Errno)

func (darwin) ShmOpen(name string, flags int, mode uint32) (fd int, err error) {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return -1, err
	}
	// shm_open is variadic, which on arm64 means that the mode is passed on the
	// stack. The gate for three arguments puts the third there as well, for the
	// sake of open and fcntl, which are like it: runtime/sys_darwin_arm64.s.
	r, _, errno := syscall_syscall(libc_shm_open_trampoline_addr, uintptr(unsafe.Pointer(p)), uintptr(flags), uintptr(mode))
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

func (darwin) ShmUnlink(name string) error {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	if _, _, errno := syscall_syscall(libc_shm_unlink_trampoline_addr, uintptr(unsafe.Pointer(p)), 0, 0); errno != 0 {
		return errno
	}
	return nil
}

func (darwin) Truncate(fd int, size int64) error { return unix.Ftruncate(fd, size) }

func (darwin) Stat(fd int) (posixshm.Stat, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return posixshm.Stat{Mode: uint32(st.Mode) & 0o7777, UID: st.Uid, Size: st.Size}, err
}

func (darwin) Map(fd, length int, write bool) ([]byte, error) {
	prot := unix.PROT_READ
	if write {
		prot |= unix.PROT_WRITE
	}
	return unix.Mmap(fd, 0, length, prot, unix.MAP_SHARED)
}

func (darwin) Protect(mem []byte) error { return unix.Mprotect(mem, unix.PROT_READ|unix.PROT_WRITE) }

func (darwin) Unmap(mem []byte) { unix.Munmap(mem) }

func (darwin) Close(fd int) { unix.Close(fd) }

// StartTime returns when the process began, in microseconds. It never changes:
// neither exec nor setting the clock touches it.
func (darwin) StartTime(pid int) (uint64, error) {
	const zombie = 5 // SZOMB of bsd/sys/proc.h: ended, and not waited for by its parent
	if err := unix.Kill(pid, 0); err == unix.ESRCH {
		return 0, err
	}
	info, err := unix.SysctlKinfoProc("kern.proc.pid", pid)
	if err != nil {
		return 0, err
	}
	if info.Proc.P_stat == zombie {
		return 0, unix.ESRCH
	}
	start := info.Proc.P_starttime
	return uint64(start.Sec)*1e6 + uint64(start.Usec), nil
}

// addressCalls are the functions of os/os_sync_wait_on_address.h. They are looked up
// when they are needed, because macOS has them since 14.4, and a program that imports
// them does not start on an older one.
type addressCalls struct{ wait, wakeAny, wakeAll uintptr }

var findAddressCalls = sync.OnceValue(func() (found addressCalls) {
	for name, fn := range map[string]*uintptr{
		"os_sync_wait_on_address_with_timeout": &found.wait,
		"os_sync_wake_by_address_any":          &found.wakeAny,
		"os_sync_wake_by_address_all":          &found.wakeAll,
	} {
		const everywhere = ^uintptr(1) // RTLD_DEFAULT of dlfcn.h, -2
		p, err := unix.BytePtrFromString(name)
		if err == nil {
			*fn, _, _ = syscall_syscallPtr(libc_dlsym_trampoline_addr, everywhere, uintptr(unsafe.Pointer(p)), 0)
		}
		if *fn == 0 {
			return addressCalls{}
		}
	}
	return found
})

const (
	addressShared = 1  // OS_SYNC_WAIT_ON_ADDRESS_SHARED: the kernel goes by the memory, not by its address
	addressClock  = 32 // OS_CLOCK_MACH_ABSOLUTE_TIME of os/clock.h, the only one
)

// Sleep implements [posixshm.Kernel]. Errors are EFAULT and ENOMEM for want of memory,
// and EDOM or EINVAL if another program sleeps on the word in another way.
func (darwin) Sleep(word *atomic.Uint32, value uint32, most time.Duration) error {
	calls := findAddressCalls()
	if calls.wait == 0 {
		return syscall.ENOSYS
	}
	most = max(most, 1) // 0 is EINVAL
	_, _, err := syscall_syscall6(calls.wait, uintptr(unsafe.Pointer(word)), uintptr(value), unsafe.Sizeof(value),
		addressShared, addressClock, uintptr(most))
	if err != 0 && err != syscall.ETIMEDOUT && err != syscall.EINTR {
		return err
	}
	return nil
}

func (darwin) Wake(word *atomic.Uint32, all bool) {
	calls := findAddressCalls()
	wake := calls.wakeAny
	if all {
		wake = calls.wakeAll
	}
	if wake != 0 {
		syscall_syscall(wake, uintptr(unsafe.Pointer(word)), unsafe.Sizeof(uint32(0)), addressShared)
	}
}

func (darwin) ObjectSize(fd uintptr) (int64, error) {
	// A file is found out without asking its file system, which can be in anybody's
	// hands: lseek of bsd/vfs/vfs_syscalls.c.
	if _, err := unix.Seek(int(fd), 0, io.SeekCurrent); err != unix.ESPIPE {
		return 0, errNoObject
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(fd), &st); err != nil {
		return 0, err
	}
	// Sockets, pipes and kernel queues have a type; an object has no more than
	// permissions, an owner and a size: pshm_stat of bsd/kern/posix_shm.c.
	if st.Mode&unix.S_IFMT != 0 || st.Ino != 0 || st.Dev != 0 || st.Nlink != 0 {
		return 0, errNoObject
	}
	return st.Size, nil
}
