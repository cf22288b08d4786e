package migrator_test

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgtest"
)

// rehearsalFindings are preflight's findings that stop the migration, by the object that they begin with.
func rehearsalFindings(t *testing.T, m *migrator.Migrator) (blockers []migrator.Finding, all string) {
	t.Helper()
	report, err := m.Preflight(withTimeout(t, 2*time.Minute))
	require.NoError(t, err)
	for _, f := range report.Findings {
		all += fmt.Sprintf("%s %s: %s → %s\n", f.Severity, f.Check, f.Message, f.Remedy)
	}
	return report.Blockers(), all
}

// dropRoles drops roles at the test's end: those of a server are there for all tests.
func dropRoles(t *testing.T, p *pair, names ...string) {
	t.Helper()
	t.Cleanup(func() {
		for _, db := range []*pgtest.Database{p.source, p.target} {
			c, err := pgx.Connect(context.Background(), db.AdminURL)
			if err != nil {
				continue
			}
			for _, name := range names {
				role := pgx.Identifier{name}.Sanitize()
				_, _ = c.Exec(context.Background(), `DROP OWNED BY `+role+` CASCADE; DROP ROLE `+role)
			}
			_ = c.Close(context.Background())
		}
	})
}

// Preflight names every object that the target does not take, each with a remedy that works; what is left out by name
// is gone from the target, with what needs it, and is missed nowhere.
func TestRehearsal(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	source, target := p.source.ConnectAdmin(t), p.target.ConnectAdmin(t)
	one, two := p.source.Name+"_one", p.source.Name+`_"two"`
	admin := func(sql string) {
		t.Helper()
		_, err := source.Exec(t.Context(), sql)
		require.NoError(t, err, sql)
	}
	admin(fmt.Sprintf(`CREATE ROLE %q`, one))
	admin(`CREATE ROLE ` + pgx.Identifier{two}.Sanitize())
	dropRoles(t, p, one, two)
	admin(`CREATE EXTENSION dblink`)
	p.sql(t,
		`CREATE TABLE docs (id int PRIMARY KEY, owner text UNIQUE, word text)`,
		`INSERT INTO docs SELECT i, 'o' || i, 'w' || i FROM generate_series(1, 100) i`,
		fmt.Sprintf(`CREATE POLICY see ON docs TO %q, %s USING (true)`, one, pgx.Identifier{two}.Sanitize()),
		`CREATE TYPE mood AS ENUM ('sad', 'happy')`,
		`CREATE TABLE moods (id int PRIMARY KEY, m mood)`, `INSERT INTO moods VALUES (1, 'sad')`,
		`CREATE FUNCTION "upper it"(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT upper($1)'`,
		`CREATE INDEX docs_upper ON docs ("upper it"(word))`,
		`CREATE VIEW uppers AS SELECT "upper it"(owner) FROM docs`, `COMMENT ON VIEW uppers IS 'of owners'`,
		`CREATE MATERIALIZED VIEW many AS SELECT * FROM uppers`, `CREATE INDEX many_one ON many ((1))`,
		`CREATE FUNCTION remote() RETURNS dblink_pkey_results LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'`,
		`CREATE SCHEMA other`, `CREATE TABLE other.rates (r int)`,
		`CREATE FUNCTION rate() RETURNS int LANGUAGE plpgsql IMMUTABLE AS
			'BEGIN RETURN (SELECT count(*) FROM other.rates); END'`,
		`CREATE INDEX docs_rate ON docs (id) WHERE id > public.rate()`,
		`CREATE MATERIALIZED VIEW rated AS SELECT public.rate()`,
		`ALTER SCHEMA other RENAME TO another`,
		`CREATE FUNCTION broken() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT x FROM nowhere); END'`)
	// Nobody but a superuser has such functions.
	admin(fmt.Sprintf(`CREATE OR REPLACE FUNCTION "upper it"(text) RETURNS text LANGUAGE internal IMMUTABLE STRICT AS
		'upper';
		ALTER FUNCTION "upper it"(text) OWNER TO %q`, p.source.Role))
	admin(`CREATE OPERATOR CLASS backwards FOR TYPE int USING btree AS
		OPERATOR 1 >, OPERATOR 2 >=, OPERATOR 3 =, OPERATOR 4 <=, OPERATOR 5 <, FUNCTION 1 btint4cmp(int, int)`)
	statistics := pgtest.SourceVersion() < 17 && pgtest.TargetVersion() >= 17
	if statistics {
		p.sql(t, `CREATE VIEW checkpoints AS SELECT buffers_backend FROM pg_stat_bgwriter`)
	}
	onTarget := p.target.Connect(t)
	_, err := onTarget.Exec(t.Context(), `CREATE TYPE mood AS ENUM ()`)
	require.NoError(t, err)

	blockers, all := rehearsalFindings(t, p.migrator(t))
	require.Contains(t, all, "extension dblink cannot be created on the target")
	require.Contains(t, all, "function public.remote() cannot be created on the target: type ")
	require.Contains(t, all, "type public.mood cannot be created on the target: type \"mood\" already exists")
	require.Contains(t, all, "function public.upper it(\"text\") cannot be created on the target: permission denied")
	for _, needs := range []string{"view public.uppers", "materialized view public.many", "index public.docs_upper"} {
		require.Contains(t, all, needs+" cannot be created on the target, since it needs ")
	}
	require.Contains(t, all, "reading table public.docs fails: relation \"other.rates\" does not exist")
	require.Contains(t, all, "for roles that do not exist on the target: policy public.docs see.")
	require.Contains(t, all, "materialized view public.rated cannot be filled on the target: relation \"other.rates\"")
	require.Contains(t, all, "operator class public.backwards cannot be created on the target: must be superuser")
	require.NotContains(t, all, "broken")
	require.NotContains(t, all, "moods")

	// The remedies, one by one.
	roles := regexp.MustCompile(`On the target: (CREATE ROLE .*?); or leave`)
	for _, f := range blockers {
		if m := roles.FindStringSubmatch(f.Remedy); m != nil {
			require.Contains(t, m[1], one)
			_, err := onTarget.Exec(t.Context(), m[1])
			require.NoError(t, err, m[1])
		}
	}
	_, err = target.Exec(t.Context(), `CREATE EXTENSION dblink; DROP TYPE mood`)
	require.NoError(t, err)
	p.sql(t, `CREATE OR REPLACE FUNCTION rate() RETURNS int LANGUAGE plpgsql IMMUTABLE
		AS 'BEGIN RETURN (SELECT count(*) FROM another.rates); END'`)
	blockers, all = rehearsalFindings(t, p.migrator(t))
	require.NotContains(t, all, "public.rated")
	require.NotContains(t, all, "docs_rate")
	var byName []string // where the remedy says so
	for _, f := range blockers {
		if m := regexp.MustCompile(`--leave-out '(.*?)'`).FindStringSubmatch(f.Remedy); m != nil {
			byName = append(byName, m[1])
		}
	}
	require.Equal(t, statistics, slices.Contains(byName, "view public.checkpoints"))

	// Left out by name: as the remedy says, with what needs it; and names that mean nothing, or rows.
	name := regexp.MustCompile(`--leave-out '(function .*?)'`).FindStringSubmatch(all)
	require.NotNil(t, name, all)
	_, wrong := rehearsalFindings(t, p.migrator(t, func(c *migrator.Config) {
		c.LeaveOut = []string{"nothing", "table public.docs"}
	}))
	require.Contains(t, wrong, "blocker leave_out: There is no object to be left out of this name: nothing.")
	require.Contains(t, wrong, "cannot be left out, since rows are in them or told apart by them: table public.docs.")
	leaving := func(c *migrator.Config) { c.LeaveOut = byName }
	m := p.migrator(t, leaving)
	blockers, all = rehearsalFindings(t, m)
	require.Empty(t, blockers, all)
	for _, left := range []string{
		name[1], "view public.uppers", "materialized view public.many", "index public.docs_upper",
	} {
		require.Regexp(t, "info leave_out: These are left out.*"+regexp.QuoteMeta(left), all)
	}

	require.NoError(t, m.Run(withTimeout(t, 3*time.Minute), migrator.UntilInSync))
	p.requireEqual(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx, "") }()
	defer func() { stop(); <-ended }()
	p.sql(t, `CREATE OR REPLACE VIEW uppers AS SELECT "upper it"(owner), 1 AS n FROM docs`, `INSERT INTO docs VALUES
		(200, 'x', 'y')`)
	do(t, m, migrator.CommandSwitch)
	st, err := m.Status(t.Context())
	require.NoError(t, err)
	for _, left := range append(byName, "view public.uppers", "index public.docs_upper", "index public.many_one") {
		require.Contains(t, st.Report.LeftOut, left)
	}
	require.Contains(t, strings.Join(st.Skipped, "\n"), "view public.uppers: follows from "+name[1]+
		", which is left out")
	var left, matching int
	require.NoError(t, onTarget.QueryRow(t.Context(), `SELECT count(*), (SELECT count(*) FROM pg_policy WHERE
		cardinality(polroles) = 2)
		FROM pg_class WHERE relname IN ('uppers', 'many', 'docs_upper')`).Scan(&left, &matching))
	require.Zero(t, left)
	require.Equal(t, 1, matching)
	do(t, m, migrator.CommandRevert)
	do(t, m, migrator.CommandSwitch)
	do(t, m, migrator.CommandComplete)
	p.requireEqual(t)
}

