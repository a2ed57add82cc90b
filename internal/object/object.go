// Package object is the contract between package shm and an operating system:
// shared memory objects with names, and locks on them that the system releases
// when the process that holds them ends.
//
// Package shm builds blocks on it and is the same on every system. An
// implementation knows no more of a block than that its first [HeaderUsed] bytes
// are a header; what follows, up to Limits.HeaderLength, is the implementation's own.
// It calls nothing of package shm. [objecttest] has the tests that every
// implementation must pass, and an implementation in ordinary memory: to add a
// system, pass them and set [Current].
//
// # The life of an object
//
// [System.Create] makes an object that no other process can find, and Publish
// gives it its name. Open never returns an object that Publish has not finished.
// An object that is closed before that, by Close or by the end of the process,
// leaves nothing behind that keeps its name from others.
//
// # Locks
//
// An object is published once and attached to many times; each attachment is an
// [Object] of its own, in the same process or in others. The locks are between
// these: a mutex, and a set of those that have joined, which is what it means to
// be attached. When a process ends, however it ends, the system releases all
// locks of its Objects, each at once.
package object

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// Current is the System that package shm uses. It is set while packages are
// initialized, and does not change after that.
var Current System = Unsupported{}

// SetDefault makes s the Current System, unless a test has set another.
func SetDefault(s System) {
	if Current == System(Unsupported{}) {
		Current = s
	}
}

// HeaderUsed is how many bytes at the front of an object package shm uses for the
// header of a block. Those from SleepTable on are for the implementation of Sleeper.
const (
	HeaderUsed = 768
	SleepTable = 512
)

// Errors that io/fs has no name for. Package shm exports them and says what they
// mean to its callers.
var (
	ErrBusy       = errors.New("block is locked by another process")
	ErrCorrupt    = errors.New("damaged block header")
	ErrFault      = errors.New("memory fault")
	ErrNoSpace    = errors.New("no space for shared memory")
	ErrNotSegment = errors.New("not a block with a shm header")
)

// A RetryError is a condition that passes by itself. The caller closes the
// object and starts again from the name.
type RetryError struct{ Err error }

func (e RetryError) Error() string { return e.Err.Error() }
func (e RetryError) Unwrap() error { return e.Err }

// A TooLargeError is ErrNoSpace for a size that does not fit whatever memory other
// processes release.
type TooLargeError struct{ Err error }

func (e TooLargeError) Error() string { return e.Err.Error() }
func (e TooLargeError) Unwrap() error { return e.Err }

// A System makes and finds objects. Its methods are safe for concurrent use.
//
// Errors match, by [errors.Is], fs.ErrExist, fs.ErrNotExist, fs.ErrPermission,
// errors.ErrUnsupported and the errors of this package, or are the system's own.
type System interface {
	Limits() Limits

	// Create returns a new object of at least size bytes, all zero, that Publish
	// will give its name. It is open for writing. Unless sparse, its memory is
	// reserved where the system can do that. The error is fs.ErrExist where the
	// system knows already that the name is taken.
	Create(name string, size int64, opts Options) (Object, error)

	// CreateAnonymous returns a new object of at least size bytes, all zero, that
	// never has a name and whose size no process can change.
	CreateAnonymous(size int64, sparse bool) (Object, error)

	// CreateMemory is CreateAnonymous for another process: it returns a descriptor
	// of the object, open for writing, that FromFD takes there. Its memory is not
	// reserved; see Object.Reserve.
	CreateMemory(size int64) (fd uintptr, err error)

	// DuplicateMemory returns another descriptor of an object of CreateMemory, for
	// reading only if so asked and if Limits.Restricts. It asks nothing about the
	// object that a process which has it open could delay.
	DuplicateMemory(fd uintptr, readOnly bool) (uintptr, error)

	// IsMemory reports whether fd, which can be anything as in FromFD, is open on
	// memory.
	IsMemory(fd uintptr) bool

	// Open returns the published object called name, whatever program made it. The
	// error is fs.ErrNotExist or a RetryError before Publish, fs.ErrPermission if the process may not read it, or may not
	// write to it if write is set, and ErrNotSegment for what is no object at all.
	Open(name string, write bool) (Object, error)

	// FromFD returns an Object of its own on the object that fd is open on, for
	// writing if fd is. fd can be anything, from anybody: FromFD does nothing with
	// it that could wait or have an effect, and returns ErrNotSegment for what is
	// not an object.
	FromFD(fd uintptr) (Object, error)

	// UnlinkUnopened removes the name of an object that the process may not open,
	// if it may do that.
	UnlinkUnopened(name string) error

	// List calls f with the name of each published object, in no order, until f
	// returns false. Names that are no names of blocks may be among them.
	List(f func(name string) bool) error

	// Unmap ends a mapping that Map returned.
	Unmap(mem []byte)

	// Revoke gives back the memory of a mapping but keeps its addresses, where
	// every access then faults, until Unmap.
	Revoke(mem []byte) error

	// Revocable returns how many bytes of address space Revoke may keep in all, 0
	// where there is no Revoke.
	Revocable() int64

	// Watch returns what tells that an object may have been published. The error is
	// errors.ErrUnsupported where the system does not tell.
	Watch() (Watch, error)
}

