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
	"strings"

	"github.com/shmkit/shm"
)

// One process fills a block, another reads it.
func Example() {
	seg, err := shm.Create("", 1<<20) // or a name that both know
	if err != nil {
		log.Fatal(err)
	}
	defer seg.Close()
	seg.Truncate(0) // readers stop at what has been written
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
	seg.Close() // the last Close takes the name away
	_, err = shm.Open("example-create")
	fmt.Println(errors.Is(err, fs.ErrNotExist))
	// Output:
	// true
	// true
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

// A headerless block is what Python's multiprocessing.shared_memory and
// shm_open in C make and open.
func ExampleHeaderless() {
	seg, err := shm.Create("example-headerless", 16, shm.Headerless())
	if err != nil {
		log.Fatal(err)
	}
	defer seg.Close()
	defer seg.Unlink() // nobody counts who is attached
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

// View works on the memory itself, and Close cannot pull it away meanwhile.
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

// Handlers run at the same time, and each needs an offset of its own.
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
