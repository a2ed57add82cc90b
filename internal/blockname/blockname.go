// Package blockname says what blocks can be called, for packages shm and manager.
package blockname

import (
	"crypto/rand"
	"strings"
)

// Valid reports whether a block can have the name, which is to be of at most most
// bytes: of A-Z, a-z, 0-9, '.', '_' and '-', and not a dot first.
func Valid(name string, most int) bool {
	ok := name != "" && len(name) <= most && name[0] != '.'
	for _, c := range []byte(name) {
		ok = ok && ('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
			c == '.' || c == '_' || c == '-')
	}
	return ok
}

// Unique makes up a name that nobody else does: 80 random bits.
func Unique() string {
	return "shm-" + strings.ToLower(rand.Text()[:16])
}
