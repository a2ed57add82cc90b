//go:build !unix

package main

import "os"

// killedStatus is what package os says of a process that Kill has ended.
const killedStatus = "exit status 1"

var forwarded []os.Signal

// inForeground is true: a console sends Ctrl-C to all processes of it.
func inForeground() bool { return true }
