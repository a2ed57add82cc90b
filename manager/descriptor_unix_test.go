//go:build linux || darwin

package manager_test

import (
	"bytes"
	"io"
	"os"
	"syscall"
	"testing"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/manager"
)

// What a client gives out as the memory of a block must be memory.
func TestHostileDescriptor(t *testing.T) {
	if manager.CreatesMemory() {
		t.Skip("a server takes no descriptors here")
	}
	addr, _ := serve(t)
	c := dial(t, addr)
	conn := knockUnix(t, addr)
	if _, err := io.ReadFull(conn, make([]byte, len(hello))); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	disk, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	disk.Truncate(4096 + 100)
	good := memory(t, 100)
	before := ownDescriptors(t)
	for _, tt := range []struct {
		what string
		f    *os.File
		cap  string
	}{
		{"nothing", nil, "100"},
		{"a pipe", r, "100"},
		{"a file", disk, "100"},
		{"no capacity", good, "0"},
		{"negative capacity", good, "-9223372036854775808"},
		{"more than there is", good, "50000"},
		{"far more than there is", good, "9223372036854775807"},
	} {
		var oob []byte
		if tt.f != nil {
			oob = syscall.UnixRights(int(tt.f.Fd()))
		}
		if _, _, err := conn.WriteMsgUnix([]byte(`{"op":"create","name":"a","cap":`+tt.cap+"}\n"), oob, nil); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 1000)
		n, err := conn.Read(answer)
		if err != nil || !bytes.HasPrefix(answer[:n], []byte(`{"code":"invalid"`)) {
			t.Errorf("%s: %s, %v", tt.what, answer[:n], err)
		}
	}
	if after := ownDescriptors(t); after >= before+1 {
		t.Errorf("%d descriptors, before %d", after, before)
	}
	if got := names(t, c); len(got) != 0 {
		t.Errorf("list: %v", got)
	}
	// Memory that is none of this package's is found out by those who open it.
	large := memory(t, 1<<20, shm.Sparse())
	spoil(t, large)
	conn.WriteMsgUnix([]byte(`{"op":"create","name":"a","cap":1048576}`+"\n"), syscall.UnixRights(int(large.Fd())), nil)
	if _, err := io.ReadFull(conn, make([]byte, len("{}\n"))); err != nil {
		t.Fatal(err)
	}
	mustFail(t, second(c.Open("a")), "a", shm.ErrNotSegment)
	atWork(t, c)
}
