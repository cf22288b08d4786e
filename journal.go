package migrator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Journal is the migration's memory: a schema in the target database. All that a process has to know in
// order to go on is in it, and everything in it was committed together with the rows it speaks of (I3).
// Any process may read it and post commands; only the one that leads may write the rest.
type Journal struct {
	pool  *pgxpool.Pool
	epoch atomic.Int64 // of the lead that this process has; 0: none
	held  atomic.Bool  // by a Lead that was not released: one at a time, since the epoch is shared
}

// NewJournal returns the journal in the database that the pool connects to.
func NewJournal(pool *pgxpool.Pool) *Journal { return &Journal{pool: pool} }

const journalSchema = `
CREATE SCHEMA IF NOT EXISTS heroku_migrator;
CREATE TABLE IF NOT EXISTS heroku_migrator.leader (
	only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
	epoch bigint NOT NULL, holder text NOT NULL, since timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE IF NOT EXISTS heroku_migrator.migration (
	only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
	id uuid NOT NULL DEFAULT gen_random_uuid(),
	phase text NOT NULL DEFAULT 'starting', resume text NOT NULL DEFAULT '', run text NOT NULL DEFAULT 'running',
	pending text NOT NULL DEFAULT '', goal text NOT NULL DEFAULT '',
	started_at timestamptz NOT NULL DEFAULT clock_timestamp(), phase_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	switched_at timestamptz, completed_at timestamptz,
	error text NOT NULL DEFAULT '', message text NOT NULL DEFAULT '',
	position text NOT NULL DEFAULT '', captured text NOT NULL DEFAULT '', report jsonb,
	search_path text NOT NULL DEFAULT '', -- of the application on the source
	schema text NOT NULL DEFAULT '', schema_seen text NOT NULL DEFAULT '', -- fingerprints: followed; shown to a person
	switches bigint NOT NULL DEFAULT 0, attempts bigint NOT NULL DEFAULT 0, verification jsonb, trimmed text,
		slot text NOT NULL DEFAULT '', revert_report jsonb);
			-- how often it was switched; how far the log of the way back was trimmed
CREATE UNLOGGED TABLE IF NOT EXISTS heroku_migrator.canary (only_row boolean PRIMARY KEY DEFAULT true);
	-- see unlogged.go
-- Apart from the migration's row, since it is written all the time.
CREATE TABLE IF NOT EXISTS heroku_migrator.progress (
	only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
	synced_at timestamptz, rows_waiting bigint NOT NULL DEFAULT 0, rate_in float8 NOT NULL DEFAULT 0,
		rate_out float8 NOT NULL DEFAULT 0,
	trend text NOT NULL DEFAULT 'steady', idle boolean NOT NULL DEFAULT false,
	log_bytes bigint NOT NULL DEFAULT 0, log_from timestamptz NOT NULL DEFAULT clock_timestamp(),
		log_next text NOT NULL DEFAULT '', waits_for text NOT NULL DEFAULT '', waits_since timestamptz,
	rounds bigint NOT NULL DEFAULT 0,
	rows_applied bigint NOT NULL DEFAULT 0, copy_share real NOT NULL DEFAULT 1, throttled text NOT NULL DEFAULT '',
	back_at timestamptz, back_rounds bigint NOT NULL DEFAULT 0, back_rows bigint NOT NULL DEFAULT 0,
		back_error text NOT NULL DEFAULT '', seen_at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE IF NOT EXISTS heroku_migrator.tables (
	id bigint PRIMARY KEY, spec jsonb NOT NULL, state text NOT NULL DEFAULT 'pending', plan int NOT NULL DEFAULT 0,
	copied_at text NOT NULL DEFAULT '', -- of a table without a key: the snapshot that its rows were read from
	captured boolean NOT NULL DEFAULT false, error text NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS heroku_migrator.chunks (
	table_id bigint NOT NULL REFERENCES heroku_migrator.tables, no int NOT NULL, priority bigint NOT NULL,
		spec jsonb NOT NULL,
	bytes bigint NOT NULL, done boolean NOT NULL DEFAULT false, rows bigint, stream_bytes bigint,
	began_at timestamptz, done_at timestamptz, copied_by text, PRIMARY KEY (table_id, no));
CREATE INDEX IF NOT EXISTS chunks_todo ON heroku_migrator.chunks (priority, no) WHERE NOT done;
CREATE TABLE IF NOT EXISTS heroku_migrator.objects (
	id int PRIMARY KEY, stage text NOT NULL, type text NOT NULL, schema text NOT NULL, name text NOT NULL,
	table_id bigint NOT NULL, sql text NOT NULL, undo text NOT NULL, state text NOT NULL,
		error text NOT NULL DEFAULT '',
	parent jsonb NOT NULL DEFAULT '{}', drop_sql text NOT NULL DEFAULT '', needs int[] NOT NULL DEFAULT '{}',
	class bigint NOT NULL DEFAULT 0, oid bigint NOT NULL DEFAULT 0, functions text[] NOT NULL DEFAULT '{}');
CREATE TABLE IF NOT EXISTS heroku_migrator.commands (
	id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, name text NOT NULL, force boolean NOT NULL,
	state text NOT NULL DEFAULT 'pending', posted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	alive_at timestamptz NOT NULL DEFAULT clock_timestamp(), finished_at timestamptz,
	reasons text[] NOT NULL DEFAULT '{}', can_force boolean NOT NULL DEFAULT false, message text NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS heroku_migrator.hooks (
	number bigint NOT NULL, point text NOT NULL, state text NOT NULL, error text NOT NULL DEFAULT '',
	at timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (number, point));
-- As on the source, for the way back.
CREATE TABLE IF NOT EXISTS heroku_migrator.captured (
	relid oid PRIMARY KEY, trimmed boolean NOT NULL DEFAULT false, name text, columns text[], files text,
	here oid, key text[], decoded boolean NOT NULL DEFAULT false);
CREATE TABLE IF NOT EXISTS heroku_migrator.events (
	id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL DEFAULT clock_timestamp(),
	kind text NOT NULL, phase text NOT NULL, message text NOT NULL);`

