//go:build darwin || standin

package shm

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/shmkit/shm/internal/blockname"
	"github.com/shmkit/shm/internal/lockpage"
	"github.com/shmkit/shm/internal/memsource"
	"github.com/shmkit/shm/internal/raw"
	"github.com/shmkit/shm/internal/shmobject"
)

// Blocks on POSIX shared memory objects as darwin has them: all but the system
// calls, which are in platform_darwin.go. Such an object has no locks, no
// identity and no directory; it has its name before anything is in it; and it
// gets its size once, for good. What is lacking is made up for by
//
//   - a lock page in the object, in what the header leaves of the first 16 KiB:
//     see package lockpage. Its locks are held by processes.
//   - the sticky bit in the object's mode, which the system keeps and does not
//     heed. It tells an object that is to be a block of ours, and has a lock page
//     from the moment it has a size, from all that other programs make.
//   - publication: an object is a block when its lock page says so, which is the
//     last thing that its creator does. Before, Open does not see it, and a
//     Create that finds its creator dead, or too slow, takes the name away from
//     it. Of several processes that set its size the system lets one succeed.
//   - the name, in the header: who is handed a descriptor could not find it.
//
// An anonymous block is an object that has lost its name before it got a size.
// Nobody can make it shorter or longer, as any other, so that it has no lock page.
// What tells it from all others is its mode as well: the sticky bit, and
// permissions for nobody.
//
// The system calls, each with the system's errors, are sysShmOpen, sysShmUnlink,
// sysFtruncate, sysFstat, sysMmap, sysProtect, sysMunmap, sysClose, and
// sysStartTime, which returns ESRCH for a process that has ended.
const (
	maxName = sysMaxName - 1 // the slash in front

	// The page size on arm64. On amd64 it is less, but a process that runs there
	// by translation shares memory with others that do not.
	objectPage    = 16 << 10
	headerLength  = objectPage
	nameStart     = lockPageStart - 32 // zeros behind the name
	lockPageStart = 4 << 10            // to objectPage

	bornNamed = true
	namesStay = false
	hasFile   = false

	birthMark     = 0o1000
	anonymousMode = birthMark

	// maxSize is all the addresses that a process can have. The kernel takes a larger
	// size, and does not come back, nor heed a signal, before it has walked all of it.
	maxSize = 1 << 47
)

// objectStat is what the system knows of an object. Nothing of it changes once
// the size is set.
type objectStat struct {
	mode uint32 // permission bits and the sticky bit
	uid  uint32
	size int64 // rounded up to pages; 0 if it is not set
}

// object is an open handle on a backing object.
type object struct {
	fd       int
	writable bool
	objectStat
	head   []byte         // the first objectPage bytes, mapped, if it is a block's and has a size
	page   *lockpage.Page // in head, unless it is anonymous
	unborn string         // its name, until it is published
}

// createObject makes an object of size bytes that has its name, but is no block
// before publish; if it is unlocked before, the name goes. It returns
// fs.ErrExist if the name is taken, marked with again unless by a block. The
// memory is not reserved: there is no call for that.
func createObject(name string, size int64, c config) (*object, error) {
	if size > maxSize {
		return nil, ErrNoSpace
	}
	mode := uint32(c.perm)
	if !c.has(optHeaderless) {
		mode |= birthMark
	}
	fd, err := sysShmOpen("/"+name, syscall.O_RDWR|syscall.O_CREAT|syscall.O_EXCL, mode)
	switch {
	case errors.Is(err, fs.ErrExist) && !isBlock(name):
		return nil, again{err}
	case err != nil:
		return nil, spaceErr(err)
	}
	o := &object{fd: fd, writable: true, unborn: name}
	if err := o.prepare(size); err != nil {
		o.unlock()
		o.close()
		return nil, spaceErr(err)
	}
	return o, nil
}

// setSize sets the size of a new object. The error is again if somebody else has.
func (o *object) setSize(size int64) error {
	err := sysFtruncate(o.fd, (size+objectPage-1)&^(objectPage-1))
	if err == nil {
		return nil
	}
	// Or the system does not like it. A size of ours makes sure that nobody else
	// will set one, and the name can go.
	if errors.Is(sysFtruncate(o.fd, objectPage), syscall.EINVAL) {
		return again{fs.ErrExist}
	}
	return fmt.Errorf("%w: %w", ErrNoSpace, err)
}

