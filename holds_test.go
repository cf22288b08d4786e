package migrator_test

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgtest"
)

//go:embed testdata/holds.sql
var holdsSchema string

func dumpText(t *testing.T, tools string, db *pgtest.Database) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(tools, "pg_dump"), "--schema-only", "--no-owner", "--no-privileges", "--no-publications", db.AdminURL)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	var lines []string
	for line := range strings.Lines(string(out)) {
		if !dumpNoise.MatchString(line) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// dumpNoise is what tells of the server and the moment, not of the schema.
var dumpNoise = regexp.MustCompile(`^(-- Dumped |SET |\\(un)?restrict )`)

// restored is the source's schema as the target's version of Postgres holds it.
func (p *pair) restored(t *testing.T, tools string) *pgtest.Database {
	t.Helper()
	db := p.target.Cluster.NewTarget(t)
	script := filepath.Join(t.TempDir(), "schema.sql")
	out, err := exec.CommandContext(t.Context(), filepath.Join(tools, "pg_dump"), "--schema-only", "--no-owner", "--no-privileges", "--no-publications", "-f", script, p.source.AdminURL).CombinedOutput()
	require.NoError(t, err, string(out))
	out, err = exec.CommandContext(t.Context(), filepath.Join(tools, "psql"), "-qXo", "/dev/null", "-v", "ON_ERROR_STOP=1", "-f", script, db.AdminURL).CombinedOutput()
	require.NoError(t, err, string(out))
	return db
}

// holdsWrites are what writers do to it meanwhile, again and again; $1 is a number.
var holdsWrites = []string{
	`UPDATE app.types SET n = n + 1, hs = app.hstore('n', '%[1]d'), line.m = 'ecstatic' WHERE lt ~ '*.x%[2]d'`,
	`INSERT INTO app.types (id, ci, scores, code) VALUES (gen_random_uuid(), 'new%[1]d', '{3,4}', 1) ON CONFLICT DO NOTHING`,
	`DELETE FROM app.types WHERE ci = 'NEW%[2]d'`,
	`UPDATE "Select"."order" SET "user" = "user" + 100, "quo""te" = 'moved' WHERE "user" = %[2]d`,
	`UPDATE "Select"."order" SET "user" = "user" - 100 WHERE "user" = %[2]d + 100`,
	`UPDATE "we ird.""schema"""."ta.ble ""x""" SET "c""d" = 'w' || %[1]d WHERE "a.b" = %[2]d`,
	`UPDATE "日本語のテーブル" SET "line
break" = '値%[1]d' WHERE "キー" = %[2]d`,
	"UPDATE \"new\nline\" SET v = %[1]d WHERE id = %[2]d",
	`INSERT INTO unlogged (v) VALUES ('w%[1]d')`,
	`UPDATE generated_too SET a = -a WHERE abs(a) = %[2]d`,
	`UPDATE generated_only SET id = DEFAULT WHERE %[1]d <> %[2]d`,
	`UPDATE child_with_columns SET id = -id WHERE abs(id) = %[2]d`,
	`UPDATE wide SET c1600 = %[1]d, c2 = NULL WHERE c1 = %[2]d`,
	`INSERT INTO identities (b) SELECT %[1]d WHERE %[2]d > 0`,
	`UPDATE app.bookings SET room = room + 1000 WHERE id = %[2]d`, // fails: the check
	`UPDATE app.bookings SET name = 'w%[1]d', kind = 'sad' WHERE id = %[2]d`,
	`UPDATE app.events SET v = 'w%[1]d', at = at + 50, kind = 'a' WHERE id = %[2]d`,
	`UPDATE hashed SET v = 'w%[1]d' WHERE id = %[2]d`,
	`UPDATE inherited SET v = 'w%[1]d' WHERE id = %[2]d`,
	`UPDATE aa_uses SET id = -id WHERE abs(id) = %[2]d`,
	`UPDATE typed SET y = %[1]d WHERE x = %[2]d`,
	`UPDATE huge SET t = 'w%[1]d' WHERE id = 20 AND %[2]d > 0`, // the others come by the copy
	`UPDATE searched SET body = 'the slow fox %[1]d' WHERE id = %[2]d`,
	`UPDATE settings SET x = %[1]d %% 10 WHERE id = %[2]d`,
	`UPDATE dropped_columns SET d = 'w%[1]d' WHERE c = %[2]d`,
}

// write runs writers until the function returned is called.
func (p *pair) write(t *testing.T, statements []string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wait sync.WaitGroup
	succeeded := make([]int, len(statements))
	for w := range 2 {
		c := p.source.Connect(t)
		wait.Go(func() {
			for n := w; ctx.Err() == nil; n++ {
				which := n % len(statements)
				_, err := c.Exec(ctx, fmt.Sprintf(statements[which], n, 1+n%20))
				if err == nil && w == 0 {
					succeeded[which]++
				}
				if code := state(err); err != nil && ctx.Err() == nil && code != "42501" && !strings.HasPrefix(code, "23") && !strings.HasPrefix(code, "40") {
					assert.NoError(t, err, statements[which])
					return
				}
				_ = sleepFor(ctx, 5*time.Millisecond)
			}
		})
	}
	return sync.OnceFunc(func() {
		cancel()
		wait.Wait()
		t.Log("writes:", succeeded)
	})
}

func sleepFor(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// Everything that a database holds arrives: every row, every object, and what the planner knows of them.
func TestEverythingADatabaseHolds(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	if p.source.Cluster.Version < 15 {
		t.Skip("its schema is written for 15")
	}
	c := p.source.Connect(t)
	execute(t, c, strings.Split(holdsSchema, ";\n")...)
	var columns []string
	for i := 2; i <= 1600; i++ {
		columns = append(columns, fmt.Sprintf("c%d int", i)) // without defaults, which cost pg_dump 9 s
	}
	execute(t, c, `CREATE TABLE wide (c1 int PRIMARY KEY, `+strings.Join(columns, ", ")+`); INSERT INTO wide SELECT generate_series(1, 20)`,
		`INSERT INTO huge SELECT 1, decode(repeat(md5('huge'), 12500000), 'hex')`, `INSERT INTO huge VALUES (20, 'small')`)
	if os.Getenv("MIGRATOR_LONG") != "" {
		execute(t, c, `ALTER TABLE huge ALTER t SET STORAGE EXTERNAL; INSERT INTO huge SELECT 2, NULL, repeat('900 MB of text.', 60000000)`,
			`INSERT INTO huge SELECT 3, decode(repeat(md5('huge'), 33000000), 'hex'); ALTER TABLE huge ALTER t SET STORAGE EXTENDED`)
	}
	execute(t, c, `REFRESH MATERIALIZED VIEW app.zzz_counts`, `REFRESH MATERIALIZED VIEW aaa_total`)
	stop := p.write(t, holdsWrites)
	defer stop()

	m := p.migrator(t)
	require.NoError(t, m.Run(withTimeout(t, 3*time.Minute), migrator.UntilInSync))
	status, err := m.Status(t.Context())
	require.NoError(t, err)
	for _, o := range status.Skipped {
		require.Contains(t, o, "comment extension") // only who installed an extension may comment on it
	}
	do(t, m, migrator.CommandSwitch)
	stop()
	p.requireEqual(t)
	do(t, m, migrator.CommandComplete)
	p.requireNoTrace(t)

	tools, err := p.target.Cluster.PgTools(t.Context())
	require.NoError(t, err)
	want := dumpText(t, tools, p.restored(t, tools))
	require.Greater(t, len(want), 50_000)
	require.Equal(t, want, dumpText(t, tools, p.target))
	if p.source.Cluster.Version == p.target.Cluster.Version {
		require.Equal(t, want, dumpText(t, tools, p.source))
	}

	target := p.target.ConnectAdmin(t)
	var missing []string
	require.NoError(t, target.QueryRow(t.Context(), `
		SELECT coalesce(array_agg(c.oid::regclass::text ORDER BY 1), '{}') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p', 'm') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relname NOT IN ('really_empty', 'nothing', 'parent_without_columns', 'generated_only')
		  AND NOT EXISTS (SELECT 1 FROM pg_statistic s WHERE s.starelid = c.oid)`).Scan(&missing))
	require.Empty(t, missing, "tables without statistics")
	require.Zero(t, count(t, target, `SELECT count(*) FROM pg_statistic_ext s WHERE NOT EXISTS (SELECT 1 FROM pg_statistic_ext_data d WHERE d.stxoid = s.oid)`), "extended statistics are empty")
	require.Zero(t, count(t, target, `SELECT count(*) FROM pg_class WHERE relkind = 'm' AND NOT relispopulated`))
	require.Equal(t, count(t, c, `SELECT count(*) FROM zz_keyed`), count(t, target, `SELECT count(*) FROM over_counts`))
	require.NotZero(t, count(t, target, `SELECT total::int8 FROM aaa_total`))
	for _, sequence := range []string{`app.odd`, `app.untouched`, `identities_a_seq`, `identities_c_seq`, `unlogged_id_seq`} {
		q := `SELECT last_value * 2 + is_called::int FROM ` + sequence
		require.Equal(t, count(t, c, q), count(t, target, q), sequence)
	}
}
