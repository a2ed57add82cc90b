//go:build ignore

// Imports checks which symbols a darwin binary imports beyond those that Go's
// standard library and golang.org/x/sys/unix declare:
//
//	go run .ci/imports.go BINARY SYMBOL...
package main

import (
	"debug/macho"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

func main() {
	log.SetFlags(0)
	binary, err := macho.Open(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	symbols, err := binary.ImportedSymbols()
	if err != nil {
		log.Fatal(err)
	}
	known := map[string]bool{}
	declared(filepath.Join(output("go", "env", "GOROOT"), "src"), known)
	declared(output("go", "list", "-f", "{{.Dir}}", "golang.org/x/sys/unix"), known)
	var own []string
	for _, s := range symbols {
		// On amd64 the linker adds this to the names of what has a newer version.
		if !known[strings.TrimSuffix(s, "$INODE64")] && !known[s] {
			own = append(own, s)
		}
	}
	slices.Sort(own)
	libraries, _ := binary.ImportedLibraries()
	fmt.Printf("%v: %d symbols of %v, beyond those of Go: %v\n", binary.Cpu, len(symbols), libraries, own)
	if want := os.Args[2:]; !slices.Equal(own, want) {
		log.Fatalf("want %v", want)
	}
}

// declared adds the symbols that the sources in dir say they import.
func declared(dir string, symbols map[string]bool) {
	directive := regexp.MustCompile(`(?m)^//go:cgo_import_dynamic \S+ (\S+)`)
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == "race" { // of other binaries
			return filepath.SkipDir
		}
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range directive.FindAllSubmatch(source, -1) {
			symbols["_"+string(m[1])] = true
		}
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
}

func output(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		log.Fatal(name, args, err)
	}
	return strings.TrimSpace(string(out))
}
