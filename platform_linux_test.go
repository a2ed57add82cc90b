package shm_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
)

// TestShmSymlink has a symbolic link at /dev/shm, as some distributions do. The
// last attachment, which came by a file, unlinks.
func TestShmSymlink(t *testing.T) {
	onTmpfs(t)
	if !privately(t, "tmpfs", "") {
		return
	}
	dir := t.TempDir()
	mount(t, "tmpfs", dir, "")
	mount(t, "tmpfs", "/dev", "")
	if err := os.Symlink(dir, "/dev/shm"); err != nil {
		t.Fatal(err)
	}
	seg := block(t, 100)
	name := seg.Name()
	peer := take(t, file(t, seg))
	if peer.Name() != name {
		t.Errorf("called %q, not %q", peer.Name(), name)
	}
	seg.Close()
	attach(t, name).Close()
	peer.Close()
	mustBeFree(t, name)
}

// filterEmptyPath has the kernel answer errno to every linkat(2) of this process
// with AT_EMPTY_PATH.
func filterEmptyPath(t *testing.T, errno syscall.Errno) {
	t.Helper()
	const (
		atNumber = 0        // in struct seccomp_data
		atFlags  = 16 + 4*8 // args[4]
		load     = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal    = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		bits     = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		ret      = unix.BPF_RET | unix.BPF_K
	)
	low := uint32(atFlags)
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		low += 4
	}
	program := []unix.SockFilter{
		{Code: load, K: atNumber},
		{Code: equal, K: unix.SYS_LINKAT, Jf: 3},
		{Code: load, K: low},
		{Code: bits, K: unix.AT_EMPTY_PATH, Jf: 1},
		{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	runtime.LockOSThread() // which the others get their privileges from
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&filter))); err != 0 {
		t.Skip("no seccomp filters here: ", err)
	}
}

// TestLinkFiltered has a filter refuse the way to give a block its name that
// needs no /proc.
func TestLinkFiltered(t *testing.T) {
	onTmpfs(t)
	for _, errno := range []syscall.Errno{unix.EPERM, unix.EINVAL} {
		t.Run(fmt.Sprint(int(errno)), func(t *testing.T) {
			if !limited(t) {
				return
			}
			filterEmptyPath(t, errno)
			fd, err := unix.Open("/dev/shm", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if err := unix.Linkat(fd, "", unix.AT_FDCWD, "/dev/shm/name", unix.AT_EMPTY_PATH); !errors.Is(err, errno) {
				t.Fatalf("no filter: %v", err)
			}
			seg, err := shm.Create("", 100)
			if err != nil {
				t.Fatal(err)
			}
			attach(t, seg.Name()).Close()
			seg.Close()
			mustBeFree(t, seg.Name())
		})
	}
}
