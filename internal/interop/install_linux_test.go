package interop_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shmkit/shm/internal/pytest"
)

// TestInstall installs shmkit with pip, which may download nothing, and attaches
// to a block with what it has installed. Nothing is left in the source.
func TestInstall(t *testing.T) {
	pytest.EndsPip(t, func(t *testing.T, py pytest.Interpreter) {
		source := filepath.Join(t.TempDir(), "python")
		if err := os.CopyFS(source, os.DirFS(pytest.Dir())); err != nil {
			t.Fatal(err)
		}
		before := files(t, source)
		for _, how := range []string{"installed", "editable", "sdist"} {
			target := filepath.Join(t.TempDir(), "target")
			from := []string{source}
			switch how {
			case "editable":
				from = []string{"-e", source}
			case "sdist":
				program := "import backend, sys; print(backend.build_sdist(sys.argv[1]))"
				cmd := py.Command("-c", program, filepath.Dir(target))
				cmd.Dir = source
				name, err := cmd.Output()
				if err != nil {
					t.Fatal(err)
				}
				from = []string{filepath.Join(filepath.Dir(target), strings.TrimSpace(string(name)))}
			}
			args := []string{"-W", "ignore", "-m", "pip", "--isolated", "--disable-pip-version-check", "install",
				"--no-index", "--no-cache-dir", "--target", target}
			cmd := py.Command(append(args, from...)...)
			cmd.Dir = t.TempDir()
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", how, err, out)
			}
			const program = `
import pathlib, site, sys
site.addsitedir(sys.argv[1])
import shmkit
from importlib.metadata import distribution
found = distribution("shmkit")
assert found.version == shmkit.__version__ and found.metadata["Requires-Python"] == ">=3.8"
assert pathlib.Path(shmkit.__file__).with_name("py.typed").exists()
with shmkit.Segment.create(None, 10) as a, shmkit.Segment.open(a.name) as b:
    print(b.refs, shmkit.__file__)
`
			// Not what is in the source, but what has been installed.
			use := py.Command("-c", program, target)
			use.Dir = t.TempDir()
			use.Env = slices.DeleteFunc(use.Env, func(s string) bool { return strings.HasPrefix(s, "PYTHONPATH=") })
			want := "2 " + filepath.Join(target, "shmkit", "__init__.py") + "\n"
			if how == "editable" {
				want = "2 " + filepath.Join(source, "shmkit", "__init__.py") + "\n"
			}
			if out, err := use.CombinedOutput(); err != nil || string(out) != want {
				t.Errorf("%s: %v: %q, want %q", how, err, out, want)
			}
		}
		if after := files(t, source); !slices.Equal(before, after) {
			t.Errorf("before: %v\nafter: %v", before, after)
		}
	})
}

func files(t testing.TB, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		names = append(names, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
