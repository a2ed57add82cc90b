package manager

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/object"
)

// block is memory that a server keeps under a name.
type block struct {
	info  Info
	owner *client  // that has created it, and can have disconnected
	file  *os.File // of the memory
}

// Quota bounds blocks. Zero is the default.
type Quota struct {
	Blocks int
	Bytes  int64 // of their Caps
}

// check returns ErrQuota if q does not allow one more block of size bytes to whose
// blocks are used.
func (q Quota) check(whose string, used Quota, size int64) error {
	switch {
	case q.Blocks != 0 && used.Blocks >= q.Blocks:
		return fmt.Errorf("%w: one more block: %d of at most %d blocks %s are in use", ErrQuota, used.Blocks, q.Blocks, whose)
	case q.Bytes != 0 && size > q.Bytes-used.Bytes:
		return fmt.Errorf("%w: %d more bytes: %d of at most %d bytes %s are in use", ErrQuota, size, used.Bytes, q.Bytes, whose)
	}
	return nil
}

// create creates the memory for a block of c and returns a file of it. It releases
// memory of an earlier call that no block was made of; with a size of 0 that is all.
func (s *server) create(c *client, req request) (*os.File, error) {
	c.memory.Close() // if there is one
	c.memory = nil
	if req.Size == 0 {
		return nil, nil
	}
	if err := checkSize(req.Size, req.Cap); err != nil {
		return nil, err
	}
	s.mu.Lock()
	err := s.check(c, req.Name, req.Cap) // also before there is the memory
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	fd, err := object.Current.CreateMemory(req.Size)
	if err != nil {
		return nil, quotaError(err)
	}
	c.memory, c.size = os.NewFile(fd, "memory"), req.Size
	return share(c.memory, false)
}

// keep keeps the memory that c has asked for as a new block.
func (s *server) keep(c *client, req request) error {
	f := c.memory
	if c.memory = nil; f == nil {
		return fmt.Errorf("%w: no memory was asked for", fs.ErrInvalid)
	}
	err := checkSize(c.size, req.Cap)
	if err == nil {
		info := Info{Name: req.Name, Cap: req.Cap, Created: time.Now(), Creator: c.peer.PID, Leased: req.Lease}
		err = s.add(&block{info: info, owner: c, file: f})
	}
	if err != nil {
		f.Close()
	}
	return err
}

// checkSize checks that size bytes of memory have room for a block with a Cap of
// capacity bytes and its header, and no more. What is in the memory, each client
// checks that attaches.
func checkSize(size, capacity int64) error {
	const mostHeader = 64 << 10 // of package shm
	if capacity <= 0 || size <= capacity || size-capacity > mostHeader {
		return fmt.Errorf("%w: %d bytes for a Cap of %d", fs.ErrInvalid, size, capacity)
	}
	return nil
}

// share returns another file of the memory f, to be sent to a client.
func share(f *os.File, readOnly bool) (*os.File, error) {
	fd, err := object.WithFD(f, func(fd uintptr) (uintptr, error) { return object.Current.DuplicateMemory(fd, readOnly) })
	if err != nil {
		return nil, quotaError(err)
	}
	return os.NewFile(fd, ""), nil
}

// quotaError makes a lack of memory or descriptors in the server ErrQuota.
func quotaError(err error) error {
	if isPassing(err) || errors.Is(err, shm.ErrNoSpace) {
		return fmt.Errorf("%w: %v", ErrQuota, err)
	}
	return err
}

// find returns where the block called name is in s.blocks, or would be. The caller
// holds s.mu.
func (s *server) find(name string) (i int, found bool) {
	return slices.BinarySearchFunc(s.blocks, name, func(b *block, name string) int { return strings.Compare(b.info.Name, name) })
}

// check returns the error for a block that may not be added. The caller holds s.mu.
func (s *server) check(c *client, name string, capacity int64) error {
	if s.ended {
		return ErrGone
	}
	if _, found := s.find(name); found {
		return fs.ErrExist
	}
	if err := s.perClient.check("of this client", c.used, capacity); err != nil {
		return err
	}
	return s.total.check("of all clients", s.used, capacity)
}

// add adds b to the blocks if it may be added.
func (s *server) add(b *block) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(b.owner, b.info.Name, b.info.Cap); err != nil {
		return err
	}
	i, _ := s.find(b.info.Name)
	s.blocks = slices.Insert(s.blocks, i, b)
	s.count(b, 1)
	return nil
}

// count counts b as used n times more. The caller holds s.mu.
func (s *server) count(b *block, n int) {
	for _, q := range []*Quota{&s.used, &b.owner.used} {
		q.Blocks += n
		q.Bytes += int64(n) * b.info.Cap
	}
}

func (s *server) release(name string) error {
	s.mu.Lock()
	i, found := s.find(name)
	if !found {
		s.mu.Unlock()
		return fs.ErrNotExist
	}
	b := s.blocks[i]
	s.blocks = slices.Delete(s.blocks, i, i+1)
	s.count(b, -1)
	s.mu.Unlock()
	b.file.Close()
	return nil
}

// removeAll removes the blocks for which f returns true. The caller holds s.mu, and
// closes the files of these blocks without it: to free much memory takes long.
func (s *server) removeAll(f func(*block) bool) (removed []*block) {
	s.blocks = slices.DeleteFunc(s.blocks, func(b *block) bool {
		if !f(b) {
			return false
		}
		s.count(b, -1)
		removed = append(removed, b)
		return true
	})
	return removed
}

func (s *server) open(req request) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock() // which keeps the file open
	i, found := s.find(req.Name)
	if !found {
		return nil, fs.ErrNotExist
	}
	return share(s.blocks[i].file, req.ReadOnly)
}

// list returns the first blocks of those whose names come after the one given.
func (s *server) list(after string) (r response) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, found := s.find(after)
	if found {
		i++
	}
	page := s.blocks[i:]
	if len(page) > pageSize {
		page, r.More = page[:pageSize], true
	}
	for _, b := range page {
		r.Blocks = append(r.Blocks, b.info)
	}
	return r
}
