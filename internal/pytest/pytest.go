// Package pytest runs tests with the Python interpreters of the machine.
package pytest

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// envPython is a list, as PATH is one, of the interpreters to test with instead
// of all that can be found.
const envPython = "SHM_PYTHON"

// Interpreter is a Python that the module shmkit has to work with.
type Interpreter struct {
	path         string
	name         string // its version, and more if another one has that too
	Major, Minor int
	NumPy        bool // it can be imported
	Pip          bool // it can be imported
}

// AtLeast reports whether the interpreter is of that version or a later one.
func (py Interpreter) AtLeast(major, minor int) bool {
	return py.Major > major || py.Major == major && py.Minor >= minor
}

// Command returns the command that runs Python with these arguments, as a
// program that imports shmkit, and that warns of what it does not close.
func (py Interpreter) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(py.path, append([]string{"-W", "error::ResourceWarning"}, args...)...)
	cmd.Env = append(os.Environ(), "PYTHONPATH="+Dir(), "PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1")
	return cmd
}

// Dir returns the folder python of this module.
func Dir() string {
	dir, err := os.Getwd()
	for err == nil {
		python := filepath.Join(dir, "python")
		if _, err := os.Stat(filepath.Join(python, "shmkit")); err == nil {
			return python
		}
		if dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	panic("no folder python above the working directory")
}

// Each runs f as a subtest for each interpreter there is, with -short for one.
// Without any it skips the test, or fails it if the environment has CI set.
func Each(t *testing.T, f func(t *testing.T, py Interpreter)) {
	t.Helper()
	each(t, fit(t, "Python 3.8 or later", "python3", func(Interpreter) bool { return true }), f)
}

// Ends is Each for the oldest and the newest interpreter: for tests that take
// long, of what differs little between versions.
func Ends(t *testing.T, f func(t *testing.T, py Interpreter)) {
	t.Helper()
	each(t, ends(fit(t, "Python 3.8 or later", "python3", func(Interpreter) bool { return true })), f)
}

// Newest is Each for the newest interpreter: for tests that take minutes.
func Newest(t *testing.T, f func(t *testing.T, py Interpreter)) {
	t.Helper()
	all := ends(fit(t, "Python 3.8 or later", "python3", func(Interpreter) bool { return true }))
	each(t, all[len(all)-1:], f)
}

// EndsPip is Ends for the interpreters that have pip.
func EndsPip(t *testing.T, f func(t *testing.T, py Interpreter)) {
	t.Helper()
	each(t, ends(fit(t, "Python with pip", "python3-pip", func(py Interpreter) bool { return py.Pip })), f)
}

func ends(all []Interpreter) []Interpreter {
	version := func(a, b Interpreter) int {
		return cmp.Or(cmp.Compare(a.Major, b.Major), cmp.Compare(a.Minor, b.Minor))
	}
	return slices.Compact([]Interpreter{slices.MinFunc(all, version), slices.MaxFunc(all, version)})
}

// EachNumPy is Each for the interpreters that have NumPy.
func EachNumPy(t *testing.T, f func(t *testing.T, py Interpreter)) {
	t.Helper()
	each(t, fit(t, "Python with NumPy", "python3-numpy", func(py Interpreter) bool { return py.NumPy }), f)
}

func each(t *testing.T, all []Interpreter, f func(t *testing.T, py Interpreter)) {
	t.Helper()
	if testing.Short() {
		all = all[:1]
	}
	for _, py := range all {
		t.Run(py.name, func(t *testing.T) { f(t, py) })
	}
}

// fit returns the interpreters that suit, one at least, or ends the test.
func fit(t *testing.T, what, debian string, suits func(Interpreter) bool) []Interpreter {
	t.Helper()
	all, err := find()
	if err != nil {
		t.Fatal(err)
	}
	all = slices.DeleteFunc(slices.Clone(all), func(py Interpreter) bool { return !suits(py) })
	if len(all) == 0 {
		lack := fmt.Sprintf("no %s: apt-get install %s, or name one in %s", what, debian, envPython)
		if os.Getenv("CI") != "" {
			t.Fatal(lack)
		}
		t.Skip(lack)
	}
	return all
}

// find returns the interpreters to test with; if they were named, all have to
// be fit.
var find = sync.OnceValues(func() (all []Interpreter, err error) {
	if err := touch(); err != nil {
		return nil, err
	}
	if list := os.Getenv(envPython); list != "" {
		for _, path := range filepath.SplitList(list) {
			py, err := ask(path)
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", envPython, path, err)
			}
			all = append(all, py)
		}
		return all, nil
	}
	seen := map[string]bool{}
	for _, pattern := range patterns() {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			py, err := ask(path)
			if err == nil && !seen[py.path] {
				seen[py.path] = true
				if slices.ContainsFunc(all, func(other Interpreter) bool { return other.name == py.name }) {
					py.name += "-" + strings.ReplaceAll(strings.Trim(filepath.Dir(py.path), "/"), "/", "-")
				}
				all = append(all, py)
			}
		}
	}
	return all, nil
})

// touch makes the go command know which files the results depend on, so that it
// does not repeat those it has from before one was changed.
func touch() error {
	return filepath.WalkDir(Dir(), func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			_, err = os.Stat(path)
		}
		return err
	})
}

// patterns are where interpreters are: first the usual one, then all others.
func patterns() (patterns []string) {
	dirs := filepath.SplitList(os.Getenv("PATH"))
	for _, name := range []string{"python3", "python3.[0-9]", "python3.[0-9][0-9]"} {
		for _, dir := range dirs {
			// pyenv's scripts are slow, and what they lead to is found below.
			if name == "python3" || filepath.Base(dir) != "shims" {
				patterns = append(patterns, filepath.Join(dir, name))
			}
		}
	}
	pyenv := os.Getenv("PYENV_ROOT")
	if home, err := os.UserHomeDir(); pyenv == "" && err == nil {
		pyenv = filepath.Join(home, ".pyenv")
	}
	return append(patterns, filepath.Join(pyenv, "versions", "*", "bin", "python3"))
}

// ask asks an interpreter what it is, for the path of a script says little.
func ask(path string) (py Interpreter, err error) {
	const program = `import importlib.util, os, sys
print(os.path.realpath(sys.executable), "%d.%d.%d" % sys.version_info[:3], sys.version_info[0], sys.version_info[1],
      *("true" if importlib.util.find_spec(name) else "false" for name in ("numpy", "pip")))`
	out, err := exec.Command(path, "-c", program).Output()
	if err != nil {
		return py, err
	}
	if _, err := fmt.Sscan(string(out), &py.path, &py.name, &py.Major, &py.Minor, &py.NumPy, &py.Pip); err != nil {
		return py, err
	}
	if !py.AtLeast(3, 8) {
		return py, fmt.Errorf("version %s is older than 3.8", py.name)
	}
	return py, nil
}
