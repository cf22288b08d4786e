package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The bars.
const (
	mostData   = 1.05 // of the floor's data phase
	mostDelay  = 1.15 // of our time without delay
	mostKilled = 1.1  // of the uninterrupted time
	mostMemory = 64 << 20
)

// report collects what was measured.
type report struct {
	cfg        config
	facts      []string
	contenders []*contender
	missing    []string
	failed     []string

	near, far        []delayed
	unbroken, killed []time.Duration
	longRows         *sample
	held             []held

	costs        map[string][]cost // by tool
	alternatives map[string][]cost // by design
	drains       map[string][]drained
	lags         map[string][]lagged
}

// median of what f finds in each.
func median[T any, N cmp.Ordered](all []T, f func(T) N) (m N) {
	if len(all) == 0 {
		return m
	}
	values := make([]N, len(all))
	for i, v := range all {
		values[i] = f(v)
	}
	slices.Sort(values)
	return values[(len(values)-1)/2]
}

func seconds[T any](all []T, f func(T) time.Duration) float64 { return median(all, f).Seconds() }

func whole(s *sample) time.Duration { return s.whole }

func peakOf(samples []*sample) (most int64) {
	for _, s := range samples {
		most = max(most, s.peak)
	}
	return most
}

func (r *report) markdown() string {
	b := &strings.Builder{}
	for _, f := range r.facts {
		fmt.Fprintf(b, "- %s\n", f)
	}
	r.contest(b)
	r.cases(b)
	r.replication(b)
	r.bars(b)
	for _, m := range r.missing {
		fmt.Fprintf(b, "\nLeft out: %s.\n", m)
	}
	for _, c := range r.contenders {
		if c.err != nil {
			fmt.Fprintf(b, "\nFailed: %s: %s\n", c.name, oneLine(c.err))
		}
	}
	for _, f := range r.failed {
		fmt.Fprintf(b, "\nFailed: %s\n", f)
	}
	return b.String()
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func (r *report) contest(b *strings.Builder) {
	if len(r.contenders) == 0 {
		return
	}
	b.WriteString("\n| way | whole, s (least to most) | data, s | indexes, s | MB/s | CPU, s | peak MiB | of the last round |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, c := range r.contenders {
		if len(c.samples) == 0 {
			fmt.Fprintf(b, "| %s | failed | | | | | | |\n", c.name)
			continue
		}
		last := c.samples[len(c.samples)-1]
		least, most := slices.MinFunc(c.samples, compareWhole), slices.MaxFunc(c.samples, compareWhole)
		all := fmt.Sprintf("%.1f (%.1f to %.1f)", seconds(c.samples, whole), least.whole.Seconds(), most.whole.Seconds())
		took := seconds(c.samples, whole)
		if last.part {
			all, took = "", seconds(c.samples, func(s *sample) time.Duration { return s.data })
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %.0f | %.1f | %.0f | %s |\n", c.name, all,
			optional(seconds(c.samples, func(s *sample) time.Duration { return s.data })),
			optional(seconds(c.samples, func(s *sample) time.Duration { return s.indexes })),
			float64(last.bytes)/1e6/took, seconds(c.samples, func(s *sample) time.Duration { return s.cpu }),
			float64(peakOf(c.samples))/(1<<20), last.note)
	}
}

func compareWhole(a, b *sample) int { return cmp.Compare(a.whole, b.whole) }

func optional(seconds float64) string {
	if seconds == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f", seconds)
}

func (r *report) cases(b *strings.Builder) {
	for _, c := range []struct {
		name string
		of   []delayed
	}{{"without delay", r.near}, {fmt.Sprintf("%v each way", distance), r.far}} {
		if len(c.of) == 0 {
			continue
		}
		if c.name == "without delay" {
			b.WriteString("\n| ours through two proxies | whole, s | last chunk, s of copying | last chunk of the large tables | of the last round |\n| --- | --- | --- | --- | --- |\n")
		}
		fmt.Fprintf(b, "| %s | %.1f | %.1f | %.1f | %s |\n", c.name, seconds(c.of, func(d delayed) time.Duration { return d.whole }),
			seconds(c.of, func(d delayed) time.Duration { return d.data }), seconds(c.of, func(d delayed) time.Duration { return d.large }), c.of[len(c.of)-1].phases)
	}
	if len(r.killed) > 0 {
		fmt.Fprintf(b, "\nKilled at half of the bytes and started again: %.1f s in all; uninterrupted %.1f s.\n", seconds(r.killed, same), seconds(r.unbroken, same))
	}
	if r.longRows != nil {
		fmt.Fprintf(b, "\nRows of 20 KB and of 50 MB: %s.\n", r.longRows)
	}
	if len(r.held) > 0 {
		h := slices.MaxFunc(r.held, func(a, b held) int { return cmp.Compare(a.copying, b.copying) })
		all := slices.MaxFunc(r.held, func(a, b held) int { return cmp.Compare(a.whole, b.whole) })
		fmt.Fprintf(b, "\nUnder load, the oldest backend_xmin of ours: %.2f s while copying (longest chunk %.2f s), %.2f s at any time (`%s`).\n",
			h.copying.Seconds(), h.chunk.Seconds(), all.whole.Seconds(), all.wholeBy)
	}
}

func same(d time.Duration) time.Duration { return d }

// best returns the shortest data phase of the floor, its shortest whole copy, and that of the other tools; 0: not measured.
func (r *report) best() (floor, bare, others float64) {
	for _, c := range r.contenders {
		if len(c.samples) == 0 {
			continue
		}
		if c.of == "floor" {
			data := seconds(c.samples, func(s *sample) time.Duration { return s.data })
			if floor == 0 || data < floor {
				floor = data
			}
		}
		took := seconds(c.samples, whole)
		if c.of == "floor" && (bare == 0 || took < bare) {
			bare = took
		}
		if c.of != "floor" && c.of != "ours" && (others == 0 || took < others) {
			others = took
		}
	}
	return floor, bare, others
}

// bars compares with what is demanded.
func (r *report) bars(b *strings.Builder) {
	var lines []string
	bar := func(what string, got, most float64, unit string) {
		verdict := "met"
		if got > most {
			verdict = "**missed**"
		}
		lines = append(lines, fmt.Sprintf("| %s | %.2f%s | %.2f%s | %s |\n", what, got, unit, most, unit, verdict))
	}
	floor, bare, others := r.best()
	var peak int64
	for _, c := range r.contenders {
		if c.of != "ours" || len(c.samples) == 0 {
			continue
		}
		peak = max(peak, peakOf(c.samples))
		if c.samples[0].part && floor > 0 {
			bar("data phase, to the floor's", seconds(c.samples, func(s *sample) time.Duration { return s.data })/floor, mostData, "")
		}
		if !c.samples[0].part && others > 0 {
			bar("whole copy, to the fastest of the other tools", seconds(c.samples, whole)/others, 1, "")
		}
		if !c.samples[0].part && bare > 0 {
			bar("whole copy, to the floor's with its indexes, which collects no statistics", seconds(c.samples, whole)/bare, 1, "")
		}
	}
	if len(r.near) > 0 && len(r.far) == len(r.near) {
		for _, d := range []struct {
			what string
			of   func(delayed) time.Duration
		}{
			{"with delay, the large tables, to without", func(d delayed) time.Duration { return d.large }},
		} {
			bar(d.what, seconds(r.far, d.of)/seconds(r.near, d.of), mostDelay, "")
		}
	}
	if len(r.killed) > 0 {
		bar("killed, to uninterrupted", seconds(r.killed, same)/seconds(r.unbroken, same), mostKilled, "")
	}
	if peak > 0 {
		bar("peak memory", float64(peak)/(1<<20), mostMemory>>20, " MiB")
	}
	if r.longRows != nil {
		bar("peak memory with long rows", float64(r.longRows.peak)/(1<<20), mostMemory>>20, " MiB")
	}
	r.replicationBars(bar)
	for _, h := range r.held {
		bar("oldest backend_xmin while copying, to the longest chunk", h.copying.Seconds(), h.chunk.Seconds(), " s")
	}
	if len(lines) > 0 {
		b.WriteString("\n| bar | measured | at most | |\n| --- | --- | --- | --- |\n" + strings.Join(lines, ""))
	}
}
