package shm

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDesign holds docs/design.md and its pictures to the files, names and offsets
// that there are.
func TestDesign(t *testing.T) {
	var source strings.Builder
	for _, pattern := range []string{"*.go", "internal/*/*.go", "internal/*/*/*.go"} {
		files, _ := filepath.Glob(pattern)
		for _, f := range files {
			if !strings.HasSuffix(f, "_test.go") {
				source.WriteString(read(t, f))
			}
		}
	}
	isPath := regexp.MustCompile(`/|\.go$`)
	check := func(page, name string) {
		if isPath.MatchString(name) {
			_, err := os.Stat(name)
			if _, inside := os.Stat(filepath.Join("internal", name)); err != nil && inside != nil {
				t.Errorf("%s: %s: no such file", page, name)
			}
			return
		}
		last := name[strings.LastIndex(name, ".")+1:]
		if !regexp.MustCompile(`\b` + regexp.QuoteMeta(last) + `\b`).MatchString(source.String()) {
			t.Errorf("%s: %s: not in the code", page, name)
		}
	}

	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(read(t, "docs/design.md"), -1) {
		check("design.md", m[1])
	}
	pictures, err := filepath.Glob("docs/design-*.svg")
	if err != nil || len(pictures) == 0 {
		t.Fatal("no pictures", err)
	}
	texts := regexp.MustCompile(`<text[^>]*>([^<]*)<`)
	names := regexp.MustCompile(`\b(?:internal/)?\w+\.go\b|\binternal/\w+|\b[a-z]+[A-Z]\w*`)
	for _, p := range pictures {
		for _, m := range texts.FindAllStringSubmatch(read(t, p), -1) {
			for _, name := range names.FindAllString(m[1], -1) {
				check(p, name)
			}
		}
	}

	const header = "docs/design-header.svg"
	for name, off := range map[string]int{"magic": 0, "created": offCreated, "state": offState, "count": offCount, "size": offSize, "written": offWritten} {
		row := fmt.Sprintf(`>%d</text>\n.*<rect[^>]*>\n.*>%s<`, off, name)
		if !regexp.MustCompile(row).MatchString(read(t, header)) {
			t.Errorf("%s: no %s at %d", header, name, off)
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
