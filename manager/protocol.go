package manager

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/shmkit/shm"
)

// A server and a client exchange lines of JSON over a stream. The server sends the
// first line: a response with its version, or the error for which it refuses the
// client. After that it answers each request with one response.
//
// To create a block, a client asks for memory (opMemory), builds the block in it, and
// has it kept (opCreate). The server creates the memory and never accesses it; the
// client reserves it, and so is charged for it. To open a block is opOpen.
//
// The memory travels from the server to the client only: beside the response, as a
// descriptor by SCM_RIGHTS of unix(7). On Windows, where the stream is a named pipe,
// the response has the name of a section instead.
const (
	protocolVersion = 2

	maxRequest  = 4 << 10  // bytes in a line, with its end
	maxResponse = 64 << 10 // the same
	pageSize    = 32       // blocks in a response to opList: what waits for a client that does not read

	maxName = 255 // bytes in the name of a block
)

// Operations.
const (
	opMemory  = "memory"
	opCreate  = "create"
	opOpen    = "open"
	opList    = "list"
	opRelease = "release"
)

var errBadName = fmt.Errorf("%w: a name has 1 to %d of A-Z a-z 0-9 . _ - and does not begin with a dot", fs.ErrInvalid, maxName)

type request struct {
	Op       string `json:"op"`
	Name     string `json:"name,omitempty"` // of the block; for opList, list the names after it
	Cap      int64  `json:"cap,omitempty"`
	Size     int64  `json:"size,omitempty"` // for opMemory, bytes with the header; 0 releases unused memory
	ReadOnly bool   `json:"read_only,omitempty"`
	Lease    bool   `json:"lease,omitempty"`
}

// wantsFile reports whether a file comes with the response, unless that is an error.
func (r request) wantsFile() bool { return r.Op == opOpen || r.Op == opMemory && r.Size != 0 }

type response struct {
	Version int    `json:"version,omitempty"`
	Code    string `json:"code,omitempty"`  // of an error, "" for none
	Error   string `json:"error,omitempty"` // for people
	Blocks  []Info `json:"blocks,omitempty"`
	More    bool   `json:"more,omitempty"`    // blocks come after these
	Section string `json:"section,omitempty"` // on Windows, the name of the memory
}

// ErrQuota is returned for a request that exceeds what the server grants (blocks,
// bytes, clients) or what it has itself, such as descriptors. It is [shm.ErrNoSpace]
// as well.
var ErrQuota = fmt.Errorf("quota of the manager: %w", shm.ErrNoSpace)

// ErrGone is returned if there is no server, or it has ended. Segments stay usable.
var ErrGone = errors.New("manager is gone")

// codes are the errors of responses. The first that an error matches is used.
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
}

// failure returns err as a response.
func failure(err error) response {
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		err = path.Err // the client adds its own operation and name
	}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return response{Code: c.code, Error: err.Error()}
		}
	}
	return response{Code: "failed", Error: err.Error()}
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

// remoteError is an error of the server.
type remoteError struct {
	text string
	err  error // of codes, or nil
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.err }

// marshal returns v as a line.
func marshal(v any) []byte {
	line, err := json.Marshal(v)
	if err != nil {
		panic(err) // there is always JSON for a request or a response
	}
	return append(line, '\n')
}
