package shm_test

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	stop, resume = syscall.SIGSTOP, syscall.SIGCONT
	nap = func(d time.Duration) { // with its thread
		ts := unix.NsecToTimespec(int64(d))
		unix.Nanosleep(&ts, nil)
	}
}
