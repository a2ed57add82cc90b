//go:build !unix

package main

import "os"

// killedStatus is how package os describes a process that Kill has ended.
const killedStatus = "exit status 1"

var forwarded []os.Signal

// inForeground returns true: a console sends Ctrl-C to all its processes.
func inForeground() bool { return true }
