//go:build linux || darwin

// Package posixshm implements package object on POSIX shared memory objects as
// darwin has them. Such an object has no locks, no identity and no directory; it
// has its name before anything is in it; and it gets its size once. What is
// missing is made up for by
//
//   - a lock page in the object, in what the header leaves of the first 16 KiB:
//     see package lockpage. Its locks are held by processes.
//   - the sticky bit in the object's mode, which the system keeps and ignores. It
//     tells an object that is to be a block with a header, and has a lock page from
//     the moment it has a size, from all that other programs make.
//   - publication: an object is a block when its lock page says so, which is the
//     last thing that its creator does. Before, Open does not see it, and a Create
//     that finds its creator dead, or too slow, removes its name. Of several
//     processes that set its size the system lets one succeed.
//   - the name, in the header: a process that receives a descriptor has no other
//     way to find it.
//
// An anonymous block is an object that has lost its name before it got a size. No
// process can change the size of an object, so it needs no lock page. What tells
// it from all others is its mode as well: the sticky bit, and no permissions.
package posixshm

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/shmkit/shm/internal/blockname"
	"github.com/shmkit/shm/internal/lockpage"
	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/raw"
	"github.com/shmkit/shm/internal/sysunix"
)

const (
	// The page size on arm64. On amd64 it is less, but a process that runs there
	// by translation shares memory with others that do not.
	objectPage    = 16 << 10
	nameStart     = lockPageStart - 32 // zeros behind the name
	lockPageStart = 4 << 10            // to objectPage

	birthMark     = 0o1000 // the sticky bit
	anonymousMode = birthMark

	// maxSize is all the addresses that a process can have. The kernel takes a larger
	// size, and does not return, nor heed a signal, before it has walked all of it.
	maxSize = 1 << 47
)

// A System implements [object.System].
type System struct {
	kernel Kernel

	// Grace is how long Create waits for another creator of the name, which takes
	// microseconds, before it takes that for dead.
	Grace time.Duration

	self  func() (uint64, error) // token of this process; a variable for tests alone
	token atomic.Uint64          // what self returns, 0 until it is known

	sleeping atomic.Int32 // goroutines in Sleep
}

// New returns the System on a kernel.
func New(k Kernel) *System {
	s := &System{kernel: k, Grace: 100 * time.Millisecond}
	s.self = s.findSelf
	return s
}

// findSelf returns the token of this process. An error is not remembered: the
// system may answer the next time.
func (s *System) findSelf() (uint64, error) {
	if token := s.token.Load(); token != 0 {
		return token, nil
	}
	start, err := s.kernel.StartTime(os.Getpid())
	if err != nil {
		return 0, err
	}
	token := s.newToken(os.Getpid(), start)
	s.token.Store(token)
	return token, nil
}

// Kernel returns what New was given.
func (s *System) Kernel() Kernel { return s.kernel }

func (s *System) Limits() object.Limits {
	return object.Limits{
		MaxName:      s.kernel.MaxName() - 1, // the slash in front
		HeaderLength: objectPage,
		NamesStay:    false,
		Files:        false,
	}
}

// A handle is an Object.
type handle struct {
	object.NoFiles
	object.Looks
	sys      *System
	fd       int
	name     string
	writable bool
	unborn   bool // it has its name, and is not published
	stat     Stat
	head     []byte         // the first objectPage bytes, mapped, if it is a block's and has a size
	page     *lockpage.Page // in head, unless it is anonymous
	mu       sync.Mutex     // held while head is unmapped, and by Gone
	tag      atomic.Uint64  // 0 before Join
}

