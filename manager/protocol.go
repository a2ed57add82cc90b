package manager

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/shmkit/shm"
)

// A server and its client talk in lines of JSON over a stream. The server
// begins, with a response that has its version, or the error why it will not
// talk. Then each request of the client is answered by one response. The
// descriptor of a block travels, by SCM_RIGHTS, with the first byte of the
// response to its opOpen.
//
// To create a block on Linux, a client asks for memory, by opMemory, builds the
// block in it, and has it kept, by opCreate. The server creates the memory and
// never touches it; it is charged to the client, which reserves it. Nothing but
// bytes travels to the server: see conn.
//
// On darwin the client creates the memory, and the descriptor travels with the
// first byte of its opCreate. On Windows, where the stream is a named pipe, the
// client does so, too, and the lines have the name of the block's section instead.
const (
	protocolVersion = 2

	maxRequest  = 4 << 10  // bytes in a line, with its end
	maxResponse = 64 << 10 // the same
	pageSize    = 32       // blocks in a response to opList: what waits for a client that does not read
)

// Operations.
const (
	opMemory  = "memory"
	opCreate  = "create"
	opOpen    = "open"
	opList    = "list"
	opRelease = "release"
)

type request struct {
	Op       string `json:"op"`
	Name     string `json:"name,omitempty"` // of the block; for opList, list what comes after it
	Cap      int64  `json:"cap,omitempty"`
	Size     int64  `json:"size,omitempty"` // for opMemory, bytes with the header; 0 gives back what was not used
	ReadOnly bool   `json:"read_only,omitempty"`
	Lease    bool   `json:"lease,omitempty"`
	Section  string `json:"section,omitempty"` // on Windows, for the descriptor
}

type response struct {
	Version int    `json:"version,omitempty"`
	Code    string `json:"code,omitempty"`  // of an error, "" for none
	Error   string `json:"error,omitempty"` // for people
	Blocks  []Info `json:"blocks,omitempty"`
	More    bool   `json:"more,omitempty"`    // blocks come after these
	Section string `json:"section,omitempty"` // on Windows, for the descriptor

	lost error // why the descriptor that came with it is not there
}

// ErrQuota is a request that would exceed what the server grants, blocks, bytes,
// or clients, or what it has itself, descriptors. It is [shm.ErrNoSpace] as well.
var ErrQuota = fmt.Errorf("quota of the manager: %w", shm.ErrNoSpace)

// ErrGone is a server that is not there, or not there any more. What it gave
// before stays usable.
var ErrGone = errors.New("manager is gone")

// codes says how errors travel; the first that an error is counts.
var codes = []struct {
	code string
	err  error
}{
	{"quota", ErrQuota},
	{"no_space", shm.ErrNoSpace},
	{"exist", fs.ErrExist},
	{"not_exist", fs.ErrNotExist},
	{"permission", fs.ErrPermission},
	{"busy", shm.ErrBusy},
	{"invalid", fs.ErrInvalid},
	{"unsupported", errors.ErrUnsupported},
	{"failed", nil},
}

// failure returns the response that err is.
func failure(err error) response {
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		err = path.Err // the client has its own words for the rest
	}
	for _, c := range codes {
		if c.err == nil || errors.Is(err, c.err) {
			return response{Code: c.code, Error: err.Error()}
		}
	}
	panic("unreachable")
}

// err returns the error that the response is, or nil.
func (r response) err() error {
	if r.Code == "" {
		return nil
	}
	e := &remoteError{text: r.Error}
	for _, c := range codes {
		if c.code == r.Code {
			e.err = c.err
		}
	}
	return e
}

// remoteError is an error that came from the server.
type remoteError struct {
	text string
	err  error // what it is, if known
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.err }

// marshal returns v as a line.
func marshal(v any) []byte {
	line, err := json.Marshal(v)
	if err != nil {
		panic(err) // requests and responses always can be
	}
	return append(line, '\n')
}

// unmarshal reads the one value that the line must be.
func unmarshal(line []byte, v any) error {
	if err := json.Unmarshal(bytes.TrimSuffix(line, []byte("\n")), v); err != nil {
		return fmt.Errorf("%w: %w", fs.ErrInvalid, err)
	}
	return nil
}

// maxName is what package shm allows on Linux; a server has names of its own.
const maxName = 255
