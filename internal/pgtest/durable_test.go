package pgtest_test

import (
	"context"
	"fmt"
	"net/url"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator/internal/pgtest"
)

// Each durable write is seen once, and what is seen can be kept back, or carried out unknown to the client.
func TestDurableProxy(t *testing.T) {
	d := pgtest.Shared(t, pgtest.TargetVersion()).NewTarget(t)
	u, err := url.Parse(d.URL)
	require.NoError(t, err)
	var mu sync.Mutex
	var seen []string
	act := func(*pgtest.DurableWrite) bool { return true }
	u.Host, err = pgtest.DurableProxy(t.Context(), u.Host, func(w *pgtest.DurableWrite) bool {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, w.Statement)
		return act(w)
	})
	require.NoError(t, err)
	connect := func(ctx context.Context) *pgx.Conn {
		cfg, err := pgx.ParseConfig(u.String())
		require.NoError(t, err)
		cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
		c, err := pgx.ConnectConfig(ctx, cfg)
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close(context.Background()) })
		return c
	}
	c, ctx := connect(t.Context()), t.Context()
	exec := func(sql string, args ...any) {
		t.Helper()
		_, err := c.Exec(ctx, sql, args...)
		require.NoError(t, err)
	}
	exec(`CREATE TABLE t (a int)`)
	exec(`CREATE SEQUENCE s`)
	exec(`CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN INSERT INTO t VALUES (9); END; $$; COMMENT ON TABLE t IS 'one message, one write'`)
	exec(`SELECT a FROM t FOR UPDATE`) // reads
	exec(`INSERT INTO t VALUES ($1)`, 1)
	tx, err := c.Begin(ctx)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, `UPDATE t SET a = $1`, 2)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, `SELECT setval('s', 7)`)
	require.NoError(t, err)
	require.NoError(t, tx.Commit(ctx))
	tx, err = c.Begin(ctx) // only reads
	require.NoError(t, err)
	_, err = tx.Exec(ctx, `SELECT 1`)
	require.NoError(t, err)
	require.NoError(t, tx.Commit(ctx))
	var batch pgx.Batch
	batch.Queue(`BEGIN`)
	batch.Queue(`DELETE FROM t WHERE a = $1`, 5)
	batch.Queue(`COMMIT`)
	require.NoError(t, c.SendBatch(ctx, &batch).Close())
	n, err := c.CopyFrom(ctx, pgx.Identifier{"t"}, []string{"a"}, pgx.CopyFromRows([][]any{{int32(3)}, {int32(4)}}))
	require.NoError(t, err)
	require.EqualValues(t, 2, n)
	require.Equal(t, []string{
		"CREATE TABLE t (a int)", "CREATE SEQUENCE s", "COMMENT ON TABLE t IS 'one message, one write'", "INSERT INTO t VALUES ($1)", "SELECT setval('s', 7)", "SELECT setval('s', 7)",
		"DELETE FROM t WHERE a = $1", `copy "t" ( "a" ) from stdin binary`,
	}, seen)

	// Kept back, the write does not happen; carried out, it does, and the client does not learn of it.
	for i, forward := range []bool{false, true} {
		act = func(w *pgtest.DurableWrite) bool {
			if forward {
				w.Forward(true)
			}
			return false
		}
		c = connect(ctx)
		_, err = c.Exec(ctx, fmt.Sprintf(`INSERT INTO t VALUES (%d)`, 100+i))
		require.Error(t, err)
		var there bool
		require.NoError(t, d.Connect(t).QueryRow(ctx, `SELECT EXISTS (SELECT FROM t WHERE a = $1)`, 100+i).Scan(&there))
		require.Equal(t, forward, there)
	}
	act = func(w *pgtest.DurableWrite) bool { w.Forward(true); return true }
	c = connect(ctx)
	exec(`INSERT INTO t VALUES (200)`)
	exec(`INSERT INTO t VALUES (201)`)
}
