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

// Extensions tell which of their tables hold rows of users, and which rows those are (pg_extension_config_dump):
// jobs, partition sets, reference systems. They are copied with the switch and not before, since an extension may act on them.

// ExtensionTable is a table, or a sequence, of an extension that holds rows of users.
type ExtensionTable struct {
	Relation
	Extension string
	// Condition tells the users' rows from the extension's own: "WHERE …", or empty.
	Condition string
	// Rows is how many such rows there are.
	Rows int64
	// Problem says why they cannot be read, or not all of them.
	Problem string
	// Sequence is set if it is a sequence.
	Sequence *Sequence

	columns  []extensionColumn
	writable bool
}

func (t *ExtensionTable) String() string {
	return fmt.Sprintf("%s of extension %s", t.Relation, t.Extension)
}

// extensionColumn is a column that is copied.
type extensionColumn struct {
	name, typ string
}

func (t *ExtensionTable) column(name string) (extensionColumn, bool) {
	i := slices.IndexFunc(t.columns, func(c extensionColumn) bool { return c.name == name })
	if i < 0 {
		return extensionColumn{}, false
	}
	return t.columns[i], true
}

// A table comes after those that its foreign keys refer to. Left out are generated columns, and those that say by
// default who and where their row's author is: a job of pg_cron belongs to the role, and runs in the database, that it is
// copied to.
const extensionTablesSQL = `
	WITH RECURSIVE config AS (
		SELECT e.extname, c.oid, n.nspname, c.relname, c.relkind, c.relnamespace, coalesce(e.extcondition[k.n], '') AS condition
		FROM pg_extension e CROSS JOIN unnest(e.extconfig) WITH ORDINALITY AS k(oid, n)
		JOIN pg_class c ON c.oid = k.oid JOIN pg_namespace n ON n.oid = c.relnamespace),
	depth AS (
		SELECT oid, 0 AS depth FROM config
		UNION
		SELECT k.conrelid, d.depth + 1 FROM depth d JOIN pg_constraint k ON k.contype = 'f' AND k.confrelid = d.oid AND k.conrelid <> k.confrelid
		WHERE d.depth < 10)
	SELECT c.oid, c.nspname, c.relname, c.extname, c.condition, c.relkind = 'S',
	       CASE WHEN NOT (has_schema_privilege(c.relnamespace, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')) THEN 'the role may not read it'
	            WHEN row_security_active(c.oid) THEN 'row security may hide rows of others' ELSE '' END,
	       has_table_privilege(c.oid, CASE c.relkind WHEN 'S' THEN 'UPDATE' ELSE 'INSERT' END) AND (c.relkind = 'S' OR has_table_privilege(c.oid, 'DELETE')),
	       a.names, a.types
	FROM config c CROSS JOIN LATERAL (
		SELECT coalesce(array_agg(a.attname::text ORDER BY a.attnum), '{}') AS names, coalesce(array_agg(format_type(a.atttypid, -1) ORDER BY a.attnum), '{}') AS types
		FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
		WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
		  AND coalesce(pg_get_expr(d.adbin, d.adrelid), '') !~* '\m(current_user|session_user|current_role|current_database|current_catalog|inet_server_addr|inet_server_port)\M') AS a
	WHERE c.relkind IN ('r', 'p', 'S')
	ORDER BY (SELECT max(depth) FROM depth d WHERE d.oid = c.oid), c.oid`

