package main

import (
	"os/exec"
	"unsafe"

	"golang.org/x/sys/windows"
)

// dieWithUs makes the system kill the command, and all that it starts, when this
// process exits before it calls survive: they are in a job whose only handle is in
// this process. If the job cannot be created, they are not killed.
func dieWithUs(*exec.Cmd) (survive func()) {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return func() {}
	}
	limit := func(flags uint32) error {
		var info windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION
		info.BasicLimitInformation.LimitFlags = flags
		_, err := windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation,
			uintptr(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info)))
		return err
	}
	err = limit(windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE)
	if err == nil {
		err = windows.AssignProcessToJobObject(job, windows.CurrentProcess()) // and so the processes it starts
	}
	if err != nil {
		limit(0)
	}
	return func() { limit(0) }
}
