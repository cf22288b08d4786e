package pgtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Database is a database of its own with a role of its own on a cluster.
type Database struct {
	// URL connects as Role, AdminURL as the superuser.
	URL, AdminURL string
	// Name is the database's name, Role the name of its owner (or of the role
	// that AddRole made).
	Name, Role string
	// Cluster is the server the database is on.
	Cluster *Cluster

	roles []string // all roles made for the database
}

// DatabaseOption changes how a database or its role is made.
type DatabaseOption func(*databaseOptions)

type databaseOptions struct {
	connectionLimit   int
	replication       bool
	noReplicationRole bool
	encoding          string
}

// WithConnectionLimit gives the role a connection limit, as Heroku's plans do.
func WithConnectionLimit(n int) DatabaseOption {
	return func(o *databaseOptions) { o.connectionLimit = n }
}

// WithoutReplicationRole makes a target whose role may not set
// session_replication_role.
func WithoutReplicationRole() DatabaseOption {
	return func(o *databaseOptions) { o.noReplicationRole = true }
}

// WithReplication gives a source's role REPLICATION, which Heroku's has not: for logical decoding.
func WithReplication() DatabaseOption {
	return func(o *databaseOptions) { o.replication = true }
}

// WithEncoding makes a database with another encoding than the server's, and the locale C.
func WithEncoding(name string) DatabaseOption {
	return func(o *databaseOptions) { o.encoding = name }
}

// CreateSource makes a database with an owner like Heroku's default credential:
// neither superuser nor replication, not able to make roles or databases or to
// set session_replication_role, but member of pg_monitor, pg_read_all_stats and
// pg_signal_backend.
func (c *Cluster) CreateSource(ctx context.Context, opts ...DatabaseOption) (*Database, error) {
	return c.create(ctx, "source", opts,
		"LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS",
		[]string{"pg_monitor", "pg_read_all_stats", "pg_signal_backend"})
}

// CreateTarget makes a database with an owner like PlanetScale's default role:
// not superuser, but with CREATEDB, CREATEROLE, REPLICATION and BYPASSRLS,
// member of most predefined roles and, from version 15 on, allowed to set
// session_replication_role.
func (c *Cluster) CreateTarget(ctx context.Context, opts ...DatabaseOption) (*Database, error) {
	member := []string{"pg_monitor", "pg_signal_backend"}
	for _, role := range []struct {
		name  string
		since int
	}{
		{"pg_read_all_data", 14},
		{"pg_write_all_data", 14},
		{"pg_checkpoint", 15},
		{"pg_create_subscription", 16},
		{"pg_maintain", 17},
	} {
		if c.Version >= role.since {
			member = append(member, role.name)
		}
	}
	return c.create(ctx, "target", opts,
		"LOGIN NOSUPERUSER INHERIT CREATEDB CREATEROLE REPLICATION BYPASSRLS", member)
}

// create makes a role and a database that it owns.
func (c *Cluster) create(ctx context.Context, kind string, opts []DatabaseOption, attributes string,
	memberOf []string) (*Database, error) {
	o := databaseOptions{connectionLimit: -1}
	for _, opt := range opts {
		opt(&o)
	}
	name := kind + "_" + randomHex(6)
	role := name + "_owner"
	password := randomPassword()
	d := &Database{
		URL:      c.url(role, password, name),
		AdminURL: c.AdminURL(name),
		Name:     name,
		Role:     role,
		Cluster:  c,
		roles:    []string{role},
	}
	if o.replication {
		attributes = strings.Replace(attributes, "NOREPLICATION", "REPLICATION", 1)
	}
	encoding := ""
	if o.encoding != "" {
		encoding = " LOCALE 'C' ENCODING " + literal(o.encoding)
	}
	statements := []string{
		fmt.Sprintf("CREATE ROLE %s %s CONNECTION LIMIT %d PASSWORD %s", ident(role), attributes, o.connectionLimit,
			literal(password)),
		fmt.Sprintf("GRANT %s TO %s", strings.Join(memberOf, ", "), ident(role)),
		fmt.Sprintf("CREATE DATABASE %s OWNER %s TEMPLATE template0%s", ident(name), ident(role), encoding),
	}
	if kind == "target" && c.Version >= 15 && !o.noReplicationRole {
		statements = append(statements, "GRANT SET ON PARAMETER session_replication_role TO "+ident(role))
	}
	c.grants.Lock()
	err := c.adminExec(ctx, "postgres", statements...)
	c.grants.Unlock()
	if err == nil && c.Version < 15 {
		// From 15 on the schema belongs to pg_database_owner anyway.
		err = c.adminExec(ctx, name, "ALTER SCHEMA public OWNER TO "+ident(role))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pgtest: making a database: %w", err), d.Drop(context.WithoutCancel(ctx)))
	}
	return d, nil
}

