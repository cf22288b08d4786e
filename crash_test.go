package migrator_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/shop"
)

// child is what the test binary does when it is started as a process that can be killed.
func child() int {
	ctx := context.Background()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	src, err := migrator.OpenHeroku(ctx, os.Getenv("CHILD_SOURCE"), migrator.HerokuConfig{PgDump: os.Getenv("CHILD_PG_DUMP"), Capture: migrator.CaptureMethod(os.Getenv("CHILD_CAPTURE"))})
	if err == nil {
		var dst *migrator.PlanetScale
		if dst, err = migrator.OpenPlanetScale(ctx, os.Getenv("CHILD_TARGET"), migrator.PlanetScaleConfig{Capture: migrator.CaptureMethod(os.Getenv("CHILD_CAPTURE"))}); err == nil {
			var m *migrator.Migrator
			cfg := migrator.Config{Source: src, Target: dst, Logger: log, Copy: migrator.CopyConfig{ChunkBytes: 128 << 10}}
			if file := os.Getenv("CHILD_HOOK"); file != "" {
				cfg.Cutover.Hook = notingHook(file)
			}
			if m, err = migrator.New(cfg); err == nil {
				if command := os.Getenv("CHILD_DO"); command != "" {
					_, err = m.Do(ctx, migrator.CommandName(command), false)
				} else if os.Getenv("CHILD_WORKER") != "" {
					for err = migrator.ErrNoMigration; errors.Is(err, migrator.ErrNoMigration); time.Sleep(100 * time.Millisecond) {
						err = migrator.CopyWorker(ctx, src, dst, migrator.CopyConfig{Workers: 1, Logger: log})
					}
				} else {
					err = m.Run(ctx, migrator.Until(os.Getenv("CHILD_UNTIL")))
				}
			}
		}
	}
	if err != nil {
		log.Error("child", "error", err)
		return 1
	}
	return 0
}

// notingHook notes each call in a file, and kills the process that makes it if it is told to.
func notingHook(file string) migrator.Hook {
	return migrator.CommandHook("sh", "-c", `echo "$MIGRATOR_HOOK $MIGRATOR_NUMBER" >> "$0"; if [ "$CHILD_DIES_IN" = "$MIGRATOR_HOOK" ]; then kill -9 $PPID; fi`, file)
}

func (p *pair) child(t *testing.T, until migrator.Until) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "CHILD_SOURCE="+p.source.URL, "CHILD_TARGET="+p.target.URL, "CHILD_PG_DUMP="+p.pgDump, "CHILD_UNTIL="+string(until), "CHILD_CAPTURE="+string(p.capture))
	return cmd
}

// worker is a process that shares a copy.
type worker struct {
	cmd    *exec.Cmd
	output bytes.Buffer
}

func (p *pair) worker(t *testing.T) *worker {
	t.Helper()
	w := &worker{cmd: p.child(t, "")}
	w.cmd.Env = append(w.cmd.Env, "CHILD_WORKER=1")
	w.cmd.Stderr = &w.output
	require.NoError(t, w.cmd.Start())
	return w
}

func (w *worker) kill(t *testing.T) {
	t.Helper()
	require.NoError(t, w.cmd.Process.Kill())
	_ = w.cmd.Wait() // killed
}

type doneChunk struct{ table, no, plan int64 }

// chunks reads which chunks are done, and when that was.
func (p *pair) chunks(t *testing.T) map[doneChunk]time.Time {
	t.Helper()
	done := map[doneChunk]time.Time{}
	c := p.target.Connect(t)
	defer c.Close(t.Context())
	if count(t, c, `SELECT count(*) FROM pg_tables WHERE schemaname = 'heroku_migrator' AND tablename = 'chunks'`) == 0 {
		return done
	}
	rows, err := c.Query(t.Context(), `SELECT table_id, no, (spec->>'plan')::int8, done_at FROM heroku_migrator.chunks WHERE done`)
	require.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var k doneChunk
		var at time.Time
		require.NoError(t, rows.Scan(&k.table, &k.no, &k.plan, &at))
		done[k] = at
	}
	require.NoError(t, rows.Err())
	return done
}

// SIGKILL at random moments of everything up to replication, each followed by another start (I2, I3, I4, I6): the
// same result, and a chunk that was done is not copied again.
func TestKilledAtRandomMoments(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.shop(t, 0.15)
	ctx := withTimeout(t, 4*time.Minute)
	writers, err := shop.StartWriters(ctx, p.source.URL, 3, shop.Options{Rate: 60, Rest: 4, KeyChanges: true, MaxHold: 300 * time.Millisecond})
	require.NoError(t, err)
	defer writers.Stop()

	m := p.migrator(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	phases := map[migrator.Phase]int{}
	done := map[doneChunk]time.Time{}
	// Each run is given a little longer than it seems to need, so that kills fall on all phases.
	for kills := 0; kills < 10; {
		cmd := p.child(t, "")
		var output bytes.Buffer
		cmd.Stderr = &output
		require.NoError(t, cmd.Start())
		time.Sleep(time.Duration(200+random.IntN(1300)) * time.Millisecond)
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()
		require.NotContains(t, output.String(), "level=ERROR", output.String())
		kills++
		phases[phase(t, m)]++
		now := p.chunks(t)
		for k, at := range done {
			require.Equal(t, at, now[k], "chunk %v was copied again", k)
		}
		done = now
	}
	t.Logf("killed in %v, with %d chunks done", phases, len(done))
	cmd := p.child(t, migrator.UntilInSync)
	output, err := cmd.CombinedOutput()
	require.NoError(t, err, string(output))
	for k, at := range done {
		require.Equal(t, at, p.chunks(t)[k], "chunk %v was copied again", k)
	}
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
	stats := writers.Stop()
	require.Zero(t, stats.Other, stats.OtherSample)
	require.Less(t, stats.LongestStatement, 2500*time.Millisecond)
	require.NoError(t, writers.CheckLedger(ctx, p.target.Connect(t)))
	do(t, m, migrator.CommandComplete)
	p.requireNoTrace(t)
}

// A transaction stays open on a table while capture is installed (I7): the application never waits long, and
// capture is there when the transaction ends.
func TestCaptureWaitsForAnOpenTransaction(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, smallSchema...)
	hold := 8 * time.Second
	if os.Getenv("MIGRATOR_LONG") != "" {
		hold = time.Minute
	}
	holder, writer := p.source.Connect(t), p.source.Connect(t)
	execute(t, holder, `BEGIN`, `UPDATE children SET n = 1 WHERE id = 1`)
	ctx := withTimeout(t, 3*time.Minute)
	running := make(chan error, 1)
	m := p.migrator(t)
	go func() { running <- m.Run(ctx, migrator.UntilInSync) }()
	var longest time.Duration
	for end := time.Now().Add(hold); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		began := time.Now()
		execute(t, writer, fmt.Sprintf(`UPDATE children SET n = n + 1 WHERE id = %d`, 2+rand.IntN(100)))
		longest = max(longest, time.Since(began))
	}
	t.Logf("longest wait %s", longest)
	require.Less(t, longest, 2500*time.Millisecond)
	require.Equal(t, migrator.PhaseConfiguring, phase(t, m))
	s, err := m.Status(ctx)
	require.NoError(t, err)
	require.Contains(t, s.Message, "public.children")
	execute(t, holder, `COMMIT`)
	require.NoError(t, <-running)
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
}
