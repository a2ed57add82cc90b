//go:build !windows

package shm_test

import (
	"fmt"
	"io"
	"log"

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
