package shmtest_test

import (
	"fmt"
	"log"
	"testing"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/shmtest"
)

func ExampleVerifyNone() {
	var t *testing.T // of the test
	defer shmtest.VerifyNone(t)
}

func ExampleFind() {
	current := shmtest.IgnoreCurrent()
	seg, err := shm.Create("", 4096)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(shmtest.Find(current) != nil)
	seg.Close()
	fmt.Println(shmtest.Find(current))
	// Output:
	// true
	// <nil>
}
