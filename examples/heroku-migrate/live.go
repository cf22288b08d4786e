package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/heroku-migrator/migrator"
)

// live draws bars below the lines of run while rows are copied and indexes built, on a terminal.
type live struct {
	*program

	mu   sync.Mutex
	pool *mpb.Progress // nil while there is nothing to draw
	bars map[string]*liveBar
}

// liveBar is what one line shows. Its texts are read by the drawing goroutine.
type liveBar struct {
	bar *mpb.Bar

	mu   sync.Mutex
	name string
	text string
}

// gauge is a bar as it should look.
type gauge struct {
	key, name, text string
	done, total     int64
}

// mostBars is how many tables and builds are shown at once.
const mostBars = 12

// draw looks at the migration twice a second until the context is done.
func (l *live) draw(ctx context.Context) {
	defer l.clear()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s, err := l.dst.Journal().State(ctx)
		if err != nil {
			continue
		}
		if (s.Phase != migrator.PhaseCopying && s.Phase != migrator.PhaseRebuildingIndexes) || s.Run == migrator.StatePaused {
			l.clear()
			continue
		}
		if st, err := l.m.Status(ctx); err == nil {
			l.show(gauges(st))
		}
	}
}

// gauges are the bars for a status: the whole, the tables on their way, the builds.
func gauges(st *migrator.Status) []gauge {
	w, eta := st.ProgressSignals.ByteWeighted, st.ProgressSignals.ThroughputETA
	all := gauge{key: "all", name: "all tables", done: w.CopiedBytes + w.InFlightBytes, total: w.TotalBytes}
	all.text = fmt.Sprintf("%s of %s", size(all.done), size(all.total))
	if st.Phase == migrator.PhaseCopying {
		all.text += speed(eta.BytesPerSecond, eta.AverageBytesPerSecond, eta.ETASeconds)
	}
	if st.Throttle != nil {
		all.text += fmt.Sprintf("; throttled to %.0f %%", st.Throttle.Percent)
	}
	list := []gauge{all}
	tables := slices.Clone(st.Tables)
	slices.SortStableFunc(tables, func(a, b migrator.TableSummary) int { return int(min(max(b.BytesTotal-a.BytesTotal, -1), 1)) })
	for _, t := range tables {
		if t.BytesInFlight == 0 && (t.BytesCopied == 0 || t.BytesCopied == t.BytesTotal) {
			continue
		}
		done := t.BytesCopied + t.BytesInFlight
		list = append(list, gauge{
			key: "table " + t.Schema + "." + t.Name, name: t.Schema + "." + t.Name, done: done, total: t.BytesTotal,
			text: fmt.Sprintf("%s of %s, %d rows%s", size(done), size(t.BytesTotal), t.RowsCopied+t.RowsInFlight, speed(t.BytesPerSecond, 0, t.ETASeconds)),
		})
	}
	for _, b := range st.Builds {
		list = append(list, gauge{
			key: "build " + b.Object, name: b.Table, done: int64(b.Percent), total: 100,
			text: fmt.Sprintf("%s: %s, %s", b.Object, b.Phase, duration(b.Seconds)),
		})
	}
	if len(list) > mostBars {
		list = list[:mostBars]
	}
	return list
}

// speed writes a speed and the time that is left, as far as they are known.
func speed(now, average float64, left *float64) string {
	if now <= 0 {
		return ""
	}
	text := fmt.Sprintf(", %s/s", size(int64(now)))
	if average > 0 {
		text += fmt.Sprintf(" (average %s/s)", size(int64(average)))
	}
	if left != nil {
		text += ", " + duration(*left) + " left"
	}
	return text
}

// show makes the bars look as they should.
func (l *live) show(list []gauge) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pool == nil {
		l.pool, l.bars = mpb.New(mpb.WithOutput(os.Stdout), mpb.WithWidth(24), mpb.WithRefreshRate(200*time.Millisecond)), map[string]*liveBar{}
		l.out.through(l.pool)
	}
	wanted := map[string]struct{}{}
	for i, g := range list {
		wanted[g.key] = struct{}{}
		b, ok := l.bars[g.key]
		if !ok {
			b = &liveBar{}
			var err error
			b.bar, err = l.pool.Add(0, mpb.BarStyle().Build(), // 0: the total may change
				mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return b.label() }, decor.WCSyncSpaceR)),
				mpb.AppendDecorators(decor.Percentage(decor.WC{W: 5}), decor.Any(func(decor.Statistics) string { return b.detail() })),
				mpb.BarPriority(i))
			if err != nil { // nobody can be drawn for: the terminal is gone, which the next line finds
				return
			}
			l.bars[g.key] = b
		}
		b.mu.Lock()
		b.name, b.text = g.name, g.text
		b.mu.Unlock()
		b.bar.SetPriority(i)
		b.bar.SetTotal(max(g.total, 1), false)
		b.bar.SetCurrent(g.done)
	}
	for key, b := range l.bars {
		if _, ok := wanted[key]; !ok {
			b.bar.Abort(true)
			delete(l.bars, key)
		}
	}
}

func (b *liveBar) label() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.name
}

func (b *liveBar) detail() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return "  " + b.text
}

// clear takes the bars away.
func (l *live) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pool == nil {
		return
	}
	for _, b := range l.bars {
		b.bar.Abort(true)
	}
	l.out.through(os.Stdout) // before the end: nothing is written to a pool that is gone
	l.pool.Wait()
	l.pool = nil
}

// onTerminal tells whether somebody looks at w.
func onTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