// prepare sets the size of a new object, and takes its mutex.
func (o *object) prepare(size int64) error {
	failure := o.setSize(size)
	if err := o.load(); err != nil {
		return err
	}
	if o.page != nil && !o.page.Lock() {
		o.unborn = "" // whoever has the mutex sees to the name
		return again{fs.ErrExist}
	}
	if failure != nil || o.page == nil {
		return failure
	}
	// The name can be gone by now: another process has thought us dead, or a
	// program has unlinked what it found empty, as CPython's SharedMemory does. The
	// former cannot happen from here on.
	o.page.SetID(newID())
	named, err := o.named(o.unborn)
	if err == nil && !named {
		return again{fs.ErrExist}
	}
	return err
}

func newID() (id [2]uint64) {
	var b [16]byte
	rand.Read(b[:])
	return [2]uint64{binary.NativeEndian.Uint64(b[:]), binary.NativeEndian.Uint64(b[8:])}
}

// load finds out what there is to know of an open object.
func (o *object) load() error {
	var err error
	if o.objectStat, err = sysFstat(o.fd); err != nil || o.head != nil || o.size == 0 || !o.ours() && !o.isSealed() {
		return err
	}
	var me uint64
	if o.ours() { // an anonymous block has no lock page to name this process in
		if me, err = self(); err != nil {
			return err
		}
	}
	if o.head, err = sysMmap(o.fd, objectPage, o.writable); err != nil {
		return spaceErr(err)
	}
	if o.ours() {
		o.page = lockpage.New(o.head[lockPageStart:], me, gone)
	}
	return nil
}

// ours reports whether the object was made to be a block with a header and a name.
func (o *object) ours() bool {
	return o.mode&birthMark != 0 && o.mode != anonymousMode && (o.size == 0 || o.size >= objectPage)
}

// isSealed reports whether the object is that of an anonymous block.
func (o *object) isSealed() bool { return o.mode == anonymousMode && o.size >= objectPage }

// published reports whether an object of ours has become a block.
func (o *object) published() bool { return o.page != nil && o.page.Ready() }

// lookUp opens whatever has the name.
func lookUp(name string, write bool) (*object, error) {
	flags := syscall.O_RDONLY
	if write {
		flags = syscall.O_RDWR
	}
	fd, err := sysShmOpen("/"+name, flags, 0)
	if err != nil {
		return nil, err
	}
	o := &object{fd: fd, writable: write}
	if err := o.load(); err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

// openObject opens the object called name. One that is to become a block does
// not exist before it is one.
func openObject(name string, write bool) (*object, error) {
	o, err := lookUp(name, write)
	if err == nil && o.ours() && !o.published() {
		o.close()
		return nil, syscall.ENOENT
	}
	return o, err
}

// isBlock reports whether the name is taken for good, by a block or by another
// program. Of an object that is to become a block it waits for the outcome, and
// takes the name away from one that will not.
func isBlock(name string) bool {
	o, err := lookUp(name, true)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer o.close()
	// Creating takes microseconds. A creator that takes longer and lives starts over.
	grace, pause := time.Now().Add(patience/20), 100*time.Microsecond
	for ; o.ours() && !o.published(); pause *= 2 {
		late := time.Now().After(grace)
		switch {
		case o.page == nil && late:
			// If this succeeds, its creator cannot set the size any more, and starts
			// over. Just to unlink would not do: by now it can be another object.
			sysFtruncate(o.fd, objectPage)
			if o.load(); o.page == nil {
				return false
			}
		case o.page != nil && (late || o.page.Abandoned()):
			if o.page.Lock() {
				defer o.page.Unlock()
				if !o.published() {
					o.abort(name)
				}
			}
			return o.published()
		}
		if o.load() != nil {
			return true
		}
		time.Sleep(pause)
	}
	return true
}

// abort takes the name away from an object that is not a block. The mutex must
// be held, if there is one: without its name the object does not become one.
func (o *object) abort(name string) error {
	if o.page != nil && o.page.ID() == [2]uint64{} {
		o.page.SetID(newID())
	}
	return unlinkIfNamed(o, name)
}

func (o *object) stat() (objectInfo, error) {
	// The system keeps no times.
	return objectInfo{size: o.size, mode: fs.FileMode(o.mode).Perm(), owner: int(o.uid)}, nil
}

// newborn is never asked of what is not a block yet: openObject does not see it.
func (o *object) newborn() error { return nil }

// lockable returns errors.ErrUnsupported where there is no lock page: an object
// without one is never taken for a block, unless it is anonymous and needs none.
func (o *object) lockable() error {
	if o.page == nil && !o.isSealed() {
		return fmt.Errorf("%w: not made to be locked", errors.ErrUnsupported)
	}
	return nil
}

// publish makes the object a block.
func (o *object) publish(name string) error {
	if o.page != nil {
		copy(o.head[nameStart:lockPageStart], name)
		o.page.SetReady()
		o.page.Unlock()
	}
	o.unborn = ""
	return nil
}

// named reports whether name leads to this object. The id in the lock page
// decides; without one all that the system tells of two objects is compared.
func (o *object) named(name string) (bool, error) {
	there, err := lookUp(name, false)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return false, nil // permissions do not change, and this object could be opened
	case err != nil:
		return false, err
	}
	defer there.close()
	if o.page != nil && there.page != nil {
		return o.page.ID() == there.page.ID(), nil
	}
	return !o.ours() && o.objectStat == there.objectStat, nil
}

