package interop_test

import (
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/internal/pytest"
)

// pythonBlocks returns the Python in the documentation that contains text.
func pythonBlocks(t testing.TB, text string) (blocks []string) {
	t.Helper()
	block := regexp.MustCompile("(?s)```python\n(.*?)```")
	for _, name := range []string{"README.md", "docs/python.md"} {
		b, err := os.ReadFile(filepath.Join(pytest.Dir(), "..", name))
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range block.FindAllStringSubmatch(string(b), -1) {
			if strings.Contains(match[1], text) {
				blocks = append(blocks, match[1])
			}
		}
	}
	if len(blocks) == 0 {
		t.Fatalf("no Python with %q in the documentation", text)
	}
	return blocks
}

// TestDocumentedExample runs the example of the documentation against what it
// says of Go.
func TestDocumentedExample(t *testing.T) {
	blocks := pythonBlocks(t, "from shmkit import Segment")
	pytest.EachNumPy(t, func(t *testing.T, py pytest.Interpreter) {
		for _, program := range blocks {
			frames, result := unique(t), unique(t)
			program = strings.NewReplacer(`"frames"`, `"`+frames+`"`, `"result"`, `"`+result+`"`).Replace(program)
			frame := make([]float32, 1000)
			for i := range frame {
				frame[i] = float32(i)
			}
			seg, err := shm.Create(frames, 4*1000)
			if err != nil {
				t.Fatal(err)
			}
			defer seg.Close()
			binary.Write(seg, binary.NativeEndian, frame)

			python := proctest.StartCommand(t, py.Command("-c", program))
			python.Expect("Enter ends it")
			seg.Seek(0, 0)
			binary.Read(seg, binary.NativeEndian, frame)
			for i, v := range frame {
				if v != float32(2*i) {
					t.Fatalf("number %d of the frame is %v", i, v)
				}
			}
			out, err := shm.Open(result)
			if err != nil {
				t.Fatal(err)
			}
			numbers := make([]float64, 1000)
			python.Say("")
			python.Wait()
			if err := binary.Read(out, binary.NativeEndian, numbers); err != nil {
				t.Fatal(err)
			}
			for i, v := range numbers {
				if v != float64(i) {
					t.Fatalf("number %d of the result is %v", i, v)
				}
			}
			out.Close()
			mustExist(t, result, false)
		}
	})
}

// TestDocumentedArrays runs the arrays of the documentation that outlive the
// Segment that they are made of.
func TestDocumentedArrays(t *testing.T) {
	arrays := pythonBlocks(t, "with seg:")[0]
	pytest.EachNumPy(t, func(t *testing.T, py pytest.Interpreter) {
		name := unique(t)
		program := "import sys, numpy, shmkit\nseg = shmkit.Segment.create(sys.argv[1], 4000)\n" + arrays
		out, err := py.Command("-c", program, name).CombinedOutput()
		if err != nil || string(out) != "0.0 0.0 0 0.0\n" {
			t.Errorf("%v: %s", err, out)
		}
		mustExist(t, name, false)
	})
}

// TestDocumentedRecipe runs the recipe against the resource tracker.
func TestDocumentedRecipe(t *testing.T) {
	recipe := pythonBlocks(t, "def attach(name):")[0]
	pytest.Each(t, func(t *testing.T, py pytest.Interpreter) {
		seg, err := shm.Create(unique(t), 4, shm.Headerless())
		if err != nil {
			t.Fatal(err)
		}
		defer seg.Close()
		seg.WriteString("kept")
		program := recipe + "\nblock = attach(sys.argv[1])\nprint(bytes(block.buf).decode())"
		out, err := py.Command("-c", program, seg.Name()).CombinedOutput()
		if err != nil || string(out) != "kept\n" {
			t.Errorf("%v: %s", err, out)
		}
		if !info(seg).Linked {
			t.Error("the name is gone")
		}
	})
}

// TestDocumentedStream runs the examples of the documentation that write, follow and lock.
func TestDocumentedStream(t *testing.T) {
	write := pythonBlocks(t, "seg.keep()")[0]
	follow := pythonBlocks(t, "stream.read(")[0]
	lock := pythonBlocks(t, "lock.recovered")[0]
	pytest.Ends(t, func(t *testing.T, py pytest.Interpreter) {
		name := unique(t)
		run := func(program string) string {
			program = "import shmkit\nfrom shmkit import Segment\n" + strings.ReplaceAll(program, `"log"`, `"`+name+`"`)
			out, err := py.Command("-c", program).CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			return string(out)
		}
		run(write)
		seg, err := shm.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer seg.Close()
		got, err := io.ReadAll(seg.Follow(t.Context()))
		if err != nil || len(got) != 3890 {
			t.Errorf("followed %d bytes, %v", len(got), err)
		}
		if out := run(follow); out != "3890\n" {
			t.Errorf("it has followed %q bytes", out)
		}
		run("seg = Segment.open(\"" + name + "\")\n" + lock)
		if b := seg.Bytes(); b[0] != '0'+1 {
			t.Errorf("the first byte is %q", b[0])
		}
	})
}
