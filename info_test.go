package shm_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/shmkit/shm"
)

func TestInfoJSON(t *testing.T) {
	created := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, test := range []struct {
		info shm.Info
		want string
	}{
		{
			shm.Info{Name: "frames", Size: 5, Cap: 4096, Refs: 2, Attached: true, Linked: true, Sparse: true,
				Owner: 1000, Mode: 0o640, ModTime: created, Created: created, Creator: 7, ID: [16]byte{0xab, 15: 1}},
			`{"name":"frames","size":5,"cap":4096,"refs":2,"attached":true,"linked":true,"headerless":false,"persistent":false,` +
				`"sparse":true,"owner":1000,"modTime":"2026-01-02T03:04:05Z","created":"2026-01-02T03:04:05Z","creator":7,` +
				`"state":"attached","mode":"0640","id":"ab000000000000000000000000000001"}`,
		},
		{
			shm.Info{Name: "psm_1", Headerless: true, Owner: -1},
			`{"name":"psm_1","size":0,"cap":0,"refs":0,"attached":false,"linked":false,"headerless":true,"persistent":false,` +
				`"sparse":false,"owner":-1,"creator":0,"state":"raw","mode":"0000"}`,
		},
		{shm.Info{Persistent: true}, `"state":"kept"`},
		{shm.Info{}, `"state":"stale"`},
	} {
		data, err := json.Marshal(test.info)
		if err != nil || !strings.Contains(string(data), test.want) {
			t.Errorf("%+v is %s, %v\nwant %s", test.info, data, err, test.want)
		}
		var back shm.Info
		if err := json.Unmarshal(data, &back); err != nil || back != test.info {
			t.Errorf("%s is %+v, %v\nwant %+v", data, back, err, test.info)
		}
	}

	// As of other structs, what is not mentioned stays.
	info := shm.Info{Name: "a", Mode: 0o600, ID: [16]byte{1}}
	want := info
	if err := json.Unmarshal([]byte("null"), &info); err != nil || info != want {
		t.Errorf("null makes it %+v, %v", info, err)
	}
	want.Size = 5
	if err := json.Unmarshal([]byte(`{"size":5}`), &info); err != nil || info != want {
		t.Errorf("a size makes it %+v, %v", info, err)
	}
	for _, bad := range []string{`{"mode":"0999"}`, `{"mode":"01000"}`, `{"id":"ab"}`, `{"id":"x"}`} {
		if err := json.Unmarshal([]byte(bad), &info); !errors.Is(err, fs.ErrInvalid) || info != want {
			t.Errorf("%s makes it %+v, %v", bad, info, err)
		}
	}
}
