package objecttest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/shmkit/shm/internal/object"
)

// Memory is an [object.System] in the ordinary memory of one process: the contract
// in its shortest form. Its descriptors are numbers that are no
// descriptors of the process.
type Memory struct {
	mu    sync.Mutex // guards all below, and the fields of every store
	names map[string]*store
	files map[uintptr]*handle // what a descriptor stands for, for FromFD
	tags  uint64              // the last one given
}

// store is an object; handle is one Object on it.
type store struct {
	mem    []byte
	mode   fs.FileMode
	sealed bool
	mutex  *handle
	alone  *handle
	joined map[*handle]bool
}

type handle struct {
	object.NoFiles
	object.Looks
	*store
	sys      *Memory
	name     string
	writable bool
	writer   bool // has joined the writers
	tag      uint64
}

// NewMemory returns a Memory without objects.
func NewMemory() *Memory {
	return &Memory{names: map[string]*store{}, files: map[uintptr]*handle{}}
}

func (m *Memory) Limits() object.Limits {
	return object.Limits{MaxName: 255, HeaderLength: os.Getpagesize(), Files: true, Restricts: true}
}

func (m *Memory) create(name string, size int64, mode fs.FileMode) *handle {
	s := &store{mem: make([]byte, size), mode: mode, joined: map[*handle]bool{}}
	return &handle{store: s, sys: m, name: name, writable: true}
}

func (m *Memory) Create(name string, size int64, opts object.Options) (object.Object, error) {
	return m.create(name, size, opts.Perm), nil
}

func (m *Memory) CreateAnonymous(size int64, _ bool) (object.Object, error) {
	h := m.create("", size, 0o600)
	h.sealed = true
	return h, nil
}

func (m *Memory) CreateMemory(size int64) (uintptr, error) {
	h, _ := m.CreateAnonymous(size, true)
	return h.Descriptor(false)
}

func (m *Memory) DuplicateMemory(fd uintptr, readOnly bool) (uintptr, error) {
	h, err := m.FromFD(fd)
	if err != nil {
		return 0, err
	}
	return h.Descriptor(readOnly)
}

func (m *Memory) IsMemory(fd uintptr) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.files[fd] != nil
}

func (m *Memory) Open(name string, write bool) (object.Object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.names[name]
	if s == nil {
		return nil, fs.ErrNotExist
	}
	return &handle{store: s, sys: m, name: name, writable: write}, nil
}

func (m *Memory) FromFD(fd uintptr) (object.Object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	file := m.files[fd]
	if file == nil {
		return nil, object.ErrNotSegment
	}
	h := *file
	if m.names[h.name] != h.store {
		h.name = ""
	}
	return &h, nil
}

func (m *Memory) UnlinkUnopened(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names[name] == nil {
		return fs.ErrNotExist
	}
	delete(m.names, name)
	return nil
}

func (m *Memory) List(f func(name string) bool) error {
	m.mu.Lock()
	var names []string
	for name := range m.names {
		names = append(names, name)
	}
	m.mu.Unlock()
	for _, name := range names {
		if !f(name) {
			break
		}
	}
	return nil
}

func (m *Memory) Watch() (object.Watch, error) { return nil, errors.ErrUnsupported }

func (m *Memory) Unmap([]byte)        {}
func (m *Memory) Revoke([]byte) error { return errors.ErrUnsupported }
func (m *Memory) Revocable() int64    { return 0 }

func (h *handle) Name() string   { return h.name }
func (h *handle) Writable() bool { return h.writable }
func (h *handle) Sealed() bool   { return h.sealed }

func (h *handle) Stat() (object.Stat, error) {
	return object.Stat{Size: int64(len(h.mem)), Mode: h.mode, ModTime: time.Time{}, Owner: -1}, nil
}

func (h *handle) Publish() error {
	h.sys.mu.Lock()
	defer h.sys.mu.Unlock()
	if h.sys.names[h.name] != nil {
		return fs.ErrExist
	}
	h.sys.names[h.name] = h.store
	return nil
}

