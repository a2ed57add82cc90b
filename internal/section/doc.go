// Package section creates and opens sections, as Windows calls shared memory, for
// packages shm and manager.
//
// The section of an anonymous block has a name too, so that package manager can pass it
// to another process. The name is random, and begins with an exclamation mark, which no
// name of a block does.
package section
