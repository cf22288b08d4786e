package migrator

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Images of rows, by which changes of tables without a key travel. A log holds them as the row's text in the order of
// that relation's columns. That order can differ between a root and its partitions, and between the sides: a dump names
// inherited columns first. So images leave their side in the order of [Table].Columns and without generated columns,
// and whoever takes them reads them in that order.

// images is the query for the differences since the position: each image with the number of rows that came, or went.
func (s *herokuSnapshot) images(ctx context.Context, t *Table, since Position) (string, error) {
	rows, err := s.conn.Query(ctx, `
		WITH RECURSIVE r(oid) AS (
			SELECT to_regclass($1)::oid
			UNION ALL SELECT i.inhrelid FROM pg_inherits i JOIN r ON i.inhparent = r.oid WHERE $2)
		SELECT c.oid, n.nspname, c.relname FROM r JOIN pg_class c ON c.oid = r.oid JOIN pg_namespace n ON n.oid =
		c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND $3::text[] IS DISTINCT FROM coalesce((
			SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = c.oid AND
			a.attnum > 0 AND NOT a.attisdropped), '{}')`,
		t.Ident(), t.Kind == KindPartitioned, t.imageColumns())
	if err != nil {
		return "", fmt.Errorf("compare the order of columns: %w", err)
	}
	others, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r Relation, err error) {
		err = row.Scan(&r.ID, &r.Schema, &r.Name)
		return r, err
	})
	if err != nil {
		return "", fmt.Errorf("compare the order of columns: %w", err)
	}
	image := "l.image"
	if len(others) > 0 {
		var by strings.Builder
		for _, r := range others {
			fmt.Fprintf(&by, ` WHEN l.relid OPERATOR(pg_catalog.=) %d::pg_catalog.oid
				THEN (SELECT ROW(%s)::pg_catalog.text FROM (SELECT l.image::%s AS r OFFSET 0) AS q)`, r.ID,
				t.copied("(q.r)."), r.Ident())
		}
		image = "CASE" + by.String() + " ELSE l.image END"
	}
	return fmt.Sprintf(`
		SELECT i.image, pg_catalog.sum(i.sign) FROM (SELECT %s AS image, l.sign FROM %s AS l WHERE %s) AS i
		GROUP BY i.image HAVING pg_catalog.sum(i.sign) OPERATOR(pg_catalog.<>) 0`,
		image, logName(t.ID), unseen(since, "l.heroku_migrator_xid")), nil
}

// imageColumns are the names of the columns that are in an image, in their order: those that are copied.
func (t *Table) imageColumns() []string {
	names := make([]string, 0, len(t.Columns))
	for _, c := range t.Columns {
		if !c.Generated {
			names = append(names, c.Name)
		}
	}
	return names
}

// imageType is a row type that images of the table can be read as. It is the table's own where that has their columns
// in their order.
func imageType(ctx context.Context, tx pgx.Tx, t *Table) (string, error) {
	var same bool
	err := tx.QueryRow(ctx, `
		SELECT $2::text[] IS NOT DISTINCT FROM coalesce(array_agg(a.attname::text ORDER BY a.attnum), '{}') FROM
		pg_attribute a
		WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT
		a.attisdropped`, t.Ident(), t.imageColumns()).Scan(&same)
	if err != nil || same {
		return t.Ident(), err
	}
	name := fmt.Sprintf("heroku_migrator_image_%d", t.ID)
	_, err = tx.Exec(ctx, fmt.Sprintf(`CREATE TEMP TABLE %s ON COMMIT DROP AS SELECT %s FROM %s WITH NO DATA`, name,
		t.copied(""), t.Only()))
	if err != nil {
		return "", fmt.Errorf("make a type for the rows' images: %w", err)
	}
	return "pg_temp." + name, nil
}

// imageIndex is an index of ours on the target: on the hash of the rows' images.
func imageIndex(t *Table) string {
	return pgx.Identifier{t.Schema, fmt.Sprintf("heroku_migrator_image_%d", t.ID)}.Sanitize()
}

// imageOf is a row's image, written as that index wants it.
func imageOf(t *Table, prefix string) string {
	return SchemaName + ".image(ROW(" + t.copied(prefix) + "))"
}

// applyKeyless brings a table without a key to the snapshot's state.
func applyKeyless(ctx context.Context, tx pgx.Tx, snap Snapshot, c RoundChange) (int64, error) {
	n, err := applyImages(ctx, tx, snap, c)
	// the text of a row that had other columns; to send it whole helps only once
	if sqlState(err) == "22P02" && len(c.Truncated) == 0 {
		err = &ImagesError{Table: c.Table, Reason: err.Error()}
	}
	if err != nil {
		return n, fmt.Errorf("apply changes of %s: %w", c.Table, err)
	}
	return n, nil
}

