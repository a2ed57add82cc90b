package shm

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/shmkit/shm/internal/blockname"
	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/section"
)

// Windows keeps blocks as sections ("file mappings") that the page file backs,
// with names in the namespace of the session, where CPython's SharedMemory has
// its own. The kernel counts the handles on a section; with the last one section
// and name are gone. Nothing can take a name away before.
//
// So a section that was unlinked keeps its name, and is marked. The next block of
// the name is another generation: its section has a suffix to its name. Only the
// lowest has none, and only a block with a header can be another. A mark also
// publishes a block: a section has its name before anything is in it.
//
// Beside the section there are, of the same lifetime, a mutex for each name and
// two events for each section, which are never signalled: an attachment has joined
// while it has a handle on the first, and is a writer while it has one on the second.
// The kernel knows how many there are. A writer has an event of its own as well, whose
// name is its tag.
const (
	headerLength = 4 << 10 // also where Windows gives memory out by 64 KiB

	// The mark is at this offset of the header.
	markOffset = int64(headerLength - markLength)
	markLength = 32

	// The marks are long enough for no block without header to have one there by
	// chance, where it has its own data.
	publishedMark = "shmkit: this block has its name\n"
	unlinkedMark  = "shmkit: this block has no name\x1a\n"

	// generations bounds how many blocks of one name can be in use at once; all
	// but one are unlinked.
	generations = 8

	// maxSize is all the addresses that a process can have, on any version.
	maxSize = 1 << 47

	mutexWait = 20 // milliseconds
)

// Names of more than blocks have an exclamation mark, which no block's can have.
func generationName(name string, generation int) string {
	if generation == 0 {
		return name
	}
	return name + "!" + strconv.Itoa(generation)
}

func lifeName(section string) string    { return section + "!life" }
func writersName(section string) string { return section + "!writers" }

func tagName(section string, tag uint64) string {
	return section + "!t" + strconv.FormatUint(tag, 36)
}

func init() { object.SetDefault(sections{}) }

// sections implements [object.System].
type sections struct{}

func (sections) Limits() object.Limits {
	return object.Limits{
		MaxName:      240, // CreateMutex takes MAX_PATH, 260, and there are suffixes
		HeaderLength: headerLength,
		NamesStay:    true,
		Restricts:    true,
	}
}

// sectionObject implements [object.Object]. It is a section with a view of all of
// it, which lasts as long as the handle unless Map has passed it on.
type sectionObject struct {
	object.Looks
	object.NoFiles
	name     string // of the block
	section  string // name of the section, "" for an anonymous block
	handle   windows.Handle
	view     []byte
	writable bool
	managed  bool // it has a header, and room for a mark in it
	passedOn bool // the view belongs to the caller of Map

	mutex  windows.Handle // 0 until it is asked for
	locked bool           // this thread has the mutex
	life   windows.Handle // event that those who have joined have a handle on

	writers windows.Handle // event that the writers have a handle on
	own     windows.Handle // event of tag
	tag     atomic.Uint64  // of the last time that it was a writer
	writes  atomic.Bool    // it has writers and own

	sleeper
	findName sync.Once
	ownName  string // of the section of an anonymous block
}

func (sections) Create(name string, size int64, opts object.Options) (object.Object, error) {
	if opts.Persistent {
		return nil, fmt.Errorf("%w: the system ends a block with its last handle", errors.ErrUnsupported)
	}
	if size > maxSize {
		return nil, object.TooLargeError{Err: object.ErrNoSpace}
	}
	// The mutex keeps two processes from taking different generations.
	o := &sectionObject{name: name, section: name, writable: true, managed: !opts.Headerless}
	err := o.TryLock()
	if err == nil {
		err = o.create(size)
		o.Unlock()
	}
	if err != nil {
		o.Leave()
		o.Close()
		if errors.Is(err, object.ErrBusy) {
			err = object.RetryError{Err: err}
		}
		return nil, err
	}
	return o, nil
}

// create makes the section, and joins before there is one.
func (o *sectionObject) create(size int64) error {
	free, err := o.freeGeneration()
	if err != nil {
		return err
	}
	o.section = generationName(o.name, free)
	if o.managed {
		if err := o.join(); err != nil {
			return err
		}
	}
	o.handle, err = section.Create(o.section, size)
	if errors.Is(err, windows.ERROR_INVALID_HANDLE) { // something else has the name
		err = fmt.Errorf("%w: %w", fs.ErrExist, err)
	}
	if err != nil {
		return spaceErr(err)
	}
	return o.mapAll()
}

