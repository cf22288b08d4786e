package migrator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// herokuSnapshot is a REPEATABLE READ transaction on the source; on the way back, on the target. It is READ ONLY, but
// where changes are decoded (see snapshotlate.go).
type herokuSnapshot struct {
	conn    *pgxpool.Conn
	pos     Position
	trimmed Position
	ops     *operatorCache
	source  bool // its tables have the OIDs and the column numbers that the journal knows
	guarded bool // intervals that the target takes for infinite are not sent
	decoder *decoder
	late    *lateKeys // nil: no changes are decoded
	written string    // up to where the WAL was written when the snapshot was there
	flushed bool      // up to there
	backend int32
	locks   *lockHolder
}

// Snapshot implements [Source].
func (h *Heroku) Snapshot(ctx context.Context) (Snapshot, error) {
	s, err := beginSnapshot(ctx, h.pool, &h.ops, h.decoder, h.way)
	if err != nil {
		return nil, fmt.Errorf("open a snapshot of the source: %w", err)
	}
	s.source, s.guarded = true, h.intervals.on.Load()
	return s, nil
}

// Snapshot implements [Target]: the change log and the journal's entries are of the same form as on the source.
func (p *PlanetScale) Snapshot(ctx context.Context) (Snapshot, error) {
	s, err := beginSnapshot(ctx, p.pool, &p.ops, p.decoder, p.way)
	if err != nil {
		return nil, fmt.Errorf("open a snapshot of the target: %w", err)
	}
	return s, nil
}

func beginSnapshot(ctx context.Context, pool *pgxpool.Pool, ops *operatorCache, d *decoder,
	way *giveWay) (*herokuSnapshot, error) {
	if d.enabled.Load() { // so that little is entered late; who needs the logs does it again, and sees what fails
		_ = d.drain(ctx)
	}
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	s := &herokuSnapshot{conn: conn, ops: ops, decoder: d}
	again := func(sql string) {
		if _, err = conn.Exec(ctx, "ROLLBACK"); err == nil {
			err = s.begin(ctx, sql)
		}
	}
	const ours = `SELECT coalesce(trimmed, ''), slot FROM heroku_migrator.migration`
	known := d.enabled.Load()
	err = s.begin(ctx, ours)
	if err == nil && !known && d.enabled.Load() { // another process has begun to decode
		again(ours)
	}
	if code := sqlState(err); code == "42P01" || code == "3F000" { // nothing was captured here yet
		again(`SELECT '', ''`)
	}
	if err != nil {
		_ = s.Close(context.WithoutCancel(ctx))
		return nil, err
	}
	s.locks = way.enter(ctx, s.backend, "", "")
	return s, nil
}

// begin opens the transaction and reads what is read with every snapshot, in one round trip. The timeline is among
// it, since the server behind the address may have changed.
func (s *herokuSnapshot) begin(ctx context.Context, ours string) error {
	var batch pgx.Batch
	s.late = nil
	if s.decoder.enabled.Load() {
		s.late = &lateKeys{}
		batch.Queue("BEGIN ISOLATION LEVEL REPEATABLE READ")
	} else {
		batch.Queue("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
	}
	batch.Queue(`
		SELECT pg_current_snapshot()::text, (SELECT system_identifier::text FROM pg_control_system()),
		       ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int8,
		pg_current_wal_insert_lsn()::text, pg_backend_pid()`).
		QueryRow(func(row pgx.Row) error {
			return row.Scan(&s.pos.Snapshot, &s.pos.System, &s.pos.Timeline, &s.written, &s.backend)
		})
	batch.Queue(ours).QueryRow(func(row pgx.Row) error {
		var text, slot string
		if err := row.Scan(&text, &slot); err != nil {
			return err
		}
		s.decoder.enabled.Store(slot != "")
		var err error
		s.trimmed, err = ParsePosition(text)
		return err
	})
	return s.conn.SendBatch(ctx, &batch).Close()
}

func (s *herokuSnapshot) Position() Position { return s.pos }

// Close ends the transaction. A connection that is broken is not given back to the pool.
func (s *herokuSnapshot) Close(ctx context.Context) error {
	if s.conn == nil {
		return nil
	}
	conn := s.conn
	s.conn = nil
	defer conn.Release()
	gone := s.locks != nil && s.locks.leave()
	if conn.Conn().IsClosed() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second) // a connection that hangs is closed
	defer cancel()
	if gone { // its backend may not have noticed yet
		return conn.Conn().Close(ctx)
	}
	end := "ROLLBACK"
	if s.late != nil { // the temporary tables stay for the session's next snapshot
		end = "COMMIT"
	}
	_, err := conn.Exec(ctx, end)
	return err
}

