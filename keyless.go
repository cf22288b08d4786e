package migrator

import (
	"context"
	"fmt"
	"io"
	"strings"
)

// Tables without a key. Nothing tells their rows apart but their content, and rows may be equal. So the log of such a
// table holds images of whole rows with a sign: +1 for a row that came, -1 for one that went. A round sums the signs of
// equal images and makes the difference on the target: a table is a multiset. See ARCHITECTURE.md, Tables without a
// key.

// Keyless tells whether the table has no NOT NULL unique key.
func (t *Table) Keyless() bool { return len(t.Key) == 0 }

// imageSettings make the text of a row the same whoever writes it, and on both sides.
const imageSettings = `SET search_path = pg_catalog, pg_temp
	SET DateStyle = 'ISO, YMD' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC'
	SET extra_float_digits = '3' SET bytea_output = 'hex' SET lc_monetary = 'C'`

// captureImages writes a function that logs images. No text is longer than 1 GB, and the image of a wide row can be:
// the application's write goes through all the same, and the table is noted to be sent whole. That is caught by a
// subtransaction, but only for rows that are wide (a megabyte can be the compressed form of several hundred): one that
// writes takes a transaction number. The one that measures does not.
func captureImages(name, log, widest, rows string) string {
	return fmt.Sprintf(`
		CREATE OR REPLACE FUNCTION %[1]s() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER %[2]s AS $capture$
		DECLARE
			heroku_migrator_width pg_catalog.int8;
		BEGIN -- how wide they are
			BEGIN
				heroku_migrator_width := (%[3]s);
			EXCEPTION WHEN internal_error OR program_limit_exceeded OR out_of_memory THEN
				heroku_migrator_width := 1 << 30;
			END;
			IF heroku_migrator_width > 1 << 20 THEN
				BEGIN
					IF heroku_migrator_width > nullif(current_setting('heroku_migrator.widest', true), '')::int8 THEN
						RAISE program_limit_exceeded; -- tests set it
					END IF;
					INSERT INTO %[4]s (relid, sign, image) %[5]s;
				EXCEPTION WHEN internal_error OR program_limit_exceeded OR out_of_memory THEN
					INSERT INTO heroku_migrator.truncated (relid) VALUES (TG_RELID);
				END;
				RETURN NULL;
			END IF;
			INSERT INTO %[4]s (relid, sign, image) %[5]s;
			RETURN NULL;
		END $capture$;`, name, imageSettings, widest, log, rows)
}

// buildKeylessCapture is buildCapture for a table without a key. The image is the row as text, whole: no column is
// named, so that no column which the application drops or renames can break its writes.
func buildKeylessCapture(t *Table, always bool) captureSQL {
	log, fn := logName(t.ID), fmt.Sprintf("%s.capture_%d", SchemaName, t.ID)
	var c captureSQL
	var b strings.Builder
	c.log = fmt.Sprintf(`
		CREATE TABLE %[1]s (relid oid NOT NULL, sign int2 NOT NULL, image text NOT NULL,
			heroku_migrator_xid xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id());
		ALTER TABLE %[1]s REPLICA IDENTITY FULL;`, log)
	function := func(name, widest, rows string) {
		c.functions += captureImages(fn+name, log, widest, rows)
	}
	trigger := func(on Relation, name, rest string) { b.WriteString(createTrigger(on, name, rest, always)) }
	const widestCame = `SELECT max(pg_column_size(n.*)) FROM came AS n`
	const widestWent = `SELECT max(pg_column_size(o.*)) FROM went AS o`
	if t.Kind == KindOrdinary {
		// n alone could be a column
		came, went := `SELECT TG_RELID, 1, (n.*)::text FROM came AS n`, `SELECT TG_RELID, -1, (o.*)::text FROM went AS
			o`
		function("", widestCame, came)
		function("_old", widestWent, went)
		function("_both", `SELECT greatest((`+widestWent+`), (`+widestCame+`))`, went+` UNION ALL `+came)
		for _, e := range []struct{ name, event, rows, function string }{
			{"insert", "INSERT", "NEW TABLE AS came", ""},
			{"update", "UPDATE", "OLD TABLE AS went NEW TABLE AS came", "_both"},
			{"delete", "DELETE", "OLD TABLE AS went", "_old"},
		} {
			trigger(t.Relation, e.name, fmt.Sprintf(`AFTER %s ON %s REFERENCING %s FOR EACH STATEMENT EXECUTE FUNCTION
				%s%s()`,
				e.event, t.Ident(), e.rows, fn, e.function))
		}
	} else {
		came, went := `(TG_RELID, 1, NEW::text)`, `(TG_RELID, -1, OLD::text)`
		function("", `SELECT pg_column_size(NEW)`, `VALUES `+came)
		function("_old", `SELECT pg_column_size(OLD)`, `VALUES `+went)
		function("_both", `SELECT greatest(pg_column_size(OLD), pg_column_size(NEW))`, `VALUES `+went+`, `+came)
		for _, e := range []struct{ name, event, function string }{{"insert", "INSERT", ""}, {"update", "UPDATE",
			"_both"}, {"delete", "DELETE", "_old"}} {
			trigger(t.Relation, fmt.Sprintf("row_%s_%d", e.name, t.ID), fmt.Sprintf(`AFTER %s ON %s FOR EACH ROW EXECUTE
				FUNCTION %s%s()`, e.event, t.Ident(), fn, e.function))
		}
	}
	c.attach = b.String() + truncateTriggers(t, always)
	return c
}

// copyKeylessTable reads all rows at the snapshot: a chunk's, or those of a table that is sent whole.
func (s *herokuSnapshot) copyKeylessTable(ctx context.Context, t *Table, w io.Writer) (int64, error) {
	return copyTo(ctx, s.conn.Conn(), inPath(fmt.Sprintf(`COPY (SELECT %s FROM %s AS t) TO STDOUT (FORMAT %s)`,
		t.sent("t.", s.guarded), t.Only(), t.Format())), w)
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
	err := s.conn.QueryRow(ctx, `SELECT coalesce((SELECT trimmed FROM heroku_migrator.captured WHERE relid = $1),
		false)`, t.ID).Scan(&trimmed)
	if err == nil && trimmed {
		err = ErrTrimmed
	}
	if err == nil && len(files) > 0 {
		var same, gone bool
		err = s.conn.QueryRow(ctx, `
			SELECT bool_and(c.relfilenode = f.node AND pg_relation_filenode(c.oid) IS NOT DISTINCT FROM f.node),
			bool_or(c.oid IS NULL OR pg_relation_filenode(c.oid) IS NULL)
			FROM (VALUES `+strings.Join(files, ", ")+`) AS f(id, node) LEFT JOIN pg_class c ON c.oid =
				f.id`).Scan(&same, &gone)
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
