package migrator_test

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

// I7: what we read of the catalog leaves no lock on relations of users, whether tables, partitions or indexes.
func TestCatalogReadsLockNothing(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, smallSchema...)
	p.sql(t, `CREATE TABLE deep (a int, b int, c text DEFAULT lower('X'), PRIMARY KEY (a, b)) PARTITION BY RANGE (a)`,
		`CREATE TABLE deep_1 PARTITION OF deep FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (b)`,
		`CREATE TABLE deep_11 PARTITION OF deep_1 FOR VALUES FROM (0) TO (10)`, `CREATE INDEX ON deep (lower(c)) WHERE b
			> 0`,
		`CREATE VIEW seen AS SELECT * FROM deep`, `CREATE MATERIALIZED VIEW kept AS SELECT count(*) FROM seen`,
		`CREATE STATISTICS stats ON a, b FROM deep_11`)
	src, _ := p.open(t)
	cat, err := src.Catalog(t.Context())
	require.NoError(t, err)
	c := p.source.Connect(t)
	for name, read := range migrator.CatalogReads(cat.Tables) {
		tx, err := c.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
		require.NoError(t, err)
		require.NoError(t, read(t.Context(), tx), name)
		var locked []string
		require.NoError(t, tx.QueryRow(t.Context(), `
			SELECT coalesce(array_agg(relation::regclass::text), '{}') FROM pg_locks
			WHERE pid = pg_backend_pid() AND relation >= 16384`).Scan(&locked))
		require.Empty(t, locked, name)
		require.NoError(t, tx.Rollback(t.Context()))
	}
}
