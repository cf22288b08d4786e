package migrator_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/heroku-migrator/migrator"
)

// changingTables are changed by the test of schema changes.
var changingTables = []string{
	`CREATE TYPE mood AS ENUM ('sad', 'happy')`,
	`CREATE TABLE users (id bigserial PRIMARY KEY, name text NOT NULL, age int, feels mood)`,
	`CREATE TABLE posts (id bigserial PRIMARY KEY, user_id bigint REFERENCES users, body text)`, `CREATE INDEX posts_user ON posts (user_id)`,
	`CREATE TABLE part (id int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id)`, `CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100)`,
	`CREATE INDEX part_v ON part (v)`,
	`CREATE TABLE bag (a int, b text)`, `CREATE VIEW names AS SELECT id, name FROM users`,
	`INSERT INTO users (name, age, feels) SELECT 'u' || i, i + 0, 'sad' FROM generate_series(1, 300) i`, `INSERT INTO posts (user_id, body) SELECT i, 'b' || i FROM generate_series(1, 300) i`,
	`INSERT INTO part SELECT i, 'v' FROM generate_series(0, 99) i`, `INSERT INTO bag SELECT i % 7, 'b' FROM generate_series(1, 50) i`,
}

// requireSameSchema compares tables, columns, indexes, constraints and views of both sides.
func requireSameSchema(t *testing.T, p *pair) {
	t.Helper()
	read := func(c *pgx.Conn) (list []string) {
		defer c.Close(t.Context())
		rows, err := c.Query(t.Context(), `
			SELECT format('column %s.%s %s %s %s %s %s', attrelid::regclass, attname, format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated, pg_get_expr(adbin, adrelid))
			FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid LEFT JOIN pg_attrdef d ON adrelid = attrelid AND adnum = attnum
			WHERE relnamespace::regnamespace::text !~ '^(pg_|information_schema|heroku_migrator)' AND relkind IN ('r', 'p', 'v') AND attnum > 0 AND NOT attisdropped
			UNION ALL SELECT format('index %s', regexp_replace(pg_get_indexdef(indexrelid), 'INDEX \S+', 'INDEX')) FROM pg_index JOIN pg_class c ON c.oid = indrelid WHERE relnamespace::regnamespace::text !~ '^(pg_|information_schema|heroku_migrator)'
			UNION ALL SELECT format('constraint %s %s %s', conrelid::regclass, pg_get_constraintdef(oid), convalidated) FROM pg_constraint WHERE connamespace::regnamespace::text !~ '^(pg_|information_schema|heroku_migrator)' AND contype <> 'n' AND conparentid = 0
			UNION ALL SELECT format('partition %s %s', inhrelid::regclass, inhparent::regclass) FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE relkind IN ('r', 'p')
			UNION ALL SELECT format('attached index on %s to one on %s', x.indrelid::regclass, y.indrelid::regclass) FROM pg_inherits JOIN pg_index x ON x.indexrelid = inhrelid JOIN pg_index y ON y.indexrelid = inhparent
			UNION ALL SELECT format('label %s %s', enumtypid::regtype, string_agg(enumlabel, ',' ORDER BY enumsortorder)) FROM pg_enum GROUP BY enumtypid
			ORDER BY 1`)
		require.NoError(t, err)
		list, err = pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		return list
	}
	require.Equal(t, read(p.source.ConnectAdmin(t)), read(p.target.ConnectAdmin(t)))
}