// Create makes an object that has its name, but is no block before Publish; if
// Leave comes before, the name goes. The memory is not reserved: there is no call
// for that.
func (s *System) Create(name string, size int64, opts object.Options) (object.Object, error) {
	if size > maxSize {
		return nil, object.ErrNoSpace
	}
	mode := uint32(opts.Perm)
	if !opts.Headerless {
		mode |= birthMark
	}
	fd, err := s.kernel.ShmOpen("/"+name, syscall.O_RDWR|syscall.O_CREAT|syscall.O_EXCL, mode)
	switch {
	case errors.Is(err, fs.ErrExist) && !s.isBlock(name):
		return nil, object.RetryError{Err: err}
	case err != nil:
		return nil, sysunix.SpaceError(err)
	}
	h := &handle{sys: s, fd: fd, name: name, writable: true, unborn: true}
	if err := h.prepare(size); err != nil {
		h.Leave()
		h.Close()
		return nil, sysunix.SpaceError(err)
	}
	return h, nil
}

// setSize sets the size of a new object. The error is a RetryError if another
// process has.
func (h *handle) setSize(size int64) error {
	err := h.sys.kernel.Truncate(h.fd, (size+objectPage-1)&^(objectPage-1))
	if err == nil {
		return nil
	}
	// Or the system does not accept it. A size of ours makes sure that no other
	// process will set one, and the name can go.
	if errors.Is(h.sys.kernel.Truncate(h.fd, objectPage), syscall.EINVAL) {
		return object.RetryError{Err: fs.ErrExist}
	}
	return fmt.Errorf("%w: %w", object.ErrNoSpace, err)
}

// prepare sets the size of a new object, and takes its mutex.
func (h *handle) prepare(size int64) error {
	failure := h.setSize(size)
	if err := h.load(); err != nil {
		return err
	}
	if h.page != nil && !h.page.Lock() {
		h.unborn = false // the process that has the mutex sees to the name
		return object.RetryError{Err: fs.ErrExist}
	}
	if failure != nil || h.page == nil {
		return failure
	}
	// The name can be gone by now: another process has taken this one for dead, or
	// a program has unlinked what it found empty, as CPython's SharedMemory does. The
	// former cannot happen from here on.
	h.page.SetID(newID())
	linked, err := h.Linked()
	if err == nil && !linked {
		return object.RetryError{Err: fs.ErrExist}
	}
	return err
}

func newID() [2]uint64 {
	var b [16]byte
	rand.Read(b[:])
	return [2]uint64{binary.NativeEndian.Uint64(b[:]), binary.NativeEndian.Uint64(b[8:])}
}

// load finds out what there is to know of an open object.
func (h *handle) load() error {
	var err error
	if h.stat, err = h.sys.kernel.Stat(h.fd); err != nil || h.head != nil || h.stat.Size == 0 || !h.ours() && !h.Sealed() {
		return err
	}
	var me uint64
	if h.ours() { // an anonymous block has no lock page to name this process in
		if me, err = h.sys.self(); err != nil {
			return err
		}
	}
	if h.head, err = h.sys.kernel.Map(h.fd, objectPage, h.writable); err != nil {
		return sysunix.SpaceError(err)
	}
	if h.ours() {
		h.page = lockpage.New(h.head[lockPageStart:], me, h.sys.gone, h.sys.kernel.Step)
	}
	return nil
}

// ours reports whether the object was made to be a block with a header and a name.
func (h *handle) ours() bool {
	return h.stat.Mode&birthMark != 0 && h.stat.Mode != anonymousMode && (h.stat.Size == 0 || h.stat.Size >= objectPage)
}

// Sealed implements [object.Object]: no object changes its size.
func (h *handle) Sealed() bool { return h.stat.Mode == anonymousMode && h.stat.Size >= objectPage }

// published reports whether an object of ours has become a block.
func (h *handle) published() bool { return h.page != nil && h.page.Ready() }

