package migrator

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Tables without a key. Nothing tells their rows apart but their content, and rows may be equal. So the log of such a
// table holds images of whole rows with a sign: +1 for a row that came, -1 for one that went. A round sums the signs of equal images
// and makes the difference on the target: a table is a multiset. See ARCHITECTURE.md, Tables without a key.

// Keyless tells whether the table has no NOT NULL unique key.
func (t *Table) Keyless() bool { return len(t.Key) == 0 }

// imageSettings make the text of a row the same whoever writes it, and on both sides.
const imageSettings = `SET search_path = '' SET DateStyle = 'ISO, YMD' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC'
	SET extra_float_digits = '3' SET bytea_output = 'hex' SET lc_monetary = 'C'`

// buildKeylessCapture is buildCapture for a table without a key. The image is the row as text, whole: no column is named, so that
// no column which the application drops or renames can break its writes.
func buildKeylessCapture(t *Table, always bool) captureSQL {
	log, fn := logName(t.ID), fmt.Sprintf("%s.capture_%d", SchemaName, t.ID)
	var c captureSQL
	var b strings.Builder
	c.log = fmt.Sprintf(`
		CREATE TABLE %s (relid oid NOT NULL, sign int2 NOT NULL, image text NOT NULL,
			heroku_migrator_xid xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id());`, log)
	function := func(name, rows string) {
		c.functions += fmt.Sprintf(`
		CREATE OR REPLACE FUNCTION %s%s() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER %s AS $capture$
		BEGIN
			INSERT INTO %s (relid, sign, image) %s;
			RETURN NULL;
		END $capture$;`, fn, name, imageSettings, log, rows)
	}
	trigger := func(on Relation, name, rest string) { b.WriteString(createTrigger(on, name, rest, always)) }
	if t.Kind == KindOrdinary {
		came, went := `SELECT TG_RELID, 1, (n.*)::text FROM came AS n`, `SELECT TG_RELID, -1, (o.*)::text FROM went AS o` // n alone could be a column
		function("", came)
		function("_old", went)
		function("_both", went+` UNION ALL `+came)
		for _, e := range []struct{ name, event, rows, function string }{
			{"insert", "INSERT", "NEW TABLE AS came", ""},
			{"update", "UPDATE", "OLD TABLE AS went NEW TABLE AS came", "_both"},
			{"delete", "DELETE", "OLD TABLE AS went", "_old"},
		} {
			trigger(t.Relation, e.name, fmt.Sprintf(`AFTER %s ON %s REFERENCING %s FOR EACH STATEMENT EXECUTE FUNCTION %s%s()`,
				e.event, t.Ident(), e.rows, fn, e.function))
		}
	} else {
		came, went := `(TG_RELID, 1, NEW::text)`, `(TG_RELID, -1, OLD::text)`
		function("", `VALUES `+came)
		function("_old", `VALUES `+went)
		function("_both", `VALUES `+went+`, `+came)
		for _, e := range []struct{ name, event, function string }{{"insert", "INSERT", ""}, {"update", "UPDATE", "_both"}, {"delete", "DELETE", "_old"}} {
			trigger(t.Relation, fmt.Sprintf("row_%s_%d", e.name, t.ID), fmt.Sprintf(`AFTER %s ON %s FOR EACH ROW EXECUTE FUNCTION %s%s()`, e.event, t.Ident(), fn, e.function))
		}
	}
	c.attach = b.String() + truncateTriggers(t, always)
	return c
}

// images is the query for the differences since the position: each image with the number of rows that came, or went.
func images(t *Table, since Position) string {
	image := "l.image"
	var other strings.Builder
	for _, leaf := range t.Leaves {
		if leaf.Reordered { // its images have its own order of columns
			fmt.Fprintf(&other, ` WHEN '%s'::regclass THEN (SELECT ROW(%s)::text FROM (SELECT l.image::%s AS r OFFSET 0) AS q)`,
				strings.ReplaceAll(leaf.Ident(), "'", "''"), t.columnList("(q.r)."), leaf.Ident())
		}
	}
	if other.Len() > 0 {
		image = "CASE l.relid" + other.String() + " ELSE l.image END"
	}
	return fmt.Sprintf(`SELECT i.image, sum(i.sign) FROM (SELECT %s AS image, l.sign FROM %s AS l WHERE %s) AS i GROUP BY i.image HAVING sum(i.sign) <> 0`,
		image, logName(t.ID), unseen(since, "l.heroku_migrator_xid"))
}

