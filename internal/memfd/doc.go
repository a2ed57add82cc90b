// Package memfd creates the memory of anonymous blocks on Linux. Packages shm
// and manager share it.
package memfd
