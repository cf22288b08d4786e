package migrator

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/heroku-migrator/migrator/internal/definition"
)

// A revert that is forced leaves behind what was written to tables that are held back. The target has them in a form
// that the source's rows do not fit, so they are made again there as the source has them, and sent whole: to the
// journal, they are new.

// dumpTypes are pg_dump's names of kinds.
var dumpTypes = map[definition.Kind][]string{
	definition.Table: {"TABLE"}, definition.Attach: {"TABLE ATTACH"}, definition.Index: {"INDEX"},
	definition.IndexAttach: {"INDEX ATTACH"}, definition.Constraint: {"CONSTRAINT", "CHECK CONSTRAINT"},
	definition.ForeignKey: {"FK CONSTRAINT", typeValidation}, definition.Sequence: {"SEQUENCE"},
	definition.Owned: {"SEQUENCE OWNED BY"}, definition.Statistics: {"STATISTICS"}, definition.View: {"VIEW"},
	definition.MatView: {"MATERIALIZED VIEW", typeViewData}, definition.Rule: {"RULE"}, definition.Trigger: {"TRIGGER"},
	definition.RowSecurity: {"ROW SECURITY"}, definition.Policy: {"POLICY"}, definition.Function: {"FUNCTION",
		"PROCEDURE"},
}

// leaveBehind takes the tables that are held back from the target and from the journal.
func (p *PlanetScale) leaveBehind(ctx context.Context, tx pgx.Tx, tables []*Table) error {
	var there bool
	err := tx.QueryRow(ctx, `SELECT to_regclass('heroku_migrator.held') IS NOT NULL`).Scan(&there)
	if err != nil || !there {
		return err
	}
	rows, err := tx.Query(ctx, `SELECT table_id FROM heroku_migrator.held WHERE table_id <> 0`)
	if err != nil {
		return err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil || len(ids) == 0 {
		return err
	}
	known, err := p.journal.surveyed(ctx)
	if err != nil || known == nil {
		return err
	}
	before, err := definition.List(ctx, tx, SchemaName)
	if err != nil {
		return err
	}
	var left []*Table
	for _, t := range tables {
		if slices.Contains(ids, int64(t.ID)) {
			left = append(left, t)
			if err := dropLeft(ctx, tx, t, known.Tables); err != nil {
				return err
			}
		}
	}
	if err := addLabels(ctx, tx, known.Objects, before); err != nil {
		return err
	}
	after, err := definition.List(ctx, tx, SchemaName)
	if err != nil {
		return err
	}
	if err := p.forgetLeft(ctx, tx, left, before, after); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		DELETE FROM heroku_migrator.held; UPDATE heroku_migrator.migration SET schema = 'to be followed';`)
	return err
}

// dropLeft drops a table, whatever its name is by now.
func dropLeft(ctx context.Context, tx pgx.Tx, t *Table, surveyed []*Table) error {
	var id uint32
	for _, k := range surveyed {
		if k.Ident() == t.Ident() {
			id = k.ID
		}
	}
	rows, err := tx.Query(ctx, `SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c
		JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid IN ($1::oid, to_regclass($2)::oid) AND c.relkind IN
			('r', 'p')`,
		id, t.Ident())
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, err := tx.Exec(ctx, `DROP TABLE IF EXISTS `+name+` CASCADE`); err != nil {
			return fmt.Errorf("make %s again as the source has it: %w", t, err)
		}
	}
	_, err = tx.Exec(ctx, dropCapture(t.ID))
	return err
}

// addLabels gives enums the labels again that they had: the source's rows may have them.
func addLabels(ctx context.Context, tx pgx.Tx, known, now []definition.Object) error {
	for _, o := range known {
		is := func(n definition.Object) bool { return n.Key() == o.Key() }
		typed := func(n definition.Object) bool {
			return n.Kind == definition.Type && n.Schema == o.Schema && n.Name == o.Relation
		}
		if o.Kind != definition.Label || slices.ContainsFunc(now, is) || !slices.ContainsFunc(now, typed) {
			continue
		}
		sql := fmt.Sprintf(`ALTER TYPE %s ADD VALUE IF NOT EXISTS %s`, identOf(o, o.Relation), quoteLiteral(o.Name))
		if _, err := tx.Exec(ctx, sql); err != nil {
			return fmt.Errorf("give the type its label again: %w", err)
		}
	}
	return nil
}

// forgetLeft takes what is gone with the tables from the journal, which then finds it new on the source.
func (p *PlanetScale) forgetLeft(
	ctx context.Context, tx pgx.Tx, left []*Table, before, after []definition.Object,
) error {
	gone := map[[3]string]bool{}
	is := map[string]bool{}
	for _, o := range after {
		is[o.Key()] = true
	}
	for _, o := range before {
		for _, kind := range dumpTypes[o.Kind] {
			if name := strings.TrimPrefix(o.Relation+" "+o.Name, " "); !is[o.Key()] {
				gone[[3]string{kind, o.Schema, name}], gone[[3]string{kind, o.Schema, o.Name}] = true, true
			}
		}
	}
	objects, err := p.journal.Objects(ctx)
	if err != nil {
		return err
	}
	var ids []int
	for _, o := range objects {
		of := slices.ContainsFunc(left, func(t *Table) bool {
			return o.Table == t.ID || slices.ContainsFunc(t.relations(), func(r Relation) bool {
				return o.Schema == r.Schema && (o.Name == r.Name || strings.HasPrefix(o.Name, r.Name+" "))
			})
		})
		if of || gone[[3]string{o.Type, o.Schema, o.Name}] {
			ids = append(ids, o.ID)
		}
	}
	if _, err := tx.Exec(ctx, `DELETE FROM heroku_migrator.objects WHERE id = ANY ($1::int[])`, ids); err != nil {
		return err
	}
	for _, t := range left {
		for _, sql := range []string{
			`DELETE FROM heroku_migrator.chunks WHERE table_id = $1`, `DELETE FROM heroku_migrator.tables WHERE id =
				$1`,
		} {
			if _, err := tx.Exec(ctx, sql, int64(t.ID)); err != nil {
				return err
			}
		}
	}
	return nil
}
