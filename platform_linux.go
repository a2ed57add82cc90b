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
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm/internal/blockname"
	"github.com/shmkit/shm/internal/futex"
	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/raw"
	"github.com/shmkit/shm/internal/sysunix"
)

// Linux keeps blocks as files on the tmpfs at /dev/shm, where shm_open(3) of
// glibc and musl, and so CPython's SharedMemory, keep theirs.
const shmDir = "/dev/shm/"

func init() { object.SetDefault(tmpfs{}) }

// tmpfs implements [object.System].
type tmpfs struct{}

func (tmpfs) Limits() object.Limits {
	return object.Limits{
		MaxName:      unix.NAME_MAX,
		HeaderLength: os.Getpagesize(),
		Files:        true,
		Restricts:    true,
	}
}

// tmpfsObject implements [object.Object]. It has an open file description of its
// own, which is what Linux counts locks by.
type tmpfsObject struct {
	fd       int
	name     string
	writable bool
	dev, ino uint64 // set by the first stat, before another goroutine can have the object
	sealed   bool   // nobody can change its size; known of what is anonymous or came by a file
	locked   bool   // it may have a lock
	writer   bool   // its own byte is among those of the writers
	tag      atomic.Int64
}

// Create implements [object.System]. The object has no name before Publish, so it
// is gone when it is closed before.
func (tmpfs) Create(name string, size int64, opts object.Options) (object.Object, error) {
	fd, err := sysunix.Retry(func() (int, error) {
		return unix.Open(shmDir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, uint32(opts.Perm))
	})
	switch {
	case errors.Is(err, unix.ENOSPC):
		return nil, sysunix.SpaceError(fmt.Errorf("%s has room for no more files: %w", shmDir, err))
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR):
		// No /dev/shm, or (EISDIR) a kernel without O_TMPFILE: open(2).
		return nil, fmt.Errorf("%w: no tmpfs at %s: %w", errors.ErrUnsupported, shmDir, err)
	case err != nil:
		return nil, sysunix.SpaceError(err)
	}
	o := &tmpfsObject{fd: fd, name: name, writable: true}
	if err := o.prepare(size, opts.Perm, opts.Sparse); err != nil {
		o.Close()
		return nil, sysunix.SpaceError(err)
	}
	return o, nil
}

