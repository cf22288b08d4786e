package migrator_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgtest"
)

// held tells whether the migrator holds a lock on a relation of the database, or waits for one.
func held(t *testing.T, db *pgtest.Database, relation string) func() bool {
	t.Helper()
	c := db.ConnectAdmin(t)
	return func() bool {
		return count(t, c, `SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
			WHERE l.relation = '`+relation+`'::regclass AND l.mode = 'AccessShareLock' AND l.granted
			  AND a.application_name LIKE 'heroku\_migrator%'`) > 0
	}
}

// I7: an ALTER TABLE gets its lock although slow chunks and a stuck round hold the table, and everything arrives.
func TestGivesWay(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, `CREATE TABLE t (id int PRIMARY KEY, v text)`, `INSERT INTO t SELECT i, repeat(md5(i::text), 20) FROM
		generate_series(1, 2000) i`,
		`CREATE TABLE bag (v text)`, `INSERT INTO bag SELECT repeat(md5(i::text), 20) FROM generate_series(1, 2000) i`)
	alter := func(db *pgtest.Database, statements ...string) {
		t.Helper()
		c := db.Connect(t)
		execute(t, c, `SET lock_timeout = '20s'`) // the lock would be held for minutes
		execute(t, c, statements...)
	}
	slow := p.migrator(t, func(c *migrator.Config) { c.Copy.MaxBytesPerSecond = 10 << 10 })
	stop := run(t, slow)
	for _, table := range []string{"t", "bag"} {
		require.Eventually(t, held(t, p.source, table), time.Minute, 20*time.Millisecond)
	}
	alter(p.source, `ALTER TABLE t ALTER v SET DEFAULT 'd'`, `ALTER TABLE bag ALTER v SET DEFAULT 'd'`)
	stop()
	m := p.migrator(t)
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	require.NoError(t, m.Run(withTimeout(t, 2*time.Minute), migrator.UntilInSync))
	go func() { ended <- m.Run(ctx, "") }()
	defer func() {
		end()
		<-ended
	}()

	stuck := begin(t, p.target, `LOCK TABLE t, bag IN ACCESS EXCLUSIVE MODE`)
	p.sql(t, `INSERT INTO t VALUES (0)`, `DELETE FROM t WHERE id < 10`, `INSERT INTO bag DEFAULT VALUES`)
	require.Eventually(t, held(t, p.source, "t"), time.Minute, 20*time.Millisecond)
	alter(p.source, `ALTER TABLE t ALTER v SET DEFAULT 'e'`)
	_, err := stuck.Exec(t.Context(), `COMMIT`)
	require.NoError(t, err)
	p.sql(t, `INSERT INTO t VALUES (-1)`)
	target := p.target.Connect(t)
	require.Eventually(t, func() bool {
		return count(t, target, `SELECT count(*) FROM t WHERE id = -1 AND v = 'e'`) == 1 && count(t, target,
			`SELECT count(*) FROM bag WHERE v = 'd'`) == 1
	}, time.Minute, 50*time.Millisecond)

	p.requireEqual(t)
}
