package backoff

import "testing"

func TestBackoff(t *testing.T) {
	var b Backoff
	skipped := func() (n int) {
		for !b.Due() {
			n++
		}
		return n
	}
	for _, want := range []int{4, 8, 16, 16} {
		if n := skipped(); n != 0 {
			t.Fatalf("%d attempts were left out without a failure", n)
		}
		b.Failed(4, 16)
		if n := skipped(); n != want {
			t.Errorf("%d attempts were left out, want %d", n, want)
		}
	}
	b.Succeeded()
	b.Succeeded()
	b.Failed(4, 16)
	if n := skipped(); n != 8 {
		t.Errorf("%d attempts were left out after two successes, want 8", n)
	}
}
