package section

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/windows"
)

var (
	openFileMapping = windows.NewLazySystemDLL("kernel32.dll").NewProc("OpenFileMappingW")
	ntdll           = windows.NewLazySystemDLL("ntdll.dll")
	ntQuerySection  = ntdll.NewProc("NtQuerySection")
	ntQueryObject   = ntdll.NewProc("NtQueryObject")

	ntOpenDirectoryObject  = ntdll.NewProc("NtOpenDirectoryObject")
	ntQueryDirectoryObject = ntdll.NewProc("NtQueryDirectoryObject")
)

// Access to a section.
const (
	query = 1 // SECTION_QUERY
	read  = windows.FILE_MAP_READ
	write = windows.FILE_MAP_WRITE
)

var validName = regexp.MustCompile(`^![a-z2-7]{26}$`)

// Create makes a section of size bytes of the page file called name, all zero. The
// error is [fs.ErrExist] if there is one, or of the system.
func Create(name string, size int64) (windows.Handle, error) {
	name16, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return 0, err
	}
	h, err := windows.CreateFileMapping(windows.InvalidHandle, nil, windows.PAGE_READWRITE,
		uint32(size>>32), uint32(size), name16)
	if err != nil {
		if h != 0 { // it exists: golang/go#44539
			windows.CloseHandle(h)
		}
		return 0, err
	}
	return h, nil
}

// CreateAnonymous is Create with a name that nobody can guess.
func CreateAnonymous(size int64) (windows.Handle, error) {
	return Create("!"+strings.ToLower(rand.Text()), size)
}

// Open opens the section called name, to ask what it is, to read, and to write to
// it if so asked. The error is of the system.
func Open(name string, toWrite bool) (windows.Handle, error) {
	name16, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return 0, err
	}
	access := uintptr(query | read)
	if toWrite {
		access |= write
	}
	h, _, err := openFileMapping.Call(access, 0, uintptr(unsafe.Pointer(name16)))
	if h == 0 {
		return 0, err
	}
	return windows.Handle(h), nil
}

// OpenAnonymous is Open for what CreateAnonymous has given the name. The error is
// [fs.ErrInvalid] if it has given no such name.
func OpenAnonymous(name string, toWrite bool) (windows.Handle, error) {
	if !validName.MatchString(name) {
		return 0, fmt.Errorf("%w: no name of a section", fs.ErrInvalid)
	}
	return Open(name, toWrite)
}

// Duplicate returns another handle on h, without write access if so asked.
func Duplicate(h windows.Handle, readOnly bool) (dup windows.Handle, err error) {
	access, options := uint32(0), uint32(windows.DUPLICATE_SAME_ACCESS)
	if readOnly {
		access, options = query|read, 0
	}
	self := windows.CurrentProcess()
	err = windows.DuplicateHandle(self, h, self, &dup, access, false, options)
	return dup, err
}

// Size returns how many bytes, by pages, the section has, which never changes.
// The error is that h is something else than a section of the page file whose
// memory is reserved. It does nothing to h, which can be anything, that could
// wait.
func Size(h windows.Handle) (int64, error) {
	const (
		file   = 0x00800000 // SEC_FILE
		commit = 0x08000000 // SEC_COMMIT
	)
	var info struct { // SECTION_BASIC_INFORMATION
		base       uintptr
		attributes uint32
		size       int64
	}
	status, _, _ := ntQuerySection.Call(uintptr(h), 0, uintptr(unsafe.Pointer(&info)), unsafe.Sizeof(info), 0)
	switch {
	case status != 0:
		return 0, windows.NTStatus(status)
	case info.attributes&file != 0 || info.attributes&commit == 0:
		return 0, errors.New("not memory of the page file")
	}
	return info.size, nil
}

// Name returns the name of a section, "" if it has none.
func Name(h windows.Handle) (string, error) {
	var info struct { // OBJECT_NAME_INFORMATION
		name windows.NTUnicodeString
		text [200]uint16
	}
	const objectName = 1
	status, _, _ := ntQueryObject.Call(uintptr(h), objectName, uintptr(unsafe.Pointer(&info)), unsafe.Sizeof(info), 0)
	if status != 0 {
		return "", windows.NTStatus(status)
	}
	path := info.name.String()
	return path[strings.LastIndex(path, `\`)+1:], nil
}

// Names returns the names of all sections of this session, of whatever kind. It
// asks the system's own directory of objects, for which there is no other
// interface than that of ntdll.
func Names() (names []string, err error) {
	var session uint32
	if err := windows.ProcessIdToSessionId(windows.GetCurrentProcessId(), &session); err != nil {
		return nil, err
	}
	path := `\BaseNamedObjects`
	if session != 0 {
		path = `\Sessions\` + strconv.Itoa(int(session)) + path
	}
	pathString, err := windows.NewNTUnicodeString(path)
	if err != nil {
		return nil, err
	}
	attributes := windows.OBJECT_ATTRIBUTES{ObjectName: pathString}
	attributes.Length = uint32(unsafe.Sizeof(attributes))
	const directoryQuery = 1
	var dir windows.Handle
	status, _, _ := ntOpenDirectoryObject.Call(uintptr(unsafe.Pointer(&dir)), directoryQuery, uintptr(unsafe.Pointer(&attributes)))
	if status != 0 {
		return nil, windows.NTStatus(status)
	}
	defer windows.CloseHandle(dir)

	// One entry a call: a name, a type, and the characters of both.
	buf := make([]struct{ name, kind windows.NTUnicodeString }, 64)
	for context := uint32(0); ; {
		status, _, _ := ntQueryDirectoryObject.Call(uintptr(dir), uintptr(unsafe.Pointer(&buf[0])),
			uintptr(len(buf))*unsafe.Sizeof(buf[0]), 1, 0, uintptr(unsafe.Pointer(&context)), 0)
		switch {
		case windows.NTStatus(status) == windows.STATUS_NO_MORE_ENTRIES:
			return names, nil
		case status != 0:
			return nil, windows.NTStatus(status)
		case buf[0].kind.String() == "Section":
			names = append(names, buf[0].name.String())
		}
	}
}
