package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/heroku-migrator/migrator/internal/pgtest"
)

var (
	//go:embed schema.sql
	schemaSQL string
	//go:embed rows.sql
	rowsSQL string
)

// settings are those of both servers: durable as by default, with the memory of a small production server.
var settings = map[string]string{
	"fsync":          "on",
	"shared_buffers": "1GB",
	"max_wal_size":   "4GB",
}

// bench is one run: the servers, the database that is copied, and the programs.
type bench struct {
	cfg            config
	began          time.Time
	dir            string // temporary
	source, target *pgtest.Cluster
	tools          string // pg_dump, pg_restore and psql of the source's version
	migrate        string // the program that is measured
	db             *pgtest.Database
	tables         []table // largest first
}

// table is a table with rows, as it is on disk.
type table struct {
	name  string // with its schema, quoted
	pages int64
	bytes int64 // with TOAST, without indexes
}

func newBench(ctx context.Context, cfg config) (_ *bench, err error) {
	b := &bench{cfg: cfg, began: time.Now()}
	defer func() { //nolint:contextcheck // it has to happen whatever became of the context
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.dir, err = os.MkdirTemp("", "heroku-migrator-bench-"); err != nil {
		return b, err
	}
	b.migrate = filepath.Join(b.dir, "heroku-migrate")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", b.migrate, "github.com/heroku-migrator/migrator/examples/heroku-migrate").CombinedOutput(); err != nil {
		return b, fmt.Errorf("building heroku-migrate: %w\n%s", err, out)
	}
	b.sayf("starting Postgres %d and %d", pgtest.SourceVersion(), pgtest.TargetVersion())
	if b.source, err = pgtest.StartWith(ctx, pgtest.SourceVersion(), pgtest.Options{Settings: settings}); err != nil {
		return b, err
	}
	if b.target, err = pgtest.StartWith(ctx, pgtest.TargetVersion(), pgtest.Options{Settings: settings}); err != nil {
		return b, err
	}
	if b.tools, err = b.source.PgTools(ctx); err != nil {
		return b, err
	}
	b.sayf("generating the database at scale %v", cfg.scale)
	if b.db, err = b.generate(ctx, schemaSQL); err != nil {
		return b, err
	}
	if b.tables, err = sizes(ctx, b.db); err != nil {
		return b, err
	}
	for i, t := range b.tables {
		if i < 4 {
			b.sayf("  %s %.0f MB", t.name, float64(t.bytes)/1e6)
		}
	}
	b.sayf("  %d tables, %.0f MB without indexes", len(b.tables), float64(b.bytes())/1e6)
	return b, nil
}

func (b *bench) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	for _, c := range []*pgtest.Cluster{b.source, b.target} {
		if c != nil {
			errs = append(errs, c.Close(ctx))
		}
	}
	if b.dir != "" {
		errs = append(errs, os.RemoveAll(b.dir))
	}
	return errors.Join(errs...)
}

func (b *bench) bytes() int64 { return total(b.tables) }

func total(tables []table) (n int64) {
	for _, t := range tables {
		n += t.bytes
	}
	return n
}

// generate makes a source database by a script.
func (b *bench) generate(ctx context.Context, script string) (*pgtest.Database, error) {
	db, err := b.source.CreateSource(ctx)
	if err != nil {
		return nil, err
	}
	if err := plainPassword(ctx, db); err != nil {
		return nil, err
	}
	conn, err := pgx.Connect(ctx, db.URL)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, sql := range []string{
		"SET TimeZone = 'UTC'; SET maintenance_work_mem = '256MB'",
		fmt.Sprintf("SET bench.scale = '%v'", b.cfg.scale),
		script,
		// Nothing is left for autovacuum, nor hint bits for the first who reads.
		"VACUUM (ANALYZE)",
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return nil, fmt.Errorf("generating: %w", err)
		}
	}
	return db, nil
}

// sizes reads the tables of a database, largest first.
func sizes(ctx context.Context, db *pgtest.Database) ([]table, error) {
	conn, err := pgx.Connect(ctx, db.AdminURL)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, `
		SELECT format('%I.%I', n.nspname, c.relname), pg_relation_size(c.oid) / current_setting('block_size')::int, pg_table_size(c.oid)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'heroku_migrator', 'bucardo')
		ORDER BY 3 DESC, 1`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (t table, err error) {
		return t, row.Scan(&t.name, &t.pages, &t.bytes)
	})
}

// counts reads the number of rows of each table.
func counts(ctx context.Context, db *pgtest.Database, tables []table) (map[string]int64, error) {
	conn, err := pgx.Connect(ctx, db.AdminURL)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	n := map[string]int64{}
	for _, t := range tables {
		var rows int64
		if err := conn.QueryRow(ctx, "SELECT count(*) FROM "+t.name).Scan(&rows); err != nil {
			return nil, err
		}
		n[t.name] = rows
	}
	return n, nil
}

