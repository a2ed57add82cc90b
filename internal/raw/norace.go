//go:build !race

package raw

// Race reports whether the race detector is built in.
const Race = false
