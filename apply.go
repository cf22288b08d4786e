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

// Apply implements [Target]. For each table: delete the rows whose keys changed, insert the rows that have
// these keys now. All deletions of a table come before its insertions, so values of unique columns may
// move between rows; foreign keys are silent, so the order of tables does not matter.
func (p *PlanetScale) Apply(ctx context.Context, snap Snapshot, round Round) error {
	err := p.journal.tx(ctx, func(tx pgx.Tx) error {
		// What is acknowledged here is trimmed on the source: it has to be on disk.
		if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = on`); err != nil {
			return err
		}
		if _, err := p.silence(ctx, tx); err != nil {
			return err
		}
		if err := checkEmptied(ctx, tx); err != nil {
			return err
		}
		if err := p.decoder.ours(ctx, tx); err != nil {
			return err
		}
		if err := truncateAll(ctx, tx, round); err != nil {
			return err
		}
		var applied int64
		for _, c := range round.Changes {
			n, err := applyChange(ctx, tx, &p.ops, snap, c)
			if err != nil {
				return refusedRows(c.Table, nil, err)
			}
			applied += n
		}
		for _, t := range round.Joining {
			if _, err := tx.Exec(ctx, `UPDATE heroku_migrator.tables SET state = 'live' WHERE id = $1`,
				t.ID); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, `UPDATE heroku_migrator.migration SET position = $1`,
			snap.Position().String()); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `UPDATE heroku_migrator.progress SET rounds = rounds + 1, rows_applied = rows_applied +
			$1`, applied)
		return err
	})
	if err != nil {
		p.ops.forget()
		return fmt.Errorf("apply a round: %w", err)
	}
	return nil
}

// truncateAll empties what was truncated on the source: in one statement, since tables that refer to each
// other can only be truncated together.
func truncateAll(ctx context.Context, tx pgx.Tx, round Round) error {
	var names []string
	for _, c := range round.Changes {
		for _, r := range c.Truncated {
			if r.ID == c.Table.ID || c.Table.Keyless() { // which comes whole then
				names = append(names, c.Table.Only())
			} else {
				names = append(names, r.Ident())
			}
		}
	}
	if len(names) == 0 {
		return nil
	}
	err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `TRUNCATE `+strings.Join(names, ", "))
		return err
	})
	if sqlState(err) == "0A000" { // a table that is not truncated refers to one that is
		_, err = tx.Exec(ctx, inPath(`DELETE FROM `+strings.Join(names, "; DELETE FROM ")))
	}
	if err != nil {
		return fmt.Errorf("truncate: %w", err)
	}
	return nil
}

// applyChange brings one table to the snapshot's state.
func applyChange(ctx context.Context, tx pgx.Tx, cache *operatorCache, snap Snapshot, c RoundChange) (int64, error) {
	switch {
	case c.Table.Keyless():
		return applyKeyless(ctx, tx, snap, c)
	case c.Rows == 0:
		return 0, nil
	}
	t := c.Table
	ops, err := cache.get(ctx, tx, t)
	if other, ok := snap.(interface {
		keyOperators(ctx context.Context, t *Table) ([]keyOperator, error)
	}); ok && errors.Is(err, errNoKeyIndex) { // it could not be built yet, for duplicates
		ops, err = other.keyOperators(ctx, t)
	}
	if err != nil {
		return 0, err
	}
	keys, err := stageKeys(ctx, tx, snap, c)
	if err != nil {
		return 0, err
	}
	deleted, err := execInPath(ctx, tx, fmt.Sprintf(`DELETE FROM %s AS t USING %s AS k WHERE %s`, t.Only(), keys,
		matchKey(t, ops, "t.", "k.")))
	if err != nil {
		return 0, fmt.Errorf("delete changed rows of %s: %w", t, err)
	}
	inserted, err := stream(ctx, defaultBuffer,
		func(ctx context.Context, w io.Writer) error {
			_, err := snap.CopyRows(ctx, t, c.Since, w)
			return err
		},
		func(ctx context.Context, r io.Reader) (int64, error) { return copyInto(ctx, tx.Conn(), t, r) })
	if sqlState(err) == "23514" && t.Kind == KindPartitioned {
		return 0, fmt.Errorf("a partition of %s that was made on the other side after the migration began is missing "+
			"here; make it here too, and run again: %w", t, err)
	}
	if err == nil {
		_, err = tx.Exec(ctx, leavePath)
	}
	if err != nil {
		return 0, fmt.Errorf("insert changed rows of %s: %w", t, err)
	}
	return max(deleted.RowsAffected(), inserted), nil
}

// stageKeys brings the keys that changed into a temporary table, and returns its name. They may be of a domain, so the transaction
// is in the application's path then.
func stageKeys(ctx context.Context, tx pgx.Tx, snap Snapshot, c RoundChange) (string, error) {
	t := c.Table
	keys := fmt.Sprintf("pg_temp.heroku_migrator_%d", t.ID)
	// The table's own key types and collations. It stays for the session's next round, empty.
	if _, err := tx.Exec(ctx, fmt.Sprintf(`CREATE TEMP TABLE IF NOT EXISTS heroku_migrator_%d ON COMMIT DELETE ROWS AS
		SELECT %s FROM %s WITH NO DATA`,
		t.ID, t.keyList(""), t.Only())); err != nil {
		return "", fmt.Errorf("stage keys of %s: %w", t, err)
	}
	_, err := stream(ctx, defaultBuffer,
		func(ctx context.Context, w io.Writer) error {
			_, err := snap.CopyKeys(ctx, t, c.Since, w)
			return err
		},
		func(ctx context.Context, r io.Reader) (int64, error) {
			return copyFrom(ctx, tx.Conn(), enterPath+fmt.Sprintf(`; COPY %s (%s) FROM STDIN`, keys, t.keyList("")), r)
		})
	if err != nil {
		return "", fmt.Errorf("stage keys of %s: %w", t, err)
	}
	return keys, nil
}

// Switch implements [Target].
func (p *PlanetScale) Switch(ctx context.Context, final Final) error {
	silent, err := p.AppliesSilently(ctx)
	if err != nil {
		return err
	}
	if err := p.setSequences(ctx, final.Sequences); err != nil {
		return fmt.Errorf("complete the target: %w", err)
	}
	err = p.journal.tx(ctx, func(tx pgx.Tx) error {
		if err := checkEmptied(ctx, tx); err != nil {
			return err
		}
		if err := create(ctx, tx, final.Objects); err != nil {
			return err
		}
		for _, t := range final.Tables { // the application need not keep our indexes up
			if t.Keyless() {
				if _, err := tx.Exec(ctx, `DROP INDEX IF EXISTS `+imageIndex(t)); err != nil {
					return err
				}
			}
		}
		if _, err := tx.Exec(ctx, leavePath); err != nil {
			return err
		}
		if err := p.copyExtensionRows(ctx, tx, final); err != nil {
			return err
		}
		if !silent {
			if err := attachCapture(ctx, tx, final.Tables); err != nil {
				return err
			}
		}
		if err := beginWayBack(ctx, tx, final.Tables); err != nil {
			return err
		}
		report, err := final.Report.encode()
		if err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `UPDATE heroku_migrator.migration SET report = $1, pending = '', switches = switches +
			1 WHERE pending = 'switch'`, report)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return errors.Join(p.journal.checkEpoch(ctx, tx), errors.New("the switch was given up meanwhile"))
		}
		return advance(ctx, tx, PhaseReplicating, PhaseSwitched, "the target is complete; writes on the source are "+
			"refused")
	})
	if err != nil {
		return fmt.Errorf("complete the target: %w", err)
	}
	return nil
}

// PrepareSwitch implements [Target]. What is written on the target after the switch has to leave its keys, so
// that a revert knows what was written. Tables are prepared one by one and before the fence, where time does
// not matter; the triggers are not ALWAYS, so what the migrator applies until then does not fire them. Where
// applying is not silent, they are attached by Switch.
func (p *PlanetScale) PrepareSwitch(ctx context.Context, tables []*Table, touch touchRows) error {
	silent, err := p.AppliesSilently(ctx)
	if err != nil {
		return err
	}
	err = p.journal.tx(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			CREATE TABLE IF NOT EXISTS heroku_migrator.truncated (relid oid NOT NULL, xid xid8 NOT NULL DEFAULT
			pg_current_xact_id());
			ALTER TABLE heroku_migrator.truncated REPLICA IDENTITY FULL;
			CREATE OR REPLACE FUNCTION heroku_migrator.truncate() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
			SET search_path = pg_catalog, pg_temp AS $$
			BEGIN
				INSERT INTO heroku_migrator.truncated (relid) VALUES (TG_RELID);
				RETURN NULL;
			END $$;`)
		if err != nil {
			return err
		}
		var fence bool
		if err := tx.QueryRow(ctx, `SELECT to_regproc('heroku_migrator.fence') IS NOT
			NULL`).Scan(&fence); err != nil || fence {
			return err
		}
		// Closed, as after a revert: while the source refuses writes, nobody may believe that the target takes them
		// already.
		_, err = tx.Exec(ctx, fmt.Sprintf(fenceClosed, SchemaName))
		return err
	})
	if err == nil {
		err = p.PrepareFence(ctx, tables, FenceConfig{})
	}
	var decode bool
	if err == nil {
		decode, err = p.decoder.wanted(ctx)
	}
	if err == nil && decode {
		decode, err = p.prepareDecoding(ctx)
	}
	for i := 0; i < len(tables) && err == nil; i++ {
		err = p.journal.tx(ctx, func(tx pgx.Tx) error {
			var done bool
			if err := tx.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`,
				logName(tables[i].ID)).Scan(&done); err != nil {
				return err
			}
			if done { // from an earlier switch
				written, err := writtenOnTarget(ctx, tx, tables[i:i+1])
				if err != nil || len(written) == 0 {
					return err
				}
				return handOver(ctx, tx, written, touch)
			}
			if decode {
				if done, err := p.decodeTable(ctx, tx, tables[i]); err != nil || done {
					return err
				}
			}
			c, err := captureByTriggers(ctx, tx, tables[i], false)
			if err != nil {
				return err
			}
			script := c.log + c.functions
			if silent {
				script += inPath(c.attach)
			}
			_, err = tx.Exec(ctx, script)
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("prepare the capture of writes on the target: %w", err)
	}
	return nil
}

func attachCapture(ctx context.Context, tx pgx.Tx, tables []*Table) error {
	rows, err := tx.Query(ctx, `SELECT relid FROM heroku_migrator.captured WHERE decoded`)
	if err != nil {
		return err
	}
	decoded, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return err
	}
	var script strings.Builder
	for _, t := range tables {
		if slices.Contains(decoded, t.ID) {
			continue
		}
		c, err := captureByTriggers(ctx, tx, t, false)
		if err != nil {
			return err
		}
		script.WriteString(c.attach)
	}
	if _, err := tx.Exec(ctx, inPath(script.String())); err != nil {
		return fmt.Errorf("capture writes on the target: %w", err)
	}
	return nil
}

// Revert implements [Target].
func (p *PlanetScale) Revert( //nolint:gocognit // one transaction, step by step
	ctx context.Context, tables []*Table, force bool, touch touchRows,
) error {
	err := p.journal.tx(ctx, func(tx pgx.Tx) error {
		here, err := p.located(ctx, tables) // one that was dropped is told of, and is gone in a revert that is forced
		if err != nil {
			return err
		}
		names := make([]string, len(here))
		for i, t := range here {
			names[i] = t.Only()
		}
		if len(names) > 0 {
			if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '5s'; LOCK TABLE `+strings.Join(names,
				", ")+` IN SHARE ROW EXCLUSIVE MODE`); err != nil {
				return fmt.Errorf("lock out writers of the target: %w", err)
			}
		}
		decoded, err := p.decoder.look(ctx)
		if err == nil && decoded { // the log is complete then, and stays so
			err = p.decoder.drain(ctx)
		}
		lost := errors.Is(err, ErrSlotLost)
		if lost && !force {
			e := refuse("revert", "The replication slot on the target is gone, and what was written there since the "+
				"switch is not known. Force the revert to go back without it; every table is sent whole to the "+
				"target then.")
			e.CanForce = true
			return e
		}
		if err != nil && !lost {
			return err
		}
		written, err := writtenOnTarget(ctx, tx, tables)
		if err != nil {
			return err
		}
		if lost {
			written = nil
			for _, t := range tables {
				written = append(written, writtenTable{table: t, truncated: true})
			}
		}
		if len(written) > 0 && !force {
			return revertRefused(written)
		}
		if !force {
			if err := stillSurveyed(ctx, tx); err != nil {
				return err
			}
		}
		if err := handOver(ctx, tx, written, touch); err != nil {
			return err
		}
		if force {
			if err := p.leaveBehind(ctx, tx, tables); err != nil {
				return err
			}
		}
		return p.undoSwitch(ctx, tx, tables)
	})
	if refused := new(RefusedError); errors.As(err, &refused) {
		return refused
	}
	if err != nil {
		return fmt.Errorf("revert: %w", err)
	}
	return nil
}