// CopyChunk implements [Snapshot]. The lock comes before the look at the filenode: from then on, the
// file cannot change until the snapshot is closed.
func (s *herokuSnapshot) CopyChunk(ctx context.Context, t *Table, c *Chunk, w io.Writer) (int64, error) {
	fail := func(err error) (int64, error) {
		s.ops.forget()
		return 0, fmt.Errorf("read %s: %w", c.Leaf, s.locks.failed(err))
	}
	s.locks.does(fmt.Sprintf("copy %d/%d", c.Table, c.No))
	if t.Keyless() {
		n, err := s.copyKeylessChunk(ctx, t, w)
		if err != nil {
			return fail(err)
		}
		return n, nil
	}
	if err := s.catchUp(ctx, []*Table{t}); err != nil {
		return fail(err)
	}
	ops, err := s.ops.get(ctx, s.conn, t)
	if err != nil {
		return fail(err)
	}
	// One round trip. The file at the snapshot (the catalog read as a table) is looked at as well as the one now:
	// a snapshot from before a rewrite can see an empty table in a new file.
	results, err := readAll(s.conn.Conn().PgConn().Exec(ctx, fmt.Sprintf(`LOCK TABLE ONLY %s IN ACCESS SHARE MODE;
		SELECT pg_relation_filenode(oid) = %[2]d AND relfilenode = %[2]d FROM pg_class WHERE oid = %[3]d;
		SELECT EXISTS (SELECT 1 FROM %[4]s AS l), coalesce((SELECT trimmed FROM heroku_migrator.captured WHERE relid =
		%[5]d), false);
		%[6]s;
		%[8]s;
		SELECT to_regclass(%[7]s)::oid = %[3]d;
		SET LOCAL enable_nestloop = off`, // the log has no statistics: never look it up row by row
		c.Leaf.Ident(), c.Filenode, c.Leaf.ID, s.log(t), t.ID, enterPath+";"+columnsNow(t), quoteLiteral(c.Leaf.Ident()), leavePath)))
	if err != nil {
		return fail(err)
	}
	isTrue := func(result, column int) bool {
		rows := results[result].Rows
		return len(rows) == 1 && string(rows[0][column]) == "t"
	}
	if !isTrue(6, 0) || !asKnown(t, results[4]) {
		return fail(ErrSchemaChanged)
	}
	if !isTrue(1, 0) {
		return fail(ErrRewritten)
	}
	if isTrue(2, 1) { // trimmed: the target has gone back to before it held this table
		return fail(ErrTrimmed)
	}
	where := []string{"true"}
	if isTrue(2, 0) { // else nothing is in the log of this snapshot, and there is nothing to leave out
		where = append(where, fmt.Sprintf(`NOT EXISTS (SELECT 1 FROM %s AS l WHERE %s)`, s.log(t), matchKey(t, ops,
			"l.", "t.")))
	}
	if c.From > 0 {
		where = append(where, fmt.Sprintf(`t.ctid OPERATOR(pg_catalog.>=) '(%d,0)'::pg_catalog.tid`, c.From))
	}
	if c.To >= 0 {
		where = append(where, fmt.Sprintf(`t.ctid OPERATOR(pg_catalog.<) '(%d,0)'::pg_catalog.tid`, c.To))
	}
	rows, err := copyTo(ctx, s.conn.Conn(), inPath(fmt.Sprintf(`
		COPY (SELECT %s FROM ONLY %s AS t WHERE %s) TO STDOUT (FORMAT %s)`,
		t.sent("t.", s.guarded), c.Leaf.Ident(), strings.Join(where, " AND "), t.Format())), w)
	if err == nil {
		err = s.durable(ctx)
	}
	if err != nil {
		return fail(err)
	}
	return rows, nil
}

