package manager_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"

	"github.com/shmkit/shm/manager"
)

// A manager keeps the result of a process that has ended for one that begins later.
func ExampleNew() {
	m := manager.New(context.Background())
	defer m.Close() // ends all its blocks

	seg, err := m.Create("example-result", 5)
	if err != nil {
		log.Fatal(err)
	}
	seg.WriteString("ready")
	seg.Close() // the manager keeps the block

	seg, err = m.Open("example-result") // in another process: shm.Open
	if err != nil {
		log.Fatal(err)
	}
	defer seg.Close()
	text, err := io.ReadAll(seg)
	fmt.Println(string(text), err)
	// Output: ready <nil>
}

// A server keeps blocks for the processes that connect to it.
func ExampleServe() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	addr := filepath.Join(os.TempDir(), "example.sock") // on Windows the name of a pipe
	l, err := manager.Listen(addr)
	if err != nil {
		log.Fatal(err)
	}
	go manager.Serve(ctx, l)

	// Another process:
	client, err := manager.Dial(ctx, addr)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	seg, created, err := client.OpenOrCreate("frames", 16<<20)
	if err != nil {
		log.Fatal(err)
	}
	defer seg.Close()
	fmt.Println(created, seg.Cap())
}
