//go:build linux || darwin || windows

package manager_test

import "syscall"

const (
	errReset = syscall.ECONNRESET
	errInUse = syscall.EADDRINUSE
)
