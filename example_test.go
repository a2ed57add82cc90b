package shm_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"

	"github.com/shmkit/shm"
)

// One process fills a block, and another one reads it.
func Example() {
	seg, err := shm.Create("", 1<<20, shm.Empty()) // or a name that both know
	if err != nil {
		log.Fatal(err)
	}
	defer seg.Close()
	if _, err := io.Copy(seg, strings.NewReader("hello from another process")); err != nil {
		log.Fatal(err)
	}

	// The other process:
	peer, err := shm.Open(seg.Name(), shm.ReadOnly())
	if err != nil {
		log.Fatal(err)
	}
	defer peer.Close()
	text, err := io.ReadAll(peer)
	fmt.Println(string(text), err)
	// Output: hello from another process <nil>
}

func ExampleCreate() {
	seg, err := shm.Create("example-create", 4096, shm.Perm(0o640))
	if err != nil {
		log.Fatal(err)
	}
	_, err = shm.Create("example-create", 4096)
	fmt.Println(errors.Is(err, fs.ErrExist))
	seg.Close() // the last Close unlinks the block
	_, err = shm.Open("example-create")
	fmt.Println(errors.Is(err, fs.ErrNotExist))
	// Output:
	// true
	// true
}

func ExampleOpen() {
	seg, err := shm.Create("example-open", 4096)
	if err != nil {
		log.Fatal(err)
	}
	defer seg.Close()
	seg.WriteString("hello")

	// Another process, which knows the name:
	peer, err := shm.Open("example-open")
	if err != nil {
		log.Fatal(err)
	}
	defer peer.Close()
	text := make([]byte, 5)
	_, err = peer.ReadAt(text, 0)
	fmt.Println(string(text), peer.Cap(), err)

	_, err = shm.Open("example-missing")
	fmt.Println(errors.Is(err, fs.ErrNotExist))
	// Output:
	// hello 4096 <nil>
	// true
}

// A read-only Segment needs no permission to write to the block.
func ExampleReadOnly() {
	seg, err := shm.Create("", 5, shm.Perm(0o644))
	if err != nil {
		log.Fatal(err)
	}
	defer seg.Close()
	seg.WriteString("hello")

	reader, err := shm.Open(seg.Name(), shm.ReadOnly())
	if err != nil {
		log.Fatal(err)
	}
	defer reader.Close()
	text, err := io.ReadAll(reader)
	fmt.Println(string(text), err)
	_, err = reader.WriteAt([]byte("J"), 0)
	fmt.Println(errors.Is(err, shm.ErrReadOnly), errors.Is(err, fs.ErrPermission))
	// Output:
	// hello <nil>
	// true true
}

// A block without a name leaves nothing behind, however its processes end.
func ExampleAnonymous() {
	seg, err := shm.Anonymous(4096, shm.Label("frames"))
	if err != nil {
		log.Fatal(err)
	}
	defer seg.Close()
	fmt.Println(seg.Name(), seg.Cap())
	_, err = shm.Open("frames") // a Label is not a name to open
	fmt.Println(errors.Is(err, fs.ErrNotExist))
	// Output:
	// frames 4096
	// true
}

// A child process gets a block without a name as a file.
func ExampleSegment_File() {
	seg, err := shm.Anonymous(1 << 20)
	if err != nil {
		log.Fatal(err)
	}
	defer seg.Close()
	file, err := seg.File()
	if err != nil {
		log.Fatal(err)
	}
	defer file.Close()
	cmd := exec.Command("worker")
	cmd.ExtraFiles = []*os.File{file} // in the child: shm.FromFile(os.NewFile(3, "block"))
	if err := cmd.Run(); err != nil {
		log.Fatal(err)
	}
}

func ExampleFromFile() {
	seg, err := shm.Anonymous(4096)
	if err != nil {
		log.Fatal(err)
	}
	defer seg.Close()
	seg.WriteString("hello")
	file, err := seg.File()
	if err != nil {
		log.Fatal(err)
	}

	// The process that was given the file:
	peer, err := shm.FromFile(file)
	if err != nil {
		log.Fatal(err)
	}
	defer peer.Close()
	file.Close() // FromFile has a descriptor of its own
	text := make([]byte, 5)
	_, err = peer.ReadAt(text, 0)
	fmt.Println(string(text), err)
	// Output: hello <nil>
}

