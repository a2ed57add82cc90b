package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shmkit/shm/shmtest"
)

func TestMain(m *testing.M) {
	runChild()
	os.Exit(m.Run())
}

// TestQuick runs everything. How fast it is, is nothing for a test.
func TestQuick(t *testing.T) {
	dirs := func() []string {
		list, err := filepath.Glob(fmt.Sprintf("%s/shm-bench-%d-*", shmDir, os.Getpid()))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	before, plots := dirs(), t.TempDir()
	var out bytes.Buffer
	if err := run(&out, true, true, plots, ""); err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	goals := 0
	for _, c := range slices.Concat(copies(), lifecycle(&bench{quick: true}), streams(&bench{quick: true}), waiting(&bench{quick: true})) {
		found := slices.ContainsFunc(r.Results, func(r result) bool { return r.Group == c.group && r.Work == c.name })
		if !found {
			t.Errorf("%s: %s: no result", c.group, c.name)
		}
		goals += len(c.goals)
	}
	if len(r.Results) > goals {
		t.Errorf("%d results for %d goals", len(r.Results), goals)
	}
	for _, r := range r.Results {
		if !(r.Ratio > 0 && r.OursNs > 0 && r.TheirNs > 0) {
			t.Errorf("%+v", r)
		}
	}
	for _, name := range []string{"readat-size.svg", "readat-goroutines.svg"} {
		if svg, err := os.ReadFile(filepath.Join(plots, name)); err != nil || !bytes.HasPrefix(svg, []byte("<svg")) {
			t.Errorf("%s: %v, begins %.20q", name, err, svg)
		}
	}
	if err := shmtest.Find(); err != nil {
		t.Error(err)
	}
	for _, dir := range dirs() {
		if !slices.Contains(before, dir) {
			t.Errorf("%s is left behind", dir)
		}
	}
}

// TestFailure stops in the middle of a contest: that is reported, and nothing
// stays behind.
func TestFailure(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "missing"))
	if err := run(new(bytes.Buffer), true, false, "", ""); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("run: %v", err)
	}
	if err := shmtest.Find(); err != nil {
		t.Error(err)
	}
}

func TestTable(t *testing.T) {
	c := contest{"Group", "work", []goal{{"a", "b", 2}, {"a", "c", 0}, {"a", "missing", 1}, {"b", "a", 0.1}}, nil}
	results := c.judge(map[string][]float64{"a": {10, 30, 1000}, "b": {10, 10, 1000}, "c": {5, 10, 500}})
	var out bytes.Buffer
	show(&out, results)
	for _, want := range []string{
		"| work | a | 30 ns | b | 10 ns | 1.00 | ≤ 2.00 | met |",
		"| work | a | 30 ns | c | 10 ns | 2.00 |  |  |",
		"| work | b | 10 ns | a | 30 ns | 1.00 | ≤ 0.100 | missed |",
		"1 goals missed",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}
