package section

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/windows"
)

// create makes a section for the time of the test.
func create(t *testing.T, name string) windows.Handle {
	t.Helper()
	h, err := Create(name, 4096)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { windows.CloseHandle(h) })
	return h
}

func unique(length int) string {
	return (strings.ToLower(rand.Text()) + strings.Repeat("x", length))[:length]
}

func TestName(t *testing.T) {
	for _, length := range []int{20, 150, 170, 171, 240, 2000} {
		name := unique(length)
		if got, err := Name(create(t, name)); got != name || err != nil {
			t.Errorf("length %d: %q, %v", length, got, err)
		}
	}
	h, err := windows.CreateFileMapping(windows.InvalidHandle, nil, windows.PAGE_READWRITE, 0, 4096, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer windows.CloseHandle(h)
	if got, err := Name(h); got != "" || err != nil {
		t.Errorf("without a name: %q, %v", got, err)
	}
}

// Names has all sections, however long the names of some of them are.
func TestNames(t *testing.T) {
	var want []string
	for _, length := range []int{20, 240, 1200, 5000} {
		want = append(want, unique(length))
		create(t, want[len(want)-1])
	}
	for range 1000 { // more than are told at once, where all are
		want = append(want, unique(100))
		create(t, want[len(want)-1])
	}
	names, err := Names()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range want {
		if !slices.Contains(names, name) {
			t.Errorf("no section of %d characters: %s", len(name), name)
		}
	}
}

// Names has what is there all the time, whatever else comes and goes or is opened.
func TestNamesUnderChurn(t *testing.T) {
	var there []string
	for range 20 {
		there = append(there, unique(20))
		create(t, there[len(there)-1])
	}
	done := make(chan bool)
	var all sync.WaitGroup
	defer all.Wait()
	defer close(done)
	again := func(f func(i int) (windows.Handle, error)) {
		all.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				h, err := f(i)
				if err != nil {
					t.Error(err)
					return
				}
				windows.CloseHandle(h)
			}
		})
	}
	event := func(name string) (windows.Handle, error) {
		name16, err := windows.UTF16PtrFromString(name)
		if err != nil {
			return 0, err
		}
		return windows.CreateEvent(nil, 0, 0, name16)
	}
	again(func(int) (windows.Handle, error) { return event(unique(20)) })
	again(func(i int) (windows.Handle, error) { return event(fmt.Sprint(there[0], i%7)) })
	again(func(i int) (windows.Handle, error) { return Open(there[i%len(there)], false) })
	for i := range 100 {
		names, err := Names()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range there {
			if !slices.Contains(names, name) {
				t.Fatalf("round %d: %s is missing", i, name)
			}
		}
	}
}
