package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/go-analyze/charts"
)

// plot measures curves and writes them to dir.
func (b *bench) plot(dir string, p pace) error {
	var sizes, goroutines []int
	for n := 64; n <= 4<<20; n *= 4 {
		sizes = append(sizes, n)
	}
	for n := 1; n <= 16; n *= 2 {
		goroutines = append(goroutines, n)
	}
	names := []string{ours, floor, xExp, osFile}
	readers := b.readers(4 << 20)
	throughput := curves(names, sizes, p, func(name string, bytes int) func(n int) {
		buf, r := make([]byte, bytes), readers[name]
		return func(n int) {
			for range n {
				r.ReadAt(buf, 0)
			}
		}
	}, func(ns float64, bytes int) float64 { return float64(bytes) / ns })
	const locked = "bare copy under a sync.RWMutex"
	readers[locked] = &lockedMemory{m: b.mapped(4 << 20)}
	guards := []string{ours, floor, locked}
	calls := curves(guards, goroutines, p, func(name string, count int) func(n int) {
		all := make([]io.ReaderAt, count)
		for i := range all {
			all[i] = readers[name]
		}
		return func(n int) { readAll(n, all) }
	}, func(ns float64, _ int) float64 { return ns })

	var labels []string
	for _, n := range sizes {
		labels = append(labels, size(n))
	}
	if err := draw(filepath.Join(dir, "readat-size.svg"), "ReadAt, warm: GB/s by size of the read", names, labels, throughput); err != nil {
		return err
	}
	labels = nil
	for _, n := range goroutines {
		labels = append(labels, fmt.Sprint(n))
	}
	return draw(filepath.Join(dir, "readat-goroutines.svg"), "ReadAt of 64 B: ns per call by goroutines on one Segment", guards, labels, calls)
}

// lockedMemory is memory whose Close could wait for readers, as most programs
// implement it.
type lockedMemory struct {
	sync.RWMutex
	m *memory
}

func (l *lockedMemory) ReadAt(p []byte, off int64) (int, error) {
	l.RLock()
	defer l.RUnlock()
	return l.m.ReadAt(p, off)
}

// curves measures run for each name at each x.
func curves(names []string, xs []int, p pace, run func(name string, x int) func(n int), value func(ns float64, x int) float64) [][]float64 {
	rows := make([][]float64, len(names))
	for _, x := range xs {
		var list []contender
		for _, name := range names {
			list = append(list, contender{name: name, run: run(name, x)})
		}
		times := measure(list, p)
		for i, name := range names {
			rows[i] = append(rows[i], value(median(times[name]), x))
		}
	}
	return rows
}

func draw(path, title string, names, labels []string, values [][]float64) error {
	opt := charts.NewLineChartOptionWithData(values)
	opt.Title.Text = title
	opt.XAxis.Labels = labels
	opt.Legend.SeriesNames = names
	opt.Legend.Offset = charts.OffsetStr{Top: charts.PositionBottom}
	opt.Symbol.Shape = charts.SymbolCircle
	opt.ValueFormatter = func(v float64) string { return fmt.Sprintf("%.3g", v) }
	painter := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputSVG, Width: 760, Height: 440})
	if err := painter.LineChart(opt); err != nil {
		return err
	}
	svg, err := painter.Bytes()
	if err != nil {
		return err
	}
	return os.WriteFile(path, svg, 0o644)
}
