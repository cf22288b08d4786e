package migrator_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgtest"
)

// A standby that is promoted has no rows of unlogged tables, whatever the journal says of them.
func TestUnloggedTablesAreEmptiedByAFailover(t *testing.T) {
	t.Parallel()
	primary := ownServer(t, pgtest.TargetVersion())
	p := newPair(t)
	address := pgtest.NewAddress(t, primary)
	p.target = address.Of(primary.NewTarget(t))
	p.sql(t, `CREATE UNLOGGED TABLE views (id int PRIMARY KEY, v text)`, `INSERT INTO views SELECT i, 'v' FROM
		generate_series(1, 500) i`,
		`CREATE UNLOGGED TABLE bag (v text)`, `INSERT INTO bag SELECT 'b' FROM generate_series(1, 5)`, `CREATE TABLE
			logged (id int PRIMARY KEY)`)
	m := p.migrator(t)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	standby := newStandby(t, primary)
	address.Point(nil)
	require.NoError(t, standby.Promote(t.Context()))
	address.Point(standby)
	require.Zero(t, count(t, p.target.Connect(t), `SELECT count(*) FROM views`))
	p.sql(t, `INSERT INTO logged VALUES (1)`)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	p.requireEqual(t)

	// And where nothing changes between that and the switch: a crash does the same.
	execute(t, p.target.ConnectAdmin(t), `TRUNCATE views, bag, heroku_migrator.canary`)
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
}

// lateChange changes the schema right before and after it was dumped for the first time.
type lateChange struct {
	*migrator.Heroku
	once, twice    sync.Once
	before, change func()
	rehearsed      func() // after the dump that preflight makes; nil: there is none
}

func (s *lateChange) DumpSchema(ctx context.Context) (objects []migrator.SchemaObject, fingerprint string, err error) {
	dumped := false
	if s.rehearsed != nil {
		s.twice.Do(func() {
			objects, fingerprint, err = s.Heroku.DumpSchema(ctx)
			s.rehearsed()
			dumped = true
		})
		if dumped {
			return objects, fingerprint, err
		}
	}
	s.once.Do(func() {
		if s.before != nil {
			s.before()
		}
		objects, fingerprint, err = s.Heroku.DumpSchema(ctx)
		s.change()
		dumped = true
	})
	if dumped {
		return objects, fingerprint, err
	}
	return s.Heroku.DumpSchema(ctx)
}

// A column that comes after the first look at the catalog and is gone by the second is in the dump between them.
func TestColumnThatIsThereOnlyInTheDump(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, changingTables...)
	untilInSync(t, p)
	src, dst := p.open(t)
	p.sql(t, `CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (100) TO (200)`, `INSERT INTO part VALUES (150,
		'v')`)
	m, err := migrator.New(migrator.Config{Target: dst, Logger: testLogger(t), Source: &lateChange{
		Heroku: src, before: func() { p.sql(t, `ALTER TABLE part ADD COLUMN brief int`) }, change: func() {
			p.sql(t,
				`ALTER TABLE part DROP COLUMN brief`)
		},
	}})
	require.NoError(t, err)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	p.requireEqual(t)
	requireSameSchema(t, p)
	do(t, m, migrator.CommandSwitch)
}

// A column that comes between the dump of the schema and the look at the tables is not taken for one that the target
// has.
func TestSchemaChangesWhileItIsDumped(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, smallSchema...)
	src, dst := p.open(t)
	m, err := migrator.New(migrator.Config{Target: dst, Logger: testLogger(t), Source: &lateChange{Heroku: src,
		rehearsed: func() {
			p.sql(t, `CREATE TABLE early (id int PRIMARY KEY)`)
		}, change: func() {
			p.sql(t, `ALTER TABLE children ADD COLUMN late int DEFAULT 7`, `CREATE TABLE late (id int PRIMARY KEY)`,
				`ALTER TABLE journal DROP COLUMN what`)
		}}})
	require.NoError(t, err)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	p.requireEqual(t)
	requireSameSchema(t, p)
}
