// Package section makes and finds sections, as Windows calls shared memory, for
// packages shm and manager.
//
// An anonymous block is on a section that has a name all the same, for package
// manager to tell another process where it is. It is random, and it is no
// name of a block: it begins with an exclamation mark.
package section
