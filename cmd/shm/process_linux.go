package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// findProcess reads proc(5).
func findProcess(pid int) (p processInfo) {
	dir := fmt.Sprintf("/proc/%d", pid)
	info, err := os.Stat(dir)
	if err != nil {
		return processInfo{}
	}
	p.User = userName(int(info.Sys().(*syscall.Stat_t).Uid))
	words, _ := os.ReadFile(dir + "/cmdline")
	p.Command = printable(strings.TrimSpace(string(bytes.ReplaceAll(words, []byte{0}, []byte{' '}))))
	if p.Command == "" { // of the kernel, or with nothing left of it
		name, _ := os.ReadFile(dir + "/comm")
		p.Command = printable("[" + strings.TrimSpace(string(name)) + "]")
	}
	p.Started = startTime(dir + "/stat")
	return p
}

// startTime returns when a process started, zero if it is not known. It is counted
// in ticks of a hundredth of a second from the start of the machine.
func startTime(path string) time.Time {
	stat, err := os.ReadFile(path)
	if err != nil {
		return time.Time{}
	}
	// The fields from the third on follow the last parenthesis; this is the 22nd.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return time.Time{}
	}
	ticks, err := strconv.ParseInt(string(fields[19]), 10, 64)
	boot := bootTime()
	if err != nil || boot.IsZero() {
		return time.Time{}
	}
	return boot.Add(time.Duration(ticks) * time.Second / 100)
}

func bootTime() time.Time {
	stat, _ := os.ReadFile("/proc/stat")
	for line := range strings.Lines(string(stat)) {
		var seconds int64
		if _, err := fmt.Sscanf(line, "btime %d", &seconds); err == nil {
			return time.Unix(seconds, 0)
		}
	}
	return time.Time{}
}
