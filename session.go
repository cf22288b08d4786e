package migrator

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/heroku-migrator/migrator/internal/copyout"
	"github.com/heroku-migrator/migrator/internal/pgurl"
)

// Settings of every session, on both sides. Those that concern text make sure that what one server prints is what the other reads;
// others, that a statement means what it says; time-outs that a role or a database may carry are replaced by ours.
var commonSettings = map[string]string{
	"client_encoding":             "UTF8",
	"DateStyle":                   "ISO, YMD",
	"IntervalStyle":               "postgres",
	"TimeZone":                    "UTC",
	"timezone_abbreviations":      "Default",
	"extra_float_digits":          "3",
	"bytea_output":                "hex",
	"array_nulls":                 "on",
	"xmloption":                   "content",
	"xmlbinary":                   "base64",
	"lc_monetary":                 "C",
	"standard_conforming_strings": "on",
	"backslash_quote":             "safe_encoding",
	"escape_string_warning":       "off",
	"transform_null_equals":       "off",
	"quote_all_identifiers":       "off",
	"gin_fuzzy_search_limit":      "0", // an index would leave rows out
	"search_path":                 safePath,

	"default_transaction_isolation":    "read committed",
	"default_transaction_deferrable":   "off",
	"default_transaction_read_only":    "off",
	"row_security":                     "off", // an error, rather than rows that are silently left out
	"restrict_nonsystem_relation_kind": "",
	"exit_on_error":                    "off", // the session's end would be the attempt's
	"statement_timeout":                "0",
	"transaction_timeout":              "0",
	"idle_session_timeout":             "0",
	"client_min_messages":              "warning",

	"tcp_keepalives_idle":     "15",
	"tcp_keepalives_interval": "5",
	"tcp_keepalives_count":    "3",
}

// lockTimeout is how long a statement of ours waits for any one lock on the source (I7). Attempts that
// take locks which the application would notice set shorter ones.
const lockTimeout = 2 * time.Second

// openPool opens a pool whose sessions carry the settings. Settings that the server does not know
// (transaction_timeout before 17, say) are left out.
func openPool(ctx context.Context, at *address, conns int32, settings map[string]string) (*pgxpool.Pool, error) {
	conn, err := at.last().ConnConfig()
	if err != nil {
		return nil, err
	}
	cfg, err := pgxpool.ParseConfig("host=localhost user=nobody dbname=nothing sslmode=disable") // replaced at once
	if err != nil {
		return nil, err
	}
	conn.DefaultQueryExecMode = pgx.QueryExecModeExec // one round trip, the first time too; nothing is cached that DDL could outdate
	conn.RuntimeParams["application_name"] = SchemaName + " " + thisProcess()
	if conn.ConnectTimeout == 0 {
		conn.ConnectTimeout = 15 * time.Second
	}
	cfg.ConnConfig = conn
	cfg.MaxConns = conns
	cfg.MinConns = 0
	cfg.MaxConnIdleTime = time.Minute
	cfg.BeforeConnect = at.refresh
	cfg.AfterConnect = func(ctx context.Context, c *pgx.Conn) error {
		return prepareSession(ctx, at, c, settings)
	}
	return pgxpool.NewWithConfig(ctx, cfg)
}

// address is where a database is, and with which credentials.
type address struct {
	renew func(context.Context) (string, error)
	mu    sync.Mutex
	url   *pgurl.URL
	sound soundAddresses
}

func (a *address) last() *pgurl.URL {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.url
}

// current asks for the URL, if somebody knows it better.
func (a *address) current(ctx context.Context) (*pgurl.URL, error) {
	if a.renew == nil {
		return a.last(), nil
	}
	raw, err := a.renew(ctx)
	if err != nil {
		return nil, fmt.Errorf("the connection URL could not be had: %w: %w", errPassing, err)
	}
	url, err := pgurl.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errPassing, err) // it may be half written
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.url = url
	return url, nil
}

// refresh is called before a connection is made.
func (a *address) refresh(ctx context.Context, c *pgx.ConnConfig) error {
	if a.renew == nil {
		return nil
	}
	url, err := a.current(ctx)
	if err != nil {
		return err
	}
	now, err := url.ConnConfig()
	if err != nil {
		return err
	}
	c.Host, c.Port, c.Database, c.User, c.Password = now.Host, now.Port, now.Database, now.User, now.Password
	c.TLSConfig, c.Fallbacks, c.DialFunc, c.LookupFunc = now.TLSConfig, now.Fallbacks, now.DialFunc, now.LookupFunc
	return nil
}

// identify reads what both kinds of server say of themselves.
func identify(ctx context.Context, pool *pgxpool.Pool, url *pgurl.URL) (Identity, error) {
	id := Identity{Host: url.Host(), Port: url.Port()}
	err := pool.QueryRow(ctx, `
		SELECT (SELECT system_identifier::text FROM pg_control_system()),
		       CASE WHEN pg_is_in_recovery() THEN 0
		            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int8 END,
		       current_database(), current_user,
		       current_setting('server_version_num')::int, current_setting('server_version'),
		       current_setting('server_encoding'), (SELECT datcollate FROM pg_database WHERE datname = current_database()),
		       (SELECT datctype FROM pg_database WHERE datname = current_database()), pg_database_size(current_database()), current_setting('max_parallel_workers')::int`).
		Scan(&id.System, &id.Timeline, &id.Database, &id.Role, &id.Version, &id.VersionStr, &id.Encoding, &id.Collate, &id.CType, &id.Size, &id.ParallelWorkers)
	if err == nil {
		began := time.Now()
		err = pool.Ping(ctx)
		id.RoundTrip = time.Since(began)
	}
	if err == nil {
		var free int
		if free, err = freeConnections(ctx, pool); err == nil {
			id.Connections = min(free+int(pool.Stat().TotalConns()), int(pool.Config().MaxConns))
		}
	}
	if err != nil {
		return id, fmt.Errorf("identify the server at %s: %w", id.Host, err)
	}
	return id, nil
}

// freeConnections is how many more connections the server has for the pool's role.
func freeConnections(ctx context.Context, pool *pgxpool.Pool) (free int, err error) {
	err = pool.QueryRow(ctx, `
		SELECT least(current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
		             - coalesce(current_setting('reserved_connections', true), '0')::int
		             - count(*),
		             CASE WHEN r.rolconnlimit >= 0 THEN r.rolconnlimit - count(*) FILTER (WHERE a.usename = current_user) END)::int
		FROM (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user) AS r
		CROSS JOIN pg_stat_activity a WHERE a.backend_type = 'client backend' GROUP BY r.rolconnlimit`).Scan(&free)
	return free, err
}

// copyTo runs a COPY … TO STDOUT.
func copyTo(ctx context.Context, c *pgx.Conn, sql string, w io.Writer) (int64, error) {
	return copyout.Run(ctx, c.PgConn(), sql, w)
}

// copyFrom runs a COPY … FROM STDIN.
func copyFrom(ctx context.Context, c *pgx.Conn, sql string, r io.Reader) (int64, error) {
	tag, err := c.PgConn().CopyFrom(ctx, r, sql)
	return tag.RowsAffected(), err
}
