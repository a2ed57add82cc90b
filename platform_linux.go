//go:build !standin

package shm

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm/internal/memfd"
	"github.com/shmkit/shm/internal/memsource"
	"github.com/shmkit/shm/internal/raw"
)

// Linux keeps blocks as files on the tmpfs at /dev/shm, where shm_open(3) of
// glibc and musl, and so CPython's SharedMemory, keep theirs.
const (
	shmDir  = "/dev/shm/"
	maxName = unix.NAME_MAX

	bornNamed = false // an object has no name before publish
	namesStay = false // an object can be without its name, and the other way round
	hasFile   = true  // bytes can be written to an object past its mapping
)

// headerLength is that of the headers of new blocks.
var headerLength = os.Getpagesize()

// object is an open handle on a backing object: an open file description of
// its own, which is what Linux counts locks by.
type object struct {
	fd       int
	writable bool
	dev, ino uint64 // set by the first stat, before another goroutine can have the object
	sealed   bool   // nobody can change its size; known of what is anonymous or came by a file
}

// createObject makes an object of size bytes, all zero, that is gone when its
// handle closes before publish has named it. Unless it is to be sparse, the
// memory is reserved, so that no later access can run out of it. (Where objects
// are bornNamed it has its name at once, or fails with fs.ErrExist.)
func createObject(_ string, size int64, c config) (*object, error) {
	perm := c.perm
	fd, err := retry(func() (int, error) {
		return unix.Open(shmDir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, uint32(perm))
	})
	switch {
	case errors.Is(err, unix.ENOSPC):
		return nil, spaceErr(fmt.Errorf("%s has room for no more files: %w", shmDir, err))
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR):
		// No /dev/shm, or (EISDIR) a kernel without O_TMPFILE: open(2).
		return nil, fmt.Errorf("%w: no tmpfs at %s: %w", errors.ErrUnsupported, shmDir, err)
	case err != nil:
		return nil, spaceErr(err)
	}
	o := &object{fd: fd, writable: true}
	if err := o.prepare(size, perm, c.has(optSparse)); err != nil {
		o.close()
		return nil, spaceErr(err)
	}
	return o, nil
}

func (o *object) prepare(size int64, perm fs.FileMode, sparse bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(o.fd, &st); err != nil {
		return err
	}
	o.dev, o.ino = uint64(st.Dev), st.Ino
	if fs.FileMode(st.Mode).Perm() != perm { // the umask took bits away
		if err := unix.Fchmod(o.fd, uint32(perm)); err != nil {
			return err
		}
	}
	if sparse {
		return o.truncate(size)
	}
	return o.reserve(size)
}

func (o *object) truncate(size int64) error {
	_, err := retry(func() (int, error) { return 0, unix.Ftruncate(o.fd, size) })
	return err
}

// reserve allocates the memory of size bytes, which sets the size. What cannot
// fit is not begun: it would fill the file system before it fails.
//
// Another process can allocate what was free. If both need more than half of it,
// both can fail, so they release what they have and try again at different times.
// A process that then finds too little free gives up and leaves it to the others.
func (o *object) reserve(size int64) error {
	const tries, longest = 8, time.Second
	alone := 0 // tries in a row that failed though no other process took any
	for try := range tries {
		free, total, err := o.space()
		if err != nil {
			return err
		}
		if uint64(size) > free {
			err := fmt.Errorf("%d bytes wanted, %d free in %s: %w", size, free, shmDir, unix.ENOSPC)
			if uint64(size) > total {
				return never{err}
			}
			return err
		}
		start := time.Now()
		if err := o.allocate(size); !errors.Is(err, unix.ENOSPC) {
			return err
		}
		// They overlap less if the pauses are long compared with the work.
		pause := min(time.Since(start)<<try, longest)
		var own unix.Stat_t
		if err := unix.Fstat(o.fd, &own); err != nil {
			return err
		}
		left, _, err := o.space()
		if err != nil {
			return err
		}
		if err := o.truncate(0); err != nil {
			return err
		}
		if left+uint64(own.Blocks)*512 < free {
			alone = 0
			time.Sleep(rand.N(pause))
		} else if alone++; alone == 2 {
			break // it is another limit
		}
	}
	return fmt.Errorf("%d bytes wanted: %w", size, unix.ENOSPC)
}

