package migrator

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// How the row is found that a table is set aside for: rows are read and written as the copy does it, into a temporary
// table that is like the real one, by halves.

const (
	findPatience = 30 * time.Second // what the search for a row may take
	findMost     = 1_000_000        // changed rows among which it is looked for
)

// rowSide is one end, as far as the search for a row needs it.
type rowSide interface{ rowSessions() *pgxpool.Pool }

func (h *Heroku) rowSessions() *pgxpool.Pool { return h.pool }

func (p *PlanetScale) rowSessions() *pgxpool.Pool { return p.pool }

// rowFinder looks for rows that cannot travel from one side to the other.
type rowFinder struct {
	table    *Table
	from, to *pgxpool.Pool
	guarded  bool          // as the copy is
	sink     *pgxpool.Conn // a transaction on the other side, which is rolled back
}

// tryRows is the temporary table of a search.
const tryRows = "heroku_migrator_try"

// newRowFinder prepares a search; close ends it. It returns nil if one of the ends is not one of ours.
func newRowFinder(ctx context.Context, t *Table, from, to any) (*rowFinder, error) {
	a, ok := from.(rowSide)
	b, ok2 := to.(rowSide)
	if !ok || !ok2 {
		return nil, nil //nolint:nilnil // nothing can be looked for
	}
	f := &rowFinder{table: t, from: a.rowSessions(), to: b.rowSessions()}
	if g, ok := from.(guarder); ok {
		f.guarded = g.guardsIntervals()
	}
	conn, err := f.to.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("look for the row: %w", err)
	}
	f.sink = conn
	_, err = conn.Exec(ctx, fmt.Sprintf(`
		BEGIN; SET LOCAL lock_timeout = '2s';
		CREATE TEMP TABLE %s (LIKE %s INCLUDING CONSTRAINTS INCLUDING GENERATED) ON COMMIT DROP`, tryRows, t.Ident()))
	if err != nil {
		f.close(ctx)
		return nil, fmt.Errorf("look for the row: %w", err)
	}
	return f, nil
}

func (f *rowFinder) close(ctx context.Context) {
	_ = rollback(ctx, f.sink)
	f.sink.Release()
}

// try sends the rows of a relation that satisfy the condition, and returns what they fail at; nil, if they do not.
func (f *rowFinder) try(ctx context.Context, relation, condition string) (*rowFailure, error) {
	return f.tryColumns(ctx, f.table.copiedList(), f.table.sent("t.", f.guarded), relation, condition)
}

// tryColumns is try for some of the columns: the list of those that are written, and what is read.
func (f *rowFinder) tryColumns(ctx context.Context, columns, sent, relation, condition string) (*rowFailure, error) {
	if _, err := f.sink.Exec(ctx, `SAVEPOINT try`); err != nil {
		return nil, fmt.Errorf("look for the row: %w", err)
	}
	_, err := stream(ctx, defaultBuffer,
		func(ctx context.Context, w io.Writer) error { return f.read(ctx, sent, relation, condition, w) },
		func(ctx context.Context, r io.Reader) (int64, error) {
			sql := fmt.Sprintf(`COPY pg_temp.%s %s FROM STDIN (FORMAT %s)`, tryRows, columns, f.table.Format())
			return copyFrom(ctx, f.sink.Conn(), sql, r)
		})
	if _, endErr := f.sink.Exec(ctx, `ROLLBACK TO SAVEPOINT try; RELEASE SAVEPOINT try`); endErr != nil {
		return nil, fmt.Errorf("look for the row: %w", errors.Join(endErr, err))
	}
	failure := asRowFailure(err)
	if err != nil && failure == nil {
		return nil, fmt.Errorf("look for the row: %w", err)
	}
	return failure, nil
}

// rowFailure is what rows fail at.
type rowFailure struct {
	pg      *pgconn.PgError
	reading bool // the side that has them cannot read them
}

func asRowFailure(err error) *rowFailure {
	f := &rowFailure{reading: errors.As(err, new(readError))}
	if !errors.As(err, &f.pg) || !isAboutRows(f.pg.Code) {
		return nil
	}
	return f
}

// read writes these columns of the rows in the COPY format of the table.
func (f *rowFinder) read(ctx context.Context, columns, relation, condition string, w io.Writer) error {
	return f.from.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		sql := fmt.Sprintf(`COPY (SELECT %s FROM %s AS t WHERE %s) TO STDOUT (FORMAT %s)`, columns, relation,
			condition, f.table.Format())
		_, err := copyTo(ctx, conn.Conn(), sql, w)
		return err
	})
}

// rowAddress is where a row is on the side that it is read from.
type rowAddress struct {
	relation string // as FROM wants it
	ctid     string
}

func (r rowAddress) condition() string { return fmt.Sprintf("t.ctid = '%s'::tid", r.ctid) }

