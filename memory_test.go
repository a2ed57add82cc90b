package shm_test

import (
	"sync"
	"testing"

	"github.com/shmkit/shm"
)

// TestAnonymousConcurrent uses new anonymous blocks from several goroutines at
// once, by the calls that ask the system about them. It is for the race detector.
func TestAnonymousConcurrent(t *testing.T) {
	for range 20 {
		seg := anonymous(t, 1<<20)
		for _, seg := range []*shm.Segment{seg, take(t, file(t, seg))} {
			begin := make(chan bool)
			var all sync.WaitGroup
			for i := range int64(4) {
				all.Go(func() {
					<-begin
					if _, err := seg.Stat(); err != nil {
						t.Error(err)
					}
				})
				all.Go(func() {
					<-begin
					if _, err := seg.WriteAt(make([]byte, 64<<10), i*64<<10); err != nil {
						t.Error(err)
					}
				})
			}
			close(begin)
			all.Wait()
		}
	}
}
