package migrator_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgtest"
)

// setAside waits until exactly these tables are set aside, each with its row looked for, and returns why.
func setAside(t *testing.T, m *migrator.Migrator, names ...string) map[string]migrator.AsideTable {
	t.Helper()
	var list map[string]migrator.AsideTable
	waitFor(t, "set aside: "+strings.Join(names, ", "), func() bool {
		tables, err := m.AsideTables(t.Context(), true)
		if err != nil || len(tables) != len(names) {
			return false
		}
		list = map[string]migrator.AsideTable{}
		for _, a := range tables {
			list[strings.TrimPrefix(a.Table, "public.")] = a
			if a.Remedy == "" {
				return false
			}
		}
		for _, n := range names {
			if _, ok := list[n]; !ok {
				return false
			}
		}
		return true
	})
	return list
}

// joined waits until no table is set aside any more.
func joined(t *testing.T, m *migrator.Migrator) {
	t.Helper()
	waitFor(t, "all have joined again", func() bool {
		s, err := m.Status(t.Context())
		return err == nil && len(s.SetAside) == 0 && s.ProgressSignals.TablePhase[migrator.TableLive] == len(s.Tables)
	})
}

// A row that is no text in any encoding sets its table aside, in the copy and in rounds, in a column, in a key and in
// a table without a key. All others go on. It joins again when the row is mended by the remedy that is told, with
// every change since.
func TestRowsThatCannotBeRead(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.source = pgtest.Shared(t, pgtest.SourceVersion()).NewSource(t, pgtest.WithEncoding("SQL_ASCII"))
	p.sql(t, `CREATE TABLE good (id int PRIMARY KEY, v text)`, `INSERT INTO good SELECT i, 'v' FROM generate_series(1,
		1000) i`,
		`CREATE TABLE copied (id int PRIMARY KEY, a int, "Name" text, parent int REFERENCES good)`,
		`INSERT INTO copied SELECT i, i + 0, CASE WHEN i = 4321 THEN E'caf\351' ELSE 'x' || i END, 1 + i % 1000 FROM
			generate_series(1, 5000) i`,
		`CREATE TABLE child (id int PRIMARY KEY, copied int REFERENCES copied)`,
		`INSERT INTO child SELECT i, i FROM generate_series(1, 5000) i`,
		`CREATE TABLE live (id int PRIMARY KEY, v text)`, `INSERT INTO live SELECT i, 'v' FROM generate_series(1,
			1000) i`,
		`CREATE TABLE keyed (k text PRIMARY KEY, v int)`, `INSERT INTO keyed SELECT 'k' || i, i FROM
			generate_series(1, 1000) i`,
		`CREATE TABLE bag (v text)`, `INSERT INTO bag SELECT 'v' || i FROM generate_series(1, 1000) i`)
	m := p.migrator(t)
	err := m.Run(withTimeout(t, time.Minute), migrator.UntilInSync)
	aside := new(migrator.AsideError)
	require.ErrorAs(t, err, &aside)
	require.Len(t, aside.Tables, 1)
	require.NotContains(t, err.Error(), "caf")
	require.Empty(t, aside.Tables[0].Value)
	a := setAside(t, m, "copied")["copied"]
	require.Equal(t, `"id" = '4321'`, a.Row)
	require.Equal(t, "Name", a.Column)
	require.Equal(t, "22021", a.SQLState)
	require.Equal(t, `\x636166e9`, a.Value)
	require.Equal(t, "source", a.Side)
	_, err = m.Do(withTimeout(t, time.Minute), migrator.CommandSwitch, true)
	refused := new(migrator.RefusedError)
	require.ErrorAs(t, err, &refused)
	require.Contains(t, err.Error(), "public.copied is set aside")

	stop := run(t, m)
	defer func() { stop() }()
	p.sql(t, `UPDATE good SET v = 'while one is set aside' WHERE id < 500`, `DELETE FROM child WHERE id = 5`,
		`DELETE FROM copied WHERE id = 5`, `UPDATE copied SET a = -a WHERE id < 100`)
	waitFor(t, "others go on", func() bool {
		return countOn(t, p.target, `SELECT count(*) FROM good WHERE v = 'while one is set aside'`) == 499
	})
	p.sql(t, a.RemedySQL, `INSERT INTO copied VALUES (9999, 1, 'new', 1)`)
	joined(t, m)
	p.requireEqual(t)
	require.Equal(t, int64(2), countOn(t, p.target, `SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND
		convalidated AND connamespace = 'public'::regnamespace`))

	// In rounds.
	p.sql(t, `UPDATE live SET v = E'\377' WHERE id = 77`, `UPDATE live SET v = 'too' WHERE id < 50`,
		`INSERT INTO keyed VALUES (E'\377\'', 1)`, `INSERT INTO bag VALUES (E'\376')`)
	all := setAside(t, m, "live", "keyed", "bag")
	p.sql(t, `UPDATE good SET v = 'while three are' WHERE id < 400`, `DELETE FROM live WHERE id > 900`,
		`DELETE FROM bag WHERE v = 'v5'`)
	waitFor(t, "others go on", func() bool {
		return countOn(t, p.target, `SELECT count(*) FROM good WHERE v = 'while three are'`) == 399
	})
	require.Equal(t, `convert_to("k"::text, 'SQL_ASCII') = '\xff27'`, all["keyed"].Row)
	for _, a := range all {
		require.Equal(t, "source", a.RemedyOn)
		p.sql(t, a.RemedySQL)
	}
	p.sql(t, `INSERT INTO keyed VALUES (E'\200', 2)`, `DELETE FROM keyed WHERE v = 2`) // it stays in the log
	joined(t, m)
	p.requireEqual(t)
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
	do(t, m, migrator.CommandRevert)
	p.requireEqual(t)
}