// freeGeneration returns the lowest one that is free, if the name is.
func (o *sectionObject) freeGeneration() (int, error) {
	free := -1
	for g := range generations {
		there, err := openSection(o.name, g, false)
		switch {
		case err == nil:
			linked, err := there.Linked()
			there.Close()
			if linked || err != nil {
				return 0, fs.ErrExist
			}
		case !errors.Is(err, fs.ErrNotExist):
			return 0, fs.ErrExist // denied, or no section
		case free < 0:
			free = g
		}
	}
	if free < 0 || free > 0 && !o.managed {
		return 0, fmt.Errorf("%w: unlinked, and still in use", fs.ErrExist)
	}
	return free, nil
}

func (sections) Open(name string, write bool) (object.Object, error) {
	for g := range generations {
		o, err := openSection(name, g, write)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		linked, err := o.Linked()
		if err == nil && linked {
			if err = o.published(); err == nil {
				return o, nil
			}
		}
		o.Close()
		if err != nil {
			return nil, err
		}
	}
	return nil, windows.ERROR_FILE_NOT_FOUND
}

// published returns a RetryError for a block whose creator has not come to Publish:
// without a mark, but with a process that has joined. What has neither is another
// program's section.
func (o *sectionObject) published() error {
	if o.marked() {
		return nil
	}
	life, err := windows.OpenEvent(windows.SYNCHRONIZE, false, utf16(lifeName(o.section)))
	closeHandle(&life)
	if errors.Is(err, fs.ErrNotExist) || o.marked() {
		return nil
	}
	return object.RetryError{Err: object.ErrNotSegment}
}

// marked reports whether Publish has marked the section, or Unlink after it.
func (o *sectionObject) marked() bool {
	mark := o.mark()
	return mark == publishedMark || mark == unlinkedMark
}

// mark returns the mark of the section, or what is in its place.
func (o *sectionObject) mark() string {
	var mark [markLength]byte
	n, _ := o.ReadAt(mark[:], markOffset)
	return string(mark[:n])
}

func (o *sectionObject) setMark(mark string) error {
	n, err := o.WriteAt([]byte(mark), markOffset)
	if err == nil && n < len(mark) {
		err = object.ErrFault
	}
	return err
}

func openSection(name string, generation int, write bool) (*sectionObject, error) {
	o := &sectionObject{name: name, section: generationName(name, generation), writable: write}
	var err error
	o.handle, err = section.Open(o.section, write)
	if errors.Is(err, windows.ERROR_INVALID_HANDLE) {
		err = fmt.Errorf("%w: no section: %w", object.ErrNotSegment, err)
	}
	if err != nil {
		return nil, err
	}
	// To map a file would be to read it, from wherever it is.
	ofFile, err := section.OfFile(o.handle)
	if err == nil && ofFile {
		err = fmt.Errorf("%w: a section of a file", object.ErrNotSegment)
	}
	if err == nil {
		err = o.mapAll()
	}
	if err != nil {
		o.Close()
		return nil, err
	}
	return o, nil
}

// mapAll makes the view. The system knows the size of a section by pages only.
func (o *sectionObject) mapAll() error {
	access := uint32(windows.FILE_MAP_READ)
	if o.writable {
		access |= windows.FILE_MAP_WRITE
	}
	addr, err := windows.MapViewOfFile(o.handle, access, 0, 0, 0)
	if err != nil {
		return spaceErr(err)
	}
	var info windows.MemoryBasicInformation
	if err := windows.VirtualQuery(addr, &info, unsafe.Sizeof(info)); err != nil {
		windows.UnmapViewOfFile(addr)
		return err
	}
	o.view = unsafe.Slice(*(**byte)(unsafe.Pointer(&addr)), info.RegionSize)
	return nil
}

func (o *sectionObject) Name() string   { return o.name }
func (o *sectionObject) Writable() bool { return o.writable }

// Sealed implements [object.Object]: no section of the page file changes its size.
func (o *sectionObject) Sealed() bool { return o.section == "" }

// Stat implements [object.Object]. The permissions are those of section.Security.
func (o *sectionObject) Stat() (object.Stat, error) {
	return object.Stat{Size: int64(len(o.view)), Mode: 0o600, Owner: -1}, nil
}

func (o *sectionObject) Publish() error {
	if !o.managed {
		return nil
	}
	return o.setMark(publishedMark)
}

// Linked implements [object.Object]. A block without header has its name as long
// as there is a handle on it.
func (o *sectionObject) Linked() (bool, error) { return o.name != "" && o.mark() != unlinkedMark, nil }

