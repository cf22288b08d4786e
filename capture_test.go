package migrator_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgtest"
)

// manyTables are tables of every kind, each with something that may make a change go unseen.
var manyTables = []string{
	`CREATE EXTENSION citext`,
	`CREATE TABLE plain (id int PRIMARY KEY, u int UNIQUE, v text)`,
	`CREATE TABLE composite (a int, v text, b text COLLATE "C", PRIMARY KEY (b, a))`,
	`CREATE TABLE part (id int, region text, v text, PRIMARY KEY (id, region)) PARTITION BY LIST (region)`,
	`CREATE TABLE part_eu PARTITION OF part FOR VALUES IN ('eu')`,
	`CREATE TABLE part_us (v text, region text NOT NULL, id int NOT NULL)`, // other column numbers
	`ALTER TABLE part ATTACH PARTITION part_us FOR VALUES IN ('us')`,
	`CREATE TABLE part_rest PARTITION OF part FOR VALUES IN ('jp', 'br') PARTITION BY RANGE (id)`,
	`CREATE TABLE part_rest_1 PARTITION OF part_rest FOR VALUES FROM (0) TO (100)`,
	`CREATE TABLE part_rest_2 PARTITION OF part_rest FOR VALUES FROM (100) TO (10000)`,
	`CREATE TABLE parent (id int PRIMARY KEY, v text)`,
	`CREATE TABLE child (extra text, PRIMARY KEY (id)) INHERITS (parent)`,
	`CREATE TABLE swap (id int, v text, PRIMARY KEY (id) DEFERRABLE)`,
	`CREATE TABLE owner (id int PRIMARY KEY)`,
	`CREATE TABLE owned (id int PRIMARY KEY, owner int REFERENCES owner ON DELETE CASCADE ON UPDATE CASCADE)`,
	`CREATE TABLE owned_null (id int PRIMARY KEY, owner int REFERENCES owner ON DELETE SET NULL ON UPDATE CASCADE)`,
	`CREATE TABLE owned_key (owner int PRIMARY KEY REFERENCES owner ON DELETE CASCADE ON UPDATE CASCADE)`,
	`CREATE TABLE owned_part (owner int PRIMARY KEY REFERENCES owner ON DELETE CASCADE ON UPDATE CASCADE) PARTITION BY RANGE (owner)`,
	`CREATE TABLE owned_part_1 PARTITION OF owned_part FOR VALUES FROM (0) TO (50)`, `CREATE TABLE owned_part_2 PARTITION OF owned_part DEFAULT`,
	`CREATE TABLE tree (id int PRIMARY KEY, up int REFERENCES tree ON DELETE CASCADE)`,
	`CREATE TABLE names (name citext PRIMARY KEY, v text)`,
	`CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`,
	`CREATE TABLE folded (k text COLLATE nocase PRIMARY KEY, v text)`,
	`CREATE TABLE numbers (n numeric PRIMARY KEY, f float8 UNIQUE)`,
	`CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy')`, `CREATE DOMAIN code AS text CHECK (VALUE ~ '^[a-z]+$')`, `CREATE DOMAIN temper AS mood`,
	`CREATE TABLE typed (m mood, c code, u uuid, t temper, a int[], z timestamptz, PRIMARY KEY (m, c, u, a, z))`,
	`CREATE SCHEMA "Select ""x"""`,
	`CREATE TABLE "Select ""x"""."Ta""ble; DROP" ("found" int, tg_name int, "order" int, "old" int, "new" int, "k""e y" text, "heroku_migrator_rows" int,
		PRIMARY KEY ("found", tg_name, "order", "old", "new", "k""e y", "heroku_migrator_rows"))`,
	`CREATE TABLE "Part" ("found" int PRIMARY KEY, "Old" int) PARTITION BY HASH ("found")`, `CREATE TABLE "Part 0" PARTITION OF "Part" FOR VALUES WITH (MODULUS 1, REMAINDER 0)`,
	`CREATE TABLE meddled (id int PRIMARY KEY, v text)`,
	`CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		IF TG_OP = 'INSERT' THEN NEW.id := NEW.id + 1000; END IF;
		IF TG_OP = 'UPDATE' AND NEW.v = 'move' THEN NEW.id := NEW.id + 5000; END IF;
		IF NEW.v = 'suppress' THEN RETURN NULL; END IF;
		NEW.v := upper(NEW.v); RETURN NEW; END $$`,
	`CREATE TRIGGER meddle BEFORE INSERT OR UPDATE ON meddled FOR EACH ROW EXECUTE FUNCTION meddle()`,
	`CREATE TABLE audit (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, twice bigint GENERATED ALWAYS AS (id * 2) STORED, what text)`,
	`CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO audit (what) VALUES (TG_OP); UPDATE plain SET v = v || '+' WHERE id = 1; RETURN NULL; END $$`,
	`CREATE CONSTRAINT TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON meddled DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note()`,
	`CREATE VIEW plain_view AS SELECT id AS number, v AS text FROM plain WHERE id < 1000 WITH CHECK OPTION`,
	`INSERT INTO plain SELECT i, i + 0, 'v' || i FROM generate_series(1, 40) i`,
	`INSERT INTO composite SELECT i, 'v', chr(64 + i) FROM generate_series(1, 9) i`,
	`INSERT INTO part SELECT i, r, 'v' FROM generate_series(1, 200, 9) i, unnest('{eu,us,jp,br}'::text[]) r`,
	`INSERT INTO parent SELECT i, 'v' FROM generate_series(1, 9) i`, `INSERT INTO child SELECT i, 'v', 'e' FROM generate_series(11, 19) i`,
	`INSERT INTO swap SELECT i, 'v' || i FROM generate_series(1, 9) i`,
	`INSERT INTO owner SELECT generate_series(1, 30)`, `INSERT INTO owned SELECT i, i + 0 FROM generate_series(1, 30) i`, `INSERT INTO owned_null SELECT i, i + 0 FROM generate_series(1, 30) i`,
	`INSERT INTO owned_key SELECT generate_series(1, 30)`, `INSERT INTO owned_part SELECT generate_series(1, 30)`,
	`INSERT INTO tree SELECT i, nullif(i / 2, 0) FROM generate_series(1, 30) i`,
	`INSERT INTO names VALUES ('Anna', 'v'), ('Bob', 'v'), ('Carl', 'v')`, `INSERT INTO folded VALUES ('Anna', 'v'), ('Bob', 'v'), ('Carl', 'v')`,
	`INSERT INTO numbers VALUES (1.0, 0), (2, 'NaN'), (3.10, 3)`,
	`INSERT INTO typed SELECT m, 'abc', gen_random_uuid(), m, '{1,2}', now() FROM unnest(enum_range(null::mood)) m`,
	`INSERT INTO "Select ""x"""."Ta""ble; DROP" SELECT i, i + 0, i + 0, i + 0, i + 0, 'k' || i, i FROM generate_series(1, 9) i`, `INSERT INTO "Part" SELECT i, i + 0 FROM generate_series(1, 9) i`,
	`INSERT INTO meddled SELECT i, 'v' FROM generate_series(1, 9) i`,
}

