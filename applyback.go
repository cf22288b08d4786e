package migrator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// How rows that were written on the target come back to the source, whose role can neither silence foreign keys nor
// bypass the fence. See ARCHITECTURE.md, Way back, for why the order of the steps gives the target's state.

// foreignKey is one that does something on its own, or has to be regarded in the order of tables.
type foreignKey struct {
	child, parent uint32 // tables of the round; 0 if not in it
	// acts: it deletes or changes rows of the child when the parent's go or change, or refuses that at once.
	acts bool
	// moves: it acts when a value changes that is not the key that we tell rows by.
	moves         bool
	name          string
	relation      Relation // that has it
	def, describe string
}

// ApplyBack implements [Source].
func (h *Heroku) ApplyBack(ctx context.Context, snap Snapshot, round Round, detach bool) error {
	err := h.change(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, passFence+`; SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = '2s'; SET
			CONSTRAINTS ALL DEFERRED`)
		if err == nil {
			err = h.decoder.ours(ctx, tx)
		}
		if err != nil {
			return err
		}
		keys, err := readForeignKeys(ctx, tx, round)
		if err != nil {
			return err
		}
		var attach string
		if detach {
			var drop string
			drop, attach = detachment(keys)
			if _, err := tx.Exec(ctx, drop); err != nil {
				return fmt.Errorf("take foreign keys away: %w", err)
			}
			keys = slices.DeleteFunc(keys, func(k foreignKey) bool { return k.acts })
		} else if slices.ContainsFunc(keys, func(k foreignKey) bool { return k.moves && k.parent != 0 }) {
			return ErrDetach
		}
		if err := h.applyBackTables(ctx, tx, snap, round, keys); err != nil {
			return err
		}
		// Foreign keys are checked now, by queries on the application's tables. No table may be altered while such
		// checks are due.
		_, err = tx.Exec(ctx, inPath("SET CONSTRAINTS ALL IMMEDIATE;\n"+attach)+`; UPDATE heroku_migrator.migration SET way_back =
			'`+snap.Position().String()+`', way_back_on = `+thisServer)
		return err
	})
	if err == nil {
		return nil
	}
	h.ops.forget()
	if taken, takeErr := h.takeConstraint(ctx, err); takeErr != nil {
		return fmt.Errorf("take a constraint away: %w; %w", takeErr, err)
	} else if len(taken) > 0 {
		return fmt.Errorf("%w: %s", ErrConstraintTaken, strings.Join(taken, ", "))
	}
	switch state := sqlState(err); {
	case detach || errors.Is(err, ErrDetach):
	case state == "23505" || state == "23503" || state == "23001":
		return fmt.Errorf("apply a round on the source: %w: %w", ErrDetach, err)
	}
	err = blamed(ctx, h.pool, round, err)
	return fmt.Errorf("apply a round on the source: %w", err)
}

// applyBackTables: rows of guarded tables (to which foreign keys that act refer) are updated and inserted first,
// parents before children; then the other tables are brought to the snapshot's state; last, guarded rows that are gone
// are deleted, children before parents.
func (h *Heroku) applyBackTables(ctx context.Context, tx pgx.Tx, snap Snapshot, round Round, keys []foreignKey) error {
	order := parentsFirst(round, keys)
	guarded := map[uint32]bool{}
	for _, k := range keys {
		if k.acts {
			guarded[k.parent] = true
		}
	}
	// DELETE, since TRUNCATE takes the table from its readers, and gives it another file
	for _, c := range slices.Backward(order) {
		for _, r := range c.Truncated {
			name := r.Ident()
			if r.ID == c.Table.ID || c.Table.Keyless() {
				name = c.Table.Only()
			}
			if _, err := tx.Exec(ctx, inPath(`DELETE FROM `+name)); err != nil {
				return fmt.Errorf("empty %s: %w", r, err)
			}
		}
	}
	staged := map[uint32]stagedRows{}
	for _, c := range order {
		if !guarded[c.Table.ID] || c.Rows == 0 {
			continue
		}
		s, err := h.upsert(ctx, tx, snap, c)
		if err != nil {
			return &tableError{c.Table, refusedRows(c.Table, nil, err)}
		}
		staged[c.Table.ID] = s
	}
	for _, c := range order {
		if guarded[c.Table.ID] {
			continue
		}
		if _, err := applyChange(ctx, tx, &h.ops, snap, c); err != nil {
			return &tableError{c.Table, refusedRows(c.Table, nil, err)}
		}
	}
	for _, c := range slices.Backward(order) {
		s, ok := staged[c.Table.ID]
		if !ok {
			continue
		}
		_, err := tx.Exec(ctx, inPath(fmt.Sprintf(`
			DELETE FROM %s AS t USING %s AS k WHERE %s AND NOT EXISTS (SELECT 1 FROM %s AS r WHERE %s)`,
			c.Table.Only(), s.keys, matchKey(c.Table, s.ops, "t.", "k."), s.rows, matchKey(c.Table, s.ops, "r.", "k."))))
		if err != nil {
			return fmt.Errorf("delete rows of %s: %w", c.Table, err)
		}
	}
	return nil
}

