// Package blockname has the rules for names of blocks, for packages shm and manager.
package blockname

import (
	"crypto/rand"
	"strings"
)

// Valid reports whether name is a name of a block: 1 to most bytes of A-Z, a-z, 0-9,
// '.', '_' and '-' that do not begin with a dot.
func Valid(name string, most int) bool {
	ok := name != "" && len(name) <= most && name[0] != '.'
	for _, c := range []byte(name) {
		ok = ok && ('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
			c == '.' || c == '_' || c == '-')
	}
	return ok
}

// Unique returns a random name, of 80 random bits.
func Unique() string {
	return "shm-" + strings.ToLower(rand.Text()[:16])
}
