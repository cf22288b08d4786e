package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// The bars of capture and replication.
const (
	leastSpeed = 0.90 // transactions/s, of those without triggers
	mostBulk   = 1.25 // the time of a bulk INSERT or UPDATE, of that without
	mostDelete = 2.0
	leastDrain = 4 // times Bucardo's
	mostLag    = 300 * time.Millisecond
)

const ourselves, decoding, bare = "ours", "ours, by decoding", "no triggers"

func (r *report) replication(b *strings.Builder) {
	writeCosts(b, "on the source", r.costs)
	writeCosts(b, "designs of capture", r.alternatives)
	if len(r.drains) > 0 {
		b.WriteString("\n| backlog | rows/s | seconds | CPU, s | peak MiB |\n| --- | --- | --- | --- | --- |\n")
	}
	for _, name := range slices.Sorted(maps.Keys(r.drains)) {
		d := r.drains[name]
		fmt.Fprintf(b, "| %s | %.0f | %.1f | %.1f | %.0f |\n", name, r.drainRate(d), seconds(d, drainTook), seconds(d, func(d drained) time.Duration { return d.cpu }),
			median(d, func(d drained) float64 { return float64(d.peak) / (1 << 20) }))
	}
	if len(r.lags) > 0 {
		b.WriteString("\n| lag | transactions/s | p50, ms | p95, ms | max, ms | CPU, s | at full speed, transactions/s | p95, ms | caught up after, s | peak MiB |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	}
	for _, name := range slices.Sorted(maps.Keys(r.lags)) {
		l := r.lags[name]
		ms := func(of func(lagged) []time.Duration, q float64) int64 {
			return median(l, func(l lagged) time.Duration { return quantile(of(l), q) }).Milliseconds()
		}
		fmt.Fprintf(b, "| %s | %.0f | %d | %d | %d | %.1f | %.0f | %d | %.1f | %.0f |\n", name, median(l, func(l lagged) float64 { return l.steadyRate }),
			ms(atSteady, 0.5), ms(atSteady, 0.95), ms(atSteady, 1), seconds(l, func(l lagged) time.Duration { return l.cpu }),
			median(l, func(l lagged) float64 { return l.rate }), ms(atFull, 0.95), seconds(l, func(l lagged) time.Duration { return l.catchUp }),
			median(l, func(l lagged) float64 { return float64(l.peak) / (1 << 20) }))
	}
}

func writeCosts(b *strings.Builder, what string, costs map[string][]cost) {
	if len(costs) > 0 {
		fmt.Fprintf(b, "\n| %s | transactions/s | ratio | bulk INSERT, s | ratio | bulk UPDATE, s | ratio | bulk DELETE, s | ratio |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n", what)
	}
	for _, name := range slices.Sorted(maps.Keys(costs)) {
		fmt.Fprintf(b, "| %s", name)
		for _, of := range costOf {
			fmt.Fprintf(b, " | %.2f | %.2f", median(costs[name], of), costRatio(costs, name, of))
		}
		b.WriteString(" |\n")
	}
}

func atSteady(l lagged) []time.Duration { return l.steady }
func atFull(l lagged) []time.Duration   { return l.full }

// costOf are the figures of a measurement of the write cost.
var costOf = []func(cost) float64{
	func(c cost) float64 { return c.tps },
	func(c cost) float64 { return c.insert.Seconds() },
	func(c cost) float64 { return c.update.Seconds() },
	func(c cost) float64 { return c.deleteTime.Seconds() },
}

// costRatio is the median, over the rounds, of a figure to that without triggers in the same round.
func costRatio(costs map[string][]cost, name string, of func(cost) float64) float64 {
	n := min(len(costs[name]), len(costs[bare]))
	rounds := make([]float64, n)
	for i := range n {
		rounds[i] = of(costs[name][i]) / of(costs[bare][i])
	}
	return median(rounds, func(f float64) float64 { return f })
}

func drainTook(d drained) time.Duration { return d.took }

func (r *report) drainRate(d []drained) float64 { return float64(r.cfg.rows) / seconds(d, drainTook) }

func (r *report) replicationBars(bar func(what string, got, most float64, unit string)) {
	if len(r.costs[ourselves]) > 0 && len(r.costs[bare]) > 0 {
		bar("transactions/s without triggers, to those with ours", 1/costRatio(r.costs, ourselves, costOf[0]), 1/leastSpeed, "")
		bar("bulk INSERT with our triggers, to without", costRatio(r.costs, ourselves, costOf[1]), mostBulk, "")
		bar("bulk UPDATE with our triggers, to without", costRatio(r.costs, ourselves, costOf[2]), mostBulk, "")
		bar("bulk DELETE with our triggers, to without", costRatio(r.costs, ourselves, costOf[3]), mostDelete, "")
	}
	if len(r.drains[ourselves]) > 0 && len(r.drains["Bucardo"]) > 0 {
		bar("rows/s of Bucardo's drain, to ours", r.drainRate(r.drains["Bucardo"])/r.drainRate(r.drains[ourselves]), 1.0/leastDrain, "")
	}
	var peak int64
	for _, d := range r.drains[ourselves] {
		peak = max(peak, d.peak)
	}
	for _, l := range r.lags[ourselves] {
		peak = max(peak, l.peak)
		bar(fmt.Sprintf("lag p95 at %.0f transactions/s", l.steadyRate), float64(quantile(l.steady, 0.95).Milliseconds()), float64(mostLag.Milliseconds()), " ms")
	}
	if peak > 0 {
		bar("peak memory while replicating", float64(peak)/(1<<20), mostMemory>>20, " MiB")
	}
}
