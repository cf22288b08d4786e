package migrator_test

import (
	"context"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/heroku-migrator/migrator"
)

// keylessTables have rows that only their content tells apart, or nothing.
var keylessTables = []string{
	`CREATE TYPE pair AS (a int, b text)`, `CREATE TYPE mood AS ENUM ('sad', 'happy')`,
	`CREATE TABLE bag (a int, b text)`,
	`CREATE TABLE nullable (a int UNIQUE, b text)`,
	`CREATE TABLE typed (f4 real, f8 float8, n numeric, m money, t timestamp, z timestamptz, d date, i interval, tt
		timetz, b bytea, j json, jb jsonb,
		doc xml, r int4range, arr text[], p pair, e mood, c regclass, bits varbit, "quoted "" name" text)`,
	`CREATE TABLE made (id bigint GENERATED ALWAYS AS IDENTITY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED)`,
	`CREATE TABLE part (a int, b text) PARTITION BY RANGE (a)`,
	`CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100)`,
	`CREATE TABLE part_2 (gone int, b text, a int)`, // other column numbers, another order
	`ALTER TABLE part_2 DROP COLUMN gone`, `ALTER TABLE part ATTACH PARTITION part_2 FOR VALUES FROM (100) TO (200)`,
	`CREATE TABLE parent (a int, b text)`, `CREATE TABLE child (c text) INHERITS (parent)`,
	`CREATE UNLOGGED TABLE loose (a int)`,
	`CREATE TABLE dropped (gone text, a int, b text)`, `ALTER TABLE dropped DROP COLUMN gone`,
	`INSERT INTO bag SELECT i % 7, CASE WHEN i % 3 > 0 THEN 'b' || i % 2 END FROM generate_series(1, 100) i`,
	`INSERT INTO bag SELECT NULL, NULL FROM generate_series(1, 5)`,
	`INSERT INTO nullable VALUES (1, 'x'), (NULL, 'x'), (NULL, 'x')`,
	`INSERT INTO part SELECT i % 200, 'v' || i % 3 FROM generate_series(1, 600) i`,
	`INSERT INTO parent SELECT i % 5, 'p' FROM generate_series(1, 20) i`, `INSERT INTO child SELECT i % 5, 'p', 'c' FROM
		generate_series(1, 20) i`,
	`INSERT INTO made (a) SELECT i % 3 FROM generate_series(1, 20) i`,
	`INSERT INTO dropped SELECT i, 'd' FROM generate_series(1, 20) i`,
}