// listExtensionTables reads what there is, and counts the rows. It leaves the transaction as it was.
func listExtensionTables(ctx context.Context, inner executor) (list []ExtensionTable, err error) {
	if _, err := inner.Exec(ctx, `SAVEPOINT row_security; SET LOCAL row_security = on`); err != nil {
		return nil, err
	}
	defer func() {
		_, rollbackErr := inner.Exec(ctx, `ROLLBACK TO SAVEPOINT row_security; RELEASE SAVEPOINT row_security`)
		err = errors.Join(err, rollbackErr)
	}()
	rows, err := inner.Query(ctx, extensionTablesSQL)
	if err != nil {
		return nil, err
	}
	list, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (t ExtensionTable, err error) {
		var names, types []string
		var sequence bool
		err = row.Scan(&t.ID, &t.Schema, &t.Name, &t.Extension, &t.Condition, &sequence, &t.Problem, &t.writable, &names, &types)
		for i := range names {
			t.columns = append(t.columns, extensionColumn{names[i], types[i]})
		}
		if sequence {
			t.Sequence = &Sequence{Relation: t.Relation}
		}
		return t, err
	})
	if err != nil {
		return nil, err
	}
	for i := range list {
		t := &list[i]
		if strings.Contains(t.Problem, "may not read") {
			continue
		}
		err := savepoint(ctx, inner, func(tx executor) error {
			if t.Sequence != nil {
				return tx.QueryRow(ctx, `SELECT last_value, is_called FROM `+t.Ident()).Scan(&t.Sequence.LastValue, &t.Sequence.IsCalled)
			}
			return tx.QueryRow(ctx, `SELECT count(*) FROM `+t.Ident()+` `+t.Condition).Scan(&t.Rows)
		})
		if err != nil && (sqlState(err) == "" || Retryable(err) || ctx.Err() != nil) {
			return nil, err
		}
		if err != nil {
			t.Problem = err.Error()
		}
	}
	return list, nil
}

// ExtensionTables implements [Snapshot].
func (s *herokuSnapshot) ExtensionTables(ctx context.Context) ([]ExtensionTable, error) {
	list, err := listExtensionTables(ctx, s.conn)
	if err != nil {
		return nil, fmt.Errorf("read the tables of extensions: %w", err)
	}
	return list, nil
}

// CopyExtensionTable implements [Snapshot].
func (s *herokuSnapshot) CopyExtensionTable(ctx context.Context, t *ExtensionTable, columns []string, w io.Writer) (int64, error) {
	quoted := make([]string, len(columns))
	for i, c := range columns {
		quoted[i] = quoteName(c)
	}
	if _, err := s.conn.Exec(ctx, `SET LOCAL row_security = on`); err != nil {
		return 0, fmt.Errorf("read %s: %w", t, err)
	}
	n, err := copyTo(ctx, s.conn.Conn(), fmt.Sprintf(`COPY (SELECT %s FROM %s %s) TO STDOUT`, strings.Join(quoted, ", "), t.Ident(), t.Condition), w)
	if err == nil {
		_, err = s.conn.Exec(ctx, `SET LOCAL row_security = off`)
	}
	if err != nil {
		return n, fmt.Errorf("read %s: %w", t, err)
	}
	return n, nil
}

// copyExtensionRows makes the users' rows in tables of extensions those that the source has. An extension one
// of whose tables cannot be written is left as it is, and reported: its rows can be entered by hand, and are no reason not to
// switch. So is a table without such rows on the source: what is there is the platform's.
func (p *PlanetScale) copyExtensionRows(ctx context.Context, tx pgx.Tx, final Final) error {
	var todo []ExtensionTable
	for _, t := range final.Extensions {
		if t.Rows > 0 || t.Sequence != nil {
			todo = append(todo, t)
		}
	}
	if len(todo) == 0 {
		return nil
	}
	present, err := listExtensionTables(ctx, tx)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `SET LOCAL row_security = on; CREATE TABLE IF NOT EXISTS heroku_migrator.extension_rows (id int GENERATED ALWAYS AS IDENTITY, undo text)`); err != nil {
		return err
	}
	pairs := make([]*ExtensionTable, len(todo))
	failed := make([]error, len(todo))
	for i := range todo {
		at := slices.IndexFunc(present, func(t ExtensionTable) bool { return t.Extension == todo[i].Extension && t.Name == todo[i].Name })
		if at >= 0 {
			pairs[i] = &present[at]
		} else {
			failed[i] = errors.New("it is not on the target")
		}
	}
	for { // an extension whose rows are refused keeps what it has: all is undone, and done again without it
		culprit := -1
		var fatal error
		refused, err := attempt(ctx, tx, func(tx pgx.Tx) (err error) {
			culprit, fatal, err = p.replaceExtensionRows(ctx, tx, final.Snapshot, todo, pairs, failed)
			return err
		})
		if err := errors.Join(fatal, err); err != nil {
			return err
		}
		if refused == nil {
			break
		}
		for i := range todo {
			switch {
			case i == culprit:
				failed[i] = refused
			case todo[i].Extension == todo[culprit].Extension && failed[i] == nil:
				failed[i] = fmt.Errorf("%s of the same extension: %w", todo[culprit].Relation, refused)
			}
		}
	}
	for i := range todo {
		t := &todo[i]
		if failed[i] != nil && (t.Sequence == nil || pairs[i] != nil) {
			message := fmt.Sprintf("%d rows of users in %s could not be copied to the target, and have to be entered by hand: %v", t.Rows, t, failed[i])
			if _, err := tx.Exec(ctx, `INSERT INTO heroku_migrator.events (kind, phase, message) VALUES ($1, $2, $3)`, string(EventWarning), string(PhaseSwitched), message); err != nil {
				return err
			}
		}
	}
	_, err = tx.Exec(ctx, `SET LOCAL row_security = off`)
	return err
}