// columnList returns all quoted columns, each with the prefix.
func (t *Table) columnList(prefix string) string {
	b := make([]string, len(t.Columns))
	for i, c := range t.Columns {
		b[i] = prefix + quoteName(c.Name)
	}
	return strings.Join(b, ", ")
}

// copyKeylessTable reads all rows at the snapshot: a chunk's, or those of a table that is sent whole.
func (s *herokuSnapshot) copyKeylessTable(ctx context.Context, t *Table, w io.Writer) (int64, error) {
	return copyTo(ctx, s.conn.Conn(), fmt.Sprintf(`COPY (SELECT %s FROM %s AS t) TO STDOUT (FORMAT %s)`, t.copied("t."), t.Only(), t.Format()), w)
}

// copyKeylessChunk is the whole table in one chunk, whose snapshot is the position from which on its log counts. The
// lock comes before the look at the files, as in CopyChunk.
func (s *herokuSnapshot) copyKeylessChunk(ctx context.Context, t *Table, w io.Writer) (int64, error) {
	files := make([]string, len(t.Leaves))
	for i, l := range t.Leaves {
		files[i] = fmt.Sprintf("(%d::oid, %d::oid)", l.ID, l.Filenode)
	}
	if _, err := s.conn.Exec(ctx, `LOCK TABLE `+t.Only()+` IN ACCESS SHARE MODE`); err != nil {
		return 0, err
	}
	if err := s.known(ctx, t); err != nil {
		return 0, err
	}
	var trimmed bool
	err := s.conn.QueryRow(ctx, `SELECT coalesce((SELECT trimmed FROM heroku_migrator.captured WHERE relid = $1), false)`, t.ID).Scan(&trimmed)
	if err == nil && trimmed {
		err = ErrTrimmed
	}
	if err == nil && len(files) > 0 {
		var same, gone bool
		err = s.conn.QueryRow(ctx, `
			SELECT bool_and(c.relfilenode = f.node AND pg_relation_filenode(c.oid) IS NOT DISTINCT FROM f.node), bool_or(c.oid IS NULL OR pg_relation_filenode(c.oid) IS NULL)
			FROM (VALUES `+strings.Join(files, ", ")+`) AS f(id, node) LEFT JOIN pg_class c ON c.oid = f.id`).Scan(&same, &gone)
		switch {
		case err != nil:
		case gone: // a partition was dropped
			err = ErrSchemaChanged
		case !same:
			err = ErrRewritten
		}
	}
	if err != nil {
		return 0, err
	}
	n, err := s.copyKeylessTable(ctx, t, w)
	if err != nil {
		return n, err
	}
	return n, s.durable(ctx)
}

// imageIndex is an index of ours on the target: on the hash of the rows' images.
func imageIndex(t *Table) string {
	return pgx.Identifier{t.Schema, fmt.Sprintf("heroku_migrator_image_%d", t.ID)}.Sanitize()
}

// imageOf is a row's image, written as that index wants it.
func imageOf(t *Table, prefix string) string {
	return SchemaName + ".image(ROW(" + t.columnList(prefix) + "))"
}

// applyKeyless brings a table without a key to the snapshot's state.
func applyKeyless(ctx context.Context, tx pgx.Tx, snap Snapshot, c RoundChange) (int64, error) {
	n, err := applyImages(ctx, tx, snap, c)
	if sqlState(err) == "22P02" && len(c.Truncated) == 0 { // the text of a row that had other columns; to send it whole helps only once
		err = &ImagesError{Table: c.Table, Reason: err.Error()}
	}
	if err != nil {
		return n, fmt.Errorf("apply changes of %s: %w", c.Table, err)
	}
	return n, nil
}

// ImagesError says that the images of a table without a key are not those of the rows on the other side: columns were changed and changed
// back between two rounds, while rows were written, or somebody else wrote on that side. Nothing was applied. The table has to be sent whole, as
// Run does by itself.
type ImagesError struct {
	Table  *Table
	Reason string
}

func (e *ImagesError) Error() string {
	return fmt.Sprintf("the rows of %s are not those that its changes are about: %s", e.Table, e.Reason)
}