// I1 and I4 for tables without a key: whatever is written, by sessions with whatever settings, both sides hold the same
// multiset of rows.
func TestTablesWithoutAKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t, keylessTables...).live(t)
	w.requireSame(t)
	odd := w.source.Connect(t) // prints everything in another way
	execute(t, odd, `SET DateStyle = 'SQL, DMY'; SET IntervalStyle = 'iso_8601'; SET TimeZone = 'Asia/Kolkata'; SET
		extra_float_digits = -3; SET bytea_output = 'escape'; SET search_path = public, pg_catalog`)
	plain := w.source.Connect(t)
	values := `(1.1::real / 3, 1e300::float8 / 3, 'NaN', 12.34, '2026-01-02 03:04:05.678901',
		'2026-01-02 03:04:05+05:30', '2026-02-03', '1 year 2 days 03:04:05.6', '03:04+01',
		'\x00ff', '{"b": 1, "a": 1, "b": 2}', '{"b": 1, "a": 1}', '<a/>', '[1,5)', '{a,NULL,"q\"uote"}', '(1,"x,y")',
		'sad', 'bag', '101', E'tab\t newline\n back\\slash')`
	for _, step := range []struct {
		name string
		on   *pgx.Conn
		sql  []string
	}{
		{"insert", plain, []string{`INSERT INTO bag VALUES (1, 'b1'), (NULL, NULL), (NULL, NULL), (99, 'new')`,
			`INSERT INTO typed VALUES ` + values}},
		{"insert with odd settings", odd, []string{`INSERT INTO typed VALUES ` + values,
			`INSERT INTO typed DEFAULT VALUES`}},
		{"update one of equals", plain, []string{`UPDATE bag SET b = 'changed' WHERE ctid = (SELECT min(ctid) FROM bag
			WHERE a = 1 AND b = 'b1')`}},
		{"delete one of equals", plain, []string{`DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag WHERE a IS
			NULL AND b IS NULL)`}},
		{"change and back", plain, []string{`UPDATE bag SET b = b || '!'`, `UPDATE bag SET b = left(b, -1)`}},
		{"update all", plain, []string{`UPDATE bag SET a = a + 1`, `UPDATE nullable SET b = NULL`,
			`UPDATE made SET a = a + 1`}},
		{"with odd settings", odd, []string{`UPDATE typed SET f8 = f8 / 7, i = i * 2, z = z + '1 day' WHERE f8 IS NOT
			NULL`, `DELETE FROM typed WHERE ctid = (SELECT min(ctid) FROM typed)`}},
		{"equal but not the same", plain, []string{`UPDATE typed SET n = 1.0`, `UPDATE typed SET n = 1.00`,
			`UPDATE typed SET f8 = '-0', j = '{"a":  1}'`}},
		{"generated", plain, []string{`INSERT INTO made (a) VALUES (7), (7)`, `INSERT INTO made (id, a) OVERRIDING
			SYSTEM VALUE VALUES (1, 1), (1, 1)`, `DELETE FROM made WHERE a = 2`}},
		{"partitions", plain, []string{`INSERT INTO part VALUES (5, 'v1'), (105, 'v1')`,
			`UPDATE part SET a = a + 100 WHERE a < 10`, `UPDATE part_2 SET b = 'leaf' WHERE a > 190`,
			`DELETE FROM part WHERE a BETWEEN 95 AND 105`, `INSERT INTO part_2 (a, b) VALUES (150, 'v1'), (150,
				'v1')`}},
		{"inheritance", plain, []string{`UPDATE parent SET b = 'q' WHERE a = 1`, `DELETE FROM ONLY parent WHERE a = 2`,
			`INSERT INTO child VALUES (1, 'q', NULL)`, `DELETE FROM parent WHERE a = 3`}},
		{"unlogged", plain, []string{`INSERT INTO loose SELECT i % 2 FROM generate_series(1, 9) i`}},
		{"after a dropped column", plain, []string{`INSERT INTO dropped VALUES (1, 'd')`,
			`UPDATE dropped SET b = NULL WHERE a = 1`, `DELETE FROM dropped WHERE a = 2`}},
		{"truncate", plain, []string{`INSERT INTO bag VALUES (1, 'lost')`, `TRUNCATE bag`,
			`INSERT INTO bag VALUES (1, 'b1'), (1, 'b1'), (NULL, 'x')`, `DELETE FROM bag WHERE a IS NULL`}},
		{"truncate a leaf", plain, []string{`TRUNCATE part_1`, `INSERT INTO part VALUES (1, 'after')`}},
		{"many", plain, []string{`INSERT INTO bag SELECT i % 50, 'm' || i % 40 FROM generate_series(1, 20000) i`}},
		{"delete many", plain, []string{`DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag ORDER BY a, b, ctid LIMIT
			9000)`, `UPDATE bag SET a = 1 WHERE a = 2`}},
		{"images that are too long", plain, []string{
			`SET heroku_migrator.widest = 1500000`, `INSERT INTO bag SELECT 3, repeat('w', 2000000)`,
			`INSERT INTO part SELECT 3, repeat('w', 2000000)`, `UPDATE bag SET a = 4 WHERE a = 3`, `DELETE FROM part
				WHERE a = 3`,
			`RESET heroku_migrator.widest`, `INSERT INTO bag SELECT 5, repeat('w', 2000000)`,
		}},
		{"nothing", plain, []string{`UPDATE bag SET a = a WHERE false`}},
	} {
		for _, sql := range step.sql {
			execute(t, step.on, sql)
		}
		w.round(t)
		w.requireSame(t)
		w.round(t) // once more changes nothing
		w.requireSame(t)
		t.Log(step.name)
	}
	// A row that is not there any more is noticed, not passed over.
	execute(t, w.adminTarget, `DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag WHERE a = 30)`)
	execute(t, plain, `DELETE FROM bag WHERE a = 30`)
	b := w.begin(t)
	require.ErrorAs(t, w.dst.Apply(t.Context(), b.snap, b.round), new(*migrator.ImagesError))
	require.NoError(t, b.snap.Close(t.Context()))
	// The application may change its columns: its writes go on.
	execute(t, plain, `ALTER TABLE bag ADD COLUMN c int DEFAULT 1, DROP COLUMN b; INSERT INTO bag VALUES (1, 2); UPDATE
		bag SET a = 2; DELETE FROM bag`)
	execute(t, plain, `ALTER TABLE part RENAME a TO z; INSERT INTO part VALUES (1, 'x'), (101, 'x'); UPDATE part SET b =
		'y'`)
}