// unlink takes the name away from the object, which it leads to.
func (o *object) unlink(name string) error { return sysShmUnlink("/" + name) }

// unlinkUnopened takes the name away from a block that this process may not
// open: its creator may, whatever the permissions.
func unlinkUnopened(name string) error { return sysShmUnlink("/" + name) }

// listObjects cannot be done: the system tells nobody what names there are.
func listObjects(func(name string) bool) error {
	return fmt.Errorf("%w: shared memory objects cannot be listed on this system", errors.ErrUnsupported)
}

// mmap maps the first length bytes of the object, of which the first writable
// ones, a multiple of the page size or all, can be written to. With populate it
// looks at every page, which maps it.
func (o *object) mmap(length, writable int, populate bool) ([]byte, error) {
	mem, err := sysMmap(o.fd, length, writable == length)
	if err == nil && 0 < writable && writable < length {
		if err = sysProtect(mem[:writable]); err != nil {
			munmap(mem)
		}
	}
	if err != nil {
		return nil, spaceErr(err)
	}
	for off := 0; populate && off+4 <= length; off += os.Getpagesize() {
		raw.Uint32(mem, off).Load()
	}
	return mem, nil
}

func munmap(mem []byte) { sysMunmap(mem) }

// readAt and writeAt reach the header alone: the system has no calls that move
// bytes of an object past a mapping. What has no lock page has no header.
func (o *object) readAt(p []byte, off int64) (int, error) {
	if off > int64(len(o.head)) {
		return 0, errors.ErrUnsupported
	}
	return copy(p, o.head[off:]), nil
}

func (o *object) writeAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > lockPageStart || o.head == nil {
		return 0, errors.ErrUnsupported
	}
	return copy(o.head[off:], p), nil
}

// receive cannot be done, either.
func (o *object) receive(uintptr, int64, int) (int, error) { return 0, errors.ErrUnsupported }

// punch cannot be done: memory is given back with the object.
func (o *object) punch(off, n int64) error { return errors.ErrUnsupported }

// lock takes the lane, without waiting, or fails with ErrBusy. The life lane is
// taken with the mutex lane held, and is not kept alone: nobody else can take it
// before the mutex lane is free. A process that may only read cannot lock, so
// that it is not known to be attached.
func (o *object) lock(l lane, h hold) error {
	switch {
	case o.page == nil || !o.writable:
	case h == unheld:
		o.page.Unlock()
	case l == laneMutex:
		if !o.page.Lock() {
			return ErrBusy
		}
	case h == shared:
		if !o.page.Join() {
			return fmt.Errorf("%w: %d attachments: %w", ErrNoSpace, o.page.Slots(), syscall.ENOLCK)
		}
	case !o.page.Alone():
		return ErrBusy
	}
	return nil
}

// unlock drops all lanes, and the name of an object that is not published.
func (o *object) unlock() {
	if o.unborn != "" {
		o.abort(o.unborn)
		o.unborn = ""
	}
	if o.page != nil {
		o.page.Leave()
		o.page.Unlock()
	}
}

// holder returns how other handles hold the life lane: never alone, for who
// holds it so has his slot as well, or has found all of them free.
func (o *object) holder(lane) (hold, error) {
	if o.page != nil && o.page.Others() {
		return shared, nil
	}
	return unheld, nil
}

func (o *object) close() {
	o.unmapHead()
	sysClose(o.fd)
}

func (o *object) unmapHead() {
	if o.head != nil {
		sysMunmap(o.head)
	}
}