// tableError says which table a round failed at.
type tableError struct {
	table *Table
	error
}

func (e *tableError) Unwrap() error { return e.error }

// stagedRows are the temporary tables that hold a guarded table's changed keys, and the rows that have them now.
type stagedRows struct {
	keys, rows string
	ops        []keyOperator
}

// upsert brings the rows that exist to the snapshot's state without deleting any, so that no foreign key acts.
func (h *Heroku) upsert(ctx context.Context, tx pgx.Tx, snap Snapshot, c RoundChange) (s stagedRows, err error) {
	t := c.Table
	if s.ops, err = h.ops.get(ctx, tx, t); err != nil {
		return s, err
	}
	if s.keys, err = stageKeys(ctx, tx, snap, c); err != nil {
		return s, err
	}
	s.rows = fmt.Sprintf("pg_temp.heroku_migrator_rows_%d", t.ID)
	staging := fmt.Sprintf(`CREATE TEMP TABLE heroku_migrator_rows_%d ON COMMIT DROP AS SELECT %s FROM %s WITH NO
		DATA`, t.ID, t.copied(""), t.Only())
	if t.keyGenerated() { // a column of the key is computed there, too
		staging = fmt.Sprintf(`CREATE TEMP TABLE heroku_migrator_rows_%d (LIKE %s INCLUDING GENERATED) ON COMMIT DROP`,
			t.ID, t.Ident())
	}
	if _, err := tx.Exec(ctx, staging); err != nil {
		return s, fmt.Errorf("stage rows of %s: %w", t, err)
	}
	_, err = stream(ctx, defaultBuffer,
		func(ctx context.Context, w io.Writer) error {
			_, err := snap.CopyRows(ctx, t, c.Since, w)
			return err
		},
		func(ctx context.Context, r io.Reader) (int64, error) {
			return copyFrom(ctx, tx.Conn(), enterPath+fmt.Sprintf(`; COPY %s %s FROM STDIN (FORMAT %s)`, s.rows,
				t.copiedList(), t.Format()), r)
		})
	if err != nil {
		return s, fmt.Errorf("stage rows of %s: %w", t, err)
	}
	// A key stays as it is written, and a column that is GENERATED ALWAYS AS IDENTITY cannot be updated: should they
	// differ ('a' for 'A'), rows have to be deleted and inserted.
	var set, fixed []string
	for _, col := range t.Columns {
		name := quoteName(col.Name)
		switch {
		case col.Generated:
		case slices.Contains(t.Key, col.Name) || col.Identity == "a":
			fixed = append(fixed, fmt.Sprintf("t.%[1]s::pg_catalog.text OPERATOR(pg_catalog.=) r.%[1]s::pg_catalog.text", name))
		default:
			set = append(set, name+" = r."+name)
		}
	}
	match := matchKey(t, s.ops, "t.", "r.")
	var otherwise bool
	err = tx.QueryRow(ctx, fmt.Sprintf(`
		SELECT EXISTS (SELECT 1 FROM %s AS t JOIN %s AS r ON %s WHERE (%s) IS NOT TRUE)`,
		t.Only(), s.rows, match, strings.Join(append(fixed, "true"), " AND "))).Scan(&otherwise)
	if err == nil && otherwise {
		err = ErrDetach
	}
	if err == nil && len(set) > 0 {
		_, err = tx.Exec(ctx, fmt.Sprintf(`UPDATE %s AS t SET %s FROM %s AS r WHERE %s`, t.Only(), strings.Join(set,
			", "), s.rows, match))
	}
	if err == nil {
		_, err = tx.Exec(ctx, fmt.Sprintf(`INSERT INTO %s %s SELECT %s FROM %s AS r WHERE NOT EXISTS (SELECT 1 FROM %s
			AS t WHERE %s)`,
			t.Ident(), t.insertList(), t.copied("r."), s.rows, t.Only(), match))
	}
	if err == nil {
		_, err = tx.Exec(ctx, leavePath)
	}
	if err != nil {
		return s, fmt.Errorf("bring back rows of %s: %w", t, err)
	}
	return s, nil
}