// Unlink implements [object.Object]. A block without header has no room for a mark.
func (o *sectionObject) Unlink() error {
	if !o.managed {
		return fmt.Errorf("%w: a Headerless block has its name until the last handle is closed", errors.ErrUnsupported)
	}
	return o.setMark(unlinkedMark)
}

// CreateAnonymous implements [object.System]: the memory of a section is always
// reserved.
func (sections) CreateAnonymous(size int64, _ bool) (object.Object, error) {
	h, err := sections{}.CreateMemory(size)
	if err != nil {
		return nil, err
	}
	return newSection(windows.Handle(h), true)
}

func (sections) CreateMemory(size int64) (uintptr, error) {
	if size > maxSize {
		return 0, object.TooLargeError{Err: object.ErrNoSpace}
	}
	h, err := section.CreateAnonymous(size)
	return uintptr(h), spaceErr(err)
}

func (sections) DuplicateMemory(fd uintptr, readOnly bool) (uintptr, error) {
	own, err := section.Duplicate(windows.Handle(fd), readOnly)
	return uintptr(own), err
}

func (sections) IsMemory(fd uintptr) bool {
	_, err := section.Size(windows.Handle(fd))
	return err == nil
}

// newSection returns an object that owns h: that of an anonymous block, unless the
// caller names it.
func newSection(h windows.Handle, write bool) (*sectionObject, error) {
	o := &sectionObject{handle: h, writable: write}
	if err := o.mapAll(); err != nil {
		o.Close()
		return nil, err
	}
	return o, nil
}

// FromFD implements [object.System]: only a section of the page file is an object.
// The kernel says what its name is, which never changes, and so what its locks are.
func (sections) FromFD(fd uintptr) (object.Object, error) {
	h := windows.Handle(fd)
	if _, err := section.Size(h); err != nil {
		return nil, fmt.Errorf("%w: %w", object.ErrNotSegment, err)
	}
	access, _, err := section.Basic(h)
	if err != nil {
		return nil, err
	}
	if access&windows.FILE_MAP_READ == 0 {
		return nil, fmt.Errorf("%w: handle is not for reading", fs.ErrPermission)
	}
	name, err := section.Name(h)
	if err != nil {
		return nil, err
	}
	own, err := section.Duplicate(h, false)
	if err != nil {
		return nil, err
	}
	o, err := newSection(own, access&windows.FILE_MAP_WRITE != 0)
	if err != nil {
		return nil, err
	}
	blockName, _, _ := strings.Cut(name, "!")
	if blockName == "" {
		return o, nil
	}
	o.name, o.section = blockName, name
	if err := o.published(); err != nil {
		o.Close()
		return nil, err
	}
	if linked, _ := o.Linked(); !linked || !blockname.Valid(blockName, 240) {
		o.name = ""
	}
	return o, nil
}

// Descriptor implements [object.Object].
func (o *sectionObject) Descriptor(readOnly bool) (uintptr, error) {
	h, err := section.Duplicate(o.handle, readOnly || !o.writable)
	return uintptr(h), err
}

// UnlinkUnopened implements [object.System]: to unlink is to write.
func (sections) UnlinkUnopened(string) error { return windows.ERROR_ACCESS_DENIED }

// Map implements [object.Object]: it passes the view on.
func (o *sectionObject) Map(length, writable int, populate bool) ([]byte, error) {
	if o.writable && writable < length {
		var old uint32
		rest := o.view[writable:]
		err := windows.VirtualProtect(uintptr(unsafe.Pointer(&rest[0])), uintptr(len(rest)), windows.PAGE_READONLY, &old)
		if err != nil {
			return nil, spaceErr(err)
		}
	}
	if populate {
		var b [32 << 10]byte
		for off := 0; off < length; off += len(b) {
			o.ReadAt(b[:], int64(off))
		}
	}
	o.passedOn = true
	return o.view[:length:length], nil
}

func (sections) Unmap(mem []byte) {
	windows.UnmapViewOfFile(uintptr(unsafe.Pointer(unsafe.SliceData(mem))))
}

// Revoke implements [object.System]: the addresses of a view go with it.
func (sections) Revoke([]byte) error { return errors.ErrUnsupported }
func (sections) Revocable() int64    { return 0 }

func (sections) Watch() (object.Watch, error) { return nil, errors.ErrUnsupported }

// ReadAt and WriteAt implement [object.Object]. The kernel moves the bytes, as for a
// debugger: they end where memory would fault.
func (o *sectionObject) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(o.view)) {
		return 0, nil
	}
	from := o.view[off:]
	var n uintptr // an error can leave it as it is
	err := windows.ReadProcessMemory(windows.CurrentProcess(), uintptr(unsafe.Pointer(&from[0])), &p[0], uintptr(min(len(p), len(from))), &n)
	return moved(n, err)
}

