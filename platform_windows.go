package shm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/shmkit/shm/internal/memsource"
	"github.com/shmkit/shm/internal/section"
)

// Windows keeps blocks as sections ("file mappings") that the page file backs,
// with names in the namespace of the session, where CPython's SharedMemory has
// its own. The kernel counts the handles on a section; with the last one section
// and name are gone. Nothing can take a name away before.
//
// So a section that an Unlink has made nameless goes on having its name, and is
// marked. The next block of the name is another generation: its section has a
// suffix to its name. Only the lowest has none, and only a block with a header
// can be another.
//
// Beside the section there are, of the same lifetime, a mutex for each name and
// an event for each section, which nobody signals: to have a handle on it is to
// hold the life lane, and the kernel knows how many there are.
const (
	maxName   = 240 // CreateMutex takes MAX_PATH, 260, and there are suffixes
	bornNamed = true
	namesStay = true
	hasFile   = false

	headerLength = 4 << 10 // also where Windows gives memory out by 64 KiB

	// A mark is at this offset of the header, in what the header leaves free.
	markOffset = int64(headerLength - len(unlinkedMark))

	// unlinkedMark is long enough for no block without header to have it, where
	// it has its own data, by chance.
	unlinkedMark = "shmkit: this block has no name\x1a\n"

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

func mutexName(name string) string   { return name + "!mutex" }
func lifeName(section string) string { return section + "!life" }

var ntQueryObject = windows.NewLazySystemDLL("ntdll.dll").NewProc("NtQueryObject")

// object is a section with a view of all of it, which lasts as long as the
// handle unless mmap has passed it on.
type object struct {
	name     string // of the block
	section  string // name of the section
	handle   windows.Handle
	view     []byte
	writable bool
	managed  bool // it has a header, and room for a mark in it
	passedOn bool // the view belongs to whom mmap gave it

	mutex  windows.Handle // of the mutex lane, once it has been asked for
	locked bool           // the mutex is held, by this very thread
	life   windows.Handle // of the life lane, while that is held
}

func createObject(name string, size int64, c config) (*object, error) {
	if c.has(optPersistent) {
		return nil, fmt.Errorf("%w: the system ends a block with its last handle", errors.ErrUnsupported)
	}
	if size > maxSize {
		return nil, ErrNoSpace
	}
	// The mutex keeps two processes from taking different generations.
	o := &object{name: name, writable: true, managed: !c.has(optHeaderless)}
	err := o.lock(laneMutex, alone)
	if err == nil {
		err = o.create(size)
		o.lock(laneMutex, unheld)
	}
	if err != nil {
		o.unlock()
		o.close()
		return nil, soon(err)
	}
	return o, nil
}

// create makes the section, and holds its life lane before there is one.
func (o *object) create(size int64) error {
	free, err := o.freeGeneration()
	if err != nil {
		return err
	}
	o.section = generationName(o.name, free)
	if o.managed {
		if err := o.lock(laneLife, shared); err != nil {
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
func (o *object) freeGeneration() (int, error) {
	free := -1
	for g := range generations {
		there, err := openSection(o.name, g, false)
		switch {
		case err == nil:
			linked, err := there.linked()
			there.close()
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

func openObject(name string, write bool) (*object, error) {
	for g := range generations {
		o, err := openSection(name, g, write)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		linked, err := o.linked()
		if linked {
			return o, nil
		}
		o.close()
		if err != nil {
			return nil, err
		}
	}
	return nil, windows.ERROR_FILE_NOT_FOUND
}

func openSection(name string, generation int, write bool) (*object, error) {
	o := &object{name: name, section: generationName(name, generation), writable: write}
	var err error
	o.handle, err = section.Open(o.section, write)
	if errors.Is(err, windows.ERROR_INVALID_HANDLE) {
		err = fmt.Errorf("%w: no section: %w", ErrNotSegment, err)
	}
	if err != nil {
		return nil, err
	}
	// To map a file would be to read it, from wherever it is.
	ofFile, err := section.OfFile(o.handle)
	if err == nil && ofFile {
		err = fmt.Errorf("%w: a section of a file", ErrNotSegment)
	}
	if err == nil {
		err = o.mapAll()
	}
	if err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

// mapAll makes the view. The system knows the size of a section by pages only.
func (o *object) mapAll() error {
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

// linked reports whether the section is the block's that has the name.
func (o *object) linked() (bool, error) {
	var mark [len(unlinkedMark)]byte
	_, err := o.readAt(mark[:], markOffset)
	return string(mark[:]) != unlinkedMark, err
}

// stat: the permissions are those of section.Security.
func (o *object) stat() (objectInfo, error) {
	return objectInfo{size: int64(len(o.view)), mode: 0o600, owner: -1}, nil
}

// newborn takes an object without magic for a block being born while somebody
// holds the life lane of it, as its creator does from before it exists. One
// without a name is found by nobody before it is born.
func (o *object) newborn() error {
	if o.section == "" {
		return nil
	}
	h, err := o.holder(laneLife)
	if err == nil && h != unheld {
		err = again{ErrNotSegment}
	}
	return err
}

func (o *object) lockable() error {
	o.managed = true
	return nil
}

func (o *object) publish(string) error { return nil }

func (o *object) named(string) (bool, error) {
	if !o.managed {
		return true, nil
	}
	return o.linked()
}

// unlink marks the section as what has no name. A block without header has no
// room for it, so it keeps its name.
func (o *object) unlink(string) error {
	if !o.managed {
		return fmt.Errorf("%w: a Headerless block has its name until the last handle is closed", errors.ErrUnsupported)
	}
	n, err := o.writeAt([]byte(unlinkedMark), markOffset)
	if err == nil && n < len(unlinkedMark) {
		err = ErrFault
	}
	return err
}

// adoptAnonymous: package manager hands out no memory here.
func adoptAnonymous(*memsource.Source, int64, bool) (*object, error) {
	return nil, errors.ErrUnsupported
}

// createAnonymous: the memory of a section is always reserved.
func createAnonymous(size int64, _ bool) (*object, error) {
	if size > maxSize {
		return nil, ErrNoSpace
	}
	h, err := section.CreateAnonymous(size)
	if err != nil {
		return nil, spaceErr(err)
	}
	return newAnonymous(h, true)
}

// newAnonymous returns the object of an anonymous block, to which h passes. It
// has no lanes.
func newAnonymous(h windows.Handle, write bool) (*object, error) {
	o := &object{handle: h, writable: write}
	if err := o.mapAll(); err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

// fromFD takes nothing but a section of the page file for a block. Its name says
// whose lanes there are: the kernel's word, for nobody can give a section another.
func fromFD(fd uintptr) (*object, error) {
	h := windows.Handle(fd)
	if _, err := section.Size(h); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotSegment, err)
	}
	info, err := objectInformation(h)
	if err != nil {
		return nil, err
	}
	if info.access&windows.FILE_MAP_READ == 0 {
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
	o, err := newAnonymous(own, info.access&windows.FILE_MAP_WRITE != 0)
	if err == nil {
		if o.name, _, _ = strings.Cut(name, "!"); o.name != "" {
			o.section = name
		}
	}
	return o, err
}

// file duplicates the handle: there is nothing else to it.
func (o *object) file(name string, readOnly bool) (*os.File, error) {
	h, err := section.Duplicate(o.handle, readOnly || !o.writable)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(h), name), nil
}

// isSealed reports whether the object is that of an anonymous block. No section
// of the page file changes its size.
func (o *object) isSealed() bool { return o.section == "" }

func (o *object) findName() string {
	name, err := checkName(o.name)
	if linked, _ := o.linked(); err != nil || name != o.name || !linked {
		return ""
	}
	return name
}

// unlinkUnopened can do nothing: to unlink is to write.
func unlinkUnopened(string) error { return windows.ERROR_ACCESS_DENIED }

// mmap passes the view on. All of it can be written to if it was opened so.
func (o *object) mmap(length, writable int, populate bool) ([]byte, error) {
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
			o.readAt(b[:], int64(off))
		}
	}
	o.passedOn = true
	return o.view[:length:length], nil
}

func munmap(mem []byte) {
	windows.UnmapViewOfFile(uintptr(unsafe.Pointer(unsafe.SliceData(mem))))
}

// revoke: the addresses of a view go with it.
func revoke([]byte) error { return errors.ErrUnsupported }
func revocable() int64    { return 0 }

// readAt and writeAt have the kernel move the bytes, as a debugger does: they end
// where memory would fault.
func (o *object) readAt(p []byte, off int64) (int, error) {
	if off >= int64(len(o.view)) {
		return 0, nil
	}
	from := o.view[off:]
	var n uintptr // an error can leave it as it is
	err := windows.ReadProcessMemory(windows.CurrentProcess(), uintptr(unsafe.Pointer(&from[0])), &p[0], uintptr(min(len(p), len(from))), &n)
	return moved(n, err)
}

func (o *object) writeAt(p []byte, off int64) (int, error) {
	if off >= int64(len(o.view)) {
		return 0, ErrFault
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

// punch: memory of a section cannot be given back.
func (o *object) punch(off, n int64) error { return errors.ErrUnsupported }

// lock: the mutex is the thread's, so the goroutine that holds it stays on its
// thread. If a process ended with it, the next one has it all the same. It is
// waited for a little, because those who wait get it in turn.
func (o *object) lock(l lane, h hold) error {
	switch {
	case l == laneLife && h == unheld:
		closeHandle(&o.life)
	case l == laneLife:
		return o.live(h)
	case h == unheld:
		if o.locked {
			o.locked = false
			windows.ReleaseMutex(o.mutex)
			runtime.UnlockOSThread()
		}
	default:
		return o.lockMutex()
	}
	return nil
}

func (o *object) lockMutex() error {
	if o.mutex == 0 {
		security, err := section.Security()
		if err != nil {
			return err
		}
		h, err := windows.CreateMutex(security, false, utf16(mutexName(o.name)))
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
	return ErrBusy
}

// live takes the life lane. To hold it alone, which is asked for under the mutex
// only, is to have the one handle there is.
func (o *object) live(h hold) error {
	had := o.life != 0
	if !had {
		security, err := section.Security()
		if err != nil {
			return err
		}
		life, err := windows.CreateEvent(security, 0, 0, utf16(lifeName(o.section)))
		if life == 0 {
			return spaceErr(err)
		}
		o.life = life
	}
	if h == shared {
		return nil
	}
	n, err := handleCount(o.life)
	if err == nil && n > 1 {
		err = ErrBusy
	}
	if err != nil && !had {
		closeHandle(&o.life)
	}
	return err
}

// handleCount returns how many handles there are on an object, in all processes.
func handleCount(h windows.Handle) (int, error) {
	info, err := objectInformation(h)
	return int(info.handles), err
}

// basicInformation is PUBLIC_OBJECT_BASIC_INFORMATION.
type basicInformation struct {
	attributes, access, handles, pointers uint32
	reserved                              [10]uint32
}

func objectInformation(h windows.Handle) (info basicInformation, err error) {
	status, _, _ := ntQueryObject.Call(uintptr(h), 0, uintptr(unsafe.Pointer(&info)), unsafe.Sizeof(info), 0)
	if status != 0 {
		err = windows.NTStatus(status)
	}
	return info, err
}

// holder looks under the mutex, for its own handle is a hold to whoever counts.
// It is asked only through objects that do not hold the lane themselves.
func (o *object) holder(laneLife lane) (hold, error) {
	switch err := o.lock(laneMutex, alone); {
	case errors.Is(err, ErrBusy):
		return alone, nil
	case err == nil:
		defer o.lock(laneMutex, unheld)
	case !errors.Is(err, fs.ErrPermission): // who may only read may not lock
		return unheld, err
	}
	life, err := windows.OpenEvent(windows.SYNCHRONIZE, false, utf16(lifeName(o.section)))
	if errors.Is(err, fs.ErrNotExist) {
		return unheld, nil
	}
	closeHandle(&life)
	return shared, nil
}

func (o *object) unlock() {
	o.lock(laneLife, unheld)
	o.lock(laneMutex, unheld)
}

func (o *object) close() {
	if !o.passedOn && o.view != nil {
		munmap(o.view)
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

// listObjects: one name can be that of several sections.
func listObjects(f func(name string) bool) error {
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
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// Files and sockets of Windows are read and written by way of a buffer.
func pollable(uintptr) bool                { return false }
func readFD(uintptr, []byte) (int, error)  { return 0, errors.ErrUnsupported }
func writeFD(uintptr, []byte) (int, error) { return 0, errors.ErrUnsupported }

func (o *object) receive(uintptr, int64, int) (int, error) { return 0, errors.ErrUnsupported }