// State is the journal's main row.
type State struct {
	ID     string
	Epoch  int64
	Holder string // who leads or led last: host and process
	Phase  Phase
	Resume Phase // in PhaseError: the phase that failed
	Run    RunState
	// CommandSwitch or CommandRevert while one is under way: found after a crash, it is undone or finished
	Pending CommandName
	Goal    Phase // while cleaning up: PhaseCompleted or PhaseAborted

	StartedAt, PhaseAt      time.Time
	SwitchedAt, CompletedAt *time.Time
	Error, Message          string
	Position                Position
	Captured                Position // before any capture was installed: says on which server that was
	Report                  *SwitchReport

	SyncedAt  *time.Time // the target holds everything that was committed on the source at this time
	SyncedAge float64    // seconds since, by the target's clock
	Lag       Lag
	LogBytes  int64    // of the change log
	LogAge    float64  // seconds: how old its oldest entry can be
	LogNext   Position // acknowledged then, and what the log is trimmed up to next
	// WaitsFor is what a step failed at that is tried again, and WaitsSince since when.
	WaitsFor    string
	WaitsSince  *time.Time
	Rounds      int64
	RowsApplied int64
	Schema      string // fingerprint of the source's schema that was followed last
	SchemaSeen  string // of one that the migration was paused for

	Switches int64 // how often it was switched
	// Verification is what the last comparison of all rows found.
	Verification *Verification
	// The way back: the source holds everything that was committed on the target at BackAt, BackAge seconds ago.
	BackAt               *time.Time
	BackAge              float64
	BackRounds, BackRows int64
	BackError            string
	RevertReport         *SwitchReport
	// Emptied tells that the target's unlogged tables were emptied by a crash or a failover.
	Emptied bool
}

// TableStatus is what the journal says of a table.
type TableStatus struct {
	Table       *Table
	State       TableState
	Plan        int
	CopiedAt    Position // of a table without a key: what its one chunk was read at
	Captured    bool
	RowsCopied  int64
	BytesCopied int64 // planned bytes of the chunks that are done
	BytesTotal  int64
	StreamBytes int64 // bytes that went over the wire
	Chunks      int
	ChunksDone  int
	Error       string
}

