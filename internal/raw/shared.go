//go:build !mips && !mipsle && (!arm || arm.7)

package raw

// Shared reports whether the words are atomic between processes. Where the
// processor has no 64-bit atomic operations the Go runtime emulates them with a
// lock of its own process: see internal/runtime/atomic.
const Shared = true
