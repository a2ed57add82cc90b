package main

import (
	"os/exec"
	"runtime"
	"syscall"
)

// dieWithUs makes the system kill the command when this process exits, even if it
// is killed. The signal is sent when the thread that starts the command exits, so
// the goroutine stays locked to it; see PR_SET_PDEATHSIG in prctl(2).
func dieWithUs(cmd *exec.Cmd) (survive func()) {
	runtime.LockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return func() {}
}
