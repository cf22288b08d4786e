package migrator

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Release implements [Source].
func (h *Heroku) Release(ctx context.Context) error {
	if exists, err := schemaExists(ctx, h.pool); err != nil || !exists || !h.claimed() { // not claimed: not ours
		return err
	}
	if err := h.CloseWayBack(ctx); err != nil {
		return err
	}
	if err := h.decoder.remove(ctx, h.change); err != nil {
		return err
	}
	if err := releaseTables(ctx, h.pool, h.change); err != nil {
		return err
	}
	return dropSchema(ctx, h.change)
}

// ReleaseUnclaimed removes everything of ours without regard to which migration made it: for a source
// whose target, and so whose journal, is gone. It returns the constraints that were validated before, and stay NOT
// VALID.
func (h *Heroku) ReleaseUnclaimed(ctx context.Context) (left []string, err error) {
	begin := func(ctx context.Context, fn func(pgx.Tx) error) error { return pgx.BeginFunc(ctx, h.pool, fn) }
	if err := closeWayBack(ctx, h.pool, begin); err != nil {
		return nil, err
	}
	left, err = validateLast(ctx, func(ctx context.Context) ([]string, error) {
		return validateTaken(ctx, h.pool,
			begin)
	})
	if err != nil {
		return left, err
	}
	if err := h.decoder.remove(ctx, begin); err != nil {
		return left, err
	}
	if err := releaseTables(ctx, h.pool, begin); err != nil {
		return left, err
	}
	return left, dropSchema(ctx, begin)
}

// beginner runs a function in a transaction.
type beginner func(context.Context, func(pgx.Tx) error) error

// releaseTables takes our triggers away, and what belongs to them. Dropping a trigger takes an ACCESS
// EXCLUSIVE lock, so tables are released one by one, each in an attempt that gives up soon.
func releaseTables(ctx context.Context, pool *pgxpool.Pool, begin beginner) error {
	rows, err := pool.Query(ctx, `
		SELECT t.tgrelid, n.nspname, c.relname, array_agg(t.tgname::text),
		       coalesce(array_agg(DISTINCT f.proname::text) FILTER (WHERE f.proname LIKE 'capture\_%'), '{}')
		FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_proc f ON f.oid = t.tgfoid
		WHERE t.tgname LIKE 'heroku\_migrator\_%' AND t.tgparentid = 0 AND NOT t.tgisinternal
		GROUP BY 1, 2, 3 ORDER BY 1`)
	if err != nil {
		return fmt.Errorf("drop our triggers: %w", err)
	}
	type captured struct {
		Relation
		triggers, functions []string
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c captured, err error) {
		err = row.Scan(&c.ID, &c.Schema, &c.Name, &c.triggers, &c.functions)
		return c, err
	})
	if err != nil {
		return fmt.Errorf("drop our triggers: %w", err)
	}
	var busy error
	for _, c := range list {
		err := begin(ctx, func(tx pgx.Tx) error {
			var b strings.Builder
			for _, name := range c.triggers {
				fmt.Fprintf(&b, `DROP TRIGGER %s ON %s;`, quoteName(name), c.Ident())
			}
			for _, name := range c.functions { // named after the table's OID on the source, as its log is
				log, _ := strings.CutSuffix(strings.Replace(name, "capture_", "changes_", 1), "_old")
				log, _ = strings.CutSuffix(log, "_both")
				fmt.Fprintf(&b, `DROP FUNCTION heroku_migrator.%s(); DROP TABLE IF EXISTS heroku_migrator.%s;`, name,
					log)
			}
			return lock(ctx, tx, c.Ident(), "ACCESS EXCLUSIVE", b.String())
		})
		switch state := sqlState(err); {
		case err == nil, state == "42P01", state == "42704": // the table or trigger is gone
		case errors.Is(err, ErrBusy):
			busy = fmt.Errorf("drop our triggers on %s: %w; %s", c, ErrBusy, holders(ctx, pool, []Relation{c.Relation}))
		default:
			return fmt.Errorf("drop our triggers on %s: %w", c, err)
		}
	}
	return busy
}

// dropSchema drops what is left once no trigger is.
func dropSchema(ctx context.Context, begin beginner) error {
	err := begin(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `DROP SCHEMA IF EXISTS heroku_migrator CASCADE`)
		return err
	})
	if sqlState(err) == "55P03" {
		return fmt.Errorf("drop our schema: %w", ErrBusy)
	}
	if err != nil {
		return fmt.Errorf("drop our schema: %w", err)
	}
	return nil
}

// Release implements [Target]: what was written since the switch is not captured any more.
func (p *PlanetScale) Release(ctx context.Context) error {
	if err := p.decoder.remove(ctx, p.journal.tx); err != nil {
		return err
	}
	return releaseTables(ctx, p.pool, p.journal.tx)
}
