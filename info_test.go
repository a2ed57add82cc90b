package shm_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"reflect"
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
			`{"name":"frames","size":5,"cap":4096,"refs":2,"attached":true,"linked":true,"headerless":false,"persistent":false,"finished":false,` +
				`"sparse":true,"owner":1000,"modTime":"2026-01-02T03:04:05Z","created":"2026-01-02T03:04:05Z","creator":7,` +
				`"state":"attached","mode":"0640","id":"ab000000000000000000000000000001"}`,
		},
		{
			shm.Info{Name: "psm_1", Headerless: true, Owner: -1},
			`{"name":"psm_1","size":0,"cap":0,"refs":0,"attached":false,"linked":false,"headerless":true,"persistent":false,"finished":false,` +
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
		if err := json.Unmarshal(data, &back); err != nil || !reflect.DeepEqual(back, test.info) {
			t.Errorf("%s is %+v, %v\nwant %+v", data, back, err, test.info)
		}
	}

	// As of other structs, what is not mentioned stays.
	info := shm.Info{Name: "a", Mode: 0o600, ID: [16]byte{1}}
	want := info
	if err := json.Unmarshal([]byte("null"), &info); err != nil || !reflect.DeepEqual(info, want) {
		t.Errorf("null makes it %+v, %v", info, err)
	}
	want.Size = 5
	if err := json.Unmarshal([]byte(`{"size":5}`), &info); err != nil || !reflect.DeepEqual(info, want) {
		t.Errorf("a size makes it %+v, %v", info, err)
	}
	for _, bad := range []string{`{"mode":"0999"}`, `{"mode":"01000"}`, `{"id":"ab"}`, `{"id":"x"}`} {
		if err := json.Unmarshal([]byte(bad), &info); !errors.Is(err, fs.ErrInvalid) || !reflect.DeepEqual(info, want) {
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
	if err != nil || !reflect.DeepEqual(*other, own) {
		t.Errorf("Stat %+v, %v", other, err)
	}
	needsList(t)
	list, err := shm.List()
	if err != nil || !slices.ContainsFunc(list, func(i shm.Info) bool { return reflect.DeepEqual(i, own) }) {
		t.Errorf("List %+v, %v", list, err)
	}
}

// TestRefsOfMany has a process attached a thousand times: for writing, ReadOnly, and
// by a descriptor that permits no more. No two attachments look like one.
func TestRefsOfMany(t *testing.T) {
	const n, often = 1000, 10
	seg := block(t, 100)
	reader := attach(t, seg.Name(), shm.ReadOnly())
	f := file(t, reader)
	reader.Close()
	for range rounds(often) {
		all := []*shm.Segment{seg}
		for i := 1; i < n; i++ {
			switch {
			case i%3 == 0:
				all = append(all, attach(t, seg.Name(), shm.ReadOnly()))
			case i%3 == 1 && shm.Files(): // elsewhere what may not write is not counted
				all = append(all, take(t, f, shm.ReadOnly()))
			default:
				all = append(all, attach(t, seg.Name()))
			}
		}
		if refs := seg.Refs(); refs != n {
			t.Errorf("Refs %d, want %d", refs, n)
		}
		info, err := shm.Stat(seg.Name())
		if err != nil || info.Refs != n || info.Holders != nil && len(info.Holders) != n {
			t.Errorf("Stat: %d references, %d holders, %v", info.Refs, len(info.Holders), err)
		}
		for _, s := range all[1:] {
			s.Close()
		}
		if refs := seg.Refs(); refs != 1 {
			t.Errorf("Refs %d, want 1", refs)
		}
	}
}

// wantHolders checks who is attached, seen from inside and from outside.
func wantHolders(t *testing.T, seg *shm.Segment, want ...shm.Holder) {
	t.Helper()
	inside, err := seg.Stat()
	if err != nil {
		t.Fatal(err)
	}
	outside, err := shm.Stat(seg.Name())
	if err != nil {
		t.Fatal(err)
	}
	if refs := seg.Refs(); refs != len(want) {
		t.Errorf("Refs %d, want %d", refs, len(want))
	}
	byPID := func(a, b shm.Holder) int { return cmp.Compare(a.PID, b.PID) }
	slices.SortFunc(want, byPID)
	for _, info := range []*shm.Info{inside.Sys().(*shm.Info), outside} {
		if info.Refs != len(want) {
			t.Errorf("%d references, want %d", info.Refs, len(want))
		}
		slices.SortFunc(info.Holders, byPID)
		if !shm.NamesStay() && !slices.Equal(info.Holders, want) { // the system does not say who
			t.Errorf("attached: %+v\nwant %+v", info.Holders, want)
		}
	}
}

// TestHolders kills two of three processes that are attached. The third is counted,
// and named.
func TestHolders(t *testing.T) {
	seg := block(t, 100)
	self := shm.Holder{PID: os.Getpid(), Here: true}
	var agents []agent
	want := []shm.Holder{self}
	for i := range 3 {
		a := newAgent(t)
		h := shm.Holder{PID: a.Process.Pid, Here: true}
		if i == 1 {
			a.attach("open %s readonly", seg.Name())
			h.ReadOnly = true
		} else {
			a.attach("open %s", seg.Name())
		}
		agents, want = append(agents, a), append(want, h)
	}
	wantHolders(t, seg, slices.Clone(want)...)
	agents[0].Kill()
	agents[1].Kill()
	wantHolders(t, seg, self, want[3])
	agents[2].must("2", "refs")
	seg.Close()
	agents[2].must("1", "refs")
	info, err := shm.Stat(seg.Name())
	if err != nil || info.Refs != 1 || !shm.NamesStay() && !slices.Equal(info.Holders, want[3:]) {
		t.Errorf("Stat: %+v, %v", info, err)
	}
	agents[2].must("closed", "close")
	mustBeGone(t, seg.Name())
}
