package shm_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"slices"
	"sync"

	"github.com/shmkit/shm"
)

// The programs of docs/waiting.md, each a function. Here goroutines call them; between
// processes it is the same.

// store streams r into a new block. Readers see the bytes as they come. When all are
// there, the block is kept until somebody calls shm.Unlink; before that it goes with the
// last process, so that a writer that is killed leaves no half of a block for good.
func store(name string, capacity int64, r io.Reader) error {
	seg, err := shm.Create(name, capacity, shm.Empty(), shm.Sparse())
	if err != nil {
		return err
	}
	defer seg.Close()
	if _, err := io.Copy(seg, r); err != nil {
		return err
	}
	if err := seg.Finish(); err != nil {
		return err
	}
	return seg.Keep()
}

// load writes the block to w, while it is filled, until its end.
func load(ctx context.Context, name string, w io.Writer) error {
	seg, err := shm.OpenWait(ctx, name, shm.ReadOnly())
	if err != nil {
		return err
	}
	defer seg.Close()
	f := seg.Follow(ctx)
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// show publishes a frame, the number of which grows by 1, in place of the one before.
func show(ctx context.Context, seg *shm.Segment, number uint64, frame []byte) error {
	if _, err := seg.Lock(ctx); err != nil {
		return err
	}
	defer seg.Unlock()
	if _, err := seg.WriteAt(frame, 8); err != nil {
		return err
	}
	if _, err := seg.WriteAt(binary.NativeEndian.AppendUint64(nil, number), 0); err != nil {
		return err
	}
	return seg.Notify() // those that wait look when they can have the lock
}

// next reads into frame the newest frame after the one of that number.
func next(ctx context.Context, seg *shm.Segment, number uint64, frame []byte) (uint64, error) {
	var word [8]byte
	err := seg.Wait(ctx, func() bool {
		seg.ReadAt(word[:], 0)
		return binary.NativeEndian.Uint64(word[:]) != number
	})
	if err != nil {
		return 0, err
	}
	if _, err := seg.Lock(ctx); err != nil {
		return 0, err
	}
	defer seg.Unlock()
	if _, err := seg.ReadAt(frame, 8); err != nil {
		return 0, err
	}
	_, err = seg.ReadAt(word[:], 0)
	return binary.NativeEndian.Uint64(word[:]), err
}

// The newest of many frames is all that a display needs.
func ExampleSegment_Wait() {
	ctx := context.Background()
	camera, err := shm.Create("example-latest", 8+5)
	if err != nil {
		log.Fatal(err)
	}
	defer camera.Close()
	display, err := shm.Open("example-latest")
	if err != nil {
		log.Fatal(err)
	}
	defer display.Close()

	go func() {
		for number := range uint64(100) {
			if err := show(ctx, camera, number+1, fmt.Appendf(nil, "%05d", number+1)); err != nil {
				log.Print(err)
			}
		}
	}()
	frame := make([]byte, 5)
	for number := uint64(0); number < 100; {
		if number, err = next(ctx, display, number, frame); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Printf("%s\n", frame)
	// Output: 00100
}

// work does the jobs of 8 bytes that a block has and gets, of which other workers do
// others, until the block is finished. Bytes 0 to 7 are the number of jobs that are taken.
func work(ctx context.Context, name string, do func(job uint64)) error {
	seg, err := shm.OpenWait(ctx, name)
	if err != nil {
		return err
	}
	defer seg.Close()
	f := seg.Follow(ctx)
	defer f.Close()
	var job, taken [8]byte
	io.ReadFull(f, job[:]) // what is before the jobs
	for i := uint64(0); ; i++ {
		if _, err := io.ReadFull(f, job[:]); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if _, err := seg.Lock(ctx); err != nil {
			return err
		}
		seg.ReadAt(taken[:], 0)
		mine := binary.NativeEndian.Uint64(taken[:]) == i
		if mine {
			seg.WriteAt(binary.NativeEndian.AppendUint64(nil, i+1), 0)
		}
		if err := seg.Unlock(); err != nil {
			return err
		}
		if mine {
			do(binary.NativeEndian.Uint64(job[:]))
		}
	}
}

// Workers share the jobs of one block: each is done once.
func ExampleSegment_Lock() {
	jobs, err := shm.Create("example-work", 1<<16, shm.Empty())
	if err != nil {
		log.Fatal(err)
	}
	defer jobs.Close()
	var all sync.WaitGroup
	var mu sync.Mutex
	var done []uint64
	for range 3 {
		all.Go(func() {
			err := work(context.Background(), "example-work", func(job uint64) {
				mu.Lock()
				defer mu.Unlock()
				done = append(done, job)
			})
			if err != nil {
				log.Print(err)
			}
		})
	}
	jobs.Write(make([]byte, 8)) // none is taken
	for job := range uint64(10) {
		jobs.Write(binary.NativeEndian.AppendUint64(nil, job))
	}
	jobs.Finish()
	all.Wait()
	slices.Sort(done)
	fmt.Println(done)
	// Output: [0 1 2 3 4 5 6 7 8 9]
}

// openFilled attaches to a block that fill has filled, once, in whatever process came
// first.
func openFilled(ctx context.Context, name string, size int64, fill func(w io.Writer) error) (*shm.Segment, error) {
	seg, _, err := shm.OpenOrCreate(name, size)
	if err != nil {
		return nil, err
	}
	if err := fillOnce(ctx, seg, fill); err != nil {
		seg.Close()
		return nil, err
	}
	return seg, nil
}

func fillOnce(ctx context.Context, seg *shm.Segment, fill func(w io.Writer) error) error {
	if _, err := seg.Lock(ctx); err != nil { // waits for another process that fills the block
		return err
	}
	defer seg.Unlock()
	info, err := seg.Stat()
	if err != nil || info.Sys().(*shm.Info).Finished {
		return err
	}
	if err := fill(io.NewOffsetWriter(seg, 0)); err != nil { // again, if one was killed in it
		return err
	}
	return seg.Finish()
}

// Several processes need the same table, and one of them computes it.
func ExampleSegment_Finish() {
	ctx := context.Background()
	for range 3 {
		seg, err := openFilled(ctx, "example-once", 5, func(w io.Writer) error {
			fmt.Println("computing")
			_, err := io.WriteString(w, "table")
			return err
		})
		if err != nil {
			log.Fatal(err)
		}
		defer seg.Close()
		io.Copy(os.Stdout, seg)
		fmt.Println()
	}
	// Output:
	// computing
	// table
	// table
	// table
}

// add adds to a number in a block that other processes add to as well.
func add(ctx context.Context, seg *shm.Segment, n uint64) error {
	recovered, err := seg.Lock(ctx)
	if err != nil {
		return err
	}
	defer seg.Unlock()
	if recovered {
		log.Print("a process was killed while it had the lock")
	}
	var word [8]byte
	if _, err := seg.ReadAt(word[:], 0); err != nil {
		return err
	}
	sum := binary.NativeEndian.Uint64(word[:]) + n
	_, err = seg.WriteAt(binary.NativeEndian.AppendUint64(nil, sum), 0)
	return err
}

func ExampleSegment_TryLock() {
	seg, err := shm.Create("example-lock", 8)
	if err != nil {
		log.Fatal(err)
	}
	defer seg.Close()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 100 {
				if err := add(context.Background(), seg, 1); err != nil {
					log.Print(err)
				}
			}
		})
	}
	all.Wait()
	seg.Lock(context.Background())
	_, err = seg.TryLock()
	fmt.Println(binary.NativeEndian.Uint64(seg.Bytes()), errors.Is(err, shm.ErrLocked))
	// Output: 400 true
}

func ExampleOpenWait() {
	found := make(chan string)
	go func() {
		seg, err := shm.OpenWait(context.Background(), "example-wait")
		if err != nil {
			log.Fatal(err)
		}
		defer seg.Close()
		found <- seg.Name()
	}()
	seg, err := shm.Create("example-wait", 8)
	if err != nil {
		log.Fatal(err)
	}
	defer seg.Close()
	fmt.Println(<-found)
	// Output: example-wait
}