// I1: whoever writes, by whatever statement, leaves the keys. Each step is carried by a round of its own, and
// both sides are compared, leaf by leaf.
func TestEveryKindOfWriteIsCaptured(t *testing.T) {
	t.Parallel()
	w := newWorld(t, manyTables...).live(t)
	w.requireSame(t)
	major := pgtest.SourceVersion()
	conns := map[string]*pgx.Conn{
		"owner": w.source.Connect(t), "superuser": w.source.ConnectAdmin(t), "replica": w.source.ConnectAdmin(t),
		"second role": w.source.AddRole(t, "second").Connect(t),
	}
	execute(t, conns["replica"], `SET session_replication_role = replica`)
	gid := w.source.Name
	for _, step := range []struct {
		name, as string // as: the owner, if empty
		sql      []string
		nothing  bool // changes nothing
		since    int  // major version
	}{
		{name: "insert", sql: []string{`INSERT INTO plain VALUES (100, 100, 'new')`, `INSERT INTO part VALUES (5000, 'jp', 'new')`, `INSERT INTO parent VALUES (100, 'new')`}},
		{name: "insert many", sql: []string{`INSERT INTO plain VALUES (101, 101, 'a'), (102, 102, 'b')`, `INSERT INTO part SELECT i, 'us', 'new' FROM generate_series(1000, 1100) i`}},
		{name: "on conflict", sql: []string{
			`INSERT INTO plain VALUES (101, 1, 'a'), (103, 103, 'new') ON CONFLICT (id) DO UPDATE SET v = plain.v || '!'`,
			`INSERT INTO plain VALUES (104, 1, 'a'), (105, 105, 'new') ON CONFLICT DO NOTHING`,
			`INSERT INTO plain VALUES (106, 101, 'a') ON CONFLICT (u) DO UPDATE SET id = 107`,
			`INSERT INTO part VALUES (1, 'eu', 'a'), (2, 'eu', 'new') ON CONFLICT (id, region) DO UPDATE SET v = 'conflict'`,
			`INSERT INTO child VALUES (11, 'x') ON CONFLICT (id) DO UPDATE SET v = 'conflict', id = 111`,
		}},
		{name: "on conflict do nothing", nothing: true, sql: []string{`INSERT INTO plain VALUES (1, 1, 'a') ON CONFLICT DO NOTHING`}},
		{name: "merge", since: 15, sql: []string{
			`MERGE INTO plain USING (VALUES (1), (2), (3), (200), (201)) AS s (id) ON plain.id = s.id
				WHEN MATCHED AND plain.id = 1 THEN DELETE WHEN MATCHED AND plain.id = 2 THEN UPDATE SET id = 202, v = 'merged'
				WHEN MATCHED THEN UPDATE SET v = 'merged' WHEN NOT MATCHED AND s.id = 201 THEN DO NOTHING WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.id, 'merged')`,
			`INSERT INTO plain VALUES (1, 1, 'back')`,
		}},
		{name: "merge moves rows between partitions", since: 15, sql: []string{
			`MERGE INTO part USING (VALUES (1), (10), (19), (6000)) AS s (id) ON part.id = s.id AND region = 'us'
				WHEN MATCHED AND part.id = 1 THEN DELETE WHEN MATCHED THEN UPDATE SET region = 'eu', id = part.id + 3000
				WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'br', 'merged')`,
			`MERGE INTO part_rest USING (VALUES (28)) AS s (id) ON part_rest.id = s.id AND region = 'jp' WHEN MATCHED THEN UPDATE SET id = 4444`,
		}},
		{name: "merge into an inheritance child", since: 15, sql: []string{`MERGE INTO child USING parent p ON child.id = p.id AND p.id IN (12, 13) WHEN MATCHED AND child.id = 12 THEN DELETE WHEN MATCHED THEN UPDATE SET id = 113`}},
		{name: "update", sql: []string{`UPDATE plain SET v = 'updated' WHERE id < 20`, `UPDATE composite SET v = 'updated' WHERE a = 1`}},
		{name: "key update", sql: []string{`UPDATE plain SET id = 300 WHERE id = 10`, `UPDATE composite SET a = a + 100, b = b || 'x' WHERE a > 5`, `UPDATE child SET id = 300 WHERE id = 14`}},
		{name: "key shift", sql: []string{`UPDATE swap SET id = id + 1`, `UPDATE composite SET a = a + 1`, `UPDATE part SET id = id + 1 WHERE region = 'br'`}},
		{name: "key swap", sql: []string{`UPDATE swap SET id = CASE id WHEN 2 THEN 3 ELSE 2 END WHERE id IN (2, 3)`,
			`BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE swap SET id = 5 WHERE id = 4; UPDATE swap SET id = 4 WHERE v = 'v4'; COMMIT`}},
		{name: "delete", sql: []string{`DELETE FROM plain WHERE id = 11`, `DELETE FROM composite WHERE a = 2`, `DELETE FROM part WHERE id > 1090 AND region = 'us'`, `DELETE FROM child WHERE id = 15`}},
		{name: "delete and insert again", sql: []string{`BEGIN; DELETE FROM plain WHERE id = 12; INSERT INTO plain VALUES (12, 12, 'again'); COMMIT`}},
		{name: "foreign keys: delete", sql: []string{`DELETE FROM owner WHERE id IN (1, 2)`, `DELETE FROM tree WHERE id = 2`}},
		{name: "foreign keys: update", sql: []string{`UPDATE owner SET id = id + 100 WHERE id IN (3, 4, 5)`}},
		{name: "foreign keys: deleted in one statement with other writes", sql: []string{
			`WITH gone AS (DELETE FROM owner WHERE id = 6), more AS (UPDATE owned SET id = id + 1000 WHERE owner IN (7, 8) RETURNING id), ins AS (INSERT INTO owned SELECT id + 5000, 9 FROM more) DELETE FROM owned_key WHERE owner = 10`}},
		{name: "one table twice in a statement", sql: []string{
			`WITH a AS (UPDATE plain SET v = 'cte', id = id + 400 WHERE id IN (13, 14) RETURNING *), b AS (INSERT INTO plain SELECT id + 1, id + 1, 'cte' FROM a WHERE id = 414 RETURNING *), c AS (DELETE FROM plain WHERE id = 15) UPDATE plain SET v = 'outer' WHERE id = 16`}},
		{name: "savepoints", sql: []string{
			`BEGIN; UPDATE plain SET v = 'kept' WHERE id = 17; SAVEPOINT a; UPDATE plain SET v = 'lost', id = 500 WHERE id = 18; ROLLBACK TO a; SAVEPOINT b; UPDATE plain SET v = 'kept too' WHERE id = 19; RELEASE b; COMMIT`,
			`DO $$ BEGIN UPDATE part SET v = 'kept' WHERE region = 'br'; BEGIN DELETE FROM part; RAISE 'x'; EXCEPTION WHEN others THEN INSERT INTO part VALUES (7000, 'eu', 'handler'); END; END $$`,
		}},
		{name: "rolled back", nothing: true, sql: []string{`BEGIN; UPDATE plain SET v = 'lost'; TRUNCATE part; ROLLBACK`}},
		{name: "prepared, not yet committed", nothing: true, sql: []string{`BEGIN; UPDATE plain SET v = 'prepared' WHERE id = 20; DELETE FROM part WHERE region = 'br' AND id < 50; PREPARE TRANSACTION '` + gid + `'`}},
		{name: "prepared, others write", sql: []string{`UPDATE plain SET v = 'another' WHERE id = 21`}},
		{name: "prepared, committed", sql: []string{`COMMIT PREPARED '` + gid + `'`}},
		{name: "prepared, rolled back", nothing: true, sql: []string{`BEGIN; DELETE FROM plain; PREPARE TRANSACTION '` + gid + `'`, `ROLLBACK PREPARED '` + gid + `'`}},
		{name: "replication role", as: "replica", sql: []string{
			`INSERT INTO plain VALUES (600, 600, 'replica')`, `UPDATE plain SET id = 601 WHERE id = 22`, `DELETE FROM plain WHERE id = 23`,
			`INSERT INTO part VALUES (601, 'eu', 'replica')`, `UPDATE part SET region = 'br' WHERE id = 601`, `UPDATE part_us SET id = id + 2000 WHERE id = 1001`, `DELETE FROM part_eu WHERE id = 10`,
			`UPDATE parent SET v = 'replica' WHERE id IN (1, 16)`, `DELETE FROM owner WHERE id = 20`, `TRUNCATE "Part 0"`,
		}},
		{name: "superuser", as: "superuser", sql: []string{`UPDATE plain SET v = 'superuser' WHERE id = 24`, `UPDATE part SET v = 'superuser' WHERE id = 601`}},
		{name: "second role", as: "second role", sql: []string{
			`INSERT INTO plain VALUES (700, 700, 'second')`, `UPDATE plain SET id = 701 WHERE id = 25`, `DELETE FROM plain WHERE id = 26`, `UPDATE part SET region = 'us' WHERE id = 601`, `DELETE FROM child WHERE id = 17`,
		}},
		{name: "hostile session", as: "superuser", sql: []string{`SET search_path = pg_temp; CREATE TEMP TABLE heroku_migrator_rows (id int); CREATE TEMP TABLE plain (id int);
			CREATE FUNCTION pg_temp.pg_current_xact_id() RETURNS xid8 LANGUAGE sql AS $$ SELECT '3'::xid8 $$;
			SET plpgsql.variable_conflict = use_variable; SET datestyle = german; SET row_security = off; SET transform_null_equals = on;
			INSERT INTO public.plain VALUES (750, 750, 'hostile'); UPDATE public.plain SET id = 751 WHERE id = 27; UPDATE public.part SET v = 'hostile' WHERE id = 601`, `DISCARD ALL`}},
		{name: "view", sql: []string{`INSERT INTO plain_view VALUES (800, 'view')`, `UPDATE plain_view SET text = 'view', number = 801 WHERE number = 28`, `DELETE FROM plain_view WHERE number = 29`}},
		{name: "inheritance parent", sql: []string{`UPDATE parent SET v = 'through the parent'`, `UPDATE parent SET id = id + 900 WHERE id IN (2, 18)`, `DELETE FROM parent WHERE id IN (3, 19)`}},
		{name: "leaf", sql: []string{`INSERT INTO part_us VALUES ('leaf', 'us', 8000)`, `UPDATE part_eu SET v = 'leaf', id = id + 1 WHERE id = 7000`, `DELETE FROM part_rest_2 WHERE id = 137`, `INSERT INTO part_rest VALUES (8001, 'br', 'sub-root')`}},
		{name: "row moves between leaves", sql: []string{`UPDATE part SET region = CASE region WHEN 'eu' THEN 'jp' ELSE 'eu' END WHERE id IN (8000, 7001)`, `UPDATE part_rest SET id = 99 WHERE id = 8001`}},
		{name: "case of a citext key", sql: []string{`UPDATE names SET name = 'ANNA' WHERE name = 'anna'`, `DELETE FROM names WHERE name = 'BOB'`, `INSERT INTO names VALUES ('bOB', 'x')`, `INSERT INTO names VALUES ('CARL', 'x') ON CONFLICT (name) DO UPDATE SET name = excluded.name`}},
		{name: "case under a collation", sql: []string{`UPDATE folded SET k = 'ANNA' WHERE k = 'anna'`, `DELETE FROM folded WHERE k = 'BOB'`, `INSERT INTO folded VALUES ('bOB', 'x')`}},
		{name: "numbers that are equal", sql: []string{`UPDATE numbers SET n = 1.00, f = '-0' WHERE n = 1`, `UPDATE numbers SET n = 2.0 WHERE n = 2`, `UPDATE numbers SET n = 'NaN' WHERE n = 3.1`}},
		{name: "types", sql: []string{`UPDATE typed SET m = 'happy', t = 'sad', a = a || 3 WHERE m = 'ok'`, `DELETE FROM typed WHERE m = 'sad'`, `INSERT INTO typed VALUES ('ok', 'x', gen_random_uuid(), 'ok', '{{1},{2}}', 'infinity')`}},
		{name: "names", sql: []string{`UPDATE "Select ""x"""."Ta""ble; DROP" SET "found" = 100, "k""e y" = 'x' WHERE "old" = 1`, `DELETE FROM "Select ""x"""."Ta""ble; DROP" WHERE tg_name = 2`,
			`INSERT INTO "Select ""x"""."Ta""ble; DROP" VALUES (11, 11, 11, 11, 11, '"''', 11)`, `INSERT INTO "Part" VALUES (1, 1), (2, 2)`, `UPDATE "Part" SET "found" = 3 WHERE "found" = 1`}},
		{name: "triggers that change rows", sql: []string{`INSERT INTO meddled VALUES (50, 'insert')`, `UPDATE meddled SET v = 'move' WHERE id = 1001`, `UPDATE meddled SET v = 'suppress' WHERE id = 1002`, `DELETE FROM meddled WHERE id = 1003`}},
		{name: "deferred triggers", sql: []string{`BEGIN; UPDATE meddled SET v = 'a' WHERE id = 1004; SAVEPOINT a; DELETE FROM meddled WHERE id = 1005; ROLLBACK TO a; SET CONSTRAINTS ALL IMMEDIATE; UPDATE meddled SET v = 'b' WHERE id = 1006; COMMIT`}},
		{name: "truncate", sql: []string{`TRUNCATE composite`}},
		{name: "truncate and insert", sql: []string{`BEGIN; INSERT INTO composite VALUES (1, 'lost', 'x'); TRUNCATE composite; INSERT INTO composite VALUES (2, 'kept', 'x'); COMMIT`, `INSERT INTO composite VALUES (3, 'after', 'x')`}},
		{name: "truncate rolled back to a savepoint", sql: []string{`BEGIN; SAVEPOINT a; TRUNCATE composite; ROLLBACK TO a; INSERT INTO composite VALUES (4, 'x', 'x'); COMMIT`}},
		{name: "truncate a leaf", sql: []string{`BEGIN; TRUNCATE part_us; INSERT INTO part VALUES (9000, 'us', 'after'); UPDATE part SET region = 'us' WHERE id = 99; COMMIT`}},
		{name: "truncate a sub-root", sql: []string{`TRUNCATE part_rest`, `INSERT INTO part VALUES (9001, 'br', 'after')`}},
		{name: "truncate the root", sql: []string{`TRUNCATE part`, `INSERT INTO part VALUES (9002, 'eu', 'after')`}},
		{name: "truncate only the parent", sql: []string{`TRUNCATE ONLY parent`, `INSERT INTO parent VALUES (1, 'after')`}},
		{name: "truncate the parent with its children", sql: []string{`INSERT INTO child VALUES (500, 'before')`, `TRUNCATE parent`, `INSERT INTO child VALUES (1, 'after')`}},
		{name: "truncate cascade", sql: []string{`TRUNCATE owner CASCADE`, `INSERT INTO owner VALUES (1)`, `INSERT INTO owned_part VALUES (1)`}},
		{name: "truncate several", sql: []string{`TRUNCATE plain, names RESTART IDENTITY`, `INSERT INTO plain VALUES (1, 1, 'after')`}},
	} {
		t.Run(step.name, func(t *testing.T) { //nolint:paralleltest // one after the other
			if step.since > major {
				t.Skipf("needs Postgres %d", step.since)
			}
			before := contents(t, w.adminSource)
			if step.as == "" {
				step.as = "owner"
			}
			execute(t, conns[step.as], step.sql...)
			if step.nothing {
				require.Equal(t, before, contents(t, w.adminSource))
			} else {
				require.NotEqual(t, before, contents(t, w.adminSource), "the step does nothing")
			}
			w.round(t)
			w.requireSame(t)
		})
	}
	t.Run("copy", func(t *testing.T) { //nolint:paralleltest // last
		for table, rows := range map[string]string{"plain": "900\t900\tcopied\n901\t901\tcopied\n", "part": "900\teu\tcopied\n901\tjp\tcopied\n", "part_us": "copied\tus\t902\n", "child": "900\tx\ty\n"} {
			_, err := conns["second role"].PgConn().CopyFrom(t.Context(), strings.NewReader(rows), `COPY `+table+` FROM STDIN`)
			require.NoError(t, err)
		}
		w.round(t)
		w.requireSame(t)
	})
	require.NoError(t, w.src.Trim(t.Context(), w.tables(t), w.state(t).Position))
	require.Zero(t, w.logged(t))
	require.Zero(t, count(t, w.adminSource, `SELECT count(*) FROM heroku_migrator.truncated`))
}