// A supervisor removes what workers that it had to kill have left behind.
func ExampleReap() {
	names, err := shm.Reap()
	for _, name := range names {
		log.Printf("%s was left behind by a killed process", name)
	}
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		log.Fatal(err)
	}
}

func ExampleOpenOrCreate() {
	for range 2 {
		seg, created, err := shm.OpenOrCreate("example-open-or-create", 4096)
		if err != nil {
			log.Fatal(err)
		}
		defer seg.Close()
		fmt.Println(created, seg.Refs())
	}
	// Output:
	// true 1
	// false 2
}

// Python's multiprocessing.shared_memory and shm_open in C create and open the same
// blocks.
func ExampleHeaderless() {
	seg, err := shm.Create("example-headerless", 16, shm.Headerless())
	if err != nil {
		log.Fatal(err)
	}
	defer shm.Unlink("example-headerless") // attachments are not counted
	defer seg.Close()
	seg.WriteString("for Python")
	fmt.Printf("%q\n", seg.Bytes()[:10])
	// Output: "for Python"
}

// A write beyond the block's Cap writes what fits.
func ExampleSegment_WriteAt() {
	seg, err := shm.Create("", 8)
	if err != nil {
		log.Fatal(err)
	}
	defer seg.Close()
	n, err := seg.WriteAt([]byte("too long"), 4)
	fmt.Println(n, errors.Is(err, shm.ErrFull), errors.Is(err, io.ErrShortWrite))
	// Output: 4 true true
}

// View works on the memory itself, which stays valid even if the Segment is closed.
func ExampleSegment_View() {
	seg, err := shm.Create("", 4096)
	if err != nil {
		log.Fatal(err)
	}
	defer seg.Close()
	seg.WriteString("shared memory")
	err = seg.View(func(b []byte) error {
		copy(b, bytes.ToUpper(b[:6]))
		return nil
	})
	text := make([]byte, 13)
	seg.ReadAt(text, 0)
	fmt.Println(string(text), err)
	// Output: SHARED memory <nil>
}

func ExampleSegment_Truncate() {
	seg, err := shm.Create("", 100)
	if err != nil {
		log.Fatal(err)
	}
	defer seg.Close()
	fmt.Println(seg.Size(), seg.Cap())
	seg.Truncate(0)
	seg.WriteString("twelve bytes")
	fmt.Println(seg.Size(), seg.Cap())
	// Output:
	// 100 100
	// 12 100
}

func ExampleOnLeak() {
	previous := shm.OnLeak(func(o shm.Origin) {
		log.Printf("%s was dropped without Close; created by %s", o.Name, o.Frames[0].Function)
	})
	defer func() { shm.OnLeak(previous) }()
}

func ExampleStat() {
	seg, err := shm.Create("example-stat", 100)
	if err != nil {
		log.Fatal(err)
	}
	defer seg.Close()
	info, err := shm.Stat("example-stat")
	fmt.Println(info.Size, info.Refs, info.Attached, info.Mode, err)
	// Output: 100 1 true -rw------- <nil>
}

// Handlers run concurrently, and each needs an offset of its own.
func ExampleSegment_serveContent() {
	seg, err := shm.Create("", 16)
	if err != nil {
		log.Fatal(err)
	}
	defer seg.Close()
	seg.WriteString("0123456789abcdef")
	handler := func(w http.ResponseWriter, r *http.Request) {
		info, err := seg.Stat()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		http.ServeContent(w, r, "block.bin", info.ModTime(), io.NewSectionReader(seg, 0, info.Size()))
	}

	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Range", "bytes=10-")
	w := httptest.NewRecorder()
	handler(w, r)
	fmt.Println(w.Code, w.Body)
	// Output: 206 abcdef
}
