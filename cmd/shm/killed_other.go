//go:build !windows

package main

// killedStatus is what package os says of a process that Kill has ended.
const killedStatus = "signal: killed"
