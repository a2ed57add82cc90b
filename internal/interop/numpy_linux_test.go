package interop_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"path/filepath"
	"testing"

	"github.com/shmkit/shm"
	"github.com/shmkit/shm/internal/proctest"
	"github.com/shmkit/shm/internal/pytest"
)

// TestNumPy has Go write an array that NumPy reads and changes where it is, and
// NumPy make one that Go changes.
func TestNumPy(t *testing.T) {
	pytest.EachNumPy(t, func(t *testing.T, py pytest.Interpreter) {
		t.Run("double", func(t *testing.T) { testDouble(t, py) })
		t.Run("frames", func(t *testing.T) { testFrames(t, py) })
	})
}

func testDouble(t *testing.T, py pytest.Interpreter) {
	const n = 1000
	name := unique(t)
	seg, err := shm.Create(name, 8*n)
	if err != nil {
		t.Fatal(err)
	}
	defer seg.Close()
	b, sum := seg.Bytes(), 0.0
	for i := range n {
		binary.NativeEndian.PutUint64(b[8*i:], math.Float64bits(float64(i)/4))
		sum += float64(i) / 4
	}
	out, err := py.Command(example("double.py"), name).CombinedOutput()
	if err != nil || string(out) != fmt.Sprintf("%.1f\n", 2*sum) {
		t.Errorf("%v: %s", err, out)
	}
	for i := range n {
		if got := math.Float64frombits(binary.NativeEndian.Uint64(b[8*i:])); got != float64(i)/2 {
			t.Fatalf("number %d is %v", i, got)
		}
	}
	if !info(seg).Linked || seg.Refs() != 1 {
		t.Errorf("Python has left, and now: %+v", info(seg))
	}
}

func testFrames(t *testing.T, py pytest.Interpreter) {
	python := proctest.StartCommand(t, py.Command(example("frames.py")))
	seg, err := shm.Open(python.Hear())
	if err != nil {
		t.Fatal(err)
	}
	defer seg.Close()
	frames := seg.Bytes()
	for i, v := range frames {
		if want := byte(i / (len(frames) / 4)); v != want {
			t.Fatalf("byte %d is %d, want %d", i, v, want)
		}
		frames[i] = v + 1
	}
	python.Say("")
	python.Expect(fmt.Sprint((1 + 2 + 3 + 4) * len(frames) / 4))
	python.Wait()
	if !exists(t, seg.Name()) {
		t.Error("Python has left, and the name is gone while Go is attached")
	}
}

func example(name string) string { return filepath.Join(pytest.Dir(), "examples", name) }
