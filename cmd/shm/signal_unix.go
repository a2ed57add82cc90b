//go:build unix

package main

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// killedStatus is how package os describes a process that Kill has ended.
const killedStatus = "signal: killed"

// forwarded are the signals that run and hold forward to CMD, in addition to
// those that ask every command to exit.
var forwarded = []os.Signal{syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM}

// inForeground reports whether this process is in the foreground process group
// of its terminal, from which it then gets the signals of Ctrl-C and Ctrl-\.
func inForeground() bool {
	tty, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false // no terminal
	}
	defer unix.Close(tty)
	group, err := unix.IoctlGetInt(tty, unix.TIOCGPGRP)
	pid := unix.Getpgrp()
	return err == nil && (group == pid || group>>32 == pid) // x/sys reads 32 bits into an int: big endian
}
