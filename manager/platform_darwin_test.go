package manager_test

import (
	"errors"
	"testing"

	"github.com/shmkit/shm/manager"
)

func TestNoAddressWithoutFile(t *testing.T) {
	if _, err := manager.Listen("@shm"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Listen: %v", err)
	}
	mustFail(t, second(manager.Dial(t.Context(), "@shm")), "@shm", errors.ErrUnsupported)
}
