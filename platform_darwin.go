package shm

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of posixshm.go. What is said of them there and here is what
// xnu does (bsd/kern/posix_shm.c); platform_darwin_test.go has a test for each.
const (
	sysMaxName = 31 // PSHMNAMLEN of bsd/sys/posix_shm.h

	pidBits = 17 // process ids end at 99999: PID_MAX of bsd/sys/proc_internal.h
)

// shm_open and shm_unlink are called in libSystem, as golang.org/x/sys/unix
// calls what it has; it has not got these. The trampolines are in
// platform_darwin.s. Without cgo this is the only way that Apple supports.

//go:cgo_import_dynamic libc_shm_open shm_open "/usr/lib/libSystem.B.dylib"
//go:cgo_import_dynamic libc_shm_unlink shm_unlink "/usr/lib/libSystem.B.dylib"

var (
	libc_shm_open_trampoline_addr   uintptr
	libc_shm_unlink_trampoline_addr uintptr
)

//go:linkname syscall_syscall syscall.syscall
func syscall_syscall(fn, a1, a2, a3 uintptr) (r1, r2 uintptr, err syscall.Errno)

// sysShmOpen is shm_open(2). The mode is not subject to the umask, and the
// sticky bit of it is kept; the descriptor is closed on exec.
func sysShmOpen(name string, flags int, mode uint32) (fd int, err error) {
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

// sysShmUnlink is shm_unlink(2).
func sysShmUnlink(name string) error {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	if _, _, errno := syscall_syscall(libc_shm_unlink_trampoline_addr, uintptr(unsafe.Pointer(p)), 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// sysFtruncate is ftruncate(2): EINVAL if the object has a size.
func sysFtruncate(fd int, size int64) error { return unix.Ftruncate(fd, size) }

func sysFstat(fd int) (objectStat, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return objectStat{mode: uint32(st.Mode) & 0o7777, uid: st.Uid, size: st.Size}, err
}

func sysMmap(fd, length int, write bool) ([]byte, error) {
	prot := unix.PROT_READ
	if write {
		prot |= unix.PROT_WRITE
	}
	return unix.Mmap(fd, 0, length, prot, unix.MAP_SHARED)
}

// sysProtect makes mem, of a mapping that is not, writable.
func sysProtect(mem []byte) error { return unix.Mprotect(mem, unix.PROT_READ|unix.PROT_WRITE) }

func sysMunmap(mem []byte) { unix.Munmap(mem) }

func sysClose(fd int) { unix.Close(fd) }

// sysStartTime returns when the process began, in microseconds. It never
// changes: neither exec nor setting the clock touches it.
func sysStartTime(pid int) (uint64, error) {
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
