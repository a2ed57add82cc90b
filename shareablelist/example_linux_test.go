package shareablelist_test

import (
	"fmt"
	"log"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/shareablelist"
)

// A list for Python, which gets it by ShareableList(name="example-settings").
func Example() {
	b, err := shareablelist.Marshal("threshold", 0.5, true, nil)
	if err != nil {
		log.Fatal(err)
	}
	seg, err := shm.Create("example-settings", int64(len(b)), shm.Headerless())
	if err != nil {
		log.Fatal(err)
	}
	defer seg.Close()
	defer seg.Unlink()
	seg.Write(b)

	list, err := shareablelist.Open(seg)
	if err != nil {
		log.Fatal(err)
	}
	list.Set(1, 0.75)
	for v, err := range list.All() {
		fmt.Println(v, err)
	}
	// Output:
	// threshold <nil>
	// 0.75 <nil>
	// true <nil>
	// <nil> <nil>
}