// A Watch tells of new objects. It misses none, and may tell of what is none.
type Watch interface {
	// Next waits until an object may have been published since Watch or the last
	// Next. It returns ctx.Err() if ctx is done before.
	Next(ctx context.Context) error
	Close()
}

// Limits are what differs between systems and never changes.
type Limits struct {
	MaxName      int  // bytes of the longest name
	HeaderLength int  // bytes that the header of a new block takes: the page size, or more
	NamesStay    bool // a name lasts as long as its object: no stale block is ever left behind
	Files        bool // ReadAt, WriteAt and ReceiveFrom reach all of an object
	Restricts    bool // memory can be handed out for reading only
}

// Options are for Create.
type Options struct {
	Perm       fs.FileMode // permission bits, whatever the umask
	Sparse     bool        // memory is not reserved
	Headerless bool        // the object is not to be a block with a header
	Persistent bool        // it is to outlive its attachments
}

// An Object is one attachment's handle on a shared memory object. Its methods
// are not safe for concurrent use, except those that its documentation names.
type Object interface {
	Locks
	Sleeper

	// Name returns the name that the object was created or opened by, or that the
	// system found it to have in FromFD. It is empty if there is none.
	Name() string

	// Writable reports whether the object is open for writing.
	Writable() bool

	// Sealed reports whether the object is anonymous: it has no name, and no
	// process can change its size.
	Sealed() bool

	// Stat returns ErrNotSegment for what is not an object: a file that a name or
	// a descriptor leads to can be a device.
	Stat() (Stat, error)

	// Publish gives the object its name. The error is fs.ErrExist if it is taken.
	Publish() error

	// Linked reports whether the name leads to this object, now.
	Linked() (bool, error)

	// Unlink removes the name, which must lead to this object. The caller holds
	// the mutex, so that no process that uses the contract changes that.
	Unlink() error

	// Descriptor returns a descriptor of the object that FromFD takes, here or in
	// another process, open for reading only if so asked or if the object is. It is
	// the caller's to close.
	Descriptor(readOnly bool) (uintptr, error)

	// Map maps the first length bytes, of which the first writable ones (a multiple
	// of the page size, or all) can be written to. With populate all pages are
	// mapped at once, as far as memory goes. It is called once. The mapping is
	// independent of the Object: it ends by System.Unmap.
	Map(length, writable int, populate bool) ([]byte, error)

	// ReadAt and WriteAt move bytes past the mapping: where memory is missing they
	// return an error, or fewer bytes, and raise no fault. They reach the header on
	// every system, and all bytes if Limits.Files is set. They are safe for
	// concurrent use.
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)

	// ReceiveFrom moves at most n bytes from the regular file that fd is open on to
	// offset off. It returns 0 at the end of the file and where that cannot be done
	// this way, and an error if fd is no regular file.
	ReceiveFrom(fd uintptr, off int64, n int) (int, error)

	// Reserve allocates the first size bytes of an anonymous object, where the system
	// can do that, at the expense of this process. It is called at most once.
	Reserve(size int64) error

	// Punch gives back the memory of n bytes, which read as zero from then on.
	Punch(off, n int64) error

	// Close closes the Object. It does not end the mapping. The caller has called
	// Leave: until a child process that another goroutine is starting has begun its
	// own program, it has a copy of the descriptor and would go on holding locks.
	Close()
}

