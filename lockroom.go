package migrator

import (
	"context"
	"fmt"
)

// A server has one table of locks for all sessions. When it is full, statements of the application fail (53200). So
// what one transaction of ours has to lock at once is computed before, and compared with the room that there is.

// lockNeed is how many relations a transaction of ours locks at once.
type lockNeed struct {
	tables int64  // all tables and partitions: pg_dump on the source, a revert on the target
	tree   int64  // the largest partitioned table, with its partitions and all their indexes: a round
	root   string // its name
}

func (n lockNeed) most() int64 { return max(n.tables, n.tree) }

// lockRoom is the size of the lock table.
type lockRoom struct{ perTransaction, transactions int64 }

// lockShare is the part of the lock table that is ours: the rest is the application's.
const lockShare = 0.8

func (r lockRoom) enough(need int64) bool {
	return float64(need) <= lockShare*float64(r.perTransaction*r.transactions)
}

// perTransactionFor is the setting that gives enough room.
func (r lockRoom) perTransactionFor(need int64) int64 {
	return int64(float64(need)/lockShare/float64(r.transactions)) + 1
}

func readLockNeed(ctx context.Context, q querier) (n lockNeed, err error) {
	err = q.QueryRow(ctx, `
		WITH RECURSIVE tree(root, relid) AS (
			SELECT c.oid, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND NOT c.relispartition AND`+userRelations+`
			UNION ALL
			SELECT tree.root, i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.relid
			JOIN pg_class p ON p.oid = i.inhrelid AND p.relispartition),
		size AS (
			SELECT tree.root, count(*) AS tables, count(*) + coalesce(sum(x.n), 0)::int8 AS locks
			FROM tree LEFT JOIN (SELECT indrelid, count(*) AS n FROM pg_index GROUP BY 1) AS x ON x.indrelid =
			tree.relid
			GROUP BY 1)
		SELECT coalesce((SELECT sum(tables) FROM size), 0)::int8, coalesce(s.locks, 0),
		       coalesce(n.nspname || '.' || c.relname, '')
		FROM (VALUES (1)) AS one LEFT JOIN (SELECT root, locks FROM size ORDER BY locks DESC LIMIT 1) AS s ON true
		LEFT JOIN pg_class c ON c.oid = s.root LEFT JOIN pg_namespace n ON n.oid =
		c.relnamespace`).Scan(&n.tables, &n.tree, &n.root)
	if err != nil {
		err = fmt.Errorf("count what has to be locked: %w", err)
	}
	return n, err
}

func readLockRoom(ctx context.Context, q querier) (r lockRoom, err error) {
	err = q.QueryRow(ctx, `
		SELECT current_setting('max_locks_per_transaction')::int8,
		       (SELECT sum(coalesce(current_setting(name, true)::int8, 0)) + 1 FROM unnest(ARRAY['max_connections',
		               'max_prepared_transactions', 'max_worker_processes', 'max_wal_senders',
		               CASE WHEN current_setting('autovacuum_worker_slots', true) IS NULL THEN 'autovacuum_max_workers'
		                    ELSE 'autovacuum_worker_slots' END]) AS
		name)::int8`).Scan(&r.perTransaction, &r.transactions)
	if err != nil {
		err = fmt.Errorf("read the size of the lock table: %w", err)
	}
	return r, err
}

// lockLister is implemented by both of our databases.
type lockLister interface {
	locks(ctx context.Context) (lockNeed, lockRoom, error)
}

func (h *Heroku) locks(ctx context.Context) (lockNeed, lockRoom, error) { return locksOf(ctx, h.pool) }

func (p *PlanetScale) locks(ctx context.Context) (lockNeed, lockRoom, error) {
	return locksOf(ctx, p.pool)
}

func locksOf(ctx context.Context, q querier) (n lockNeed, r lockRoom, err error) {
	if n, err = readLockNeed(ctx, q); err == nil {
		r, err = readLockRoom(ctx, q)
	}
	return n, r, err
}

// checkLocks compares the source's need with the room on both sides.
func checkLocks(ctx context.Context, src Source, dst Target) (f []Finding) {
	from, ok := src.(lockLister)
	to, ok2 := dst.(lockLister)
	if !ok || !ok2 {
		return nil
	}
	unknown := func(check string, err error) []Finding {
		return []Finding{{Check: check, Severity: SeverityBlocker, Message: err.Error() + ".", Remedy: "Try again."}}
	}
	need, source, err := from.locks(ctx)
	if err != nil {
		return unknown("source_locks", err)
	}
	_, target, err := to.locks(ctx)
	if err != nil {
		return unknown("target_locks", err)
	}
	for _, side := range []struct {
		name, what string
		room       lockRoom
	}{{"source", "pg_dump", source}, {"target", "a revert", target}} {
		if side.room.enough(need.most()) {
			continue
		}
		why := fmt.Sprintf("%s locks %d tables and partitions at once", side.what, need.tables)
		if need.tree > need.tables {
			why = fmt.Sprintf("a round that changes %s locks %d relations at once, its partitions and their indexes",
				need.root,
				need.tree)
		}
		f = append(f, Finding{
			Check: side.name + "_locks", Severity: SeverityBlocker,
			Message: fmt.Sprintf("The lock table of the %s is too small: %s, and it has room for %d "+
				"(max_locks_per_transaction is %d). When it is full, statements of the application fail.",
				side.name, why, side.room.perTransaction*side.room.transactions, side.room.perTransaction),
			Remedy: fmt.Sprintf("Set max_locks_per_transaction on the %s to %d or more, which takes a restart, "+
				"or take a plan that allows more connections.", side.name, side.room.perTransactionFor(need.most())),
		})
	}
	return f
}
