//go:build linux || darwin

package proctest

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

// Stranger makes cmd, from Command, a process of another user, who is not root and
// may not enter the directory that this program is in. Only root can start it.
func Stranger(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if runtime.GOOS == "linux" {
		cmd.Path = "/proc/self/exe"
		return
	}
	dir, err := os.MkdirTemp("/tmp", "shm-proctest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program, err := os.ReadFile(cmd.Path)
	if err == nil {
		cmd.Path = filepath.Join(dir, "program")
		err = os.WriteFile(cmd.Path, program, 0o755)
	}
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}
