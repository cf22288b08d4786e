package migrator_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgtest"
	"github.com/heroku-migrator/migrator/internal/shop"
)

// backSchema has what stands in the way of rows that come back: triggers, rules, foreign keys that act, unique values that move.
var backSchema = append([]string{
	`CREATE TABLE parted (id int, at int, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)`,
	`CREATE TABLE parted_a PARTITION OF parted FOR VALUES FROM (0) TO (10)`, `CREATE TABLE parted_b PARTITION OF parted DEFAULT`,
	`INSERT INTO parted SELECT i, i + 0, 'v' FROM generate_series(1, 20) i`,
	`CREATE TABLE bag (a int, b text)`, `INSERT INTO bag SELECT i % 5, NULL FROM generate_series(1, 50) i`,
	`CREATE TABLE users (id int PRIMARY KEY, email text NOT NULL UNIQUE, boss int REFERENCES users ON DELETE SET NULL, seen int GENERATED ALWAYS AS (id * 2) STORED)`,
	`CREATE TABLE posts (id int PRIMARY KEY, author int NOT NULL REFERENCES users ON DELETE CASCADE, title text)`,
	`CREATE TABLE comments (id int PRIMARY KEY, post int NOT NULL REFERENCES posts ON DELETE CASCADE ON UPDATE CASCADE, by text REFERENCES users (email) ON UPDATE CASCADE ON DELETE SET NULL)`,
	`CREATE TABLE guards (id int PRIMARY KEY, post int REFERENCES posts ON DELETE RESTRICT)`,
	`COMMENT ON CONSTRAINT posts_author_fkey ON posts IS 'who wrote it'`,
	`INSERT INTO users SELECT i, 'u' || i, CASE WHEN i > 1 THEN 1 END FROM generate_series(1, 100) i`,
	`INSERT INTO posts SELECT i, 1 + i % 100, 't' FROM generate_series(1, 500) i`,
	`INSERT INTO comments SELECT i, 1 + i % 500, 'u' || (1 + i % 100) FROM generate_series(1, 1000) i`,
	`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.title = 'forbidden' THEN RAISE 'no'; END IF; NEW.title := NEW.title || '!'; RETURN NEW; END $$`,
	`CREATE TRIGGER shout BEFORE INSERT OR UPDATE ON posts FOR EACH ROW EXECUTE FUNCTION refuse()`,
	`CREATE TRIGGER dormant AFTER INSERT ON posts FOR EACH ROW EXECUTE FUNCTION note()`, `ALTER TABLE posts DISABLE TRIGGER dormant`,
	`CREATE TRIGGER replica AFTER INSERT ON parted FOR EACH ROW EXECUTE FUNCTION note()`, `ALTER TABLE parted_a ENABLE REPLICA TRIGGER replica`,
}, "")

// loud is everything on the source that a way back silences, and privileges.
func (p *pair) loud(t *testing.T) map[string]string {
	t.Helper()
	all := p.acl(t)
	rows, err := p.source.ConnectAdmin(t).Query(t.Context(), `
		SELECT 'trigger ' || tgrelid::regclass || ' ' || CASE WHEN tgisinternal THEN concat_ws(' ', 'of', (SELECT conname FROM pg_constraint WHERE oid = tgconstraint), tgfoid::regproc, tgconstrrelid::regclass,
		       row_number() OVER (PARTITION BY tgrelid, (SELECT conname FROM pg_constraint WHERE oid = tgconstraint), tgfoid, tgconstrrelid ORDER BY tgdeferrable, tginitdeferred)) ELSE tgname END,
		       concat_ws(' ', tgenabled, tgdeferrable, tginitdeferred) FROM pg_trigger WHERE tgname NOT LIKE 'heroku\_migrator\_fence'
		UNION ALL SELECT 'rule ' || rulename || ' ' || ev_class::regclass, ev_enabled::text FROM pg_rewrite JOIN pg_class c ON c.oid = ev_class AND c.relkind IN ('r', 'p')
		UNION ALL SELECT 'constraint ' || conname || ' ' || conrelid::regclass, concat_ws(' ', pg_get_constraintdef(oid), obj_description(oid, 'pg_constraint')) FROM pg_constraint WHERE conrelid >= 16384 AND connamespace <> 'heroku_migrator'::regnamespace
		UNION ALL SELECT 'index ' || indexrelid::regclass, pg_get_indexdef(indexrelid) FROM pg_index x JOIN pg_class c ON c.oid = x.indrelid
		WHERE indexrelid >= 16384 AND c.relnamespace::regnamespace::text !~ '^pg_|^heroku_migrator'`)
	require.NoError(t, err)
	var name, value string
	_, err = pgx.ForEachRow(rows, []any{&name, &value}, func() error {
		all[name] = value
		return nil
	})
	require.NoError(t, err)
	return all
}

