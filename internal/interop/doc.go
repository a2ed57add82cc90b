// Package interop tests blocks that Go and Python processes share, through the
// Python module shmkit and through CPython's own shared_memory.
//
//	go test ./internal/interop
//
// runs with every Python from 3.8 on that it finds: python3 and python3.N in PATH,
// and those of pyenv. SHM_PYTHON names other interpreters, as a list like PATH. The
// long tests run with the oldest and the newest; with -short all tests run with one.
package interop
