package migrator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// The source's part in the way back: behind its fence, it is made ready to take rows as they come, and put back exactly
// as it was. What takes the rows is applyback.go. See ARCHITECTURE.md, Way back.

// silenced is a trigger, a rule or a foreign key, and its state before the way back was opened.
type silenced struct {
	Relation
	kind, name, state string
}

// The states of triggers and rules, as they are stored, and how to get there.
var enabling = map[string]string{"O": "ENABLE", "A": "ENABLE ALWAYS", "R": "ENABLE REPLICA", "D": "DISABLE"}

// silence and restore are the statements for both ways.
func (s silenced) silence() string {
	if s.kind == "CONSTRAINT" {
		return fmt.Sprintf(`ALTER TABLE %s ALTER CONSTRAINT %s DEFERRABLE INITIALLY DEFERRED;`, s.Ident(),
			quoteName(s.name))
	}
	return fmt.Sprintf(`ALTER TABLE ONLY %s DISABLE %s %s;`, s.Ident(), s.kind, quoteName(s.name))
}

func (s silenced) restore() string {
	switch s.kind {
	case "CONSTRAINT":
		return fmt.Sprintf(`ALTER TABLE %s ALTER CONSTRAINT %s %s;`, s.Ident(), quoteName(s.name), s.state)
	case "INDEX": // of ours, by which rows of tables without a key are found
		return fmt.Sprintf(`DROP INDEX IF EXISTS %s;`, pgx.Identifier{s.Schema, s.name}.Sanitize())
	}
	return fmt.Sprintf(`ALTER TABLE ONLY %s %s %s %s;`, s.Ident(), enabling[s.state], s.kind, quoteName(s.name))
}

// loudSQL lists what would act on the rows that come back: triggers (ours that capture too, since behind the fence
// nobody else writes), rules, and foreign keys that are looked at before the transaction ends. Each is to be silenced
// on its relation alone, but for a foreign key of a partitioned table, which its partitions follow.
var loudSQL = `
	SELECT c.oid, n.nspname, c.relname, x.kind, x.name, x.state FROM (
		SELECT tgrelid AS relid, 'TRIGGER' AS kind, tgname::text AS name, tgenabled::text AS state FROM pg_trigger
		WHERE NOT tgisinternal AND tgenabled <> 'D' AND tgname <> 'heroku_migrator_fence'
		UNION ALL
		SELECT ev_class, 'RULE', rulename, ev_enabled::text FROM pg_rewrite WHERE ev_type <> '1' AND ev_enabled <> 'D'
		UNION ALL
		SELECT conrelid, 'CONSTRAINT', conname, CASE WHEN condeferrable THEN 'DEFERRABLE INITIALLY IMMEDIATE' ELSE
		'NOT DEFERRABLE' END
		FROM pg_constraint WHERE contype = 'f' AND conparentid = 0 AND NOT condeferred) AS x
	JOIN pg_class c ON c.oid = x.relid JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE c.relkind IN ('r', 'p') AND c.oid IN (
		SELECT p.relid FROM ` + treeOf(`unnest($1::oid[])`) + ` AS p)
	ORDER BY 1`

func listSilenced(ctx context.Context, q querier, sql string, args ...any) ([]silenced, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (s silenced, err error) {
		err = row.Scan(&s.ID, &s.Schema, &s.Name, &s.kind, &s.name, &s.state)
		return s, err
	})
}