// What the application does to its schema while the target follows it is done to the target's too, before the rows that need it.
func TestSchemaChangesAreFollowed(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, changingTables...)
	untilInSync(t, p)
	for _, step := range []struct {
		name string
		sql  []string
	}{
		{"add columns", []string{`ALTER TABLE users ADD COLUMN email text, ADD COLUMN score int NOT NULL DEFAULT 7, ADD COLUMN tags text[] DEFAULT '{a,"b c"}'`, `UPDATE users SET email = 'e' WHERE id < 10`}},
		{"default changed at once", []string{`ALTER TABLE posts ADD COLUMN stars int DEFAULT 1`, `ALTER TABLE posts ALTER stars SET DEFAULT 5`, `INSERT INTO posts (user_id) VALUES (1)`}},
		{"volatile default", []string{`ALTER TABLE posts ADD COLUMN token uuid DEFAULT gen_random_uuid(), ADD COLUMN n bigint GENERATED ALWAYS AS IDENTITY`, `DELETE FROM posts WHERE id = 5`}},
		{"generated", []string{`ALTER TABLE users ADD COLUMN twice int GENERATED ALWAYS AS (age * 2) STORED`}},
		{"drop column", []string{`ALTER TABLE users DROP COLUMN tags`, `INSERT INTO users (name) VALUES ('after')`}},
		{"rename column", []string{`ALTER TABLE users RENAME name TO full_name`, `UPDATE users SET full_name = 'renamed' WHERE id = 3`}},
		{"rename table", []string{`ALTER TABLE posts RENAME TO articles`, `UPDATE articles SET body = 'x' WHERE id = 7`}},
		{"rename a key column", []string{`ALTER TABLE articles RENAME id TO number`, `UPDATE articles SET body = 'y' WHERE number = 8`, `DELETE FROM articles WHERE number = 9`}},
		{"rewriting type", []string{`ALTER TABLE articles ALTER stars TYPE text USING 'stars: ' || stars`, `INSERT INTO articles (user_id, stars) VALUES (2, 'many')`}},
		{"other type", []string{`ALTER TABLE users ALTER score TYPE bigint`, `ALTER TABLE users ALTER email TYPE varchar(80)`}},
		{"not null after backfill", []string{`UPDATE users SET email = 'none' WHERE email IS NULL`, `UPDATE users SET age = 0 WHERE age IS NULL`, `ALTER TABLE users ALTER age DROP DEFAULT, ALTER score DROP NOT NULL`}},
		{"new table", []string{`CREATE TABLE likes (id serial PRIMARY KEY, user_id bigint REFERENCES users ON DELETE CASCADE, at timestamptz DEFAULT now())`, `INSERT INTO likes (user_id) SELECT id FROM users LIMIT 50`, `CREATE INDEX ON likes (user_id)`}},
		{"new table is followed", []string{`DELETE FROM likes WHERE id < 5`, `INSERT INTO likes (user_id) VALUES (1)`}},
		{"indexes", []string{`CREATE UNIQUE INDEX CONCURRENTLY users_score ON users (score, id)`, `DROP INDEX posts_user`, `ALTER TABLE users ADD CONSTRAINT grown CHECK (age >= 0)`}},
		{"changed foreign key", []string{`ALTER TABLE articles DROP CONSTRAINT posts_user_id_fkey, ADD CONSTRAINT posts_user_id_fkey FOREIGN KEY (user_id) REFERENCES users ON DELETE CASCADE`, `DELETE FROM users WHERE id = 20`}},
		{"label", []string{`ALTER TYPE mood ADD VALUE 'angry' BEFORE 'sad'`, `ALTER TYPE mood ADD VALUE 'glad' AFTER 'sad'`, `UPDATE users SET feels = 'glad' WHERE id = 9`}},
		{"partition", []string{`CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (100) TO (200)`, `INSERT INTO part VALUES (150, 'x')`, `UPDATE part SET id = 160 WHERE id = 50`}},
		{"truncate of a new partition", []string{`TRUNCATE part_2`, `INSERT INTO part VALUES (151, 'x')`}},
		{"attach with rows", []string{`CREATE TABLE part_3 (id int NOT NULL, v text)`, `INSERT INTO part_3 SELECT i, 'brought' FROM generate_series(200, 250) i`,
			`ALTER TABLE part ATTACH PARTITION part_3 FOR VALUES FROM (200) TO (300)`, `DELETE FROM part WHERE id = 201`}},
		{"default of a partitioned table", []string{`ALTER TABLE part ADD COLUMN state text DEFAULT 'new'`, `UPDATE part SET v = 'y' WHERE id = 151`}},
		{"partition made anew", []string{`BEGIN; DROP TABLE part_2; CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (100) TO (200); INSERT INTO part VALUES (170, 'anew'); COMMIT`, `UPDATE part SET v = 'z' WHERE id = 170`}},
		{"drop a partition", []string{`DROP TABLE part_2`}},
		{"detach a partition", []string{`ALTER TABLE part DETACH PARTITION part_3`, `INSERT INTO part_3 VALUES (999, 'own')`}},
		{"trigger that changes keys, and is gone", []string{`CREATE FUNCTION rekey() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.number := NEW.number + 100000; RETURN NEW; END'`,
			`BEGIN; CREATE TRIGGER rekey BEFORE UPDATE ON articles FOR EACH ROW EXECUTE FUNCTION rekey(); UPDATE articles SET body = 'rekey' WHERE number BETWEEN 30 AND 40; DROP TRIGGER rekey ON articles; COMMIT`}},
		{"table without a key", []string{`ALTER TABLE bag ADD COLUMN c int DEFAULT 3`, `INSERT INTO bag VALUES (1, 'b', 4)`, `DELETE FROM bag WHERE a = 2`}},
		{"views with a column", []string{`ALTER TABLE likes ADD COLUMN why text`, `CREATE VIEW liked AS SELECT user_id FROM likes`, `CREATE VIEW liked_twice AS SELECT user_id FROM liked`}},
		{"table made anew", []string{`BEGIN; DROP TABLE likes CASCADE; CREATE TABLE likes (id serial PRIMARY KEY, user_id bigint REFERENCES users ON DELETE CASCADE, at timestamptz DEFAULT now());
			INSERT INTO likes (user_id) SELECT id FROM users LIMIT 5; CREATE INDEX ON likes (user_id); CREATE VIEW liked AS SELECT user_id FROM likes; CREATE VIEW liked_twice AS SELECT user_id FROM liked; COMMIT`}},
		{"table made anew is followed", []string{`DELETE FROM likes WHERE id = 2`, `INSERT INTO likes (user_id) SELECT id FROM users LIMIT 2`}},
		{"drop table", []string{`DROP TABLE likes CASCADE`}},
		{"with rows in one transaction", []string{`BEGIN; ALTER TABLE users ADD COLUMN z int; UPDATE users SET z = 1; ALTER TABLE users RENAME z TO zz; INSERT INTO users (full_name, age, zz) VALUES ('tx', 1, 2); COMMIT`}},
		{"rolled back", []string{`BEGIN; ALTER TABLE users ADD COLUMN gone int; UPDATE users SET gone = 1; ROLLBACK`}},
		{"attach a table that is followed", []string{`ALTER TABLE part ATTACH PARTITION part_3 DEFAULT`, `INSERT INTO part VALUES (5000, 'default')`}},
	} {
		p.sql(t, step.sql...)
		untilInSync(t, p)
		p.requireEqual(t)
		requireSameSchema(t, p)
		t.Log(step.name)
	}
	m := p.migrator(t)
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
	do(t, m, migrator.CommandRevert)
	p.sql(t, `UPDATE users SET zz = 5`)
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
	do(t, m, migrator.CommandComplete)
	p.requireNoTrace(t)
}

