package migrator_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

var rebaseSchema = []string{
	`CREATE TABLE items (id int PRIMARY KEY, v text)`, `CREATE TABLE quiet (id int PRIMARY KEY, v text)`, `CREATE TABLE bag (a int, b text)`,
	`CREATE TABLE part (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)`, `CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100)`,
	`CREATE TABLE part_2 PARTITION OF part DEFAULT`,
	`INSERT INTO items SELECT i, 'v' FROM generate_series(1, 500) i`, `INSERT INTO quiet TABLE items`, `INSERT INTO part TABLE items`, `INSERT INTO bag SELECT i % 9, 'b' FROM generate_series(1, 90) i`,
}

func untilInSync(t *testing.T, p *pair) {
	t.Helper()
	m := p.migrator(t, func(c *migrator.Config) { c.Replicate.TrimGrace = -1 })
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
}

// I4: a target that lost commits, and what came after them is gone from the source's log, is exact again by itself.
func TestTargetThatLostCommitsIsBroughtBack(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, rebaseSchema...)
	untilInSync(t, p)
	admin := p.target.ConnectAdmin(t)
	var before string
	require.NoError(t, admin.QueryRow(t.Context(), `SELECT position FROM heroku_migrator.migration`).Scan(&before))
	p.sql(t, `UPDATE items SET v = 'new' WHERE id < 50`, `DELETE FROM items WHERE id > 450`, `INSERT INTO part VALUES (1000, 'new')`, `DELETE FROM bag WHERE a = 1`)
	untilInSync(t, p)
	untilInSync(t, p) // trims
	// As a standby that lagged would have it.
	for _, sql := range []string{
		`UPDATE items SET v = 'v' WHERE id < 50`, `INSERT INTO items SELECT i, 'v' FROM generate_series(451, 500) i`, `DELETE FROM part WHERE id = 1000`,
		`INSERT INTO bag SELECT 1, 'b' FROM generate_series(1, 10)`, fmt.Sprintf(`UPDATE heroku_migrator.migration SET position = '%s'`, before),
	} {
		execute(t, admin, sql)
	}
	p.sql(t, `UPDATE items SET v = 'newer' WHERE id = 60`, `INSERT INTO bag VALUES (77, 'b')`)
	untilInSync(t, p)
	p.requireEqual(t)
	require.Contains(t, timeline(t, p), "went back to an earlier state")
	p.sql(t, `UPDATE items SET v = 'newest'`, `DELETE FROM bag WHERE a = 77`)
	untilInSync(t, p)
	p.requireEqual(t)
}

// A source that failed over has lost transactions, and perhaps the capture of a table.
func TestSourceThatLostTransactionsIsFollowedAgain(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, rebaseSchema...)
	untilInSync(t, p)
	target, source := p.target.ConnectAdmin(t), p.source.ConnectAdmin(t)
	var position, other string
	require.NoError(t, target.QueryRow(t.Context(), `SELECT position FROM heroku_migrator.migration`).Scan(&position))
	parts := strings.Split(position, "/")
	require.Len(t, parts, 3)
	other = parts[0] + "/99/" + parts[2] // what was captured and copied came from another timeline
	for _, sql := range []string{        // rows of transactions that the new server never had
		`INSERT INTO items VALUES (9001, 'lost')`, `UPDATE quiet SET v = 'lost' WHERE id = 3`, `DELETE FROM part WHERE id = 4`, `INSERT INTO bag VALUES (1, 'lost')`,
		fmt.Sprintf(`UPDATE heroku_migrator.migration SET position = '%s', captured = '%[1]s'`, other),
	} {
		execute(t, target, sql)
	}
	var log uint32
	require.NoError(t, source.QueryRow(t.Context(), `SELECT 'quiet'::regclass::oid`).Scan(&log))
	execute(t, source, fmt.Sprintf(`DROP FUNCTION heroku_migrator.capture_%[1]d CASCADE; DROP FUNCTION heroku_migrator.capture_%[1]d_old CASCADE; DROP TABLE heroku_migrator.changes_%[1]d;
		DROP TRIGGER heroku_migrator_truncate ON quiet; DELETE FROM heroku_migrator.captured WHERE relid = %[1]d`, log))
	p.sql(t, `UPDATE quiet SET v = 'not captured' WHERE id = 5`, `DELETE FROM items WHERE id = 6`)
	untilInSync(t, p)
	p.requireEqual(t)
	require.Contains(t, timeline(t, p), "failed over to another server")
	p.sql(t, `UPDATE quiet SET v = 'captured again' WHERE id = 5`, `INSERT INTO part VALUES (2000, 'new')`, `DELETE FROM bag WHERE a = 2`)
	untilInSync(t, p)
	p.requireEqual(t)
	do(t, p.migrator(t), migrator.CommandSwitch)
	p.requireEqual(t)
}

func timeline(t *testing.T, p *pair) (text string) {
	t.Helper()
	require.NoError(t, p.target.ConnectAdmin(t).QueryRow(t.Context(), `SELECT coalesce(string_agg(message, ' | '), '') FROM heroku_migrator.events`).Scan(&text))
	return text
}