// touchRows enters keys into the source's change log: [Source.Touch].
type touchRows = func(ctx context.Context, table *Table, keys io.Reader, all bool) error

// handOver gives the keys of rows that were written on the target to the source's change log, whose next round
// brings them to the source's state, and forgets them here.
func handOver(ctx context.Context, tx pgx.Tx, written []writtenTable, touch touchRows) error {
	for _, w := range written {
		_, err := stream(ctx, defaultBuffer,
			func(ctx context.Context, out io.Writer) error {
				if w.table.Keyless() {
					return nil // it is sent whole
				}
				_, err := copyTo(ctx, tx.Conn(), fmt.Sprintf(`COPY (SELECT DISTINCT %s FROM (%s) AS l) TO STDOUT`,
					w.table.keyList(""), w.table.logRows()), out)
				return err
			},
			func(ctx context.Context, r io.Reader) (int64, error) { return 0, touch(ctx, w.table, r, w.truncated) })
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM `+logName(w.table.ID)); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM heroku_migrator.truncated WHERE relid IN (SELECT to_regclass(n)::oid FROM
			unnest($1::text[]) AS n)`, w.table.relationNames()); err != nil {
			return err
		}
	}
	return nil
}

type writtenTable struct {
	table     *Table
	keys      int64
	truncated bool
}

