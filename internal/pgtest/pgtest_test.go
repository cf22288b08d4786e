package pgtest_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/heroku-migrator/migrator/internal/pgtest"
)

const childVariable = "PGTEST_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		beKilled()
	}
	os.Exit(pgtest.Main(m))
}

// beKilled starts a cluster, says where it is and waits for its end.
func beKilled() {
	c, err := pgtest.Start(context.Background(), pgtest.SourceVersion())
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println(c.AdminURL("postgres"))
	select {}
}

func source(t *testing.T) *pgtest.Cluster {
	t.Helper()
	return pgtest.Shared(t, pgtest.SourceVersion())
}

func target(t *testing.T) *pgtest.Cluster {
	t.Helper()
	return pgtest.Shared(t, pgtest.TargetVersion())
}

func TestSourceRoleIsLikeHerokus(t *testing.T) {
	t.Parallel()
	db := source(t).NewSource(t, pgtest.WithConnectionLimit(120))
	conn := db.Connect(t)

	var super, createdb, createrole, replication, bypass, owner, monitor, signal bool
	var limit int
	err := conn.QueryRow(t.Context(), `SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls, rolconnlimit,
			(SELECT datdba = r.oid FROM pg_database WHERE datname = current_database()),
			pg_has_role(oid, 'pg_monitor', 'member') AND pg_has_role(oid, 'pg_read_all_stats', 'member'),
			pg_has_role(oid, 'pg_signal_backend', 'member')
		FROM pg_roles r WHERE rolname = current_user`).
		Scan(&super, &createdb, &createrole, &replication, &bypass, &limit, &owner, &monitor, &signal)
	require.NoError(t, err)
	assert.False(t, super || createdb || createrole || replication || bypass)
	assert.True(t, owner && monitor && signal)
	assert.Equal(t, 120, limit)

	_, err = conn.Exec(t.Context(), "SET session_replication_role = replica")
	assert.ErrorContains(t, err, "permission denied")
	_, err = conn.Exec(t.Context(), "CREATE TABLE public.t (id bigint PRIMARY KEY)")
	assert.NoError(t, err)
}

func TestTargetRoleIsLikePlanetScales(t *testing.T) {
	t.Parallel()
	c := target(t)
	db := c.NewTarget(t)
	conn := db.Connect(t)

	var super, createdb, createrole, inherit, replication, bypass bool
	err := conn.QueryRow(t.Context(), `SELECT rolsuper, rolcreatedb, rolcreaterole, rolinherit, rolreplication, rolbypassrls
		FROM pg_roles WHERE rolname = current_user`).Scan(&super, &createdb, &createrole, &inherit, &replication, &bypass)
	require.NoError(t, err)
	assert.False(t, super)
	assert.True(t, createdb && createrole && inherit && replication && bypass)

	memberOf := []string{"pg_read_all_data", "pg_write_all_data", "pg_monitor", "pg_signal_backend", "pg_checkpoint"}
	if c.Version >= 16 {
		memberOf = append(memberOf, "pg_create_subscription")
	}
	if c.Version >= 17 {
		memberOf = append(memberOf, "pg_maintain")
	}
	for _, role := range memberOf {
		var member bool
		require.NoError(t, conn.QueryRow(t.Context(), "SELECT pg_has_role($1, 'member')", role).Scan(&member))
		assert.True(t, member, role)
	}

	_, err = conn.Exec(t.Context(), "SET session_replication_role = replica")
	assert.NoError(t, err)
	without := c.NewTarget(t, pgtest.WithoutReplicationRole()).Connect(t)
	_, err = without.Exec(t.Context(), "SET session_replication_role = replica")
	assert.ErrorContains(t, err, "permission denied")
}