// blind is a target that rehearses nothing the first time: something has come since preflight.
type blind struct {
	migrator.Target

	looked bool
}

func (b *blind) Rehearse(ctx context.Context, objects []migrator.SchemaObject) (*migrator.Rehearsal, error) {
	if !b.looked {
		b.looked = true
		return &migrator.Rehearsal{}, nil
	}
	return b.Target.Rehearse(ctx, objects)
}

// Before anything is captured, a run waits for a person until what will be created can be.
func TestRehearsalWaits(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	role := p.source.Name + "_role"
	admin := p.source.ConnectAdmin(t)
	_, err := admin.Exec(t.Context(), fmt.Sprintf(`CREATE ROLE %q`, role))
	require.NoError(t, err)
	dropRoles(t, p, role)
	p.sql(t, `CREATE TABLE docs (id int PRIMARY KEY)`, `INSERT INTO docs SELECT generate_series(1, 100)`,
		fmt.Sprintf(`CREATE POLICY see ON docs TO %q USING (true)`, role),
		`CREATE VIEW plain AS SELECT 1 AS x`, `CREATE RULE r AS ON UPDATE TO docs WHERE false DO ALSO SELECT x FROM
			plain`)
	var target *blind
	m := p.migrator(t, func(c *migrator.Config) {
		target = &blind{Target: c.Target}
		c.Target = target
	})
	ended := make(chan error, 1)
	go func() { ended <- m.Run(withTimeout(t, 3*time.Minute), migrator.UntilInSync) }()
	var st *migrator.Status
	require.Eventually(t, func() bool {
		st, err = p.migrator(t).Status(t.Context()) // in another process
		return err == nil && st.Waiting != nil && strings.Contains(st.Waiting.Reason, "policy public.docs see: role")
	}, time.Minute, 200*time.Millisecond)
	require.Equal(t, migrator.PhaseConfiguring, st.Phase)
	require.Contains(t, st.Waiting.Reason, fmt.Sprintf(`On the target: CREATE ROLE %q, or leave it out`, role))
	var triggers int
	require.NoError(t, admin.QueryRow(t.Context(), `SELECT count(*) FROM pg_trigger WHERE tgname LIKE
		'heroku\_migrator%'`).Scan(&triggers))
	require.Zero(t, triggers)
	_, err = p.target.Connect(t).Exec(t.Context(), fmt.Sprintf(`CREATE ROLE %q`, role))
	require.NoError(t, err)
	require.NoError(t, <-ended)
	p.requireEqual(t)
	st, err = m.Status(t.Context())
	require.NoError(t, err)
	require.Nil(t, st.Waiting)
	do(t, m, migrator.CommandAbort)
}