// Locks are what the system vouches for: who is attached to an object.
type Locks interface {
	// Lockable returns errors.ErrUnsupported if the locks of this object are not
	// to be relied on. It comes before all others, which are called for blocks with
	// a header alone, and never for anonymous ones.
	Lockable() error

	// Join adds the Object to those that have joined, until Leave: to the writers
	// or to the others. The error is ErrBusy while another Object is alone. On some
	// systems the others do not see an Object that is not writable. An Object has no
	// tag that is used; a nil used stands for none.
	Join(writer bool, used func(tag uint64) bool) error

	// TryAlone makes the Object be alone, until Leave: no other Object joins or
	// locks. The error is ErrBusy if another Object has joined, is alone, or has the
	// lock of TryLock. An Object that is not writable cannot be alone.
	TryAlone() error

	// TryLock keeps other Objects from being alone and from TryLock, until Unlock,
	// without waiting. The error is ErrBusy if another Object does so, or is alone.
	// An Object that is not writable cannot do it.
	TryLock() error

	// Unlock ends what TryLock began. The goroutine that called TryLock calls it.
	Unlock()

	// Others returns whether other Objects have joined. It takes no lock that
	// another Object would see.
	Others() (Presence, error)

	// Count returns how many other Objects have joined. It is exact if none joins or
	// leaves meanwhile.
	Count() (int, error)

	// Holders returns the other Objects that have joined, in no order. The error is
	// errors.ErrUnsupported if the system does not know who they are.
	Holders() ([]Holder, error)

	// Leave releases everything. It may be called at any time and more than once. An
	// object that is not published loses its claim to its name.
	Leave()

	// SetWriter moves the Object, which has joined, to the writers or to the others.
	SetWriter(writer bool) error

	// Writers reports whether another Object has joined the writers. On some systems
	// Objects that are not writable are among them.
	Writers() (bool, error)

	// Tag returns a number below 1<<60 by which other processes can ask whether this
	// Object, which has joined the writers, is still there. It is not 0, and no other
	// Object that has joined has it.
	Tag() uint64

	// Gone reports whether the Object with that tag, of this or of another process, is
	// no writer any more. It says no out of doubt, and yes of a tag that no Object has.
	// It is safe for concurrent use.
	Gone(tag uint64) bool
}

// A Sleeper lets processes sleep on a word in the header of an object, until another
// process that has mapped it wakes them. Its methods are safe for concurrent use.
// Header is the first HeaderUsed bytes of the mapping, at off are the four of the word.
type Sleeper interface {
	// Sleep returns at once if the word is not equal to value. Otherwise it returns after
	// a Wake for the word, or after most, or earlier. The caller looks at what it waits for
	// before and after. Where many sleep, Sleep may call still when most has passed, from
	// any goroutine, and go on if that returns true; not for ever. A nil still returns false.
	Sleep(header []byte, off int, value uint32, most time.Duration, still func() bool)

	// Wake wakes one process, or all, that sleep on the word. The caller has changed the
	// word before.
	Wake(header []byte, off int, all bool)

	// Yield lets another process run. It may return at once.
	Yield()
}

// Presence is what Others can see.
type Presence int

