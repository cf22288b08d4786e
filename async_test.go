package migrator_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator/internal/pgtest"
)

// With synchronous_commit = off, others see commits that a crash takes back, and the numbers of these transactions are used again (I4).
func TestAsynchronousCommitsAndACrash(t *testing.T) {
	t.Parallel()
	server, err := pgtest.StartWith(t.Context(), pgtest.SourceVersion(), pgtest.Options{Settings: map[string]string{"wal_writer_delay": "10s", "autovacuum": "off"}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close(context.Background())) })
	p := newPair(t)
	p.source = server.NewSource(t)
	p.sql(t, `CREATE TABLE items (id int PRIMARY KEY, v text)`, `CREATE TABLE bag (id int)`)
	stop := run(t, inSync(t, p))
	target := p.target.Connect(t)
	write := func(c *pgx.Conn, from int, v string) {
		for id := from; id < from+3; id++ { // not all at once: the WAL writer may just be woken
			execute(t, c, fmt.Sprintf(`WITH i AS (INSERT INTO items VALUES (%d, '%s') RETURNING id) INSERT INTO bag SELECT id FROM i`, id, v))
		}
	}
	for round := range 3 {
		var source *pgx.Conn
		require.Eventually(t, func() (up bool) {
			source, err = pgx.Connect(t.Context(), p.source.URL)
			return err == nil
		}, time.Minute, 10*time.Millisecond)
		execute(t, source, `SET synchronous_commit = off`)
		write(source, round*100, "seen")
		require.Eventually(t, func() bool {
			return count(t, target, fmt.Sprintf(`SELECT count(*) FROM items WHERE id BETWEEN %d AND %[1]d + 2`, round*100)) == 3
		}, 30*time.Second, time.Millisecond)
		_, err = p.source.ConnectAdmin(t).Exec(t.Context(), `COPY (SELECT 1) TO PROGRAM 'kill -9 $PPID'`)
		require.Error(t, err)
		require.NoError(t, source.Close(t.Context()))
		require.Eventually(t, func() (up bool) {
			source, err = pgx.Connect(t.Context(), p.source.URL)
			return err == nil
		}, time.Minute, 10*time.Millisecond)
		write(source, round*100+50, "after")
		require.NoError(t, source.Close(t.Context()))
	}
	stop()
	inSync(t, p)
	p.requireEqual(t)
}
