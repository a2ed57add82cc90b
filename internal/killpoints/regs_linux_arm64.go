package killpoints

import "golang.org/x/sys/unix"

// call is a system call that a thread is about to make.
type call struct {
	number uint64
	args   [6]uint64
}

func currentCall(tid int) (call, error) {
	var r unix.PtraceRegs
	err := unix.PtraceGetRegs(tid, &r)
	return call{r.Regs[8], [6]uint64(r.Regs[:6])}, err
}

// nextCall returns the system call that the next instruction makes, if it does.
func nextCall(tid int) (c call, is bool, err error) {
	var r unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &r); err != nil {
		return call{}, false, err
	}
	c = call{r.Regs[8], [6]uint64(r.Regs[:6])}
	if c.number >= 1<<10 {
		return c, false, nil
	}
	var text [4]byte
	_, err = unix.PtracePeekText(tid, uintptr(r.Pc), text[:])
	return c, text == [4]byte{0x01, 0x00, 0x00, 0xd4}, err // SVC #0
}

// callNames has the calls that the library is known to make.
var callNames = map[uint64]string{
	unix.SYS_OPENAT: "openat", unix.SYS_CLOSE: "close",
	unix.SYS_FSTAT: "fstat", unix.SYS_FSTATAT: "fstatat", unix.SYS_FSTATFS: "fstatfs",
	unix.SYS_FCHMOD: "fchmod", unix.SYS_FTRUNCATE: "ftruncate", unix.SYS_FALLOCATE: "fallocate",
	unix.SYS_PREAD64: "pread", unix.SYS_PWRITE64: "pwrite", unix.SYS_FCNTL: "fcntl",
	unix.SYS_MMAP: "mmap", unix.SYS_MPROTECT: "mprotect", unix.SYS_MUNMAP: "munmap",
	unix.SYS_LINKAT: "linkat", unix.SYS_UNLINKAT: "unlinkat",
	unix.SYS_GETDENTS64: "getdents", unix.SYS_READ: "read", unix.SYS_WRITE: "write",
	unix.SYS_EPOLL_CREATE1: "epoll_create", unix.SYS_EPOLL_CTL: "epoll_ctl", unix.SYS_EVENTFD2: "eventfd",
}