// I1: operators for enums do not take domains over enums as they are.
func TestKeyOfADomainOverAnEnum(t *testing.T) {
	t.Parallel()
	w := newWorld(t, `CREATE TYPE mood AS ENUM ('sad', 'ok')`, `CREATE DOMAIN temper AS mood`, `CREATE TABLE typed (t temper PRIMARY KEY)`, `INSERT INTO typed VALUES ('ok')`).live(t)
	w.sql(t, `UPDATE typed SET t = 'sad'`)
	w.round(t)
	w.requireSame(t)
}

const partTables = `CREATE TABLE part (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
	CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100);
	CREATE TABLE part_sub PARTITION OF part FOR VALUES FROM (100) TO (200) PARTITION BY RANGE (id);
	CREATE TABLE part_sub_1 PARTITION OF part_sub FOR VALUES FROM (100) TO (150);
	INSERT INTO part VALUES (1, 'a'), (101, 'b')`

// I1: writes to a partition that is made after capture are captured. (The target does not have it: that is
// drift, and refuses a switch. Here it is made by hand.)
func TestLeafMadeAfterCapture(t *testing.T) {
	t.Parallel()
	w := newWorld(t, partTables).live(t)
	admin := w.source.ConnectAdmin(t)
	create := []string{`CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (200) TO (300)`, `CREATE TABLE part_sub_2 PARTITION OF part_sub FOR VALUES FROM (150) TO (200)`}
	w.sql(t, create...)
	execute(t, w.target.Connect(t), create...)
	w.sql(t, `INSERT INTO part VALUES (201, 'x'), (151, 'x')`, `INSERT INTO part_2 VALUES (202, 'x')`)
	execute(t, admin, `SET session_replication_role = replica`, `INSERT INTO part_sub_2 VALUES (152, 'x')`, `UPDATE part SET id = 203 WHERE id = 101`)
	w.round(t)
	w.requireSame(t)
}

