//go:build linux || darwin

package posixshm

import "github.com/shmkit/shm/internal/object"

const (
	ObjectPage    = objectPage
	NameStart     = nameStart
	LockPageStart = lockPageStart
	BirthMark     = birthMark
	AnonymousMode = anonymousMode
)

func (s *System) Self() (uint64, error)              { return s.self() }
func (s *System) Token(pid int, start uint64) uint64 { return s.newToken(pid, start) }
func (s *System) Gone(token uint64) bool             { return s.gone(token) }
func (s *System) IsBlock(name string) bool           { return s.isBlock(name) }

// PrepareUnborn goes on where a creator was that has made an object, open as fd.
func (s *System) PrepareUnborn(fd int, name string, size int64) error {
	h := &handle{sys: s, fd: fd, name: name, writable: true, unborn: true}
	err := h.prepare(size)
	h.Leave()
	h.unmapHead()
	return err
}

// ReleaseMutex is for an object as it is before its creator has the mutex.
func ReleaseMutex(o object.Object) { o.(*handle).page.Unlock() }

// Finish does what is left to its creator to do.
func Finish(o object.Object) {
	o.(*handle).page.Lock()
	o.Publish()
}

// Unborn reports whether the object is not published.
func Unborn(o object.Object) bool { return o.(*handle).unborn }

// ForgetSelf has the token of this process be found anew.
func (s *System) ForgetSelf() { s.token.Store(0) }

// SetSelf replaces how the token of this process is found, until restore.
func (s *System) SetSelf(f func() (uint64, error)) (restore func()) {
	old := s.self
	s.self = f
	return func() { s.self = old }
}