// find looks for the first row that fails: among the rows of a chunk, or else among those that changed.
func (f *rowFinder) find(ctx context.Context, chunk *Chunk) (at *rowAddress, failure *rowFailure, err error) {
	if chunk != nil && !f.table.Keyless() {
		to := chunk.To
		if to < 0 {
			if to, err = f.pages(ctx, chunk.Leaf.ID); err != nil {
				return nil, nil, err
			}
		}
		return f.inPages(ctx, "ONLY "+chunk.Leaf.Ident(), chunk.From, max(to, chunk.From+1))
	}
	if f.table.Keyless() {
		return f.inLeaves(ctx)
	}
	rows, err := f.changed(ctx)
	if err != nil {
		return nil, nil, err
	}
	return f.among(ctx, rows)
}

func (f *rowFinder) pages(ctx context.Context, id uint32) (n int64, err error) {
	err = f.from.QueryRow(ctx, `
		SELECT pg_relation_size($1::oid::regclass) / current_setting('block_size')::int8`, id).Scan(&n)
	if err != nil {
		err = fmt.Errorf("look for the row: %w", err)
	}
	return n, err
}

// inLeaves looks for a row in the whole table.
func (f *rowFinder) inLeaves(ctx context.Context) (*rowAddress, *rowFailure, error) {
	rows, err := f.from.Query(ctx, `
		SELECT format('ONLY %s', c.oid::regclass), pg_relation_size(c.oid) / current_setting('block_size')::int8
		FROM pg_class c WHERE c.relkind = 'r' AND c.oid IN (
			SELECT $1::regclass UNION SELECT relid FROM pg_partition_tree($1::regclass))`, f.table.Ident())
	if err != nil {
		return nil, nil, fmt.Errorf("look for the row: %w", err)
	}
	type leaf struct {
		Name  string
		Pages int64
	}
	leaves, err := pgx.CollectRows(rows, pgx.RowToStructByPos[leaf])
	if err != nil {
		return nil, nil, fmt.Errorf("look for the row: %w", err)
	}
	for _, l := range leaves {
		at, failure, err := f.inPages(ctx, l.Name, 0, max(l.Pages, 1))
		if err != nil || failure != nil {
			return at, failure, err
		}
	}
	return nil, nil, nil
}

// inPages narrows the search down to a page, and then to a row. A page that cannot be read at all has no address of a
// row.
func (f *rowFinder) inPages(ctx context.Context, relation string, from, to int64) (*rowAddress, *rowFailure, error) {
	within := func(from, to int64) string {
		return fmt.Sprintf("t.ctid >= '(%d,0)'::tid AND t.ctid < '(%d,0)'::tid", from, to)
	}
	page, failure, err := firstHalf(from, to, func(from, to int64) (*rowFailure, error) {
		return f.try(ctx, relation,
			within(from, to))
	})
	if err != nil || failure == nil {
		return nil, failure, err
	}
	rows, err := f.addresses(ctx, fmt.Sprintf(`SELECT %s, t.ctid::text FROM %s AS t WHERE %s`, quoteLiteral(relation),
		relation, within(page, page+1)))
	if unreadable := asRowFailure(err); unreadable != nil {
		unreadable.reading = true
		return nil, unreadable, nil
	}
	if err != nil {
		return nil, nil, err
	}
	return f.among(ctx, rows)
}

// changed lists the rows that the change log speaks of, as far as they exist.
func (f *rowFinder) changed(ctx context.Context) ([]rowAddress, error) {
	ops, err := keyEquals(ctx, f.from, f.table)
	if err != nil {
		return nil, err
	}
	return f.addresses(ctx, fmt.Sprintf(`
		SELECT 'ONLY ' || r.tableoid::regclass, r.ctid::text
		FROM (SELECT DISTINCT %s FROM (%s) AS l) AS k
		CROSS JOIN LATERAL (SELECT t.tableoid, t.ctid FROM %s AS t WHERE %s OFFSET 0) AS r LIMIT %d`,
		f.table.keyList(""), f.table.logRows(), f.table.Only(), matchKey(f.table, ops, "t.", "k."), findMost))
}

func (f *rowFinder) addresses(ctx context.Context, sql string) ([]rowAddress, error) {
	rows, err := f.from.Query(ctx, sql)
	if err != nil {
		return nil, fmt.Errorf("look for the row: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (a rowAddress, err error) {
		err = row.Scan(&a.relation, &a.ctid)
		return a, err
	})
	if err != nil {
		return nil, fmt.Errorf("look for the row: %w", err)
	}
	return list, nil
}

// among narrows the search down to one of these rows.
func (f *rowFinder) among(ctx context.Context, rows []rowAddress) (*rowAddress, *rowFailure, error) {
	byRelation := map[string][]string{}
	for _, r := range rows {
		byRelation[r.relation] = append(byRelation[r.relation], r.ctid)
	}
	for _, relation := range slices.Sorted(maps.Keys(byRelation)) {
		ctids := byRelation[relation]
		first, failure, err := firstHalf(0, int64(len(ctids)), func(from, to int64) (*rowFailure, error) {
			return f.try(ctx, relation, `t.ctid = ANY ('{"`+strings.Join(ctids[from:to], `","`)+`"}'::tid[])`)
		})
		if err != nil || failure != nil {
			return &rowAddress{relation, ctids[first]}, failure, err
		}
	}
	return nil, nil, nil
}

