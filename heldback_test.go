package migrator_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgtest"
)

// refusing has constraints that refuse rows which are there: by the moment, the role, a setting, other rows, other
// tables, or as they were never validated; on tables, partitions, children and domains.
var refusing = []string{
	`CREATE TABLE offers (id serial PRIMARY KEY, ends_at timestamptz CHECK (ends_at > now()), price int CONSTRAINT
		priced CHECK (price >= 0))`,
	`CREATE TABLE memos (id serial PRIMARY KEY, author name DEFAULT current_user CONSTRAINT written_by CHECK (author
		= current_user))`,
	`COMMENT ON CONSTRAINT written_by ON memos IS 'it''s who \ writes'`,
	`CREATE TABLE tenants (id serial PRIMARY KEY, tenant text CHECK (tenant = current_setting('app.tenant',
		true)))`, `SET app.tenant = 'acme'`, `INSERT INTO tenants (tenant) VALUES ('acme')`,
	`CREATE TABLE nodes (id int PRIMARY KEY, up int)`,
	`CREATE FUNCTION up_exists(u int) RETURNS boolean LANGUAGE sql STABLE AS
		'SELECT u IS NULL OR EXISTS (SELECT FROM public.nodes WHERE id = u)'`,
	`ALTER TABLE nodes ADD CHECK (up_exists(up))`, `INSERT INTO nodes SELECT 9000 WHERE true`, `INSERT INTO nodes
		SELECT i, 9000 FROM generate_series(1, 2000) i`,
	`CREATE TABLE members (id int PRIMARY KEY, age int, twice int GENERATED ALWAYS AS (age * 2) STORED)`, `INSERT
		INTO members SELECT i, i % 40 FROM generate_series(1, 500) i`,
	`ALTER TABLE members ADD CONSTRAINT
		"adult, ""of"" age; --$$ '\n' /* and a name that is as long as it may be" CHECK (age >= 18) NOT VALID,
		ADD CONSTRAINT doubled CHECK (twice < 40) NOT VALID`,
	`COMMENT ON CONSTRAINT doubled ON members IS 'never validated'`,
	`CREATE TABLE visits (id int, at timestamptz CONSTRAINT recent CHECK (at > now() - interval '3 s'), PRIMARY KEY
		(id)) PARTITION BY RANGE (id)`,
	`CREATE TABLE visits_1 PARTITION OF visits (CONSTRAINT own CHECK (at <> now())) FOR VALUES FROM (0) TO (100)`,
	`CREATE TABLE visits_2 PARTITION OF visits FOR VALUES FROM (100) TO (200)`, `INSERT INTO visits SELECT i, now() +
		interval '0.5 s' FROM generate_series(90, 110) i`,
	`CREATE TABLE parent (id int PRIMARY KEY, at timestamptz CONSTRAINT soon CHECK (at > now()), CONSTRAINT alone
		CHECK (id > 0 OR now() > '2020-01-01') NO INHERIT)`,
	`CREATE TABLE child (PRIMARY KEY (id), CONSTRAINT soon CHECK (at > now())) INHERITS (parent)`, `CREATE TABLE
		other (PRIMARY KEY (id)) INHERITS (parent)`,
	`INSERT INTO child VALUES (1, now() + interval '0.5 s')`, `INSERT INTO other VALUES (2, now() + interval '0.5 s')`,
	`CREATE DOMAIN future AS timestamptz CONSTRAINT "not yet" CHECK (VALUE > now()) CONSTRAINT kept CHECK (VALUE >
		'2020-01-01 00:00Z')`, `COMMENT ON CONSTRAINT "not yet" ON DOMAIN future IS 'then'`,
	`CREATE FUNCTION known(int) RETURNS boolean LANGUAGE sql STABLE AS
		'SELECT $1 IN (SELECT id FROM public.nodes)'`, `CREATE DOMAIN node AS int CHECK (known(VALUE))`,
	`CREATE DOMAIN small AS int`, `CREATE TYPE pair AS (a future, b small)`,
	`CREATE TABLE plans (id small PRIMARY KEY, at future, ats future[], p pair, n node)`,
	`INSERT INTO plans SELECT i, now() + interval '0.5 s', ARRAY[now() + interval '0.5 s'], ROW (now() + interval
		'0.5 s', 3)::pair, 9000 FROM generate_series(1, 20) i`,
	`ALTER DOMAIN small ADD CONSTRAINT tiny CHECK (VALUE < 10) NOT VALID`,
	`INSERT INTO offers (ends_at, price) SELECT now() + i * interval '1 s', 1 FROM generate_series(1, 5) i`, `INSERT
		INTO offers (ends_at, price) VALUES (now() + interval '1 day', 1)`,
	`INSERT INTO memos DEFAULT VALUES`, `SELECT pg_sleep(0.6)`,
}

