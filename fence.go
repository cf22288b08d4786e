package migrator

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// The fence function in its two forms. A statement that has waited for its table's lock sees the form
// that was committed last.
const (
	fenceClosed = `CREATE OR REPLACE FUNCTION %s.fence() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'permission denied for table %%: this database has moved', TG_TABLE_NAME
		USING ERRCODE = 'insufficient_privilege',
		      HINT = 'Writes are refused while heroku_migrator switches the application to its new database.';
END $$`
	fenceOpen = `CREATE OR REPLACE FUNCTION %s.fence() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RETURN NULL;
END $$`
)

// Fence implements [Source]. It is one transaction: lock every table against writers, which waits for
// those that have written, put a trigger that refuses on each, commit. Privileges are not touched, so
// there is nothing to restore, and roles that privileges do not stop are stopped too.
func (h *Heroku) Fence(ctx context.Context, tables []*Table) error {
	if len(tables) == 0 {
		return nil
	}
	var relations []Relation
	names, ids := make([]string, len(tables)), make([]uint32, len(tables))
	for i, t := range tables {
		relations = append(relations, t.relations()...)
		names[i], ids[i] = t.Only(), t.ID // a partitioned root brings all that are its partitions now
	}
	err := h.change(ctx, func(tx pgx.Tx) error {
		if err := lockAgainstWriters(ctx, tx, names); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `
			SELECT c.oid, n.nspname, c.relname
			FROM (SELECT t.oid FROM unnest($1::oid[]) AS t(oid)
			      UNION SELECT p.relid FROM unnest($1::oid[]) AS t(oid) CROSS JOIN LATERAL pg_partition_tree(t.oid) AS p) AS r
			JOIN pg_class c ON c.oid = r.oid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')`, ids)
		if err != nil {
			return err
		}
		relations, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r Relation, err error) {
			err = row.Scan(&r.ID, &r.Schema, &r.Name)
			return r, err
		})
		if err != nil {
			return err
		}
		var b strings.Builder
		fmt.Fprintf(&b, fenceClosed+";\n", SchemaName)
		present, err := fenced(ctx, tx)
		if err != nil {
			return err
		}
		for _, r := range relations {
			if !present[r.ID] {
				fmt.Fprintf(&b, `CREATE TRIGGER heroku_migrator_fence BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %[1]s
					FOR EACH STATEMENT EXECUTE FUNCTION heroku_migrator.fence();
					ALTER TABLE ONLY %[1]s ENABLE ALWAYS TRIGGER heroku_migrator_fence;`, r.Ident())
			}
		}
		b.WriteString(`UPDATE heroku_migrator.migration SET fenced = true;`)
		_, err = tx.Exec(ctx, b.String())
		return err
	})
	if errors.Is(err, ErrBusy) {
		return fmt.Errorf("fence the source: %w; %s", err, holders(ctx, h.pool, relations))
	}
	if err != nil {
		return fmt.Errorf("fence the source: %w", err)
	}
	return nil
}

// fenced lists the relations that have the fence's trigger, open or closed.
func fenced(ctx context.Context, q querier) (map[uint32]bool, error) {
	rows, err := q.Query(ctx, `SELECT tgrelid FROM pg_trigger WHERE tgname = 'heroku_migrator_fence'`)
	if err != nil {
		return nil, err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	present := make(map[uint32]bool, len(ids))
	for _, id := range ids {
		present[id] = true
	}
	return present, err
}

// Unfence implements [Source]. It replaces one function, so it takes no lock on any table and all of
// them open in the same instant. The triggers that are left do nothing.
func (h *Heroku) Unfence(ctx context.Context) error {
	err := h.change(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, fmt.Sprintf(fenceOpen, SchemaName)+`; UPDATE heroku_migrator.migration SET fenced = false`)
		return err
	})
	if err != nil {
		return fmt.Errorf("lift the fence: %w", err)
	}
	return nil
}