func (j *Journal) exists(ctx context.Context) (exists bool, err error) {
	err = j.pool.QueryRow(ctx, `SELECT to_regclass('heroku_migrator.migration') IS NOT NULL`).Scan(&exists)
	return exists, err
}

// State reads the main row. It fails with [ErrNoMigration] if there is no journal.
func (j *Journal) State(ctx context.Context) (*State, error) {
	var s State
	var position, captured, next string
	var report, revertReport, verification []byte
	err := j.pool.QueryRow(ctx, `
		SELECT m.id::text, l.epoch, l.holder, phase, resume, run, pending, goal, started_at, phase_at, switched_at,
			completed_at,
		       error, message, position, captured, report, schema, schema_seen, p.synced_at,
		       coalesce(extract(epoch FROM clock_timestamp() - p.synced_at), 0)::float8, p.rows_waiting, p.rate_in,
			p.rate_out, p.trend, p.idle,
		       p.log_bytes, extract(epoch FROM clock_timestamp() - p.log_from)::float8, p.log_next, p.waits_for,
			p.waits_since, p.rounds, p.rows_applied,
		       switches, verification, revert_report, p.back_at, coalesce(extract(epoch
			FROM clock_timestamp() - p.back_at), 0)::float8, p.back_rounds, p.back_rows, p.back_error, `+emptied+`
		FROM heroku_migrator.migration m, heroku_migrator.leader l, heroku_migrator.progress p`).
		Scan(&s.ID, &s.Epoch, &s.Holder, &s.Phase, &s.Resume, &s.Run, &s.Pending, &s.Goal, &s.StartedAt, &s.PhaseAt,
			&s.SwitchedAt, &s.CompletedAt, &s.Error, &s.Message, &position, &captured, &report, &s.Schema,
			&s.SchemaSeen, &s.SyncedAt, &s.SyncedAge,
			&s.Lag.Waiting, &s.Lag.In, &s.Lag.Out, &s.Lag.Trend, &s.Lag.Idle, &s.LogBytes, &s.LogAge, &next,
			&s.WaitsFor, &s.WaitsSince,
			&s.Rounds, &s.RowsApplied, &s.Switches, &verification, &revertReport, &s.BackAt, &s.BackAge, &s.BackRounds,
			&s.BackRows, &s.BackError, &s.Emptied)
	if errors.Is(err, pgx.ErrNoRows) || sqlState(err) == "42P01" || sqlState(err) == "3F000" {
		return nil, ErrNoMigration
	}
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	for _, r := range []struct {
		text []byte
		to   **SwitchReport
	}{{report, &s.Report}, {revertReport, &s.RevertReport}} {
		if r.text == nil {
			continue
		}
		*r.to = new(SwitchReport)
		if err := json.Unmarshal(r.text, *r.to); err != nil {
			return nil, fmt.Errorf("read the journal: %w", err)
		}
	}
	if verification != nil {
		s.Verification = new(Verification)
		if err := json.Unmarshal(verification, s.Verification); err != nil {
			return nil, fmt.Errorf("read the journal: %w", err)
		}
	}
	if s.LogNext, err = ParsePosition(next); err != nil {
		return nil, err
	}
	if s.Position, err = ParsePosition(position); err != nil {
		return nil, err
	}
	s.Captured, err = ParsePosition(captured)
	return &s, err
}

// tx runs a transaction that is committed only while this process leads. The check comes last, so that
// a transaction that takes long does not hold up the next leader: its row lock lives for one commit.
func (j *Journal) tx(ctx context.Context, fn func(pgx.Tx) error) error {
	return j.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		tx, err := conn.Begin(ctx)
		if err != nil {
			return err
		}
		if err := fn(tx); err != nil {
			return errors.Join(err, rollback(ctx, conn))
		}
		return j.commit(ctx, conn, &pgx.Batch{})
	})
}

