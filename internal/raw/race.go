//go:build race

package raw

// Race reports whether the race detector is built in. It makes atomic operations
// in C, where a fault ends the program.
const Race = true
