package migrator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Passing our own writes through the fence: the way back on the source, replication on the target.
const passFence = `SELECT set_config('heroku_migrator.pass', 'on', true)`

// The fence function in its two forms. A statement that has just been granted its table's lock sees the form that
// was committed last.
const (
	fenceClosed = `CREATE OR REPLACE FUNCTION %s.fence() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF pg_catalog.current_setting('heroku_migrator.pass', true) OPERATOR(pg_catalog.=) 'on' THEN
		RETURN NULL;
	END IF;
	RAISE EXCEPTION 'permission denied for table %%: this database has moved', TG_TABLE_NAME
		USING ERRCODE = 'insufficient_privilege',
		      HINT = 'Writes are refused while heroku_migrator switches the application to its new database.';
END $$`
	fenceOpen = `CREATE OR REPLACE FUNCTION %s.fence() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RETURN NULL;
END $$`
)

// FenceConfig configures [Fencer.Fence]. The zero value is good.
type FenceConfig struct {
	// DrainTime is how long one attempt refuses writes while it waits for transactions that have written. Default: 3 s.
	DrainTime time.Duration
	// Terminate ends the sessions of transactions that are still open after it, instead of giving up.
	Terminate bool
	// Keep leaves writes refused when an attempt fails: for a side that must not take any, as the source after the
	// switch.
	Keep bool
}

const defaultDrainTime = 3 * time.Second

// gate is the fence around one database's tables. It is the same on both sides.
type gate struct {
	pool   *pgxpool.Pool
	change beginner
	side   string // for errors: source, target
	raised string // a statement that goes with closing
	lifted string // and with opening
}

func (h *Heroku) gate() gate {
	return gate{
		h.pool, h.change, "source",
		`UPDATE heroku_migrator.migration SET fenced = true`, `UPDATE heroku_migrator.migration SET fenced = false`,
	}
}

// PrepareFence implements [Source].
func (h *Heroku) PrepareFence(ctx context.Context, tables []*Table, cfg FenceConfig) error {
	return h.gate().prepareFor(ctx, tables, cfg)
}

// Fence implements [Source].
func (h *Heroku) Fence(ctx context.Context, tables []*Table, cfg FenceConfig) error {
	return h.gate().shut(ctx, tables, cfg)
}

// Writers implements [Source].
func (h *Heroku) Writers(ctx context.Context, tables []*Table, age time.Duration) ([]string, error) {
	return h.gate().writers(ctx, tables, age)
}

func (g gate) writers(ctx context.Context, tables []*Table, age time.Duration) ([]string, error) {
	ids := make([]uint32, len(tables))
	for i, t := range tables {
		ids[i] = t.ID
	}
	open, err := g.openWriters(ctx, ids, age)
	if err != nil {
		return nil, fmt.Errorf("look for open transactions on the %s: %w", g.side, err)
	}
	list := make([]string, len(open))
	for i, w := range open {
		list[i] = w.description
	}
	return list, nil
}

// Unfence implements [Source].
func (h *Heroku) Unfence(ctx context.Context) error { return h.gate().open(ctx) }

// prepareFor is prepare, and ends sessions that keep a trigger from being made, if it is to.
func (g gate) prepareFor(ctx context.Context, tables []*Table, cfg FenceConfig) error {
	err := g.prepare(ctx, tables)
	if !cfg.Terminate || !errors.Is(err, ErrBusy) {
		return err
	}
	ids := make([]uint32, len(tables))
	for i, t := range tables {
		ids[i] = t.ID
	}
	slow, slowErr := g.openWriters(ctx, ids, cmp.Or(cfg.DrainTime, defaultDrainTime))
	if slowErr != nil || len(slow) == 0 {
		return errors.Join(err, slowErr)
	}
	if err := g.terminate(ctx, slow); err != nil {
		return err
	}
	return g.prepare(ctx, tables)
}