const (
	Nobody   Presence = iota
	Somebody          // at least one other Object has joined
	Ending            // as Somebody, but all their processes have ended: the system is releasing their locks
	Deciding          // another Object is alone
)

// A Holder is another Object that has joined. What it says of the process is the
// process's own claim; that it has joined is the system's.
type Holder struct {
	PID    int
	Writer bool
	Here   bool // PID means this process's namespace of process ids
	Gone   bool // the process has ended, but a child of it still has the lock
}

// Stat is what the system knows of an object.
type Stat struct {
	Size    int64       // bytes, at least those asked for: some systems round up
	Mode    fs.FileMode // permission bits
	ModTime time.Time   // zero where the system keeps none
	Owner   int         // user id, -1 where there is no such thing
}

// A MemorySource returns a file of memory as System.CreateMemory makes it, for the
// caller to close. Package manager passes one to package shm, for Anonymous to build
// a block in it, by an option that has a method MemorySource.
type MemorySource func(size int64) (*os.File, error)

// WithFD returns what f does of the descriptor of file, which stays open meanwhile.
// If it is closed already, the error is [fs.ErrClosed].
func WithFD[T any](file syscall.Conn, f func(fd uintptr) (T, error)) (result T, err error) {
	conn, err := file.SyscallConn()
	if err != nil {
		return result, err
	}
	if controlErr := conn.Control(func(fd uintptr) { result, err = f(fd) }); controlErr != nil {
		return result, fs.ErrClosed
	}
	return result, err
}

// NoFiles is embedded by an Object that has no calls to move bytes, and to reserve and
// release memory, past its mapping.
type NoFiles struct{}

func (NoFiles) ReceiveFrom(uintptr, int64, int) (int, error) { return 0, errors.ErrUnsupported }
func (NoFiles) Reserve(int64) error                          { return nil }
func (NoFiles) Punch(off, n int64) error                     { return errors.ErrUnsupported }

// Unsupported is the System where there is none.
type Unsupported struct{}

func (Unsupported) Limits() Limits                                 { return Limits{MaxName: 255, HeaderLength: os.Getpagesize()} }
func (Unsupported) Create(string, int64, Options) (Object, error)  { return nil, errors.ErrUnsupported }
func (Unsupported) CreateAnonymous(int64, bool) (Object, error)    { return nil, errors.ErrUnsupported }
func (Unsupported) CreateMemory(int64) (uintptr, error)            { return 0, errors.ErrUnsupported }
func (Unsupported) DuplicateMemory(uintptr, bool) (uintptr, error) { return 0, errors.ErrUnsupported }
func (Unsupported) IsMemory(uintptr) bool                          { return false }
func (Unsupported) Open(string, bool) (Object, error)              { return nil, errors.ErrUnsupported }
func (Unsupported) FromFD(uintptr) (Object, error)                 { return nil, errors.ErrUnsupported }
func (Unsupported) UnlinkUnopened(string) error                    { return errors.ErrUnsupported }
func (Unsupported) List(func(string) bool) error                   { return errors.ErrUnsupported }
func (Unsupported) Unmap([]byte)                                   {}
func (Unsupported) Revoke([]byte) error                            { return errors.ErrUnsupported }
func (Unsupported) Revocable() int64                               { return 0 }
func (Unsupported) Watch() (Watch, error)                          { return nil, errors.ErrUnsupported }

// Looks is a Watch and a Sleeper that only lets some time pass. It is embedded by an Object whose system cannot wake a process: it sleeps for a
// short time and looks again.
type Looks struct{}

func (Looks) Wake([]byte, int, bool) {}
func (Looks) Yield()                 {}
func (Looks) Close()                 {}

// Next implements [Watch].
func (Looks) Next(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(10 * time.Millisecond):
		return nil
	}
}

// Sleep implements [Sleeper].
func (Looks) Sleep(header []byte, off int, value uint32, most time.Duration, still func() bool) {
	time.Sleep(min(most, 2*time.Millisecond))
}
