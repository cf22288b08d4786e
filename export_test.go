package migrator

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"
)

// CatalogReads are the queries over the catalog of a source, each as a function that makes it.
func CatalogReads(tables []*Table) map[string]func(context.Context, pgx.Tx) error {
	ids := make([]uint32, len(tables))
	names := make([]string, len(tables))
	for i, t := range tables {
		ids[i], names[i] = t.ID, t.Ident()
	}
	query := func(sql string, args ...any) func(context.Context, pgx.Tx) error {
		return func(ctx context.Context, tx pgx.Tx) error {
			rows, err := tx.Query(ctx, sql, args...)
			if err == nil {
				rows.Close()
				err = rows.Err()
			}
			return err
		}
	}
	reads := map[string]func(context.Context, pgx.Tx) error{
		"catalog":     query(catalogSQL),
		"fingerprint": query(fingerprintSQL),
		"silenced":    query(loudSQL, ids),
		"trees":       query(`SELECT * FROM `+treeOf(`unnest($1::oid[])`)+` AS t`, ids),
		"columns":     query(`SELECT `+columnsHere+`, `+filesHere+` FROM unnest($1::text[]) AS t(name)`, names),
		"sequences": func(ctx context.Context, tx pgx.Tx) error {
			_, err := listSequences(ctx, tx)
			return err
		},
		"locks": func(ctx context.Context, tx pgx.Tx) error {
			_, _, err := locksOf(ctx, tx)
			return err
		},
		"owners": func(ctx context.Context, tx pgx.Tx) error {
			_, err := objectTables(ctx, tx)
			return err
		},
		"views": func(ctx context.Context, tx pgx.Tx) error {
			_, err := viewOrder(ctx, tx)
			return err
		},
		"keys": func(ctx context.Context, tx pgx.Tx) error {
			for _, t := range tables {
				if _, err := keyEquals(ctx, tx, t); err != nil {
					return err
				}
				if _, err := decodable(ctx, tx, t); err != nil {
					return err
				}
			}
			return nil
		},
	}
	for _, c := range slices.Concat(sourceChecks, largeObjectChecks) {
		if c.sql != "" {
			reads["check "+c.name] = query(c.sql)
		}
	}
	return reads
}
