package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm"
)

var restarts = flag.Int("restarts", 300, "how often TestRestarts restarts its worker")

const envRestarted = "SHM_SOAK_RESTARTED"

// restartedMain is the worker of TestRestarts, if this process was started as one. It
// creates the block, writes to it, and starts programs all the time.
func restartedMain() {
	name := os.Getenv(envRestarted)
	if name == "" {
		return
	}
	unix.CloseOnExec(3) // see restart
	seg, err := shm.Create(name, blockSize)
	if err == nil {
		_, err = seg.WriteAt(bytes.Repeat([]byte("stale"), blockSize/5), 0)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	var began sync.WaitGroup
	for range 4 {
		began.Add(1)
		go func() {
			exec.Command("/bin/true").Run()
			began.Done()
			execAllTheTime()
		}()
	}
	began.Wait()
	os.NewFile(3, "ready").Write([]byte{1})
	select {}
}

// restart starts a worker, and kills it and waits for it once it is at work.
func restart(name string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envRestarted+"="+name)
	cmd.ExtraFiles = []*os.File{w}
	cmd.Stderr = os.Stderr // no pipe, for which Wait would wait
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	_, err = r.Read([]byte{0})
	return errors.Join(err, cmd.Process.Kill(), ignoreExit(cmd.Wait()))
}

func ignoreExit(err error) error {
	if errors.As(err, new(*exec.ExitError)) {
		return nil
	}
	return err
}

// TestRestarts is a supervisor that has a worker, which is killed, waited for and
// replaced, as is its block, also while children that the worker had just started
// still have its descriptors and so its locks. The supervisor starts programs all the
// time as well.
func TestRestarts(t *testing.T) {
	n := *restarts
	if testing.Short() {
		n /= 10
	}
	name := fmt.Sprintf("restarts-%d", os.Getpid())
	defer shm.Unlink(name)
	end := make(chan struct{})
	var all sync.WaitGroup
	defer all.Wait()
	defer close(end)
	for range 2 {
		all.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
					exec.Command("/bin/true").Run()
				}
			}
		})
	}
	held := 0
	for i := range n {
		if err := restart(name); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 { // not always, for it takes time
			info, err := shm.Stat(name)
			switch {
			case errors.Is(err, fs.ErrNotExist): // another program reaps
			case err != nil:
				t.Fatal(err)
			case info.Attached:
				held++
			}
		}
		seg, created, err := shm.OpenOrCreate(name, blockSize)
		if err != nil {
			t.Fatalf("restart %d: %v", i, err)
		}
		if b := seg.Bytes(); !created || !bytes.Equal(b, make([]byte, blockSize)) {
			t.Fatalf("restart %d: attached to the block of the killed process: created %v, holds %q, %d references", i, created, b[:10], seg.Refs())
		}
		if refs := seg.Refs(); refs != 1 {
			t.Errorf("restart %d: %d references", i, refs)
		}
		if err := seg.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := shm.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("restart %d: the name is left: %v", i, err)
		}
	}
	t.Logf("%d restarts; of %d blocks that were looked at before, %d were still locked", n, (n+1)/2, held)
}