func TestAddRole(t *testing.T) {
	t.Parallel()
	db := source(t).NewSource(t)
	_, err := db.Connect(t).Exec(t.Context(), "CREATE SCHEMA other; CREATE TABLE other.t (id bigserial PRIMARY KEY)")
	require.NoError(t, err)
	second := db.AddRole(t, "worker")
	conn := second.Connect(t)
	_, err = conn.Exec(t.Context(), "INSERT INTO other.t DEFAULT VALUES; UPDATE other.t SET id = 7; DELETE FROM other.t")
	assert.NoError(t, err)
	_, err = conn.Exec(t.Context(), "TRUNCATE other.t")
	assert.ErrorContains(t, err, "permission denied")
}

func TestDatabasesInParallel(t *testing.T) {
	t.Parallel()
	c := source(t)
	names := make([]string, 4)
	var group errgroup.Group
	for i := range names {
		group.Go(func() error {
			db, err := c.CreateSource(t.Context())
			if err != nil {
				return err
			}
			names[i] = db.Name
			conn, err := pgx.Connect(t.Context(), db.URL)
			if err != nil {
				return err
			}
			if _, err := conn.Exec(t.Context(), "CREATE TABLE t AS SELECT generate_series(1, 10)"); err != nil {
				return err
			}
			return db.Drop(t.Context()) // with the connection still open
		})
	}
	require.NoError(t, group.Wait())

	admin, err := pgx.Connect(t.Context(), c.AdminURL("postgres"))
	require.NoError(t, err)
	defer admin.Close(t.Context())
	var left int
	require.NoError(t, admin.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM pg_database WHERE datname = ANY ($1))
		+ (SELECT count(*) FROM pg_roles, unnest($1::text[]) AS name WHERE starts_with(rolname, name))`, names).Scan(&left))
	assert.Zero(t, left)
}

func TestDropReleasesSlotsAndPreparedTransactions(t *testing.T) {
	t.Parallel()
	db := target(t).NewTarget(t)
	conn := db.Connect(t)
	for _, statement := range []string{
		"SELECT pg_create_logical_replication_slot(current_database() || '_slot', 'pgoutput')",
		"BEGIN",
		"CREATE TABLE t (id int)",
		"PREPARE TRANSACTION '" + db.Name + "'",
	} {
		_, err := conn.Exec(t.Context(), statement)
		require.NoError(t, err, statement)
	}
	require.NoError(t, db.Drop(t.Context()))
}

func TestSettings(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("needs a Postgres server")
	}
	begin := time.Now()
	c, err := pgtest.StartWith(t.Context(), pgtest.SourceVersion(), pgtest.Options{Settings: map[string]string{"fsync": "on", "work_mem": "9MB"}})
	require.NoError(t, err)
	t.Logf("started in %v", time.Since(begin).Round(time.Millisecond))
	conn, err := pgx.Connect(t.Context(), c.AdminURL("postgres"))
	require.NoError(t, err)
	for name, want := range map[string]string{"fsync": "on", "work_mem": "9MB", "wal_level": "logical"} {
		var got string
		require.NoError(t, conn.QueryRow(t.Context(), "SELECT current_setting($1)", name).Scan(&got))
		assert.Equal(t, want, got, name)
	}
	begin = time.Now()
	require.NoError(t, c.Close(t.Context()))
	t.Logf("closed in %v", time.Since(begin).Round(time.Millisecond))
	require.NoError(t, c.Close(t.Context()))
	assert.Error(t, conn.Ping(t.Context()))
}

func TestBadSettingShowsTheLog(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("needs a Postgres server")
	}
	_, err := pgtest.StartWith(t.Context(), pgtest.SourceVersion(), pgtest.Options{Settings: map[string]string{"no_such_setting": "1"}})
	assert.ErrorContains(t, err, "no_such_setting")
}

// A process that is killed leaves no server behind.
func TestNothingIsLeftAfterKill(t *testing.T) {
	t.Parallel()
	for _, backend := range backends(t) {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			child := exec.Command(os.Args[0])
			child.Env = append(os.Environ(), childVariable+"=1", "PGTEST_BACKEND="+backend)
			child.Stderr = os.Stderr
			stdout, err := child.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, child.Start())
			defer func() { _ = child.Process.Kill() }()
			url, err := bufio.NewReader(stdout).ReadString('\n')
			require.NoError(t, err)
			url = strings.TrimSpace(url)
			conn, err := pgx.Connect(t.Context(), url)
			require.NoError(t, err, "the child said: %s", url)
			defer conn.Close(context.Background())
			var dataDir string
			require.NoError(t, conn.QueryRow(t.Context(), "SHOW data_directory").Scan(&dataDir))

			require.NoError(t, child.Process.Kill())
			killed := time.Now()
			_ = child.Wait()
			gone := func() bool {
				if backend == "docker" {
					out, err := exec.Command("docker", "ps", "-aq", "--filter",
						"label=heroku-migrator.pgtest.pid="+strconv.Itoa(child.Process.Pid)).Output()
					return err == nil && len(out) == 0
				}
				_, err := os.Stat(filepath.Dir(dataDir))
				return os.IsNotExist(err)
			}
			require.Eventually(t, gone, 10*time.Second, 50*time.Millisecond)
			t.Logf("gone %v after the kill", time.Since(killed).Round(time.Millisecond))
			assert.Error(t, conn.Ping(t.Context()))
			_, err = pgx.Connect(t.Context(), url)
			assert.Error(t, err)
		})
	}
}

// backends lists the ways to run a server that work on this machine.
func backends(t *testing.T) []string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a Postgres server")
	}
	if forced := os.Getenv("PGTEST_BACKEND"); forced != "" {
		return []string{forced}
	}
	var found []string
	if exec.Command("docker", "version").Run() == nil {
		found = append(found, "docker")
	}
	if _, err := os.Stat(fmt.Sprintf("/usr/lib/postgresql/%d/bin/postgres", pgtest.SourceVersion())); err == nil {
		found = append(found, "binaries")
	}
	return found
}

func TestPgTools(t *testing.T) {
	t.Parallel()
	for _, c := range []*pgtest.Cluster{source(t), target(t)} {
		begin := time.Now()
		dir, err := c.PgTools(t.Context())
		require.NoError(t, err)
		t.Logf("tools of %d in %v: %s", c.Version, time.Since(begin).Round(time.Millisecond), dir)
		for _, tool := range []string{"pg_dump", "pg_restore", "psql"} {
			out, err := exec.Command(filepath.Join(dir, tool), "--version").CombinedOutput()
			require.NoError(t, err, "%s", out)
			assert.Contains(t, string(out), fmt.Sprintf("%s (PostgreSQL) %d.", tool, c.Version))
		}

		// Binary through pipes: a custom-format dump with its data restored.
		from, to := c.NewSource(t), c.NewTarget(t)
		_, err = from.Connect(t).Exec(t.Context(), `CREATE TABLE t AS
			SELECT g AS id, decode(md5(g::text), 'hex') AS bytes FROM generate_series(1, 1000) g`)
		require.NoError(t, err)
		dump := exec.Command(filepath.Join(dir, "pg_dump"), "-Fc", "--no-owner", "-d", from.URL)
		var archive, problems bytes.Buffer
		dump.Stdout, dump.Stderr = &archive, &problems
		require.NoError(t, dump.Run(), &problems)
		restore := exec.Command(filepath.Join(dir, "pg_restore"), "--no-owner", "--exit-on-error", "-d", to.URL)
		restore.Stdin, restore.Stderr = &archive, &problems
		require.NoError(t, restore.Run(), &problems)
		sum := func(db *pgtest.Database) (s string) {
			require.NoError(t, db.Connect(t).QueryRow(t.Context(), "SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM t").Scan(&s))
			return s
		}
		assert.Equal(t, sum(from), sum(to))
	}
}