// constraintsOf lists the CHECKs of a database, by owner and name; valid leaves out whether they are.
func constraintsOf(t *testing.T, db *pgtest.Database, valid bool) map[string]string {
	t.Helper()
	c := db.ConnectAdmin(t)
	defer c.Close(t.Context())
	rows, err := c.Query(t.Context(), `
		SELECT concat_ws(' ', CASE WHEN conrelid <> 0 THEN conrelid::regclass::text ELSE contypid::regtype::text END,
			conname),
		       concat_ws(' | ', regexp_replace(pg_get_constraintdef(oid), ' NOT VALID$', ''), CASE WHEN $1 THEN
		       	convalidated END, conislocal, coninhcount, connoinherit, obj_description(oid, 'pg_constraint'))
		FROM pg_constraint WHERE oid >= 16384 AND contype = 'c' AND connamespace IS DISTINCT FROM
			to_regnamespace('heroku_migrator')`, valid)
	require.NoError(t, err)
	all := map[string]string{}
	var name, value string
	_, err = pgx.ForEachRow(rows, []any{&name, &value}, func() error {
		all[name] = value
		return nil
	})
	require.NoError(t, err)
	return all
}

func notValid(t *testing.T, db *pgtest.Database) (names []string) {
	t.Helper()
	all := constraintsOf(t, db, true)
	for name, value := range all {
		if strings.Split(value, " | ")[1] == "f" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Rows arrive whatever constraints say by now, there and back and there again, while others are written that hold at
// that moment only. The constraints are the same afterwards, on both sides, though the process that took the source's
// away was gone.
func TestConstraintsThatRefuseRows(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, refusing...)
	c := p.source.Connect(t)
	before := constraintsOf(t, p.source, false)
	report, err := p.migrator(t).Preflight(t.Context())
	require.NoError(t, err)
	told := slices.IndexFunc(report.Findings, func(f migrator.Finding) bool {
		return f.Check == "constraints_held_back"
	})
	require.GreaterOrEqual(t, told, 0)
	require.Contains(t, report.Findings[told].Message, "not yet of public.future")
	require.True(t, slices.ContainsFunc(report.Findings, func(f migrator.Finding) bool {
		return f.Check == "constraints_not_validated" && strings.Contains(f.Message,
			"target: not yet of public.future.")
	}))

	writing := func(url string) (stop func()) { // rows that hold when they are written
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		conn, err := pgx.Connect(ctx, url)
		require.NoError(t, err)
		go func() {
			for ctx.Err() == nil {
				_, err := conn.Exec(ctx, `INSERT INTO offers (ends_at, price) VALUES (clock_timestamp() + interval
					'30 ms', 2); INSERT INTO memos DEFAULT VALUES`)
				if err != nil && !strings.Contains(err.Error(), "permission denied") && ctx.Err() == nil &&
					!strings.Contains(err.Error(), "violates check") {
					ended <- err
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
			ended <- nil
		}()
		return func() {
			cancel()
			require.NoError(t, <-ended)
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}
	stop := writing(p.source.URL)
	untilInSync(t, p)
	here := constraintsOf(t, p.target, false)
	require.Contains(t, here, "offers priced")
	require.Contains(t, here, "future kept")
	require.Len(t, here, 2, "all others are held back")
	execute(t, c, `VACUUM FULL members`, `UPDATE plans SET n = 7`, `INSERT INTO memos DEFAULT VALUES`, `UPDATE
		members SET id = -id WHERE age >= 18 AND age < 20 AND id < 100`)
	m := p.migrator(t)
	for round := range 2 {
		if round > 0 {
			stop = writing(p.source.URL)
			execute(t, c, `INSERT INTO visits VALUES (150, now())`)
		}
		do(t, m, migrator.CommandSwitch)
		stop()
		p.requireEqual(t)
		require.Equal(t, before, constraintsOf(t, p.target, false))
		ctx, kill := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- m.Run(ctx, "") }()
		stop = writing(p.target.URL)
		d := p.target.Connect(t)
		execute(t, d, `INSERT INTO nodes VALUES (9001, NULL) ON CONFLICT DO NOTHING`, `UPDATE nodes SET up = 9001
			WHERE id < 100`, `INSERT INTO memos DEFAULT VALUES`, `UPDATE members SET id = id + 1000000 WHERE age = 19
				AND id > 0`,
			fmt.Sprintf(`INSERT INTO visits VALUES (%d, now() - interval '2.9 s')`, round), `INSERT INTO child VALUES
				(10, clock_timestamp() + interval '50 ms') ON CONFLICT (id) DO UPDATE SET at = excluded.at`,
			`INSERT INTO plans VALUES (9, clock_timestamp() + interval '100 ms', ARRAY[clock_timestamp() + interval
				'100 ms'], NULL, 9001) ON CONFLICT (id) DO UPDATE SET at = excluded.at, ats = excluded.ats`,
			`SET app.tenant = 'zeta'`, `INSERT INTO tenants (tenant) VALUES ('zeta')`, `VACUUM FULL members`)
		require.Eventually(t, func() bool {
			return count(t, c, `SELECT count(*) FROM tenants WHERE tenant =
			'zeta'`) > int64(round)
		}, time.Minute, 50*time.Millisecond)
		require.NotContains(t, constraintsOf(t, p.source, false), "memos written_by", "taken away")
		require.Contains(t, constraintsOf(t, p.source, false), "offers priced", "in nobody's way")
		kill()
		require.ErrorIs(t, <-ended, context.Canceled)
		stop()
		execute(t, d, `DELETE FROM nodes WHERE id = 5`, `INSERT INTO nodes VALUES (5, 9001)`)
		m = p.migrator(t)
		do(t, m, migrator.CommandRevert)
		p.requireEqual(t)
		require.Equal(t, before, constraintsOf(t, p.source, false))
		ctx, kill = context.WithCancel(t.Context())
		go func() { ended <- m.Run(ctx, "") }()
		require.Eventually(t, func() bool { return count(t, c, `SELECT count(*) FROM heroku_migrator.taken`) == 0 },
			time.Minute, 50*time.Millisecond, "validated, or given up")
		kill()
		require.ErrorIs(t, <-ended, context.Canceled)
		require.NotContains(t, notValid(t, p.source), "nodes nodes_up_check", "its rows satisfy it")
		require.Contains(t, notValid(t, p.source), "memos written_by")
		_, err = c.Exec(t.Context(), `INSERT INTO offers (ends_at) VALUES (now())`)
		require.ErrorContains(t, err, "offers_ends_at_check")
	}
	do(t, m, migrator.CommandSwitch)
	do(t, m, migrator.CommandComplete)
	p.requireNoTrace(t)
	require.Equal(t, before, constraintsOf(t, p.source, false))
	require.Equal(t, before, constraintsOf(t, p.target, false))
	assert.Equal(t, notValid(t, p.source), notValid(t, p.target))
}

// What is held back follows the source's schema, too.
func TestHeldBackConstraintsFollowTheSchema(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, `CREATE FUNCTION fine(int) RETURNS boolean LANGUAGE sql STABLE AS 'SELECT $1 > 0'`,
		`CREATE TABLE a (id int PRIMARY KEY, x int CONSTRAINT goes CHECK (fine(x)), y int CONSTRAINT renamed CHECK
			(fine(y)))`, `INSERT INTO a VALUES (1, 1, 1)`,
		`ALTER TABLE a ADD CONSTRAINT later CHECK (x > 0) NOT VALID`, `ALTER TABLE a ADD CONSTRAINT own CHECK
			(fine(x)) NOT VALID`,
		`CREATE TABLE b (id int PRIMARY KEY CONSTRAINT kept CHECK (fine(id)))`, `CREATE TABLE gone (id int PRIMARY
			KEY CHECK (fine(id)))`,
		`CREATE DOMAIN d AS int CONSTRAINT one CHECK (fine(VALUE)) CONSTRAINT two CHECK (VALUE < 100)`, `CREATE
			DOMAIN unused AS int CHECK (fine(VALUE))`,
		`CREATE TABLE c (id d PRIMARY KEY)`, `ALTER DOMAIN d ADD CONSTRAINT three CHECK (VALUE > 0) NOT VALID`,
		`CREATE TABLE parts (id int PRIMARY KEY, CONSTRAINT whole CHECK (fine(id))) PARTITION BY RANGE (id)`, `CREATE
			TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10)`)
	untilInSync(t, p)
	p.sql(t, `ALTER TABLE a DROP CONSTRAINT goes`, `ALTER TABLE a RENAME CONSTRAINT renamed TO "has another name"`,
		`ALTER TABLE a VALIDATE CONSTRAINT later`, `ALTER TABLE a VALIDATE CONSTRAINT own`,
		`ALTER TABLE a RENAME y TO z`, `ALTER TABLE a ADD CONSTRAINT comes CHECK (fine(x))`, `ALTER TABLE b RENAME TO
			"b b"`, `DROP TABLE gone`, `DROP DOMAIN unused`,
		`ALTER DOMAIN d VALIDATE CONSTRAINT three`, `ALTER DOMAIN d DROP CONSTRAINT one`, `ALTER DOMAIN d DROP
			CONSTRAINT two`, `ALTER DOMAIN d ADD CONSTRAINT four CHECK (fine(VALUE))`,
		`CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (10) TO (20)`, `INSERT INTO parts VALUES (15)`,
		`CREATE DOMAIN fresh AS int CHECK (fine(VALUE)) CHECK (VALUE < 7)`,
		`CREATE DOMAIN plain AS int CHECK (VALUE < 9)`,
		`CREATE TABLE new (id int PRIMARY KEY CHECK (fine(id)), f fresh, fs plain[])`,
		`INSERT INTO new VALUES (1, 3, '{4}')`)
	untilInSync(t, p)
	p.requireEqual(t)
	held := constraintsOf(t, p.target, false)
	for _, name := range []string{"a later", "d three", "fresh fresh_check1", "plain plain_check"} {
		require.Contains(t, held, name)
	}
	require.Len(t, held, 4, held)
	requireNoneFailed(t, p.target.ConnectAdmin(t))
	m := p.migrator(t)
	do(t, m, migrator.CommandSwitch)
	require.Equal(t, constraintsOf(t, p.source, false), constraintsOf(t, p.target, false))
	do(t, m, migrator.CommandComplete)
	require.Equal(t, constraintsOf(t, p.source, true), constraintsOf(t, p.target, true), "all of them are validated")
	requireSameSchema(t, p)
}

// An ALTER of the application does not wait for a validation, and nobody for that ALTER.
func TestValidationGivesWay(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, `CREATE FUNCTION slow(int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN IF current_setting('app.slow',
		true) = 'on' THEN PERFORM pg_sleep(0.1); END IF; RETURN true; END $$`,
		`CREATE TABLE items (id int PRIMARY KEY CHECK (slow(id)))`, `INSERT INTO items SELECT generate_series(1, 600)`)
	untilInSync(t, p)
	admin := p.target.ConnectAdmin(t)
	var database string
	require.NoError(t, admin.QueryRow(t.Context(), `SELECT current_database()`).Scan(&database))
	execute(t, admin, fmt.Sprintf(`ALTER DATABASE %s SET app.slow = 'on'`, pgx.Identifier{database}.Sanitize()))
	m := p.migrator(t)
	do(t, m, migrator.CommandSwitch)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx, "") }()
	validating := `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE
		'%VALIDATE CONSTRAINT%' AND state = 'active' AND pid <> pg_backend_pid()`
	require.Eventually(t, func() bool { return count(t, admin, validating) == 1 }, time.Minute, 50*time.Millisecond)
	began := time.Now()
	execute(t, p.target.Connect(t), `ALTER TABLE items ADD COLUMN v text`)
	require.Less(t, time.Since(began), 30*time.Second, "the validation takes a minute")
	require.Eventually(t, func() bool { return count(t, admin, validating) == 1 }, time.Minute, 50*time.Millisecond,
		"it is tried again")
	stop()
	require.ErrorIs(t, <-ended, context.Canceled)
	require.Eventually(t, func() bool { return count(t, admin, validating) == 0 }, 10*time.Second,
		50*time.Millisecond, "nobody waits for it any more")
	execute(t, admin, fmt.Sprintf(`ALTER DATABASE %s RESET app.slow`, pgx.Identifier{database}.Sanitize()))
	do(t, p.migrator(t), migrator.CommandRevert)
}
