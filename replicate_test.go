package migrator_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgtest"
)

// world is a migration that a test drives by hand, phase by phase and round by round.
type world struct {
	*pair
	src  *migrator.Heroku
	dst  *migrator.PlanetScale
	lead *migrator.Lead
	// Connections to compare by, and to do what a superuser does.
	adminSource, adminTarget *pgx.Conn
}

// newWorld makes the schema on a source, takes the lead and claims the source.
func newWorld(t *testing.T, schema ...string) *world {
	t.Helper()
	w := &world{pair: newPair(t)}
	w.sql(t, schema...)
	w.src, w.dst = w.open(t)
	w.adminSource, w.adminTarget = w.source.ConnectAdmin(t), w.target.ConnectAdmin(t)
	w.takeLead(t)
	return w
}

func (w *world) takeLead(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		lead, err := w.dst.Journal().TryLead(t.Context(), true)
		require.NoError(t, err)
		w.lead = lead
		return lead != nil
	}, 10*time.Second, 10*time.Millisecond)
	t.Cleanup(w.lead.Release)
	state := w.state(t)
	require.NoError(t, w.src.Claim(t.Context(), migrator.Claim{Migration: state.ID, Epoch: w.lead.Epoch}, true))
}

// captured goes up to the point where every table is captured.
func (w *world) captured(t *testing.T) *world {
	t.Helper()
	require.NoError(t, migrator.CloneSchema(t.Context(), w.src, w.dst, migrator.CloneSchemaConfig{}))
	require.NoError(t, migrator.Capture(t.Context(), w.src, w.dst, migrator.CaptureConfig{}))
	return w
}

// live goes up to the point where rounds carry every table.
func (w *world) live(t *testing.T) *world {
	t.Helper()
	w.captured(t)
	require.NoError(t, migrator.Copy(t.Context(), w.src, w.dst, migrator.CopyConfig{ChunkBytes: 32 << 10}))
	w.indexed(t)
	return w
}

// indexed goes from the end of the copy to the point where rounds carry every table.
func (w *world) indexed(t *testing.T) {
	t.Helper()
	require.NoError(t, migrator.BuildIndexes(t.Context(), w.src, w.dst, migrator.IndexConfig{}))
	for _, table := range w.statuses(t) {
		require.Equal(t, migrator.TableLive, table.State, table.Table)
	}
}

func (w *world) state(t *testing.T) *migrator.State {
	t.Helper()
	state, err := w.dst.Journal().State(t.Context())
	require.NoError(t, err)
	return state
}

func (w *world) statuses(t *testing.T) []migrator.TableStatus {
	t.Helper()
	tables, err := w.dst.Journal().Tables(t.Context())
	require.NoError(t, err)
	return tables
}

func (w *world) tables(t *testing.T) (list []*migrator.Table) {
	t.Helper()
	for _, s := range w.statuses(t) {
		list = append(list, s.Table)
	}
	return list
}

func (w *world) table(t *testing.T, name string) *migrator.Table {
	t.Helper()
	for _, table := range w.tables(t) {
		if table.Name == name {
			return table
		}
	}
	t.Fatalf("no table %s", name)
	return nil
}

// begun is a round whose snapshot was taken, and that is not applied yet.
type begun struct {
	snap  migrator.Snapshot
	round migrator.Round
}

// snapshot is closed when the test ends, however it ends: Close of its source waits for it.
func (w *world) snapshot(t *testing.T) migrator.Snapshot {
	t.Helper()
	snap, err := w.src.Snapshot(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = snap.Close(context.Background()) })
	return snap
}

func (w *world) begin(t *testing.T) begun {
	t.Helper()
	b, err := w.tryBegin(t)
	require.NoError(t, err)
	return b
}