// I1: TRUNCATE of such a partition is not captured, so the switch has to be refused, even where the target has
// the partition too.
func TestLeafMadeAfterCaptureRefusesTheSwitch(t *testing.T) {
	t.Parallel()
	w := newWorld(t, partTables).live(t)
	_, err := w.adminTarget.Exec(t.Context(), `UPDATE heroku_migrator.migration SET phase = 'replicating'`)
	require.NoError(t, err)
	hard, soft, err := migrator.Readiness(t.Context(), w.src, w.dst)
	require.NoError(t, err)
	require.Empty(t, append(hard, soft...))
	create := `CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (200) TO (300)`
	w.sql(t, create)
	execute(t, w.target.Connect(t), create)
	hard, _, err = migrator.Readiness(t.Context(), w.src, w.dst)
	require.NoError(t, err)
	require.NotEmpty(t, hard)
	_, err = migrator.Cutover(t.Context(), w.src, w.dst, migrator.CutoverConfig{Force: true})
	require.ErrorAs(t, err, new(*migrator.RefusedError))
}

// writer updates the table all the time, and remembers its longest wait.
func (w *world) writer(t *testing.T, table string) (stop func() time.Duration) {
	t.Helper()
	c := w.source.Connect(t)
	ctx, cancel := context.WithCancel(t.Context())
	var longest time.Duration
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			began := time.Now()
			_, err := c.Exec(context.WithoutCancel(ctx), `UPDATE `+table+` SET v = 'writer' WHERE id = 1`)
			if state(err) != "42501" { // the fence
				assert.NoError(t, err)
			}
			longest = max(longest, time.Since(began))
			time.Sleep(5 * time.Millisecond)
		}
	})
	var once sync.Once
	stop = func() time.Duration {
		once.Do(func() { cancel(); wg.Wait() })
		return longest
	}
	t.Cleanup(func() { stop() })
	return stop
}