// firstHalf finds the first number that fails when it is tried alone, and with what.
func firstHalf(from, to int64, try func(from, to int64) (*rowFailure, error)) (first int64, failure *rowFailure,
	err error) {
	if to <= from {
		return from, nil, nil
	}
	if failure, err = try(from, to); err != nil || failure == nil {
		return from, nil, err
	}
	for to-from > 1 {
		middle := from + (to-from)/2
		half, err := try(from, middle)
		switch {
		case err != nil:
			return from, nil, err
		case half != nil:
			to, failure = middle, half
		default:
			from = middle
		}
	}
	last, err := try(from, to) // alone
	if last != nil {
		failure = last
	}
	return from, failure, err
}

// column looks for the column that fails as the row does.
func (f *rowFinder) column(ctx context.Context, at *rowAddress, state string) string {
	for _, c := range f.table.Columns {
		if c.Generated {
			continue
		}
		list := "(" + quoteName(c.Name) + ")"
		failure, err := f.tryColumns(ctx, list, c.sent("t.", f.guarded), at.relation, at.condition())
		if err == nil && failure != nil && failure.pg.Code == state {
			return c.Name
		}
	}
	return ""
}

// value reads a column as text, or, where that is no text in any encoding, its bytes.
func (f *rowFinder) value(ctx context.Context, column string, at *rowAddress) (text string, raw []byte, err error) {
	const most = 1000
	v := fmt.Sprintf("left(t.%s::text, %d)", quoteName(column), most)
	from := fmt.Sprintf(" FROM %s AS t WHERE %s", at.relation, at.condition())
	var s *string
	err = f.from.QueryRow(ctx, "SELECT "+v+from).Scan(&s)
	if state := sqlState(err); state == "22021" || state == "22P05" {
		v = fmt.Sprintf("t.%s::text", quoteName(column)) // left() minds where characters end
		err = f.from.QueryRow(ctx, "SELECT substr(convert_to("+v+", 'SQL_ASCII'), 1, $1)"+from, most).Scan(&raw)
		return "", raw, err
	}
	switch {
	case err != nil:
		return "", nil, err
	case s == nil:
		return "NULL", nil, nil
	case !utf8.ValidString(*s):
		return "", []byte(*s), nil
	}
	return *s, nil, nil
}

// row writes the condition that leads to a row: by its key, if that can be read.
func (f *rowFinder) row(ctx context.Context, at *rowAddress) string {
	conditions := make([]string, 0, len(f.table.Key))
	for _, k := range f.table.Key {
		text, raw, err := f.value(ctx, k, at)
		switch {
		case err != nil:
			return strings.TrimPrefix(at.condition(), "t.")
		case raw != nil:
			conditions = append(conditions, fmt.Sprintf(`convert_to(%s::text, 'SQL_ASCII') = '\x%s'`, quoteName(k),
				hex.EncodeToString(raw)))
		default:
			conditions = append(conditions, quoteName(k)+" = "+strings.TrimSpace(quoteLiteral(text)))
		}
	}
	if len(conditions) == 0 {
		return strings.TrimPrefix(at.condition(), "t.")
	}
	return strings.Join(conditions, " AND ")
}

// find looks for the row that a table is set aside for, and completes the reason. It finds none if the row is gone or
// mended: failing is false then.
func (a *aside) find(ctx context.Context, from, to any) (failing bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, findPatience)
	defer cancel()
	f, err := newRowFinder(ctx, a.table, from, to)
	if err != nil || f == nil {
		return true, err
	}
	defer f.close(context.WithoutCancel(ctx))
	at, failure, err := f.find(ctx, a.chunk)
	if err != nil || failure == nil {
		return false, err
	}
	if failure.reading != a.Reading {
		a.Side, a.Reading = otherSide(a.Side), failure.reading
	}
	a.describe(failure.pg)
	a.found = true
	if at == nil {
		return true, nil
	}
	a.Row = f.row(ctx, at)
	if a.Column == "" && a.Constraint == "" {
		a.Column = f.column(ctx, at, a.SQLState)
	}
	if a.Column != "" {
		text, raw, err := f.value(ctx, a.Column, at)
		switch {
		case err == nil && raw != nil:
			a.Value = `\x` + hex.EncodeToString(raw)
		case err == nil:
			a.Value = text
		}
	}
	return true, nil
}

// stillFails tries the row again that a table is set aside for.
func (a *aside) stillFails(ctx context.Context, from, to any) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, findPatience)
	defer cancel()
	f, err := newRowFinder(ctx, a.table, from, to)
	if err != nil || f == nil {
		return false, err
	}
	defer f.close(context.WithoutCancel(ctx))
	failure, err := f.try(ctx, a.table.Only(), a.Row)
	return failure != nil, err
}

func otherSide(side string) string {
	if side == "source" {
		return "target"
	}
	return "source"
}
