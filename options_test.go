package shm_test

import (
	"fmt"
	"io/fs"
	"testing"

	"github.com/shmkit/shm"
)

func TestOptions(t *testing.T) {
	name := unique(t)
	for _, tt := range []struct {
		open bool
		opts []shm.Option
	}{
		{false, []shm.Option{shm.ReadOnly()}},
		{false, []shm.Option{nil}},
		{false, []shm.Option{shm.Perm(0o4600)}},
		{false, []shm.Option{shm.Perm(fs.ModeDir)}},
		{false, []shm.Option{shm.Headerless(), shm.Persistent()}},
		{false, []shm.Option{shm.Prefault(), shm.Sparse()}},
		{true, []shm.Option{shm.Persistent()}},
		{true, []shm.Option{shm.Perm(0o600)}},
		{true, []shm.Option{shm.Sparse()}},
	} {
		t.Run(fmt.Sprint(tt), func(t *testing.T) {
			var err error
			if tt.open {
				_, err = shm.Open(name, tt.opts...)
			} else {
				_, err = shm.Create(name, 1, tt.opts...)
			}
			mustFail(t, err, name, fs.ErrInvalid)
			mustNotExist(t, name)
		})
	}
}

func TestPerm(t *testing.T) {
	for _, perm := range []fs.FileMode{0, 0o400, 0o600, 0o640, 0o666, 0o777} {
		opts := []shm.Option{shm.Perm(perm)}
		if perm&0o600 != 0o600 { // a block with a header could not be reaped
			_, err := shm.Create("", 1, opts...)
			mustFail(t, err, "", fs.ErrInvalid)
			opts = append(opts, shm.Headerless())
		}
		seg := block(t, 1, opts...)
		if shm.NamesStay() { // there are no such permissions
			perm = 0o600
		}
		info, err := seg.Stat()
		if err != nil || info.Mode() != perm {
			t.Errorf("Perm(%o) is %v, %v", perm, info.Mode(), err)
		}
	}
	info, _ := block(t, 1).Stat()
	if info.Mode() != 0o600 {
		t.Errorf("permissions are %v by default", info.Mode())
	}
}