// I2, I7: a transaction that writes while capture is installed is waited for, in attempts that give up
// soon, since writers queue behind them; so it is for the fence, and for a prepared transaction.
func TestNobodyWaitsLongForCaptureAndFence(t *testing.T) {
	t.Parallel()
	w := newWorld(t, `CREATE TABLE items (id int PRIMARY KEY, v text)`, `INSERT INTO items SELECT i, 'x' FROM generate_series(1, 10) i`)
	require.NoError(t, migrator.CloneSchema(t.Context(), w.src, w.dst, migrator.CloneSchemaConfig{}))
	stop := w.writer(t, "items")
	cat, err := w.src.Catalog(t.Context())
	require.NoError(t, err)
	for name, attempt := range map[string]func() error{
		"capture": func() error { return w.src.Capture(t.Context(), cat.Tables[0]) },
		"fence":   func() error { return w.src.Fence(t.Context(), cat.Tables, migrator.FenceConfig{}) },
	} {
		open := begin(t, w.source, `UPDATE items SET v = 'open' WHERE id = 2`)
		for range 2 {
			began := time.Now()
			err := attempt()
			require.ErrorIs(t, err, migrator.ErrBusy, name)
			require.True(t, migrator.Retryable(err))
			require.ErrorContains(t, err, "pid ")
			require.Less(t, time.Since(began), 2500*time.Millisecond)
		}
		if name == "fence" {
			_, err := open.Exec(t.Context(), `PREPARE TRANSACTION '`+w.source.Name+`'`)
			require.NoError(t, err)
			require.ErrorIs(t, attempt(), migrator.ErrBusy)
			w.sql(t, `COMMIT PREPARED '`+w.source.Name+`'`)
			_ = open.Rollback(t.Context()) // it has ended
		} else {
			commit(t, open)
		}
		require.Eventually(t, func() bool { return attempt() == nil }, 10*time.Second, 10*time.Millisecond, name)
		require.NoError(t, attempt(), "again")
		require.NoError(t, w.src.Unfence(t.Context()))
	}
	require.Less(t, stop(), 2500*time.Millisecond)
	w.captured(t)
	require.NoError(t, migrator.Copy(t.Context(), w.src, w.dst, migrator.CopyConfig{}))
	w.indexed(t)
	w.requireSame(t)
}

