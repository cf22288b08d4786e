// Command quickstart shows a whole migration on this machine, with nothing to prepare: it starts two
// throw-away Postgres servers, fills one with a small web shop, lets clients write to it without a break,
// and moves it to the other: copy, replication, switch, comparison of every row, and the way the databases
// are left behind. It exits with 1 if a single row differs.
//
//	make demo
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgtest"
	"github.com/heroku-migrator/migrator/internal/shop"
)

const (
	writers = 4
	rate    = 200 // transactions per second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

// timeline prints what happens, with the seconds since the begin.
type timeline struct {
	w     io.Writer
	began time.Time
}

func (t *timeline) sayf(format string, args ...any) {
	fmt.Fprintf(t.w, "%6.1f s  %s\n", time.Since(t.began).Seconds(), fmt.Sprintf(format, args...))
}

func run(ctx context.Context, w io.Writer) (err error) {
	t := &timeline{w: w, began: time.Now()}
	t.sayf("starting two throw-away servers (the first time, their images are built: two minutes or so)")
	from, to, stopServers, err := servers(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopServers()) }()
	tools, err := from.PgTools(ctx)
	if err != nil {
		return err
	}
	source, err := from.CreateSource(ctx)
	if err != nil {
		return err
	}
	target, err := to.CreateTarget(ctx)
	if err != nil {
		return err
	}
	t.began = time.Now() // building images is not what is shown
	t.sayf("source: a database with a role like Heroku's; target: one with a role like PlanetScale's")

	conn, err := pgx.Connect(ctx, source.URL)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := shop.Install(ctx, conn); err != nil {
		return err
	}
	rows, err := shop.Seed(ctx, conn, 1)
	if err != nil {
		return err
	}
	before, err := privileges(ctx, conn)
	if err != nil {
		return err
	}
	t.sayf("the shop is open: %d rows", rows)
	load, err := shop.StartWriters(ctx, source.URL, writers, shop.Options{Rate: rate, KeyChanges: true, Truncate: true})
	if err != nil {
		return err
	}
	defer load.Stop()
	t.sayf("%d clients write to it, %d transactions/s: inserts, updates, deletes, key changes, bulk statements", writers, rate)

	src, err := migrator.OpenHeroku(ctx, source.URL, migrator.HerokuConfig{PgDump: filepath.Join(tools, "pg_dump")})
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := migrator.OpenPlanetScale(ctx, target.URL, migrator.PlanetScaleConfig{})
	if err != nil {
		return err
	}
	defer dst.Close()
	m, err := migrator.New(migrator.Config{Source: src, Target: dst, Copy: migrator.CopyConfig{ChunkBytes: 8 << 20}})
	if err != nil {
		return err
	}
	if err := migrate(ctx, t, m); err != nil {
		return err
	}
	if err := compare(ctx, t, src, dst, load); err != nil {
		return err
	}
	moved, err := pgx.Connect(ctx, target.URL)
	if err != nil {
		return err
	}
	defer moved.Close(context.WithoutCancel(ctx))
	if err := load.CheckLedger(ctx, moved); err != nil {
		return fmt.Errorf("the clients' ledger: %w", err)
	}
	t.sayf("ledger: every transaction that a client saw committed is on the target, and none that was refused")

	if _, err := m.Do(ctx, migrator.CommandComplete, false); err != nil {
		return err
	}
	return showClean(ctx, t, conn, before)
}

// servers starts the source's server and the target's.
func servers(ctx context.Context) (from, to *pgtest.Cluster, stop func() error, err error) {
	if from, err = pgtest.Start(ctx, pgtest.SourceVersion()); err != nil {
		return nil, nil, nil, err
	}
	closeBoth := func() error {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		err := from.Close(stopping)
		if to != nil {
			err = errors.Join(err, to.Close(stopping))
		}
		return err
	}
	if to, err = pgtest.Start(ctx, pgtest.TargetVersion()); err != nil {
		return nil, nil, nil, errors.Join(err, closeBoth())
	}
	return from, to, closeBoth, nil
}

// migrate goes from nothing to switched.
func migrate(ctx context.Context, t *timeline, m *migrator.Migrator) error {
	report, err := m.Preflight(ctx)
	if err != nil {
		return err
	}
	for _, f := range report.Findings {
		t.sayf("preflight: %-8s %s", f.Severity, f.Message)
	}
	events, unsubscribe := m.Subscribe(10_000)
	told := make(chan struct{})
	go func() {
		defer close(told)
		narrate(t, events)
	}()
	err = m.Run(ctx, migrator.UntilInSync)
	if err == nil {
		err = followForAWhile(ctx, t, m)
	}
	var result *migrator.Result
	if err == nil {
		t.sayf("switch: from now on, the source refuses writes")
		result, err = m.Do(ctx, migrator.CommandSwitch, false)
	}
	unsubscribe()
	<-told
	if err != nil {
		return err
	}
	status, err := m.Status(ctx)
	if err != nil {
		return err
	}
	if r := status.Report; r != nil {
		t.sayf("%s: fence %d ms, last rounds %d ms (%d rows), finish %d ms (%d sequences)", result.Message,
			r.Fence.Milliseconds(), r.Drain.Milliseconds(), r.RowsDrained, r.Finish.Milliseconds(), r.Sequences)
	}
	return nil
}

