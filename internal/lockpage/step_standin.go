//go:build standin

package lockpage

// Step is called before every store to a lock page, and by the stand-in for the
// system before each of its calls, with a word for it. Tests set it.
var Step = func(what string) {}

func step(what string) { Step(what) }