// lookUp opens whatever has the name.
func (s *System) lookUp(name string, write bool) (*handle, error) {
	flags := syscall.O_RDONLY
	if write {
		flags = syscall.O_RDWR
	}
	fd, err := s.kernel.ShmOpen("/"+name, flags, 0)
	if err != nil {
		return nil, err
	}
	h := &handle{sys: s, fd: fd, name: name, writable: write}
	if err := h.load(); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// Open implements [object.System]. An object that is to become a block does not
// exist before it is one.
func (s *System) Open(name string, write bool) (object.Object, error) {
	h, err := s.open(name, write)
	if err != nil {
		return nil, err
	}
	return h, nil
}

func (s *System) open(name string, write bool) (*handle, error) {
	h, err := s.lookUp(name, write)
	if err == nil && h.ours() && !h.published() {
		h.Close()
		return nil, syscall.ENOENT
	}
	return h, err
}

// isBlock reports whether the name is taken, by a block or by another program. Of
// an object that is to become a block it waits for the outcome, and removes the
// name of one that will not.
func (s *System) isBlock(name string) bool {
	h, err := s.lookUp(name, true)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer h.Close()
	waited := time.Duration(0)
	for pause := 100 * time.Microsecond; h.ours() && !h.published(); pause *= 2 {
		late := waited > s.Grace
		switch {
		case h.page == nil && late:
			// If this succeeds, its creator cannot set the size any more, and starts
			// over. To unlink alone would not do: by now it can be another object.
			s.kernel.Truncate(h.fd, objectPage)
			if h.load(); h.page == nil {
				return false
			}
		case h.page != nil && (late || h.page.Abandoned()):
			if h.page.Lock() {
				defer h.page.Unlock()
				if !h.published() {
					h.abort()
				}
			}
			return h.published()
		}
		if h.load() != nil {
			return true
		}
		time.Sleep(pause)
		waited += pause
	}
	return true
}

// abort removes the name of an object that is not a block. The mutex must be
// held, if there is one: without its name the object does not become one.
func (h *handle) abort() {
	if h.page != nil && h.page.ID() == [2]uint64{} {
		h.page.SetID(newID())
	}
	if linked, err := h.Linked(); err == nil && linked {
		h.Unlink()
	}
}

func (h *handle) Name() string   { return h.name }
func (h *handle) Writable() bool { return h.writable }

// Stat implements [object.Object]. The system keeps no times.
func (h *handle) Stat() (object.Stat, error) {
	return object.Stat{Size: h.stat.Size, Mode: fs.FileMode(h.stat.Mode).Perm(), Owner: int(h.stat.UID)}, nil
}

// Publish makes the object a block. Its name has been its own from Create on.
func (h *handle) Publish() error {
	if h.page != nil {
		copy(h.head[nameStart:lockPageStart], h.name)
		h.page.SetReady()
		h.page.Unlock()
	}
	h.unborn = false
	return nil
}

// Linked implements [object.Object]. The id in the lock page decides; without one
// all that the system tells of two objects is compared.
func (h *handle) Linked() (bool, error) {
	if h.name == "" {
		return false, nil
	}
	there, err := h.sys.lookUp(h.name, false)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return false, nil // permissions do not change, and this object could be opened
	case err != nil:
		return false, err
	}
	defer there.Close()
	if h.page != nil && there.page != nil {
		return h.page.ID() == there.page.ID(), nil
	}
	return !h.ours() && h.stat == there.stat, nil
}

func (h *handle) Unlink() error { return h.sys.kernel.ShmUnlink("/" + h.name) }

// UnlinkUnopened implements [object.System]: the creator of an object may unlink
// it, whatever its permissions.
func (s *System) UnlinkUnopened(name string) error { return s.kernel.ShmUnlink("/" + name) }

// List implements [object.System]: the system tells no process what names there are.
func (s *System) List(func(name string) bool) error {
	return fmt.Errorf("%w: shared memory objects cannot be listed on this system", errors.ErrUnsupported)
}

// Watch implements [object.System]: the system tells of no new names either.
func (s *System) Watch() (object.Watch, error) { return nil, errors.ErrUnsupported }

