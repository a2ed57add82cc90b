package main

import (
	"os/exec"
	"runtime"
	"syscall"
)

// dieWithUs has the system kill the command when this process ends, in whatever
// way. The system looks at the thread that starts it, so that one must not end
// before: PR_SET_PDEATHSIG of prctl(2).
func dieWithUs(cmd *exec.Cmd) (survive func()) {
	runtime.LockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return func() {}
}
