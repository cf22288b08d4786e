package migrator_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

// A thousand tables: no step may hold a lock, or take a moment, too many for it.
func TestManyTables(t *testing.T) {
	t.Parallel()
	tables := 60
	if os.Getenv("MIGRATOR_LONG") != "" {
		tables = 1000
	}
	p := newPair(t)
	c := p.source.Connect(t)
	for i := range tables {
		execute(t, c, fmt.Sprintf(`CREATE TABLE t%[1]d (id bigserial PRIMARY KEY, v text UNIQUE, p bigint REFERENCES t%[1]d);
			INSERT INTO t%[1]d (v) SELECT 'v' || i FROM generate_series(1, 20) i`, i))
	}
	began := time.Now()
	m := p.migrator(t)
	ctx := withTimeout(t, 5*time.Minute)
	require.NoError(t, m.Run(ctx, migrator.UntilInSync))
	t.Logf("in sync after %s", time.Since(began))
	for i := range tables {
		execute(t, c, fmt.Sprintf(`UPDATE t%d SET v = v || 'x' WHERE id = 3`, i))
	}
	began = time.Now()
	status, err := m.Status(ctx)
	require.NoError(t, err)
	t.Logf("status took %s: %s", time.Since(began), status.Phase)
	began = time.Now()
	result, err := m.Do(ctx, migrator.CommandSwitch, false)
	require.NoError(t, err)
	t.Logf("switch took %s: %s", time.Since(began), result.Message)
	p.requireEqual(t)
	do(t, m, migrator.CommandRevert)
	do(t, m, migrator.CommandSwitch)
	began = time.Now()
	_, err = m.Do(ctx, migrator.CommandComplete, false)
	require.NoError(t, err)
	t.Logf("complete took %s", time.Since(began))
	p.requireNoTrace(t)
}
