package section

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/shmkit/shm/internal/blockname"
)

var (
	openFileMapping = windows.NewLazySystemDLL("kernel32.dll").NewProc("OpenFileMappingW")
	ntdll           = windows.NewLazySystemDLL("ntdll.dll")
	ntQuerySection  = ntdll.NewProc("NtQuerySection")
	ntQueryObject   = ntdll.NewProc("NtQueryObject")
)

// Access to a section.
const (
	toAsk = 1 // SECTION_QUERY
	read  = windows.FILE_MAP_READ
	write = windows.FILE_MAP_WRITE
)

// Create creates the section called name: size bytes of the page file, all zero, with
// the access that [Security] gives. The error is [fs.ErrExist] if there is one, or of
// the system.
func Create(name string, size int64) (windows.Handle, error) {
	name16, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return 0, err
	}
	security, err := Security()
	if err != nil {
		return 0, err
	}
	h, err := windows.CreateFileMapping(windows.InvalidHandle, security, windows.PAGE_READWRITE,
		uint32(size>>32), uint32(size), name16)
	if err != nil {
		if h != 0 { // it exists: golang/go#44539
			windows.CloseHandle(h)
		}
		return 0, err
	}
	return h, nil
}

// CreateAnonymous is Create with a random name. The name is not secret, because a process
// that may list the namespace finds it. [Security] says which processes may open the
// section.
func CreateAnonymous(size int64) (windows.Handle, error) {
	return Create(randomName(), size)
}

const randomLength = 26 // of rand.Text

func randomName() string { return "!" + strings.ToLower(rand.Text()) }

// Open opens the section called name to query and read it, and to write to it if
// toWrite. The error is of the system.
func Open(name string, toWrite bool) (windows.Handle, error) {
	name16, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return 0, err
	}
	access := uintptr(toAsk | read)
	if toWrite {
		access |= write
	}
	h, _, err := openFileMapping.Call(access, 0, uintptr(unsafe.Pointer(name16)))
	if h == 0 {
		return 0, err
	}
	return windows.Handle(h), nil
}

// OpenAnonymous is Open for a section of CreateAnonymous. The error is [fs.ErrInvalid] for
// a name that CreateAnonymous does not give, such as one in another namespace.
func OpenAnonymous(name string, toWrite bool) (windows.Handle, error) {
	if random, ok := strings.CutPrefix(name, "!"); !ok || len(random) != randomLength || !blockname.Valid(random, randomLength) {
		return 0, fmt.Errorf("%w: section %q: want an exclamation mark and %d characters", fs.ErrInvalid, name, randomLength)
	}
	return Open(name, toWrite)
}

// Duplicate returns another handle on the section h, for reading only if readOnly.
func Duplicate(h windows.Handle, readOnly bool) (dup windows.Handle, err error) {
	access, options := uint32(0), uint32(windows.DUPLICATE_SAME_ACCESS)
	if readOnly {
		access, options = toAsk|read, 0
	}
	self := windows.CurrentProcess()
	err = windows.DuplicateHandle(self, h, self, &dup, access, false, options)
	return dup, err
}

// Size returns the size of a section in bytes, a multiple of the page size, which never
// changes. h can be anything. The error is that it is not a section of the page file
// whose memory is reserved. Size does nothing with h that could wait.
func Size(h windows.Handle) (int64, error) {
	const commit = 0x08000000 // SEC_COMMIT
	info, err := query(h)
	switch {
	case err != nil:
		return 0, err
	case info.ofFile() || info.attributes&commit == 0:
		return 0, errors.New("not memory of the page file")
	}
	return info.size, nil
}

// OfFile reports whether the section is of a file rather than of the page file.
func OfFile(h windows.Handle) (bool, error) {
	info, err := query(h)
	return err == nil && info.ofFile(), err
}

// information is SECTION_BASIC_INFORMATION.
type information struct {
	base       uintptr
	attributes uint32
	size       int64
}

func (i information) ofFile() bool {
	const file = 0x00800000 // SEC_FILE
	return i.attributes&file != 0
}

func query(h windows.Handle) (info information, err error) {
	status, _, _ := ntQuerySection.Call(uintptr(h), 0, uintptr(unsafe.Pointer(&info)), unsafe.Sizeof(info), 0)
	if status != 0 {
		err = windows.NTStatus(status)
	}
	return info, err
}

// Basic returns what access a handle has, and how many handles there are on its
// object, in all processes.
func Basic(h windows.Handle) (access, handles uint32, err error) {
	var info struct { // PUBLIC_OBJECT_BASIC_INFORMATION
		attributes, access, handles, pointers uint32
		reserved                              [10]uint32
	}
	status, _, _ := ntQueryObject.Call(uintptr(h), 0, uintptr(unsafe.Pointer(&info)), unsafe.Sizeof(info), 0)
	if status != 0 {
		err = windows.NTStatus(status)
	}
	return info.access, info.handles, err
}

// Name returns the name of a section, "" if it has none.
func Name(h windows.Handle) (string, error) {
	path, err := objectPath(h)
	return path[strings.LastIndex(path, `\`)+1:], err
}

// objectPath returns the path of h in the system's tree of objects, or "" if it has none.
func objectPath(h windows.Handle) (path string, err error) {
	const objectName = 1 // OBJECT_NAME_INFORMATION
	err = answer(1<<10, func(buf []uint64) uintptr {
		status, _, _ := ntQueryObject.Call(uintptr(h), objectName,
			uintptr(unsafe.Pointer(&buf[0])), uintptr(8*len(buf)), 0)
		if status == 0 {
			path = (*windows.NTUnicodeString)(unsafe.Pointer(&buf[0])).String()
		}
		return status
	})
	return path, err
}

// answer calls ask with larger and larger buffers, beginning with size bytes, until the
// answer fits, and returns the error of the last status. To the garbage collector the
// buffers hold no pointers.
func answer(size int, ask func(buf []uint64) (status uintptr)) error {
	for ; ; size *= 2 {
		switch status := windows.NTStatus(ask(make([]uint64, size/8))); status {
		case windows.STATUS_SUCCESS:
			return nil
		case windows.STATUS_INFO_LENGTH_MISMATCH, windows.STATUS_BUFFER_OVERFLOW,
			windows.STATUS_BUFFER_TOO_SMALL, windows.STATUS_MORE_ENTRIES:
		default:
			return status
		}
	}
}
