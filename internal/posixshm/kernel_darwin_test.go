package posixshm_test

import (
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm/internal/posixshm"
)

// More facts of TestSystem, such that only darwin has: what its objects refuse,
// which is why there is a lock page.

func TestSystemIdentity(t *testing.T) {
	_, fd := systemNew(t, posixshm.ObjectPage)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	if st.Ino != 0 || st.Dev != 0 || st.Nlink != 0 || st.Mode&unix.S_IFMT != 0 {
		t.Errorf("inode %d, device %d, %d links, mode %#o: there is an identity now", st.Ino, st.Dev, st.Nlink, st.Mode)
	}
}

func TestSystemRefusals(t *testing.T) {
	_, fd := systemNew(t, posixshm.ObjectPage)
	lock := unix.Flock_t{Type: unix.F_WRLCK, Len: 1}
	space := unix.Fstore_t{Flags: unix.F_ALLOCATEALL, Posmode: unix.F_PEOFPOSMODE, Length: posixshm.ObjectPage}
	_, private := unix.Mmap(fd, 0, posixshm.ObjectPage, unix.PROT_READ, unix.MAP_PRIVATE)
	_, read := unix.Read(fd, make([]byte, 1))
	_, write := unix.Write(fd, make([]byte, 1))
	for what, tt := range map[string]struct{ err, want error }{
		"flock":         {unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB), unix.ENOTSUP},
		"F_SETLK":       {unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &lock), unix.EBADF},
		"F_PREALLOCATE": {unix.FcntlFstore(uintptr(fd), unix.F_PREALLOCATE, &space), unix.EBADF},
		"fsync":         {unix.Fsync(fd), unix.ENOTSUP},
		"fchmod":        {unix.Fchmod(fd, 0o600), unix.EINVAL},
		"MAP_PRIVATE":   {private, unix.EINVAL},
		"read":          {read, unix.ENXIO},
		"write":         {write, unix.ENXIO},
	} {
		if tt.err != tt.want {
			t.Errorf("%s: %v, want %v", what, tt.err, tt.want)
		}
	}
}

// TestSystemProcessIDs: there are none that do not fit a token.
func TestSystemProcessIDs(t *testing.T) {
	for _, pid := range []int{99999 + 1, 1<<kernel.PIDBits() - 1} {
		if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
			t.Errorf("process id %d: %v", pid, err)
		}
	}
}
