package migrator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/heroku-migrator/migrator/internal/checks"
	"github.com/heroku-migrator/migrator/internal/pgurl"
)

// HerokuConfig configures [OpenHeroku]. The zero value is good.
type HerokuConfig struct {
	// MaxConns bounds the connections to the source. Default: 16, opened as they are needed.
	MaxConns int
	// URL delivers the URL anew, for each connection that is made: for credentials that are rotated, and servers that
	// move. It has to return soon.
	// Default: the URL that was given.
	URL func(ctx context.Context) (string, error)
	// Capture is how changes are captured. Default: by triggers, as Heroku allows nothing else. [CaptureDecoding] is
	// for other sources.
	Capture CaptureMethod
	// PgDump is the program's path. Default: the newest found, see [OpenHeroku].
	PgDump string
}

// Heroku is a [Source] that captures changes by triggers: what a role without superuser rights and
// without REPLICATION can do on Heroku Postgres, and on any other Postgres from version 13 on.
type Heroku struct {
	url    *address
	pool   *pgxpool.Pool
	pgDump string

	ops       operatorCache
	checks    checks.Reader
	decoder   *decoder
	way       *giveWay
	intervals intervalGuard
	preparing sync.Mutex
	mu        sync.Mutex
	claim     Claim
}

var _ Source = (*Heroku)(nil)

// OpenHeroku prepares a source from its URL. It does not connect yet. A URL without sslmode gets
// sslmode=require. pg_dump is looked for in PATH and where Debian, Ubuntu, Homebrew and Heroku
// put it; the newest is taken.
func OpenHeroku(ctx context.Context, rawURL string, cfg HerokuConfig) (*Heroku, error) {
	url, err := pgurl.Parse(rawURL)
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	if err := cfg.Capture.check(); err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	if cfg.MaxConns <= 0 {
		cfg.MaxConns = 16
	}
	at := &address{url: url, renew: cfg.URL}
	pool, err := openPool(ctx, at, int32(min(cfg.MaxConns, 1000)), map[string]string{
		"lock_timeout":                        fmt.Sprint(lockTimeout.Milliseconds()),
		"idle_in_transaction_session_timeout": "3600000", // a round may wait that long for the target
	})
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	h := &Heroku{url: at, pool: pool, pgDump: cfg.PgDump, way: newGiveWay(pool)}
	h.decoder = &decoder{method: cfg.Capture, side: "source", at: at, pool: pool, change: h.change, leads: h.claimed}
	return h, nil
}

// Close closes the connections.
func (h *Heroku) Close() {
	h.decoder.close()
	h.pool.Close()
}

// directURL is the URL without the pooler, if one can be told.
func (h *Heroku) directURL() (string, bool) { return h.url.last().IsPlanetScalePooler() }

// Identify implements [Database].
func (h *Heroku) Identify(ctx context.Context) (Identity, error) {
	return identify(ctx, h.pool, h.url.last())
}