// Each remedy for what the target does not take is tried: the table joins again.
func TestRemedies(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, `CREATE TYPE mood AS ENUM ('sad', 'happy')`,
		`CREATE FUNCTION fine(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'`)
	cases := map[string]struct{ column, target, write, on string }{
		"uniq":     {"v int", `CREATE UNIQUE INDEX one ON uniq (v)`, "1", "target"},
		"longer":   {"v text", `ALTER TABLE longer ALTER v TYPE varchar(5)`, "'much too long'", "target"},
		"larger":   {"v bigint", `ALTER TABLE larger ALTER v TYPE int`, "3000000000", "target"},
		"feeling":  {"v mood", ``, "'zany'", "target"},
		"nullable": {"v int", `ALTER TABLE nullable ALTER v SET NOT NULL`, "NULL", "target"},
		"excluded": {"v int4range", `ALTER TABLE excluded ADD CONSTRAINT apart EXCLUDE USING gist (v WITH &&)`,
			"'[3,9)'", "target"},
		"computed": {"v int, g int GENERATED ALWAYS AS (fine(v)) STORED", `CREATE OR REPLACE FUNCTION fine(int)
			RETURNS int
			IMMUTABLE LANGUAGE plpgsql AS 'BEGIN IF $1 = 100 THEN RAISE EXCEPTION $$no$$; END IF; RETURN 1; END'`,
			"100", "source"},
	}
	var names []string
	for name, c := range cases {
		names = append(names, name)
		p.sql(t, fmt.Sprintf(`CREATE TABLE %s (id int PRIMARY KEY, %s)`, name, c.column))
	}
	p.sql(t, `INSERT INTO uniq VALUES (1, 1)`, `INSERT INTO excluded VALUES (1, '[1,5)')`)
	m := inSync(t, p)
	for _, c := range cases {
		execute(t, p.target.Connect(t), c.target)
	}
	execute(t, p.source.Connect(t), `ALTER TYPE mood ADD VALUE 'zany'`)
	waitForLabel := func() bool {
		return countOn(t, p.target, `SELECT count(*) FROM pg_enum WHERE enumlabel =
		'zany'`) == 1
	}
	stop := run(t, m)
	defer func() { stop() }()
	waitFor(t, "the label is followed", waitForLabel)
	execute(t, p.target.ConnectAdmin(t), `DELETE FROM pg_enum WHERE enumlabel = 'zany'`)
	for name, c := range cases {
		p.sql(t, fmt.Sprintf(`INSERT INTO %s SELECT i, NULL FROM generate_series(10, 20) i WHERE '%[1]s' <>
			'nullable'`, name),
			fmt.Sprintf(`INSERT INTO %s VALUES (17017, %s)`, name, c.write))
	}
	aside := setAside(t, m, names...)
	for name, c := range cases {
		a := aside[name]
		t.Log(a)
		require.Equal(t, c.on, a.RemedyOn, a)
		require.NotEmpty(t, a.RemedySQL, a)
		db := p.target
		if a.RemedyOn == "source" {
			db = p.source
		}
		conn := db.Connect(t)
		execute(t, conn, strings.ReplaceAll(a.RemedySQL, "…", "5")) // a value that it can hold
		require.NoError(t, conn.Close(context.Background()))
	}
	joined(t, m)
	p.requireEqual(t)
}