// space returns how many bytes the file system of the object has, free and in all.
func (o *object) space() (free, total uint64, err error) {
	var sfs unix.Statfs_t
	if err := o.statfs(&sfs); err != nil {
		return 0, 0, err
	}
	if sfs.Blocks > 0 {
		return sfs.Bavail * uint64(sfs.Bsize), sfs.Blocks * uint64(sfs.Bsize), nil
	}
	var sys unix.Sysinfo_t // mounted without a limit: tmpfs(5)
	if err := unix.Sysinfo(&sys); err != nil {
		return 0, 0, err
	}
	total = (uint64(sys.Totalram) + uint64(sys.Totalswap)) * uint64(sys.Unit)
	return total, total, nil
}

// allocate allocates the memory of size bytes. A signal makes fallocate(2) on
// tmpfs release all that the call had allocated, so it goes by pieces, and by
// smaller ones where signals come faster than a piece is done.
func (o *object) allocate(size int64) error {
	const most, least = 2 << 20, 64 << 10
	piece := int64(most)
	for off := int64(0); off < size; {
		n := min(piece, size-off)
		switch err := unix.Fallocate(o.fd, 0, off, n); {
		case err == nil:
			off += n
		case errors.Is(err, unix.EINTR):
			piece = max(piece/2, least)
		default:
			return err
		}
	}
	return nil
}

// openObject opens the object called name. Only regular files are blocks, so
// whatever else has the name is ErrNotSegment, and never followed or waited for.
func openObject(name string, write bool) (*object, error) {
	flags := unix.O_RDONLY
	if write {
		flags = unix.O_RDWR
	}
	fd, err := retry(func() (int, error) {
		return unix.Open(shmDir+name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	})
	switch {
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ETXTBSY):
		// A symbolic link, a directory, a socket or a device without driver, a
		// program that is running: open(2).
		return nil, fmt.Errorf("%w: %w", ErrNotSegment, err)
	case errors.Is(err, unix.EROFS): // mounted read-only, as in a container
		return nil, fmt.Errorf("%w: %w", fs.ErrPermission, err)
	case errors.Is(err, unix.EAGAIN): // somebody has a lease on it: F_SETLEASE of fcntl(2)
		return nil, fmt.Errorf("%w: %w", ErrBusy, err)
	case err != nil:
		return nil, err
	}
	return &object{fd: fd, writable: write}, nil
}

// stat returns ErrNotSegment for what is not a regular file.
func (o *object) stat() (objectInfo, error) {
	var st unix.Stat_t
	if err := unix.Fstat(o.fd, &st); err != nil {
		return objectInfo{}, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return objectInfo{}, errNotRegular
	}
	if o.ino == 0 {
		o.dev, o.ino = uint64(st.Dev), st.Ino
	}
	return objectInfo{st.Size, fs.FileMode(st.Mode).Perm(), time.Unix(st.Mtim.Unix()), int(st.Uid)}, nil
}

var errNotRegular = fmt.Errorf("%w: not a regular file", ErrNotSegment)

// tmpfsDevice is the number of a device known to be a tmpfs, 0 for none yet.
var tmpfsDevice atomic.Uint64

// newborn returns an error that is again for an object without magic that may be
// a block being born, and nil for one that is not. It is asked only where objects
// are bornNamed.
func (o *object) newborn() error { return nil }

// lockable makes the object, which is known to be a block with a header, or
// about to become one, ready for its lanes. It returns errors.ErrUnsupported
// where the object is not on a tmpfs: on network and user-space file systems two
// kernels can both grant one lock.
func (o *object) lockable() error {
	if tmpfsDevice.Load() == o.dev {
		return nil
	}
	var sfs unix.Statfs_t
	if err := o.statfs(&sfs); err != nil {
		return err
	}
	if sfs.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("%w: %s is not a tmpfs", errors.ErrUnsupported, shmDir)
	}
	tmpfsDevice.Store(o.dev)
	return nil
}