func (w *world) tryBegin(t *testing.T) (begun, error) {
	t.Helper()
	snap := w.snapshot(t)
	since := w.state(t).Position
	changes, err := snap.Changes(t.Context(), w.tables(t), since)
	if err != nil {
		_ = snap.Close(t.Context())
		return begun{}, err
	}
	b := begun{snap: snap}
	for _, c := range changes {
		b.round.Changes = append(b.round.Changes, migrator.RoundChange{Change: c, Since: since})
	}
	return b, nil
}

// round is one round without a trim, by the same calls as in Replicate.
func (w *world) round(t *testing.T) {
	t.Helper()
	b := w.begin(t)
	require.NoError(t, w.dst.Apply(t.Context(), b.snap, b.round))
	require.NoError(t, b.snap.Close(t.Context()))
}

// logged counts the change log's rows of all tables.
func (w *world) logged(t *testing.T) (n int64) {
	t.Helper()
	for _, table := range w.tables(t) {
		n += count(t, w.adminSource, fmt.Sprintf(`SELECT count(*) FROM heroku_migrator.changes_%d`, table.ID))
	}
	return n
}

// contents reads every row of every relation, leaf by leaf, without the help of the library.
func contents(t *testing.T, c *pgx.Conn) map[string][]string {
	t.Helper()
	var query *string
	require.NoError(t, c.QueryRow(t.Context(), `
		SELECT string_agg(format('SELECT %L, array(SELECT x::text FROM ONLY %I.%I AS x ORDER BY x::text COLLATE "C")', nspname || '.' || relname, nspname, relname), ' UNION ALL ')
		FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
		WHERE relkind = 'r' AND relpersistence <> 't' AND nspname NOT LIKE 'pg\_%' AND nspname NOT IN ('information_schema', 'heroku_migrator')`).Scan(&query))
	require.NotNil(t, query, "no tables")
	rows, err := c.Query(t.Context(), *query)
	require.NoError(t, err)
	all := map[string][]string{}
	var name string
	var list []string
	_, err = pgx.ForEachRow(rows, []any{&name, &list}, func() error {
		all[name] = list
		list = nil
		return nil
	})
	require.NoError(t, err)
	return all
}

// requireSame compares both sides, which have to be at rest.
func (w *world) requireSame(t *testing.T) {
	t.Helper()
	want, got := contents(t, w.adminSource), contents(t, w.adminTarget)
	require.Len(t, got, len(want), "relations")
	for name := range want {
		require.Equal(t, want[name], got[name], name)
	}
}

func begin(t *testing.T, db *pgtest.Database, statements ...string) pgx.Tx {
	t.Helper()
	tx, err := db.Connect(t).Begin(t.Context())
	require.NoError(t, err)
	for _, s := range statements {
		_, err := tx.Exec(t.Context(), s)
		require.NoError(t, err, s)
	}
	return tx
}

func commit(t *testing.T, tx pgx.Tx) {
	t.Helper()
	require.NoError(t, tx.Commit(t.Context()))
}

func state(err error) string {
	if pg := new(pgconn.PgError); errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

const itemsTable = `CREATE TABLE items (id bigserial PRIMARY KEY, u int UNIQUE, v text)`

// I4: what commits late is carried although its number, and its xid, are early.
func TestTransactionThatTookItsNumbersEarlyAndCommitsLate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsTable, `INSERT INTO items (v) SELECT i::text FROM generate_series(1, 5) i`).live(t)
	late := begin(t, w.source, `SELECT pg_current_xact_id(), nextval('items_id_seq')`)
	later := begin(t, w.source, `INSERT INTO items (v) VALUES ('open for several rounds')`, `UPDATE items SET v = 'late' WHERE id = 1`)
	for i := range 4 {
		w.sql(t, fmt.Sprintf(`INSERT INTO items (v) VALUES ('quick %d')`, i), `UPDATE items SET v = v || '!' WHERE id = 2`)
		w.round(t)
		w.requireSame(t) // nobody else's rows wait
	}
	_, err := late.Exec(t.Context(), `INSERT INTO items (id, v) VALUES (6, 'late')`)
	require.NoError(t, err)
	// Trimmed in between: what is not visible yet stays in the log.
	require.NoError(t, w.src.Trim(t.Context(), w.tables(t), w.state(t).Position))
	commit(t, later)
	w.round(t)
	w.requireSame(t)
	require.NoError(t, w.src.Trim(t.Context(), w.tables(t), w.state(t).Position))
	commit(t, late)
	w.round(t)
	w.requireSame(t)
	require.NoError(t, w.src.Trim(t.Context(), w.tables(t), w.state(t).Position))
	require.Zero(t, w.logged(t))
}

