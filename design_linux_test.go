package shm

import (
	"errors"
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
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
	for name, off := range map[string]int{"magic": 0, "created": offCreated, "state": offState, "count": offCount, "size": offSize, "written": offWritten, "event": offEvent, "held": offLock} {
		row := fmt.Sprintf(`>%d</text>\n.*<rect[^>]*>\n.*>%s<`, off, name)
		if !regexp.MustCompile(row).MatchString(read(t, header)) {
			t.Errorf("%s: no %s at %d", header, name, off)
		}
	}
}

// TestWaitingPage holds the programs of docs/waiting.md to those that are tested.
func TestWaitingPage(t *testing.T) {
	tested := read(t, "example_waiting_test.go")
	programs := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(read(t, "docs/waiting.md"), -1)
	if len(programs) != 5 {
		t.Errorf("%d programs, want 5", len(programs))
	}
	for _, p := range programs {
		for _, f := range strings.Split(p[1], "\n}\n") {
			if !strings.Contains(tested, strings.TrimSpace(f)) {
				t.Errorf("not tested: %s", f)
			}
		}
	}
}

// TestFloors holds every file to what docs/design-layers.svg shows: that it uses files
// below it, and none above or beside it.
func TestFloors(t *testing.T) {
	floor := map[string]int{} // larger is lower
	boxes := regexp.MustCompile(`<text class="file mid"[^>]* y="(\d+)">(\w+\.go)<`)
	for _, m := range boxes.FindAllStringSubmatch(read(t, "docs/design-layers.svg"), -1) {
		floor[m[2]], _ = strconv.Atoi(m[1])
	}
	dir, err := build.ImportDir(".", 0)
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range dir.GoFiles {
		if floor[name] == 0 && name != "doc.go" && !strings.HasPrefix(name, "platform_") {
			t.Errorf("%s is not in the picture", name)
		}
		f, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	// What is imported does not matter, so it is left unknown.
	uses := map[*ast.Ident]types.Object{}
	conf := types.Config{Importer: noImports{}, Error: func(error) {}}
	pkg, _ := conf.Check("shm", fset, files, &types.Info{Uses: uses})
	between := 0
	for id, object := range uses {
		if object.Pkg() != pkg {
			continue
		}
		from, to := fset.Position(id.Pos()).Filename, fset.Position(object.Pos()).Filename
		if from == to || floor[from] == 0 || floor[to] == 0 {
			continue
		}
		between++
		if floor[from] >= floor[to] {
			t.Errorf("%s uses %s of %s, which is not below it", from, object.Name(), to)
		}
	}
	if between < 100 {
		t.Errorf("%d uses between files: most were not found", between)
	}
}

type noImports struct{}

func (noImports) Import(path string) (*types.Package, error) { return nil, errors.New(path) }

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