func (o *sectionObject) WriteAt(p []byte, off int64) (int, error) {
	if off >= int64(len(o.view)) {
		return 0, object.ErrFault
	}
	to := o.view[off:]
	var n uintptr // as above
	err := windows.WriteProcessMemory(windows.CurrentProcess(), uintptr(unsafe.Pointer(&to[0])), &p[0], uintptr(min(len(p), len(to))), &n)
	return moved(n, err)
}

func moved(n uintptr, err error) (int, error) {
	if errors.Is(err, windows.ERROR_PARTIAL_COPY) || errors.Is(err, windows.ERROR_NOACCESS) {
		err = nil
	}
	return int(n), err
}

func (o *sectionObject) Lockable() error {
	o.managed = true
	return nil
}

// TryLock implements [object.Locks]. The mutex belongs to the thread, so the
// goroutine that holds it stays on its thread. If a process ends with it, the next
// one gets it all the same. It waits for a little, because those who wait get it in
// turn.
func (o *sectionObject) TryLock() error {
	if o.mutex == 0 {
		security, err := section.Security()
		if err != nil {
			return err
		}
		name, _, _ := strings.Cut(o.section, "!")
		h, err := windows.CreateMutex(security, false, utf16(name+"!mutex"))
		if h == 0 {
			return spaceErr(err)
		}
		o.mutex = h
	}
	runtime.LockOSThread()
	switch event, err := windows.WaitForSingleObject(o.mutex, mutexWait); {
	case err == nil && (event == windows.WAIT_OBJECT_0 || event == windows.WAIT_ABANDONED):
		o.locked = true
		return nil
	case err != nil:
		runtime.UnlockOSThread()
		return err
	}
	runtime.UnlockOSThread()
	return object.ErrBusy
}

func (o *sectionObject) Unlock() {
	if o.locked {
		o.locked = false
		windows.ReleaseMutex(o.mutex)
		runtime.UnlockOSThread()
	}
}

// Join implements [object.Locks]: under the mutex, so that no process counts
// handles meanwhile.
func (o *sectionObject) Join(writer bool, used func(tag uint64) bool) error {
	o.sleepAgain()
	err := o.joinLocked()
	if err == nil && writer {
		err = o.beWriter(used)
	}
	return err
}

func (o *sectionObject) joinLocked() error {
	if o.life != 0 {
		return nil // since Create
	}
	if err := o.TryLock(); err != nil {
		if errors.Is(err, fs.ErrPermission) { // a process that may only read may not lock
			return o.join()
		}
		return err
	}
	defer o.Unlock()
	return o.join()
}

func (o *sectionObject) join() error {
	if o.life != 0 {
		return nil
	}
	var err error
	o.life, _, err = newEvent(lifeName(o.section))
	return err
}

// newEvent creates the event called name, or opens it.
func newEvent(name string) (event windows.Handle, created bool, err error) {
	security, err := section.Security()
	if err != nil {
		return 0, false, err
	}
	event, err = windows.CreateEvent(security, 0, 0, utf16(name))
	if event == 0 {
		return 0, false, spaceErr(err)
	}
	return event, err == nil, nil
}

// beWriter adds the Object to the writers, under a tag that is not used.
func (o *sectionObject) beWriter(used func(tag uint64) bool) (err error) {
	if o.writes.Load() {
		return nil
	}
	for o.own == 0 {
		tag := 1 + rand.Uint64N(nobody-1)
		if used != nil && used(tag) {
			continue
		}
		created := false
		if o.own, created, err = newEvent(tagName(o.section, tag)); err != nil {
			return err
		}
		if !created {
			closeHandle(&o.own)
			continue
		}
		o.tag.Store(tag)
	}
	if o.writers, _, err = newEvent(writersName(o.section)); err != nil {
		closeHandle(&o.own)
		return err
	}
	o.writes.Store(true)
	return nil
}

func (o *sectionObject) beNoWriter() {
	o.writes.Store(false)
	closeHandle(&o.writers)
	closeHandle(&o.own)
}

// SetWriter implements [object.Locks].
func (o *sectionObject) SetWriter(writer bool) error {
	if writer {
		return o.beWriter(nil)
	}
	o.beNoWriter()
	return nil
}

