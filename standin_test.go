//go:build standin

package shm_test

import "os"

// The objects of the stand-in are in a directory of this run's own, unless the
// environment names one, as it does for the processes that tests start.
func init() {
	if os.Getenv("SHM_STANDIN") != "" {
		return
	}
	dir, err := os.MkdirTemp("/dev/shm", ".standin-")
	if err != nil {
		panic(err)
	}
	os.Setenv("SHM_STANDIN", dir)
	cleanUp = func() { os.RemoveAll(dir) }
}
