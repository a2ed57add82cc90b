//go:build !linux

package main

import (
	"fmt"
	"os"
	"runtime"
)

func main() {
	fmt.Fprintln(os.Stderr, "soak: not on", runtime.GOOS)
	os.Exit(2)
}