// Map implements [object.Object]. Reading a page maps it.
func (h *handle) Map(length, writable int, populate bool) ([]byte, error) {
	mem, err := h.sys.kernel.Map(h.fd, length, writable == length)
	if err == nil && 0 < writable && writable < length {
		if err = h.sys.kernel.Protect(mem[:writable]); err != nil {
			h.sys.kernel.Unmap(mem)
		}
	}
	if err != nil {
		return nil, sysunix.SpaceError(err)
	}
	for off := 0; populate && off+4 <= length; off += os.Getpagesize() {
		raw.Uint32(mem, off).Load()
	}
	return mem, nil
}

func (s *System) Unmap(mem []byte)        { s.kernel.Unmap(mem) }
func (s *System) Revoke(mem []byte) error { return sysunix.Revoke(mem) }
func (s *System) Revocable() int64        { return sysunix.Revocable() }

// ReadAt and WriteAt reach the header alone: the system has no calls that move
// bytes of an object past a mapping. What has no lock page has no header.
func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	if off > int64(len(h.head)) {
		return 0, errors.ErrUnsupported
	}
	return copy(p, h.head[off:]), nil
}

func (h *handle) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > lockPageStart || h.head == nil {
		return 0, errors.ErrUnsupported
	}
	return copy(h.head[off:], p), nil
}

// Lockable implements [object.Locks]: an object without lock page is never taken
// for a block with a name.
func (h *handle) Lockable() error {
	if h.page == nil {
		return fmt.Errorf("%w: not made to be locked", errors.ErrUnsupported)
	}
	return nil
}

func (h *handle) TryLock() error {
	if h.page != nil && h.writable && !h.page.Lock() {
		return object.ErrBusy
	}
	return nil
}

func (h *handle) Unlock() {
	if h.page != nil {
		h.page.Unlock()
	}
}

// Join implements [object.Locks]. Slots are taken under the mutex, which a creator
// has from before. A process that may only read cannot write to the lock page, so
// others do not see that it is attached.
func (h *handle) Join(writer bool, used func(tag uint64) bool) error {
	if h.page == nil || !h.writable {
		return nil
	}
	if !h.unborn {
		if !h.page.Lock() {
			return object.ErrBusy
		}
		defer h.page.Unlock()
	}
	token, err := h.sys.self()
	if err != nil {
		return err
	}
	slotUsed := func(slot int) bool { return used != nil && used(h.sys.tag(token, slot)) }
	if !h.page.Join(writer, slotUsed) {
		return fmt.Errorf("%w: %d attachments: %w", object.ErrNoSpace, h.page.Slots(), syscall.ENOLCK)
	}
	h.tag.Store(h.sys.tag(token, h.page.Slot()))
	return nil
}

// TryAlone implements [object.Locks]: whoever has the mutex keeps others from
// joining.
func (h *handle) TryAlone() error {
	if err := h.TryLock(); err != nil || h.page == nil || !h.writable {
		return err
	}
	if !h.page.Alone() {
		h.page.Unlock()
		return object.ErrBusy
	}
	return nil
}

// Count implements [object.Locks].
func (h *handle) Count() (int, error) {
	holders, err := h.Holders()
	return len(holders), err
}

// Holders implements [object.Locks]. Slots of processes that have ended count for
// nothing.
func (h *handle) Holders() (list []object.Holder, err error) {
	if h.page == nil {
		return nil, nil
	}
	for _, other := range h.page.Holders() {
		list = append(list, object.Holder{PID: h.sys.pid(other.Token), Writer: other.Writer, Here: true})
	}
	return list, nil
}

// SetWriter implements [object.Locks].
func (h *handle) SetWriter(writer bool) error {
	if h.page == nil || !h.writable || h.page.SetWriter(writer) {
		return nil
	}
	return fmt.Errorf("%w: it has lost its slot in the lock page", object.ErrCorrupt)
}

// Writers implements [object.Locks]: it sees none that may only read.
func (h *handle) Writers() (bool, error) { return h.page != nil && h.page.Writers(), nil }

func (h *handle) Tag() uint64 { return h.tag.Load() }

