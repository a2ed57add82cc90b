package shm

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"strconv"
	"time"

	"github.com/shmkit/shm/internal/object"
)

// Info describes a block. It repeats what the header of the block says, which can be
// wrong if another program has written to the header.
//
// The JSON form is that of "shm ls --json". Mode is a string in octal, ID a string in
// hexadecimal, and times that are zero are left out. The field "state" is "attached",
// "kept" (Persistent and not attached), "stale" or "raw" (Headerless).
type Info struct {
	Name       string      `json:"name"`
	Size       int64       `json:"size"`              // bytes it holds
	Cap        int64       `json:"cap"`               // bytes it can hold
	Refs       int         `json:"refs"`              // see [Segment.Refs]
	Holders    []Holder    `json:"holders,omitempty"` // who is attached, where the system knows: not on Windows, nor of an anonymous block
	Attached   bool        `json:"attached"`          // the kernel's locks show an attachment; false for a Headerless block
	Linked     bool        `json:"linked"`            // the name leads to this block
	Headerless bool        `json:"headerless"`
	Persistent bool        `json:"persistent"` // or kept by Keep
	Finished   bool        `json:"finished"`   // see [Segment.Finish]
	Sparse     bool        `json:"sparse"`
	Owner      int         `json:"owner"`            // user id; -1 where the system has none
	Mode       fs.FileMode `json:"mode"`             // permission bits
	ModTime    time.Time   `json:"modTime,omitzero"` // of the system, zero where it has none; stores to mapped memory do not change it
	Created    time.Time   `json:"created,omitzero"` // zero for a Headerless block
	Creator    int         `json:"creator"`          // process id in the creator's namespace; 0 for a Headerless block
	ID         [16]byte    `json:"-"`                // random, distinguishes blocks of one name; zero for a Headerless block
}

// Stale reports whether the block is stale: it has a header, is not Persistent, and
// no process is attached to it. The next [Reap] by a process that is permitted to
// unlink it removes it, unless a stopped process holds its mutex.
func (i Info) Stale() bool { return !i.Headerless && !i.Persistent && !i.Attached }

func (i Info) state() string {
	switch {
	case i.Headerless:
		return "raw"
	case i.Attached:
		return "attached"
	case i.Persistent:
		return "kept"
	}
	return "stale"
}

// infoJSON is the JSON form of an Info. Its own fields hide those of plainInfo.
type infoJSON struct {
	plainInfo
	State string `json:"state"`
	Mode  string `json:"mode"`
	ID    string `json:"id,omitempty"` // a Headerless block has none
}

type plainInfo Info // without methods

func newInfoJSON(i Info) infoJSON {
	j := infoJSON{plainInfo: plainInfo(i), State: i.state(), Mode: fmt.Sprintf("%04o", i.Mode.Perm())}
	if i.ID != [16]byte{} {
		j.ID = hex.EncodeToString(i.ID[:])
	}
	return j
}

// MarshalJSON implements [json.Marshaler].
func (i Info) MarshalJSON() ([]byte, error) { return json.Marshal(newInfoJSON(i)) }

// UnmarshalJSON implements [json.Unmarshaler].
func (i *Info) UnmarshalJSON(data []byte) error {
	j := newInfoJSON(*i)
	if err := json.Unmarshal(data, &j); err != nil {
		return err
	}
	mode, err := strconv.ParseUint(j.Mode, 8, 9)
	if err != nil {
		return fmt.Errorf("mode %q: not permission bits in octal: %w", j.Mode, fs.ErrInvalid)
	}
	id, err := hex.DecodeString(j.ID)
	if err != nil || len(id) != 0 && len(id) != len(i.ID) {
		return fmt.Errorf("id %q: not 16 bytes in hexadecimal: %w", j.ID, fs.ErrInvalid)
	}
	*i = Info(j.plainInfo)
	i.Mode, i.ID = fs.FileMode(mode), [16]byte{}
	copy(i.ID[:], id)
	return nil
}

func newInfo(name string, obj object.Stat, l layout) Info {
	i := newRawInfo(name, obj)
	i.Headerless, i.Persistent, i.Sparse = false, l.persistent(), l.sparse()
	i.Cap, i.Created, i.Creator, i.ID = l.capacity, l.created, l.creator, l.id
	return i
}

