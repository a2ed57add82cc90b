package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"golang.org/x/sys/unix"
)

const shmDir = "/dev/shm"

// bench is one run of the command.
type bench struct {
	ctx      context.Context
	quick    bool
	dir      string // for files in /dev/shm; removed at the end
	disk     string // for files on disk; removed at the end
	cleanups []func()
}

func main() {
	runChild()
	quick := flag.Bool("quick", false, "run everything in seconds, to see that it works")
	asJSON := flag.Bool("json", false, "print JSON")
	plots := flag.String("plots", "", "write the curves as SVG to this `directory`")
	only := flag.String("run", "", "measure only what matches this `regexp`")
	flag.Parse()
	if err := run(os.Stdout, *quick, *asJSON, *plots, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures what matches the regular expression only, and reports to out.
func run(out io.Writer, quick, asJSON bool, plots, only string) (err error) {
	match, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	b := &bench{quick: quick}
	var stop func()
	b.ctx, stop = signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer func() { // check panics; the cleanups have run
		if r := recover(); r != nil {
			failure, ok := r.(failed)
			if !ok {
				panic(r)
			}
			err = failure.error
		}
	}()
	defer b.clean()
	b.dir = check2(os.MkdirTemp(shmDir, fmt.Sprintf("shm-bench-%d-", os.Getpid())))
	b.cleanup(func() { os.RemoveAll(b.dir) })
	b.disk = check2(os.MkdirTemp("", "shm-bench-"))
	b.cleanup(func() { os.RemoveAll(b.disk) })

	p := pace{rounds: 21, long: 11, slice: 10 * time.Millisecond}
	if quick {
		p = pace{rounds: 3, long: 2, slice: 200 * time.Microsecond}
	}
	var results []result
	for _, c := range slices.Concat(copies(), lifecycle(b), streams(b), waiting(b)) {
		if !match.MatchString(c.group + " " + c.name) {
			continue
		}
		if err := b.ctx.Err(); err != nil {
			return err
		}
		func() {
			inner := &bench{ctx: b.ctx, quick: b.quick, dir: b.dir, disk: b.disk}
			defer inner.clean()
			fmt.Fprintf(os.Stderr, "\r\x1b[K%s: %s", c.group, c.name)
			results = append(results, c.judge(measure(c.start(inner), p))...)
		}()
	}
	fmt.Fprint(os.Stderr, "\r\x1b[K")
	if plots != "" {
		check(b.plot(plots, p))
	}
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(report{machine(), results})
	}
	show(out, results)
	return nil
}

// report is what -json prints.
type report struct {
	Machine string   `json:"machine"`
	Results []result `json:"results"`
}

// cleanup registers f to be called at the end, last one first.
func (b *bench) cleanup(f func()) { b.cleanups = append(b.cleanups, f) }

func (b *bench) clean() {
	for _, f := range slices.Backward(b.cleanups) {
		f()
	}
	b.cleanups = nil
}

// failed is what check panics with, and run recovers.
type failed struct{ error }

func check(err error) {
	if err != nil {
		panic(failed{err})
	}
}

func check2[T any](v T, err error) T {
	check(err)
	return v
}

func show(out io.Writer, results []result) {
	fmt.Fprintf(out, "%s\n\n", machine())
	t := table.NewWriter()
	t.SetOutputMirror(out)
	t.AppendHeader(table.Row{"Work", "Through", "Time", "Against", "Time", "Ratio", "Goal", ""})
	group, missed := "", 0
	for _, r := range results {
		if r.Group != group {
			group = r.Group
			t.AppendRow(table.Row{"**" + group + "**"})
		}
		limit, met := "", ""
		if r.AtMost > 0 {
			limit, met = "≤ "+number(r.AtMost), "met"
			if !r.Met {
				met = "missed"
				missed++
			}
		}
		t.AppendRow(table.Row{r.Work, r.Ours, nanos(r.OursNs), r.Against, nanos(r.TheirNs), number(r.Ratio), limit, met})
	}
	t.RenderMarkdown()
	fmt.Fprintf(out, "\n%d goals missed\n", missed)
}

func number(v float64) string {
	return fmt.Sprintf("%.*f", max(2, 3-len(fmt.Sprint(int(v*10)))+1), v)
}

func nanos(ns float64) string {
	for _, unit := range []struct {
		most float64
		name string
	}{{1e3, "ns"}, {1e6, "µs"}, {1e9, "ms"}} {
		if ns < unit.most {
			return fmt.Sprintf("%.3g %s", ns*1e3/unit.most, unit.name)
		}
	}
	return fmt.Sprintf("%.3g s", ns/1e9)
}

// machine describes the machine.
func machine() string {
	var uts unix.Utsname
	unix.Uname(&uts)
	cpu := "unknown processor"
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			cpu = strings.TrimSpace(strings.TrimLeft(name, "\t :"))
			break
		}
	}
	return fmt.Sprintf("%s, %d CPUs, Linux %s, %s/%s, huge pages on /dev/shm: %s",
		cpu, runtime.NumCPU(), unix.ByteSliceToString(uts.Release[:]), runtime.Version(), runtime.GOARCH, hugePages())
}

// hugePages returns the huge option of the mount of /dev/shm; see tmpfs(5).
func hugePages() string {
	option := "unknown"
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 3 && f[1] == shmDir { // the last one is on top
			_, huge, _ := strings.Cut(f[3]+",huge=never", "huge=")
			option, _, _ = strings.Cut(huge, ",")
		}
	}
	return option
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }
