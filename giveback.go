package migrator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// The target's part in the way back: the same log, snapshots and fence as the source has in replication.

// Trim implements [Target].
func (p *PlanetScale) Trim(ctx context.Context, tables []*Table, upTo Position) error {
	return trimLogs(ctx, p.pool, p.journal.tx, tables, upTo)
}

// LogSize implements [Target].
func (p *PlanetScale) LogSize(ctx context.Context) (int64, error) { return p.decoder.logSize(ctx) }

func (p *PlanetScale) gate() gate { return gate{pool: p.pool, change: p.journal.tx, side: "target"} }

// PrepareFence implements [Target].
func (p *PlanetScale) PrepareFence(ctx context.Context, tables []*Table, cfg FenceConfig) error {
	here, err := p.located(ctx, tables)
	if err != nil {
		return err
	}
	return p.gate().prepareFor(ctx, here, cfg)
}

// Fence implements [Target].
func (p *PlanetScale) Fence(ctx context.Context, tables []*Table, cfg FenceConfig) error {
	here, err := p.located(ctx, tables)
	if err != nil {
		return err
	}
	return p.gate().shut(ctx, here, cfg)
}

// Writers implements [Target].
func (p *PlanetScale) Writers(ctx context.Context, tables []*Table, age time.Duration) ([]string, error) {
	here, err := p.located(ctx, tables)
	if err != nil {
		return nil, err
	}
	return p.gate().writers(ctx, here, age)
}

// Unfence implements [Target].
func (p *PlanetScale) Unfence(ctx context.Context) error { return p.gate().open(ctx) }

// located returns the tables with the OIDs that they have here. Those that were dropped here are left out.
func (p *PlanetScale) located(ctx context.Context, tables []*Table) ([]*Table, error) {
	names := make([]string, len(tables))
	for i, t := range tables {
		names[i] = t.Ident()
	}
	rows, err := p.pool.Query(ctx, `SELECT coalesce(to_regclass(n)::oid, 0) FROM unnest($1::text[]) WITH ORDINALITY AS
		t(n, i) ORDER BY i`, names)
	if err != nil {
		return nil, fmt.Errorf("look for the tables on the target: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return nil, fmt.Errorf("look for the tables on the target: %w", err)
	}
	here := make([]*Table, 0, len(tables))
	for i, t := range tables {
		if ids[i] != 0 {
			other := *t
			other.ID = ids[i]
			here = append(here, &other)
		}
	}
	return here, nil
}

// columnsHere and filesHere are what a table's log and rows are of: its columns, and the files of its leaves, and since
// when these are attached: what is written while they are not is not in the log. So is what is written while a column
// of the key has another name. A column that was dropped and added again is another one: rows that were not changed
// since have lost their value.
var (
	columnsHere = `(SELECT array_agg(a.attname || ' ' || a.atttypid || ' ' || a.atttypmod || ' ' || a.attnum ORDER BY
		a.attnum) FROM pg_attribute a
		WHERE a.attrelid = to_regclass(t.name) AND a.attnum > 0 AND NOT a.attisdropped)`
	fileHere = `concat_ws(':', pg_relation_filenode(r.relid), (
			SELECT string_agg(i.xmin::text, ',' ORDER BY i.inhparent) FROM pg_inherits i WHERE i.inhrelid = r.relid))`
	filesHere = `(SELECT string_agg(` + fileHere + `, ' ' ORDER BY r.relid)
			|| coalesce(' ' || (
				SELECT string_agg(a.xmin::text, ',' ORDER BY a.attnum) FROM pg_attribute a
				JOIN pg_index x ON x.indrelid = a.attrelid AND x.indisprimary
				WHERE a.attrelid = to_regclass(t.name) AND a.attnum = ANY (x.indkey)), '')
		FROM ` + treeOf(`to_regclass(t.name)`) + ` AS r)`
)

// beginWayBack makes the target the one whose changes count: its log begins now, and whoever was kept out may write.
func beginWayBack(ctx context.Context, tx pgx.Tx, tables []*Table) error {
	ids, names := idsAndNames(tables)
	_, err := tx.Exec(ctx, `
		INSERT INTO heroku_migrator.captured (relid, name, columns, files)
		SELECT t.id, t.name, `+columnsHere+`, `+filesHere+` FROM unnest($1::int8[], $2::text[]) AS t(id, name)
		ON CONFLICT (relid) DO UPDATE SET name = excluded.name, columns = excluded.columns, files = excluded.files,
		trimmed = false`, ids, names)
	if err == nil {
		_, err = tx.Exec(ctx, `
			UPDATE heroku_migrator.migration SET trimmed = NULL;
			UPDATE heroku_migrator.progress SET back_at = NULL, back_rounds = 0, back_rows = 0, back_error =
			'';`+fmt.Sprintf(fenceOpen, SchemaName))
	}
	if err != nil {
		return fmt.Errorf("begin the way back: %w", err)
	}
	return nil
}

func idsAndNames(tables []*Table) (ids []int64, names []string) {
	for _, t := range tables {
		ids, names = append(ids, int64(t.ID)), append(names, t.Ident())
	}
	return ids, names
}

// ResendRewritten implements [Target].
func (p *PlanetScale) ResendRewritten(ctx context.Context, tables []*Table) error {
	ids, _ := idsAndNames(tables)
	rows, err := p.pool.Query(ctx, `SELECT t.relid FROM heroku_migrator.captured t WHERE t.relid = ANY ($1::int8[]) AND
		t.files IS DISTINCT FROM `+filesHere, ids)
	if err != nil {
		return fmt.Errorf("look for rewritten tables: %w", err)
	}
	rewritten, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return fmt.Errorf("look for rewritten tables: %w", err)
	}
	for _, t := range tables {
		if !slices.Contains(rewritten, t.ID) {
			continue
		}
		err := touch(ctx, p.journal.tx, t, strings.NewReader(""), true, `UPDATE heroku_migrator.captured t SET files =
			`+filesHere+` WHERE t.relid = $1`)
		if err != nil {
			return err
		}
	}
	return nil
}

// slotPatience is how long making a slot may take unless the caller says otherwise: rounds stand still meanwhile.
const slotPatience = 20 * time.Second

// prepareDecoding makes a slot, for which every transaction has to end that writes somewhere on the server. Where it is
// not possible, there are triggers, unless decoding was asked for.
func (p *PlanetScale) prepareDecoding(ctx context.Context) (bool, error) {
	limited, cancel := context.WithTimeout(ctx, p.slotPatience)
	defer cancel()
	err := p.decoder.prepare(limited)
	switch {
	case err == nil:
		return true, nil
	case ctx.Err() != nil || errors.Is(err, ErrLostLead):
		return false, err
	case p.decoder.method == CaptureAuto:
		return false, p.decoder.remove(ctx, p.journal.tx)
	case limited.Err() != nil:
		return false, refuse("switch", "No replication slot could be made on the target within %s: that waits for "+
			"every transaction of its server which writes something, prepared ones too. End those that are open for "+
			"long, or capture by triggers.", p.slotPatience)
	}
	return false, err
}

// decodeTable captures a table by decoding, if that is possible. What is applied until the switch is known for ours.
func (p *PlanetScale) decodeTable(ctx context.Context, tx pgx.Tx, t *Table) (bool, error) {
	can, err := decodable(ctx, tx, t)
	if err != nil || !can {
		return false, err
	}
	c := p.decoder.capture(t)
	// Whoever writes to it now has to end before, as with triggers: what was written before it was published is not
	// sent.
	if _, err := tx.Exec(ctx, c.log+`LOCK TABLE `+t.Only()+` IN SHARE ROW EXCLUSIVE MODE;`+c.attach); err != nil {
		return false, err
	}
	_, err = tx.Exec(ctx, `INSERT INTO heroku_migrator.captured (relid, here, key, decoded) VALUES ($1, to_regclass($2),
		$3, true)
		ON CONFLICT (relid) DO UPDATE SET here = excluded.here, key = excluded.key, decoded =
		true`, t.ID, t.Ident(), t.Key)
	return true, err
}

// ForgetWrites implements [Target]. A switch that is under way, or may have happened, keeps all of it.
func (p *PlanetScale) ForgetWrites(ctx context.Context) error {
	var due bool
	err := p.pool.QueryRow(ctx, `
		SELECT slot <> '' OR EXISTS (SELECT 1 FROM pg_replication_slots WHERE database = current_database() AND
		slot_name LIKE $1)
			OR EXISTS (SELECT 1 FROM pg_publication WHERE pubname = $2)
		FROM heroku_migrator.migration`, ourSlots, decodeName).Scan(&due)
	if err != nil || !due {
		return err
	}
	var keep bool
	err = p.journal.tx(ctx, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `SELECT phase IN ('switched', 'cleaning_up') OR resume IN ('switched', 'cleaning_up') OR
			pending <> '' FROM heroku_migrator.migration FOR UPDATE`).Scan(&keep)
		if err != nil || keep {
			return err
		}
		_, err = tx.Exec(ctx, `
			DO $do$ DECLARE log text; BEGIN
				FOR log IN SELECT format('heroku_migrator.changes_%s', relid) FROM heroku_migrator.captured WHERE
				decoded LOOP
					EXECUTE 'DROP TABLE IF EXISTS ' || log;
				END LOOP;
			END $do$;
			DELETE FROM heroku_migrator.captured WHERE decoded;
			UPDATE heroku_migrator.migration SET slot = '';`)
		return err
	})
	if err == nil && !keep {
		err = p.decoder.remove(ctx, p.journal.tx)
	}
	if err != nil {
		return fmt.Errorf("forget what was written on the target: %w", err)
	}
	return nil
}
