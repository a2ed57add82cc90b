// Package killpoints kills processes at every system call of an operation.
//
// A victim runs the operation between Begin and End. The test traces, by
// ptrace(2), the one thread that executes it, stops it at the entry of system
// call k, when nothing of it has happened yet, or at its exit, when all of it
// has, and kills the process there. What an operation does to the world it does
// by system calls and by stores to mapped memory. All stores between two calls
// are done when the second is entered, and none is when the first has returned,
// so both ends of every call are points to be killed at.
//
//	go test -v ./internal/killpoints
//
// goes through all points of all operations in all worlds, and says how many
// there are. A second test does not kill the victim before each call but lets
// another process do something else there: every race of an operation with one
// that comes whole between two of its calls. With -short it has fewer of those. Where
// a third process is attached, to attach and detach there never waits for the victim.
//
// Calls that wait, wake and lock do much by stores to the header, between which there is
// no system call. The thread that executes one is stepped through it, instruction by
// instruction, and killed after each store to the header as well. Of two processes that
// wait for each other one is stopped before an instruction, while the other one does its
// part as a whole. Without a flag that is some of the instructions, another choice each
// time:
//
//	go test -v -run 'Wake|Sleep' ./internal/killpoints -steps 10000000
package killpoints
