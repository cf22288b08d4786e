package migrator_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

// I2: a deploy between two chunks of a table, which gives its name, its columns' names, or its file to something else.
func TestTableThatIsAnotherInTheMiddleOfTheCopy(t *testing.T) {
	t.Parallel()
	const wide = `CREATE TABLE wide (id int PRIMARY KEY, u int, amount bigint, v text) WITH (autovacuum_enabled = off); INSERT INTO wide SELECT i, i + 1, i + 2, repeat('x', 1000) || i FROM generate_series(1, 280) i`
	const parts = `CREATE TABLE part (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE part_a PARTITION OF part FOR VALUES FROM (0) TO (150);
		CREATE TABLE part_b PARTITION OF part FOR VALUES FROM (150) TO (1000); INSERT INTO part SELECT i, repeat('x', 1000) FROM generate_series(1, 280) i`
	for _, c := range []struct{ name, before, ddl string }{
		{"rotation", wide, `BEGIN; ALTER TABLE wide RENAME TO wide_old; CREATE TABLE wide (LIKE wide_old INCLUDING ALL); COMMIT`},
		{"column renamed, name taken", wide, `ALTER TABLE wide RENAME u TO u_old; ALTER TABLE wide ADD COLUMN u int`},
		{"binary form of another type", wide, `ALTER TABLE wide ALTER amount TYPE double precision`},
		{"wider type", wide, `ALTER TABLE wide ALTER u TYPE bigint`},
		{"volatile default", wide, `ALTER TABLE wide ADD COLUMN token uuid DEFAULT gen_random_uuid()`},
		{"table renamed", wide, `ALTER TABLE wide RENAME TO broad`},
		{"partition dropped", parts, `DROP TABLE part_b`},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			p.sql(t, c.before)
			var chunks, done atomic.Int64
			m := p.migrator(t, func(cfg *migrator.Config) {
				cfg.Copy.Workers, cfg.Copy.ChunkBytes = 1, 32<<10
				cfg.Source = hookedSource{Source: cfg.Source, copied: func(*migrator.Chunk) { chunks.Add(1) }, opened: func() {
					if chunks.Load() == 2 && done.CompareAndSwap(0, 1) {
						p.sql(t, c.ddl)
					}
				}}
			})
			require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
			require.EqualValues(t, 1, done.Load())
			p.requireEqual(t)
			requireSameSchema(t, p)
		})
	}
}

// I1: a deploy after the schema was cloned, before its tables are captured, or before they are copied.
func TestTableThatIsAnotherBeforeTheCopy(t *testing.T) {
	t.Parallel()
	for name, ddl := range map[string]string{
		"dropped":            `DROP TABLE wide`,
		"dropped, keyless":   `DROP TABLE bag`,
		"renamed":            `ALTER TABLE wide RENAME TO broad`,
		"rotation":           `BEGIN; ALTER TABLE wide RENAME TO wide_old; CREATE TABLE wide (LIKE wide_old INCLUDING ALL); INSERT INTO wide VALUES (1, 1); COMMIT`,
		"rotation, keyless":  `BEGIN; ALTER TABLE bag RENAME TO bag_old; CREATE TABLE bag (a text); INSERT INTO bag VALUES ('new'); COMMIT`,
		"made again":         `BEGIN; DROP TABLE wide; CREATE TABLE wide (u int PRIMARY KEY); INSERT INTO wide VALUES (1); COMMIT`,
		"key column renamed": `ALTER TABLE wide RENAME id TO key`,
		"column, keyless":    `ALTER TABLE bag ADD COLUMN b int DEFAULT 5`,
		"rewritten":          `ALTER TABLE wide ALTER u TYPE bigint; ALTER TABLE bag ALTER a TYPE varchar(10)`,
		"new":                `CREATE TABLE more (id int PRIMARY KEY); INSERT INTO more VALUES (1)`,
		"partition dropped":  `DROP TABLE part_b`,
		"partition attached": `CREATE TABLE part_c (id int PRIMARY KEY); INSERT INTO part_c VALUES (250); ALTER TABLE part ATTACH PARTITION part_c FOR VALUES FROM (200) TO (300)`,
		"becomes partition":  `ALTER TABLE wide DROP COLUMN u; ALTER TABLE part ATTACH PARTITION wide FOR VALUES FROM (-100) TO (0)`,
	} {
		for _, held := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/held=%t", strings.ReplaceAll(name, " ", "_"), held), func(t *testing.T) {
				t.Parallel()
				p := newPair(t)
				p.sql(t, `CREATE TABLE wide (id int PRIMARY KEY, u int); INSERT INTO wide SELECT -i, i FROM generate_series(1, 10) i`,
					`CREATE TABLE bag (a text); INSERT INTO bag SELECT 'x' FROM generate_series(1, 10)`,
					`CREATE TABLE part (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE part_a PARTITION OF part FOR VALUES FROM (0) TO (100);
					 CREATE TABLE part_b PARTITION OF part FOR VALUES FROM (100) TO (200); INSERT INTO part VALUES (5), (105)`)
				var once sync.Once
				deploy := func() { once.Do(func() { p.sql(t, ddl) }) }
				if held {
					m := p.migrator(t, func(cfg *migrator.Config) { cfg.HoldBeforeCopy = true })
					stop := run(t, m)
					waitFor(t, "every table is captured", func() bool { return phase(t, m) == migrator.PhaseReadyToCopy })
					stop()
					deploy()
				}
				m := p.migrator(t, func(cfg *migrator.Config) { cfg.Source = hookedSource{Source: cfg.Source, capture: deploy} })
				require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
				p.requireEqual(t)
				requireSameSchema(t, p)
				// Whatever there is by now is captured.
				p.sql(t, `DO $$ DECLARE r regclass; BEGIN FOR r IN SELECT oid FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace LOOP
					EXECUTE format('DELETE FROM %s WHERE ctid = (SELECT min(ctid) FROM %1$s)', r);
				END LOOP; END $$`)
				require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
				p.requireEqual(t)
			})
		}
	}
}