func (o *object) statfs(sfs *unix.Statfs_t) error {
	_, err := retry(func() (int, error) { return 0, unix.Fstatfs(o.fd, sfs) })
	return err
}

// publish gives the object its name, or fails with fs.ErrExist. linkat(2): an
// empty path is allowed to everybody since Linux 6.10, through /proc always.
func (o *object) publish(name string) error {
	err := unix.Linkat(o.fd, "", unix.AT_FDCWD, shmDir+name, unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
		// ENOENT is the kernel's answer, the others are those of seccomp filters.
		self := fmt.Sprintf("/proc/self/fd/%d", o.fd)
		err = unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, shmDir+name, unix.AT_SYMLINK_FOLLOW)
		if errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%w: no /proc: %w", errors.ErrUnsupported, err)
		}
	}
	return spaceErr(err)
}

// named reports whether name leads to this object. The number of an open inode
// is not reused, so device and inode number decide.
func (o *object) named(name string) (bool, error) {
	var there unix.Stat_t
	err := unix.Fstatat(unix.AT_FDCWD, shmDir+name, &there, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil && o.dev == uint64(there.Dev) && o.ino == there.Ino, err
}

// unlink takes the name away from the object, which it leads to.
func (o *object) unlink(name string) error {
	return unix.Unlink(shmDir + name)
}

// unlinkUnopened takes the name away from a block that this process may not
// open, for which the right to unlink suffices. Nothing but a block is unlinked.
func unlinkUnopened(name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(unix.AT_FDCWD, shmDir+name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errNotRegular
	}
	return unix.Unlink(shmDir + name)
}

// listObjects calls f with the names of the objects there are, in no order,
// until it returns false.
func listObjects(f func(name string) bool) error {
	dir, err := os.Open(shmDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	for {
		entries, err := dir.ReadDir(256)
		for _, e := range entries {
			if e.Type().IsRegular() && !f(e.Name()) {
				return nil
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// mmap maps the first length bytes of the object, of which the first writable
// ones, a multiple of the page size or all, can be written to. With populate
// they are mapped at once, as far as memory goes (MAP_POPULATE never fails).
func (o *object) mmap(length, writable int, populate bool) ([]byte, error) {
	prot, flags := unix.PROT_READ, unix.MAP_SHARED
	if writable == length {
		prot |= unix.PROT_WRITE
	}
	if populate {
		flags |= unix.MAP_POPULATE
	}
	p, err := unix.MmapPtr(o.fd, 0, nil, uintptr(length), prot, flags)
	if err != nil {
		return nil, spaceErr(err)
	}
	mem := raw.Slice(p, length)
	if 0 < writable && writable < length {
		if err := unix.Mprotect(mem[:writable], unix.PROT_READ|unix.PROT_WRITE); err != nil {
			munmap(mem)
			return nil, spaceErr(err)
		}
	}
	return mem, nil
}

// munmap is no unix.Munmap, which has a lock and a table for all mappings.
func munmap(mem []byte) { unix.MunmapPtr(raw.Pointer(mem), uintptr(len(mem))) }

// readAt and writeAt move bytes past the mapping, by pread(2) and pwrite(2):
// where memory lacks they return an error and raise no signal.
func (o *object) readAt(p []byte, off int64) (int, error) {
	return retry(func() (int, error) { return unix.Pread(o.fd, p, off) })
}

func (o *object) writeAt(p []byte, off int64) (int, error) {
	n, err := retry(func() (int, error) { return unix.Pwrite(o.fd, p, off) })
	return n, spaceErr(err)
}

// receive copies at most n bytes of the regular file fd to offset off. It
// returns 0 bytes at the end of the file and where that cannot be done, and
// errNotRegular for another descriptor. It goes by the position of o.fd, which
// is nobody else's unless the object is sealed: see fromFD.
func (o *object) receive(fd uintptr, off int64, n int) (int, error) {
	switch {
	case !regular(fd):
		return 0, errNotRegular
	case o.sealed:
		return 0, nil
	}
	if _, err := unix.Seek(o.fd, off, io.SeekStart); err != nil {
		return 0, nil
	}
	n, err := retry(func() (int, error) { return unix.Sendfile(o.fd, int(fd), nil, n) })
	if err != nil {
		n = 0
	}
	return n, nil
}

// punch gives back the memory of n bytes, which read as zero from then on.
func (o *object) punch(off, n int64) error {
	_, err := retry(func() (int, error) {
		return 0, unix.Fallocate(o.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
	return err
}

// Lanes are single bytes of the object, beyond all data, that a lock stands on.
const laneStart = 1 << 62

var lockTypes = [...]int16{unheld: unix.F_UNLCK, shared: unix.F_RDLCK, alone: unix.F_WRLCK}

// lock takes the lane, without waiting, or fails with ErrBusy; a failed change
// from shared to alone keeps it shared. These are open file description locks,
// fcntl(2): they belong to the handle, not to the process, and the kernel drops
// them together when the handle goes, however the process ends.
func (o *object) lock(l lane, h hold) error {
	err := unix.FcntlFlock(uintptr(o.fd), unix.F_OFD_SETLK, laneLock(l, h))
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return ErrBusy
	}
	return err
}

// unlock drops all lanes. It must come before close: a child process that
// another goroutine is just starting has a copy of the descriptor until it
// execs, and would go on holding them.
func (o *object) unlock() {
	everything := &unix.Flock_t{Type: unix.F_UNLCK, Whence: io.SeekStart}
	unix.FcntlFlock(uintptr(o.fd), unix.F_OFD_SETLK, everything)
}

// holder returns how other handles hold the lane, without disturbing them.
func (o *object) holder(l lane) (hold, error) {
	lk := laneLock(l, alone)
	err := unix.FcntlFlock(uintptr(o.fd), unix.F_OFD_GETLK, lk)
	return hold(slices.Index(lockTypes[:], lk.Type)), err
}

func laneLock(l lane, h hold) *unix.Flock_t {
	return &unix.Flock_t{Type: lockTypes[h], Whence: io.SeekStart, Start: laneStart + int64(l), Len: 1}
}

func (o *object) close() {
	unix.Close(o.fd)
}

// createAnonymous makes an object of size bytes that can have no name, and that
// nobody can make shorter or longer; see memfd_create(2). Unless sparse, the
// memory is reserved, so that no later access can fail.
func createAnonymous(size int64, sparse bool) (*object, error) {
	return anonymousObject(size, sparse, func() (*object, error) {
		fd, err := memfd.Create(size)
		if errors.Is(err, unix.ENOSYS) {
			err = fmt.Errorf("%w: no memfd_create: %w", errors.ErrUnsupported, err)
		}
		return &object{fd: fd, writable: true, sealed: true}, spaceErr(err)
	})
}

// adoptAnonymous is createAnonymous in memory that another process has created.
// It is this process that reserves it, and is charged for it.
func adoptAnonymous(s *memsource.Source, size int64, sparse bool) (*object, error) {
	return anonymousObject(size, sparse, func() (*object, error) {
		f, err := s.Create(size)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		o, err := handedObject(f)
		if err != nil {
			return nil, err
		}
		if info, err := o.stat(); err != nil || info.size != size || !o.sealed || !o.writable {
			o.close()
			return nil, fmt.Errorf("%w: memory of %d bytes, sealed %v, writable %v: want %d bytes", errNotSealed, info.size, o.sealed, o.writable, size)
		}
		return o, nil
	})
}

func anonymousObject(size int64, sparse bool, create func() (*object, error)) (*object, error) {
	if !sparse {
		if free, known := availableMemory(size); known && size > free { // before a descriptor is used up
			return nil, spaceErr(fmt.Errorf("%d bytes wanted, %d of memory available: %w", size, free, unix.ENOSPC))
		}
	}
	o, err := create()
	if err != nil {
		return nil, err
	}
	if !sparse {
		err = o.allocate(size)
	}
	if err == nil {
		_, err = o.stat()
	}
	if err != nil {
		o.close()
		return nil, spaceErr(err)
	}
	return o, nil
}

func (o *object) isSealed() bool { return o.sealed }

// availableMemory returns how many bytes of memory can be allocated. Anonymous
// memory has no file system that is full in time: to reserve more than there is
// calls the OOM killer. It is unknown where size is too small to matter and where
// the system does not say.
func availableMemory(size int64) (free int64, known bool) {
	const little = 16 << 20
	if size < little {
		return 0, false
	}
	f, err := os.Open("/proc/meminfo") // proc(5)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	return parseMeminfo(f)
}

// parseMeminfo returns what MemAvailable and SwapFree come to. What is not a
// number says nothing.
func parseMeminfo(r io.Reader) (free int64, known bool) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		var key string
		var kib int64
		if _, err := fmt.Sscan(lines.Text(), &key, &kib); err == nil && (key == "MemAvailable:" || key == "SwapFree:") {
			free, known = free+kib<<10, true
		}
	}
	return free, known
}

// fromFD returns a handle of its own on the object that fd is open on, for
// reading and writing if fd is. fd can be anything: what is not in shared
// memory is ErrNotSegment, and nothing is done to it that could wait or have
// an effect.
func fromFD(fd uintptr) (*object, error) {
	// The kernel alone answers this, and only for memory: fcntl(2).
	seals, err := unix.FcntlInt(fd, unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotSegment, err)
	}
	writable, err := writableFD(fd)
	if err != nil {
		return nil, err
	}
	o := &object{fd: int(fd), writable: writable, sealed: seals&memfd.FixedSize == memfd.FixedSize}
	if _, err := o.stat(); err != nil {
		return nil, err
	}
	if o.sealed {
		// It carries no locks, so that to share the description does no harm, and
		// asks for no /proc and no permissions.
		o.fd, err = duplicate(fd)
	} else {
		o.fd, err = o.reopen(!o.writable)
	}
	return o, err
}

// reopen returns a descriptor of the object that shares no description, and so
// no locks, with o. It needs the permission to open the object.
func (o *object) reopen(readOnly bool) (fd int, err error) {
	flags := unix.O_RDWR
	if readOnly {
		flags = unix.O_RDONLY
	}
	fd, err = retry(func() (int, error) {
		return unix.Open(fmt.Sprintf("/proc/self/fd/%d", o.fd), flags|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return 0, fmt.Errorf("%w: no /proc: %w", errors.ErrUnsupported, err)
	case errors.Is(err, unix.EAGAIN): // a lease, as in openObject
		return 0, fmt.Errorf("%w: %w", ErrBusy, err)
	}
	return fd, err
}

// file returns a file open on the object, which name leads to, or led to. It is
// opened by the name if that is possible, for then name finds it: a name from
// linkat is unknown to the description it was given through.
func (o *object) file(name string, readOnly bool) (*os.File, error) {
	readOnly = readOnly || !o.writable
	if name != "" && !o.sealed {
		if own, err := openObject(name, !readOnly); err == nil {
			if own.same(o) {
				return os.NewFile(uintptr(own.fd), name), nil
			}
			own.close()
		}
	}
	var fd int
	var err error
	if o.sealed && readOnly == !o.writable {
		fd, err = duplicate(uintptr(o.fd))
	} else {
		fd, err = o.reopen(readOnly)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (o *object) same(p *object) bool {
	var st, other unix.Stat_t
	return unix.Fstat(o.fd, &st) == nil && unix.Fstat(p.fd, &other) == nil && st.Dev == other.Dev && st.Ino == other.Ino
}

// findName returns the name that leads to the object, "" if there is none. Where
// the path says that the directory is does not matter: it can be a symbolic link.
func (o *object) findName() string {
	path, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", o.fd))
	name, err := checkName(filepath.Base(path))
	if err != nil {
		return ""
	}
	if named, _ := o.named(name); !named {
		return ""
	}
	return name
}
