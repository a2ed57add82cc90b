package manager

import (
	"errors"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// passing are the errors of isPassing.
var passing = []error{
	windows.ERROR_NO_SYSTEM_RESOURCES, windows.ERROR_NOT_ENOUGH_MEMORY, windows.ERROR_NOT_ENOUGH_QUOTA,
	windows.ERROR_COMMITMENT_LIMIT, windows.ERROR_TOO_MANY_OPEN_FILES,
}

// busyFor returns for how long err can come from a server that is there and has no
// instance of its pipe left.
func busyFor(err error) time.Duration {
	if errors.Is(err, windows.ERROR_PIPE_BUSY) {
		return stall
	}
	return 0
}

func cutShort(f func()) { f() }

// totalMemory returns how many bytes of memory the machine has.
func totalMemory() int64 {
	var status struct { // MEMORYSTATUSEX
		length, load uint32
		total        uint64
		others       [6]uint64
	}
	status.length = uint32(unsafe.Sizeof(status))
	globalMemoryStatus.Call(uintptr(unsafe.Pointer(&status)))
	return int64(status.total)
}

var (
	globalMemoryStatus         = windows.NewLazySystemDLL("kernel32.dll").NewProc("GlobalMemoryStatusEx")
	impersonateNamedPipeClient = windows.NewLazySystemDLL("advapi32.dll").NewProc("ImpersonateNamedPipeClient")
)

// isUs reports whether user is the user of this process.
func isUs(user *windows.SID) bool {
	us, err := windows.GetCurrentProcessToken().GetTokenUser()
	return err == nil && user != nil && user.Equals(us.User.Sid)
}

// clientIsUs reports whether the process that connected to the pipe was of this user.
// The system keeps that with the pipe. It is false for a client that does not let the
// server know.
func clientIsUs(pipe windows.Handle) bool {
	answer := make(chan bool)
	go func() {
		ours := false
		runtime.LockOSThread()
		if ok, _, _ := impersonateNamedPipeClient.Call(uintptr(pipe)); ok != 0 {
			ours = actingAsUs()
		}
		// A thread that still acts as the client must not run another goroutine. It
		// then ends with this one, which cancels reads and writes begun on it.
		if windows.RevertToSelf() == nil {
			runtime.UnlockOSThread()
		}
		answer <- ours
	}()
	return <-answer
}

// actingAsUs reports whether the user that this thread acts as is that of the
// process.
func actingAsUs() bool {
	var token windows.Token
	if err := windows.OpenThreadToken(windows.CurrentThread(), windows.TOKEN_QUERY, true, &token); err != nil {
		return false
	}
	defer token.Close()
	user, err := token.GetTokenUser()
	return err == nil && isUs(user.User.Sid)
}
