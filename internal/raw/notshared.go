//go:build mips || mipsle || (arm && !arm.7)

package raw

// Shared: see the other file.
const Shared = false
