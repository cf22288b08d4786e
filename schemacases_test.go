package migrator_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

const (
	ratesTable  = `CREATE TABLE rates (id int PRIMARY KEY, a int, b int); INSERT INTO rates SELECT i, i + 0, i + 0 FROM generate_series(1, 50) i`
	othersTable = `CREATE TABLE others (id int PRIMARY KEY, b int)`
	partTable   = `CREATE TABLE part (id int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id); CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100); INSERT INTO part SELECT i, 'v' FROM generate_series(0, 99) i`
	splitTable  = `CREATE TABLE split (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE split_1 PARTITION OF split FOR VALUES FROM (0) TO (1000);
		CREATE TABLE split_2 PARTITION OF split FOR VALUES FROM (1000) TO (2000) PARTITION BY RANGE (id); CREATE TABLE split_2a PARTITION OF split_2 FOR VALUES FROM (1000) TO (1500); INSERT INTO split SELECT i*100, 'v' FROM generate_series(0, 14) i`
)

// schemaCases are changes of the schema of which each needs something else to be regarded. What a step consists of comes between two rounds.
var schemaCases = []struct {
	name    string
	setup   []string
	steps   [][]string
	refused string // why it is not followed
	target  string // a query whose result is not 0 on the target after the switch
}{
	{
		name:  "a table renamed, its column and index made anew",
		setup: []string{ratesTable, `CREATE UNIQUE INDEX rates_a ON rates (a)`},
		steps: [][]string{{`BEGIN; ALTER TABLE rates RENAME TO tariffs; ALTER TABLE tariffs DROP COLUMN a; ALTER TABLE tariffs ADD COLUMN a int; CREATE UNIQUE INDEX rates_a ON tariffs (a); COMMIT`}},
	},
	{
		name:   "a column dropped that a view over two tables does not read, and a function over the view",
		setup:  []string{ratesTable, othersTable, `CREATE VIEW both_ AS SELECT r.id, o.b FROM rates r JOIN others o USING (id)`, `CREATE FUNCTION f() RETURNS SETOF both_ LANGUAGE sql AS 'SELECT * FROM both_'`},
		steps:  [][]string{{`ALTER TABLE rates DROP COLUMN b`}},
		target: `SELECT count(*) FROM pg_proc WHERE proname = 'f'`,
	},
	{
		name:  "a column of the type of such a view",
		setup: []string{ratesTable, othersTable, `CREATE VIEW both_ AS SELECT r.id, o.b FROM rates r JOIN others o USING (id)`, `CREATE TABLE holder (id int PRIMARY KEY, x both_); INSERT INTO holder VALUES (1, '(1,2)')`},
		steps: [][]string{{`ALTER TABLE rates DROP COLUMN b`}},
	},
	{
		name:  "a serial column made anew",
		setup: []string{ratesTable, `ALTER TABLE rates ADD COLUMN n serial`},
		steps: [][]string{{`BEGIN; ALTER TABLE rates DROP COLUMN n; ALTER TABLE rates ADD COLUMN n serial; COMMIT`}},
	},
	{
		name:  "an enum renamed",
		setup: []string{ratesTable, `CREATE TYPE mood AS ENUM ('sad', 'happy'); ALTER TABLE rates ADD COLUMN m mood; UPDATE rates SET m = 'sad'`},
		steps: [][]string{{`ALTER TYPE mood RENAME TO feeling`}},
	},
	{
		name:    "an enum made anew",
		setup:   []string{ratesTable, `CREATE TYPE mood AS ENUM ('sad', 'happy', 'x'); ALTER TABLE rates ADD COLUMN m mood; UPDATE rates SET m = 'sad'`},
		steps:   [][]string{{`BEGIN; ALTER TYPE mood RENAME TO mood_old; CREATE TYPE mood AS ENUM ('happy', 'sad'); ALTER TABLE rates ALTER m TYPE mood USING m::text::mood; DROP TYPE mood_old; COMMIT`}},
		refused: "of a type that was made anew",
	},
	{
		name:    "a generated column of another type without a key",
		setup:   []string{`CREATE TABLE bag (a int, g int GENERATED ALWAYS AS (a * 2) STORED, b int); INSERT INTO bag (a, b) SELECT i, 7 FROM generate_series(1, 10) i`},
		steps:   [][]string{{`ALTER TABLE bag ALTER g TYPE bigint`}, {`INSERT INTO bag (a, b) VALUES (100, 5)`}},
		refused: "which has no key",
	},
	{
		name:  "a generated column that is NOT NULL",
		setup: []string{ratesTable},
		steps: [][]string{{`ALTER TABLE rates ADD COLUMN g int NOT NULL GENERATED ALWAYS AS (a * 2) STORED`}},
	},
	{
		name:  "the type of an inherited column",
		setup: []string{`CREATE TABLE parent (a int, v varchar(10)); CREATE TABLE child (id int PRIMARY KEY) INHERITS (parent); INSERT INTO child SELECT i, 'v', i FROM generate_series(1, 10) i; INSERT INTO parent VALUES (1, 'p')`},
		steps: [][]string{{`ALTER TABLE parent ALTER v TYPE text`}},
	},
	{
		name:  "a partition detached and dropped that was referred to",
		setup: []string{partTable, `CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (100) TO (200); INSERT INTO part VALUES (150, 'x'); CREATE TABLE refs (id int PRIMARY KEY, p int REFERENCES part); INSERT INTO refs SELECT i, i FROM generate_series(1, 90) i; INSERT INTO refs VALUES (1000, 150)`},
		steps: [][]string{{`BEGIN; DELETE FROM refs WHERE p < 100; COMMIT; ALTER TABLE part DETACH PARTITION part_1; DROP TABLE part_1`}},
	},
	{
		name:  "a partition detached that was referred to",
		setup: []string{partTable, `CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (100) TO (200); INSERT INTO part VALUES (150, 'x'); CREATE TABLE refs (id int PRIMARY KEY, p int REFERENCES part); INSERT INTO refs SELECT i, i FROM generate_series(1, 90) i; INSERT INTO refs VALUES (1000, 150)`},
		steps: [][]string{{`BEGIN; DELETE FROM refs WHERE p < 100; COMMIT; ALTER TABLE part DETACH PARTITION part_1`}},
	},
	{
		name:  "a partition with partitions renamed",
		setup: []string{splitTable},
		steps: [][]string{{`ALTER TABLE split_2 RENAME TO split_two`}, {`INSERT INTO split VALUES (1010, 'n')`}},
	},
	{
		name:  "a partition with partitions detached, written to, and its former root truncated",
		setup: []string{splitTable},
		steps: [][]string{{`ALTER TABLE split DETACH PARTITION split_2`}, {`INSERT INTO split_2 VALUES (1010, 'n')`}, {`TRUNCATE split`}},
	},
	{
		name:  "a partitioned table attached",
		setup: []string{splitTable, `CREATE TABLE big (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE big_1 PARTITION OF big FOR VALUES FROM (2000) TO (3000); INSERT INTO big VALUES (2000, 'b')`},
		steps: [][]string{{`ALTER TABLE split ATTACH PARTITION big FOR VALUES FROM (2000) TO (3000)`}},
	},
	{
		name:  "a table converted to the default partition of one of its name",
		setup: []string{`CREATE TABLE events (id serial PRIMARY KEY, v text); INSERT INTO events (v) SELECT 'v' FROM generate_series(1, 50)`},
		steps: [][]string{{`BEGIN; ALTER TABLE events RENAME TO events_old; CREATE TABLE events (id int NOT NULL DEFAULT nextval('events_id_seq'), v text, PRIMARY KEY (id)) PARTITION BY RANGE (id); ALTER TABLE events ATTACH PARTITION events_old DEFAULT; COMMIT`}, {`INSERT INTO events (v) VALUES ('n')`}},
	},
	{
		name:  "a serial table renamed and attached",
		setup: []string{partTable, `CREATE TABLE staging (id serial PRIMARY KEY, v text); INSERT INTO staging SELECT i, 's' FROM generate_series(100, 150) i`},
		steps: [][]string{{`BEGIN; ALTER TABLE staging RENAME TO part_2; ALTER TABLE part ATTACH PARTITION part_2 FOR VALUES FROM (100) TO (200); COMMIT`}},
	},
	{
		name:  "partitions rotated",
		setup: []string{partTable},
		steps: [][]string{{`BEGIN; ALTER TABLE part DETACH PARTITION part_1; ALTER TABLE part_1 RENAME TO part_1_old; CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100); INSERT INTO part VALUES (5, 'new'); COMMIT`}, {`INSERT INTO part VALUES (6, 'new')`}},
	},
	{
		name:   "a materialized view made anew with its index",
		setup:  []string{ratesTable, `CREATE MATERIALIZED VIEW mv AS SELECT id, a FROM rates; CREATE UNIQUE INDEX mv_id ON mv (id)`},
		steps:  [][]string{{`BEGIN; DROP MATERIALIZED VIEW mv; CREATE MATERIALIZED VIEW mv AS SELECT id, a, b FROM rates; CREATE UNIQUE INDEX mv_id ON mv (id); COMMIT`}},
		target: `SELECT count(*) FROM mv`,
	},
	{
		name:   "row level security disabled",
		setup:  []string{ratesTable, `ALTER TABLE rates ENABLE ROW LEVEL SECURITY`},
		steps:  [][]string{{`ALTER TABLE rates DISABLE ROW LEVEL SECURITY`}},
		target: `SELECT count(*) FROM pg_class WHERE relname = 'rates' AND NOT relrowsecurity`,
	},
	{
		name:   "a table made anew under a function that returns its rows",
		setup:  []string{ratesTable, `CREATE FUNCTION f() RETURNS SETOF rates LANGUAGE sql AS 'SELECT * FROM rates'`},
		steps:  [][]string{{`BEGIN; DROP TABLE rates CASCADE; CREATE TABLE rates (id int PRIMARY KEY, a int); CREATE FUNCTION f() RETURNS SETOF rates LANGUAGE sql AS 'SELECT * FROM rates'; COMMIT`}},
		target: `SELECT count(*) FROM pg_proc WHERE proname = 'f'`,
	},
	{
		name:  "a view dropped with a function over it, and made anew",
		setup: []string{ratesTable, `CREATE VIEW v AS SELECT 1 AS a; CREATE FUNCTION f() RETURNS SETOF v LANGUAGE sql AS 'SELECT 1'`},
		steps: [][]string{{`DROP VIEW v CASCADE`}, {`CREATE SEQUENCE s`}, {`CREATE VIEW v AS SELECT 2 AS b`}},
	},
	{
		name:  "a label renamed and its name given again without a key",
		setup: []string{`CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TABLE bag (a int, m mood); INSERT INTO bag VALUES (1, 'sad')`},
		steps: [][]string{{`INSERT INTO bag VALUES (2, 'happy')`, `ALTER TYPE mood RENAME VALUE 'happy' TO 'glad'`, `ALTER TYPE mood ADD VALUE 'happy'`}},
	},
	{
		name:  "partitions rotated beside a default one",
		setup: []string{partTable, `CREATE TABLE part_rest PARTITION OF part DEFAULT`},
		steps: [][]string{{`BEGIN; ALTER TABLE part DETACH PARTITION part_1; ALTER TABLE part_1 RENAME TO part_1_old; CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100); INSERT INTO part VALUES (5, 'new'); COMMIT`}, {`INSERT INTO part VALUES (6, 'new')`}},
	},
	{
		name:   "a sequence of another type",
		setup:  []string{ratesTable, `CREATE SEQUENCE numbers AS int`},
		steps:  [][]string{{`ALTER SEQUENCE numbers AS bigint`, `SELECT setval('numbers', 3000000000)`}},
		target: `SELECT count(*) FROM numbers WHERE last_value >= 3000000000`,
	},
	{
		name:   "a column of another collation",
		setup:  []string{ratesTable, `ALTER TABLE rates ADD COLUMN v text; CREATE INDEX ON rates (v)`},
		steps:  [][]string{{`ALTER TABLE rates ALTER v TYPE text COLLATE "C"`}},
		target: `SELECT count(*) FROM pg_attribute WHERE attrelid = 'rates'::regclass AND attname = 'v' AND attcollation = '"C"'::regcollation`,
	},
	{
		name:  "an enum renamed, and a column added",
		setup: []string{ratesTable, `CREATE TYPE mood AS ENUM ('sad', 'happy'); ALTER TABLE rates ADD COLUMN m mood; UPDATE rates SET m = 'sad'`},
		steps: [][]string{{`ALTER TYPE mood RENAME TO feeling`, `ALTER TABLE rates ADD COLUMN z int`}},
	},
	{
		name:  "a table attached and detached",
		setup: []string{partTable, `CREATE TABLE staging (id int PRIMARY KEY, v text); INSERT INTO staging SELECT i, 's' FROM generate_series(100, 150) i`},
		steps: [][]string{{`UPDATE staging SET v = 't'`}, {`DELETE FROM staging WHERE id = 100`}, {`ALTER TABLE part ATTACH PARTITION staging FOR VALUES FROM (100) TO (200)`}, {`UPDATE part SET v = 'in'`}, {`ALTER TABLE part DETACH PARTITION staging`}, {`UPDATE staging SET v = 'out' WHERE id = 120; DELETE FROM staging WHERE id = 121`}},
	},
	{
		name:  "a table rotated into an archive",
		setup: []string{`CREATE TABLE archive (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)`, `CREATE TABLE log (id int PRIMARY KEY, v text); INSERT INTO log SELECT i, 's' FROM generate_series(1, 50) i`},
		steps: [][]string{{`BEGIN; ALTER TABLE log RENAME TO log_1; ALTER TABLE archive ATTACH PARTITION log_1 FOR VALUES FROM (0) TO (100); CREATE TABLE log (id int PRIMARY KEY, v text, extra int); INSERT INTO log VALUES (100, 'x', 1); COMMIT`}},
	},
	{
		name:  "a label renamed that is a bound, of a table that is referred to",
		setup: []string{`CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TABLE lp (m mood PRIMARY KEY) PARTITION BY LIST (m); CREATE TABLE lp_1 PARTITION OF lp FOR VALUES IN ('happy'); INSERT INTO lp VALUES ('happy'); CREATE TABLE refs (id int PRIMARY KEY, m mood REFERENCES lp); INSERT INTO refs VALUES (1, 'happy')`},
		steps: [][]string{{`ALTER TYPE mood RENAME VALUE 'happy' TO 'glad'`}, {`ALTER TABLE refs ADD COLUMN x int`}},
	},
	{
		name:  "a label renamed that is a bound",
		setup: []string{`CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TABLE lp (m mood PRIMARY KEY) PARTITION BY LIST (m); CREATE TABLE lp_1 PARTITION OF lp FOR VALUES IN ('happy'); INSERT INTO lp VALUES ('happy')`},
		steps: [][]string{{`ALTER TYPE mood RENAME VALUE 'happy' TO 'glad'`}},
	},
	{
		name:  "a function that returns something else",
		setup: []string{ratesTable, `CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'`},
		steps: [][]string{{`BEGIN; DROP FUNCTION f(); CREATE FUNCTION f() RETURNS text LANGUAGE sql AS 'SELECT ''x'''; COMMIT`}},
	},
	{
		name:  "the type of an identity column",
		setup: []string{ratesTable, `ALTER TABLE rates ADD COLUMN n int GENERATED ALWAYS AS IDENTITY`},
		steps: [][]string{{`ALTER TABLE rates ALTER n TYPE bigint`}},
	},
	{
		name:  "the type of a column in a policy",
		setup: []string{ratesTable, `CREATE POLICY p ON rates USING (a > 0)`},
		steps: [][]string{{`BEGIN; DROP POLICY p ON rates; ALTER TABLE rates ALTER a TYPE bigint; CREATE POLICY p ON rates USING (a > 0); COMMIT`}},
	},
	{
		name:  "a column made anew that is referred to",
		setup: []string{ratesTable, `ALTER TABLE rates ADD UNIQUE (a); CREATE TABLE refs (id int PRIMARY KEY, a int REFERENCES rates (a))`},
		steps: [][]string{{`BEGIN; ALTER TABLE rates DROP COLUMN a CASCADE; ALTER TABLE rates ADD COLUMN a int UNIQUE; ALTER TABLE refs ADD FOREIGN KEY (a) REFERENCES rates (a); COMMIT`}},
	},
	{
		name:  "a column and its check made anew",
		setup: []string{ratesTable, `ALTER TABLE rates ADD CONSTRAINT pos CHECK (a > 0)`},
		steps: [][]string{{`BEGIN; ALTER TABLE rates DROP COLUMN a; ALTER TABLE rates ADD COLUMN a int; ALTER TABLE rates ADD CONSTRAINT pos CHECK (a > 0); COMMIT`}},
	},
	{
		name:  "a column and index of a partitioned table made anew",
		setup: []string{partTable, `CREATE INDEX part_v ON part (v)`},
		steps: [][]string{{`BEGIN; ALTER TABLE part DROP COLUMN v; ALTER TABLE part ADD COLUMN v text; CREATE INDEX part_v ON part (v); COMMIT`}},
	},
	{
		name:  "a partition attached again under a view",
		setup: []string{partTable, `CREATE VIEW pv AS SELECT id, v FROM part_1`},
		steps: [][]string{{`BEGIN; ALTER TABLE part DETACH PARTITION part_1; DELETE FROM part_1 WHERE id = 1; ALTER TABLE part ATTACH PARTITION part_1 FOR VALUES FROM (0) TO (100); COMMIT`}},
	},
	{
		name:  "a partition moved under a view",
		setup: []string{partTable, `CREATE VIEW pv AS SELECT id, v FROM part_1`, `CREATE TABLE other (id int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id)`},
		steps: [][]string{{`BEGIN; ALTER TABLE part DETACH PARTITION part_1; ALTER TABLE other ATTACH PARTITION part_1 FOR VALUES FROM (0) TO (100); COMMIT`}},
	},
	{
		name:  "a default partition split that is referred to",
		setup: []string{`CREATE TABLE split (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE split_rest PARTITION OF split DEFAULT; INSERT INTO split SELECT i, 'v' FROM generate_series(1, 300) i; CREATE TABLE refs (id int PRIMARY KEY, s int REFERENCES split); INSERT INTO refs VALUES (1, 200)`},
		steps: [][]string{{`BEGIN; CREATE TABLE split_1 (id int PRIMARY KEY, v text); INSERT INTO split_1 SELECT * FROM split_rest WHERE id < 100; DELETE FROM split_rest WHERE id < 100; ALTER TABLE split ATTACH PARTITION split_1 FOR VALUES FROM (0) TO (100); COMMIT`}, {`ALTER TABLE refs ADD COLUMN x int`}},
	},
	{
		name:   "partitions rotated without a key",
		setup:  []string{`CREATE TABLE part (id int, v text) PARTITION BY RANGE (id); CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100); CREATE TABLE part_rest PARTITION OF part DEFAULT; INSERT INTO part SELECT i, 'v' FROM generate_series(0, 99) i`},
		steps:  [][]string{{`BEGIN; ALTER TABLE part DETACH PARTITION part_1; ALTER TABLE part_1 RENAME TO part_1_old; CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100); INSERT INTO part VALUES (5, 'new'); COMMIT`}, {`INSERT INTO part VALUES (6, 'new')`}},
		target: `SELECT count(*) FROM pg_inherits WHERE inhrelid = 'part_1'::regclass`,
	},
	{
		name:   "partitions and their indexes rotated",
		setup:  []string{partTable, `CREATE TABLE part_rest PARTITION OF part DEFAULT`},
		steps:  [][]string{{`BEGIN; ALTER TABLE part DETACH PARTITION part_1; ALTER TABLE part_1 RENAME TO part_1_old; ALTER INDEX part_1_pkey RENAME TO part_1_old_pkey; CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100); INSERT INTO part VALUES (5, 'new'); COMMIT`}, {`INSERT INTO part VALUES (6, 'new')`}},
		target: `SELECT count(*) FROM pg_inherits WHERE inhrelid = 'part_1'::regclass`,
	},
	{
		name:  "an inherited column made anew",
		setup: []string{`CREATE TABLE parent (id int PRIMARY KEY, a int); CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent); INSERT INTO child VALUES (1, 1); INSERT INTO parent VALUES (2, 2)`},
		steps: [][]string{{`BEGIN; ALTER TABLE parent DROP COLUMN a; ALTER TABLE parent ADD COLUMN a int; COMMIT; UPDATE parent SET a = 7`}},
	},
	{
		name:  "a partition widened over the default one, and a table made",
		setup: []string{partTable, `CREATE TABLE part_rest PARTITION OF part DEFAULT; INSERT INTO part SELECT i, 'd' FROM generate_series(100, 200) i`},
		steps: [][]string{{`BEGIN; ALTER TABLE part DETACH PARTITION part_1; WITH d AS (DELETE FROM part_rest WHERE id < 150 RETURNING *) INSERT INTO part_1 SELECT * FROM d; ALTER TABLE part ATTACH PARTITION part_1 FOR VALUES FROM (0) TO (150); COMMIT`}, {`CREATE TABLE more (id int PRIMARY KEY)`}},
	},
	{
		name:  "a partition swapped for a table",
		setup: []string{partTable, `CREATE TABLE staging (id int PRIMARY KEY, v text); INSERT INTO staging SELECT i, 's' FROM generate_series(0, 50) i`},
		steps: [][]string{{`BEGIN; ALTER TABLE part DETACH PARTITION part_1; ALTER TABLE part_1 RENAME TO part_1_old; ALTER TABLE staging RENAME TO part_1; ALTER TABLE part ATTACH PARTITION part_1 FOR VALUES FROM (0) TO (100); COMMIT`}},
	},
	{
		name:  "a generated column with a check of another type",
		setup: []string{`CREATE TABLE r (id int PRIMARY KEY, a int, g int NOT NULL GENERATED ALWAYS AS (a * 2) STORED CHECK (g > 0)); INSERT INTO r VALUES (1, 1)`},
		steps: [][]string{{`ALTER TABLE r ALTER g TYPE bigint`}},
	},
	{
		name: "a partition with partitions detached",
		setup: []string{`CREATE TABLE split (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE split_1 PARTITION OF split FOR VALUES FROM (0) TO (1000);
		CREATE TABLE split_2 PARTITION OF split FOR VALUES FROM (1000) TO (2000) PARTITION BY RANGE (id); CREATE TABLE split_2a PARTITION OF split_2 FOR VALUES FROM (1000) TO (1500); INSERT INTO split SELECT i*100, 'v' FROM generate_series(0, 14) i`},
		steps: [][]string{{`ALTER TABLE split DETACH PARTITION split_2`}},
	},
	{
		name:  "a partition widened over the default one",
		setup: []string{partTable, `CREATE TABLE part_rest PARTITION OF part DEFAULT; INSERT INTO part SELECT i, 'd' FROM generate_series(100, 200) i`},
		steps: [][]string{{`BEGIN; ALTER TABLE part DETACH PARTITION part_1; WITH d AS (DELETE FROM part_rest WHERE id < 150 RETURNING *) INSERT INTO part_1 SELECT * FROM d; ALTER TABLE part ATTACH PARTITION part_1 FOR VALUES FROM (0) TO (150); COMMIT`}},
	},
	{
		name:  "the names of key columns change places, which are not the first ones",
		setup: []string{`CREATE TABLE t (v text, id int PRIMARY KEY, other int); INSERT INTO t SELECT 'v', i, i * 1000 FROM generate_series(1, 20) i`},
		steps: [][]string{{`BEGIN; ALTER TABLE t RENAME id TO pk; ALTER TABLE t RENAME other TO id; UPDATE t SET v = 'x' WHERE pk = 3; DELETE FROM t WHERE pk = 4; COMMIT`}, {`DELETE FROM t WHERE pk = 5`}},
	},
	{
		name:  "the names of key columns change places and back",
		setup: []string{`CREATE TABLE t (v text, id int PRIMARY KEY, other int); INSERT INTO t SELECT 'v', i, i * 1000 FROM generate_series(1, 20) i`},
		steps: [][]string{{`BEGIN; ALTER TABLE t RENAME id TO pk; ALTER TABLE t RENAME other TO id; UPDATE t SET v = 'x' WHERE pk = 3; DELETE FROM t WHERE pk = 4; ALTER TABLE t RENAME id TO other; ALTER TABLE t RENAME pk TO id; COMMIT`}},
	},
	{
		name:  "the names of key columns of partitions change places",
		setup: []string{`CREATE TABLE part (a int, b int, v text, PRIMARY KEY (a, b)) PARTITION BY RANGE (a); CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100); INSERT INTO part SELECT i, i + 20, 'v' FROM generate_series(0, 20) i`},
		steps: [][]string{{`BEGIN; ALTER TABLE part RENAME a TO tmp; ALTER TABLE part RENAME b TO a; ALTER TABLE part RENAME tmp TO b; UPDATE part SET v = 'x' WHERE a = 23; DELETE FROM part WHERE a = 24; COMMIT`}},
	},
	{
		name:  "keys that are numbered anew by way of NULL",
		setup: []string{`CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 10) i; CREATE SEQUENCE s START 101`},
		steps: [][]string{{`BEGIN; ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ALTER id DROP NOT NULL; UPDATE t SET id = NULL WHERE id > 5; UPDATE t SET id = nextval('s') WHERE id IS NULL; ALTER TABLE t ADD PRIMARY KEY (id); COMMIT`}},
	},
	{
		name:  "a column that has another value in a partition that is attached",
		setup: []string{`CREATE TABLE old (id int PRIMARY KEY, v text); INSERT INTO old SELECT i, 'o' FROM generate_series(200, 210) i`, partTable},
		steps: [][]string{{`BEGIN; ALTER TABLE part ADD COLUMN state text DEFAULT 'new'; ALTER TABLE old ADD COLUMN state text DEFAULT 'old'; ALTER TABLE part ATTACH PARTITION old FOR VALUES FROM (200) TO (300); COMMIT`}},
	},
	{
		name:  "a column that has a value in a partition that is attached, and none in others",
		setup: []string{`CREATE TABLE old (id int PRIMARY KEY, v text); INSERT INTO old SELECT i, 'o' FROM generate_series(200, 210) i`, partTable},
		steps: [][]string{{`BEGIN; ALTER TABLE old ADD COLUMN state text DEFAULT 'old'; ALTER TABLE part ADD COLUMN state text; ALTER TABLE part ATTACH PARTITION old FOR VALUES FROM (200) TO (300); COMMIT`}},
	},
	{
		name:  "a column that a child had before its parent",
		setup: []string{`CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE kid (PRIMARY KEY (id)) INHERITS (parent); INSERT INTO parent VALUES (1); INSERT INTO kid VALUES (2)`},
		steps: [][]string{{`BEGIN; ALTER TABLE kid ADD COLUMN n int DEFAULT 9; ALTER TABLE parent ADD COLUMN n int DEFAULT 7; COMMIT`}},
	},
	{
		name:   "an unlogged table that is logged, and a change beside it",
		setup:  []string{`CREATE UNLOGGED TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')`, ratesTable},
		steps:  [][]string{{`ALTER TABLE t SET LOGGED; ALTER TABLE rates ADD COLUMN c int`}},
		target: `SELECT count(*) FROM pg_class WHERE oid = 't'::regclass AND relpersistence = 'p'`,
	},
	{
		name:   "a table, its sequence and its indexes renamed, to which a foreign key refers",
		setup:  []string{`CREATE TABLE users (id bigserial PRIMARY KEY, v text); CREATE INDEX index_users_on_v ON users (v); CREATE TABLE posts (id bigserial PRIMARY KEY, u bigint REFERENCES users); INSERT INTO users (v) VALUES ('a'), ('b'); INSERT INTO posts (u) VALUES (1)`},
		steps:  [][]string{{`BEGIN; ALTER TABLE users RENAME TO people; ALTER TABLE users_id_seq RENAME TO people_id_seq; ALTER INDEX users_pkey RENAME TO people_pkey; ALTER INDEX index_users_on_v RENAME TO index_people_on_v; COMMIT`}, {`INSERT INTO people (v) VALUES ('c')`}},
		target: `SELECT count(*) FROM pg_constraint WHERE conname = 'people_pkey' AND conrelid = 'people'::regclass`,
	},
	{
		name:  "the key of a partitioned table renamed, to which a foreign key refers",
		setup: []string{partTable, `CREATE TABLE refs (id int PRIMARY KEY, p int REFERENCES part); INSERT INTO refs VALUES (1, 1)`},
		steps: [][]string{{`ALTER TABLE part RENAME TO teil; ALTER TABLE teil RENAME CONSTRAINT part_pkey TO teil_pkey`}},
	},
	{
		name:  "tables, their keys and sequences change places",
		setup: []string{`CREATE TABLE a (id serial PRIMARY KEY, v text); CREATE TABLE b (id serial PRIMARY KEY, v text); INSERT INTO a (v) SELECT 'a' FROM generate_series(1, 5); INSERT INTO b (v) SELECT 'b' FROM generate_series(1, 9)`},
		steps: [][]string{{`BEGIN; ALTER TABLE a RENAME TO tmp; ALTER TABLE b RENAME TO a; ALTER TABLE tmp RENAME TO b; ALTER INDEX a_pkey RENAME TO tmp_pkey; ALTER INDEX b_pkey RENAME TO a_pkey; ALTER INDEX tmp_pkey RENAME TO b_pkey; ALTER SEQUENCE a_id_seq RENAME TO tmp_seq; ALTER SEQUENCE b_id_seq RENAME TO a_id_seq; ALTER SEQUENCE tmp_seq RENAME TO b_id_seq; COMMIT`}, {`INSERT INTO a (v) VALUES ('n'); INSERT INTO b (v) VALUES ('n')`}},
	},
	{
		name:   "the sequence of an identity column renamed",
		setup:  []string{`CREATE TABLE t (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, v text); INSERT INTO t (v) VALUES ('a')`},
		steps:  [][]string{{`ALTER SEQUENCE t_id_seq RENAME TO numbers`}},
		target: `SELECT count(*) FROM pg_class WHERE oid = 'numbers'::regclass`,
	},
	{
		name:  "a table with a serial column moved to another schema",
		setup: []string{`CREATE SCHEMA elsewhere; CREATE TABLE t (id serial PRIMARY KEY, v text); INSERT INTO t (v) VALUES ('a'), ('b')`},
		steps: [][]string{{`ALTER TABLE t SET SCHEMA elsewhere`}, {`INSERT INTO elsewhere.t (v) VALUES ('c')`}},
	},
	{
		name:  "a schema renamed",
		setup: []string{`CREATE SCHEMA one; CREATE TABLE one.t (id serial PRIMARY KEY, v text); CREATE TABLE one.u (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, t int REFERENCES one.t); INSERT INTO one.t (v) VALUES ('a'), ('b'); INSERT INTO one.u (t) VALUES (1)`},
		steps: [][]string{{`ALTER SCHEMA one RENAME TO two`}, {`INSERT INTO two.t (v) VALUES ('c')`}},
	},
	{
		name:  "a column of another type, with another check and partial index",
		setup: []string{ratesTable, `ALTER TABLE rates ADD CONSTRAINT pos CHECK (a > 0), ADD CONSTRAINT gone CHECK (a > -1); CREATE INDEX rates_p ON rates (b) WHERE a > 0`},
		steps: [][]string{{`BEGIN; ALTER TABLE rates DROP CONSTRAINT pos, DROP CONSTRAINT gone; DROP INDEX rates_p; ALTER TABLE rates ALTER a TYPE timestamptz USING to_timestamp(a); ALTER TABLE rates ADD CONSTRAINT pos CHECK (a > '1970-01-01'); CREATE INDEX rates_p ON rates (b) WHERE a > '1970-01-01'; COMMIT`}},
	},
	{
		name:   "a column of another type that a function reads",
		setup:  []string{ratesTable, `CREATE FUNCTION f() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT sum(a) FROM rates; END`},
		steps:  [][]string{{`BEGIN; DROP FUNCTION f(); ALTER TABLE rates ALTER a TYPE text USING a::text; CREATE FUNCTION f() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT sum(a::int) FROM rates; END; COMMIT`}},
		target: `SELECT count(*) FROM pg_proc WHERE oid = 'f()'::regprocedure`,
	},
	{
		name:  "types dropped with their table, also as its key, and made anew",
		setup: []string{`CREATE TYPE kind AS ENUM ('a'); CREATE DOMAIN pos AS int CHECK (VALUE > 0); CREATE TABLE t (k kind PRIMARY KEY, p pos); INSERT INTO t VALUES ('a', 1)`},
		steps: [][]string{{`DROP TABLE t`}, {`DROP TYPE kind; DROP DOMAIN pos`}, {`CREATE TYPE kind AS ENUM ('b'); CREATE DOMAIN pos AS int CHECK (VALUE < 0); CREATE TABLE t (k kind PRIMARY KEY, p pos); INSERT INTO t VALUES ('b', -1)`}},
	},
	{
		name:   "identity columns made, unmade and changed",
		setup:  []string{`CREATE TABLE t (id serial PRIMARY KEY, v text); INSERT INTO t (v) VALUES ('a'); CREATE TABLE u (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int GENERATED BY DEFAULT AS IDENTITY); INSERT INTO u (n) VALUES (1)`},
		steps:  [][]string{{`BEGIN; ALTER TABLE t ALTER id DROP DEFAULT; DROP SEQUENCE t_id_seq; ALTER TABLE t ALTER id ADD GENERATED ALWAYS AS IDENTITY; SELECT setval('t_id_seq', 10); COMMIT; ALTER TABLE u ALTER id DROP IDENTITY; ALTER TABLE u ALTER n SET GENERATED ALWAYS`}},
		target: `SELECT count(*) FROM pg_attribute t, pg_attribute u, pg_attribute n WHERE t.attrelid = 't'::regclass AND t.attname = 'id' AND t.attidentity = 'a' AND u.attrelid = 'u'::regclass AND u.attname = 'id' AND u.attidentity = '' AND n.attrelid = u.attrelid AND n.attname = 'n' AND n.attidentity = 'a'`,
	},
	{
		name:  "a captured partitioned table attached, and its key renamed",
		setup: []string{`CREATE TABLE split (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE split_1 PARTITION OF split FOR VALUES FROM (0) TO (1000); INSERT INTO split VALUES (1, 'a'); CREATE TABLE big (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE big_1 PARTITION OF big FOR VALUES FROM (2000) TO (3000); INSERT INTO big VALUES (2000, 'b')`},
		steps: [][]string{{`ALTER TABLE split ATTACH PARTITION big FOR VALUES FROM (2000) TO (3000)`}, {`ALTER TABLE split RENAME id TO number`}, {`INSERT INTO split VALUES (2001, 'c'); UPDATE split SET v = 'd' WHERE number = 2000`}},
	},
	{
		name:    "a key column dropped and made anew",
		setup:   []string{`CREATE TABLE t (id int PRIMARY KEY, u int); INSERT INTO t SELECT i, i * 1000 FROM generate_series(1, 20) i`},
		steps:   [][]string{{`BEGIN; ALTER TABLE t DROP COLUMN id CASCADE; ALTER TABLE t ADD COLUMN id serial PRIMARY KEY; COMMIT`}},
		refused: "is another column of the same name now",
	},
	{
		name:    "a child of another parent",
		setup:   []string{`CREATE TABLE p1 (id int PRIMARY KEY); CREATE TABLE p2 (id int PRIMARY KEY); CREATE TABLE k1 (PRIMARY KEY (id)) INHERITS (p1); CREATE TABLE k2 (PRIMARY KEY (id)) INHERITS (p1); CREATE TABLE k3 (PRIMARY KEY (id)) INHERITS (p2)`},
		steps:   [][]string{{`ALTER TABLE k1 NO INHERIT p1; ALTER TABLE k1 INHERIT p2`}},
		refused: "inherits from other tables now",
	},
}

