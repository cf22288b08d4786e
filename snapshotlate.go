package migrator

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Where changes are decoded, the keys of some transactions that a snapshot sees are entered in the logs after it was taken, so it does not see
// these. They are brought into temporary tables of its own session. See ARCHITECTURE.md, Logical decoding.

// lateKeys is what a snapshot knows of keys that were entered after it was taken.
type lateKeys struct {
	drained bool
	decoded map[uint32]bool // tables that are captured by decoding
	staged  map[uint32]bool // whose late keys are looked up: true if there are some
}

func lateName(id uint32) string { return fmt.Sprintf("pg_temp.heroku_migrator_late_%d", id) }

// sees is the condition that a transaction is visible here.
func (s *herokuSnapshot) sees(xid string) string {
	return fmt.Sprintf("(%[1]s OPERATOR(pg_catalog.<) '%[3]s'::pg_catalog.xid8 OR pg_catalog.pg_visible_in_snapshot(%[1]s, '%[2]s'::pg_catalog.pg_snapshot))",
		xid, s.pos.Snapshot, s.pos.xmin())
}

// log is a table's log for FROM, as it has to be read here.
func (s *herokuSnapshot) log(t *Table) string {
	if s.late == nil || !s.late.decoded[t.ID] {
		return "(" + t.logRows() + ")"
	}
	// A transaction's commit is written before others see it: what was entered may not be visible yet.
	rows := t.logEntries(logName(t.ID)) + " WHERE " + s.sees("heroku_migrator_xid")
	if s.late.staged[t.ID] {
		rows += " UNION ALL " + t.logEntries(lateName(t.ID))
	}
	return "(" + rows + ")"
}

// catchUp makes the logs of these tables complete for this snapshot.
func (s *herokuSnapshot) catchUp(ctx context.Context, tables []*Table) error {
	if s.late == nil {
		return nil
	}
	if !s.late.drained {
		if err := s.decoder.drain(ctx); err != nil {
			return err
		}
		rows, err := s.decoder.pool.Query(ctx, `SELECT relid FROM heroku_migrator.captured WHERE decoded`)
		if err != nil {
			return fmt.Errorf("list what is decoded: %w", err)
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
		if err != nil {
			return fmt.Errorf("list what is decoded: %w", err)
		}
		s.late.drained, s.late.decoded, s.late.staged = true, map[uint32]bool{}, map[uint32]bool{}
		for _, id := range ids {
			s.late.decoded[id] = true
		}
	}
	var counts []string
	byID := map[uint32]*Table{}
	for _, t := range tables {
		if _, looked := s.late.staged[t.ID]; looked || !s.late.decoded[t.ID] {
			continue
		}
		s.late.staged[t.ID] = false
		byID[t.ID] = t
		counts = append(counts, fmt.Sprintf(`SELECT %d WHERE EXISTS (SELECT 1 FROM %s WHERE %s)`, t.ID, logName(t.ID), s.lately()))
	}
	if len(counts) == 0 {
		return nil
	}
	rows, err := s.decoder.pool.Query(ctx, strings.Join(counts, " UNION ALL "))
	if err != nil {
		return fmt.Errorf("look for keys that were entered lately: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return fmt.Errorf("look for keys that were entered lately: %w", err)
	}
	for _, id := range ids {
		if err := s.stageLate(ctx, byID[id]); err != nil {
			return fmt.Errorf("bring keys of %s that were entered lately: %w", byID[id], err)
		}
		s.late.staged[id] = true
	}
	return nil
}

// lately is the condition for entries of transactions that are visible here, which are not.
func (s *herokuSnapshot) lately() string {
	return unseen(s.pos, "heroku_migrator_entered") + " AND " + s.sees("heroku_migrator_xid")
}

// stageLate brings them here, through this process.
func (s *herokuSnapshot) stageLate(ctx context.Context, t *Table) error {
	conn, err := s.decoder.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	// It stays for the session's next snapshot, empty.
	columns := t.logColumns() + ", heroku_migrator_xid"
	if _, err := s.conn.Exec(ctx, fmt.Sprintf(`CREATE TEMP TABLE IF NOT EXISTS heroku_migrator_late_%d ON COMMIT DELETE ROWS AS SELECT %s FROM %s WITH NO DATA`,
		t.ID, columns, logName(t.ID))); err != nil {
		return err
	}
	_, err = stream(ctx, defaultBuffer,
		func(ctx context.Context, w io.Writer) error {
			_, err := copyTo(ctx, conn.Conn(), fmt.Sprintf(`COPY (SELECT DISTINCT %s FROM %s WHERE %s) TO STDOUT`, columns, logName(t.ID), s.lately()), w)
			return err
		},
		func(ctx context.Context, r io.Reader) (int64, error) {
			return copyFrom(ctx, s.conn.Conn(), enterPath+fmt.Sprintf(`; COPY %s (%s) FROM STDIN`, lateName(t.ID), columns), r)
		})
	if err == nil {
		_, err = s.conn.Exec(ctx, leavePath)
	}
	return err
}