// applyImages makes the difference on the target. Of equal rows it does not matter which one goes.
func applyImages(ctx context.Context, tx pgx.Tx, snap Snapshot, c RoundChange) (int64, error) {
	t := c.Table
	if len(c.Truncated) > 0 { // it was emptied here; what is there now comes whole
		return stream(ctx, defaultBuffer,
			func(ctx context.Context, w io.Writer) error {
				_, err := snap.CopyRows(ctx, t, c.Since, w)
				return err
			},
			func(ctx context.Context, r io.Reader) (int64, error) { return copyInto(ctx, tx.Conn(), t, r) })
	}
	staged := fmt.Sprintf("pg_temp.heroku_migrator_%d", t.ID)
	if _, err := tx.Exec(ctx, fmt.Sprintf(`CREATE TEMP TABLE IF NOT EXISTS heroku_migrator_%d (image text COLLATE "C" NOT NULL, n int8 NOT NULL) ON COMMIT DELETE ROWS`, t.ID)); err != nil {
		return 0, err
	}
	_, err := stream(ctx, defaultBuffer,
		func(ctx context.Context, w io.Writer) error {
			_, err := snap.CopyKeys(ctx, t, c.Since, w)
			return err
		},
		func(ctx context.Context, r io.Reader) (int64, error) {
			return copyFrom(ctx, tx.Conn(), `COPY `+staged+` (image, n) FROM STDIN`, r)
		})
	if err != nil {
		return 0, err
	}
	var going int64
	if err := tx.QueryRow(ctx, `SELECT coalesce(-sum(n), 0)::int8 FROM `+staged+` WHERE n < 0`).Scan(&going); err != nil {
		return 0, err
	}
	if going > 0 {
		if err := deleteImages(ctx, tx, t, staged, going); err != nil {
			return 0, err
		}
	}
	columns, values := t.copied(""), t.copied("(k.r).")
	if columns == "" {
		return 0, fmt.Errorf("%s has only generated columns", t)
	}
	came, err := tx.Exec(ctx, fmt.Sprintf(`
		INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE
		SELECT %s FROM (SELECT image::%[1]s AS r, n FROM %[4]s WHERE n > 0 OFFSET 0) AS k CROSS JOIN LATERAL generate_series(1, k.n)`,
		t.Ident(), columns, values, staged))
	if err != nil {
		return 0, err
	}
	return going + came.RowsAffected(), nil
}

// deleteImages deletes as many of the rows that have each image as went. The first time it makes an index on the images'
// hash, which costs about as much as looking for them once without.
func deleteImages(ctx context.Context, tx pgx.Tx, t *Table, staged string, going int64) error {
	var indexed bool
	if err := tx.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, imageIndex(t)).Scan(&indexed); err != nil {
		return err
	}
	if !indexed {
		_, err := tx.Exec(ctx, fmt.Sprintf(`
			CREATE OR REPLACE FUNCTION heroku_migrator.image(row_ record) RETURNS text LANGUAGE plpgsql IMMUTABLE %s AS $$ BEGIN RETURN row_::text; END $$;
			CREATE INDEX heroku_migrator_image_%d ON %s (hashtextextended(%s, 0))`, imageSettings, t.ID, t.Ident(), imageOf(t, "")))
		if err != nil {
			return fmt.Errorf("index the rows' images: %w", err)
		}
	}
	deleted, err := tx.Exec(ctx, fmt.Sprintf(`
		DELETE FROM %[1]s AS d USING (
			SELECT f.tid, f.rel FROM (
				SELECT r.ctid AS tid, r.tableoid AS rel, k.n, row_number() OVER (PARTITION BY k.image) AS i
				FROM (SELECT image, n FROM %[2]s WHERE n < 0) AS k
				JOIN %[1]s AS r ON hashtextextended(%[3]s, 0) = hashtextextended(k.image, 0) AND %[3]s COLLATE "C" = k.image
			) AS f WHERE f.i <= -f.n) AS g
		WHERE d.ctid = g.tid AND d.tableoid = g.rel`, t.Only(), staged, imageOf(t, "r.")))
	if err != nil {
		return err
	}
	if n := deleted.RowsAffected(); n != going {
		return &ImagesError{Table: t, Reason: fmt.Sprintf("%d rows went, of which %d are there", going, n)}
	}
	return nil
}
