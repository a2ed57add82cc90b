package shm_test

import "syscall"

func init() { winsock = func(code uintptr) error { return syscall.Errno(code) } }
