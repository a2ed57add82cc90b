//go:build ignore

// Lines counts the lines of the product that have code: no tests, comments or
// blank lines. The product is the packages that users import or run, and the
// internal packages that these import on any system.
//
//	go run .ci/lines.go
package main

import (
	"fmt"
	"go/scanner"
	"go/token"
	"log"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

var product = []string{".", "./manager", "./cmd/shm", "./shmtest", "./shareablelist", "./typed"}

func main() {
	log.SetFlags(0)
	dirs := map[string]bool{}
	for _, system := range []string{"linux", "darwin", "windows"} {
		args := append([]string{"list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}} {{.Dir}}{{end}}"}, product...)
		cmd := exec.Command("go", args...)
		cmd.Env = append(os.Environ(), "GOOS="+system, "CGO_ENABLED=0")
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			log.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			if path, dir, _ := strings.Cut(strings.TrimSpace(line), " "); strings.HasPrefix(path, "github.com/shmkit/shm") {
				dirs[dir] = true
			}
		}
	}
	total := 0
	root, _ := os.Getwd()
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		n := 0
		files, _ := filepath.Glob(filepath.Join(dir, "*.go"))
		for _, file := range files {
			if !strings.HasSuffix(file, "_test.go") {
				n += count(file)
			}
		}
		name, _ := filepath.Rel(root, dir)
		fmt.Printf("%6d %s\n", n, name)
		total += n
	}
	fmt.Printf("%6d in all\n", total)
}

// count returns how many lines of the file a token begins or continues on.
func count(file string) int {
	src, err := os.ReadFile(file)
	if err != nil {
		log.Fatal(err)
	}
	fset := token.NewFileSet()
	f := fset.AddFile(file, -1, len(src))
	var s scanner.Scanner
	s.Init(f, src, nil, 0) // without comments
	lines := map[int]bool{}
	for {
		pos, tok, lit := s.Scan()
		if tok == token.EOF {
			return len(lines)
		}
		if tok == token.SEMICOLON && lit == "\n" {
			continue // the scanner's own
		}
		first := f.Line(pos)
		for i := range 1 + strings.Count(lit, "\n") {
			lines[first+i] = true
		}
	}
}