// ImagesError says that the images of a table without a key are not those of the rows on the other side: columns were
// changed and changed back between two rounds, while rows were written, or somebody else wrote on that side. Nothing
// was applied. The table has to be sent whole, as Run does by itself.
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
		n, err := stream(ctx, defaultBuffer,
			func(ctx context.Context, w io.Writer) error {
				_, err := snap.CopyRows(ctx, t, c.Since, w)
				return err
			},
			func(ctx context.Context, r io.Reader) (int64, error) { return copyInto(ctx, tx.Conn(), t, r) })
		if err == nil {
			_, err = tx.Exec(ctx, leavePath)
		}
		return n, err
	}
	staged := fmt.Sprintf("pg_temp.heroku_migrator_%d", t.ID)
	if _, err := tx.Exec(ctx, fmt.Sprintf(`CREATE TEMP TABLE IF NOT EXISTS heroku_migrator_%d (image text COLLATE "C"
		NOT NULL, n int8 NOT NULL) ON COMMIT DELETE ROWS`, t.ID)); err != nil {
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
	if err := tx.QueryRow(ctx, `
		SELECT coalesce(-sum(n), 0)::int8 FROM `+staged+` WHERE n < 0`).Scan(&going); err != nil {
		return 0, err
	}
	if going > 0 {
		if err := deleteImages(ctx, tx, t, staged, going); err != nil {
			return 0, err
		}
	}
	rowType, err := imageType(ctx, tx, t)
	if err != nil {
		return 0, err
	}
	came, err := execInPath(ctx, tx, fmt.Sprintf(`
		INSERT INTO %s %s
		SELECT %s FROM (SELECT image::%s AS r, n FROM %s WHERE n OPERATOR(pg_catalog.>) 0 OFFSET 0) AS k
		CROSS JOIN LATERAL pg_catalog.generate_series(1, k.n)`,
		t.Ident(), t.insertList(), t.copied("(k.r)."), rowType, staged))
	if err != nil {
		return 0, err
	}
	return going + came.RowsAffected(), nil
}

// deleteImages deletes as many of the rows that have each image as went. The first time it makes an index on the
// images' hash, which costs about as much as looking for them once without.
func deleteImages(ctx context.Context, tx pgx.Tx, t *Table, staged string, going int64) error {
	var indexed bool
	if err := tx.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, imageIndex(t)).Scan(&indexed); err != nil {
		return err
	}
	if !indexed {
		// The query reads the partition key with names as the application's: from 17 on, CREATE INDEX itself cannot.
		_, err := tx.Exec(ctx, fmt.Sprintf(`
			CREATE OR REPLACE FUNCTION heroku_migrator.image(row_ record) RETURNS text LANGUAGE plpgsql IMMUTABLE %s AS
			$$ BEGIN RETURN row_::text; END $$;`, imageSettings)+inPath(fmt.Sprintf(`SELECT FROM %s WHERE false;
			CREATE INDEX heroku_migrator_image_%d ON %s (pg_catalog.hashtextextended(%s, 0))`,
			t.Only(), t.ID, t.Ident(), imageOf(t, ""))))
		if err != nil {
			return fmt.Errorf("index the rows' images: %w", err)
		}
	}
	deleted, err := execInPath(ctx, tx, fmt.Sprintf(`
		DELETE FROM %[1]s AS d USING (
			SELECT f.tid, f.rel FROM (
				SELECT r.ctid AS tid, r.tableoid AS rel, k.n, pg_catalog.row_number() OVER (PARTITION BY k.image) AS i
				FROM (SELECT image, n FROM %[2]s WHERE n OPERATOR(pg_catalog.<) 0) AS k
				JOIN %[1]s AS r ON pg_catalog.hashtextextended(%[3]s, 0)
						OPERATOR(pg_catalog.=) pg_catalog.hashtextextended(k.image, 0)
					AND %[3]s COLLATE pg_catalog."C" OPERATOR(pg_catalog.=) k.image
			) AS f WHERE f.i OPERATOR(pg_catalog.<=) (OPERATOR(pg_catalog.-) f.n)) AS g
		WHERE d.ctid OPERATOR(pg_catalog.=) g.tid AND d.tableoid OPERATOR(pg_catalog.=) g.rel`,
		t.Only(), staged, imageOf(t, "r.")))
	if err != nil {
		return err
	}
	if n := deleted.RowsAffected(); n != going {
		return &ImagesError{Table: t, Reason: fmt.Sprintf("%d rows went, of which %d are there", going, n)}
	}
	return nil
}
