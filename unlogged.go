package migrator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Unlogged tables are emptied by a crash of their server, and are empty on a standby that is promoted. The journal, which is logged, would go on
// as if their rows were there. So it has an unlogged table of its own with one row: where that is gone, theirs are.

// ErrEmptied is returned when the target's unlogged tables were emptied by a crash or a failover: they have to be sent whole.
var ErrEmptied = errors.New("a crash or a failover of the target has emptied its unlogged tables: they have to be sent whole, as Run does by itself")

// emptied is a condition: the target's unlogged tables were emptied, and there are some.
const emptied = `(NOT EXISTS (SELECT 1 FROM heroku_migrator.canary) AND EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE c.relpersistence = 'u' AND c.relkind = 'r' AND n.nspname <> 'heroku_migrator'))`

// checkEmptied fails with ErrEmptied in a transaction that relies on what was there before.
func checkEmptied(ctx context.Context, tx pgx.Tx) error {
	var lost bool
	if err := tx.QueryRow(ctx, `SELECT `+emptied).Scan(&lost); err != nil {
		return err
	}
	if lost {
		return ErrEmptied
	}
	return nil
}

// resendEmptied has the next round send the unlogged tables whole. Interrupted and repeated, it does the same again.
func resendEmptied(ctx context.Context, src Source, dst Target) error {
	journal := dst.Journal()
	tables, err := journal.Tables(ctx)
	if err != nil {
		return err
	}
	rows, err := journal.pool.Query(ctx, `SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relpersistence = 'u' AND c.relkind = 'r'`)
	if err != nil {
		return fmt.Errorf("list unlogged tables: %w", err)
	}
	unlogged, err := pgx.CollectRows(rows, pgx.RowToStructByPos[struct{ Schema, Name string }])
	if err != nil {
		return fmt.Errorf("list unlogged tables: %w", err)
	}
	for _, t := range tables {
		lost := slices.ContainsFunc(t.Table.relations(), func(r Relation) bool {
			return slices.Contains(unlogged, struct{ Schema, Name string }{r.Schema, r.Name})
		})
		if !lost || !t.Captured {
			continue
		}
		if err := src.Touch(ctx, t.Table, strings.NewReader(""), true); err != nil {
			return err
		}
	}
	return journal.exec(ctx, "note that unlogged tables are sent again", `INSERT INTO heroku_migrator.canary DEFAULT VALUES ON CONFLICT DO NOTHING`)
}