// I4: a round that is applied again, whole or from an older position, changes nothing.
func TestRoundsRepeatedChangeNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsTable, `INSERT INTO items (u, v) SELECT i, i::text FROM generate_series(1, 9) i`).live(t)
	start := w.state(t).Position
	w.sql(t, `UPDATE items SET u = -u`, `DELETE FROM items WHERE id < 3`, `INSERT INTO items (u, v) VALUES (1, 'again')`)
	b := w.begin(t)
	require.NoError(t, w.dst.Apply(t.Context(), b.snap, b.round))
	require.NoError(t, w.dst.Apply(t.Context(), b.snap, b.round))
	w.requireSame(t)
	w.sql(t, `UPDATE items SET u = u + 1 WHERE u > 0`, `INSERT INTO items (u, v) VALUES (1, 'and again')`)
	w.round(t)
	// The target lost its last commits: it stands at an older position, but not before the mark.
	_, err := w.adminTarget.Exec(t.Context(), `UPDATE heroku_migrator.migration SET position = $1`, start.String())
	require.NoError(t, err)
	w.round(t)
	w.requireSame(t)
}

type failingSource struct {
	migrator.Source
	trims int
	fail  error
}

func (f *failingSource) Trim(ctx context.Context, tables []*migrator.Table, upTo migrator.Position) error {
	f.trims++
	if f.trims == 1 {
		return f.fail
	}
	return f.Source.Trim(ctx, tables, upTo)
}

// I4: nothing is lost or doubled by a process that dies between the commit on the target and the trim.
func TestFailureBetweenApplyAndTrim(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsTable, `INSERT INTO items (u) SELECT i FROM generate_series(1, 20) i`).live(t)
	w.sql(t, `UPDATE items SET v = 'x' WHERE id % 2 = 0`, `DELETE FROM items WHERE id = 7`)
	src := &failingSource{Source: w.src, fail: errors.New("killed")}
	cfg := migrator.ReplicateConfig{Interval: 5 * time.Millisecond, TrimGrace: -1}
	require.ErrorIs(t, migrator.Replicate(withTimeout(t, 10*time.Second), src, w.dst, cfg), src.fail)
	before := w.logged(t)
	w.sql(t, `INSERT INTO items (u) VALUES (7)`, `TRUNCATE items`, `INSERT INTO items (u, v) VALUES (7, 'y')`)
	ctx, stop := context.WithCancel(withTimeout(t, 10*time.Second))
	defer stop()
	var rounds atomic.Int64
	cfg.OnEvent = func(migrator.Event) { rounds.Add(1) }
	go func() {
		for n := 1; ctx.Err() == nil && (n > 0 || rounds.Load() == 0); time.Sleep(10 * time.Millisecond) {
			err := w.adminSource.QueryRow(ctx, `SELECT (SELECT count(*) FROM heroku_migrator.truncated)`).Scan(&n)
			assert.NoError(t, err)
		}
		stop()
	}()
	require.ErrorIs(t, migrator.Replicate(ctx, src, w.dst, cfg), context.Canceled)
	require.NotZero(t, before)
	require.NotZero(t, rounds.Load())
	w.requireSame(t)
	require.Zero(t, w.logged(t))
}

