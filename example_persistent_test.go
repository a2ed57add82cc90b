//go:build !windows

package shm_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"strings"

	"github.com/shmkit/shm"
)

// A persistent block stays until a process unlinks it.
func ExamplePersistent() {
	seg, err := shm.Create("example-persistent", 5, shm.Persistent())
	if err != nil {
		log.Fatal(err)
	}
	seg.WriteString("stays")
	seg.Close()

	seg, err = shm.Open("example-persistent")
	if err != nil {
		log.Fatal(err)
	}
	defer seg.Close()
	text, _ := io.ReadAll(seg)
	fmt.Printf("%s, %v\n", text, seg.Unlink())
	// Output: stays, <nil>
}

// One process fills a block, and another reads it at the same time. Neither sleeps or
// polls.
func ExampleSegment_Follow() {
	stored := make(chan error)
	go func() { stored <- store("example-follow", 1<<20, strings.NewReader("hello from another process\n")) }()
	if err := load(context.Background(), "example-follow", os.Stdout); err != nil {
		log.Fatal(err)
	}
	fmt.Println(<-stored, shm.Unlink("example-follow"))
	// Output:
	// hello from another process
	// <nil> <nil>
}

func ExampleSegment_Keep() {
	seg, err := shm.Create("example-keep", 8)
	if err != nil {
		log.Fatal(err)
	}
	if err := seg.Keep(); err != nil {
		log.Fatal(err)
	}
	seg.Close()
	info, err := shm.Stat("example-keep")
	fmt.Println(info.Persistent, err, shm.Unlink("example-keep"))
	// Output: true <nil> <nil>
}