// prepare puts a trigger on each relation, which refuses nothing yet. Relations are locked one
// table at a time, so the application's transactions, which lock several, cannot get stuck with ours.
func (g gate) prepare(ctx context.Context, tables []*Table) error {
	ids := make([]uint32, len(tables))
	for i, t := range tables {
		ids[i] = t.ID
	}
	rows, err := g.pool.Query(ctx, `
		WITH fenced AS (SELECT tgrelid FROM pg_trigger WHERE tgname = 'heroku_migrator_fence' AND tgenabled = 'A')
		SELECT t.oid FROM unnest($1::oid[]) AS t(oid)
		WHERE t.oid NOT IN (SELECT tgrelid FROM fenced)
		   OR EXISTS (SELECT 1 FROM `+treeOf(`t.oid`)+` AS p JOIN pg_class c ON c.oid = p.relid
		              WHERE c.relkind IN ('r', 'p') AND c.oid NOT IN (SELECT tgrelid FROM fenced))`, ids)
	if err != nil {
		return fmt.Errorf("prepare the fence: %w", err)
	}
	todo, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return fmt.Errorf("prepare the fence: %w", err)
	}
	for _, t := range tables {
		if slices.Contains(todo, t.ID) {
			if err := g.prepareTable(ctx, t); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g gate) prepareTable(ctx context.Context, t *Table) error {
	type unfenced struct {
		Relation
		silenced bool // the trigger is there, and does not fire for everybody
	}
	var relations []unfenced
	missing := func(q querier) (err error) {
		rows, err := q.Query(ctx, `
			SELECT c.oid, n.nspname, c.relname, EXISTS (SELECT 1 FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgname
			= 'heroku_migrator_fence')
			FROM (SELECT relid AS oid FROM `+treeOf(`$1`)+` AS tree) AS r
			JOIN pg_class c ON c.oid = r.oid JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE c.relkind IN ('r', 'p')
			  AND NOT EXISTS (SELECT 1 FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgname = 'heroku_migrator_fence'
			AND g.tgenabled = 'A')`, t.ID)
		if err != nil {
			return err
		}
		relations, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (r unfenced, err error) {
			err = row.Scan(&r.ID, &r.Schema, &r.Name, &r.silenced)
			return r, err
		})
		return err
	}
	if err := missing(g.pool); err != nil || len(relations) == 0 {
		return err
	}
	err := g.change(ctx, func(tx pgx.Tx) error {
		// A partitioned root brings all that are its partitions now.
		if err := lock(ctx, tx, t.Only(), "SHARE ROW EXCLUSIVE", ""); err != nil {
			return err
		}
		if err := missing(tx); err != nil {
			return err
		}
		var b strings.Builder
		for _, r := range relations {
			if !r.silenced {
				fmt.Fprintf(&b, `CREATE TRIGGER heroku_migrator_fence BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON
					%s
					FOR EACH STATEMENT EXECUTE FUNCTION heroku_migrator.fence();`, r.Ident())
			}
			fmt.Fprintf(&b, `ALTER TABLE ONLY %s ENABLE ALWAYS TRIGGER heroku_migrator_fence;`, r.Ident())
		}
		_, err := tx.Exec(ctx, b.String())
		return err
	})
	if errors.Is(err, ErrBusy) {
		return fmt.Errorf("prepare the fence of %s: %w; %s", t, err, holders(ctx, g.pool, t.relations()))
	}
	if err != nil {
		return fmt.Errorf("prepare the fence of %s: %w", t, err)
	}
	return nil
}

// shut closes the fence. The triggers are there; replacing their function closes all tables at once and takes no
// lock on any. Then the transactions that have written before are waited for. See ARCHITECTURE.md, Fence, for
// why nothing can slip through between the two. Privileges are not touched, so there is nothing to restore, and
// roles that privileges do not stop are stopped too.
func (g gate) shut(ctx context.Context, tables []*Table, cfg FenceConfig) error {
	if cfg.DrainTime <= 0 {
		cfg.DrainTime = defaultDrainTime
	}
	if err := g.prepare(ctx, tables); err != nil {
		return err
	}
	ids := make([]uint32, len(tables))
	for i, t := range tables {
		ids[i] = t.ID
	}
	// Somebody who has been writing for long will not end in time: do not refuse writes for nothing.
	slow, err := g.openWriters(ctx, ids, cfg.DrainTime)
	if err != nil {
		return fmt.Errorf("fence the %s: %w", g.side, err)
	}
	if len(slow) > 0 && !cfg.Keep && (!cfg.Terminate || slices.ContainsFunc(slow,
		func(w writer) bool { return w.prepared })) {
		return g.inTheWay(slow)
	}
	err = g.change(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, fmt.Sprintf(fenceClosed, SchemaName)+";"+g.raised)
		return err
	})
	if err == nil {
		err = g.drain(ctx, ids, cfg)
	}
	if err == nil {
		return nil
	}
	if !cfg.Keep {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if undoErr := g.open(undo); undoErr != nil {
			return errors.Join(fmt.Errorf("fence the %s: %w", g.side, err), undoErr)
		}
	}
	if errors.Is(err, ErrBusy) {
		return err
	}
	return fmt.Errorf("fence the %s: %w", g.side, err)
}

// writer is a transaction that holds a lock for writing.
type writer struct {
	transaction string // virtual transaction
	prepared    bool   // no session has it, so none can be terminated
	description string
}