// Gone implements [object.Locks]: the slot in the tag says whose it is.
func (h *handle) Gone(tag uint64) bool {
	h.mu.Lock()
	if h.page == nil || h.head == nil {
		h.mu.Unlock()
		return false
	}
	slot := h.sys.slot(tag)
	token := h.page.Token(slot)
	h.mu.Unlock()
	return token == 0 || h.sys.tag(token, slot) != tag || h.sys.gone(token)
}

// mostThreads bounds how many goroutines of the process sleep at once. Each takes a
// thread, and a Go program may have 10,000.
const mostThreads = 1000

// Sleep implements [object.Sleeper]. Where the system cannot do that, and beyond
// mostThreads, it lets some time pass.
func (h *handle) Sleep(header []byte, off int, value uint32, most time.Duration, still func() bool) {
	sleeping := h.sys.sleeping.Add(1) <= mostThreads
	defer h.sys.sleeping.Add(-1)
	if !sleeping || h.sys.kernel.Sleep(raw.Uint32(header, off), value, most) != nil {
		h.Looks.Sleep(header, off, value, most, still)
	}
}

func (h *handle) Wake(header []byte, off int, all bool) {
	h.sys.kernel.Wake(raw.Uint32(header, off), all)
}

// Others implements [object.Locks]. It never finds a process deciding: that has a
// slot as well, or has found all of them free.
func (h *handle) Others() (object.Presence, error) {
	if h.page != nil && h.page.Others() {
		return object.Somebody, nil
	}
	return object.Nobody, nil
}

func (h *handle) Leave() {
	if h.unborn {
		h.abort()
		h.unborn = false
	}
	if h.page != nil {
		h.page.Leave()
		h.page.Unlock()
	}
}

func (h *handle) Close() {
	h.unmapHead()
	h.sys.kernel.Close(h.fd)
}

func (h *handle) unmapHead() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.head != nil {
		h.sys.kernel.Unmap(h.head)
		h.head = nil
	}
}

