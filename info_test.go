package shm_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
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

// TestAnonymousConcurrent uses new anonymous blocks from several goroutines at
// once, by the calls that ask the system about them. It is for the race detector.
func TestAnonymousConcurrent(t *testing.T) {
	for range 20 {
		seg := anonymous(t, 1<<20)
		for _, seg := range []*shm.Segment{seg, take(t, file(t, seg))} {
			begin := make(chan bool)
			var all sync.WaitGroup
			for i := range int64(4) {
				all.Go(func() {
					<-begin
					if _, err := seg.Stat(); err != nil {
						t.Error(err)
					}
				})
				all.Go(func() {
					<-begin
					if _, err := seg.WriteAt(make([]byte, 64<<10), i*64<<10); err != nil {
						t.Error(err)
					}
				})
			}
			close(begin)
			all.Wait()
		}
	}
}

func TestStatAndList(t *testing.T) {
	mode := fs.FileMode(0o640)
	seg := block(t, 1000, shm.Sparse(), shm.Perm(mode))
	if shm.NamesStay() { // there are no such permissions
		mode = 0o600
	}
	seg.Truncate(17)
	fi, err := seg.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if fi.Name() != seg.Name() || fi.Size() != 17 || fi.Mode() != mode || fi.IsDir() || !fi.ModTime().IsZero() {
		t.Errorf("FileInfo %v", fi)
	}
	own := *fi.Sys().(*shm.Info)
	if own.Cap != 1000 || own.Refs != 1 || !own.Attached || !own.Linked || own.Headerless || own.Persistent || !own.Sparse ||
		own.Creator != os.Getpid() || own.Created.IsZero() || own.ModTime.IsZero() && !shm.BornNamed() || own.ID == [16]byte{} || own.Stale() {
		t.Errorf("Info %+v", own)
	}
	other, err := shm.Stat(seg.Name())
	if err != nil || *other != own {
		t.Errorf("Stat %+v, %v", other, err)
	}
	needsList(t)
	list, err := shm.List()
	if err != nil || !slices.Contains(list, own) {
		t.Errorf("List %+v, %v", list, err)
	}
}
