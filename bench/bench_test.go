package main

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	t.Setenv("SCALE", "0.1")
	t.Setenv("ROUNDS", "")
	t.Setenv("ONLY", "floor, ours")
	c, err := parse([]string{"-rounds", "2"})
	require.NoError(t, err)
	assert.Equal(t, config{scale: 0.1, rounds: 2, only: []string{"floor", "ours"}, rows: 300_000}, c)
	for _, args := range [][]string{{"-scale", "0"}, {"-scale", "x"}, {"-rounds", "0"}, {"-only", "nothing"}} {
		_, err := parse(args)
		assert.Error(t, err, args)
	}
}

func TestRangesCoverTheTable(t *testing.T) {
	t.Parallel()
	tab := table{name: "public.t", pages: 10}
	assert.Equal(t, []string{"public.t"}, ranges(tab, false))
	assert.Equal(t, []string{
		"(SELECT * FROM public.t WHERE ctid >= '(0,0)' AND ctid < '(2,0)')",
		"(SELECT * FROM public.t WHERE ctid >= '(2,0)' AND ctid < '(5,0)')",
		"(SELECT * FROM public.t WHERE ctid >= '(5,0)' AND ctid < '(7,0)')",
		"(SELECT * FROM public.t WHERE ctid >= '(7,0)')",
	}, ranges(tab, true))
}

func TestReportComparesWithTheBars(t *testing.T) {
	t.Parallel()
	sec := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	r := &report{
		contenders: []*contender{
			{name: "floor", of: "floor", samples: []*sample{{whole: sec(20), data: sec(10)}, {whole: sec(30), data: sec(14)}, {whole: sec(21), data: sec(11)}}},
			{name: "floor, split", of: "floor", samples: []*sample{{whole: sec(22), data: sec(10)}}},
			{name: "pgcopydb", of: "pgcopydb", samples: []*sample{{whole: sec(24.5)}}},
			{name: "ours, data only", of: "ours", samples: []*sample{{whole: sec(11), data: sec(10.4), part: true, peak: 20 << 20}}},
			{name: "ours", of: "ours", samples: []*sample{{whole: sec(22.05), peak: 70 << 20}}},
		},
		unbroken: []time.Duration{sec(10)}, killed: []time.Duration{sec(10.5)},
	}
	text := r.markdown()
	assert.Contains(t, text, "| floor | 21.0 (20.0 to 30.0) | 11.0 |")
	assert.Contains(t, text, "| data phase, to the floor's | 1.04 | 1.05 | met |")
	assert.Contains(t, text, "| whole copy, to the fastest of the other tools | 0.90 | 1.00 | met |")
	assert.Contains(t, text, "| whole copy, to the floor's with its indexes, which collects no statistics | 1.05 | 1.00 | **missed** |")
	assert.Contains(t, text, "| peak memory | 70.00 MiB | 64.00 MiB | **missed** |")
	assert.Contains(t, text, "| killed, to uninterrupted | 1.05 | 1.10 | met |")
}

// A process, its children, and a daemon that it leaves behind are counted.
func TestMeterCountsWhatAToolStarts(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has /proc")
	}
	require.NoError(t, adoptOrphans())
	const burn = `i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done`
	used := func(script string) (time.Duration, int64) {
		m := startMeter(context.Background())
		require.NoError(t, m.run(exec.CommandContext(t.Context(), "bash", "-c", script)))
		time.Sleep(2 * time.Second) // daemons
		return m.finish()
	}
	one, memory := used(burn)
	assert.Positive(t, one)
	assert.Greater(t, memory, int64(os.Getpagesize()))
	child, _ := used("bash -c '" + burn + "'; true")
	assert.Greater(t, child, one/2)
	daemon, _ := used("(setsid bash -c '" + burn + "; sleep 0.2' >/dev/null 2>&1 </dev/null &)")
	assert.Greater(t, daemon, one/2)
}
