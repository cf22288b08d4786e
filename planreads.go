package migrator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// plansAtOnce is how many queries are planned in one round trip, during which their tables are locked against being
// altered (ACCESS SHARE).
const plansAtOnce = 16

// leavesPlanned bounds the partitions beneath a root that is planned as a whole: that locks all of them and their
// indexes.
const leavesPlanned = 32

// PlanReads implements [Source].
func (h *Heroku) PlanReads(ctx context.Context, tables []*Table) ([]RehearsalFailure, error) {
	var failures []RehearsalFailure
	err := h.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		for some := range slices.Chunk(tables, plansAtOnce) {
			if explain(ctx, conn.Conn(), h.readsOf(ctx, conn.Conn(), some)) == nil {
				continue
			}
			for _, t := range some { // which one is it?
				err := explain(ctx, conn.Conn(), h.readsOf(ctx, conn.Conn(), []*Table{t}))
				failed := new(pgconn.PgError)
				switch {
				case err == nil || schemaIsOther(err) && sqlState(err) == "42P01" && t.isGone(ctx, conn.Conn()):
				case errors.As(err, &failed) && !Retryable(err) && ctx.Err() == nil:
					failures = append(failures, unreadable(t, failed))
				default:
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("plan the reads: %w", err)
	}
	return failures, nil
}

// isGone tells whether the table was dropped or renamed, which is followed elsewhere.
func (t *Table) isGone(ctx context.Context, q querier) bool {
	var gone bool
	return q.QueryRow(ctx, `SELECT to_regclass($1) IS NULL`, t.Ident()).Scan(&gone) == nil && gone
}

// explain plans the queries and executes none, with names as the application's. Each round trip is a transaction, so that locks are held for a moment.
func explain(ctx context.Context, conn *pgx.Conn, queries []string) error {
	for some := range slices.Chunk(queries, plansAtOnce) {
		if _, err := conn.Exec(ctx, ownPath+";\nEXPLAIN (COSTS OFF) "+strings.Join(some, ";\nEXPLAIN (COSTS OFF) ")); err != nil {
			return err
		}
	}
	return nil
}

// readsOf are the queries by which the tables will be read, without what is in their logs.
func (h *Heroku) readsOf(ctx context.Context, q querier, tables []*Table) (queries []string) {
	for _, t := range tables {
		var ops []keyOperator
		if !t.Keyless() {
			var err error
			if ops, err = h.ops.get(ctx, q, t); err != nil {
				continue // the key is another one, which is followed elsewhere
			}
		}
		relations := make([]string, 0, len(t.Leaves)+1)
		for _, l := range t.Leaves {
			relations = append(relations, "ONLY "+l.Ident())
		}
		if t.Kind != KindOrdinary && len(t.Leaves) <= leavesPlanned {
			relations = append(relations, t.Only())
		}
		columns := t.copied("t.")
		for _, relation := range relations {
			if t.Keyless() {
				queries = append(queries, fmt.Sprintf(`SELECT %s FROM %s AS t`, columns, relation))
				continue
			}
			log := fmt.Sprintf(`(SELECT %s FROM %s LIMIT 0)`, t.keyList(""), relation)
			queries = append(queries,
				fmt.Sprintf(`SELECT %s FROM %s AS t
					WHERE NOT EXISTS (SELECT 1 FROM %s AS l WHERE %s) AND t.ctid OPERATOR(pg_catalog.>=) '(0,1)'::pg_catalog.tid`, columns, relation,
					log, matchKey(t, ops, "l.", "t.")),
				fmt.Sprintf(`SELECT %s FROM (SELECT DISTINCT %s FROM %s AS l) AS k
					CROSS JOIN LATERAL (SELECT t.* FROM %s AS t WHERE %s OFFSET 0) AS r`,
					t.copied("r."), t.keyList(""), log, relation, matchKey(t, ops, "t.", "k.")))
		}
	}
	return queries
}

// unreadable says that a table cannot be read.
func unreadable(t *Table, err *pgconn.PgError) RehearsalFailure {
	return RehearsalFailure{
		Name: "reading table " + t.String(), Code: err.Code, Message: err.Message,
		Remedy: "Reading it calls a function (of an index on an expression, a partial index, statistics or a " +
			"generated column) that fails. Change that function on the source so that it works: write the names in " +
			"its body in full, for example.",
	}
}