// Changes implements [Snapshot].
func (s *herokuSnapshot) Changes(ctx context.Context, tables []*Table, since Position) ([]Change, error) {
	if len(tables) == 0 {
		return nil, nil
	}
	s.locks.does("round")
	var notCovered bool
	if !since.IsZero() {
		if !since.SameServer(s.pos) {
			return nil, ErrFailedOver
		}
		covered, err := since.Covers(s.trimmed)
		if err != nil {
			return nil, err
		}
		notCovered = !covered
	}
	if since.IsZero() || notCovered { // then nothing of these tables may have been trimmed yet
		ids := make([]uint32, len(tables))
		for i, t := range tables {
			ids[i] = t.ID
		}
		rows, err := s.conn.Query(ctx, `
			SELECT coalesce(trimmed_to, '') FROM heroku_migrator.captured
			WHERE relid = ANY ($1::oid[]) AND trimmed`, ids)
		if err != nil {
			return nil, fmt.Errorf("read what was trimmed: %w", err)
		}
		marks, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return nil, fmt.Errorf("read what was trimmed: %w", err)
		}
		for _, text := range marks { // one that was set aside waits at a position before others'
			mark, err := ParsePosition(text)
			if err != nil {
				return nil, err
			}
			if covered, err := since.Covers(mark); err != nil || mark.IsZero() || !covered {
				return nil, errors.Join(err, ErrTrimmed)
			}
		}
	}
	if err := s.catchUp(ctx, tables); err != nil {
		return nil, err
	}
	nonEmpty, err := s.nonEmptyLogs(ctx, tables)
	if err != nil {
		return nil, fmt.Errorf("look at the change logs: %w", err)
	}
	var counts []string
	for i, t := range tables {
		if !nonEmpty[t.ID] {
			continue
		}
		counts = append(counts, fmt.Sprintf(`SELECT %d, (SELECT count(*) FROM %s AS l WHERE %s)`, i, s.log(t),
			unseen(since, "l.heroku_migrator_xid")))
	}
	changes := make([]Change, len(tables))
	if len(counts) > 0 {
		rows, err := s.conn.Query(ctx, strings.Join(counts, "\nUNION ALL\n"))
		if err != nil {
			return nil, fmt.Errorf("count changes: %w", err)
		}
		var at int
		var n int64
		if _, err := pgx.ForEachRow(rows, []any{&at, &n}, func() error {
			changes[at].Rows = n
			return nil
		}); err != nil {
			return nil, fmt.Errorf("count changes: %w", err)
		}
	}
	if err := s.truncations(ctx, tables, since, changes); err != nil {
		return nil, fmt.Errorf("read truncations: %w", err)
	}
	var list []Change
	for i, c := range changes {
		if c.Rows > 0 || len(c.Truncated) > 0 {
			c.Table = tables[i]
			list = append(list, c)
		}
	}
	changed := make([]*Table, len(list))
	for i, c := range list {
		changed[i] = c.Table
	}
	if err := s.Hold(ctx, changed); err != nil {
		return list, err
	}
	return list, s.durable(ctx)
}

// truncations adds which relations were emptied. They are told by name, since they have other OIDs on the other side.
func (s *herokuSnapshot) truncations(ctx context.Context, tables []*Table, since Position, changes []Change) error {
	from, seen := querier(s.conn), ""
	if s.late != nil { // what is decoded is entered after the snapshot
		from, seen = s.decoder.pool, " AND "+s.sees("t.xid")
	}
	rows, err := from.Query(ctx, `
		SELECT DISTINCT n.nspname, c.relname FROM heroku_migrator.truncated t
		JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE `+unseen(since,
		"t.xid")+seen)
	if err != nil {
		return err
	}
	truncated := map[[2]string]bool{}
	var name [2]string
	if _, err := pgx.ForEachRow(rows, []any{&name[0], &name[1]}, func() error {
		truncated[name] = true
		return nil
	}); err != nil || len(truncated) == 0 {
		return err
	}
	for i, t := range tables {
		for _, r := range t.relations() {
			if truncated[[2]string{r.Schema, r.Name}] {
				changes[i].Truncated = append(changes[i].Truncated, r)
			}
		}
	}
	return nil
}