// commit ends a transaction with the statements given, if this process leads: the check is written to fail otherwise,
// and a transaction that failed cannot be committed. All of it is one round trip.
func (j *Journal) commit(ctx context.Context, conn *pgxpool.Conn, last *pgx.Batch) error {
	mine := j.epoch.Load()
	last.Queue(`SELECT 1 / count(*) FROM (SELECT FROM heroku_migrator.leader WHERE epoch = $1 FOR SHARE) AS mine`,
		mine).
		QueryRow(func(row pgx.Row) error {
			err := row.Scan(new(int64))
			switch {
			case sqlState(err) == divisionByZero && mine == 0:
				return ErrNotLeader
			case sqlState(err) == divisionByZero:
				return ErrLostLead
			}
			return err
		})
	last.Queue("COMMIT")
	err := conn.SendBatch(ctx, last).Close()
	if err != nil {
		err = errors.Join(err, rollback(ctx, conn))
	}
	return err
}

const divisionByZero = "22012"

// rollback ends a transaction that failed, unless its connection is gone, and the transaction with it.
func rollback(ctx context.Context, conn *pgxpool.Conn) error {
	if conn.Conn().IsClosed() || ctx.Err() != nil { // it is closed when it is given back in a transaction
		return nil //nolint:nilerr // the caller has the cause
	}
	_, err := conn.Exec(ctx, "ROLLBACK")
	return err
}

func (j *Journal) checkEpoch(ctx context.Context, tx pgx.Tx) error {
	mine := j.epoch.Load()
	if mine == 0 {
		return ErrNotLeader
	}
	var epoch int64
	if err := tx.QueryRow(ctx, `SELECT epoch FROM heroku_migrator.leader FOR SHARE`).Scan(&epoch); err != nil {
		return err
	}
	if epoch != mine {
		return ErrLostLead
	}
	return nil
}

func (j *Journal) exec(ctx context.Context, what, sql string, args ...any) error {
	err := j.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		var batch pgx.Batch
		batch.Queue("BEGIN")
		batch.Queue(sql, args...)
		return j.commit(ctx, conn, &batch)
	})
	if err != nil {
		return fmt.Errorf("journal: %s: %w", what, err)
	}
	return nil
}

// Advance goes from one phase to the next.
func (j *Journal) Advance(ctx context.Context, from, to Phase, message string) error {
	err := j.tx(ctx, func(tx pgx.Tx) error { return advance(ctx, tx, from, to, message) })
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

func advance(ctx context.Context, tx pgx.Tx, from, to Phase, message string) error {
	if !from.CanFollow(to) {
		return fmt.Errorf("phase %s cannot follow %s", to, from)
	}
	tag, err := tx.Exec(ctx, `
		UPDATE heroku_migrator.migration SET phase = $2, resume = '', error = '', message = $3,
			phase_at = clock_timestamp(),
			switched_at = CASE $2 WHEN 'switched' THEN clock_timestamp() WHEN 'replicating' THEN NULL
				ELSE switched_at END
		WHERE phase = $1`, string(from), string(to), message)
	if err != nil {
		return err
	}
	if tag.RowsAffected() == 0 {
		return fmt.Errorf("the phase is not %s any more", from)
	}
	_, err = tx.Exec(ctx, `INSERT INTO heroku_migrator.events (kind, phase, message) VALUES ('phase', $1, $2)`,
		string(to), message)
	return err
}

// Fail records that the phase failed in a way that needs a person.
func (j *Journal) Fail(ctx context.Context, phase Phase, cause error) error {
	return j.exec(ctx, "record the failure", `
		UPDATE heroku_migrator.migration SET resume = CASE WHEN phase = 'error' THEN resume
			ELSE phase END, phase = 'error',
			error = $1, phase_at = clock_timestamp() WHERE phase IN ('error', $2)`, cause.Error(), string(phase))
}

// SetRun pauses or resumes.
func (j *Journal) SetRun(ctx context.Context, run RunState) error {
	return j.exec(ctx, "set the state", `UPDATE heroku_migrator.migration SET run = $1`, string(run))
}

// SetPending notes that a switch or a revert begins, before anything of it is done.
func (j *Journal) SetPending(ctx context.Context, name CommandName) error {
	return j.exec(ctx, "note what begins", `UPDATE heroku_migrator.migration SET pending = $1`, string(name))
}

// beginAttempt counts attempts to switch.
func (j *Journal) beginAttempt(ctx context.Context) (n int64, err error) {
	err = j.tx(ctx, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `UPDATE heroku_migrator.migration SET attempts = attempts + 1 RETURNING attempts`).Scan(
			&n)
	})
	if err != nil {
		err = fmt.Errorf("journal: count an attempt to switch: %w", err)
	}
	return n, err
}