// I5: transactions that write to several tables, one after the other and in any order, as those of any application do.
// What was committed is there, whole transactions alone, and the fence needs few attempts.
func TestFenceAmidTransactionsOverSeveralTables(t *testing.T) {
	t.Parallel()
	w := newWorld(t, `CREATE TABLE a (id int PRIMARY KEY, v int)`, `CREATE TABLE b (id int PRIMARY KEY, v int)`, `CREATE TABLE c (id int PRIMARY KEY, v int)`,
		`INSERT INTO a SELECT i, 0 FROM generate_series(1, 100) i`, `INSERT INTO b SELECT * FROM a`, `INSERT INTO c SELECT * FROM a`).live(t)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var committed, refused atomic.Int64
	var conns []*pgx.Conn
	for range 6 {
		conns = append(conns, w.source.Connect(t))
	}
	t.Cleanup(func() { stop(); wg.Wait() }) // before the connections are closed
	for i, c := range conns {
		order := [][]string{{"a", "b", "c"}, {"c", "a", "b"}, {"b", "c", "a"}}[i%3]
		wg.Go(func() {
			for ctx.Err() == nil { // a row of its own: only our locks could deadlock
				tx, err := c.Begin(context.WithoutCancel(ctx))
				if !assert.NoError(t, err) {
					return
				}
				for _, table := range order {
					if _, err = tx.Exec(context.WithoutCancel(ctx), fmt.Sprintf(`UPDATE %s SET v = v + 1 WHERE id = %d`, table, i+1)); err != nil {
						break
					}
					time.Sleep(time.Millisecond)
				}
				switch {
				case err == nil:
					assert.NoError(t, tx.Commit(context.WithoutCancel(ctx)))
					committed.Add(1)
				case state(err) == "42501":
					refused.Add(1)
					assert.NoError(t, tx.Rollback(context.WithoutCancel(ctx)))
				default:
					assert.NoError(t, err)
					return
				}
			}
		})
	}
	for range 3 {
		time.Sleep(100 * time.Millisecond)
		attempts := 0
		require.Eventually(t, func() bool {
			attempts++
			return w.src.Fence(t.Context(), w.tables(t), migrator.FenceConfig{}) == nil
		}, 20*time.Second, 10*time.Millisecond)
		require.Less(t, attempts, 5)
		before := committed.Load()
		sum := count(t, w.adminSource, `SELECT sum(v) FROM a`)
		require.Equal(t, []int64{sum, sum}, []int64{count(t, w.adminSource, `SELECT sum(v) FROM b`), count(t, w.adminSource, `SELECT sum(v) FROM c`)})
		at := refused.Load()
		require.Eventually(t, func() bool { return refused.Load() > at+50 }, 5*time.Second, time.Millisecond)
		require.Equal(t, sum, count(t, w.adminSource, `SELECT sum(v) FROM c`))
		require.Equal(t, sum, committed.Load())
		require.LessOrEqual(t, before, sum)
		w.round(t)
		w.requireSame(t)
		require.NoError(t, w.src.Unfence(t.Context()))
	}
}