// followForAWhile lets replication run, and reports the lag.
func followForAWhile(ctx context.Context, t *timeline, m *migrator.Migrator) error {
	following, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- m.Run(following, "") }()
	for range 3 {
		select {
		case err := <-done:
			return fmt.Errorf("replication ended: %w", err)
		case <-time.After(3 * time.Second):
		}
		status, err := m.Status(ctx)
		if err != nil {
			return err
		}
		if status.LagSeconds != nil {
			t.sayf("replicating: %d rounds, %d rows so far, %.2f s behind", status.ProgressSignals.ReplicationDelay.Rounds,
				status.ProgressSignals.ReplicationDelay.RowsApplied, *status.LagSeconds)
		}
	}
	stop()
	if err := <-done; !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// narrate turns events into lines.
func narrate(t *timeline, events <-chan migrator.Event) {
	var began time.Time
	var rows, bytes int64
	for e := range events {
		switch e.Kind {
		case migrator.EventPhase:
			if e.Phase == migrator.PhaseCopying {
				began = time.Now()
			}
			if e.Phase == migrator.PhaseRebuildingIndexes && !began.IsZero() {
				took := time.Since(began).Seconds()
				t.sayf("copied %d rows, %.1f MB in %.1f s: %.0f MB/s", rows, float64(bytes)/1e6, took, float64(bytes)/1e6/took)
			}
			t.sayf("%s: %s", e.Phase, e.Message)
		case migrator.EventChunk:
			rows += e.Rows
			bytes += e.Bytes
		case migrator.EventWarning, migrator.EventSchema, migrator.EventWaiting, migrator.EventFailure, migrator.EventThrottle:
			t.sayf("%s: %s", e.Kind, e.Message)
		case migrator.EventTable, migrator.EventVerify, migrator.EventObject, migrator.EventRound, migrator.EventCommand, migrator.EventSwitched:
		}
	}
}

// compare looks at every row of every table on both sides, while the clients still try to write.
func compare(ctx context.Context, t *timeline, src migrator.Source, dst migrator.Target, load *shop.Writers) error {
	cat, err := src.Catalog(ctx)
	if err != nil {
		return err
	}
	report, err := migrator.Verify(ctx, src, dst, cat.Tables, migrator.VerifyConfig{})
	if err != nil {
		return err
	}
	stats := load.Stop()
	t.sayf("compared %d rows in %d tables; clients: %d transactions committed, %d writes refused after the switch, longest statement %d ms",
		report.Rows, report.Tables, stats.Committed, stats.Refused, stats.LongestStatement.Milliseconds())
	for _, d := range report.Differences {
		t.sayf("DIFFERENT: %s", d)
	}
	if len(report.Differences) > 0 {
		return fmt.Errorf("%d tables differ", len(report.Differences))
	}
	if stats.Other > 0 {
		return fmt.Errorf("%d statements of the clients failed in ways they should not, such as: %s", stats.Other, stats.OtherSample)
	}
	return nil
}

// privileges summarises every privilege on the source, as the server stores it.
func privileges(ctx context.Context, conn *pgx.Conn) (sum string, err error) {
	err = conn.QueryRow(ctx, `
		SELECT md5(string_agg(x, E'\n' ORDER BY x)) FROM (
			SELECT c.oid || coalesce(relacl::text, '') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE relkind IN ('r', 'p', 'v', 'm', 'S') AND nspname <> 'heroku_migrator'
			UNION ALL SELECT attrelid || attname || attacl::text FROM pg_attribute WHERE attacl IS NOT NULL) AS t(x)`).Scan(&sum)
	return sum, err
}

// showClean proves that nothing of the migration is left on the source.
func showClean(ctx context.Context, t *timeline, conn *pgx.Conn, before string) error {
	var triggers, schemas int
	err := conn.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'heroku_migrator_%'),
		       (SELECT count(*) FROM pg_namespace WHERE nspname = 'heroku_migrator')`).Scan(&triggers, &schemas)
	if err != nil {
		return err
	}
	after, err := privileges(ctx, conn)
	if err != nil {
		return err
	}
	t.sayf("completed: %d triggers and %d schemas of ours are left on the source, privileges are unchanged: %t", triggers, schemas, before == after)
	if triggers != 0 || schemas != 0 || before != after {
		return errors.New("the source is not as it was")
	}
	t.sayf("every row is equal")
	return nil
}