// All of them at once, each in a schema of its own: what one needs must not be in the way of another.
func TestSchemaCases(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	in := func(c *pgx.Conn, i int, statements ...string) {
		execute(t, c, append([]string{fmt.Sprintf(`SET search_path = case_%d`, i)}, statements...)...)
	}
	source := p.source.Connect(t)
	most := 0
	for i, c := range schemaCases {
		t.Logf("case_%d: %s", i, c.name)
		if c.refused == "" {
			execute(t, source, fmt.Sprintf(`CREATE SCHEMA case_%d`, i))
			in(source, i, c.setup...)
			most = max(most, len(c.steps))
		}
	}
	untilInSync(t, p)
	target := p.target.ConnectAdmin(t)
	for step := range most {
		for i, c := range schemaCases {
			if c.refused == "" && step < len(c.steps) {
				in(source, i, c.steps[step]...)
			}
		}
		untilInSync(t, p)
		p.requireEqual(t)
		requireSameSchema(t, p)
		requireNoneFailed(t, target)
	}
	do(t, p.migrator(t), migrator.CommandSwitch)
	p.requireEqual(t)
	requireSameSchema(t, p)
	for i, c := range schemaCases {
		if c.target != "" {
			in(target, i)
			require.NotZero(t, count(t, target, c.target), c.name)
		}
	}
}

// What cannot be followed stops the migration by name.
func TestSchemaCasesThatAreRefused(t *testing.T) {
	t.Parallel()
	for _, c := range schemaCases {
		if c.refused == "" {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			p.sql(t, c.setup...)
			untilInSync(t, p)
			p.sql(t, c.steps[0]...)
			require.ErrorContains(t, p.migrator(t).Run(withTimeout(t, time.Minute), migrator.UntilInSync), c.refused)
		})
	}
}
