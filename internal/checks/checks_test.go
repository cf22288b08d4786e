package checks_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator/internal/checks"
	"github.com/heroku-migrator/migrator/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// Which CHECKs are held back. Each is on a column or two of table t, or a domain's own.
var expressions = []struct {
	sql  string
	held bool
}{
	{`a > 0 AND a BETWEEN 1 AND 10 OR a IS NULL`, false},
	{`CASE WHEN a = 1 THEN b IS NOT NULL ELSE coalesce(b, 'x') <> '' END`, false},
	{`b ~ '^[a-z{}]+$' AND length(b) < 300 AND lower(b) = b`, false},
	{`m IN ('sad', 'happy') AND m <> 'sad'::mood`, false},
	{`ms <@ ARRAY['sad'::mood]`, false},
	{`d <> 'q'`, false},
	{`x[1] > 0 AND a = ANY (x) AND greatest(a, 3) > 2 AND nullif(a, 1) IS DISTINCT FROM 4`, false},
	{`vc::text = ANY (ARRAY['a'::varchar, 'b'::varchar]::text[])`, false},
	{`jsonb_typeof(j) = 'object' AND j ? 'a' AND j ->> 'a' <> ''`, false},
	{`day > '2020-01-01' AND during <> tstzrange(NULL, NULL)`, false},
	{`n::int = a AND b COLLATE "C" < 'z'`, false},
	{`at > now()`, true},
	{`day > CURRENT_DATE`, true},
	{`b = CURRENT_USER`, true},
	{`b = current_setting('app.tenant', true)`, true},
	{`day > '2020-01-01'::timestamptz`, true}, // stable: by the session's time zone
	{`to_char(at, 'YYYY') = '2020'`, true},
	{`at::date > '2020-01-01'`, true},
	{`own(a)`, true},
	{`a OPERATOR(public.===) 1`, true},
	{`t IS NOT NULL`, true},
	{`tableoid = 1`, true},
	{`at::text <> ''`, true},
	{`b::d IS NOT NULL`, true}, // asks the domain
	{`random() >= 0`, true},
}

func TestHeldBack(t *testing.T) {
	t.Parallel()
	for _, version := range []int{pgtest.SourceVersion(), pgtest.TargetVersion()} {
		c := pgtest.Shared(t, version).NewSource(t).Connect(t)
		run := func(sql string) {
			t.Helper()
			_, err := c.Exec(t.Context(), sql)
			require.NoError(t, err, sql)
		}
		run(`CREATE TYPE mood AS ENUM ('sad', 'happy')`)
		run(`CREATE DOMAIN d AS text CONSTRAINT mine CHECK (VALUE ~ 'x' OR lower(VALUE) IN ('a', 'b')) CONSTRAINT
			other CHECK (length(VALUE) < extract(year FROM now()))`)
		run(`CREATE FUNCTION own(int) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT true'`)
		run(`CREATE FUNCTION same(int, int) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT $1 = $2'`)
		run(`CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = same)`)
		run(`CREATE TABLE t (a int, b text, d d, m mood, ms mood[], x int[], vc varchar(10), j jsonb, n numeric, at
			timestamptz, day date, during tstzrange)`)
		for i, e := range expressions {
			run(fmt.Sprintf(`ALTER TABLE t ADD CONSTRAINT c%d CHECK (%s)`, i, e.sql))
		}
		run(`ALTER TABLE t ADD CONSTRAINT old CHECK (a > 0) NOT VALID`)
		var reader checks.Reader
		for range 2 { // the second time by what it remembers
			list := read(t, c, &reader)
			held := map[string]bool{}
			for _, k := range list {
				held[k.Name+" "+k.Constraint] = k.HeldBack
			}
			for i, e := range expressions {
				assert.Equal(t, e.held, held[fmt.Sprintf("t c%d", i)], e.sql)
			}
			assert.True(t, held["t old"])
			assert.False(t, held["d mine"])
			assert.True(t, held["d other"])
		}
		run(`ALTER TABLE t VALIDATE CONSTRAINT old`)
		for _, k := range read(t, c, &reader) {
			assert.False(t, k.Constraint == "old" && k.HeldBack, "its entry is another one now")
		}
	}
}