// A deploy in the middle of the copy, while the application writes.
func TestDeployInTheMiddleOfTheCopy(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, changingTables...)
	p.sql(t, `INSERT INTO users (name, age, feels) SELECT repeat('u', 200), i, 'happy' FROM generate_series(1, 20000) i`, `INSERT INTO posts (user_id, body) SELECT i, repeat('b', 300) FROM generate_series(1, 20000) i`)
	m := p.migrator(t, func(c *migrator.Config) { c.Copy.MaxBytesPerSecond, c.Copy.ChunkBytes = 4<<20, 128<<10 })
	events, unsubscribe := m.Subscribe(10000)
	defer unsubscribe()
	running, stop := context.WithCancel(t.Context())
	defer stop()
	var g errgroup.Group
	g.Go(func() error { return m.Run(running, migrator.UntilSwitched) })
	for i := range 2 {
		c := p.source.Connect(t)
		g.Go(func() error {
			for n := i; running.Err() == nil; n += 2 {
				for _, sql := range []string{fmt.Sprintf(`UPDATE users SET age = age + 1 WHERE id = %d`, n%20000+1), `INSERT INTO posts (user_id, body) VALUES (1, 'w')`, fmt.Sprintf(`DELETE FROM posts WHERE id = %d`, n*3)} {
					if _, err := c.Exec(t.Context(), sql); err != nil {
						return fmt.Errorf("%s: %w", sql, err)
					}
				}
				time.Sleep(5 * time.Millisecond)
			}
			return nil
		})
	}
	chunks := 0
	for e := range events {
		if e.Kind == migrator.EventChunk {
			chunks++
		}
		if chunks >= 5 {
			break
		}
	}
	deploy := p.source.Connect(t)
	for _, sql := range []string{
		`ALTER TABLE users ADD COLUMN active boolean NOT NULL DEFAULT true`,
		`ALTER TABLE users ADD COLUMN slug text`,
		`CREATE INDEX CONCURRENTLY users_slug ON users (slug)`,
		`UPDATE users SET slug = 's' || id WHERE id <= 10000`, `UPDATE users SET slug = 's' || id WHERE id > 10000`,
		`CREATE TABLE teams (id bigserial PRIMARY KEY, name text, owner bigint REFERENCES users)`, `INSERT INTO teams (name, owner) SELECT 't', id FROM users LIMIT 100`,
		`ALTER TABLE posts RENAME body TO content`, `ALTER TABLE users ALTER slug SET NOT NULL`, `DROP VIEW names`, `ALTER TABLE users DROP COLUMN name`,
		`ALTER TABLE posts ALTER content SET DEFAULT 'w'`,
	} {
		if sql == `ALTER TABLE posts RENAME body TO content` {
			continue // its writers name the column: they would be deployed at the same time
		}
		if sql == `ALTER TABLE posts ALTER content SET DEFAULT 'w'` {
			sql = `ALTER TABLE posts ALTER body SET DEFAULT 'w'`
		}
		execute(t, deploy, sql)
	}
	require.Eventually(t, func() bool { return phase(t, m) == migrator.PhaseReplicating }, 60*time.Second, 50*time.Millisecond)
	time.Sleep(time.Second)
	stop()
	require.ErrorIs(t, g.Wait(), context.Canceled)
	untilInSync(t, p)
	p.requireEqual(t)
	do(t, p.migrator(t), migrator.CommandSwitch)
	p.requireEqual(t)
	requireSameSchema(t, p)
}

