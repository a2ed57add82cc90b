package section

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/windows"
)

var (
	ntOpenDirectoryObject  = ntdll.NewProc("NtOpenDirectoryObject")
	ntQueryDirectoryObject = ntdll.NewProc("NtQueryDirectoryObject")
)

// Names returns the names of all sections in the namespace of this process, whatever
// program has created them. It reads the system's directory of objects, to which ntdll is
// the only interface.
func Names() ([]string, error) {
	dir, err := openDirectory()
	if err != nil {
		return nil, err
	}
	defer windows.CloseHandle(dir)
	names, err := entries(dir)
	if err == windows.STATUS_NOT_IMPLEMENTED {
		names, err = entriesOneByOne(dir)
	}
	return names, err
}

// openDirectory opens the directory with the names of this process's objects. The session
// has one, and so has every AppContainer and every silo; the path of an object tells which
// it is.
func openDirectory() (dir windows.Handle, err error) {
	name, err := windows.UTF16PtrFromString(randomName())
	if err != nil {
		return 0, err
	}
	event, err := windows.CreateEvent(nil, 0, 0, name)
	if err != nil {
		return 0, err
	}
	defer windows.CloseHandle(event)
	path, err := objectPath(event)
	if err != nil {
		return 0, err
	}
	pathString, err := windows.NewNTUnicodeString(path[:max(strings.LastIndex(path, `\`), 0)])
	if err != nil {
		return 0, err
	}
	attributes := windows.OBJECT_ATTRIBUTES{ObjectName: pathString}
	attributes.Length = uint32(unsafe.Sizeof(attributes))
	const directoryQuery = 1
	status, _, _ := ntOpenDirectoryObject.Call(uintptr(unsafe.Pointer(&dir)), directoryQuery, uintptr(unsafe.Pointer(&attributes)))
	if status != 0 {
		return 0, windows.NTStatus(status)
	}
	return dir, nil
}

// entry is OBJECT_DIRECTORY_INFORMATION.
type entry struct{ name, kind windows.NTUnicodeString }

func (e entry) isSection() bool { return e.kind.String() == "Section" }

// entries reads all entries in one call, because other processes change the directory
// between calls. The last entry is followed by one of zeros.
func entries(dir windows.Handle) (names []string, err error) {
	err = answer(64<<10, func(buf []uint64) uintptr {
		var context uint32
		status, _, _ := ntQueryDirectoryObject.Call(uintptr(dir), uintptr(unsafe.Pointer(&buf[0])), uintptr(8*len(buf)),
			0, 1, uintptr(unsafe.Pointer(&context)), 0)
		if status != 0 {
			return status
		}
		for i := 0; ; i++ {
			e := (*entry)(unsafe.Add(unsafe.Pointer(&buf[0]), uintptr(i)*unsafe.Sizeof(entry{})))
			if e.name.Buffer == nil {
				return status
			}
			if e.isSection() {
				names = append(names, e.name.String())
			}
		}
	})
	if err == windows.STATUS_NO_MORE_ENTRIES {
		err = nil
	}
	return names, err
}

// entriesOneByOne is entries for Wine 8, which returns single entries only. An entry is
// missed if an earlier one is removed between two calls. So this reads the directory ten
// times, and then until it does not change, or ninety times more, and returns all that it
// has seen. At random it reads an entry twice, so that it does not keep step with a process
// that creates and removes an object in turn.
func entriesOneByOne(dir windows.Handle) (names []string, err error) {
	seen := map[string]bool{}
	var last, now []string
	for i := 0; i < 10 || i < 100 && !slices.Equal(now, last); i++ {
		last, now = now, nil
		context := uint32(0)
		for err == nil {
			err = answer(1<<10, func(buf []uint64) uintptr {
				status, _, _ := ntQueryDirectoryObject.Call(uintptr(dir), uintptr(unsafe.Pointer(&buf[0])), uintptr(8*len(buf)),
					1, 0, uintptr(unsafe.Pointer(&context)), 0)
				if e := (*entry)(unsafe.Pointer(&buf[0])); status == 0 {
					context -= rand.Uint32N(2)
					now = append(now, e.name.String())
					if e.isSection() {
						seen[e.name.String()] = true
					}
				}
				return status
			})
		}
		if err != windows.STATUS_NO_MORE_ENTRIES {
			return nil, err
		}
		now, err = slices.Compact(now), nil
	}
	return slices.Collect(maps.Keys(seen)), nil
}