// I3, I4: what is not committed on the target is neither visible there nor forgotten on the source.
func TestFailedApplyLosesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsTable, `INSERT INTO items (u) SELECT i FROM generate_series(1, 20) i`).live(t)
	before, position, logged := contents(t, w.adminTarget), w.state(t).Position, w.logged(t)
	w.sql(t, `UPDATE items SET u = -u`, `DELETE FROM items WHERE id = 7`)
	logged += 21
	b := w.begin(t)
	broken := brokenSnapshot{b.snap}
	require.ErrorIs(t, w.dst.Apply(t.Context(), broken, b.round), errBroken)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	require.Error(t, w.dst.Apply(cancelled, b.snap, b.round))
	require.Equal(t, before, contents(t, w.adminTarget))
	require.Equal(t, position, w.state(t).Position)
	require.NoError(t, w.src.Trim(t.Context(), w.tables(t), position))
	require.LessOrEqual(t, w.logged(t), logged)
	w.round(t)
	w.requireSame(t)
}

var errBroken = errors.New("the connection broke")

// brokenSnapshot sends a part of the rows.
type brokenSnapshot struct{ migrator.Snapshot }

func (b brokenSnapshot) CopyRows(ctx context.Context, table *migrator.Table, since migrator.Position, w io.Writer) (int64, error) {
	_, err := b.Snapshot.CopyRows(ctx, table, since, w)
	return 0, errors.Join(errBroken, err)
}

// I4: values of unique columns move between rows, within a round and across rounds, also in a circle.
func TestUniqueValuesMoveBetweenRows(t *testing.T) {
	t.Parallel()
	w := newWorld(t,
		`CREATE TABLE items (id int PRIMARY KEY, u int, email text, during int4range,
			CONSTRAINT u UNIQUE (u) DEFERRABLE, CONSTRAINT during EXCLUDE USING gist (during WITH &&))`,
		`CREATE UNIQUE INDEX lower_email ON items (lower(email)) WHERE u > 0`,
		`INSERT INTO items SELECT i, i + 0, 'Mail' || i, int4range(i * 10, i * 10 + 10) FROM generate_series(1, 9) i`).live(t)
	for _, s := range []string{
		`BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE items SET u = u % 9 + 1; COMMIT`,
		`UPDATE items SET u = 100 WHERE id = 1; UPDATE items SET u = (SELECT i.u FROM items i WHERE i.id = 2) + 1000 WHERE id = 2; UPDATE items SET u = 3 WHERE id = 1`,
		`DELETE FROM items WHERE id = 4; INSERT INTO items VALUES (44, 5, 'MAIL4', '[40,50)')`,
		`BEGIN; UPDATE items SET id = id + 100; UPDATE items SET id = 300 - id; COMMIT`,
		`UPDATE items SET email = 'x' WHERE u = 6; UPDATE items SET email = 'MAIL5' WHERE u = 7; UPDATE items SET email = 'mail6' WHERE u = 6`,
		`BEGIN; UPDATE items SET during = int4range(lower(during) + 1000, upper(during) + 1000); UPDATE items SET during = int4range(1190 - lower(during), 1200 - lower(during)); COMMIT`,
	} {
		if _, err := w.adminSource.Exec(t.Context(), s); err != nil {
			_, rollback := w.adminSource.Exec(t.Context(), `ROLLBACK`)
			require.NoError(t, errors.Join(err, rollback), s)
		}
		w.round(t)
		w.requireSame(t)
	}
}

