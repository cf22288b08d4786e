package migrator

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Names resolve for us as for the application, where its expressions are planned or evaluated, and nowhere else.
// Functions in indexes, constraints, generated columns and partition keys may use names without a schema, which lead
// where the application's search_path says; our own statements must not be led there. See ARCHITECTURE.md, Search path.

const (
	// safePath is the search_path of our sessions: no object of the application can take the place of one of the
	// system.
	safePath = "pg_catalog, pg_temp"

	// enterPath makes names resolve as for the application until leavePath, or the transaction's end. What stands
	// between the two writes everything that is not the application's in full, operators and types too. Both databases
	// have the path in the same place.
	enterPath = `SELECT pg_catalog.set_config('search_path', search_path, true) FROM heroku_migrator.migration`
	leavePath = `SET LOCAL search_path = ` + safePath

	// ownPath makes names resolve as in a session of the role that has set nothing.
	ownPath = `SELECT pg_catalog.set_config('search_path', reset_val, true) FROM pg_catalog.pg_settings
		WHERE name OPERATOR(pg_catalog.=) 'search_path'`

	// loadPath keeps the application's path in a setting of the transaction, for underPath.
	loadPath = `SELECT pg_catalog.set_config('heroku_migrator.search_path', search_path, true)
		FROM heroku_migrator.migration`

	// emptyPath is what a dump expects: all names but the system's are written in full.
	emptyPath = `SET LOCAL search_path = ''`
)

// inPath wraps a statement whose expressions are the application's. copyTo takes it, too.
func inPath(sql string) string { return enterPath + ";\n" + sql + ";\n" + leavePath }

// execInPath executes one such statement in one round trip, and tells what it did.
func execInPath(ctx context.Context, tx pgx.Tx, sql string) (pgconn.CommandTag, error) {
	results, err := readAll(tx.Conn().PgConn().Exec(ctx, inPath(sql)))
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	return results[1].CommandTag, nil
}

// withinPath runs fn, all of whose statements resolve names as the application's do.
func withinPath(ctx context.Context, tx executor, fn func() error) error {
	// Without a migration, as after its completion, both databases' own settings say where names lead.
	enter := `DO $$ BEGIN
		IF pg_catalog.to_regclass('heroku_migrator.migration') IS NOT NULL THEN PERFORM ` +
		strings.TrimPrefix(enterPath, "SELECT ") + `;
		ELSE PERFORM ` + strings.TrimPrefix(ownPath, "SELECT ") + `;
		END IF;
	END $$`
	if _, err := tx.Exec(ctx, enter); err != nil {
		return fmt.Errorf("search path: %w", err)
	}
	if err := fn(); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, leavePath); err != nil {
		return fmt.Errorf("search path: %w", err)
	}
	return nil
}

// searchPath is where the application's session finds names: the schemas that exist of what its role, its database and
// the server say, "$user" among them. Sessions of ours have another path by now, so the one that this session began
// with is asked for.
func searchPath(ctx context.Context, tx pgx.Tx) (path string, err error) {
	_, err = tx.Exec(ctx, ownPath)
	if err == nil {
		err = tx.QueryRow(ctx, `
			SELECT coalesce(pg_catalog.string_agg(pg_catalog.quote_ident(s.name::pg_catalog.text), ', '
				ORDER BY s.n), '""')
			FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) WITH ORDINALITY AS s(name, n)
			WHERE NOT pg_catalog.starts_with(s.name::pg_catalog.text, 'pg_temp')`).Scan(&path)
	}
	if err == nil {
		_, err = tx.Exec(ctx, leavePath)
	}
	if err != nil {
		return "", fmt.Errorf("ask for the application's search path: %w", err)
	}
	return path, nil
}