// replaceExtensionRows empties and fills the tables that have not failed. Those that refer to others are emptied before, and
// filled after them. It returns the table at which it failed; fatal, if the source could not be read.
func (p *PlanetScale) replaceExtensionRows(ctx context.Context, tx pgx.Tx, snap Snapshot, todo []ExtensionTable, pairs []*ExtensionTable, failed []error) (culprit int, fatal, err error) {
	for i, t := range slices.Backward(todo) {
		if failed[i] == nil && t.Sequence == nil {
			if _, err := tx.Exec(ctx, inPath(fmt.Sprintf(`DELETE FROM %s %s`, pairs[i].Ident(), pairs[i].Condition))); err != nil {
				return i, nil, err
			}
		}
	}
	for i := range todo {
		if failed[i] != nil {
			continue
		}
		if todo[i].Sequence == nil {
			if err := p.stageExtensionRows(ctx, tx, snap, &todo[i], pairs[i]); err != nil {
				return i, err, err
			}
		}
		if err := fillExtensionTable(ctx, tx, &todo[i], pairs[i]); err != nil {
			return i, nil, err
		}
	}
	return -1, nil, nil
}

// attempt runs fn in a savepoint. A failure of the statement is returned apart from one of the connection.
func attempt(ctx context.Context, tx pgx.Tx, fn func(pgx.Tx) error) (failed, err error) {
	err = pgx.BeginFunc(ctx, tx, fn)
	if err == nil || sqlState(err) == "" || Retryable(err) || ctx.Err() != nil {
		return nil, err
	}
	return err, nil
}

// stageExtensionRows brings the rows over as text, which cannot fail: a stream that one side breaks off costs the snapshot.
func (p *PlanetScale) stageExtensionRows(ctx context.Context, tx pgx.Tx, snap Snapshot, from, to *ExtensionTable) error {
	var names, columns []string
	for _, c := range from.columns {
		if _, ok := to.column(c.name); ok {
			names, columns = append(names, c.name), append(columns, quoteName(c.name)+" text")
		}
	}
	if _, err := tx.Exec(ctx, `DROP TABLE IF EXISTS pg_temp.heroku_migrator_rows; CREATE TEMP TABLE heroku_migrator_rows (`+strings.Join(columns, ", ")+`) ON COMMIT DROP`); err != nil {
		return err
	}
	_, err := stream(ctx, defaultBuffer,
		func(ctx context.Context, w io.Writer) error {
			_, err := snap.CopyExtensionTable(ctx, from, names, w)
			return err
		},
		func(ctx context.Context, r io.Reader) (int64, error) {
			return copyFrom(ctx, tx.Conn(), `COPY pg_temp.heroku_migrator_rows FROM STDIN`, r)
		})
	return err
}