// nonEmptyLogs leaves out the logs whose files are empty: what this snapshot sees cannot have been vacuumed away, so it
// sees nothing in them. That keeps the cost of hundreds of tables in which nothing happens near zero.
func (s *herokuSnapshot) nonEmptyLogs(ctx context.Context, tables []*Table) (map[uint32]bool, error) {
	ids, names := make([]int64, len(tables)), make([]string, len(tables))
	for i, t := range tables {
		ids[i], names[i] = int64(t.ID), logName(t.ID)
	}
	rows, err := s.conn.Query(ctx, `
		SELECT t.id FROM unnest($1::int8[], $2::text[]) AS t(id, log)
		WHERE pg_relation_size(to_regclass(t.log)) IS DISTINCT FROM
		0`, ids, names) // one that is missing is not passed over
	if err != nil {
		return nil, err
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	nonEmpty := make(map[uint32]bool, len(list))
	for _, id := range list {
		nonEmpty[id] = true
	}
	return nonEmpty, err
}

// Hold implements [Snapshot]. Some rewrites (ALTER TABLE) and TRUNCATE show an empty table to older snapshots. The
// catalog read as a table tells the file at the snapshot; pg_relation_filenode, the one now.
func (s *herokuSnapshot) Hold(ctx context.Context, tables []*Table) error {
	if len(tables) == 0 {
		return nil
	}
	s.locks.does("round")
	var names, leaves []string
	for _, t := range tables {
		names = append(names, t.Only())
		for _, l := range t.Leaves {
			leaves = append(leaves, l.Ident())
		}
	}
	if _, err := s.conn.Exec(ctx, `LOCK TABLE `+strings.Join(names, ", ")+` IN ACCESS SHARE MODE`); err != nil {
		return fmt.Errorf("hold the changed tables: %w", err)
	}
	var rewritten *string
	var gone bool
	err := s.conn.QueryRow(ctx, `
		SELECT (SELECT string_agg(oid::regclass::text, ', ') FROM pg_class
		        WHERE oid IN (SELECT to_regclass(n)::oid FROM unnest($1::text[]) AS n) AND relfilenode IS DISTINCT FROM
		pg_relation_filenode(oid)),
		       EXISTS (SELECT 1 FROM unnest($1::text[]) AS n WHERE to_regclass(n) IS
		NULL)`, leaves).Scan(&rewritten, &gone)
	if err != nil {
		return fmt.Errorf("hold the changed tables: %w", err)
	}
	if gone && s.source { // on the target, partitions may be dropped after the switch
		return fmt.Errorf("hold the changed tables: a partition is gone: %w", ErrSchemaChanged)
	}
	if rewritten != nil {
		return fmt.Errorf("%s: %w", *rewritten, ErrRewritten)
	}
	if !s.source {
		return nil
	}
	if err := s.known(ctx, tables...); err != nil {
		return fmt.Errorf("hold the changed tables: %w", err)
	}
	return nil
}

// known makes sure that the tables, which are locked, are those that the journal knows.
func (s *herokuSnapshot) known(ctx context.Context, tables ...*Table) error {
	looks := make([]string, len(tables))
	for i, t := range tables {
		looks[i] = columnsNow(t)
	}
	results, err := readAll(s.conn.Conn().PgConn().Exec(ctx, inPath(strings.Join(looks, "; "))))
	if err != nil {
		return err
	}
	for i, t := range tables {
		if !asKnown(t, results[i+1]) {
			return fmt.Errorf("%s: %w", t, ErrSchemaChanged)
		}
	}
	return nil
}

// readAll reads all results; also the columns of those without rows, which [pgconn.MultiResultReader.ReadAll] leaves
// out.
func readAll(r *pgconn.MultiResultReader) (results []*pgconn.Result, err error) {
	for r.NextResult() {
		columns := slices.Clone(r.ResultReader().FieldDescriptions())
		result := r.ResultReader().Read()
		result.FieldDescriptions = columns
		results = append(results, result)
	}
	return results, r.Close()
}

// columnsNow is a query whose result has no rows, and the columns that the table of this name has now: names are
// resolved by the catalog as it is, not as the snapshot shows it, and the lock may have waited for a transaction that
// gave them to others.
func columnsNow(t *Table) string { return `SELECT * FROM ONLY ` + t.Ident() + ` LIMIT 0` }

// asKnown tells whether a result of columnsNow has the columns that are known, of the table that is known.
func asKnown(t *Table, result *pgconn.Result) bool {
	for _, c := range t.Columns {
		if !slices.ContainsFunc(result.FieldDescriptions, func(f pgconn.FieldDescription) bool {
			return f.Name == c.Name && int(f.TableAttributeNumber) == c.Num && f.TableOID == t.ID
		}) {
			return false
		}
	}
	return true
}

// unseen is the condition that a transaction, known to be visible now, was not visible at the position.
func unseen(since Position, xid string) string {
	if since.IsZero() {
		return "true"
	}
	// The comparison is cheap, and passes over most of a long log.
	return fmt.Sprintf("(%[1]s OPERATOR(pg_catalog.>=) '%[3]s'::pg_catalog.xid8 "+
		"AND NOT pg_catalog.pg_visible_in_snapshot(%[1]s, '%[2]s'::pg_catalog.pg_snapshot))",
		xid, since.Snapshot, since.xmin())
}

// changedKeys is the query for the keys that changed since the position.
func (s *herokuSnapshot) changedKeys(t *Table, since Position) string {
	return fmt.Sprintf(`SELECT DISTINCT %s FROM %s AS l WHERE %s`, t.keyList(""), s.log(t), unseen(since,
		"heroku_migrator_xid"))
}

// CopyKeys implements [Snapshot].
func (s *herokuSnapshot) CopyKeys(ctx context.Context, t *Table, since Position, w io.Writer) (int64, error) {
	query := s.changedKeys(t, since)
	if t.Keyless() {
		var err error
		if query, err = s.images(ctx, t, since); err != nil {
			return 0, fmt.Errorf("read changes of %s: %w", t, err)
		}
		if s.guarded {
			query = t.guardImages(query)
		}
	}
	n, err := copyTo(ctx, s.conn.Conn(), inPath(`COPY (`+query+`) TO STDOUT`), w) // an image may be of a domain
	if err != nil {
		return n, fmt.Errorf("read changed keys of %s: %w", t, err)
	}
	return n, nil
}

// CopyRows implements [Snapshot]. OFFSET 0 keeps the lookups apart: one index probe a key, whatever the
// planner believes of a log that has no statistics.
func (s *herokuSnapshot) CopyRows(ctx context.Context, t *Table, since Position, w io.Writer) (int64, error) {
	if t.Keyless() {
		return s.copyKeylessTable(ctx, t, w)
	}
	ops, err := s.ops.get(ctx, s.conn, t)
	if err != nil {
		return 0, err
	}
	n, err := copyTo(ctx, s.conn.Conn(), inPath(fmt.Sprintf(`
		COPY (SELECT %s FROM (%s) AS k CROSS JOIN LATERAL (SELECT t.* FROM %s AS t WHERE %s OFFSET 0) AS r) TO STDOUT
		(FORMAT %s)`,
		t.sent("r.", s.guarded), s.changedKeys(t, since), t.Only(), matchKey(t, ops, "t.", "k."), t.Format())), w)
	if err != nil {
		s.ops.forget()
		return n, fmt.Errorf("read changed rows of %s: %w", t, err)
	}
	return n, nil
}

// Digest implements [Snapshot].
func (s *herokuSnapshot) Digest(ctx context.Context, t *Table) (Digest, error) {
	s.locks.does("compare " + t.String())
	var d Digest
	err := withinPath(ctx, s.conn, func() (err error) {
		d, err = digest(ctx, s.conn, t)
		return err
	})
	return d, s.locks.failed(err)
}