// createAnonymous makes an object of size bytes that has no name and that no
// other process has open. The memory is not reserved.
func createAnonymous(size int64, _ bool) (o *object, err error) {
	if size > maxSize {
		return nil, ErrNoSpace
	}
	err = patiently(func() error {
		fd, err := openNameless()
		if err != nil {
			return spaceErr(err)
		}
		o = &object{fd: fd, writable: true}
		if err = o.setSize(size); err == nil {
			err = o.load()
		}
		if err != nil {
			o.close()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return o, nil
}

// adoptAnonymous: package manager hands out no memory here.
func adoptAnonymous(*memsource.Source, int64, bool) (*object, error) {
	return nil, errors.ErrUnsupported
}

// openNameless makes an object that has lost its name again, and has no size. A
// process that is killed in between leaves a name without memory. All processes
// of a user take the same one for this moment, so that no more than one can be
// left, and whoever comes next takes it away: if not from the dead, then from
// somebody who does not need it any longer. It has no slash in front, as the
// names of blocks have, and nobody can open what has it (but root). If another
// user has taken it, it is one that is made up.
func openNameless() (fd int, err error) {
	name := fmt.Sprintf("shmkit-anonymous-%d", os.Geteuid())
	for range 1000 { // somebody else was faster, each time
		fd, err = sysShmOpen(name, syscall.O_RDWR|syscall.O_CREAT|syscall.O_EXCL, anonymousMode)
		unlinkErr := sysShmUnlink(name)
		if !errors.Is(err, fs.ErrExist) {
			break
		}
		if errors.Is(unlinkErr, fs.ErrPermission) {
			name = blockname.Unique()
		}
	}
	return fd, err
}

// fromFD returns a handle of its own on the object that fd is open on, for
// reading and writing if fd is. fd can be anything: what is not a shared memory
// object is ErrNotSegment, and nothing is done to it that could wait or have an
// effect.
func fromFD(fd uintptr) (*object, error) {
	if _, err := shmobject.Size(fd); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotSegment, err)
	}
	writable, err := writableFD(fd)
	if err != nil {
		return nil, err
	}
	o := &object{writable: writable}
	if o.fd, err = duplicate(fd); err != nil {
		return nil, err
	}
	if err = o.load(); err == nil && o.ours() && !o.published() {
		err = syscall.ENOENT
	}
	if err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

// file returns a file open on the object, which name leads to, or led to. It is
// a duplicate, which has nothing that could be shared: no offset and no locks.
// The system has no means to open the object anew, to read only, but the name.
func (o *object) file(name string, readOnly bool) (*os.File, error) {
	if readOnly && o.writable {
		own := o.reopen(name)
		if own == nil {
			return nil, fmt.Errorf("%w: a file to read only of a block without its name", errors.ErrUnsupported)
		}
		own.unmapHead()
		return os.NewFile(uintptr(own.fd), name), nil
	}
	fd, err := duplicate(uintptr(o.fd))
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// reopen opens the object anew, to read only, or returns nil if name does not
// lead to it. It must be open for writing.
func (o *object) reopen(name string) *object {
	there, err := openObject(name, false)
	if err != nil {
		return nil
	}
	if o.page == nil || there.page == nil || !o.page.Same(there.page) {
		there.close()
		return nil
	}
	return there
}

// findName returns the name that leads to the object, "" if there is none, or if
// that cannot be made sure of: it says so in the header itself, where a peer can
// have written the name of a block that is none of its business.
func (o *object) findName() string {
	if o.page == nil || !o.writable {
		return ""
	}
	name, _, _ := strings.Cut(string(o.head[nameStart:lockPageStart]), "\x00")
	if clean, err := checkName(name); err != nil || clean != name {
		return ""
	}
	there := o.reopen(name)
	if there == nil {
		return ""
	}
	there.close()
	return name
}

// A token is a process: its id and the time it began. The id alone would be
// another's before long.
const startBits = 64 - pidBits

func newToken(pid int, start uint64) uint64 {
	return uint64(pid)<<startBits | start&(1<<startBits-1)
}

var selfToken atomic.Uint64 // 0 until it is known

// self returns the token of this process. An error is not remembered: the system
// may answer the next time. It is a variable for tests alone.
var self = func() (uint64, error) {
	if token := selfToken.Load(); token != 0 {
		return token, nil
	}
	start, err := sysStartTime(os.Getpid())
	if err != nil {
		return 0, err
	}
	token := newToken(os.Getpid(), start)
	selfToken.Store(token)
	return token, nil
}

// gone reports whether the process with the token has ended, killed or not. It
// says no where the system does not tell.
func gone(token uint64) bool {
	if me, _ := self(); token == me {
		return false
	}
	pid := int(token >> startBits)
	start, err := sysStartTime(pid)
	return errors.Is(err, syscall.ESRCH) || err == nil && newToken(pid, start) != token
}