// Claim implements [Source].
func (h *Heroku) Claim(ctx context.Context, claim Claim, create bool) error {
	err := pgx.BeginFunc(ctx, h.pool, func(tx pgx.Tx) error {
		exists, err := schemaExists(ctx, tx)
		if err != nil || (!exists && !create) {
			return err
		}
		if !exists {
			if _, err := tx.Exec(ctx, sourceSchema); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, `INSERT INTO heroku_migrator.migration (id) VALUES ($1)`,
				claim.Migration); err != nil {
				return err
			}
		}
		var migration string
		var epoch int64
		err = tx.QueryRow(ctx, `SELECT id::text, epoch FROM heroku_migrator.migration FOR UPDATE`).Scan(&migration,
			&epoch)
		switch {
		case err != nil:
			return err
		case migration != claim.Migration:
			return refuse("run", "The source is being captured by another migration (%s): finish or abort that one "+
				"first; if its target is gone, `heroku-migrate abort --force` removes what it left.", migration)
		case epoch > claim.Epoch:
			return ErrLostLead
		}
		path, err := searchPath(ctx, tx)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE heroku_migrator.migration SET epoch = $1, search_path = $2`, claim.Epoch, path)
		return err
	})
	if err != nil {
		return fmt.Errorf("claim the source: %w", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.claim = claim
	return nil
}

// claimed tells whether this process has claimed the source.
func (h *Heroku) claimed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.claim.Migration != ""
}

// Our objects on the source, but for the logs and functions of each table.
const sourceSchema = `
CREATE SCHEMA heroku_migrator;
CREATE TABLE heroku_migrator.migration (
	only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
	id       uuid NOT NULL,
	epoch    bigint NOT NULL DEFAULT 0,
	trimmed  text,
	slot     text NOT NULL DEFAULT '', -- from which changes are decoded
	fenced   boolean NOT NULL DEFAULT false,
	search_path text NOT NULL DEFAULT '', -- of the application
	way_back text NOT NULL DEFAULT '', way_back_of bigint NOT NULL DEFAULT 0,
		way_back_on text NOT NULL DEFAULT '' -- position on the target; of which switch; applied on which server
);
CREATE TABLE heroku_migrator.silenced (relid oid NOT NULL, kind text NOT NULL, name text NOT NULL, state text NOT NULL,
	PRIMARY KEY (relid, kind, name));
CREATE TABLE heroku_migrator.captured (relid oid PRIMARY KEY, kind text NOT NULL, key text[] NOT NULL,
	trimmed boolean NOT NULL DEFAULT false, trimmed_to text, here oid NOT NULL, decoded boolean NOT NULL DEFAULT false,
	triggers name[]); -- of ours, on it
CREATE TABLE heroku_migrator.truncated (relid oid NOT NULL, xid xid8 NOT NULL DEFAULT pg_current_xact_id());
-- Or a publication FOR ALL TABLES has trimming refused, as for the logs.
ALTER TABLE heroku_migrator.truncated REPLICA IDENTITY FULL;
CREATE FUNCTION heroku_migrator.truncate() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	INSERT INTO heroku_migrator.truncated (relid) VALUES (TG_RELID);
	RETURN NULL;
END $$;
CREATE FUNCTION heroku_migrator.fence() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RETURN NULL;
END $$;`

// change runs a transaction that changes something of ours on the source. Its epoch is checked, and
// stays the current one until the transaction ends (I6).
func (h *Heroku) change(ctx context.Context, fn func(pgx.Tx) error) error {
	h.mu.Lock()
	claim := h.claim
	h.mu.Unlock()
	if claim.Migration == "" {
		return ErrNotLeader
	}
	return pgx.BeginFunc(ctx, h.pool, func(tx pgx.Tx) error {
		var current bool
		err := tx.QueryRow(ctx, `
			SELECT id = $1::uuid AND epoch = $2 FROM heroku_migrator.migration FOR SHARE`, claim.Migration,
			claim.Epoch).Scan(&current)
		if err != nil {
			return err
		}
		if !current {
			return ErrLostLead
		}
		return fn(tx)
	})
}

// lockBudget is the time that one attempt to lock may take in all (I7). It is shorter than deadlock_timeout: we give up
// before Postgres could choose the application as the victim of a deadlock with us.
func lockBudget(ctx context.Context, tx pgx.Tx) (time.Duration, error) {
	var ms int64
	err := tx.QueryRow(ctx, `SELECT (extract(epoch FROM current_setting('deadlock_timeout')::interval) *
		1000)::int8`).Scan(&ms)
	return min(time.Duration(ms)*time.Millisecond*8/10, lockTimeout), err
}

// lock takes a strong lock on a table (and its partitions, if the name says so) within the lock budget. Before, it
// takes one
// that only vacuum and DDL mind: an autovacuum gives way to whoever has waited for deadlock_timeout, which is
// longer than the strong lock may be waited for, and nobody of the application queues behind this one. What is
// to be done with the lock travels with the request for it, so that nobody waits for the network meanwhile.
func lock(ctx context.Context, tx pgx.Tx, name, mode, then string) error {
	budget, err := lockBudget(ctx, tx)
	if err != nil {
		return err
	}
	for _, l := range []struct {
		mode    string
		timeout time.Duration
		each    bool // the time-out is for each lock, not for all
		then    string
	}{{"SHARE UPDATE EXCLUSIVE", budget * 2, true, ""}, {mode, budget, false, "; SET LOCAL statement_timeout = 0; " +
		then}} {
		all := l.timeout.Milliseconds()
		if l.each {
			all = 0
		}
		_, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL lock_timeout = %d; SET LOCAL statement_timeout = %d; LOCK TABLE %s
			IN %s MODE%s`,
			l.timeout.Milliseconds(), all, name, l.mode, l.then))
		switch {
		case isBusy(ctx, err):
			return ErrBusy
		case err != nil:
			return err
		}
	}
	return nil
}

// isBusy tells whether an attempt to lock ran out of time.
func isBusy(ctx context.Context, err error) bool {
	state := sqlState(err)
	return (state == "55P03" || state == "57014" || state == "40P01") && ctx.Err() == nil
}

func schemaExists(ctx context.Context, q querier) (exists bool, err error) {
	err = q.QueryRow(ctx, `SELECT to_regnamespace('heroku_migrator') IS NOT NULL`).Scan(&exists)
	return exists, err
}

// querier is what pools, connections and transactions have in common.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// executor is what can also change something.
type executor interface {
	querier
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// savepoint runs fn so that what it fails at does not end the transaction.
func savepoint(ctx context.Context, tx executor, fn func(executor) error) error {
	if _, err := tx.Exec(ctx, `SAVEPOINT attempt`); err != nil {
		return err
	}
	end := `RELEASE SAVEPOINT attempt`
	err := fn(tx)
	if err != nil {
		end = `ROLLBACK TO SAVEPOINT attempt; RELEASE SAVEPOINT attempt`
	}
	_, endErr := tx.Exec(ctx, end)
	return errors.Join(err, endErr)
}

// holders describes the sessions that hold locks on the relations which writers or our locks wait for.
func holders(ctx context.Context, q querier, relations []Relation) string {
	ids := make([]uint32, len(relations))
	for i, r := range relations {
		ids[i] = r.ID
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	rows, err := q.Query(ctx, `
		SELECT DISTINCT CASE WHEN a.pid IS NOT NULL THEN format('pid %s (%s, %s, transaction open for %s s)', a.pid,
			a.usename,
		         coalesce(nullif(a.application_name, ''), 'no application name'), round(extract(epoch
			FROM now() - a.xact_start)))
		       ELSE `+preparedTransaction+` END
		FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
		WHERE l.granted AND l.locktype = 'relation' AND l.relation = ANY ($1::oid[])
		  AND l.mode IN ('RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock',
		                 'ExclusiveLock', 'AccessExclusiveLock')
		  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
		  AND l.pid IS DISTINCT FROM pg_backend_pid()`, ids)
	if err != nil {
		return ""
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(list) == 0 {
		return "who was in the way is gone"
	}
	return "in the way: " + strings.Join(list, ", ")
}
