package migrator_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

// What partitions, columns and types go through in one transaction, so that no trigger or no comparison of definitions alone would tell.
func TestSchemaChangesInOneTransaction(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, changingTables...)
	p.sql(t, `INSERT INTO part SELECT i, 'v' FROM generate_series(0, 0) i ON CONFLICT DO NOTHING`,
		`CREATE TABLE bagged (a int, b text) PARTITION BY RANGE (a)`, `CREATE TABLE bagged_1 PARTITION OF bagged FOR VALUES FROM (0) TO (10)`, `CREATE TABLE bagged_rest PARTITION OF bagged DEFAULT`,
		`INSERT INTO bagged SELECT i % 20, 'x' FROM generate_series(1, 100) i`,
		`CREATE TABLE split (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)`, `CREATE TABLE split_rest PARTITION OF split DEFAULT`, `INSERT INTO split SELECT i, 'v' FROM generate_series(1, 300) i`,
		`CREATE TABLE staging (id int PRIMARY KEY, v text)`, `INSERT INTO staging SELECT i, 's' FROM generate_series(200, 260) i`,
		`CREATE TABLE other (id int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id)`,
		`CREATE TABLE rates (id int PRIMARY KEY, a int, b int)`, `CREATE INDEX rates_a ON rates (a)`, `CREATE INDEX rates_b ON rates (b)`, `CREATE VIEW rated AS SELECT id, a FROM rates`,
		`CREATE VIEW rated_twice AS SELECT id FROM rated`, `INSERT INTO rates SELECT i, i + 0, i + 0 FROM generate_series(1, 50) i`)
	untilInSync(t, p)
	const atSwitch = "constraints that rows satisfy with the next round: left to the switch"
	for _, step := range []struct {
		name string
		sql  []string
	}{
		{"detached, written to, attached", []string{`BEGIN; ALTER TABLE part DETACH PARTITION part_1; UPDATE part_1 SET v = 'detached' WHERE id < 5; DELETE FROM part_1 WHERE id = 7; INSERT INTO part_1 VALUES (7, 'again');
			DELETE FROM part_1 WHERE id = 8; ALTER TABLE part ATTACH PARTITION part_1 FOR VALUES FROM (0) TO (100); COMMIT`}},
		{"is followed", []string{`UPDATE part SET v = 'w' WHERE id = 20`, `DELETE FROM part_1 WHERE id = 21`}},
		{"with other bounds", []string{`BEGIN; ALTER TABLE part DETACH PARTITION part_1; DELETE FROM part_1 WHERE id > 90; UPDATE part_1 SET id = 150 WHERE id = 50; ALTER TABLE part ATTACH PARTITION part_1 FOR VALUES FROM (0) TO (160); COMMIT`}},
		{"detached and attached later", []string{`ALTER TABLE part DETACH PARTITION part_1`}},
		{"attached again, changed before", []string{`BEGIN; DELETE FROM part_1 WHERE id = 10; UPDATE part_1 SET v = 'alone' WHERE id = 11; ALTER TABLE part ATTACH PARTITION part_1 FOR VALUES FROM (0) TO (170); COMMIT`}},
		{"own table, changed and attached", []string{`BEGIN; DELETE FROM staging WHERE id = 201; UPDATE staging SET id = 170 WHERE id = 260; ALTER TABLE part ATTACH PARTITION staging FOR VALUES FROM (170) TO (260); COMMIT`, `UPDATE part SET v = 'y' WHERE id = 202`}},
		{"moved to another table", []string{`BEGIN; ALTER TABLE part DETACH PARTITION staging; DELETE FROM staging WHERE id = 203; ALTER TABLE other ATTACH PARTITION staging FOR VALUES FROM (100) TO (300); COMMIT`, `UPDATE other SET v = 'z' WHERE id = 204`}},
		{"captured by another key", []string{`CREATE TABLE wild (id int NOT NULL, v text NOT NULL UNIQUE)`, `INSERT INTO wild SELECT i, 'w' || i FROM generate_series(300, 320) i`}},
		{"attached", []string{`DELETE FROM wild WHERE id = 301`, `ALTER TABLE part ATTACH PARTITION wild FOR VALUES FROM (300) TO (400)`, `UPDATE part SET v = 'p' WHERE id = 302`, `UPDATE wild SET v = 'q' WHERE id = 303`}},
		{"and detached", []string{`ALTER TABLE part DETACH PARTITION wild`, `INSERT INTO wild VALUES (321, 'r')`, `DELETE FROM wild WHERE id = 304`}},
		{"and written to", []string{`UPDATE wild SET id = id + 1000`}},
		{"key columns that are not the first", []string{`CREATE TABLE late_key (v text, id int PRIMARY KEY)`, `INSERT INTO late_key SELECT 'v', generate_series(1, 9)`}},
		{"renamed", []string{`ALTER TABLE late_key RENAME id TO number`, `ALTER TABLE other RENAME id TO number`}},
		{"and written to", []string{`INSERT INTO late_key VALUES ('w', 10)`, `UPDATE late_key SET number = 11 WHERE number = 1`, `DELETE FROM late_key WHERE number = 2`,
			`UPDATE other SET v = 'late' WHERE number = 205`, `UPDATE other SET number = 270 WHERE number = 206`, `DELETE FROM staging WHERE number = 207`}},
		{"without a key: dropped, and the same images elsewhere", []string{`BEGIN; INSERT INTO bagged VALUES (5, 'x'), (15, 'x'); DROP TABLE bagged_1; COMMIT`, `INSERT INTO bagged VALUES (5, 'x')`}},
		{"default partition split", []string{`BEGIN; CREATE TABLE split_1 (id int PRIMARY KEY, v text); INSERT INTO split_1 SELECT * FROM split_rest WHERE id < 100; DELETE FROM split_rest WHERE id < 100;
			ALTER TABLE split ATTACH PARTITION split_1 FOR VALUES FROM (0) TO (100); COMMIT`, `UPDATE split SET v = 'w' WHERE id IN (5, 150)`}},
		{"and emptied", []string{`TRUNCATE split_1`}},
		{"partition with partitions", []string{`CREATE TABLE split_2 PARTITION OF split FOR VALUES FROM (1000) TO (2000) PARTITION BY RANGE (id)`, `CREATE TABLE split_2a PARTITION OF split_2 FOR VALUES FROM (1000) TO (1500)`,
			`INSERT INTO split VALUES (1001, 'deep')`}},
		{"and without", []string{`DROP TABLE split_2`}},
		{"column and its index made anew", []string{`BEGIN; ALTER TABLE rates DROP COLUMN a CASCADE; ALTER TABLE rates ADD COLUMN a int; CREATE INDEX rates_a ON rates (a); DROP INDEX rates_b; CREATE VIEW rated AS SELECT id, a FROM rates;
			CREATE VIEW rated_twice AS SELECT id FROM rated; COMMIT`}},
		{"label renamed", []string{`ALTER TYPE mood RENAME VALUE 'happy' TO 'glad'`}},
		{"label renamed, and others added", []string{`ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'`, `ALTER TYPE mood ADD VALUE 'sad' BEFORE 'blue'`, `ALTER TYPE mood ADD VALUE 'angry'`, `UPDATE users SET feels = 'sad' WHERE id = 3`}},
		{"views dropped in a chain", []string{`DROP VIEW rated CASCADE`, `ALTER TABLE rates ADD COLUMN c int`}},
		{"table made anew under functions", []string{`CREATE TABLE base (id int PRIMARY KEY, v text)`, `CREATE FUNCTION bases() RETURNS SETOF base LANGUAGE sql AS 'SELECT * FROM base'`,
			`CREATE FUNCTION counts() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM base); END'`, `CREATE VIEW of_bases AS SELECT id FROM bases()`, `CREATE VIEW of_counts AS SELECT counts() AS n`}},
		{"and again", []string{`BEGIN; DROP TABLE base CASCADE; CREATE TABLE base (id int PRIMARY KEY, w text); INSERT INTO base VALUES (1, 'w'); CREATE FUNCTION bases() RETURNS SETOF base LANGUAGE sql AS 'SELECT * FROM base';
			CREATE VIEW of_bases AS SELECT id FROM bases(); CREATE OR REPLACE VIEW of_counts AS SELECT counts() AS n, 1 AS one; COMMIT`}},
		{"NOT NULL and CHECK that rows do not satisfy yet, and that are gone", []string{`CREATE TABLE strict (id int PRIMARY KEY, a int, b int, c int)`, `INSERT INTO strict SELECT generate_series(1, 5)`}},
		{atSwitch, []string{`UPDATE strict SET a = 1, b = 1, c = 1`, `ALTER TABLE strict ALTER a SET NOT NULL, ALTER b SET NOT NULL, ADD CONSTRAINT c_there CHECK (c IS NOT NULL)`}},
		{"and go", []string{`ALTER TABLE strict RENAME TO lax`, `ALTER TABLE lax ALTER a DROP NOT NULL, DROP COLUMN b, DROP CONSTRAINT c_there`, `UPDATE lax SET a = NULL WHERE id = 1`}},
		{"table without columns", []string{`CREATE TABLE nothing ()`, `ALTER TABLE rates ADD COLUMN d int`}},
		{"sequence", []string{`CREATE SEQUENCE tickets START 5`, `SELECT nextval('tickets')`, `ALTER TABLE rates ADD COLUMN e int DEFAULT nextval('tickets')`}},
		{"type that there is no cast to, under a view", []string{`ALTER TABLE rates ADD COLUMN at bigint`, `UPDATE rates SET at = 1700000000 + id`, `CREATE VIEW rated AS SELECT id, at FROM rates`,
			`CREATE MATERIALIZED VIEW counted AS SELECT count(*) AS n FROM rated`}},
		{"and another type", []string{`BEGIN; DROP VIEW rated CASCADE; ALTER TABLE rates ALTER at TYPE timestamptz USING to_timestamp(at); CREATE VIEW rated AS SELECT id, at FROM rates;
			CREATE MATERIALIZED VIEW counted AS SELECT count(*) AS n FROM rated; COMMIT`}},
		{"a view, a function and a sequence alone", []string{`CREATE VIEW alone AS SELECT 1 AS one`, `CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'`, `CREATE SEQUENCE numbers`}},
		{"a view replaced", []string{`CREATE OR REPLACE VIEW alone AS SELECT 1 AS one, 2 AS two`, `CREATE OR REPLACE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 2'`}},
		{"clustered", []string{`CLUSTER rates USING rates_pkey`}},
		{"generated column of another type", []string{`ALTER TABLE rates ADD COLUMN g int GENERATED ALWAYS AS (b * 2) STORED`, `CREATE INDEX ON rates (g)`}},
		{"generated column of yet another type", []string{`ALTER TABLE rates ALTER COLUMN g TYPE bigint`}},
	} {
		p.sql(t, step.sql...)
		untilInSync(t, p)
		p.requireEqual(t)
		if step.name != atSwitch {
			requireSameSchema(t, p)
		}
		t.Log(step.name)
	}
	require.EqualValues(t, 2, count(t, p.target.Connect(t), `SELECT one()`))
	m := p.migrator(t)
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
	target := p.target.Connect(t)
	require.EqualValues(t, 50, count(t, target, `SELECT n FROM counted`))
	execute(t, target, `BEGIN; ALTER TABLE part DETACH PARTITION part_1; UPDATE part_1 SET v = 'on the target' WHERE id = 30; DELETE FROM part_1 WHERE id = 31; ALTER TABLE part ATTACH PARTITION part_1 FOR VALUES FROM (0) TO (170); COMMIT`,
		`DROP TABLE split_1`, `UPDATE split SET v = 'back' WHERE id = 200`)
	do(t, m, migrator.CommandRevert)
	p.requireEqual(t)
}

// A label that has another name on the target after the switch is on rows of the source under its old one.
func TestLabelRenamedOnTheTarget(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, changingTables...)
	m := inSync(t, p)
	do(t, m, migrator.CommandSwitch)
	execute(t, p.target.Connect(t), `ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'`)
	_, err := m.Do(t.Context(), migrator.CommandRevert, false)
	require.ErrorContains(t, err, `label 'sad' of type "public"."mood" is gone or renamed`)
	execute(t, p.target.Connect(t), `ALTER TYPE mood RENAME VALUE 'blue' TO 'sad'`)
	do(t, m, migrator.CommandRevert)
	p.requireEqual(t)
}
