//go:build linux && standin

package shm_test

import (
	"os"
	"syscall"
	"testing"

	"github.com/shmkit/shm/internal/proctest"
)

// The objects of the stand-in are in a directory of this run's own, unless the
// environment names one, as it does for the processes that tests start.
func init() {
	if os.Getenv("SHM_STANDIN") != "" {
		return
	}
	dir, err := os.MkdirTemp("/dev/shm", ".standin-")
	if err == nil {
		err = os.Chmod(dir, 0o755) // for other users to open what they may
	}
	if err != nil {
		panic(err)
	}
	os.Setenv("SHM_STANDIN", dir)
	cleanUp = func() { os.RemoveAll(dir) }
}

// TestObserver has a process attached that may only read. It cannot write that
// it is there, so the block does not wait for it; but its memory does.
func TestObserver(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can start processes of another user: run as root")
	}
	cmd := proctest.Command(agentProgram)
	cmd.Path = "/proc/self/exe" // its directory is closed to other users
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	stranger := agent{proctest.StartCommand(t, cmd), t}
	for _, killed := range []bool{false, true} {
		name := unique(t)
		a := newAgent(t)
		id := a.attach("create %s public", name)
		a.must("written", "write 0 public")
		stranger.must("permission", "open %s", name)
		if got := stranger.attach("open %s readonly", name); got != id {
			t.Fatalf("the observer is attached to %s, not %s", got, id)
		}
		a.must("1", "refs")
		stranger.must("sound", "sound")
		stranger.must("permission", "unlink")
		if killed {
			a.Kill()
			mustNotExist(t, name)
		} else {
			a.must("closed", "close")
		}
		mustBeGone(t, name)
		stranger.must("public", "read 0 6")
		stranger.must("closed", "close")
	}
}