// I9: whatever is written on the target comes back, and the source is as it was, to the last trigger.
func TestRevertBringsEverythingBack(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]pgtest.DatabaseOption{"silent": nil, "not silent": {pgtest.WithoutReplicationRole()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, opts...)
			p.sql(t, smallSchema...)
			p.sql(t, backSchema[:len(backSchema)-1]...)
			before := p.acl(t)
			m := inSync(t, p)
			untouched := p.loud(t)

			do(t, m, migrator.CommandSwitch) // and back at once: nothing was written
			_, err := p.source.Connect(t).Exec(t.Context(), `DELETE FROM journal`)
			require.ErrorContains(t, err, "permission denied")
			do(t, m, migrator.CommandRevert)
			require.Equal(t, migrator.PhaseReplicating, phase(t, m))
			require.Equal(t, untouched, p.loud(t))
			p.sql(t, `INSERT INTO children (parent, n) VALUES (7, 1)`)

			for range 2 {
				do(t, m, migrator.CommandSwitch)
				p.requireEqual(t)
				ctx, stop := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- m.Run(ctx, "") }()
				execute(t, p.target.Connect(t),
					`INSERT INTO children (parent, n) VALUES (8, 1)`, `UPDATE parents SET name = 'new' || id WHERE id < 3`, `DELETE FROM children WHERE id = 9`,
					`UPDATE children SET id = nextval('children_id_seq') WHERE id = 10`, `TRUNCATE parted_a`, `UPDATE parted SET at = at + 100 WHERE id = 15`,
					`INSERT INTO parted VALUES (1, 5, 'again')`, `DELETE FROM parents WHERE id = 20`, `SELECT nextval('tickets')`,
					`INSERT INTO bag SELECT 3, NULL FROM generate_series(1, 4)`, `DELETE FROM bag WHERE a = 1`, `UPDATE bag SET b = 'x' WHERE a = 2`,
					`INSERT INTO posts VALUES (1000, 5, 'new'), (1001, 6, 'new')`, `INSERT INTO guards VALUES (1, 1000) ON CONFLICT DO NOTHING`,
					`DELETE FROM users WHERE id = 50`, // cascades
					`BEGIN; UPDATE posts SET author = 8 WHERE author = 7; DELETE FROM users WHERE id = 7; INSERT INTO users VALUES (207, 'u7', 1); COMMIT`, // the value goes on
					`BEGIN; UPDATE users SET email = 'tmp' WHERE id = 10; UPDATE users SET email = 'u10' WHERE id = 11; UPDATE users SET email = 'u11' WHERE id = 10; COMMIT`,
					`UPDATE users SET email = 'other' || id WHERE id = 30`, `UPDATE posts SET id = id + 5000 WHERE id IN (1, 2)`,
					`DELETE FROM guards`, `DELETE FROM posts WHERE id = 1000`, `DELETE FROM users WHERE id = 207`, `DELETE FROM posts WHERE id = 1001`)
				execute(t, p.target.Connect(t), `UPDATE users SET email = 'u11' WHERE false`)
				require.Eventually(t, func() bool {
					return count(t, p.source.Connect(t), `SELECT count(*) FROM posts WHERE id > 5000`) == 2
				}, 20*time.Second, 50*time.Millisecond, "it flows back while it is written")
				stop()
				require.ErrorIs(t, <-ended, context.Canceled)
				execute(t, p.target.Connect(t), `UPDATE posts SET title = 'forbidden' WHERE id = 3 AND false`, `INSERT INTO journal (what) VALUES ('last')`,
					`UPDATE posts SET id = id - 5000 WHERE id > 5000`)
				do(t, m, migrator.CommandRevert)
				p.requireEqual(t)
				require.Equal(t, untouched, p.loud(t))
				for _, q := range []string{`SELECT last_value FROM tickets`, `SELECT last_value FROM children_id_seq`} {
					require.Equal(t, count(t, p.target.Connect(t), q), count(t, p.source.Connect(t), q), q)
				}
				p.sql(t, `INSERT INTO children (parent, n) VALUES (7, 1)`, `DELETE FROM parents WHERE id = 2`, `INSERT INTO parents (id, name) OVERRIDING SYSTEM VALUE VALUES (2, 'p2')`)
			}
			do(t, m, migrator.CommandSwitch)
			p.requireEqual(t)
			do(t, m, migrator.CommandComplete)
			p.requireNoTrace(t)
			require.Equal(t, before, p.acl(t))
			p.sql(t, `INSERT INTO children (parent, n) VALUES (7, 1)`)
		})
	}
}