func (h *handle) Linked() (bool, error) {
	h.sys.mu.Lock()
	defer h.sys.mu.Unlock()
	return h.sys.names[h.name] == h.store, nil
}

func (h *handle) Unlink() error { return h.sys.UnlinkUnopened(h.name) }

func (h *handle) Descriptor(readOnly bool) (uintptr, error) {
	h.sys.mu.Lock()
	defer h.sys.mu.Unlock()
	fd := uintptr(1<<30 + len(h.sys.files))
	h.sys.files[fd] = &handle{store: h.store, sys: h.sys, name: h.name, writable: h.writable && !readOnly}
	return fd, nil
}

func (h *handle) Map(length, _ int, _ bool) ([]byte, error) { return h.mem[:length:length], nil }

func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	return copy(p, h.mem[min(off, int64(len(h.mem))):]), nil
}

func (h *handle) WriteAt(p []byte, off int64) (int, error) {
	return copy(h.mem[min(off, int64(len(h.mem))):], p), nil
}

func (h *handle) Punch(off, n int64) error {
	clear(h.mem[off : off+n])
	return nil
}

func (h *handle) Close() {}

func (h *handle) Lockable() error { return nil }

func (h *handle) TryLock() error {
	h.sys.mu.Lock()
	defer h.sys.mu.Unlock()
	switch {
	case !h.writable:
		return fmt.Errorf("%w: not open for writing", fs.ErrPermission)
	case h.mutex != nil && h.mutex != h, h.alone != nil && h.alone != h:
		return object.ErrBusy
	}
	h.mutex = h
	return nil
}

func (h *handle) Unlock() {
	h.sys.mu.Lock()
	defer h.sys.mu.Unlock()
	if h.mutex == h {
		h.mutex = nil
	}
}

func (h *handle) Join(writer bool, used func(tag uint64) bool) error {
	h.sys.mu.Lock()
	defer h.sys.mu.Unlock()
	if h.alone != nil && h.alone != h {
		return object.ErrBusy
	}
	for h.sys.tags++; used != nil && used(h.sys.tags); h.sys.tags++ {
	}
	h.alone, h.joined[h] = nil, true
	h.tag, h.writer = h.sys.tags, writer
	return nil
}

func (h *handle) SetWriter(writer bool) error {
	h.sys.mu.Lock()
	defer h.sys.mu.Unlock()
	h.writer = writer
	return nil
}

func (h *handle) Writers() (bool, error) {
	h.sys.mu.Lock()
	defer h.sys.mu.Unlock()
	for other := range h.joined {
		if other != h && other.writer {
			return true, nil
		}
	}
	return false, nil
}

func (h *handle) Tag() uint64 { return h.tag }

func (h *handle) Gone(tag uint64) bool {
	h.sys.mu.Lock()
	defer h.sys.mu.Unlock()
	for other := range h.joined {
		if other.tag == tag && other.writer {
			return false
		}
	}
	return true
}

func (h *handle) TryAlone() error {
	h.sys.mu.Lock()
	defer h.sys.mu.Unlock()
	if h.others() || h.alone != nil && h.alone != h || h.mutex != nil && h.mutex != h {
		return object.ErrBusy
	}
	h.alone = h
	return nil
}

func (h *handle) Count() (int, error) {
	h.sys.mu.Lock()
	defer h.sys.mu.Unlock()
	n := len(h.joined)
	if h.joined[h] {
		n--
	}
	return n, nil
}

func (h *handle) Holders() ([]object.Holder, error) { return nil, errors.ErrUnsupported }

func (h *handle) others() bool { return len(h.joined) > 1 || len(h.joined) == 1 && !h.joined[h] }

func (h *handle) Others() (object.Presence, error) {
	h.sys.mu.Lock()
	defer h.sys.mu.Unlock()
	switch {
	case h.alone != nil && h.alone != h:
		return object.Deciding, nil
	case h.others():
		return object.Somebody, nil
	}
	return object.Nobody, nil
}

func (h *handle) Leave() {
	h.Unlock()
	h.sys.mu.Lock()
	defer h.sys.mu.Unlock()
	delete(h.joined, h)
	if h.alone == h {
		h.alone = nil
	}
}
