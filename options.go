package shm

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strings"

	"github.com/shmkit/shm/internal/object"
	"github.com/shmkit/shm/internal/raw"
)

// An Option changes how a block is created or opened. The documentation of each
// function lists the options that apply; any other is [fs.ErrInvalid].
type Option interface{ apply(*config) }

// ReadOnly makes [Open] and [FromFile] return a Segment that cannot be written to.
// Writes return [ErrReadOnly]. A store to the slice from Bytes crashes the program; a
// store to the slice in View is [ErrFault].
//
// Permission to read the block is sufficient. Without permission to write, the
// attachment keeps the block as any other, but [Segment.Refs] does not count it, and
// if it is the last one it cannot unlink: the block is then stale. On darwin such an
// attachment keeps the memory but not the name of the block.
func ReadOnly() Option { return setting{option: optReadOnly} }

// Persistent makes [Create] and [OpenOrCreate] create a block that stays after its
// last attachment, until Unlink. On Windows, where the system ends a block with its
// last handle, it is [errors.ErrUnsupported].
func Persistent() Option { return setting{option: optPersistent} }

// Perm sets the permission bits of a block that [Create] or [OpenOrCreate] creates,
// whatever the umask. The default is 0600. Bits other than the nine of [fs.ModePerm]
// are [fs.ErrInvalid]. So is a mode without 0600, unless the block is Headerless: only
// root could reap such a block when it is stale.
//
// On Windows all modes mean the same, and are reported as 0600: access for the user,
// the administrators and the system.
func Perm(mode fs.FileMode) Option { return setting{option: optPerm, perm: mode} }

// Headerless makes [Create], [Open], [OpenOrCreate] and [FromFile] work on a raw
// block, as other programs create them (shm_open in C, multiprocessing.shared_memory
// in Python). All its bytes are data, attachments are not counted, and it stays until
// Unlink. Size and Cap are the size of the object, which some systems round up, and
// do not change. Headerless is fs.ErrInvalid for a block with a header that is not
// stale, and together with Persistent.
//
// Unlink a block that you create by the function, not the method:
//
//	seg, err := shm.Create(name, size, shm.Headerless())
//	if err != nil {
//		return err
//	}
//	defer shm.Unlink(name)
//	defer seg.Close()
//
// Deferred calls run in reverse order, and [Segment.Unlink] after Close returns
// fs.ErrClosed.
//
// On Windows a raw block ends with its last attachment, as those of CPython do, and
// Unlink is [errors.ErrUnsupported].
func Headerless() Option { return setting{option: optHeaderless} }

// Sparse makes [Create], [OpenOrCreate] and [Anonymous] create a block whose memory
// is not reserved. A page gets memory when it is first written to. If there is none
// left, the write returns an error that is both [ErrFault] and [ErrNoSpace]; a store
// to the slice from Bytes crashes the program. Truncate releases the memory of the
// bytes that it cuts off.
//
// On Linux ReadAt, Read and WriteTo allocate no memory. They use system calls for
// that, which makes short reads slower. The slices of Bytes and View are the mapping
// itself: reading a page there that was never written allocates it, even through a
// [ReadOnly] Segment. So does opening the block with [Prefault].
//
// On Windows the memory is committed, though not yet in use.
func Sparse() Option { return setting{option: optSparse} }

// Empty makes [Create], [OpenOrCreate] and [Anonymous] create a block with Size 0, to be
// filled by a stream: its readers see what has been written, and no zeros. It is
// fs.ErrInvalid together with Headerless.
func Empty() Option { return setting{option: optEmpty} }

// Prefault maps all memory of the block when it is created or opened, so that the
// first access to each page does not cost a page fault.
func Prefault() Option { return setting{option: optPrefault} }

// Label sets the [Segment.Name] of a block that [Anonymous] creates. The files of
// [Segment.File] and the Segments that attach by them have it as well. It can be any
// string, and does not make the block known to other processes.
func Label(name string) Option { return setting{option: optLabel, label: name} }

type optionSet uint16

const (
	optReadOnly optionSet = 1 << iota
	optPersistent
	optPerm
	optHeaderless
	optSparse
	optPrefault
	optLabel
	optEmpty
	optAnonymous // set by Anonymous

	openOptions      = optReadOnly | optHeaderless | optPrefault
	anonymousOptions = optLabel | optSparse | optPrefault | optEmpty
	createOptions    = optPersistent | optPerm | optHeaderless | optSparse | optPrefault | optEmpty
)

func (s optionSet) String() string {
	var names []string
	for i, name := range []string{"ReadOnly", "Persistent", "Perm", "Headerless", "Sparse", "Prefault", "Label", "Empty"} {
		if s&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// setting is the only implementation of Option.
type setting struct {
	option optionSet
	perm   fs.FileMode // of Perm
	label  string      // of Label
}

func (s setting) apply(c *config) {
	c.optionSet |= s.option
	switch s.option {
	case optPerm:
		c.perm = s.perm
	case optLabel:
		c.label = s.label
	}
}

type config struct {
	optionSet
	perm   fs.FileMode
	label  string
	source object.MemorySource // of an anonymous block; nil for the system's
}

func (c config) has(o optionSet) bool { return c.optionSet&o != 0 }

// kind returns the kind of block that the options are for.
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

// flags returns the flags in the header of a new block.
func (c config) flags() (flags uint32) {
	for o, f := range map[optionSet]uint32{optPersistent: flagPersistent, optSparse: flagSparse, optAnonymous: flagAnonymous} {
		if c.has(o) {
			flags |= f
		}
	}
	return flags
}

// newConfig returns fs.ErrInvalid for options that are not allowed, cannot be
// combined, or have a bad value.
func newConfig(opts []Option, allowed optionSet) (config, error) {
	c := config{perm: 0o600}
	for _, o := range opts {
		if o == nil {
			return c, fmt.Errorf("%w: nil Option", fs.ErrInvalid)
		}
		o.apply(&c)
		if o, ok := o.(interface{ MemorySource() object.MemorySource }); ok {
			c.source = o.MemorySource()
		}
	}
	if wrong := c.optionSet &^ allowed; wrong != 0 {
		return c, fmt.Errorf("%w: option %v does not apply: allowed are %v", fs.ErrInvalid, wrong, allowed)
	}
	for _, pair := range []optionSet{optHeaderless | optPersistent, optHeaderless | optEmpty, optSparse | optPrefault} {
		if c.optionSet&pair == pair {
			return c, fmt.Errorf("%w: options %v cannot be combined", fs.ErrInvalid, pair)
		}
	}
	if !raw.Shared && !c.has(optHeaderless) {
		return c, fmt.Errorf("%w: blocks with a header need 64-bit atomic operations, which %s lacks", errors.ErrUnsupported, runtime.GOARCH)
	}
	if c.perm&^fs.ModePerm != 0 || c.perm&0o600 != 0o600 && !c.has(optHeaderless) {
		return c, fmt.Errorf("%w: permissions %#o: must be within 0777 and, with a header, include 0600", fs.ErrInvalid, uint32(c.perm))
	}
	return c, nil
}
