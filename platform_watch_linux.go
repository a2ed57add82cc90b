package shm

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shm/internal/object"
)

// watch implements [object.Watch] by inotify(7) on the directory.
type watch struct{ file *os.File }

// Watch implements [object.System]. A user has 128 instances of inotify; where they
// are used up, or there is none, the error is errors.ErrUnsupported.
func (tmpfs) Watch() (object.Watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, errors.ErrUnsupported
	}
	// linkat(2) of a new block is IN_CREATE. A block of another program gets a size
	// after that.
	if _, err := unix.InotifyAddWatch(fd, shmDir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_MODIFY|unix.IN_ONLYDIR); err != nil {
		unix.Close(fd)
		return nil, errors.ErrUnsupported
	}
	return watch{os.NewFile(uintptr(fd), "inotify")}, nil
}

// Next implements [object.Watch]: any event means to look, also that some were lost.
func (w watch) Next(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { w.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err := w.file.Read(make([]byte, 64<<10))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (w watch) Close() { w.file.Close() }