func TestPoliciesForSchemaChanges(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, changingTables...)
	untilInSync(t, p)
	run := func(policy migrator.SchemaPolicy) (*migrator.Migrator, error) {
		m := p.migrator(t, func(c *migrator.Config) { c.SchemaChanges = policy })
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		go func() {
			for ctx.Err() == nil {
				if s, err := m.Status(ctx); err == nil && s.State == migrator.StatePaused {
					cancel()
				}
				time.Sleep(50 * time.Millisecond)
			}
		}()
		err := m.Run(ctx, migrator.UntilInSync)
		return m, err
	}
	p.sql(t, `ALTER TABLE users ADD COLUMN email text DEFAULT 'e'`)
	m, err := run(migrator.SchemaPause)
	require.ErrorIs(t, err, context.Canceled)
	s, err := m.Status(t.Context())
	require.NoError(t, err)
	require.Contains(t, s.Message, "column email of public.users is new")
	do(t, m, migrator.CommandResume)
	_, err = run(migrator.SchemaPause)
	require.NoError(t, err)
	p.requireEqual(t)
	requireSameSchema(t, p)

	p.sql(t, `ALTER TABLE users DROP COLUMN email`)
	_, err = run(migrator.SchemaFail)
	require.ErrorContains(t, err, "column email of public.users was dropped")
	_, err = run(migrator.SchemaForward)
	require.NoError(t, err)
	requireSameSchema(t, p)

	p.sql(t, `ALTER TABLE part DROP CONSTRAINT part_pkey, ALTER id DROP NOT NULL`)
	_, err = run(migrator.SchemaForward)
	require.ErrorContains(t, err, "The key of table public.part")
}

// Names that go from one column or table to another, in whatever order they were made.
func TestNamesMove(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, `CREATE TABLE old_items (id int PRIMARY KEY, a text, b text)`, `CREATE TABLE items (id int PRIMARY KEY, a text, b text)`, `CREATE TABLE x (id int PRIMARY KEY)`,
		`CREATE TABLE y (id int PRIMARY KEY)`, `INSERT INTO items SELECT i, 'a', 'b' FROM generate_series(1, 10) i`, `INSERT INTO x VALUES (1)`)
	m := p.migrator(t)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	p.sql(t, `BEGIN; ALTER TABLE items RENAME TO failed_items; ALTER TABLE old_items RENAME TO items; COMMIT`,
		`ALTER TABLE failed_items RENAME b TO c`, `ALTER TABLE failed_items RENAME a TO b`, `UPDATE failed_items SET b = 'changed' WHERE id < 3`, `INSERT INTO items VALUES (1, 'x', 'y')`,
		`BEGIN; ALTER TABLE x RENAME TO z; ALTER TABLE y RENAME TO x; ALTER TABLE z RENAME TO y; INSERT INTO y VALUES (2); COMMIT`,
		`BEGIN; ALTER TABLE items RENAME a TO t; ALTER TABLE items RENAME b TO a; ALTER TABLE items RENAME t TO b; COMMIT`)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	p.requireEqual(t)
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
}