func read(t *testing.T, c *pgx.Conn, r *checks.Reader) (list []checks.Check) {
	t.Helper()
	require.NoError(t, pgx.BeginFunc(t.Context(), c, func(tx pgx.Tx) (err error) {
		list, err = r.Read(t.Context(), tx, nil)
		return err
	}))
	require.NotEmpty(t, list)
	return list
}

// What is dropped, added and validated again is what it was: in trees of tables, under odd names, with comments.
func TestDroppedAndAddedAgain(t *testing.T) {
	t.Parallel()
	c := pgtest.Shared(t, pgtest.SourceVersion()).NewSource(t).Connect(t)
	for _, sql := range []string{
		`CREATE TABLE parent (a int CHECK (a > 0), CONSTRAINT
			"odd "" $drop$ 'é\n" CHECK (a < 100), CONSTRAINT mine CHECK (a <> 50) NO INHERIT)`,
		`CREATE TABLE child (b int, CONSTRAINT parent_a_check CHECK (a > 0)) INHERITS (parent)`,
		`CREATE TABLE grandchild (CHECK (b > 0)) INHERITS (child)`,
		`ALTER TABLE parent ADD CONSTRAINT late CHECK (a <> 7) NOT VALID`, `ALTER TABLE child VALIDATE CONSTRAINT late`,
		`CREATE TABLE parts (a int CHECK (a > 0), CONSTRAINT bounded CHECK (a < 1000)) PARTITION BY LIST (a)`,
		`CREATE TABLE part PARTITION OF parts (CHECK (a <> 3)) FOR VALUES IN (1, 2, 3) PARTITION BY LIST
			(a)`, `CREATE TABLE leaf PARTITION OF part FOR VALUES IN (1, 2)`,
		`CREATE DOMAIN short AS text CONSTRAINT "a b" CHECK (length(VALUE) < 10) CHECK (VALUE <> '')`, `ALTER DOMAIN
			short ADD CONSTRAINT later CHECK (VALUE <> 'x') NOT VALID`,
		`COMMENT ON CONSTRAINT bounded ON parts IS 'it''s \ bounded'`, `COMMENT ON CONSTRAINT "a b" ON DOMAIN short
			IS 'so'`, `COMMENT ON CONSTRAINT late ON grandchild IS 'inherited'`,
	} {
		_, err := c.Exec(t.Context(), sql)
		require.NoError(t, err, sql)
	}
	state := func() (all []string) {
		rows, err := c.Query(t.Context(), `
			SELECT concat_ws(' | ', conrelid::regclass, contypid::regtype, conname, pg_get_constraintdef(oid),
				convalidated, conislocal, coninhcount, connoinherit, obj_description(oid, 'pg_constraint'))
			FROM pg_constraint WHERE oid >= 16384 AND contype = 'c' ORDER BY 1`)
		require.NoError(t, err)
		all, err = pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		return all
	}
	before := state()
	require.NotEmpty(t, before)
	var reader checks.Reader
	list := read(t, c, &reader)
	require.Len(t, list, len(before))
	bottomUp := checks.BottomUp(list)
	var statements []string
	for i := range bottomUp {
		if k := bottomUp[len(bottomUp)-1-i]; k.Local {
			statements = append(statements, k.Drop())
		}
	}
	dropped := len(statements)
	for _, k := range bottomUp {
		if k.Local {
			statements = append(statements, k.Add())
		}
	}
	for _, k := range list {
		if !k.Local && k.Comment != "" {
			statements = append(statements, k.Describe()[1:])
		}
	}
	for _, k := range checks.ToValidate(list) {
		statements = append(statements, k.Validate())
	}
	for i, sql := range statements {
		if i == dropped {
			require.Empty(t, state())
		}
		_, err := c.Exec(t.Context(), sql)
		require.NoError(t, err, sql)
	}
	require.Equal(t, before, state())
}