// settle clears what is pending once finish has brought the source in line with the phase. The row stays locked
// meanwhile: a commit of the switch or revert that is still under way, though nobody waits for its answer any
// more, is waited for, and one that comes later finds that it is not pending.
func (j *Journal) settle(ctx context.Context, finish func(Phase) error) error {
	err := j.tx(ctx, func(tx pgx.Tx) error {
		var phase Phase
		var pending string
		if err := tx.QueryRow(ctx, `SELECT phase, pending FROM heroku_migrator.migration FOR UPDATE`).Scan(&phase,
			&pending); err != nil || pending == "" {
			return err
		}
		if err := finish(phase); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `UPDATE heroku_migrator.migration SET pending = ''`)
		return err
	})
	if err != nil {
		return fmt.Errorf("settle what was interrupted: %w", err)
	}
	return nil
}

// SetGoal notes what cleaning up leads to, together with the phase.
func (j *Journal) SetGoal(ctx context.Context, from, goal Phase, message string) error {
	err := j.tx(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `UPDATE heroku_migrator.migration SET goal = $1, run = 'running'`,
			string(goal)); err != nil {
			return err
		}
		return advance(ctx, tx, from, PhaseCleaningUp, message)
	})
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// SetCaptured notes where capture is about to be installed.
func (j *Journal) SetCaptured(ctx context.Context, at Position) error {
	return j.exec(ctx, "note where capture is installed", `UPDATE heroku_migrator.migration SET captured = $1`,
		at.String())
}

// setSchema notes the fingerprint of the schema that the tables are recorded with.
func (j *Journal) setSchema(ctx context.Context, fingerprint string) error {
	return j.exec(ctx, "note the schema", `UPDATE heroku_migrator.migration SET schema = $1`, fingerprint)
}

// pauseForSchema pauses, and notes which schema a person is shown.
func (j *Journal) pauseForSchema(ctx context.Context, fingerprint, message string) error {
	return j.exec(ctx, "pause", `UPDATE heroku_migrator.migration SET run = 'paused', schema_seen = $1, message = $2`,
		fingerprint, message)
}

// SetMessage says in words what happens now.
func (j *Journal) SetMessage(ctx context.Context, message string) error {
	return j.exec(ctx, "set the message", `UPDATE heroku_migrator.migration SET message = $1 WHERE message <> $1`,
		message)
}

// Record adds an event to the timeline.
func (j *Journal) Record(ctx context.Context, e Event) error {
	return j.exec(ctx, "record an event", `
		INSERT INTO heroku_migrator.events (kind, phase, message) SELECT $1, phase, $2 FROM heroku_migrator.migration`,
		string(e.Kind), e.Message)
}

// Drop removes the journal: the migration's last act.
func (j *Journal) Drop(ctx context.Context) error {
	err := pgx.BeginFunc(ctx, j.pool, func(tx pgx.Tx) error {
		if err := j.checkEpoch(ctx, tx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `DROP SCHEMA heroku_migrator CASCADE`)
		return err
	})
	if err != nil {
		return fmt.Errorf("journal: remove it: %w", err)
	}
	return nil
}

// setRevertReport stores what the last revert did.
func (j *Journal) setRevertReport(ctx context.Context, report SwitchReport) error {
	text, err := report.encode()
	if err != nil {
		return err
	}
	return j.exec(ctx, "store the report", `UPDATE heroku_migrator.migration SET revert_report = $1`, text)
}

// SetReport stores what the last switch did.
func (j *Journal) SetReport(ctx context.Context, report SwitchReport) error {
	text, err := report.encode()
	if err != nil {
		return err
	}
	return j.exec(ctx, "store the report", `UPDATE heroku_migrator.migration SET report = $1`, text)
}