func newRawInfo(name string, obj object.Stat) Info {
	return Info{
		Name:       name,
		Size:       obj.Size,
		Cap:        obj.Size,
		Linked:     true,
		Headerless: true,
		Owner:      obj.Owner,
		Mode:       obj.Mode,
		ModTime:    obj.ModTime,
	}
}

// setWords sets the fields that come from the words of the header.
func (i *Info) setWords(h header) {
	size := h.loadSize()
	i.Size, i.Finished = int64(min(size.length(), uint64(i.Cap))), size.has(finished)
	i.Persistent = i.Persistent || h.keep().Load() != 0
	i.Refs = h.refs()
}

// Stat returns a description of the block. The Sys method of the result returns an
// [*Info]. Its ModTime is zero: stores to shared memory do not change a time, so with
// any other [net/http.ServeContent] would take an outdated copy for a current one.
//
// The error is [ErrFault] if another program has truncated the block so far that the
// header is lost, or [fs.ErrClosed].
func (s *Segment) Stat() (fi fs.FileInfo, err error) {
	err = s.use("stat", func(h *handle) error {
		info, err := h.stat()
		if err == nil {
			fi = fileInfo{info}
		}
		return pathError("stat", h.name, err)
	})
	return fi, err
}

func (a *attachment) stat() (*Info, error) {
	obj, err := a.obj.Stat()
	if err != nil {
		return nil, err
	}
	info := newRawInfo(a.name, obj)
	if a.kind != rawBlock {
		info = newInfo(a.name, obj, a.layout)
		info.Attached = true
		if err := a.words(info.setWords); err != nil {
			return nil, err
		}
		if info.Refs, info.Holders, err = a.holders(); err != nil {
			return nil, err
		}
	}
	if info.Linked = false; a.kind != nameless {
		info.Linked, err = a.obj.Linked()
	}
	return &info, err
}

// Stat returns a description of the block called name, stale ones included. It
// neither attaches to the block nor takes a lock.
//
// The error is [fs.ErrNotExist], [fs.ErrPermission] if the process is not permitted to
// read the block, [fs.ErrInvalid] for a bad name, [ErrNotSegment] if the name is that
// of a file that is not regular, [ErrCorrupt], [ErrVersion], or
// [errors.ErrUnsupported].
func Stat(name string) (*Info, error) {
	info, err := inspect(name)
	if err != nil {
		return nil, nameError("stat", name, err)
	}
	return &info, nil
}

func inspect(name string) (Info, error) {
	name, err := checkName(name)
	if err != nil {
		return Info{}, err
	}
	o, err := object.Current.Open(name, false)
	if err != nil {
		return Info{}, err
	}
	defer o.Close()
	obj, err := o.Stat()
	if err != nil {
		return Info{}, err
	}
	l, h, err := readHeader(o, obj.Size)
	switch {
	case err == ErrNotSegment:
		return newRawInfo(name, obj), nil
	case err != nil:
		return Info{}, err
	}
	info := newInfo(name, obj, l)
	info.setWords(h)
	others, err := o.Others()
	info.Attached = others != object.Nobody
	if err == nil {
		info.Refs, info.Holders, err = holders(o)
	}
	return info, err
}

// fileInfo implements fs.FileInfo by an Info.
type fileInfo struct{ info *Info }

func (f fileInfo) Name() string       { return f.info.Name }
func (f fileInfo) Size() int64        { return f.info.Size }
func (f fileInfo) Mode() fs.FileMode  { return f.info.Mode }
func (f fileInfo) ModTime() time.Time { return time.Time{} } // see Segment.Stat
func (f fileInfo) IsDir() bool        { return false }
func (f fileInfo) Sys() any           { return f.info }

// List returns descriptions of all blocks, stale and Headerless ones included, in no
// particular order. It leaves out blocks that the process is not permitted to read,
// blocks with a damaged header, and names that no block can have. It takes no locks.
// On error, such as syscall.EMFILE, it also returns the blocks that it has read so
// far. On darwin, where names cannot be listed, the error is [errors.ErrUnsupported].
func List() ([]Info, error) {
	var list []Info
	err := eachName(func(name string) error {
		info, err := inspect(name)
		if err == nil {
			list = append(list, info)
		}
		return err
	})
	return list, pathError("list", "", err)
}