// A table without a key gets a column and loses it before a round has seen that: its images are of rows that nobody has. It is sent whole.
func TestColumnsThatComeAndGo(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, `CREATE TABLE bag (a int, b text)`, `CREATE TABLE spare (a int, b text)`, `CREATE TABLE keyed (id int PRIMARY KEY, v text)`,
		`INSERT INTO bag SELECT i % 7, 'b' FROM generate_series(1, 50) i`, `INSERT INTO spare SELECT * FROM bag`, `INSERT INTO keyed SELECT i, 'k' FROM generate_series(1, 50) i`)
	untilInSync(t, p)
	meddle := []string{
		`ALTER TABLE bag ADD COLUMN c uuid DEFAULT gen_random_uuid()`, `DELETE FROM bag WHERE a = 1`, `UPDATE bag SET b = 'changed' WHERE a = 2`, `ALTER TABLE bag DROP COLUMN c`,
		`ALTER TABLE spare ADD COLUMN c uuid DEFAULT gen_random_uuid()`, `INSERT INTO spare VALUES (9, 'new')`, `ALTER TABLE spare DROP COLUMN c`,
		`ALTER TABLE keyed ADD COLUMN c uuid DEFAULT gen_random_uuid()`, `DELETE FROM keyed WHERE id = 1`, `UPDATE keyed SET id = 100 WHERE id = 2`, `ALTER TABLE keyed DROP COLUMN c`,
	}
	p.sql(t, meddle...)
	untilInSync(t, p)
	p.requireEqual(t)
	p.sql(t, meddle[:4]...)
	p.sql(t, `INSERT INTO bag VALUES (1, 'again'), (1, 'again')`)
	m := p.migrator(t)
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
	execute(t, p.target.Connect(t), `INSERT INTO bag VALUES (1, 'there')`)
	execute(t, p.target.Connect(t), meddle...)
	do(t, m, migrator.CommandRevert)
	p.requireEqual(t)
}

// What a deploy changes beside the tables comes with them. What cannot be given its new form is not taken for done: readiness names it.
func TestDefinitionsBesideTables(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, `CREATE TABLE notes (id int PRIMARY KEY, v text, w text)`, `ALTER TABLE notes ENABLE ROW LEVEL SECURITY`, `CREATE POLICY kept ON notes USING (true)`, `CREATE POLICY gone ON notes USING (true)`,
		`CREATE VIEW shown AS SELECT id, v FROM notes`, `CREATE DOMAIN percentage AS int`, `CREATE FUNCTION helper() RETURNS int LANGUAGE sql AS 'SELECT 1'`)
	untilInSync(t, p)
	p.sql(t, `DROP POLICY gone ON notes`, `ALTER POLICY kept ON notes USING (id > 0)`, `CREATE OR REPLACE FUNCTION helper() RETURNS int LANGUAGE sql AS 'SELECT 2'`,
		`CREATE TABLE later (id int PRIMARY KEY)`, `CREATE FUNCTION laters() RETURNS SETOF later LANGUAGE sql AS 'SELECT * FROM later'`, `CREATE VIEW all_laters AS SELECT * FROM laters()`, `CREATE TYPE state AS ENUM ('new')`)
	untilInSync(t, p)
	m := p.migrator(t)
	s, err := m.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, "ready", s.CutoverReadiness.Level, s.CutoverReadiness.SoftBlockers)
	require.EqualValues(t, 1, countOn(t, p.target, `SELECT count(*) FROM pg_policies WHERE policyname = 'kept' AND qual = '(id > 0)' AND (SELECT count(*) FROM pg_policy) = 1`))
	require.EqualValues(t, 2, countOn(t, p.target, `SELECT helper()`))
	require.Zero(t, countOn(t, p.target, `SELECT count(*) FROM all_laters WHERE 'new'::state IS NULL`))

	p.sql(t, `DROP VIEW shown`, `CREATE VIEW shown AS SELECT id, w FROM notes`, `ALTER DOMAIN percentage ADD CHECK (VALUE <= 100)`, `ALTER TABLE notes ADD COLUMN x int`)
	untilInSync(t, p)
	_, err = m.Do(t.Context(), migrator.CommandSwitch, false)
	refused := new(migrator.RefusedError)
	require.ErrorAs(t, err, &refused)
	require.True(t, refused.CanForce)
	require.Contains(t, refused.Reasons[0], "view public.shown") // the domain's CHECK is held back until the switch
}

// Rows that the target cannot take, whole or not, are an error, and not sent again and again.
func TestImagesThatNeverFit(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, `CREATE TYPE mood AS ENUM ('sad', 'happy')`, `CREATE TABLE bag (feels mood)`, `INSERT INTO bag VALUES ('happy')`)
	untilInSync(t, p)
	execute(t, p.target.Connect(t), `ALTER TYPE mood RENAME VALUE 'sad' TO 'sorry'`)
	p.sql(t, `INSERT INTO bag VALUES ('sad')`)
	err := p.migrator(t).Run(withTimeout(t, time.Minute), migrator.UntilInSync)
	require.ErrorContains(t, err, "mood")
	require.NotErrorIs(t, err, context.DeadlineExceeded)
}
