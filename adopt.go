package migrator

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Adopt implements [Source]. Rows that a relation brings along were written before its root's triggers saw it; what is
// written from then on, they capture. So the keys may be entered at any time after.
func (h *Heroku) Adopt(ctx context.Context, t *Table, leaves []Relation) error {
	var decoded bool // then it has been published since it was attached
	if err := h.pool.QueryRow(ctx, `SELECT coalesce(bool_or(decoded), false) FROM heroku_migrator.captured WHERE relid =
		$1`, t.ID).Scan(&decoded); err != nil {
		return fmt.Errorf("capture partitions of %s: %w", t, err)
	}
	if err := h.releaseMiddle(ctx, t); err != nil {
		return fmt.Errorf("capture partitions of %s: %w", t, err)
	}
	for _, leaf := range leaves {
		err := h.change(ctx, func(tx pgx.Tx) error {
			script, err := releaseOwn(ctx, tx, leaf)
			if err != nil {
				return err
			}
			if !decoded {
				script += truncateTriggers(&Table{Relation: leaf}, true)
			}
			if script == "" {
				return nil
			}
			return lock(ctx, tx, "ONLY "+leaf.Ident(), "SHARE ROW EXCLUSIVE", stillNamed([]Relation{leaf})+script)
		})
		if err != nil {
			return fmt.Errorf("capture partition %s: %w", leaf, err)
		}
	}
	if t.Keyless() {
		return h.Touch(ctx, t, strings.NewReader(""), true)
	}
	err := h.change(ctx, func(tx pgx.Tx) error {
		for _, leaf := range leaves {
			if err := holdName(ctx, tx, leaf, "ONLY "+leaf.Ident()); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, inPath(fmt.Sprintf(`INSERT INTO %s (%s) SELECT %s FROM ONLY %s`, logName(t.ID),
				t.logColumns(), t.keyList(""), leaf.Ident()))); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("send the rows of new partitions of %s: %w", t, err)
	}
	return nil
}

// releaseMiddle ends the capture of partitioned tables that are partitions now: their triggers would go on writing to a
// log that nobody reads.
func (h *Heroku) releaseMiddle(ctx context.Context, t *Table) error {
	rows, err := h.pool.Query(ctx, `
		SELECT r.oid, n.nspname, r.relname FROM heroku_migrator.captured c JOIN `+treeOf(`$1`)+` AS p ON p.relid =
			c.relid
		JOIN pg_class r ON r.oid = c.relid JOIN pg_namespace n ON n.oid = r.relnamespace WHERE NOT p.isleaf AND NOT
		c.decoded AND c.relid <> $1`, t.ID)
	if err != nil {
		return err
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r Relation, err error) {
		err = row.Scan(&r.ID, &r.Schema, &r.Name)
		return r, err
	})
	if err != nil {
		return err
	}
	for _, r := range list {
		err := h.change(ctx, func(tx pgx.Tx) error {
			script, err := releaseOwn(ctx, tx, r)
			if err != nil || script == "" {
				return err
			}
			return lock(ctx, tx, r.Ident(), "ACCESS EXCLUSIVE", stillNamed([]Relation{r})+script)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Forget implements [Source].
func (h *Heroku) Forget(ctx context.Context, ids []uint32) error {
	for _, id := range ids {
		err := h.change(ctx, func(tx pgx.Tx) error {
			var keep bool // changes that are still to be decoded go to its log
			if err := tx.QueryRow(ctx, `
				SELECT EXISTS (SELECT FROM pg_class WHERE oid = $1) OR EXISTS (SELECT FROM heroku_migrator.captured
				WHERE relid = $1 AND decoded)`, id).Scan(&keep); err != nil || keep {
				return err
			}
			_, err := tx.Exec(ctx, dropCapture(id))
			return err
		})
		if err != nil {
			return fmt.Errorf("drop the log of a table that is gone: %w", err)
		}
	}
	return nil
}

// dropCapture drops the functions and the log of a table.
func dropCapture(id uint32) string {
	return fmt.Sprintf(`
		DROP FUNCTION IF EXISTS heroku_migrator.capture_%[1]d() CASCADE; DROP FUNCTION IF EXISTS
		heroku_migrator.capture_%[1]d_old() CASCADE;
		DROP FUNCTION IF EXISTS heroku_migrator.capture_%[1]d_both() CASCADE; DROP TABLE IF EXISTS %[2]s;
		DELETE FROM heroku_migrator.captured WHERE relid = %[1]d;
		`, id, logName(id))
}

// releaseOwn writes the statements that end the capture of a partition which was captured as a table of its own. If it
// becomes one again, it may have another key.
func releaseOwn(ctx context.Context, tx pgx.Tx, leaf Relation) (string, error) {
	var own, published bool
	err := tx.QueryRow(ctx, `
		SELECT EXISTS (SELECT 1 FROM heroku_migrator.captured WHERE relid = $1),
		       EXISTS (SELECT 1 FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname =
		$2 AND r.prrelid = $1)`, leaf.ID, decodeName).Scan(&own, &published)
	if err != nil || !own {
		return "", err
	}
	script := dropCapture(leaf.ID)
	if published {
		script += fmt.Sprintf("ALTER PUBLICATION %s DROP TABLE ONLY %s;\n", decodeName, leaf.Ident())
	}
	return script, nil
}