// OpenWayBack implements [Source]. What is recorded and what is done are one transaction, relation by relation.
func (h *Heroku) OpenWayBack(ctx context.Context, tables []*Table, number int64) error {
	err := h.change(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE heroku_migrator.migration SET way_back = '', way_back_of = $1 WHERE way_back_of
			<> $1`, number)
		return err
	})
	if err != nil {
		return fmt.Errorf("open the way back: %w", err)
	}
	ids := make([]uint32, len(tables))
	for i, t := range tables {
		ids[i] = t.ID
	}
	loud, err := listSilenced(ctx, h.pool, loudSQL, ids)
	if err != nil {
		return fmt.Errorf("open the way back: %w", err)
	}
	return alterRelations(ctx, h.change, "open the way back", loud, func(s silenced) string {
		return s.silence() + fmt.Sprintf(`INSERT INTO heroku_migrator.silenced (relid, kind, name, state) VALUES (%d,
			'%s', %s, '%s')
			ON CONFLICT (relid, kind, name) DO UPDATE SET state = excluded.state;`,
			s.ID, s.kind, quoteLiteral(s.name), s.state)
	})
}

// CloseWayBack implements [Source].
func (h *Heroku) CloseWayBack(ctx context.Context) error {
	if !h.claimed() { // what is there is another migration's
		return nil
	}
	return closeWayBack(ctx, h.pool, h.change)
}

func closeWayBack(ctx context.Context, q querier, change beginner) error {
	if err := restoreChecks(ctx, q, change); err != nil {
		return err
	}
	var exists bool
	if err := q.QueryRow(ctx, `SELECT to_regclass('heroku_migrator.silenced') IS NOT
		NULL`).Scan(&exists); err != nil || !exists {
		return err
	}
	// What somebody dropped meanwhile is not put back.
	list, err := listSilenced(ctx, q, `
		SELECT c.oid, n.nspname, c.relname, s.kind, s.name::text, s.state FROM heroku_migrator.silenced s
		JOIN pg_class c ON c.oid = s.relid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE EXISTS (SELECT 1 FROM pg_trigger WHERE kind = 'TRIGGER' AND tgrelid = s.relid AND tgname = s.name)
		   OR EXISTS (SELECT 1 FROM pg_rewrite WHERE kind = 'RULE' AND ev_class = s.relid AND rulename = s.name)
		   OR EXISTS (SELECT 1 FROM pg_constraint WHERE kind = 'CONSTRAINT' AND conrelid = s.relid AND conname = s.name)
		UNION ALL
		SELECT c.oid, n.nspname, c.relname, 'INDEX', i.relname, '' FROM pg_index x JOIN pg_class i ON i.oid =
		x.indexrelid
		JOIN pg_class c ON c.oid = x.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE i.relname LIKE 'heroku\_migrator\_image\_%' AND i.relkind IN ('i', 'I') AND NOT i.relispartition
		ORDER BY 1`)
	if err != nil {
		return fmt.Errorf("close the way back: %w", err)
	}
	return alterRelations(ctx, change, "close the way back", list, func(s silenced) string {
		return s.restore() + fmt.Sprintf(`DELETE FROM heroku_migrator.silenced WHERE relid = %d AND kind = '%s' AND name
			= %s;`, s.ID, s.kind, quoteLiteral(s.name))
	})
}

// alterRelations takes each relation's lock in an attempt of its own, which gives up soon: nobody writes, but the old
// application may read.
func alterRelations(ctx context.Context, change beginner, what string, list []silenced,
	statement func(silenced) string) error {
	for len(list) > 0 {
		n := slices.IndexFunc(list, func(s silenced) bool { return s.ID != list[0].ID })
		if n < 0 {
			n = len(list)
		}
		mode := "SHARE ROW EXCLUSIVE"
		var script strings.Builder
		for _, s := range list[:n] {
			if s.kind != "TRIGGER" {
				mode = "ACCESS EXCLUSIVE"
			}
			script.WriteString(statement(s))
		}
		err := change(ctx, func(tx pgx.Tx) error {
			return lock(ctx, tx, "ONLY "+list[0].Ident(), mode,
				script.String())
		})
		if errors.Is(err, ErrBusy) {
			return fmt.Errorf("%s: %s: %w", what, list[0].Relation, ErrBusy)
		}
		if err != nil {
			return fmt.Errorf("%s: %s: %w", what, list[0].Relation, err)
		}
		list = list[n:]
	}
	return nil
}

// thisServer tells one server, and one timeline of it, from another.
const thisServer = `(SELECT system_identifier::text FROM pg_control_system()) || '/' ||
	substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)`

// WayBackPosition implements [Source].
func (h *Heroku) WayBackPosition(ctx context.Context) (Position, error) {
	var text string
	if err := h.pool.QueryRow(ctx, `SELECT CASE WHEN way_back_on = `+thisServer+` THEN way_back ELSE '' END FROM
		heroku_migrator.migration`).Scan(&text); err != nil {
		return Position{}, fmt.Errorf("read the position of the way back: %w", err)
	}
	return ParsePosition(text)
}

// quoteLiteral writes a string for SQL.
func quoteLiteral(s string) string {
	if strings.Contains(s, `\`) {
		return ` E'` + strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\\`), "'", "''") + "'"
	}
	return "'" + strings.ReplaceAll(s, "'", "''") + "'"
}
