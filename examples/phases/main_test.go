package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator/internal/pgtest"
)

var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "phases")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "phases")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		panic(string(out))
	}
	status := pgtest.Main(m)
	_ = os.RemoveAll(dir)
	os.Exit(status)
}

// Each phase in a process of its own, in order, with changes in between; none works out of order.
func TestPhases(t *testing.T) {
	source, target := pgtest.Shared(t, pgtest.SourceVersion()), pgtest.Shared(t, pgtest.TargetVersion())
	tools, err := source.PgTools(t.Context())
	require.NoError(t, err)
	from, to := source.NewSource(t), target.NewTarget(t)
	sql := func(db *pgtest.Database, statement string) error {
		c, err := pgx.Connect(t.Context(), db.URL)
		require.NoError(t, err)
		defer c.Close(context.Background())
		_, err = c.Exec(t.Context(), statement)
		return err
	}
	require.NoError(t, sql(from, `CREATE TABLE people (id bigserial PRIMARY KEY, name text);
		CREATE TABLE pets (id serial PRIMARY KEY, owner bigint NOT NULL REFERENCES people, name text UNIQUE);
		INSERT INTO people (name) SELECT 'person ' || i FROM generate_series(1, 2000) i;
		INSERT INTO pets (owner, name) SELECT id, 'pet ' || id FROM people`))
	command := func(name string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), binary, name)
		cmd.Env = []string{"PATH=" + tools + ":" + os.Getenv("PATH"), "HEROKU_URL=" + from.URL, "PLANETSCALE_URL=" + to.URL}
		return cmd
	}
	run := func(name string) string {
		out, err := command(name).CombinedOutput()
		require.NoError(t, err, "%s: %s", name, out)
		return string(out)
	}
	refused := func(name, why string) {
		out, err := command(name).CombinedOutput()
		require.ErrorAs(t, err, new(*exec.ExitError))
		require.Contains(t, string(out), why)
	}
	count := func(db *pgtest.Database, query string) (n int64) {
		require.NoError(t, db.Connect(t).QueryRow(t.Context(), query).Scan(&n))
		return n
	}

	refused("", "clone-schema")
	refused("copy", "no migration is recorded")
	run("preflight")
	run("clone-schema")
	run("clone-schema") // each may be repeated
	refused("copy", "the migration is in phase configuring, and copy belongs to [ready_to_copy copying]")
	run("capture")
	require.NoError(t, sql(from, `UPDATE people SET name = 'changed' WHERE id <= 10; INSERT INTO people (name) VALUES ('new')`))
	run("copy")
	run("build-indexes")
	require.NoError(t, sql(from, `DELETE FROM pets WHERE owner > 1990; ALTER TABLE people ADD born date`))
	until := func(name string, done func() bool) {
		cmd := command(name)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		require.NoError(t, cmd.Start())
		require.Eventually(t, done, time.Minute, 100*time.Millisecond)
		refused(name, "another process leads")
		require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		require.NoError(t, cmd.Wait(), out.String())
	}
	until("replicate", func() bool {
		return count(to, `SELECT count(*) FROM pets`) == 1990 && count(to, `SELECT count(*) FROM pg_attribute WHERE attname = 'born'`) == 1
	})
	require.Contains(t, run("verify"), "public.people 2001 rows, differs: false")
	require.Contains(t, run("switch"), "ms without writes")
	require.Error(t, sql(from, `INSERT INTO people (name) VALUES ('too late')`))
	require.NoError(t, sql(to, `INSERT INTO people (name) VALUES ('on the target')`))
	until("way-back", func() bool { return count(from, `SELECT count(*) FROM people`) == 2002 })
	run("revert")
	require.NoError(t, sql(from, `INSERT INTO people (name) VALUES ('on the source')`))
	refused("complete", "the migration is in phase replicating")
	run("switch")
	run("complete")
	require.Equal(t, int64(2003), count(to, `SELECT count(*) FROM people`))
	for _, db := range []*pgtest.Database{from, to} {
		require.Zero(t, count(db, `SELECT (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'heroku\_migrator%') + (SELECT count(*) FROM pg_namespace WHERE nspname = 'heroku_migrator')`))
	}
	out, err := exec.Command(binary, "preflight").CombinedOutput()
	require.ErrorAs(t, err, new(*exec.ExitError))
	require.Contains(t, string(out), "HEROKU_URL: source: connection URL: it is empty")
}