// sameCounts finds out whether a tool has copied everything: rows, and indexes and constraints where it says so.
func sameCounts(ctx context.Context, from, to *pgtest.Database, whole bool) error {
	tables, err := sizes(ctx, from)
	if err != nil {
		return err
	}
	want, err := counts(ctx, from, tables)
	if err != nil {
		return err
	}
	got, err := counts(ctx, to, tables)
	if err != nil {
		return err
	}
	var wrong []string
	for name, n := range want {
		if got[name] != n {
			wrong = append(wrong, fmt.Sprintf("%s has %d of %d rows", name, got[name], n))
		}
	}
	if whole {
		const objects = `SELECT (SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
				WHERE n.nspname = 'public' AND i.indisvalid) || ' indexes and '
			|| (SELECT count(*) FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype = 'f' AND convalidated) || ' foreign keys'`
		var here, there string
		if err := errors.Join(queryRow(ctx, from.AdminURL, objects, &here), queryRow(ctx, to.AdminURL, objects, &there)); err != nil {
			return err
		}
		if here != there {
			wrong = append(wrong, fmt.Sprintf("%s, not %s", there, here))
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("the copy is not complete: %s", strings.Join(wrong, "; "))
	}
	return nil
}

func queryRow(ctx context.Context, dsn, sql string, dest ...any) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return conn.QueryRow(ctx, sql).Scan(dest...)
}

func execute(ctx context.Context, dsn string, statements ...string) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

// settle ends what earlier measurements have left to the servers.
func (b *bench) settle(ctx context.Context) error {
	return errors.Join(execute(ctx, b.source.AdminURL("postgres"), "CHECKPOINT"), execute(ctx, b.target.AdminURL("postgres"), "CHECKPOINT"))
}

// plainPassword replaces the database's password, which tries out every special character: Bucardo does not get
// along with them.
func plainPassword(ctx context.Context, db *pgtest.Database) error {
	u, err := url.Parse(db.URL)
	if err != nil {
		return err
	}
	const password = "bench" // of a throw-away database that only this machine can reach
	u.User = url.UserPassword(db.Role, password)
	db.URL = u.String()
	return execute(ctx, db.AdminURL, fmt.Sprintf("ALTER ROLE %s PASSWORD '%s'", pgx.Identifier{db.Role}.Sanitize(), password))
}

// passless is a URL for a command line, whose password is in the environment of command.
func passless(db *pgtest.Database) string {
	u, err := url.Parse(db.URL)
	if err != nil { // pgtest made it
		panic(err)
	}
	u.User = url.User(u.User.Username())
	return u.String()
}

// through is the URL with another server's address.
func through(dsn, addr string) string {
	u, err := url.Parse(dsn)
	if err != nil { // pgtest made it
		panic(err)
	}
	u.Host = addr
	return u.String()
}

// writePasswords writes a password file for the databases into the folder, and returns its name.
func writePasswords(dir string, databases ...*pgtest.Database) (string, error) {
	escape := strings.NewReplacer(`\`, `\\`, `:`, `\:`)
	var lines strings.Builder
	for _, db := range databases {
		u, err := url.Parse(db.URL)
		if err != nil {
			return "", err
		}
		password, _ := u.User.Password()
		fmt.Fprintf(&lines, "127.0.0.1:%d:%s:%s:%s\n", db.Cluster.Port(), db.Name, db.Role, escape.Replace(password))
	}
	name := filepath.Join(dir, "pgpass")
	return name, os.WriteFile(name, []byte(lines.String()), 0o600)
}

// facts are what a reader of the figures has to know.
func (b *bench) facts(ctx context.Context) []string {
	var source, target string
	var size int64
	const version = "SELECT current_setting('server_version')"
	_ = queryRow(ctx, b.source.AdminURL("postgres"), version, &source) // shown as nothing
	_ = queryRow(ctx, b.target.AdminURL("postgres"), version, &target)
	_ = queryRow(ctx, b.db.AdminURL, "SELECT pg_database_size(current_database())", &size)
	facts := []string{
		time.Now().UTC().Format("2006-01-02 15:04 UTC"),
		fmt.Sprintf("%d cores (%s), %s of memory, %s/%s, %s", runtime.NumCPU(), processor(), memory(), runtime.GOOS, runtime.GOARCH, runtime.Version()),
		fmt.Sprintf("Postgres %s to %s on the same machine; fsync on, shared_buffers %s, max_wal_size %s", source, target, settings["shared_buffers"], settings["max_wal_size"]),
		fmt.Sprintf("SCALE %v: %d tables, %.0f MB of rows (TOAST counted), %.0f MB with indexes; ROUNDS %d", b.cfg.scale, len(b.tables), float64(b.bytes())/1e6, float64(size)/1e6, b.cfg.rounds),
		"client programs: " + firstLine(ctx, filepath.Join(b.tools, "pg_dump"), "--version"),
	}
	if out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty").Output(); err == nil {
		facts = append(facts, "commit "+strings.TrimSpace(string(out)))
	}
	facts = append(facts, "load of the machine before the first measurement: "+load())
	return facts
}

func firstLine(ctx context.Context, program string, args ...string) string {
	out, err := exec.CommandContext(ctx, program, args...).Output() //nolint:gosec // the harness says which program
	if err != nil {
		return err.Error()
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}

// load is the average number of processes that ran or waited to, over the last minute.
func load() string {
	text, _ := os.ReadFile("/proc/loadavg") // not there elsewhere
	average, _, _ := strings.Cut(string(text), " ")
	return average
}

func processor() string {
	info, _ := os.ReadFile("/proc/cpuinfo") // not there elsewhere
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

func memory() string {
	info, _ := os.ReadFile("/proc/meminfo") // not there elsewhere
	for line := range strings.Lines(string(info)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "MemTotal:" {
			if kb, err := strconv.ParseFloat(fields[1], 64); err == nil {
				return fmt.Sprintf("%.0f GiB", kb/(1<<20))
			}
		}
	}
	return "unknown"
}
