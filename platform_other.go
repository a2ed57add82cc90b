//go:build !linux && !darwin && !windows

package shm

const maxName = 255