// I2 and I3: what is written while the table is copied is neither lost nor counted twice.
func TestTableWithoutAKeyIsWrittenMeanwhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, `CREATE TABLE bag (a int, b text)`, `CREATE TABLE keyed (id int PRIMARY KEY)`,
		`CREATE TABLE part (a int, b text) PARTITION BY HASH (a)`, `CREATE TABLE part_0 PARTITION OF part FOR VALUES
			WITH (MODULUS 2, REMAINDER 0)`,
		`CREATE TABLE part_1 PARTITION OF part FOR VALUES WITH (MODULUS 2, REMAINDER 1)`,
		`INSERT INTO bag SELECT i % 100, repeat('x', i % 5) FROM generate_series(1, 50000) i`, `INSERT INTO part TABLE
			bag`, `INSERT INTO keyed SELECT generate_series(1, 1000)`)
	writing, stop := context.WithCancel(t.Context())
	defer stop()
	var writers errgroup.Group
	for i := range 3 {
		conn := w.source.Connect(t)
		random := rand.New(rand.NewPCG(uint64(i), 7))
		writers.Go(func() error {
			for writing.Err() == nil {
				table := []string{"bag", "part"}[random.IntN(2)]
				a, b := random.IntN(120), random.IntN(120)
				sql := []string{
					`INSERT INTO TABLE SELECT $A, repeat('x', i % 5) FROM generate_series(1, 20) i`,
					`UPDATE TABLE SET a = $B WHERE ctid IN (SELECT ctid FROM TABLE WHERE a = $A LIMIT 10)`,
					`DELETE FROM TABLE WHERE a = $A AND b = 'x'`,
					`UPDATE TABLE SET b = b || 'y' WHERE a = $A AND length(b) < 9`,
					`BEGIN; INSERT INTO TABLE VALUES ($A, 'rolled back'); SAVEPOINT s; DELETE FROM TABLE WHERE a = $B;
						ROLLBACK TO s; UPDATE TABLE SET b = NULL WHERE a = $A; COMMIT`,
					`INSERT INTO keyed SELECT max(id) + 1 FROM keyed ON CONFLICT DO NOTHING`,
				}[random.IntN(6)]
				sql = strings.NewReplacer("TABLE", table, "$A", strconv.Itoa(a), "$B", strconv.Itoa(b)).Replace(sql)
				_, err := conn.Exec(t.Context(), sql)
				if s := state(err); s == "40P01" || s == "40001" { // writers in each other's way
					_, err = conn.Exec(t.Context(), `ROLLBACK`)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	w.captured(t)
	time.Sleep(200 * time.Millisecond)
	w.live(t)
	rounds, end := context.WithTimeout(t.Context(), 3*time.Second)
	defer end()
	require.ErrorIs(t, migrator.Replicate(rounds, w.src, w.dst, migrator.ReplicateConfig{TrimGrace: -1}),
		context.DeadlineExceeded)
	stop()
	require.NoError(t, writers.Wait())
	w.round(t)
	w.requireSame(t)
	require.NotZero(t, w.state(t).RowsApplied)
}

// A table without a key through a switch, writes on the target, a forced revert and another switch.
func TestSwitchOfTablesWithoutAKey(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, keylessTables...)
	m := inSync(t, p)
	p.sql(t, `UPDATE bag SET b = 'before' WHERE a = 3`)
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
	execute(t, p.target.Connect(t), `INSERT INTO bag VALUES (1, 'stray')`, `DELETE FROM part WHERE a = 5`,
		`UPDATE made SET a = 100 WHERE a = 1`, `TRUNCATE nullable`)
	do(t, m, migrator.CommandRevert)
	p.requireEqual(t)
	p.sql(t, `UPDATE bag SET a = 5 WHERE a = 4`, `DELETE FROM part WHERE a = 6`)
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
	do(t, m, migrator.CommandComplete)
	p.requireNoTrace(t)
	p.sql(t, `DELETE FROM bag`, `UPDATE part SET b = 'x'`)
}