// preparedTransaction describes the one that holds lock l of pg_locks. Which it is, its lock on its own number tells.
const preparedTransaction = `coalesce((
	SELECT format('prepared transaction %L (%s, prepared %s s ago; end it with COMMIT PREPARED or ROLLBACK PREPARED)',
	p.gid, p.owner,
	              round(extract(epoch FROM clock_timestamp() - p.prepared)))
	FROM pg_locks x JOIN pg_prepared_xacts p ON p.transaction = x.transactionid
	WHERE x.locktype = 'transactionid' AND x.pid IS NULL AND x.virtualtransaction = l.virtualtransaction LIMIT 1),
	'a transaction that has just ended')`

// openWriters lists the transactions that have written to the tables, or may have, and began longer ago than age. So
// may those that have used large objects: writers and readers lock pg_largeobject (2613) alike, and whoever drops an
// object locks that.
func (g gate) openWriters(ctx context.Context, ids []uint32, age time.Duration) ([]writer, error) {
	rows, err := g.pool.Query(ctx, `
		SELECT l.virtualtransaction, bool_or(l.pid IS NULL), min(CASE WHEN a.pid IS NOT NULL THEN
		       format('pid %s (%s, %s, transaction open for %s s)', a.pid, a.usename,
		coalesce(nullif(a.application_name, ''), 'no application name'),
		              round(extract(epoch FROM clock_timestamp() - a.xact_start))) ELSE `+preparedTransaction+` END)
		FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
		WHERE l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
		  AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
		  AND ((l.locktype = 'object' AND l.classid = 2613) OR (l.locktype = 'relation' AND (l.relation IN (2613, 2995)
		OR
		       l.relation IN (SELECT p.relid FROM `+treeOf(`unnest($1::oid[])`)+` AS p))))
		  AND l.pid IS DISTINCT FROM pg_backend_pid() AND coalesce(a.backend_type, '') <> 'autovacuum worker'
		  AND ($2::float8 = 0 OR l.pid IS NULL OR a.xact_start < clock_timestamp() - make_interval(secs => $2::float8))
		GROUP BY
		1`, ids, age.Seconds()) // a prepared transaction has no process; one whose process is gone has just ended
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (w writer, err error) {
		err = row.Scan(&w.transaction, &w.prepared, &w.description)
		return w, err
	})
}

// drain waits for the transactions that hold locks for writing now. Those that come later are refused.
func (g gate) drain(ctx context.Context, ids []uint32, cfg FenceConfig) error {
	before, err := g.openWriters(ctx, ids, 0)
	if err != nil {
		return err
	}
	terminated := false
	for deadline := time.Now().Add(cfg.DrainTime); len(before) > 0; {
		if time.Now().After(deadline) {
			if !cfg.Terminate || terminated {
				return g.inTheWay(before)
			}
			if err := g.terminate(ctx, before); err != nil {
				return err
			}
			terminated, deadline = true, time.Now().Add(2*time.Second)
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return err
		}
		now, err := g.openWriters(ctx, ids, 0)
		if err != nil {
			return err
		}
		open := map[string]bool{}
		for _, w := range now {
			open[w.transaction] = true
		}
		before = slices.DeleteFunc(before, func(w writer) bool { return !open[w.transaction] })
	}
	return nil
}

// terminate ends the sessions of these transactions; their work is rolled back. A prepared transaction has none.
func (g gate) terminate(ctx context.Context, writers []writer) error {
	list := make([]string, len(writers))
	for i, w := range writers {
		list[i] = w.transaction
	}
	_, err := g.pool.Exec(ctx, `
		SELECT pg_terminate_backend(pid) FROM (SELECT DISTINCT pid FROM pg_locks WHERE virtualtransaction = ANY
		($1::text[]) AND pid IS NOT NULL) AS l`, list)
	if err != nil {
		return fmt.Errorf("terminate transactions that are in the way: %w", err)
	}
	return nil
}

func (g gate) inTheWay(writers []writer) error {
	list := make([]string, len(writers))
	for i, w := range writers {
		list[i] = w.description
	}
	return fmt.Errorf("fence the %s: %w; transactions that have written do not end: %s", g.side, ErrBusy,
		abbreviate(list))
}

// open lets everybody write again. It replaces one function, so it takes no lock on any table and all of
// them open in the same instant. The triggers that are left do nothing.
func (g gate) open(ctx context.Context) error {
	err := g.change(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, fmt.Sprintf(fenceOpen, SchemaName)+";"+g.lifted)
		return err
	})
	if err != nil {
		return fmt.Errorf("lift the fence on the %s: %w", g.side, err)
	}
	return nil
}