// CreateRole makes a second credential for the database: a role that may log in
// and read and write all tables that exist now, but owns nothing. The result is
// the same database seen by that role. The role's name is the database's name
// with the given one after it.
func (d *Database) CreateRole(ctx context.Context, name string) (*Database, error) {
	role, password := d.Name+"_"+name, randomPassword()
	statements := []string{
		fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD %s", ident(role), literal(password)),
		fmt.Sprintf(`DO $do$
			DECLARE s name;
			BEGIN
				FOR s IN SELECT nspname FROM pg_namespace
					WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
				LOOP
					EXECUTE format('GRANT USAGE ON SCHEMA %%1$I TO %[1]s;
						GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %%1$I TO %[1]s;
						GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA %%1$I TO %[1]s', s);
				END LOOP;
			END $do$`, ident(role)),
	}
	if err := d.Cluster.adminExec(ctx, d.Name, statements...); err != nil {
		return nil, fmt.Errorf("pgtest: making role %s: %w", role, err)
	}
	d.roles = append(d.roles, role)
	second := *d
	second.Role, second.URL = role, d.Cluster.url(role, password, d.Name)
	return &second, nil
}

// Drop removes the database, with whatever holds it (sessions, replication
// slots, prepared transactions), and its roles.
func (d *Database) Drop(ctx context.Context) error {
	admin, err := pgx.Connect(ctx, d.Cluster.AdminURL("postgres"))
	if err != nil {
		return fmt.Errorf("pgtest: dropping %s: %w", d.Name, err)
	}
	defer admin.Close(context.WithoutCancel(ctx))
	if err := d.release(ctx, admin); err != nil {
		return fmt.Errorf("pgtest: dropping %s: %w", d.Name, err)
	}
	_, err = admin.Exec(ctx, fmt.Sprintf("DROP DATABASE IF EXISTS %s WITH (FORCE)", ident(d.Name)))
	for _, role := range d.roles {
		// DROP OWNED takes back what was granted outside of the database.
		d.Cluster.grants.Lock()
		roleErr := retryConcurrent(ctx, admin, fmt.Sprintf(`DO $do$ BEGIN
			IF EXISTS (SELECT FROM pg_roles WHERE rolname = %[1]s) THEN
				DROP OWNED BY %[2]s;
				DROP ROLE %[2]s;
			END IF;
		END $do$`, literal(role), ident(role)))
		d.Cluster.grants.Unlock()
		err = errors.Join(err, roleErr)
	}
	if err != nil {
		return fmt.Errorf("pgtest: dropping %s: %w", d.Name, err)
	}
	return nil
}

// retryConcurrent repeats a statement that met another one on the same row of a shared catalog, which Postgres does
// not wait for.
func retryConcurrent(ctx context.Context, conn *pgx.Conn, sql string) (err error) {
	for range 20 {
		_, err = conn.Exec(ctx, sql)
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.Code != "XX000" {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

// release ends what DROP DATABASE ... WITH (FORCE) does not.
func (d *Database) release(ctx context.Context, admin *pgx.Conn) error {
	var gids []string
	var slots int
	err := admin.QueryRow(ctx, `SELECT
			(SELECT coalesce(array_agg(gid), '{}') FROM pg_prepared_xacts WHERE database = $1),
			(SELECT count(*) FROM pg_replication_slots WHERE database = $1)`, d.Name).Scan(&gids, &slots)
	if err != nil {
		return err
	}
	for _, gid := range gids {
		if err := d.Cluster.adminExec(ctx, d.Name, "ROLLBACK PREPARED "+literal(gid)); err != nil {
			return err
		}
	}
	for tries := 0; slots > 0; tries++ {
		_, err = admin.Exec(ctx, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database =
			$1 AND active`, d.Name)
		if err == nil {
			_, err = admin.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE
				database = $1`, d.Name)
		}
		if err == nil {
			return nil
		}
		if tries == 50 {
			return err
		}
		time.Sleep(50 * time.Millisecond) // the slot's session is about to end
	}
	return nil
}

// adminExec runs statements as the superuser, each in its own transaction.
func (c *Cluster) adminExec(ctx context.Context, db string, statements ...string) error {
	conn, err := pgx.Connect(ctx, c.AdminURL(db))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// NewSource is CreateSource for a test: the database is dropped when it ends.
func (c *Cluster) NewSource(t testing.TB, opts ...DatabaseOption) *Database {
	t.Helper()
	d, err := c.CreateSource(t.Context(), opts...)
	return d.forTest(t, err)
}

// NewTarget is CreateTarget for a test: the database is dropped when it ends.
func (c *Cluster) NewTarget(t testing.TB, opts ...DatabaseOption) *Database {
	t.Helper()
	d, err := c.CreateTarget(t.Context(), opts...)
	return d.forTest(t, err)
}

func (d *Database) forTest(t testing.TB, err error) *Database {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := d.Drop(ctx); err != nil {
			t.Error(err)
		}
	})
	return d
}

// AddRole is CreateRole for a test.
func (d *Database) AddRole(t testing.TB, name string) *Database {
	t.Helper()
	second, err := d.CreateRole(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return second
}

// Connect connects as the database's role; the test closes the connection when
// it ends.
func (d *Database) Connect(t testing.TB) *pgx.Conn {
	t.Helper()
	return connect(t, d.URL)
}

// ConnectAdmin is Connect as the superuser.
func (d *Database) ConnectAdmin(t testing.TB) *pgx.Conn {
	t.Helper()
	return connect(t, d.AdminURL)
}

func connect(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = conn.Close(ctx) // broken ones included
	})
	return conn
}

func ident(name string) string { return pgx.Identifier{name}.Sanitize() }

func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