// I7: an application that takes locks in another order than the fence is never the victim of a deadlock: only one
// table is locked at a time.
func TestFenceNeverDeadlocksWithTheApplication(t *testing.T) {
	t.Parallel()
	w := newWorld(t, `CREATE TABLE a (id int PRIMARY KEY, v text)`, `CREATE TABLE b (id int PRIMARY KEY, v text)`, `INSERT INTO a VALUES (1)`, `INSERT INTO b VALUES (1)`).live(t)
	app := begin(t, w.source, `UPDATE a SET v = 'app'`)
	fenced, tables := make(chan error, 1), []*migrator.Table{w.table(t, "b"), w.table(t, "a")}
	go func() { fenced <- w.src.Fence(t.Context(), tables, migrator.FenceConfig{}) }()
	require.Eventually(t, func() bool {
		return count(t, w.adminSource, `SELECT count(*) FROM pg_locks WHERE relation = 'a'::regclass AND mode = 'ShareRowExclusiveLock' AND NOT granted`) == 1
	}, 5*time.Second, 2*time.Millisecond)
	began := time.Now()
	_, err := app.Exec(t.Context(), `UPDATE b SET v = 'app'`)
	require.NoError(t, err)
	require.Less(t, time.Since(began), 500*time.Millisecond)
	require.ErrorIs(t, <-fenced, migrator.ErrBusy)
	commit(t, app)
	w.sql(t, `UPDATE a SET v = 'no trace of the fence'`)
	w.round(t)
	w.requireSame(t)
}