// On the way back, a table whose row the source does not take waits, with its changes in the log, and blocks the
// revert. What refers to it may wait, too. It joins again when the row is mended or the source can take it, a key
// that is no longer there in the log notwithstanding.
func TestReverseAside(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.source = pgtest.Shared(t, pgtest.SourceVersion()).NewSource(t, pgtest.WithEncoding("LATIN1"))
	p.sql(t, `CREATE TABLE good (id int PRIMARY KEY, v text)`, `INSERT INTO good SELECT i, 'v' FROM generate_series(1,
		100) i`,
		`CREATE TABLE texts (k text PRIMARY KEY, v text)`, `INSERT INTO texts SELECT 'k' || i, 'v' FROM
			generate_series(1, 100) i`,
		`CREATE TABLE bag (v text)`, `INSERT INTO bag SELECT 'v' || i FROM generate_series(1, 100) i`,
		`CREATE TABLE times (id int PRIMARY KEY, i interval)`, `INSERT INTO times SELECT i, '1 day' FROM
			generate_series(1, 100) i`,
		`CREATE TABLE parents (id int PRIMARY KEY, v text)`, `INSERT INTO parents SELECT i, 'v' FROM
			generate_series(1, 100) i`,
		`CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents)`,
		`INSERT INTO children SELECT i, i FROM generate_series(1, 100) i`,
		`CREATE TABLE acting (id int PRIMARY KEY, parent int REFERENCES parents ON DELETE CASCADE)`,
		`INSERT INTO acting SELECT i, i FROM generate_series(1, 100) i`)
	m := inSync(t, p)
	do(t, m, migrator.CommandSwitch)
	stop := run(t, m)
	defer func() { stop() }()
	target := p.target.Connect(t)
	execute(t, target, `INSERT INTO texts VALUES ('☃', 'snowman')`, `UPDATE texts SET v = 'w' WHERE k < 'k5'`,
		`INSERT INTO bag VALUES ('☃')`, `DELETE FROM bag WHERE v < 'v5'`,
		`INSERT INTO parents VALUES (1000, '☃')`, `INSERT INTO children VALUES (1000, 1000)`,
		`INSERT INTO acting VALUES (1000, 1000)`, `UPDATE good SET v = 'before'`)
	names := []string{"texts", "bag", "parents", "children", "acting"}
	infinite := p.target.Cluster.Version >= 17 && p.source.Cluster.Version < 17
	if infinite {
		execute(t, target, `UPDATE times SET i = 'infinity' WHERE id = 7`)
		names = append(names, "times")
	}
	waitFor(t, "they are set aside", func() bool {
		tables, err := m.AsideTables(t.Context(), true)
		return err == nil && len(tables) == len(names)
	})
	execute(t, target, `UPDATE good SET v = 'meanwhile'`, `DELETE FROM texts WHERE k LIKE 'k9%'`)
	waitFor(t, "others go on", func() bool {
		return countOn(t, p.source, `SELECT count(*) FROM good WHERE v =
		'meanwhile'`) == 100
	})
	_, err := m.Do(withTimeout(t, time.Minute), migrator.CommandRevert, false)
	refused := new(migrator.RefusedError)
	require.ErrorAs(t, err, &refused)
	require.True(t, refused.CanForce)
	require.Contains(t, err.Error(), "public.texts is set aside")
	require.NotContains(t, err.Error(), "snowman")
	execute(t, target, `UPDATE texts SET k = 'snow' WHERE k = '☃'`, `UPDATE bag SET v = 'snow' WHERE v = '☃'`,
		`UPDATE parents SET v = 'snow' WHERE id = 1000`, `UPDATE times SET i = '2 days' WHERE id = 7`)
	waitFor(t, "they have joined again", func() bool {
		tables, err := m.AsideTables(t.Context(), true)
		return err == nil && len(tables) == 0
	})
	do(t, m, migrator.CommandRevert)
	p.requireEqual(t)
	require.Equal(t, int64(1), countOn(t, p.source, `SELECT count(*) FROM texts WHERE k = 'snow'`))
}

