package migrator_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// oddKeys are tables whose columns have the names that capture uses itself, keys with all kinds of characters, keys that are generated, and
// columns that were dropped before the key.
var oddKeys = []string{
	`CREATE TABLE ks (id int PRIMARY KEY, k1 int, k2 text)`,
	`CREATE TABLE names (key_1 int, keys_1 text, v1 int, entered int, s text, l text, u int, r int, part int, "new" int, "old" int, PRIMARY KEY (entered, v1))`,
	`CREATE TABLE pairs (v text, v2 uuid, k1 bigint, PRIMARY KEY (k1, v))`,
	`CREATE TABLE swapped (b int, k2 text, a int, k1 text, PRIMARY KEY (a, b))`,
	`CREATE TABLE strange (k text PRIMARY KEY, v int)`,
	`CREATE TABLE dropped (x int, id int PRIMARY KEY, k1 int)`, `ALTER TABLE dropped DROP COLUMN x`,
	`CREATE TABLE gen (id int, twice int GENERATED ALWAYS AS (id * 2) STORED PRIMARY KEY, v text)`,
	`CREATE TABLE price (amount numeric(10, 2), at timestamp(3), code varchar(20), v int, PRIMARY KEY (amount, at, code))`,
}

func TestOddKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t, oddKeys...).live(t)
	for _, sql := range []string{
		`INSERT INTO ks SELECT i, -i, 'a' FROM generate_series(1, 120) i`, `UPDATE ks SET k1 = 7 WHERE id < 3`, `UPDATE ks SET id = id + 1000 WHERE id < 60`, `DELETE FROM ks WHERE id = 100`,
		`INSERT INTO names SELECT i, 1, i, +i, 2, 3, +i, 4, +i, 5, +i FROM generate_series(1, 120) i`, `UPDATE names SET v1 = -v1 WHERE entered > 50`, `DELETE FROM names WHERE key_1 < 60`,
		`INSERT INTO pairs SELECT i || E'\\\t\n\r', gen_random_uuid(), i FROM generate_series(1, 120) i`, `UPDATE pairs SET v = v || E'\\.' WHERE k1 > 100`, `DELETE FROM pairs WHERE k1 < 10`,
		`INSERT INTO swapped SELECT i, 'x', -i, 'y' FROM generate_series(1, 120) i`, `UPDATE swapped SET a = b, b = a WHERE b < 55`, `UPDATE swapped SET k1 = 'z'`,
		`INSERT INTO strange SELECT k || n, 1 FROM unnest(ARRAY['', E'\\', E'\\.', E'\\N', E'a\tb', E'a\nb', E'\r', '{NULL}', 'NULL', '"', '''', ',', 'ü€😀', E'\x01', ' ']) k, unnest(ARRAY['', '1', '2', '3', '4', '5']) n`,
		`UPDATE strange SET v = 2`, `UPDATE strange SET k = k || E'\\' WHERE k LIKE '%3'`, `DELETE FROM strange WHERE k LIKE '%4'`,
		`INSERT INTO dropped SELECT i, i FROM generate_series(1, 120) i`, `UPDATE dropped SET id = -id WHERE id > 60`, `DELETE FROM dropped WHERE id BETWEEN 1 AND 5`,
		`INSERT INTO gen (id, v) SELECT i, 'a' FROM generate_series(1, 120) AS g(i)`,
		`UPDATE gen SET id = id + 1000 WHERE id < 60`, `DELETE FROM gen WHERE id = 70`, `UPDATE gen SET v = 'b' WHERE id = 71`,
		`INSERT INTO price SELECT i / 100.0, now() + i * interval '1 ms', 'c' || i, i FROM generate_series(1, 120) i`, `UPDATE price SET v = 0`, `DELETE FROM price WHERE v < 10 AND code < 'c5'`,
	} {
		w.sql(t, sql)
		w.round(t)
		w.requireSame(t)
	}
}

// Statements of sizes at which the way keys are entered changes.
func TestBulkStatementsOfAllSizes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, `CREATE TABLE a (id int PRIMARY KEY, k1 int)`, `CREATE TABLE b (v int, x text, y int, PRIMARY KEY (y, x))`).live(t)
	at := 0
	for _, n := range []int{49, 50, 51, 1051, 251_051} {
		w.sql(t, fmt.Sprintf(`INSERT INTO a SELECT %d + i, i FROM generate_series(1, %d) i`, at, n),
			fmt.Sprintf(`INSERT INTO b SELECT i, 'x' || i, %d FROM generate_series(1, %d) i`, n, n))
		at += n
		w.round(t)
		for _, q := range []string{`SELECT count(*) FROM a`, `SELECT count(*) FROM b`, `SELECT sum(hashtextextended(a::text, 0)) FROM a`, `SELECT sum(hashtextextended(b::text, 0)) FROM b`} {
			var want, got string
			require.NoError(t, w.adminSource.QueryRow(t.Context(), `SELECT (`+q+`)::text`).Scan(&want))
			require.NoError(t, w.adminTarget.QueryRow(t.Context(), `SELECT (`+q+`)::text`).Scan(&got))
			require.Equal(t, want, got, "%d rows: %s", n, q)
		}
	}
}