func fillExtensionTable(ctx context.Context, tx pgx.Tx, from, to *ExtensionTable) error {
	if from.Sequence != nil {
		_, err := tx.Exec(ctx, `SELECT setval($1::regclass, $2, $3)`, to.Ident(), from.Sequence.LastValue, from.Sequence.IsCalled)
		return err
	}
	var names, values []string
	for _, c := range from.columns {
		if c, ok := to.column(c.name); ok {
			names, values = append(names, quoteName(c.name)), append(values, quoteName(c.name)+"::"+c.typ)
		}
	}
	_, err := tx.Exec(ctx, inPath(fmt.Sprintf(`INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM pg_temp.heroku_migrator_rows`,
		to.Ident(), strings.Join(names, ", "), strings.Join(values, ", "))))
	if err == nil {
		_, err = tx.Exec(ctx, `INSERT INTO heroku_migrator.extension_rows (undo) VALUES ($1)`, fmt.Sprintf(`DELETE FROM %s %s`, to.Ident(), to.Condition))
	}
	return err
}

// dropExtensionRows takes away what copyExtensionRows brought: nothing is to act on it while the source is in use.
func dropExtensionRows(ctx context.Context, tx pgx.Tx) error {
	var exists bool
	if err := tx.QueryRow(ctx, `SELECT to_regclass('heroku_migrator.extension_rows') IS NOT NULL`).Scan(&exists); err != nil || !exists {
		return err
	}
	rows, err := tx.Query(ctx, `SELECT undo FROM heroku_migrator.extension_rows ORDER BY id DESC`)
	if err != nil {
		return err
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `SET LOCAL row_security = on`); err != nil {
		return err
	}
	for _, undo := range list {
		failed, err := attempt(ctx, tx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, undo)
			return err
		})
		if err != nil {
			return err
		}
		if failed != nil {
			message := fmt.Sprintf("rows of an extension could not be taken away from the target (%s): %v", undo, failed)
			if _, err := tx.Exec(ctx, `INSERT INTO heroku_migrator.events (kind, phase, message) VALUES ($1, $2, $3)`, string(EventWarning), string(PhaseReplicating), message); err != nil {
				return err
			}
		}
	}
	_, err = tx.Exec(ctx, `SET LOCAL row_security = off; DROP TABLE heroku_migrator.extension_rows`)
	return err
}

func readExtensionTables(ctx context.Context, db interface {
	BeginTx(ctx context.Context, opts pgx.TxOptions) (pgx.Tx, error)
}) (list []ExtensionTable, err error) {
	tx, err := db.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, tx.Rollback(ctx)) }()
	return listExtensionTables(ctx, tx)
}

// compareExtensionTables says what will become of users' rows in tables of extensions, as far as that can be known.
func compareExtensionTables(from, to []ExtensionTable) []Finding {
	var f []Finding
	find := func(severity Severity, message, remedy string) {
		f = append(f, Finding{Check: "extension_tables", Severity: severity, Message: message, Remedy: remedy})
	}
	const byHand = "Enter them on the target by hand after the switch."
	for _, t := range from {
		if t.Sequence != nil {
			continue
		}
		if t.Problem != "" {
			find(SeverityWarning, fmt.Sprintf("Rows of users in %s may be missing on the target: %s.", t.String(), t.Problem), byHand)
		}
		if t.Rows == 0 {
			continue
		}
		at := slices.IndexFunc(to, func(o ExtensionTable) bool { return o.Extension == t.Extension && o.Name == t.Name })
		switch {
		case at >= 0 && !to[at].writable:
			find(SeverityWarning, fmt.Sprintf("%d rows of users in %s cannot be copied: the role may not write them on the target.", t.Rows, t.String()), byHand)
		case at >= 0 && to[at].Rows > 0:
			find(SeverityWarning, fmt.Sprintf("%d rows of users in %s are copied at the switch, and replace %d that the target has now.", t.Rows, t.String(), to[at].Rows), "")
		default:
			find(SeverityInfo, fmt.Sprintf("%d rows of users in %s are copied at the switch.", t.Rows, t.String()), "")
		}
	}
	return f
}
