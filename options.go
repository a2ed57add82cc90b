package shm

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strings"

	"github.com/shmkit/shm/internal/memsource"
	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/raw"
)

// An Option changes how a block is created or opened. The functions that return
// one say where it applies; elsewhere it is an error that is [fs.ErrInvalid].
type Option interface{ apply(*config) }

// ReadOnly makes [Open] return a Segment that cannot be written to: writing
// returns [ErrReadOnly], a write to what Bytes gave crashes the program, and one
// to what View gave is [ErrFault]. It needs permission to read only; without
// permission to write, the attachment keeps the block alive but is not in its
// count of references, and if it is the last to leave, the block stays until its
// owner's next Reap. On darwin it does not keep the block alive, only the memory.
func ReadOnly() Option { return setting{option: optReadOnly} }

// Persistent makes [Create] and [OpenOrCreate] create a block that outlives its
// attachments, until Unlink. On Windows it is [errors.ErrUnsupported]: there
// the system ends a block with its last handle.
func Persistent() Option { return setting{option: optPersistent} }

// Perm sets the permission bits of a block that [Create] or [OpenOrCreate]
// creates, unaffected by the umask. The default is 0600. Other bits than the
// nine of [fs.ModePerm] are [fs.ErrInvalid], and so is a block with a header
// that its owner may not read and write: were it to be left behind dead, nobody
// but root could remove it.
//
// On Windows there are no such permissions, so all modes mean the same: access
// for the user, the administrators and the system, which is reported as 0600.
func Perm(mode fs.FileMode) Option { return setting{option: optPerm, perm: mode} }

// Headerless makes [Create], [Open] and [OpenOrCreate] work on a raw block as
// other programs make them (shm_open in C, multiprocessing.shared_memory in
// Python): all bytes are data, nothing is counted, and the block stays until
// Unlink. Its Size is the size of the object, which some systems round up, and
// does not change. It is fs.ErrInvalid for a block with a header that is in use,
// and together with Persistent. Who creates one unlinks it with the function:
//
//	seg, err := shm.Create(name, size, shm.Headerless())
//	if err != nil {
//		return err
//	}
//	defer shm.Unlink(name)
//	defer seg.Close()
//
// Deferred calls run in the opposite order, and [Segment.Unlink] after Close is
// fs.ErrClosed.
//
// On Windows, where CPython has its blocks too, it ends with its last
// attachment, and Unlink is [errors.ErrUnsupported].
func Headerless() Option { return setting{option: optHeaderless} }

// Sparse makes [Create] and [OpenOrCreate] not reserve the memory of the block.
// Pages get memory when they are written to. If there is none left then, the
// write returns an error that is [ErrFault] and [ErrNoSpace]; a write to the
// slice of Bytes, which nothing guards, ends the program. Truncate gives the
// memory of what it cuts off back.
//
// On Linux ReadAt, Read and WriteTo take no memory, but go by system calls for
// it and so take longer for a few bytes. The slices of Bytes and View are the
// mapping itself: reading a page there that was never written allocates it, even
// if the Segment is [ReadOnly], and so does [Prefault].
//
// On Windows the memory is set aside (committed) all the same, and only not yet
// in use.
func Sparse() Option { return setting{option: optSparse} }

// Prefault maps all of the block's memory when it is created or opened, so that
// the first access to each page costs no page fault.
func Prefault() Option { return setting{option: optPrefault} }

// Label is what the Segment of [Anonymous] has for a Name, and its
// [Segment.File], and so the Segments that attach by that. It can be anything,
// and nobody finds the block by it.
func Label(name string) Option { return setting{option: optLabel, label: name} }

type optionSet uint8

const (
	optReadOnly optionSet = 1 << iota
	optPersistent
	optPerm
	optHeaderless
	optSparse
	optPrefault
	optLabel
	optAnonymous // set by Anonymous itself

	openOptions      = optReadOnly | optHeaderless | optPrefault
	anonymousOptions = optLabel | optSparse | optPrefault
	createOptions    = optPersistent | optPerm | optHeaderless | optSparse | optPrefault
)

func (s optionSet) String() string {
	var names []string
	for i, name := range []string{"ReadOnly", "Persistent", "Perm", "Headerless", "Sparse", "Prefault", "Label"} {
		if s&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, " with ")
}

// setting is the one kind of Option there is.
type setting struct {
	option optionSet
	perm   fs.FileMode // of Perm
	label  string      // of Label
	source *memsource.Source
}

func init() {
	memsource.Option = func(label string, s *memsource.Source) any {
		return setting{option: optLabel, label: label, source: s}
	}
}

func (s setting) apply(c *config) {
	c.optionSet |= s.option
	switch s.option {
	case optPerm:
		c.perm = s.perm
	case optLabel:
		c.label, c.source = s.label, s.source
	}
}

type config struct {
	optionSet
	perm   fs.FileMode
	label  string
	source *memsource.Source // of an anonymous block; nil for the system's
}

func (c config) has(o optionSet) bool { return c.optionSet&o != 0 }

// kind returns what kind of block the options are for.
func (c config) kind() kind {
	switch {
	case c.has(optAnonymous):
		return nameless
	case c.has(optHeaderless):
		return rawBlock
	}
	return named
}

func (c config) objectOptions() object.Options {
	return object.Options{
		Perm:       c.perm,
		Sparse:     c.has(optSparse),
		Headerless: c.has(optHeaderless),
		Persistent: c.has(optPersistent),
	}
}

// flags returns what the header of a new block says of the options.
func (c config) flags() (flags uint32) {
	if c.has(optPersistent) {
		flags |= flagPersistent
	}
	if c.has(optSparse) {
		flags |= flagSparse
	}
	if c.has(optAnonymous) {
		flags |= flagAnonymous
	}
	return flags
}

// newConfig returns fs.ErrInvalid for options that do not apply, or do not go
// together.
func newConfig(opts []Option, allowed optionSet) (config, error) {
	c := config{perm: 0o600}
	for _, o := range opts {
		if o == nil {
			return c, fmt.Errorf("%w: nil Option", fs.ErrInvalid)
		}
		o.apply(&c)
	}
	if wrong := c.optionSet &^ allowed; wrong != 0 {
		return c, fmt.Errorf("%w: option %v does not apply", fs.ErrInvalid, wrong)
	}
	for _, pair := range []optionSet{optHeaderless | optPersistent, optSparse | optPrefault} {
		if c.optionSet&pair == pair {
			return c, fmt.Errorf("%w: option %v", fs.ErrInvalid, pair)
		}
	}
	if !raw.Shared && !c.has(optHeaderless) {
		return c, fmt.Errorf("%w: blocks with a header need 64-bit atomic operations, which %s lacks", errors.ErrUnsupported, runtime.GOARCH)
	}
	if c.perm&^fs.ModePerm != 0 || c.perm&0o600 != 0o600 && !c.has(optHeaderless) {
		return c, fmt.Errorf("%w: permissions %v", fs.ErrInvalid, c.perm)
	}
	return c, nil
}