func (o *tmpfsObject) prepare(size int64, perm fs.FileMode, sparse bool) error {
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

func (o *tmpfsObject) truncate(size int64) error {
	_, err := sysunix.Retry(func() (int, error) { return 0, unix.Ftruncate(o.fd, size) })
	return err
}

// reserve allocates the memory of size bytes, which sets the size. What cannot
// fit is not begun: it would fill the file system before it fails.
//
// Another process can allocate what was free. If both need more than half of it,
// both can fail, so they release what they have and try again at different times.
// A process that then finds too little free gives up and leaves it to the others.
func (o *tmpfsObject) reserve(size int64) error {
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
				return object.TooLargeError{Err: err}
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
func (o *tmpfsObject) space() (free, total uint64, err error) {
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
func (o *tmpfsObject) allocate(size int64) error {
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

// Open implements [object.System]. Only regular files are objects; what else has
// the name is never followed or waited for.
func (tmpfs) Open(name string, write bool) (object.Object, error) {
	o, err := openObject(name, write)
	if err != nil {
		return nil, err
	}
	return o, nil
}

func openObject(name string, write bool) (*tmpfsObject, error) {
	flags := unix.O_RDONLY
	if write {
		flags = unix.O_RDWR
	}
	fd, err := sysunix.Retry(func() (int, error) {
		return unix.Open(shmDir+name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	})
	switch {
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ETXTBSY):
		// A symbolic link, a directory, a socket or a device without driver, a
		// program that is running: open(2).
		return nil, fmt.Errorf("%w: %w", object.ErrNotSegment, err)
	case errors.Is(err, unix.EROFS): // mounted read-only, as in a container
		return nil, fmt.Errorf("%w: %w", fs.ErrPermission, err)
	case errors.Is(err, unix.EAGAIN): // another process has a lease on it: F_SETLEASE of fcntl(2)
		return nil, fmt.Errorf("%w: %w", object.ErrBusy, err)
	case err != nil:
		return nil, err
	}
	return &tmpfsObject{fd: fd, name: name, writable: write}, nil
}

func (o *tmpfsObject) Name() string   { return o.name }
func (o *tmpfsObject) Writable() bool { return o.writable }
func (o *tmpfsObject) Sealed() bool   { return o.sealed }

// Stat implements [object.Object]: only a regular file is an object.
func (o *tmpfsObject) Stat() (object.Stat, error) {
	var st unix.Stat_t
	if err := unix.Fstat(o.fd, &st); err != nil {
		return object.Stat{}, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return object.Stat{}, errNotRegular
	}
	if o.ino == 0 {
		o.dev, o.ino = uint64(st.Dev), st.Ino
	}
	return object.Stat{
		Size:    st.Size,
		Mode:    fs.FileMode(st.Mode).Perm(),
		ModTime: time.Unix(st.Mtim.Unix()),
		Owner:   int(st.Uid),
	}, nil
}

var errNotRegular = fmt.Errorf("%w: not a regular file", object.ErrNotSegment)

// tmpfsDevice is the number of a device known to be a tmpfs, 0 for none yet.
var tmpfsDevice atomic.Uint64

// Lockable implements [object.Locks]: on network and user-space file systems two
// kernels can both grant one lock, so it asks for a tmpfs.
func (o *tmpfsObject) Lockable() error {
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

func (o *tmpfsObject) statfs(sfs *unix.Statfs_t) error {
	_, err := sysunix.Retry(func() (int, error) { return 0, unix.Fstatfs(o.fd, sfs) })
	return err
}

// Publish implements [object.Object]. linkat(2): an empty path is allowed to every
// process since Linux 6.10, a path through /proc always.
func (o *tmpfsObject) Publish() error {
	err := unix.Linkat(o.fd, "", unix.AT_FDCWD, shmDir+o.name, unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
		// ENOENT is the kernel's answer, the others are those of seccomp filters.
		self := fmt.Sprintf("/proc/self/fd/%d", o.fd)
		err = unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, shmDir+o.name, unix.AT_SYMLINK_FOLLOW)
		if errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%w: no /proc: %w", errors.ErrUnsupported, err)
		}
	}
	return sysunix.SpaceError(err)
}

// Linked implements [object.Object]. The number of an open inode is not reused, so
// device and inode number decide.
func (o *tmpfsObject) Linked() (bool, error) {
	if o.name == "" {
		return false, nil
	}
	var there unix.Stat_t
	err := unix.Fstatat(unix.AT_FDCWD, shmDir+o.name, &there, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil && o.dev == uint64(there.Dev) && o.ino == there.Ino, err
}

func (o *tmpfsObject) Unlink() error { return unix.Unlink(shmDir + o.name) }

// UnlinkUnopened implements [object.System]: permission to write to the directory
// suffices. Only a regular file is unlinked.
func (tmpfs) UnlinkUnopened(name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(unix.AT_FDCWD, shmDir+name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errNotRegular
	}
	return unix.Unlink(shmDir + name)
}

func (tmpfs) List(f func(name string) bool) error {
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

// Map implements [object.Object]. MAP_POPULATE never fails.
func (o *tmpfsObject) Map(length, writable int, populate bool) ([]byte, error) {
	prot, flags := unix.PROT_READ, unix.MAP_SHARED
	if writable == length {
		prot |= unix.PROT_WRITE
	}
	if populate {
		flags |= unix.MAP_POPULATE
	}
	p, err := unix.MmapPtr(o.fd, 0, nil, uintptr(length), prot, flags)
	if err != nil {
		return nil, sysunix.SpaceError(err)
	}
	mem := raw.Slice(p, length)
	if 0 < writable && writable < length {
		if err := unix.Mprotect(mem[:writable], unix.PROT_READ|unix.PROT_WRITE); err != nil {
			tmpfs{}.Unmap(mem)
			return nil, sysunix.SpaceError(err)
		}
	}
	return mem, nil
}

// Unmap implements [object.System]. It is no unix.Munmap, which has a lock and a
// table for all mappings.
func (tmpfs) Unmap(mem []byte) { unix.MunmapPtr(raw.Pointer(mem), uintptr(len(mem))) }

func (tmpfs) Revoke(mem []byte) error { return sysunix.Revoke(mem) }
func (tmpfs) Revocable() int64        { return sysunix.Revocable() }

// ReadAt and WriteAt implement [object.Object] by pread(2) and pwrite(2): where
// memory is missing they return an error and raise no signal.
func (o *tmpfsObject) ReadAt(p []byte, off int64) (int, error) {
	return sysunix.Retry(func() (int, error) { return unix.Pread(o.fd, p, off) })
}

func (o *tmpfsObject) WriteAt(p []byte, off int64) (int, error) {
	n, err := sysunix.Retry(func() (int, error) { return unix.Pwrite(o.fd, p, off) })
	return n, sysunix.SpaceError(err)
}

// ReceiveFrom implements [object.Object]. It goes by the position of o.fd, which no
// other process shares unless the object is sealed: see FromFD.
func (o *tmpfsObject) ReceiveFrom(fd uintptr, off int64, n int) (int, error) {
	switch {
	case !sysunix.IsRegular(fd):
		return 0, errNotRegular
	case o.sealed:
		return 0, nil
	}
	if _, err := unix.Seek(o.fd, off, io.SeekStart); err != nil {
		return 0, nil
	}
	n, err := sysunix.Retry(func() (int, error) { return unix.Sendfile(o.fd, int(fd), nil, n) })
	if err != nil {
		n = 0
	}
	return n, nil
}

func (o *tmpfsObject) Punch(off, n int64) error {
	_, err := sysunix.Retry(func() (int, error) {
		return 0, unix.Fallocate(o.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
	return err
}

// The locks are on bytes of the object beyond all data: one that TryLock locks, and
// one for each attachment that has joined, which says whose it is. To be alone is to
// lock all of them. They are open file description locks, fcntl(2): they belong to
// the Object, not to the process, and the kernel releases them together when the
// description goes, however the process ends. They end below 1<<63-1: a lock up to
// there is reported with length 0.
const (
	lockByte   = 1 << 62
	writers    = 5 << 60 // own bytes of attachments that may write
	readers    = 6 << 60 // and of the others
	endOfLocks = 7 << 60
)

// setLock sets a lock on length bytes, without waiting. A change that fails keeps
// what there was.
func (o *tmpfsObject) setLock(kind int16, start, length int64) error {
	lock := unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: start, Len: length}
	err := unix.FcntlFlock(uintptr(o.fd), unix.F_OFD_SETLK, &lock)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return object.ErrBusy
	}
	o.locked = true
	return err
}

// getLock returns a lock of another description on one of the bytes from start to
// end, of type F_UNLCK if there is none.
func (o *tmpfsObject) getLock(start, end int64) (unix.Flock_t, error) {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: start, Len: end - start}
	err := unix.FcntlFlock(uintptr(o.fd), unix.F_OFD_GETLK, &lock)
	return lock, err
}

func (o *tmpfsObject) TryLock() error  { return o.setLock(unix.F_WRLCK, lockByte, 1) }
func (o *tmpfsObject) Unlock()         { o.setLock(unix.F_UNLCK, lockByte, 1) }
func (o *tmpfsObject) TryAlone() error { return o.setLock(unix.F_WRLCK, lockByte, endOfLocks-lockByte) }
func (o *tmpfsObject) Close()          { unix.Close(o.fd) }

func (o *tmpfsObject) Leave() {
	if o.locked {
		o.setLock(unix.F_UNLCK, 0, 0)
		o.locked = false
	}
}

// Join implements [object.Locks].
func (o *tmpfsObject) Join(writer bool, used func(tag uint64) bool) error {
	for {
		tag := newTag()
		err := o.lockOwn(tag, writer)
		switch {
		case err == errTaken:
			continue
		case err != nil:
			return err
		case used != nil && used(uint64(tag)):
			o.unlockOwn(tag, writer)
			continue
		}
		o.tag.Store(tag)
		o.writer = writer
		return nil
	}
}

// errTaken is returned for a byte that another Object has.
var errTaken = errors.New("tag is taken")

func ownByte(tag int64, writer bool) int64 {
	if writer {
		return writers | tag
	}
	return readers | tag
}

// lockOwn locks an own byte. A writable description takes a write lock, so that no
// other attachment has the byte. One for reading only can take no more than a read
// lock, and relies on the number that its process gives it.
func (o *tmpfsObject) lockOwn(tag int64, writer bool) error {
	kind := int16(unix.F_WRLCK)
	if !o.writable {
		kind = unix.F_RDLCK
	}
	own := ownByte(tag, writer)
	err := o.setLock(kind, own, 1)
	if err != object.ErrBusy {
		return err
	}
	switch there, err := o.getLock(own, own+1); {
	case err != nil:
		return err
	case there.Type != unix.F_UNLCK && there.Len != 1: // another Object is alone
		return object.ErrBusy
	}
	return errTaken
}

func (o *tmpfsObject) unlockOwn(tag int64, writer bool) {
	o.setLock(unix.F_UNLCK, ownByte(tag, writer), 1)
}

// SetWriter implements [object.Locks]. It locks the new byte before it unlocks the
// old one, so that it has joined all the time.
func (o *tmpfsObject) SetWriter(writer bool) error {
	if o.writer == writer {
		return nil
	}
	old := o.tag.Load()
	tag := old
	err := o.lockOwn(tag, writer)
	for err == errTaken {
		tag = newTag()
		err = o.lockOwn(tag, writer)
	}
	if err != nil {
		return err
	}
	o.tag.Store(tag)
	o.unlockOwn(old, o.writer)
	o.writer = writer
	return nil
}

func (o *tmpfsObject) Writers() (bool, error) {
	lock, err := o.getLock(writers, readers)
	return lock.Type != unix.F_UNLCK, err
}

func (o *tmpfsObject) Tag() uint64 { return uint64(o.tag.Load()) }

func (o *tmpfsObject) Gone(tag uint64) bool {
	if int64(tag) == o.tag.Load() { // the kernel does not tell of one's own locks
		return false
	}
	own := ownByte(int64(tag), true)
	lock, err := o.getLock(own, own+1)
	return err == nil && lock.Type == unix.F_UNLCK
}

// Sleep, Wake and Yield implement [object.Sleeper].
func (o *tmpfsObject) Sleep(header []byte, off int, value uint32, most time.Duration, still func() bool) {
	futex.Sleep(raw.Uint32(header, off), value, most, still)
}

func (o *tmpfsObject) Wake(header []byte, off int, all bool) {
	futex.Wake(raw.Uint32(header, off), all)
}

func (o *tmpfsObject) Yield() { futex.Yield() }

// A tag names an attachment: 20 bits for the namespace of process ids, 0 if it is
// not known, 22 for the process id, 18 that count attachments of the process.
const (
	pidBits   = 22 // process ids end at 4194303: PID_MAX_LIMIT
	countBits = 18
	tagMask   = 1<<60 - 1
)

func newTag() int64 {
	count := tagCount.Add(1) & (1<<countBits - 1)
	return pidNamespace()<<(pidBits+countBits) | int64(pid)<<countBits | int64(count)
}

var (
	pid      = os.Getpid() // a system call: os.Getpid does not remember it
	tagCount atomic.Uint32
)

func init() { tagCount.Store(rand.Uint32()) }

// pidNamespace returns the low 20 bits of the inode number of this process's
// namespace of process ids, which the kernel hands out from the lowest: namespaces(7).
var pidNamespace = sync.OnceValue(func() int64 {
	var st unix.Stat_t
	if unix.Stat("/proc/self/ns/pid", &st) != nil {
		return 0
	}
	return int64(st.Ino & (1<<20 - 1))
})

func newHolder(at int64) object.Holder {
	tag := at & tagMask
	namespace := tag >> (pidBits + countBits)
	h := object.Holder{
		PID:    int(tag >> countBits & (1<<pidBits - 1)),
		Writer: at < readers,
		Here:   namespace != 0 && namespace == pidNamespace(),
	}
	// A process that may not be asked about exists: kill(2).
	h.Gone = h.Here && h.PID != pid && unix.Kill(h.PID, 0) == unix.ESRCH
	return h
}

func (o *tmpfsObject) Others() (object.Presence, error) {
	lock, err := o.getLock(writers, endOfLocks)
	switch {
	case err != nil || lock.Type == unix.F_UNLCK:
		return object.Nobody, err
	case lock.Len != 1:
		return object.Deciding, nil
	case !newHolder(lock.Start).Gone:
		return object.Somebody, nil
	}
	presence := object.Ending
	complete, err := o.eachHolder(256, func(h object.Holder) bool {
		if !h.Gone {
			presence = object.Somebody
		}
		return h.Gone
	})
	if !complete {
		presence = object.Somebody
	}
	return presence, err
}

func (o *tmpfsObject) Count() (int, error) {
	holders, err := o.Holders()
	return len(holders), err
}

// Holders implements [object.Locks]. Beyond 100,000 holders the list is not complete.
func (o *tmpfsObject) Holders() (list []object.Holder, err error) {
	_, err = o.eachHolder(100_000, func(h object.Holder) bool {
		list = append(list, h)
		return true
	})
	return list, err
}

// eachHolder calls f with the other Objects that have joined, at most with most of
// them, until f returns false. It reports whether there are no more. The kernel tells
// one lock a call, and not the first.
func (o *tmpfsObject) eachHolder(most int, f func(object.Holder) bool) (complete bool, err error) {
	type gap struct{ start, end int64 }
	seen := make(map[int64]bool)
	for gaps := []gap{{writers, endOfLocks}}; len(gaps) > 0; {
		g := gaps[len(gaps)-1]
		gaps = gaps[:len(gaps)-1]
		if g.start >= g.end {
			continue
		}
		lock, err := o.getLock(g.start, g.end)
		switch {
		case err != nil:
			return false, err
		case lock.Type == unix.F_UNLCK:
			continue
		case most == 0:
			return false, nil
		}
		most--
		// One that moves from the writers to the others, or back, has two for a moment.
		tag := lock.Start & tagMask
		if lock.Len == 1 && !seen[tag] && !f(newHolder(lock.Start)) {
			return false, nil
		}
		seen[tag] = true
		gaps = append(gaps, gap{lock.Start + max(lock.Len, 1), g.end}, gap{g.start, lock.Start})
	}
	return true, nil
}

// CreateAnonymous implements [object.System].
func (tmpfs) CreateAnonymous(size int64, sparse bool) (object.Object, error) {
	if !sparse {
		if err := enoughMemory(size); err != nil { // before a descriptor is used up
			return nil, err
		}
	}
	fd, err := tmpfs{}.CreateMemory(size)
	if err != nil {
		return nil, err
	}
	o := &tmpfsObject{fd: int(fd), writable: true, sealed: true}
	if !sparse {
		err = o.allocate(size)
	}
	if err == nil {
		_, err = o.Stat()
	}
	if err != nil {
		o.Close()
		return nil, sysunix.SpaceError(err)
	}
	return o, nil
}

// fixedSize are the seals of memory whose size no process can change: fcntl(2).
const fixedSize = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW

// CreateMemory implements [object.System]; see memfd_create(2).
func (tmpfs) CreateMemory(size int64) (uintptr, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("shm", flags|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("shm", flags)
	}
	if errors.Is(err, unix.ENOSYS) {
		return 0, fmt.Errorf("%w: no memfd_create: %w", errors.ErrUnsupported, err)
	}
	if err != nil {
		return 0, sysunix.SpaceError(err)
	}
	if err := prepareMemory(fd, size); err != nil {
		unix.Close(fd)
		return 0, sysunix.SpaceError(err)
	}
	return uintptr(fd), nil
}

func prepareMemory(fd int, size int64) error {
	// It is created 0666 or 0777, and a process that has a descriptor can open it
	// again: with this, a read-only descriptor gives no more to other users.
	if err := unix.Fchmod(fd, 0o644); err != nil {
		return err
	}
	_, err := sysunix.Retry(func() (int, error) { return 0, unix.Ftruncate(fd, size) })
	if err != nil {
		return err
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, fixedSize|unix.F_SEAL_SEAL)
	return err
}

// DuplicateMemory implements [object.System]. A descriptor for reading only has a
// description of its own: there is no other way to have one. Those for writing
// share that of fd. What a process can do to it, as to its offset, does not matter
// to those who map the memory.
func (tmpfs) DuplicateMemory(fd uintptr, readOnly bool) (uintptr, error) {
	if !readOnly {
		own, err := sysunix.Duplicate(fd)
		return uintptr(own), err
	}
	own, err := (&tmpfsObject{fd: int(fd)}).reopen(true)
	return uintptr(own), err
}

// IsMemory implements [object.System]: the kernel alone answers F_GET_SEALS of
// fcntl(2), and only for memory.
func (tmpfs) IsMemory(fd uintptr) bool {
	_, err := unix.FcntlInt(fd, unix.F_GET_SEALS, 0)
	return err == nil
}

// Reserve implements [object.Object].
func (o *tmpfsObject) Reserve(size int64) error {
	err := enoughMemory(size)
	if err == nil {
		err = sysunix.SpaceError(o.allocate(size))
	}
	return err
}

// enoughMemory returns the error for an anonymous object that is known not to fit.
// Anonymous memory has no file system that is full in time: to reserve more than
// there is calls the OOM killer.
func enoughMemory(size int64) error {
	if free, known := availableMemory(size); known && size > free {
		return sysunix.SpaceError(fmt.Errorf("%d bytes wanted, %d of memory available: %w", size, free, unix.ENOSPC))
	}
	return nil
}

// availableMemory returns how many bytes of memory can be allocated. It is unknown
// where size is too small to matter and where the system does not say.
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

// FromFD implements [object.System].
func (tmpfs) FromFD(fd uintptr) (object.Object, error) {
	o, err := fromFD(fd)
	if err != nil {
		return nil, err
	}
	return o, nil
}

func fromFD(fd uintptr) (*tmpfsObject, error) {
	// The kernel alone answers this, and only for memory: fcntl(2).
	seals, err := unix.FcntlInt(fd, unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", object.ErrNotSegment, err)
	}
	writable, err := sysunix.Writable(fd)
	if err != nil {
		return nil, err
	}
	o := &tmpfsObject{fd: int(fd), writable: writable, sealed: seals&fixedSize == fixedSize}
	if _, err := o.Stat(); err != nil {
		return nil, err
	}
	if o.sealed {
		// It carries no locks, so sharing the description does no harm, and takes no
		// /proc and no permissions.
		o.fd, err = sysunix.Duplicate(fd)
	} else {
		o.fd, err = o.reopen(!o.writable)
	}
	if err != nil {
		return nil, err
	}
	if !o.sealed {
		o.name = o.findName()
	}
	return o, nil
}

// reopen returns a descriptor of the object that shares no description, and so
// no locks, with o. It needs the permission to open the object.
func (o *tmpfsObject) reopen(readOnly bool) (fd int, err error) {
	flags := unix.O_RDWR
	if readOnly {
		flags = unix.O_RDONLY
	}
	fd, err = sysunix.Retry(func() (int, error) {
		return unix.Open(fmt.Sprintf("/proc/self/fd/%d", o.fd), flags|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return 0, fmt.Errorf("%w: no /proc: %w", errors.ErrUnsupported, err)
	case errors.Is(err, unix.EAGAIN): // a lease, as in openObject
		return 0, fmt.Errorf("%w: %w", object.ErrBusy, err)
	}
	return fd, err
}

// Descriptor implements [object.Object]. It opens the object by its name if possible, so
// that findName finds the name: one from linkat is unknown to the description it
// was given through.
func (o *tmpfsObject) Descriptor(readOnly bool) (uintptr, error) {
	readOnly = readOnly || !o.writable
	if o.name != "" {
		if own, err := openObject(o.name, !readOnly); err == nil {
			if own.same(o) {
				return uintptr(own.fd), nil
			}
			own.Close()
		}
	}
	var fd int
	var err error
	if o.sealed && readOnly == !o.writable {
		fd, err = sysunix.Duplicate(uintptr(o.fd))
	} else {
		fd, err = o.reopen(readOnly)
	}
	return uintptr(fd), err
}

func (o *tmpfsObject) same(p *tmpfsObject) bool {
	var st, other unix.Stat_t
	return unix.Fstat(o.fd, &st) == nil && unix.Fstat(p.fd, &other) == nil && st.Dev == other.Dev && st.Ino == other.Ino
}

// findName returns the name that leads to the object, "" if there is none. Where
// the path says that the directory is does not matter: it can be a symbolic link.
func (o *tmpfsObject) findName() string {
	path, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", o.fd))
	there := tmpfsObject{dev: o.dev, ino: o.ino, name: filepath.Base(path)}
	if !blockname.Valid(there.name, unix.NAME_MAX) {
		return ""
	}
	if linked, _ := there.Linked(); !linked {
		return ""
	}
	return there.name
}