// CreateAnonymous makes an object that has no name and that no other process has
// open. The memory is not reserved.
func (s *System) CreateAnonymous(size int64, _ bool) (object.Object, error) {
	fd, err := s.CreateMemory(size)
	if err != nil {
		return nil, err
	}
	h := &handle{sys: s, fd: int(fd), writable: true}
	if err := h.load(); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

func (s *System) CreateMemory(size int64) (uintptr, error) {
	if size > maxSize {
		return 0, object.ErrNoSpace
	}
	fd, err := s.openNameless()
	if err != nil {
		return 0, sysunix.SpaceError(err)
	}
	h := &handle{sys: s, fd: fd}
	if err := h.setSize(size); err != nil {
		h.Close()
		return 0, err
	}
	return uintptr(fd), nil
}

// DuplicateMemory implements [object.System]: an object without a name cannot be
// opened anew, for less.
func (s *System) DuplicateMemory(fd uintptr, _ bool) (uintptr, error) {
	own, err := sysunix.Duplicate(fd)
	return uintptr(own), err
}

func (s *System) IsMemory(fd uintptr) bool {
	_, err := s.kernel.ObjectSize(fd)
	return err == nil
}

// openNameless makes an object that has lost its name again, and has no size. A
// process that is killed in between leaves a name without memory. All processes of
// a user take the same name for this moment, so that no more than one can be left,
// and the next caller removes it: if not a dead process's, then one whose creator
// does not need it any longer. It has no slash in front, as the names of blocks
// have, and no process can open what has it (except root's). If another user has
// taken it, the name is a random one.
func (s *System) openNameless() (fd int, err error) {
	name := fmt.Sprintf("shmkit-anonymous-%d", os.Geteuid())
	for range 1000 { // another process was faster, each time
		fd, err = s.kernel.ShmOpen(name, syscall.O_RDWR|syscall.O_CREAT|syscall.O_EXCL, anonymousMode)
		unlinkErr := s.kernel.ShmUnlink(name)
		if !errors.Is(err, fs.ErrExist) {
			break
		}
		if errors.Is(unlinkErr, fs.ErrPermission) {
			name = blockname.Unique()
		}
	}
	return fd, err
}

// FromFD implements [object.System].
func (s *System) FromFD(fd uintptr) (object.Object, error) {
	if _, err := s.kernel.ObjectSize(fd); err != nil {
		return nil, fmt.Errorf("%w: %w", object.ErrNotSegment, err)
	}
	writable, err := sysunix.Writable(fd)
	if err != nil {
		return nil, err
	}
	h := &handle{sys: s, writable: writable}
	if h.fd, err = sysunix.Duplicate(fd); err != nil {
		return nil, err
	}
	if err = h.load(); err == nil && h.ours() && !h.published() {
		err = syscall.ENOENT
	}
	if err != nil {
		h.Close()
		return nil, err
	}
	h.name = h.findName()
	return h, nil
}

// Descriptor implements [object.Object]. It is a duplicate, which has nothing that
// could be shared: no offset and no locks. The system has no means to open an
// object anew, for reading only, but its name.
func (h *handle) Descriptor(readOnly bool) (uintptr, error) {
	if readOnly && h.writable {
		own := h.reopen(h.name)
		if own == nil {
			return 0, fmt.Errorf("%w: a file for reading only of a block without its name", errors.ErrUnsupported)
		}
		own.unmapHead()
		return uintptr(own.fd), nil
	}
	fd, err := sysunix.Duplicate(uintptr(h.fd))
	return uintptr(fd), err
}

// reopen opens the object anew, for reading only, or returns nil if name does not
// lead to it. It must be open for writing.
func (h *handle) reopen(name string) *handle {
	there, err := h.sys.open(name, false)
	if err != nil {
		return nil
	}
	if h.page == nil || there.page == nil || !h.page.Same(there.page) {
		there.Close()
		return nil
	}
	return there
}

// findName returns the name that leads to the object, "" if there is none, or if
// that cannot be verified: the name is in the header, where a peer can have written
// that of another block.
func (h *handle) findName() string {
	if h.page == nil || !h.writable {
		return ""
	}
	name, _, _ := strings.Cut(string(h.head[nameStart:lockPageStart]), "\x00")
	if !blockname.Valid(name, h.sys.Limits().MaxName) {
		return ""
	}
	there := h.reopen(name)
	if there == nil {
		return ""
	}
	there.Close()
	return name
}

// newToken returns what stands for a process in a lock page: its id and the time it
// began. The id alone would be another process's before long.
func (s *System) newToken(pid int, start uint64) uint64 {
	bits := tokenBits - s.kernel.PIDBits()
	return uint64(pid)<<bits | start&(1<<bits-1)
}

const (
	tokenBits = 63
	tagBits   = 60
	slotBits  = 11 // there are 1,472
)

// tag returns the tag of the attachment of the process with the token that has the slot:
// the process id, the slot, and as many bits of the start time as there is room for. The
// slot has them all.
func (s *System) tag(token uint64, slot int) uint64 {
	bits := tagBits - slotBits - s.kernel.PIDBits()
	return (uint64(s.pid(token))<<slotBits|uint64(slot))<<bits | token&(1<<bits-1)
}

// slot returns the slot in a tag.
func (s *System) slot(tag uint64) int {
	return int(tag >> (tagBits - slotBits - s.kernel.PIDBits()) & (1<<slotBits - 1))
}

// pid returns the process id in a token, or another number that is none if that was
// never a token.
func (s *System) pid(token uint64) int { return int(token >> (tokenBits - s.kernel.PIDBits())) }

// gone reports whether the process with the token has ended, killed or not. It
// says no where the system does not tell.
func (s *System) gone(token uint64) bool {
	if me, _ := s.self(); token == me {
		return false
	}
	pid := s.pid(token)
	start, err := s.kernel.StartTime(pid)
	return errors.Is(err, syscall.ESRCH) || err == nil && s.newToken(pid, start) != token
}
