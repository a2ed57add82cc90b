package manager_test

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/section"
	"github.com/shmkit/shm/manager"
)

var (
	advapi32                = windows.NewLazySystemDLL("advapi32.dll")
	logonUser               = advapi32.NewProc("LogonUserW")
	createRestrictedToken   = advapi32.NewProc("CreateRestrictedToken")
	impersonateLoggedOnUser = advapi32.NewProc("ImpersonateLoggedOnUser")
)

// as calls f as the user whose token it is, as far as the system checks access.
func as(t *testing.T, token windows.Token, f func()) {
	t.Helper()
	runtime.LockOSThread()
	if ok, _, err := impersonateLoggedOnUser.Call(uintptr(token)); ok == 0 {
		t.Fatal(err)
	}
	defer func() {
		if err := windows.RevertToSelf(); err != nil {
			t.Fatal(err) // and the thread ends
		}
		runtime.UnlockOSThread()
	}()
	f()
}

// TestOtherUser has another user, who is no administrator, try what there is: the
// one that SHM_OTHER_USER names, as NAME:PASSWORD.
func TestOtherUser(t *testing.T) {
	name, password, ok := strings.Cut(os.Getenv("SHM_OTHER_USER"), ":")
	if !ok {
		t.Skip("SHM_OTHER_USER is not set")
	}
	var words [3]*uint16
	for i, word := range []string{name, ".", password} {
		words[i], _ = windows.UTF16PtrFromString(word)
	}
	const interactive, defaultProvider = 2, 0
	var token windows.Token
	ok1, _, err := logonUser.Call(uintptr(unsafe.Pointer(words[0])), uintptr(unsafe.Pointer(words[1])),
		uintptr(unsafe.Pointer(words[2])), interactive, defaultProvider, uintptr(unsafe.Pointer(&token)))
	if ok1 == 0 {
		t.Fatal(err)
	}
	defer token.Close()

	seg := must(t)(shm.Create("", 100))
	raw := must(t)(shm.Create("", 100, shm.Headerless()))
	f, err := must(t)(shm.Anonymous(100)).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	anonymous, err := section.Name(windows.Handle(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := serve(t, manager.Authorize(func(manager.Peer) manager.Access { return manager.FullAccess }))
	denied := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s: %v", what, err)
		}
	}
	as(t, token, func() {
		for _, name := range []string{seg.Name(), raw.Name(), anonymous} {
			_, err := section.Open(name, false)
			denied("section "+name, err)
		}
		name16, _ := windows.UTF16PtrFromString(seg.Name() + "!mutex")
		_, err := windows.OpenMutex(windows.SYNCHRONIZE, false, name16)
		denied("mutex", err)
		name16, _ = windows.UTF16PtrFromString(seg.Name() + "!life")
		_, err = windows.OpenEvent(windows.SYNCHRONIZE, false, name16)
		denied("event", err)
		denied("Open", second(shm.Open(seg.Name())))
		denied("Open to read", second(shm.Open(seg.Name(), shm.ReadOnly())))
		denied("Stat", second(shm.Stat(seg.Name())))
		denied("Unlink", shm.Unlink(seg.Name()))
		if made, err := shm.Create(seg.Name(), 1); err == nil {
			made.Close()
			t.Error("created over another user's block")
		}
		list, err := shm.List()
		if err != nil {
			t.Errorf("List: %v", err)
		}
		for _, info := range list {
			if info.Name == seg.Name() || info.Name == raw.Name() {
				t.Errorf("listed: %+v", info)
			}
		}
		_, err = manager.Dial(t.Context(), addr)
		denied("Dial", err)
		if l, err := manager.Listen(addr); err == nil {
			l.Close()
			t.Error("listens at another user's address")
		}
	})
	atWork(t, dial(t, addr))
}

// TestPlain has one user share as an administrator and without: what the one
// makes, the other opens.
func TestPlain(t *testing.T) {
	var own, plain windows.Token
	err := windows.OpenProcessToken(windows.CurrentProcess(), windows.TOKEN_ALL_ACCESS, &own)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	const withoutAdministration = 4 // LUA_TOKEN
	if ok, _, err := createRestrictedToken.Call(uintptr(own), withoutAdministration, 0, 0, 0, 0, 0, 0, uintptr(unsafe.Pointer(&plain))); ok == 0 {
		t.Fatal(err)
	}
	defer plain.Close()

	seg := must(t)(shm.Create("", 100))
	write(t, seg, "high")
	addr, _ := serve(t)
	var made *shm.Segment
	as(t, plain, func() {
		if got := read(t, must(t)(shm.Open(seg.Name())), 4); got != "high" {
			t.Errorf("holds %q", got)
		}
		atWork(t, dial(t, addr))
		made = must(t)(shm.Create("", 100))
		write(t, made, "low!")
	})
	if got := read(t, must(t)(shm.Open(made.Name())), 4); got != "low!" {
		t.Errorf("holds %q", got)
	}
}
