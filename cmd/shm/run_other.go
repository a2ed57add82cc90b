//go:build !linux && !windows

package main

import "os/exec"

func dieWithUs(*exec.Cmd) (survive func()) { return func() {} }