// readForeignKeys lists the foreign keys that refer to tables of the round.
func readForeignKeys(ctx context.Context, tx pgx.Tx, round Round) ([]foreignKey, error) {
	tableOf, keyOf := map[uint32]uint32{}, map[uint32][]string{}
	var ids []uint32
	for _, c := range round.Changes {
		for _, r := range c.Table.relations() {
			tableOf[r.ID] = c.Table.ID
			ids = append(ids, r.ID)
		}
		keyOf[c.Table.ID] = c.Table.Key
	}
	rows, err := tx.Query(ctx, `
		SELECT k.conrelid, k.confrelid, k.confdeltype IN ('c', 'n', 'd', 'r'), k.confupdtype IN ('c', 'n', 'd', 'r'),
		       (SELECT array_agg(a.attname::text) FROM unnest(k.confkey) AS f(att) JOIN pg_attribute a ON a.attrelid =
		k.confrelid AND a.attnum = f.att),
		       k.conname, c.oid, n.nspname, c.relname, pg_get_constraintdef(k.oid), coalesce(obj_description(k.oid,
		'pg_constraint'), '')
		FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE k.contype = 'f' AND k.conparentid = 0 AND k.confrelid = ANY ($1::oid[])`, ids)
	if err != nil {
		return nil, fmt.Errorf("read foreign keys: %w", err)
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (k foreignKey, err error) {
		var child, parent uint32
		var onDelete, onUpdate bool
		var columns []string
		err = row.Scan(&child, &parent, &onDelete, &onUpdate, &columns, &k.name, &k.relation.ID, &k.relation.Schema,
			&k.relation.Name, &k.def, &k.describe)
		k.child, k.parent = tableOf[child], tableOf[parent]
		key := keyOf[k.parent]
		slices.Sort(columns)
		sorted := slices.Clone(key)
		slices.Sort(sorted)
		k.acts = onDelete || onUpdate
		k.moves = onUpdate && !slices.Equal(columns, sorted)
		return k, err
	})
}

// detachment takes the foreign keys that act away, and puts them back.
func detachment(keys []foreignKey) (drop, attach string) {
	var d, a strings.Builder
	for _, k := range keys {
		if !k.acts {
			continue
		}
		fmt.Fprintf(&d, "ALTER TABLE %s DROP CONSTRAINT %s;\n", k.relation.Ident(), quoteName(k.name))
		fmt.Fprintf(&a, "ALTER TABLE %s ADD CONSTRAINT %s %s;\n", k.relation.Ident(), quoteName(k.name), k.def)
		if k.describe != "" {
			fmt.Fprintf(&a, "COMMENT ON CONSTRAINT %s ON %s IS %s;\n", quoteName(k.name), k.relation.Ident(),
				quoteLiteral(k.describe))
		}
	}
	return d.String(), a.String()
}

// parentsFirst orders the tables of a round so that those that others refer to come first. In a cycle, somebody has to
// be.
func parentsFirst(round Round, keys []foreignKey) []RoundChange {
	parents := map[uint32][]uint32{}
	for _, k := range keys {
		if k.child != 0 && k.child != k.parent {
			parents[k.child] = append(parents[k.child], k.parent)
		}
	}
	byID := map[uint32]RoundChange{}
	for _, c := range round.Changes {
		byID[c.Table.ID] = c
	}
	var order []RoundChange
	seen := map[uint32]bool{}
	var visit func(id uint32)
	visit = func(id uint32) {
		if seen[id] {
			return
		}
		seen[id] = true
		for _, p := range parents[id] {
			visit(p)
		}
		if c, ok := byID[id]; ok {
			order = append(order, c)
		}
	}
	for _, c := range round.Changes {
		visit(c.Table.ID)
	}
	return order
}
