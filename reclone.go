package migrator

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// A schema that could not be cloned, and was changed on the source since, is cloned again from scratch: the statement
// that failed would fail for ever, and what it was to create cannot be followed.

// reclone takes away what was created of a schema that the source no longer has. It does nothing if the clone can go
// on. Nothing is captured or copied yet: that comes after the last table was created.
func reclone(ctx context.Context, src Source, dst Target) error {
	objects, err := dst.Journal().Objects(ctx)
	if err != nil {
		return err
	}
	isMissing := func(o SchemaObject) bool {
		return o.Stage == StageTables && (o.State == ObjectPending || o.State == ObjectFailed)
	}
	if !slices.ContainsFunc(objects, isMissing) {
		return nil
	}
	state, err := dst.Journal().State(ctx)
	if err != nil {
		return err
	}
	cat, err := src.Catalog(ctx)
	if err != nil || cat.Fingerprint == state.Schema {
		return err
	}
	err = dst.Journal().tx(ctx, func(tx pgx.Tx) error {
		for _, o := range slices.Backward(objects) {
			sql := droppingClone(o)
			if sql == "" || o.Stage != StageTables || o.State != ObjectDone {
				continue
			}
			err := savepoint(ctx, tx, func(tx executor) error {
				_, err := tx.Exec(ctx, sql)
				return err
			})
			if err != nil && (sqlState(err) == "" || Retryable(err)) {
				return err
			} // else it is gone with what it belonged to, or will be found to exist
		}
		_, err := tx.Exec(ctx, `DELETE FROM heroku_migrator.objects; DELETE FROM heroku_migrator.tables;
			UPDATE heroku_migrator.migration SET schema = ''`)
		return err
	})
	if err != nil {
		return fmt.Errorf("clone the schema again: %w", err)
	}
	return nil
}

// droppingClone takes away what a clone has created; "" for what stays, because it is created only if it is not there.
func droppingClone(o SchemaObject) string {
	ident := pgx.Identifier{o.Schema, o.Name}.Sanitize()
	switch o.Type {
	case "TABLE", "VIEW", "MATERIALIZED VIEW", "SEQUENCE", "TYPE", "DOMAIN", "COLLATION", "FOREIGN TABLE",
		"TEXT SEARCH CONFIGURATION",
		"TEXT SEARCH DICTIONARY", "TEXT SEARCH TEMPLATE", "TEXT SEARCH PARSER":
		return "DROP " + o.Type + " IF EXISTS " + ident + " CASCADE"
	case "SHELL TYPE":
		return "DROP TYPE IF EXISTS " + ident + " CASCADE"
	case "FUNCTION", "PROCEDURE", "AGGREGATE": // with operators, casts and the like that use them
		name, arguments, _ := strings.Cut(o.Name, "(")
		return fmt.Sprintf("DROP ROUTINE IF EXISTS %s(%s CASCADE", pgx.Identifier{o.Schema, name}.Sanitize(), arguments)
	}
	return ""
}
