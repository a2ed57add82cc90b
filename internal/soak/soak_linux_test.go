package main

import (
	"os"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	workerMain()
	restartedMain()
	os.Exit(m.Run())
}

// TestStorm is a short storm with the same seed always.
func TestStorm(t *testing.T) {
	s := storm{seed: 1, duration: 8 * time.Second, processes: 8, names: 3, log: t.Output()}
	if testing.Short() {
		s.duration = time.Second
	}
	f, err := s.run()
	t.Log(f)
	if err != nil {
		t.Error(err)
	}
}

// TestCompare gives compare intervals that overlap, and some that do not.
func TestCompare(t *testing.T) {
	a, b := blockID{1}, blockID{2}
	for name, tt := range map[string]struct {
		entries []entry
		bad     bool
	}{
		"one after the other": {[]entry{{id: a, from: 1, to: 3}, {id: b, from: 4, to: 5}}, false},
		"overlap":             {[]entry{{id: b, from: 3, to: 5}, {id: a, from: 1, to: 4}}, true},
		"inside":              {[]entry{{id: a, from: 1, to: 9}, {id: a, from: 2, to: 3}, {id: b, from: 4, to: 5}}, true},
		"two names":           {[]entry{{id: a, from: 1, to: 4}, {name: 1, id: b, from: 3, to: 5}}, false},
		"same block":          {[]entry{{id: a, from: 1, to: 4}, {id: a, from: 3, to: 5}}, false},
		"unlinked":            {[]entry{{id: a, from: 1, to: 4}, {id: a, from: 2, unlink: true}, {id: b, from: 3, to: 5}}, false},
	} {
		if err := compare(tt.entries); (err != nil) != tt.bad {
			t.Errorf("%s: %v", name, err)
		}
	}
}
