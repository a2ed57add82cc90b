package shm_test

import (
	"testing"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/raw"
)

// TestLockTagAgain has an attachment draw the tag of one that has died with the lock, or as
// a guest of it: it would seem to be back.
func TestLockTagAgain(t *testing.T) {
	onTmpfs(t)
	for _, off := range []int{384, 392, 448, 456} {
		seg := block(t, 100)
		word := raw.Uint64(shm.Header(seg), off)
		word.Store((ownTag(t, seg)+1)<<1 | 1) // the next one that this process draws
		other := attach(t, seg.Name())
		if recovered, err := seg.TryLock(); recovered != (off < 448) || err != nil {
			t.Errorf("word at %d: recovered %v, %v", off, recovered, err)
		} else if err := seg.Unlock(); err != nil {
			t.Error(err)
		}
		if err := seg.Truncate(1); err != nil {
			t.Errorf("word at %d: %v", off, err)
		}
		other.Close()
	}
}