// writtenOnTarget lists the tables that were written to since the switch.
func writtenOnTarget(ctx context.Context, tx pgx.Tx, tables []*Table) ([]writtenTable, error) {
	var list []writtenTable
	for _, t := range tables {
		w := writtenTable{table: t}
		keys, log := t.keyList(""), "("+t.logRows()+")"
		if t.Keyless() {
			keys, log = "image", logName(t.ID)
		}
		err := tx.QueryRow(ctx, fmt.Sprintf(`SELECT (SELECT count(*) FROM (SELECT DISTINCT %s FROM %s AS l) AS k)`,
			keys, log)).Scan(&w.keys)
		if err != nil {
			return nil, err
		}
		err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM heroku_migrator.truncated WHERE relid IN (SELECT
			to_regclass(n)::oid FROM unnest($1::text[]) AS n))`, t.relationNames()).Scan(&w.truncated)
		if err != nil {
			return nil, err
		}
		if w.keys > 0 || w.truncated {
			list = append(list, w)
		}
	}
	return list, nil
}

func revertRefused(written []writtenTable) error {
	var rows int64
	var names []string
	for _, w := range written {
		rows += w.keys
		names = append(names, w.table.String())
	}
	const most = 10
	if len(names) > most {
		names = append(names[:most], fmt.Sprintf("and %d more", len(names)-most))
	}
	e := refuse("revert", "%d rows that were written on the target since the switch are not on the source (%s): they "+
		"would stay behind. "+
		"Force the revert to go back without them; the target then follows the source "+
		"again.", rows, strings.Join(names, ", "))
	e.CanForce = true
	return e
}

// undoSwitch takes back what the switch created, so that changes can be applied again.
func (p *PlanetScale) undoSwitch(ctx context.Context, tx pgx.Tx, tables []*Table) error {
	rows, err := tx.Query(ctx, `SELECT undo FROM heroku_migrator.objects WHERE stage = 'switch' AND state = 'done' AND
		undo <> '' ORDER BY id DESC`)
	if err != nil {
		return err
	}
	undo, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, sql := range undo {
		err := savepoint(ctx, tx, func(tx executor) error {
			_, err := tx.Exec(ctx, sql)
			return err
		})
		// gone: dropped since the switch
		if state := sqlState(err); err != nil && state != "42704" && state != "42P01" {
			return err
		}
	}
	if err := dropExtensionRows(ctx, tx); err != nil { // before triggers are silent: extensions have some
		return err
	}
	silent, err := p.silence(ctx, tx)
	if err != nil {
		return err
	}
	var b strings.Builder
	for _, t := range tables {
		if silent {
			break // it stays: who goes on writing here by mistake is found before the next switch
		}
		fmt.Fprintf(&b, `DROP FUNCTION IF EXISTS heroku_migrator.capture_%[1]d() CASCADE; DROP FUNCTION IF EXISTS
			heroku_migrator.capture_%[1]d_old() CASCADE;
			DROP FUNCTION IF EXISTS heroku_migrator.capture_%[1]d_both() CASCADE; DROP TABLE IF EXISTS
			%[2]s;`, t.ID, logName(t.ID))
	}
	if !silent {
		b.WriteString(`DROP FUNCTION heroku_migrator.truncate() CASCADE; DROP TABLE heroku_migrator.truncated;`)
	}
	b.WriteString(`
		UPDATE heroku_migrator.objects SET state = 'pending' WHERE stage = 'switch' AND state = 'done';
		UPDATE heroku_migrator.objects SET state = 'pending', error = '' WHERE stage = 'validate';` +
		fmt.Sprintf(fenceClosed, SchemaName)) // until the next switch
	if _, err := tx.Exec(ctx, b.String()); err != nil {
		return err
	}
	var pending CommandName
	if err := tx.QueryRow(ctx, `SELECT pending FROM heroku_migrator.migration FOR UPDATE`).Scan(&pending); err != nil {
		return err
	}
	if pending != CommandRevert {
		return errors.Join(p.journal.checkEpoch(ctx, tx), errors.New("the revert was given up meanwhile"))
	}
	// It stays pending: the source's fence has still to be lifted.
	return advance(ctx, tx, PhaseSwitched, PhaseReplicating, "reverted: the source takes writes again")
}
