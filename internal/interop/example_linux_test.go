package interop_test

import (
	"encoding/binary"
	"fmt"
	"log"

	"github.com/shmkit/shm"
)

// The Go side of the example in docs/python.md.
func Example() {
	frame := make([]float32, 1000)
	seg, err := shm.Create("frames", 4*1000)
	if err != nil {
		log.Fatal(err)
	}
	defer seg.Close()
	if err := binary.Write(seg, binary.NativeEndian, frame); err != nil {
		log.Fatal(err)
	}
	// Python doubles it, and makes a block of its own.
	result, err := shm.Open("result", shm.ReadOnly())
	if err != nil {
		log.Fatal(err)
	}
	defer result.Close()
	fmt.Println(result.Size())
}
