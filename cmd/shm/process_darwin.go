package main

import (
	"time"

	"golang.org/x/sys/unix"
)

// findProcess asks sysctl(3).
func findProcess(pid int) processInfo {
	info, err := unix.SysctlKinfoProc("kern.proc.pid", pid)
	if err != nil {
		return processInfo{}
	}
	return processInfo{
		User:    userName(int(info.Eproc.Ucred.Uid)),
		Command: printable(unix.ByteSliceToString(info.Proc.P_comm[:])),
		Started: time.Unix(info.Proc.P_starttime.Unix()),
	}
}
