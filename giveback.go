package migrator

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// The target's part in the way back: the same log, snapshots and fence as the source has in replication.

// Trim implements [Target].
func (p *PlanetScale) Trim(ctx context.Context, tables []*Table, upTo Position) error {
	return trimLogs(ctx, p.pool, p.journal.tx, tables, upTo)
}

// LogSize implements [Target].
func (p *PlanetScale) LogSize(ctx context.Context) (int64, error) { return p.decoder.logSize(ctx) }

func (p *PlanetScale) gate() gate { return gate{pool: p.pool, change: p.journal.tx, side: "target"} }

// PrepareFence implements [Target].
func (p *PlanetScale) PrepareFence(ctx context.Context, tables []*Table, cfg FenceConfig) error {
	here, err := p.located(ctx, tables)
	if err != nil {
		return err
	}
	return p.gate().prepareFor(ctx, here, cfg)
}

// Fence implements [Target].
func (p *PlanetScale) Fence(ctx context.Context, tables []*Table, cfg FenceConfig) error {
	here, err := p.located(ctx, tables)
	if err != nil {
		return err
	}
	return p.gate().shut(ctx, here, cfg)
}

// Writers implements [Target].
func (p *PlanetScale) Writers(ctx context.Context, tables []*Table, age time.Duration) ([]string, error) {
	here, err := p.located(ctx, tables)
	if err != nil {
		return nil, err
	}
	return p.gate().writers(ctx, here, age)
}

// Unfence implements [Target].
func (p *PlanetScale) Unfence(ctx context.Context) error { return p.gate().open(ctx) }

// located returns the tables with the OIDs that they have here. Those that were dropped here are left out.
func (p *PlanetScale) located(ctx context.Context, tables []*Table) ([]*Table, error) {
	names := make([]string, len(tables))
	for i, t := range tables {
		names[i] = t.Ident()
	}
	rows, err := p.pool.Query(ctx, `SELECT coalesce(to_regclass(n)::oid, 0) FROM unnest($1::text[]) WITH ORDINALITY AS t(n, i) ORDER BY i`, names)
	if err != nil {
		return nil, fmt.Errorf("look for the tables on the target: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return nil, fmt.Errorf("look for the tables on the target: %w", err)
	}
	here := make([]*Table, 0, len(tables))
	for i, t := range tables {
		if ids[i] != 0 {
			other := *t
			other.ID = ids[i]
			here = append(here, &other)
		}
	}
	return here, nil
}

// columnsHere and filesHere are what a table's log and rows are of: its columns, and the files of its leaves.
const (
	columnsHere = `(SELECT array_agg(a.attname || ' ' || a.atttypid || ' ' || a.atttypmod ORDER BY a.attnum) FROM pg_attribute a
		WHERE a.attrelid = to_regclass(t.name) AND a.attnum > 0 AND NOT a.attisdropped)`
	filesHere = `(SELECT string_agg(pg_relation_filenode(r.relid)::text, ' ' ORDER BY r.relid)
		FROM (SELECT to_regclass(t.name)::oid AS relid UNION SELECT p.relid FROM pg_partition_tree(to_regclass(t.name)) AS p) AS r)`
)

// beginWayBack makes the target the one whose changes count: its log begins now, and whoever was kept out may write.
func beginWayBack(ctx context.Context, tx pgx.Tx, tables []*Table) error {
	ids, names := idsAndNames(tables)
	_, err := tx.Exec(ctx, `
		INSERT INTO heroku_migrator.captured (relid, name, columns, files)
		SELECT t.id, t.name, `+columnsHere+`, `+filesHere+` FROM unnest($1::int8[], $2::text[]) AS t(id, name)
		ON CONFLICT (relid) DO UPDATE SET name = excluded.name, columns = excluded.columns, files = excluded.files, trimmed = false`, ids, names)
	if err == nil {
		_, err = tx.Exec(ctx, `
			UPDATE heroku_migrator.migration SET trimmed = NULL;
			UPDATE heroku_migrator.progress SET back_at = NULL, back_rounds = 0, back_rows = 0, back_error = '';`+fmt.Sprintf(fenceOpen, SchemaName))
	}
	if err != nil {
		return fmt.Errorf("begin the way back: %w", err)
	}
	return nil
}

func idsAndNames(tables []*Table) (ids []int64, names []string) {
	for _, t := range tables {
		ids, names = append(ids, int64(t.ID)), append(names, t.Ident())
	}
	return ids, names
}

// SchemaSinceSwitch implements [Target].
func (p *PlanetScale) SchemaSinceSwitch(ctx context.Context, tables []*Table) (differ, ignored []string, err error) {
	ids, _ := idsAndNames(tables)
	fail := func(err error) ([]string, []string, error) {
		return nil, nil, fmt.Errorf("compare the target's schema with that of the switch: %w", err)
	}
	rows, err := p.pool.Query(ctx, `
		SELECT t.name, coalesce(t.columns, '{}'), to_regclass(t.name) IS NULL, coalesce(`+columnsHere+`, '{}')
		FROM heroku_migrator.captured t WHERE t.relid = ANY ($1::int8[]) ORDER BY t.relid`, ids)
	if err != nil {
		return fail(err)
	}
	var name string
	var gone bool
	var before, now []string
	if _, err = pgx.ForEachRow(rows, []any{&name, &before, &gone, &now}, func() error {
		if gone {
			differ = append(differ, fmt.Sprintf("table %s is gone or renamed", name))
			return nil
		}
		for _, c := range before {
			if !slices.Contains(now, c) {
				column, _, _ := strings.Cut(c, " ")
				differ = append(differ, fmt.Sprintf("column %s of %s is gone, renamed or of another type", column, name))
			}
		}
		for _, c := range now {
			if !slices.Contains(before, c) {
				column, _, _ := strings.Cut(c, " ")
				ignored = append(ignored, fmt.Sprintf("column %s of %s", column, name))
			}
		}
		return nil
	}); err != nil {
		return fail(err)
	}
	rows, err = p.pool.Query(ctx, `
		SELECT format('table %I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND NOT c.relispartition AND`+userRelations+`
		  AND c.oid NOT IN (SELECT to_regclass(t.name)::oid FROM heroku_migrator.captured t WHERE to_regclass(t.name) IS NOT NULL)
		  AND EXISTS (SELECT 1 FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0) ORDER BY 1`)
	if err != nil {
		return fail(err)
	}
	created, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fail(err)
	}
	return differ, append(ignored, created...), nil
}

// ResendRewritten implements [Target].
func (p *PlanetScale) ResendRewritten(ctx context.Context, tables []*Table) error {
	ids, _ := idsAndNames(tables)
	rows, err := p.pool.Query(ctx, `SELECT t.relid FROM heroku_migrator.captured t WHERE t.relid = ANY ($1::int8[]) AND t.files IS DISTINCT FROM `+filesHere, ids)
	if err != nil {
		return fmt.Errorf("look for rewritten tables: %w", err)
	}
	rewritten, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return fmt.Errorf("look for rewritten tables: %w", err)
	}
	for _, t := range tables {
		if !slices.Contains(rewritten, t.ID) {
			continue
		}
		err := touch(ctx, p.journal.tx, t, strings.NewReader(""), true, `UPDATE heroku_migrator.captured t SET files = `+filesHere+` WHERE t.relid = $1`)
		if err != nil {
			return err
		}
	}
	return nil
}