// I5: nothing commits after Fence has returned, whoever writes and by whatever statement; Unfence lets all of
// them write at once.
func TestNothingCommitsBehindTheFence(t *testing.T) {
	t.Parallel()
	w := newWorld(t, `CREATE TABLE items (id bigserial PRIMARY KEY, v text)`, partTables,
		`CREATE TABLE parent (id int PRIMARY KEY, v text)`, `CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent)`,
		`CREATE VIEW items_view AS SELECT * FROM items`, `INSERT INTO items (v) VALUES ('x')`, `INSERT INTO child VALUES (1, 'x')`,
		`CREATE FUNCTION definer() RETURNS void LANGUAGE sql SECURITY DEFINER AS 'UPDATE public.items SET v = v'`).live(t)
	second := w.source.AddRole(t, "second")
	var wg sync.WaitGroup
	var refused atomic.Int32
	ctx, stop := context.WithCancel(t.Context())
	t.Cleanup(func() { stop(); wg.Wait() })
	for i, db := range []*pgtest.Database{w.source, second, w.source, second} {
		c := db.Connect(t)
		statement := []string{`INSERT INTO items (v) VALUES ('hammer')`, `UPDATE part SET v = random()::text WHERE id = 1`, `UPDATE part_sub_1 SET v = random()::text`, `INSERT INTO child SELECT max(id) + 1 FROM child`}[i]
		wg.Go(func() {
			for ctx.Err() == nil {
				_, err := c.Exec(context.WithoutCancel(ctx), statement)
				if state(err) == "42501" {
					refused.Add(1)
				} else if !assert.NoError(t, err) {
					return
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	// Sessions that knew the tables before.
	reader := begin(t, w.source, `SET TRANSACTION ISOLATION LEVEL REPEATABLE READ`, `SELECT count(*) FROM items, part, parent`)
	prepared := w.source.Connect(t)
	execute(t, prepared, `PREPARE ins AS INSERT INTO items (v) VALUES ('prepared')`, `EXECUTE ins`, `EXECUTE ins`)
	for _, round := range []string{"first", "again"} {
		time.Sleep(50 * time.Millisecond) // let them write
		require.Eventually(t, func() bool {
			err := w.src.Fence(t.Context(), w.tables(t), migrator.FenceConfig{})
			if err != nil && !errors.Is(err, migrator.ErrBusy) {
				require.NoError(t, err)
			}
			return err == nil
		}, 20*time.Second, 10*time.Millisecond, round)
		before := contents(t, w.adminSource)
		refused.Store(0)
		require.Eventually(t, func() bool { return refused.Load() > 100 }, 5*time.Second, time.Millisecond)
		require.Equal(t, before, contents(t, w.adminSource), round)
		refuse := func(c *pgx.Conn, who, sql string) {
			_, err := c.Exec(t.Context(), sql)
			assert.Equal(t, "42501", state(err), "%s %s: %s: %v", round, who, sql, err)
		}
		if round == "first" {
			_, err := reader.Exec(t.Context(), `UPDATE part SET v = 'an old snapshot' WHERE id = 1`)
			require.Equal(t, "42501", state(err))
			require.NoError(t, reader.Rollback(t.Context()))
		}
		refuse(prepared, "prepared statement", `EXECUTE ins`)
		owner, superuser := w.source.Connect(t), w.source.ConnectAdmin(t)
		replica, other := w.source.ConnectAdmin(t), second.Connect(t)
		execute(t, replica, `SET session_replication_role = replica`)
		for who, c := range map[string]*pgx.Conn{"owner": owner, "superuser": superuser, "replica": replica, "second role": other} {
			for _, sql := range []string{
				`INSERT INTO items (v) VALUES ('x')`, `UPDATE items SET v = 'x'`, `DELETE FROM items`, `INSERT INTO part VALUES (99, 'x')`, `INSERT INTO part_1 VALUES (99, 'x')`, `UPDATE part_sub_1 SET v = 'x'`,
				`DELETE FROM part`, `UPDATE parent SET v = 'x'`, `INSERT INTO child VALUES (-1)`, `WITH x AS (DELETE FROM items RETURNING 1) SELECT count(*) FROM x`,
				`INSERT INTO items (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET v = 'x'`, `SELECT definer()`,
			} {
				refuse(c, who, sql)
			}
			_, err := c.PgConn().CopyFrom(t.Context(), strings.NewReader("99\tx\n"), `COPY part_1 FROM STDIN`)
			assert.Equal(t, "42501", state(err), "%s: COPY", who)
			if who != "second role" {
				for _, sql := range []string{`TRUNCATE items`, `TRUNCATE part`, `TRUNCATE part_sub`, `TRUNCATE part_1`, `TRUNCATE ONLY parent`, `TRUNCATE parent`, `INSERT INTO items_view (v) VALUES ('x')`} {
					refuse(c, who, sql)
				}
			}
		}
		require.Equal(t, before, contents(t, w.adminSource), round)
		w.round(t)
		w.requireSame(t)

		// A reader is in nobody's way.
		held := begin(t, w.source, `SELECT count(*) FROM items, part, parent`)
		began := time.Now()
		require.NoError(t, w.src.Unfence(t.Context()))
		execute(t, prepared, `EXECUTE ins`, `UPDATE part SET v = 'open' WHERE id = 1`)
		execute(t, other, `UPDATE parent SET v = 'open'`)
		require.Less(t, time.Since(began), 500*time.Millisecond)
		commit(t, held)
	}
	stop()
	wg.Wait()
	w.round(t)
	w.requireSame(t)
}

// I5: a partitioned partition takes rows by its own name too.
func TestFenceOfAPartitionThatIsPartitioned(t *testing.T) {
	t.Parallel()
	w := newWorld(t, partTables).live(t)
	require.NoError(t, w.src.Fence(t.Context(), w.tables(t), migrator.FenceConfig{}))
	before := contents(t, w.adminSource)
	c := w.source.Connect(t)
	for _, sql := range []string{`INSERT INTO part_sub VALUES (102, 'through the fence')`, `UPDATE part_sub SET v = 'through the fence'`, `DELETE FROM part_sub`, `TRUNCATE part_sub`} {
		_, err := c.Exec(t.Context(), sql)
		assert.Equal(t, "42501", state(err), sql)
	}
	require.Equal(t, before, contents(t, w.adminSource))
}

// I5: so does one that was made after the migration began.
func TestFenceOfALeafMadeAfterCapture(t *testing.T) {
	t.Parallel()
	w := newWorld(t, partTables).live(t)
	w.sql(t, `CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (200) TO (300)`)
	err := w.src.Fence(t.Context(), w.tables(t), migrator.FenceConfig{})
	if err != nil {
		return // refused is as good
	}
	_, err = w.source.Connect(t).Exec(t.Context(), `INSERT INTO part_2 VALUES (202, 'through the fence')`)
	require.Equal(t, "42501", state(err), fmt.Sprint(err))
}