// The shop moves there and back under load, twice, with its writers following: every commit that a client was told of is there.
func TestThereAndBackUnderLoad(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.shop(t, 0.1)
	before := p.acl(t)
	m := p.migrator(t, func(c *migrator.Config) { c.Cutover.CatchUp = 4 * time.Minute }) // on a busy machine
	ctx := withTimeout(t, 12*time.Minute)
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx, "") }()
	require.Eventually(t, func() bool { return phase(t, m) == migrator.PhaseReplicating }, time.Minute, 50*time.Millisecond)
	untouched := p.loud(t)
	rate := 150.0
	if p.capture == migrator.CaptureDecoding { // the race detector slows down what passes through this process
		rate = 50
	}
	writers, err := shop.StartWriters(ctx, p.source.URL, 4, shop.Options{Rate: rate, Rest: 4, KeyChanges: true, Truncate: true, MaxHold: 300 * time.Millisecond})
	require.NoError(t, err)
	defer writers.Stop()
	for range 2 {
		for _, way := range []struct {
			command migrator.CommandName
			to      string
		}{{migrator.CommandSwitch, p.target.URL}, {migrator.CommandRevert, p.source.URL}} {
			at := writers.Stats().Committed
			require.Eventually(t, func() bool { return writers.Stats().Committed > at+2*int64(rate) }, 3*time.Minute, 20*time.Millisecond)
			r, err := m.Do(ctx, way.command, false)
			require.NoError(t, err, way.command)
			t.Log(r.Message)
			if way.command == migrator.CommandRevert {
				require.Equal(t, untouched, p.loud(t))
			}
			writers.Redirect(way.to)
		}
	}
	at := writers.Stats().Committed
	require.Eventually(t, func() bool { return writers.Stats().Committed > at+2*int64(rate) }, 3*time.Minute, 20*time.Millisecond)
	stats := writers.Stop()
	assert.Zero(t, stats.Other, stats.OtherSample)
	require.NoError(t, writers.CheckLedger(ctx, p.source.Connect(t)))
	do(t, m, migrator.CommandSwitch)
	require.NoError(t, writers.CheckLedger(ctx, p.target.Connect(t)))
	p.requireEqual(t)
	do(t, m, migrator.CommandComplete)
	require.NoError(t, <-ended)
	p.requireNoTrace(t)
	require.Equal(t, before, p.acl(t))
}

// A key column of the target whose name another column has for a moment, which its capture takes for the key: the table goes back whole.
func TestKeyColumnRenamedForAMomentOnTheTarget(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, `CREATE TABLE items (v text, id int PRIMARY KEY, other int)`, `INSERT INTO items SELECT 'v', i, i * 1000 FROM generate_series(1, 10) i`)
	m := inSync(t, p)
	do(t, m, migrator.CommandSwitch)
	execute(t, p.target.Connect(t), `BEGIN`, `ALTER TABLE items RENAME id TO pk`, `ALTER TABLE items RENAME other TO id`, `UPDATE items SET v = 'x' WHERE pk = 3`, `DELETE FROM items WHERE pk = 4`,
		`ALTER TABLE items RENAME id TO other`, `ALTER TABLE items RENAME pk TO id`, `COMMIT`)
	do(t, m, migrator.CommandRevert)
	p.requireEqual(t)
	require.EqualValues(t, 9, count(t, p.source.Connect(t), `SELECT count(*) FROM items`))
}

// A column that was dropped on the target and added again has lost its values, without a rewrite and without a trigger: going back would bring
// some of the old ones with it.
func TestColumnDroppedAndAddedAgainOnTheTarget(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, `CREATE TABLE items (id int PRIMARY KEY, a text, b text)`, `INSERT INTO items SELECT i, 'a', 'b' FROM generate_series(1, 10) i`)
	m := inSync(t, p)
	do(t, m, migrator.CommandSwitch)
	execute(t, p.target.Connect(t), `ALTER TABLE items DROP b, ADD b text`, `UPDATE items SET a = 'x' WHERE id = 1`)
	_, err := m.Do(withTimeout(t, time.Minute), migrator.CommandRevert, false)
	if err == nil {
		p.requireEqual(t)
	}
	require.ErrorContains(t, err, "column b of")
}
