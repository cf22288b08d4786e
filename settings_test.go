package migrator_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

// Behind a pooler that gives each transaction another session, a setting of ours would land on the application's. It
// is refused by name on
// either side, before the first setting: no session of the server has one afterwards. A pooler that keeps sessions
// apart does no harm.
func TestPoolersAreRefused(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, `CREATE TABLE here (id int PRIMARY KEY)`, `INSERT INTO here VALUES (1)`)
	direct := map[string]string{"source": p.source.URL, "target": p.target.URL}
	open := func(source, target string) (*migrator.Heroku, *migrator.PlanetScale) {
		src, err := migrator.OpenHeroku(t.Context(), source, migrator.HerokuConfig{PgDump: p.pgDump})
		require.NoError(t, err)
		t.Cleanup(src.Close)
		dst, err := migrator.OpenPlanetScale(t.Context(), target, migrator.PlanetScaleConfig{})
		require.NoError(t, err)
		t.Cleanup(dst.Close)
		return src, dst
	}
	for _, side := range []string{"source", "target"} {
		db := p.source
		if side == "target" {
			db = p.target
		}
		for _, mode := range []string{"transaction", "statement", "session"} {
			urls := map[string]string{"source": direct["source"], "target": direct["target"]}
			urls[side] = db.Pooler(t, mode)
			src, dst := open(urls["source"], urls["target"])
			report, err := migrator.Preflight(withTimeout(t, 2*time.Minute), src, dst, migrator.PreflightConfig{})
			require.NoError(t, err)
			if mode == "session" {
				require.Empty(t, report.Blockers(), side)
				continue
			}
			require.Len(t, report.Blockers(), 1, report.Findings)
			require.Equal(t, side+"_pooler", report.Blockers()[0].Check)
			if side == "source" {
				_, err = src.Identify(t.Context())
			} else {
				_, err = dst.Journal().TryLead(t.Context(), true)
			}
			require.ErrorIs(t, err, migrator.ErrPooler)
			require.False(t, migrator.Retryable(err))
			if mode == "transaction" {
				requireNothingSet(t, urls[side])
			}
		}
	}
}

// requireNothingSet looks at all sessions that the pooler has with the server.
func requireNothingSet(t *testing.T, through string) {
	t.Helper()
	backends := map[string]bool{}
	for range 4 {
		cfg, err := pgx.ParseConfig(through)
		require.NoError(t, err)
		cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
		c, err := pgx.ConnectConfig(t.Context(), cfg)
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close(t.Context()) })
		tx, err := c.Begin(t.Context()) // keeps its session until the end
		require.NoError(t, err)
		t.Cleanup(func() { _ = tx.Rollback(t.Context()) })
		rows, err := tx.Query(t.Context(), `SELECT concat(name, ' = ', setting) FROM pg_settings
			WHERE source = 'session'
			AND name NOT IN ('application_name', 'client_encoding', 'DateStyle', 'TimeZone',
				'standard_conforming_strings', 'IntervalStyle')`) // the pooler's own care
		require.NoError(t, err)
		set, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		require.Empty(t, set)
		var custom, pid string
		require.NoError(t, tx.QueryRow(t.Context(), `SELECT coalesce(current_setting('heroku_migrator.pass', true), ''),
			pg_backend_pid()::text`).Scan(&custom, &pid))
		require.Empty(t, custom)
		backends[pid] = true
	}
	require.Len(t, backends, 4, fmt.Sprint(backends))
}

// Every session has our settings, whatever the role and the database carry: nothing changes a value on its way.
func TestSettingsOfEverySession(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, `CREATE TABLE vals (id int PRIMARY KEY, f float8, r float4, i interval, d timestamptz, a text[], b bytea,
		m money, x xml)`,
		`INSERT INTO vals VALUES (1, 0.1 + 0.2, 1.0 / 3, '-1 year 2 days -03:04:05.678', '2020-02-03 04:05:06.789+01',
			ARRAY['x', NULL, 'NULL'], '\x00ff', 1234.56, '<a/>')`,
		`CREATE TABLE bag (f float8, r float4, i interval, d timestamptz, a text[], b bytea, m money)`,
		`INSERT INTO bag SELECT f, r, i, d, a, b, m FROM vals`)
	for _, db := range []struct {
		admin      *pgx.Conn
		role, name string
	}{
		{p.source.ConnectAdmin(t), p.source.Role, p.source.Name}, {p.target.ConnectAdmin(t), p.target.Role,
			p.target.Name},
	} {
		for _, set := range []string{
			`ROLE ` + db.role + ` SET array_nulls = off`, `ROLE ` + db.role + ` SET extra_float_digits = 0`,
			`DATABASE ` + db.name + ` SET IntervalStyle = 'sql_standard'`,
			`ROLE ` + db.role + ` IN DATABASE ` + db.name + ` SET DateStyle = 'German'`, `DATABASE ` + db.name +
				` SET bytea_output = 'escape'`,
			`ROLE ` + db.role + ` SET TimeZone = 'Asia/Kolkata'`, `DATABASE ` + db.name +
				` SET quote_all_identifiers = on`, `ROLE ` + db.role + ` SET transform_null_equals = on`,
			`ROLE ` + db.role + ` SET default_transaction_read_only = on`, `DATABASE ` + db.name +
				` SET default_transaction_isolation = 'serializable'`,
			`ROLE ` + db.role + ` SET statement_timeout = '500ms'`, `ROLE ` + db.role + ` SET exit_on_error = on`,
		} {
			execute(t, db.admin, `ALTER `+set)
		}
	}
	m := inSync(t, p)
	source := p.source.ConnectAdmin(t)
	execute(t, source, `SET DateStyle = 'ISO'`, `INSERT INTO vals SELECT 2, f * 3, r, i * 2, d, a || 'y'::text, b, m, x
		FROM vals`, `INSERT INTO bag SELECT f, r, i, d, a, b, m FROM vals`, `DELETE FROM vals WHERE id = 1`)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	p.requireEqual(t)
	do(t, m, migrator.CommandSwitch)
	target := p.target.ConnectAdmin(t)
	execute(t, target, `SET DateStyle = 'ISO'`, `INSERT INTO vals SELECT 3, f / 7, r / 7, -i, d, ARRAY[NULL, 'z'], b, m,
		x FROM vals`, `INSERT INTO bag SELECT f, r, i, d, a, b, m FROM vals`, `DELETE FROM bag
			WHERE f = 0.30000000000000004`)
	do(t, m, migrator.CommandRevert)
	p.requireEqual(t)
}
