//go:build ignore

// Wine writes what Go programs lack on Wine 8, the one of Debian 12, to
// the folder that is its first argument; the second is what go env GOROOT says.
// It is for .ci/wine alone.
//
//   - bcryptprimitives.dll, from which the Go runtime gets its random numbers
//     (ProcessPrng); Wine has it since version 9. The one written here has no
//     code: it forwards to advapi32.SystemFunction036, which does the same.
//   - overlay.json, for go build, with a change to os.RemoveAll, and so to
//     t.TempDir: Wine says that it does not implement a request (0xC0000002)
//     where Windows says that the file system does not.
package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if err := write(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func write(dir, goroot string) error {
	dll := forwarder("bcryptprimitives.dll", "ProcessPrng", "advapi32.SystemFunction036")
	if err := os.WriteFile(filepath.Join(dir, "bcryptprimitives.dll"), dll, 0o644); err != nil {
		return err
	}
	original := filepath.Join(goroot, "src/internal/syscall/windows/at_windows.go")
	changed := filepath.Join(dir, "at_windows.go")
	src, err := os.ReadFile(original)
	if err != nil {
		return err
	}
	old := []byte("case STATUS_INVALID_INFO_CLASS,")
	if bytes.Count(src, old) != 1 {
		return fmt.Errorf("%s is not what it was: no %q", original, old)
	}
	src = bytes.Replace(src, old, []byte("case NTStatus(0xC0000002), STATUS_INVALID_INFO_CLASS,"), 1)
	if err := os.WriteFile(changed, src, 0o644); err != nil {
		return err
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{original: changed}})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o644)
}

// forwarder returns a library for x86-64 with one export that is another
// library's: headers and an export directory, as "PE Format" of Microsoft's
// documentation has them.
func forwarder(library, export, target string) []byte {
	const (
		fileAlign = 0x200
		rva       = 0x1000 // of the one section
		strings   = 40 + 4 + 4 + 2
	)
	var section bytes.Buffer
	at := uint32(rva + strings)
	name, exported, forward := at, at+uint32(len(library))+1, at+uint32(len(library)+len(export))+2
	put(&section,
		[3]uint32{}, name, uint32(1), // ordinals begin with 1
		uint32(1), uint32(1), // functions, names
		uint32(rva+40), uint32(rva+44), uint32(rva+48),
		forward, exported, uint16(0), // the tables of functions, names, ordinals
		[]byte(library+"\x00"+export+"\x00"+target+"\x00"))
	length := uint32(section.Len()) // a function inside the directory is a forwarder

	var file bytes.Buffer
	put(&file, []byte("MZ"), [58]byte{}, uint32(64), []byte("PE\x00\x00"))
	put(&file, uint16(0x8664), uint16(1), [3]uint32{}, uint16(240), uint16(0x2022)) // AMD64; a DLL
	put(&file, uint16(0x20b), uint16(0), uint32(0), uint32(fileAlign), uint32(0), uint32(0), uint32(rva))
	put(&file, uint64(0x180000000), uint32(0x1000), uint32(fileAlign))
	put(&file, [2]uint16{6, 0}, uint32(0), [2]uint16{6, 0}, uint32(0))
	put(&file, uint32(2*rva), uint32(fileAlign), uint32(0), uint16(3), uint16(0x140))
	put(&file, [4]uint64{1 << 20, 1 << 12, 1 << 20, 1 << 12}, uint32(0), uint32(16))
	put(&file, uint32(rva), length, [30]uint32{}) // data directories
	put(&file, []byte(".edata\x00\x00"), length, uint32(rva), uint32(fileAlign), uint32(fileAlign), [3]uint32{}, uint32(0x40000040))

	dll := make([]byte, 2*fileAlign)
	copy(dll, file.Bytes())
	copy(dll[fileAlign:], section.Bytes())
	return dll
}

func put(b *bytes.Buffer, values ...any) {
	for _, v := range values {
		if err := binary.Write(b, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
}
