// Package python has the tests of blocks that Go and Python share, and beside
// them the Python module shmkit, for blocks with a header. Package
// shareablelist, for one of Python's own formats, is below it.
//
//	go test ./python/...
//
// runs all of it with every Python from 3.8 on that it finds: python3 and
// python3.N in PATH, and those of pyenv. SHM_PYTHON names others instead, as a
// list like PATH. What takes long is for the oldest and the newest of them, and
// with -short all is for one.
package python