// Duplicates under a broken unique index keep no table from following the source. Once they are gone there, the index
// is built, and every row is there, also one that the broken index does not find.
func TestDuplicatesUnderABrokenIndex(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, `CREATE TABLE mails (id int PRIMARY KEY, email text)`, `CREATE UNIQUE INDEX mails_email ON mails
		(lower(email))`,
		`INSERT INTO mails SELECT i, 'm' || i FROM generate_series(1, 100) i`,
		`CREATE TABLE lost (id int PRIMARY KEY, v text)`, `INSERT INTO lost SELECT i, 'v' FROM generate_series(1, 100)
			i`,
		`CREATE TABLE refs (id int PRIMARY KEY, lost int REFERENCES lost)`, `INSERT INTO refs VALUES (1, 1), (2, 7)`)
	admin := p.source.ConnectAdmin(t)
	execute(t, admin, `UPDATE pg_index SET indisunique = false WHERE indexrelid = 'mails_email'::regclass`,
		`UPDATE pg_index SET indisready = false WHERE indexrelid = 'lost_pkey'::regclass`)
	p.sql(t, `INSERT INTO mails VALUES (1001, 'M7'), (1002, 'm8')`, `INSERT INTO lost VALUES (7, 'not in the index')`)
	execute(t, admin, `UPDATE pg_index SET indisunique = true WHERE indexrelid = 'mails_email'::regclass`,
		`UPDATE pg_index SET indisready = true WHERE indexrelid = 'lost_pkey'::regclass`)
	m := inSync(t, p)
	p.requireEqual(t)
	s, err := m.Status(t.Context())
	require.NoError(t, err)
	require.Len(t, s.Failed, 3, "%v", s.Failed) // the foreign key has nothing to refer to
	told := fmt.Sprint(s.Failed)
	require.Contains(t, told, "(m7), (m8)")
	require.Contains(t, told, "(7)")
	_, err = m.Do(withTimeout(t, time.Minute), migrator.CommandSwitch, false)
	require.ErrorContains(t, err, "mails_email")
	stop := run(t, m)
	defer func() { stop() }()
	p.sql(t, `DELETE FROM mails WHERE id > 1000`, `DELETE FROM refs WHERE lost = 7`,
		`DELETE FROM lost WHERE id + 0 = 7 AND v = 'v'`,
		`UPDATE mails SET email = 'n' WHERE id = 5`,
		`REINDEX INDEX lost_pkey`)
	waitFor(t, "everything is built", func() bool {
		s, err := m.Status(t.Context())
		return err == nil && len(s.Failed) == 0 && len(s.SetAside) == 0
	})
	joined(t, m)
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
}

// A table that could not be created, and was mended or dropped on the source since, is cloned again.
func TestSchemaMendedAfterItsCloneFailed(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	execute(t, p.source.ConnectAdmin(t), `SET allow_system_table_mods = on`, `CREATE DOMAIN pg_catalog.odd AS text`,
		`GRANT USAGE ON DOMAIN pg_catalog.odd TO PUBLIC`)
	p.sql(t, `CREATE TYPE feelings AS ENUM ('a')`, `CREATE FUNCTION fine() RETURNS int LANGUAGE sql AS 'SELECT 1'`,
		`CREATE TABLE good (id int PRIMARY KEY DEFAULT fine(), f feelings)`, `INSERT INTO good VALUES (1, 'a')`,
		`CREATE VIEW seen AS SELECT * FROM good`,
		`CREATE TABLE mended (id int PRIMARY KEY, v odd)`, `INSERT INTO mended VALUES (5, 'a')`,
		`CREATE TABLE dropped (id int PRIMARY KEY, v odd)`, `INSERT INTO dropped VALUES (5, 'a')`)
	m := p.migrator(t)
	require.ErrorContains(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync), "odd")
	require.Error(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync)) // nothing has changed
	p.sql(t, `ALTER TABLE mended ALTER v TYPE text`, `DROP TABLE dropped`)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	p.requireEqual(t)
	require.Equal(t, int64(1), countOn(t, p.target, `SELECT count(*) FROM seen`))
}
