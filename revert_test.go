package migrator_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

// A trigger that fires in replica mode on one partition alone: after a revert it must not act on the rows that replication brings.
func TestRevertSilencesTriggersOfPartitions(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, smallSchema...)
	p.sql(t,
		`CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)`,
		`CREATE TABLE parted_a PARTITION OF parted FOR VALUES FROM (0) TO (10)`, `CREATE TABLE parted_b PARTITION OF parted DEFAULT`,
		`CREATE TRIGGER noted AFTER INSERT ON parted FOR EACH ROW EXECUTE FUNCTION note()`, `ALTER TABLE parted_a ENABLE REPLICA TRIGGER noted`,
		`CREATE TRIGGER always AFTER INSERT ON parted FOR EACH ROW EXECUTE FUNCTION note()`, `ALTER TABLE parted_b ENABLE ALWAYS TRIGGER always`)
	const states = `SELECT string_agg(concat_ws(' ', tgrelid::regclass, tgname, tgenabled), ', ' ORDER BY tgrelid::regclass::text, tgname) FROM pg_trigger
		WHERE tgname IN ('noted', 'always')`
	var before, switched string
	require.NoError(t, p.source.Connect(t).QueryRow(t.Context(), states).Scan(&before))
	m := inSync(t, p)
	for i := range 2 {
		do(t, m, migrator.CommandSwitch)
		require.NoError(t, p.target.Connect(t).QueryRow(t.Context(), states).Scan(&switched))
		require.Equal(t, before, switched)
		do(t, m, migrator.CommandRevert)
		p.sql(t, `INSERT INTO parted SELECT id + `+[]string{"0", "5"}[i]+`, 'x' FROM unnest('{1, 2, 11, 12}'::int[]) AS id`)
		require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
		p.requireEqual(t)
	}
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
	do(t, m, migrator.CommandComplete)
	p.requireNoTrace(t)
}
