package manager_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm/internal/proctest"
)

// silentFS is a file system with one file, which answers nothing once that is open:
// not poll, nor read, nor flush, which close waits for beyond SIGKILL. It must be a
// process that does not open the file itself, or it could never end. What waits
// for it goes on when it has ended.
var silentFS = proctest.Register("silentfs", func(p *proctest.Parent) error {
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", dev)
	if err := unix.Mount("silent", p.Args[0], "fuse", unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		return err
	}
	go answer(dev)
	p.Say("mounted")
	p.Hear()
	return nil
})

// startSilentFS starts the file system, which ends the test when it does not start,
// and returns the path of the file.
func startSilentFS(t *testing.T) (fs *proctest.Child, path string) {
	t.Helper()
	switch _, err := os.Stat("/dev/fuse"); {
	case os.Getuid() != 0:
		t.Skip("only root can mount a file system: run as root")
	case err != nil:
		t.Skip("no /dev/fuse: run on a kernel with FUSE")
	}
	dir := t.TempDir()
	fs = startAs(t, 0, unix.CLONE_NEWNS, silentFS, dir)
	fs.Expect("mounted")
	late := time.AfterFunc(time.Minute, func() { fs.Process.Kill() }) // or a test that fails would wait for it
	t.Cleanup(func() { late.Stop() })
	return fs, fmt.Sprintf("/proc/%d/root%s/file", fs.Process.Pid, dir)
}

// answer answers what it takes to open a file, in the words of linux/fuse.h.
func answer(dev int) {
	ne := binary.NativeEndian
	attr := func(b []byte, inode uint64, mode uint32) {
		ne.PutUint64(b, inode)
		ne.PutUint64(b[8:], 1<<20) // size
		ne.PutUint32(b[60:], mode)
		ne.PutUint32(b[64:], 1) // links
	}
	const (
		opLookup, opGetattr, opOpen, opRelease, opInit = 1, 3, 14, 18, 26

		directory, file = unix.S_IFDIR | 0o777, unix.S_IFREG | 0o666
	)
	for b := make([]byte, 1<<20); ; {
		n, err := unix.Read(dev, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n < 40 {
			return
		}
		op, id, node := ne.Uint32(b[4:]), ne.Uint64(b[8:]), ne.Uint64(b[16:])
		var out []byte
		switch op {
		case opInit:
			out = make([]byte, 64)
			ne.PutUint32(out, 7)
			ne.PutUint32(out[4:], 31)
			ne.PutUint32(out[20:], 4096) // most to write
		case opLookup:
			out = make([]byte, 128)
			ne.PutUint64(out, 2)
			ne.PutUint64(out[16:], 3600) // for so long it stays valid
			ne.PutUint64(out[24:], 3600)
			attr(out[40:], 2, file)
		case opGetattr:
			out = make([]byte, 104)
			ne.PutUint64(out, 3600)
			if node == 1 {
				attr(out[16:], 1, directory)
			} else {
				attr(out[16:], node, file)
			}
		case opOpen, opRelease:
			out = make([]byte, 16)
		default:
			continue // for ever
		}
		reply := make([]byte, 16, 16+len(out))
		ne.PutUint32(reply, uint32(16+len(out)))
		ne.PutUint64(reply[8:], id)
		unix.Write(dev, append(reply, out...))
	}
}