// I2: a deploy while another one is carried over, between what is done for it on the source.
func TestDeployWhileAnotherOneIsFollowed(t *testing.T) {
	t.Parallel()
	const (
		fresh    = `CREATE TABLE fresh (id int PRIMARY KEY, v int); INSERT INTO fresh SELECT i, i FROM generate_series(1, 10) i`
		rotate   = `BEGIN; ALTER TABLE fresh RENAME TO fresh_old; CREATE TABLE fresh (LIKE fresh_old INCLUDING ALL); INSERT INTO fresh VALUES (1, 1); COMMIT`
		attached = `CREATE TABLE part_2 (id int PRIMARY KEY, v text); INSERT INTO part_2 VALUES (150, 'x'); ALTER TABLE part ATTACH PARTITION part_2 FOR VALUES FROM (100) TO (200)`
	)
	for _, c := range []struct{ name, before, first, at, then string }{
		{"captured, then rotated", ratesTable, fresh, "touch", rotate},
		{"captured, then dropped", ratesTable, fresh, "touch", `DROP TABLE fresh`},
		{"rotated", ratesTable, fresh, "capture", rotate},
		{"renamed", ratesTable, fresh, "capture", `ALTER TABLE fresh RENAME TO fresh_2`},
		{"rewritten, then rotated", fresh, `ALTER TABLE fresh ALTER v TYPE numeric USING v * 2`, "touch", rotate},
		{"attached, then renamed", partTable, attached, "adopt", `ALTER TABLE part_2 RENAME TO part_two`},
		{"attached, then detached", partTable, attached, "adopt", `ALTER TABLE part DETACH PARTITION part_2`},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			p.sql(t, c.before)
			untilInSync(t, p)
			p.sql(t, c.first)
			var once sync.Once
			deploy := map[string]func(){c.at: func() { once.Do(func() { p.sql(t, c.then) }) }}
			m := p.migrator(t, func(cfg *migrator.Config) {
				cfg.Source = hookedSource{Source: cfg.Source, capture: deploy["capture"], adopt: deploy["adopt"], touch: deploy["touch"]}
			})
			require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
			once.Do(func() { require.Fail(t, "no moment for the second deploy") })
			p.requireEqual(t)
			requireSameSchema(t, p)
		})
	}
}

// I4: a transaction that gives a name to something else holds its lock while a round begins, which finds the other thing when it has waited.
func TestNameTakenWhileARoundBegins(t *testing.T) {
	t.Parallel()
	for name, ddl := range map[string]string{
		"table":  `ALTER TABLE wide RENAME TO wide_old; CREATE TABLE wide (LIKE wide_old INCLUDING ALL)`,
		"column": `ALTER TABLE wide RENAME u TO u_old; ALTER TABLE wide ADD COLUMN u int`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			p.sql(t, `CREATE TABLE wide (id int PRIMARY KEY, u int)`, `INSERT INTO wide SELECT i, i FROM generate_series(1, 10) i`)
			m := p.migrator(t)
			stop := run(t, m)
			waitFor(t, "in sync", func() bool { return phase(t, m) == migrator.PhaseReplicating })
			_, err := p.source.Connect(t).Exec(t.Context(), `UPDATE wide SET u = 1000 + id WHERE id < 4; COMMIT; BEGIN; `+ddl+`; SELECT pg_sleep(1.3); COMMIT`)
			require.NoError(t, err)
			stop()
			untilInSync(t, p)
			p.requireEqual(t)
			requireSameSchema(t, p)
		})
	}
}

// A rewrite that changes values is made up for before the switch, also when the table was changed otherwise since.
func TestRewriteIsNotForgotten(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, `CREATE TABLE t (id int PRIMARY KEY, x int)`, `INSERT INTO t SELECT i, i FROM generate_series(1, 5) i`)
	untilInSync(t, p)
	p.sql(t, `ALTER TABLE t ALTER x TYPE int USING x * 100`)
	untilInSync(t, p)
	p.sql(t, `ALTER TABLE t ADD CONSTRAINT positive CHECK (x >= 0)`)
	untilInSync(t, p)
	do(t, p.migrator(t), migrator.CommandSwitch)
	p.requireEqual(t)
}