// I4: a target that stands before what was trimmed is told, and gets nothing.
func TestTargetWentBackBeforeTheTrimmedMark(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsTable).live(t)
	old := w.state(t).Position
	w.sql(t, `INSERT INTO items (u) VALUES (1)`)
	w.round(t)
	w.sql(t, `INSERT INTO items (u) VALUES (2)`)
	require.NoError(t, w.src.Trim(t.Context(), w.tables(t), w.state(t).Position))
	w.round(t)
	set := func(p migrator.Position) {
		_, err := w.adminTarget.Exec(t.Context(), `UPDATE heroku_migrator.migration SET position = $1`, p.String())
		require.NoError(t, err)
	}
	now := w.state(t).Position
	set(old)
	_, err := w.tryBegin(t)
	require.ErrorIs(t, err, migrator.ErrTrimmed)
	require.False(t, migrator.Retryable(err))
	require.ErrorIs(t, migrator.Replicate(withTimeout(t, 5*time.Second), w.src, w.dst, migrator.ReplicateConfig{TrimGrace: -1}), migrator.ErrTrimmed)
	require.Equal(t, old, w.state(t).Position)

	// Another timeline, another server: positions mean nothing there, not even with an empty log.
	for _, other := range []migrator.Position{
		{System: now.System, Timeline: now.Timeline + 1, Snapshot: now.Snapshot},
		{System: "1", Timeline: now.Timeline, Snapshot: now.Snapshot},
	} {
		set(other)
		_, err := w.tryBegin(t)
		require.ErrorIs(t, err, migrator.ErrFailedOver)
		require.False(t, migrator.Retryable(err))
	}
	set(now)
	w.round(t)
	w.requireSame(t)
}

// I4: TRUNCATE and forms of ALTER TABLE that rewrite a table make its rows look deleted for snapshots that are
// older. A round that was under way must not take that for the truth.
func TestTableRewrittenWithinARound(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsTable, `CREATE TABLE part (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)`,
		`CREATE TABLE part_a PARTITION OF part FOR VALUES FROM (0) TO (5)`, `CREATE TABLE part_b PARTITION OF part FOR VALUES FROM (5) TO (100)`).live(t)
	writer := w.source.Connect(t)
	execute(t, writer, `SET statement_timeout = '10s'`)
	for _, s := range []string{`VACUUM FULL items`, `TRUNCATE items`, `ALTER TABLE items SET UNLOGGED`, `ALTER TABLE part_b SET UNLOGGED`, `TRUNCATE part_a`} {
		if w.capture == migrator.CaptureDecoding && strings.HasSuffix(s, "UNLOGGED") {
			continue // Postgres refuses that for a table that is published
		}
		execute(t, writer, `INSERT INTO items (u) SELECT i FROM generate_series(1, 9) i ON CONFLICT DO NOTHING`, `UPDATE items SET v = 'changed' WHERE u < 5`,
			`INSERT INTO part SELECT i FROM generate_series(1, 9) i ON CONFLICT DO NOTHING`, `UPDATE part SET v = 'changed' WHERE id > 3`)
		snap := w.snapshot(t)
		execute(t, writer, s)
		_, err := snap.Changes(t.Context(), w.tables(t), w.state(t).Position)
		require.NoError(t, snap.Close(t.Context()))
		require.ErrorIs(t, err, migrator.ErrRewritten, s)
		require.True(t, migrator.Retryable(err))

		// From the look at the changes on, rewrites wait.
		b := w.begin(t)
		execute(t, writer, `SET lock_timeout = 50`)
		if s != `VACUUM FULL items` {
			_, err = writer.Exec(t.Context(), s)
			require.Equal(t, "55P03", state(err), s)
		}
		execute(t, writer, `RESET lock_timeout`)
		require.NoError(t, w.dst.Apply(t.Context(), b.snap, b.round))
		require.NoError(t, b.snap.Close(t.Context()))
		w.requireSame(t)
	}
}

// The log is trimmed by processes, too, of which none lives as long as the grace.
func TestTrimmedByShortLivedProcesses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsTable).live(t)
	writer := w.source.Connect(t)
	for i := range 20 {
		before := w.state(t).Position
		execute(t, writer, fmt.Sprintf(`INSERT INTO items (u) VALUES (%d)`, i))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- migrator.Replicate(ctx, w.src, w.dst, migrator.ReplicateConfig{Interval: 10 * time.Millisecond, TrimGrace: time.Second, Logger: testLogger(t)})
		}()
		require.Eventually(t, func() bool { return w.state(t).Position != before }, 30*time.Second, 10*time.Millisecond)
		time.Sleep(250 * time.Millisecond)
		cancel()
		require.ErrorIs(t, <-ended, context.Canceled)
	}
	require.Less(t, w.logged(t), int64(15)) // of two graces, at four a second at most
	w.round(t)
	w.requireSame(t)
}