// Writers implements [object.Locks]. Another one that asks at this moment can be taken
// for a writer.
func (o *sectionObject) Writers() (bool, error) {
	writers, err := windows.OpenEvent(windows.SYNCHRONIZE, false, utf16(writersName(o.section)))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer closeHandle(&writers)
	_, n, err := section.Basic(writers)
	own := uint32(1)
	if o.writes.Load() {
		own++
	}
	return n > own, err
}

// Tag and Gone implement [object.Locks].
func (o *sectionObject) Tag() uint64 { return o.tag.Load() }

func (o *sectionObject) Gone(tag uint64) bool {
	event, err := windows.OpenEvent(windows.SYNCHRONIZE, false, utf16(tagName(o.section, tag)))
	closeHandle(&event)
	return errors.Is(err, fs.ErrNotExist)
}

// TryAlone implements [object.Locks]: under the mutex, the handle of this Object is
// the only one.
func (o *sectionObject) TryAlone() error {
	if err := o.TryLock(); err != nil {
		return err
	}
	had := o.life != 0
	err := o.join()
	if err == nil {
		var n uint32
		if _, n, err = section.Basic(o.life); err == nil && n > 1 {
			err = ErrBusy
		}
	}
	if err != nil {
		if !had {
			closeHandle(&o.life)
		}
		o.Unlock()
	}
	return err
}

// Count implements [object.Locks]: the kernel knows how many handles there are, and
// not whose.
func (o *sectionObject) Count() (int, error) {
	life := o.life
	if life == 0 {
		var err error
		life, err = windows.OpenEvent(windows.SYNCHRONIZE, false, utf16(lifeName(o.section)))
		if errors.Is(err, fs.ErrNotExist) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		defer closeHandle(&life)
	}
	_, n, err := section.Basic(life)
	return max(int(n)-1, 0), err
}

func (o *sectionObject) Holders() ([]object.Holder, error) { return nil, errors.ErrUnsupported }

// Others implements [object.Locks]. It takes the mutex, because to open the event
// is to join for those who count.
func (o *sectionObject) Others() (object.Presence, error) {
	if o.life != 0 {
		if _, n, err := section.Basic(o.life); err != nil || n > 1 {
			return object.Somebody, err
		}
		return object.Nobody, nil
	}
	switch err := o.TryLock(); {
	case errors.Is(err, object.ErrBusy):
		return object.Deciding, nil
	case err == nil:
		defer o.Unlock()
	case !errors.Is(err, fs.ErrPermission): // a process that may only read may not lock
		return object.Nobody, err
	}
	life, err := windows.OpenEvent(windows.SYNCHRONIZE, false, utf16(lifeName(o.section)))
	if errors.Is(err, fs.ErrNotExist) {
		return object.Nobody, nil
	}
	closeHandle(&life)
	return object.Somebody, nil
}

func (o *sectionObject) Leave() {
	o.beNoWriter()
	closeHandle(&o.life)
	o.sleeper.leave()
	o.Unlock()
}

func (o *sectionObject) Close() {
	if !o.passedOn && o.view != nil {
		sections{}.Unmap(o.view)
	}
	closeHandle(&o.mutex)
	closeHandle(&o.handle)
}

func closeHandle(h *windows.Handle) {
	if *h != 0 {
		windows.CloseHandle(*h)
		*h = 0
	}
}

// List implements [object.System]. One name can be that of several sections.
func (sections) List(f func(name string) bool) error {
	sections, err := section.Names()
	if err != nil {
		return err
	}
	names := map[string]bool{}
	for _, s := range sections {
		name, _, _ := strings.Cut(s, "!")
		names[name] = true
	}
	for name := range names {
		if !f(name) {
			break
		}
	}
	return nil
}

func utf16(s string) *uint16 {
	p, err := windows.UTF16PtrFromString(s)
	if err != nil {
		panic(err) // checkName lets no NUL through
	}
	return p
}

// spaceErr adds ErrNoSpace to the errors that mean it.
func spaceErr(err error) error {
	switch {
	case errors.Is(err, windows.ERROR_COMMITMENT_LIMIT), errors.Is(err, windows.ERROR_NOT_ENOUGH_MEMORY),
		errors.Is(err, windows.ERROR_PAGEFILE_QUOTA), errors.Is(err, windows.ERROR_NO_SYSTEM_RESOURCES):
		return fmt.Errorf("%w: %w", object.ErrNoSpace, err)
	}
	return err
}

// Files and sockets of Windows are read and written by way of a buffer.
func pollable(uintptr) bool                { return false }
func readFD(uintptr, []byte) (int, error)  { return 0, errors.ErrUnsupported }
func writeFD(uintptr, []byte) (int, error) { return 0, errors.ErrUnsupported }