// I4: a table that is truncated whenever a round counts what changed keeps no round from succeeding.
func TestTableTruncatedWithinEveryRound(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsTable, `CREATE TABLE other (id int PRIMARY KEY)`).live(t)
	writer := w.source.Connect(t)
	execute(t, writer, `SET lock_timeout = 50`, `INSERT INTO items (u) SELECT i FROM generate_series(1, 9) i`, `INSERT INTO other VALUES (1)`)
	var truncated, held int
	src := hookedSource{Source: w.src, changes: func() {
		switch _, err := writer.Exec(t.Context(), `TRUNCATE items; INSERT INTO items (u) VALUES (1)`); state(err) {
		case "":
			truncated++
		case "55P03":
			held++
		default:
			t.Error(err)
		}
	}}
	before := w.state(t).Position
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- migrator.Replicate(ctx, src, w.dst, migrator.ReplicateConfig{Interval: 10 * time.Millisecond, Logger: testLogger(t)})
	}()
	require.Eventually(t, func() bool { return w.state(t).Position != before }, 30*time.Second, 10*time.Millisecond)
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	require.Positive(t, truncated)
	require.Positive(t, held)
	w.round(t)
	w.requireSame(t)
}

// takeOver ends the connection that holds the lead, as a network that breaks does, and lets another process
// take it.
func (w *world) takeOver(t *testing.T) *world {
	t.Helper()
	var n int
	require.NoError(t, w.adminTarget.QueryRow(t.Context(), `
		SELECT count(pg_terminate_backend(pid)) FROM pg_locks
		WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&n))
	require.Equal(t, 1, n)
	second := &world{pair: w.pair, adminSource: w.adminSource, adminTarget: w.adminTarget}
	second.src, second.dst = w.open(t)
	second.takeLead(t)
	require.Greater(t, second.lead.Epoch, w.lead.Epoch)
	return second
}

// I6: from the moment at which another process leads, the first commits nothing, on either side.
func TestProcessThatLostTheLeadCannotCommit(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := newWorld(t, itemsTable, `INSERT INTO items (u) SELECT i FROM generate_series(1, 9) i`).live(t)
	w.sql(t, `UPDATE items SET v = 'changed'`)
	b := w.begin(t)
	table, position := w.table(t, "items"), w.state(t).Position
	_, err := w.adminTarget.Exec(ctx, `UPDATE heroku_migrator.migration SET phase = 'replicating'`)
	require.NoError(t, err)
	second := w.takeOver(t)
	target, logged := contents(t, w.adminTarget), w.logged(t)

	j := w.dst.Journal()
	for name, try := range map[string]func() error{
		"Apply":        func() error { return w.dst.Apply(ctx, b.snap, b.round) },
		"Create":       func() error { return w.dst.Create(ctx, []migrator.SchemaObject{{SQL: `CREATE TABLE public.ghost ()`}}) },
		"CopyChunk":    func() error { _, err := w.dst.CopyChunk(ctx, nil); return err },
		"Restart":      func() error { _, err := w.dst.Restart(ctx, table, 1, nil); return err },
		"Switch":       func() error { return w.dst.Switch(ctx, migrator.Final{Tables: w.tables(t)}) },
		"Advance":      func() error { return j.Advance(ctx, migrator.PhaseReplicating, migrator.PhaseCopying, "") },
		"SetTable":     func() error { return j.SetTable(ctx, table, migrator.TableLive, migrator.TablePending) },
		"MarkCaptured": func() error { return j.MarkCaptured(ctx, table) },
		"SetPending":   func() error { return j.SetPending(ctx, migrator.CommandSwitch) },
		"SetMessage":   func() error { return j.SetMessage(ctx, "ghost") },
		"Synced":       func() error { return j.Synced(ctx, 0, migrator.Lag{}) },
		"Record":       func() error { return j.Record(ctx, migrator.Event{Kind: migrator.EventWarning}) },
		"Drop":         func() error { return j.Drop(ctx) },
		"Claim": func() error {
			return w.src.Claim(ctx, migrator.Claim{Migration: w.state(t).ID, Epoch: w.lead.Epoch}, true)
		},
		"Capture": func() error { return w.src.Capture(ctx, table) },
		"Trim":    func() error { return w.src.Trim(ctx, []*migrator.Table{table}, b.snap.Position()) },
		"Touch":   func() error { return w.src.Touch(ctx, table, nil, true) },
		"Fence":   func() error { return w.src.Fence(ctx, []*migrator.Table{table}, migrator.FenceConfig{}) },
		"Unfence": func() error { return w.src.Unfence(ctx) },
		"Release": func() error { return w.src.Release(ctx) },
		"Replicate": func() error {
			return migrator.Replicate(withTimeout(t, 5*time.Second), w.src, w.dst, migrator.ReplicateConfig{})
		},
	} {
		assert.ErrorIs(t, try(), migrator.ErrLostLead, name)
	}
	require.Equal(t, target, contents(t, w.adminTarget))
	require.Equal(t, position, second.state(t).Position)
	require.Equal(t, logged, w.logged(t))
	require.Equal(t, migrator.PhaseReplicating, second.state(t).Phase)
	w.sql(t, `UPDATE items SET v = 'not fenced, and captured'`)
	require.Greater(t, w.logged(t), logged)
	second.round(t)
	second.requireSame(t)
	select {
	case <-w.lead.Lost():
	case <-time.After(5 * time.Second):
		t.Error("the first process was not told")
	}
}

// I6: the same for what was under way at that moment: its rows are on the target already, uncommitted.
func TestLeadLostInTheMiddleOfATransaction(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsTable, `INSERT INTO items (u) SELECT i FROM generate_series(1, 9) i`).captured(t)
	var second *world
	errStop := errors.New("one chunk is enough")
	src := hookedSource{Source: w.src, copied: func(*migrator.Chunk) { second = w.takeOver(t) }}
	err := migrator.Copy(t.Context(), src, w.dst, migrator.CopyConfig{Workers: 1, OnEvent: func(migrator.Event) { t.Error(errStop) }})
	require.ErrorIs(t, err, migrator.ErrLostLead)
	require.Zero(t, second.statuses(t)[0].ChunksDone)
	require.Empty(t, contents(t, w.adminTarget)["public.items"])
	require.NoError(t, migrator.Copy(t.Context(), second.src, second.dst, migrator.CopyConfig{}))
	second.indexed(t)

	w.sql(t, `UPDATE items SET v = 'changed'`)
	b := second.begin(t)
	var third *world
	err = second.dst.Apply(t.Context(), &hookedSnapshot{Snapshot: b.snap, rows: func() { third = second.takeOver(t) }}, b.round)
	require.ErrorIs(t, err, migrator.ErrLostLead)
	third.round(t)
	third.requireSame(t)
}

// hookedSource calls back at the points where a race would strike.
type hookedSource struct {
	migrator.Source
	capture func()                // a table is about to be captured
	adopt   func()                // partitions are about to be
	touch   func()                // a table is about to be noted to be sent whole
	opened  func()                // the snapshot is taken, nothing is read yet
	changes func()                // the log is about to be counted
	copied  func(*migrator.Chunk) // the rows are on their way, not committed
}

func (h hookedSource) Capture(ctx context.Context, t *migrator.Table) error {
	if h.capture != nil {
		h.capture()
	}
	return h.Source.Capture(ctx, t)
}

func (h hookedSource) Adopt(ctx context.Context, t *migrator.Table, leaves []migrator.Relation) error {
	if h.adopt != nil {
		h.adopt()
	}
	return h.Source.Adopt(ctx, t, leaves)
}

func (h hookedSource) Touch(ctx context.Context, t *migrator.Table, keys io.Reader, all bool) error {
	if h.touch != nil {
		h.touch()
	}
	return h.Source.Touch(ctx, t, keys, all)
}

func (h hookedSource) Snapshot(ctx context.Context) (migrator.Snapshot, error) {
	s, err := h.Source.Snapshot(ctx)
	if err == nil && h.opened != nil {
		h.opened()
	}
	return &hookedSnapshot{Snapshot: s, changes: h.changes, copied: h.copied}, err
}

type hookedSnapshot struct {
	migrator.Snapshot
	changes func()
	copied  func(*migrator.Chunk)
	rows    func()
}

func (h *hookedSnapshot) Changes(ctx context.Context, tables []*migrator.Table, since migrator.Position) ([]migrator.Change, error) {
	if h.changes != nil {
		h.changes()
	}
	return h.Snapshot.Changes(ctx, tables, since)
}

func (h *hookedSnapshot) CopyChunk(ctx context.Context, table *migrator.Table, chunk *migrator.Chunk, w io.Writer) (int64, error) {
	n, err := h.Snapshot.CopyChunk(ctx, table, chunk, w)
	if err == nil && h.copied != nil {
		h.copied(chunk)
	}
	return n, err
}

func (h *hookedSnapshot) CopyRows(ctx context.Context, table *migrator.Table, since migrator.Position, w io.Writer) (int64, error) {
	n, err := h.Snapshot.CopyRows(ctx, table, since, w)
	if err == nil && h.rows != nil {
		h.rows()
	}
	return n, err
}

// I1, I4: bulk statements enter most of their keys as arrays, and huge ones as many. Not one may be missing at the borders between these.
func TestBulkStatements(t *testing.T) {
	t.Parallel()
	w := newWorld(t, `CREATE TABLE wide_key (v int, b text COLLATE "C", a uuid, n timestamptz, PRIMARY KEY (b, a, n))`, `CREATE TABLE odd_key (k int[] PRIMARY KEY, v int)`).live(t)
	for _, n := range []int{1, 49, 50, 51, 52, 1100, 251_200} {
		log := fmt.Sprintf(`SELECT coalesce(sum(coalesce(cardinality(keys_1), 1)), 0)::int8 FROM heroku_migrator.changes_%d`, count(t, w.adminSource, `SELECT 'wide_key'::regclass::oid::int8`))
		before := count(t, w.adminSource, log)
		w.sql(t, fmt.Sprintf(`INSERT INTO wide_key SELECT i, 'key, "quoted" \ ' || i, md5(i::text)::uuid, timestamptz '2020-01-01' + i * interval '1 ms' FROM generate_series(1, %d) i`, n),
			fmt.Sprintf(`INSERT INTO odd_key SELECT ARRAY[i, i + 1], i FROM generate_series(1, %d) i`, min(n, 1100)))
		require.EqualValues(t, n, count(t, w.adminSource, log)-before)
		w.sql(t, `UPDATE wide_key SET v = -v WHERE v < 1100`, `UPDATE odd_key SET v = -v`)
		w.round(t)
		w.requireSame(t)
		w.sql(t, `DELETE FROM wide_key WHERE v <> -1`, `UPDATE wide_key SET b = b || '!'`, `DELETE FROM odd_key`)
		w.round(t)
		w.requireSame(t)
		require.EqualValues(t, 1, count(t, w.adminSource, `SELECT count(*) FROM wide_key`))
		w.sql(t, `DELETE FROM wide_key`)
		w.round(t)
		w.requireSame(t)
	}
}
