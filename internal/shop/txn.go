package shop

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// errRollback makes a transaction roll back on purpose.
var errRollback = errors.New("rolled back on purpose")

// txn is one attempt at a transaction.
type txn struct {
	*writer
	tx         pgx.Tx
	operation  string
	rows       int64
	committing bool // COMMIT was sent
}

// run performs op and adds the ledger row, at times first and at times last.
func (t *txn) run(ctx context.Context, op *operation, seq int64) error {
	options := pgx.TxOptions{}
	switch n := t.rng.IntN(100); {
	case n < 3:
		options.IsoLevel = pgx.Serializable
	case n < 12:
		options.IsoLevel = pgx.RepeatableRead
	}
	err := t.timed(func() (err error) {
		t.tx, err = t.conn.BeginTx(ctx, options)
		return err
	})
	if err != nil {
		return err
	}
	if err := t.body(ctx, op, seq); err != nil {
		// A failing rollback closes the connection, which rolls back too.
		_ = t.tx.Rollback(ctx)
		return err
	}
	return t.timed(func() error {
		t.committing = true
		return t.tx.Commit(ctx)
	})
}

func (t *txn) body(ctx context.Context, op *operation, seq int64) error {
	first := t.rng.IntN(2) == 0
	if first {
		if err := t.sign(ctx, seq); err != nil {
			return err
		}
	}
	err := op.run(ctx, t)
	if errors.Is(err, errRollback) && !first {
		// Roll back a ledger row in any case: it must not show up.
		if err := t.sign(ctx, seq); err != nil {
			return err
		}
	}
	if err != nil || first {
		return err
	}
	return t.sign(ctx, seq)
}

// sign adds the ledger row.
func (t *txn) sign(ctx context.Context, seq int64) error {
	return t.exec(ctx, `INSERT INTO shop.ledger (run, writer, seq, operation) VALUES ($1, $2, $3, $4)`,
		t.w.run, t.number, seq, t.operation)
}

// timed measures f as one statement.
func (t *txn) timed(f func() error) error {
	start := time.Now()
	err := f()
	t.w.count.statement(t.operation, time.Since(start))
	return err
}

// exec runs one statement and counts the rows it touched.
func (t *txn) exec(ctx context.Context, sql string, args ...any) error {
	return t.timed(func() error {
		tag, err := t.tx.Exec(ctx, sql, args...)
		if err == nil && !tag.Select() {
			t.rows += tag.RowsAffected()
		}
		return err
	})
}

// execAll runs statements that take the same arguments, one after another.
func (t *txn) execAll(ctx context.Context, args []any, statements ...string) error {
	for _, sql := range statements {
		if err := t.exec(ctx, sql, args...); err != nil {
			return err
		}
	}
	return nil
}

// get runs a statement that returns one row and scans it into dest. It reports
// false when there was no row, as when another writer holds every candidate.
func (t *txn) get(ctx context.Context, dest []any, sql string, args ...any) (bool, error) {
	err := t.timed(func() error { return t.tx.QueryRow(ctx, sql, args...).Scan(dest...) })
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// pick locks one row that nobody else holds, at or after a random key, and
// returns the key. It reports false when there is none.
func (t *txn) pick(ctx context.Context, table string, highest int64) (id int64, found bool, err error) {
	sql := fmt.Sprintf(`SELECT id FROM %s WHERE id >= $1 ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED`, table)
	found, err = t.get(ctx, []any{&id}, sql, t.key(highest))
	return id, found, err
}

// key is a random key: mostly a seeded one, at times one that was shifted.
func (t *txn) key(highest int64) int64 {
	k := 1 + t.rng.Int64N(highest+highest/10+1)
	if t.w.opts.KeyChanges && t.rng.IntN(8) == 0 {
		k += shiftBy
	}
	return k
}

// name is a short random text.
func (t *txn) name() string {
	return fmt.Sprintf("w%d-%x é\t\\ '\"", t.number, t.rng.Uint64())
}

// text is a random text, long enough to be TOASTed about once in 20 times.
func (t *txn) text() string {
	s := t.name()
	if t.rng.IntN(20) == 0 {
		for len(s) < 4000 {
			s += fmt.Sprintf("%016x", t.rng.Uint64())
		}
	}
	return s
}

// bounds are the highest keys the seed made.
type bounds struct {
	customers, products, orders, events, movements, items, lockers, backOffice int64
}

func readBounds(ctx context.Context, conn *pgx.Conn) (b bounds, err error) {
	for _, q := range []struct {
		into  *int64
		table string
		key   string
	}{
		{&b.customers, "customers", "id"},
		{&b.products, "products", "id"},
		{&b.orders, "orders", "id"},
		{&b.events, "order_events", "id"},
		{&b.movements, "stock_movements", "id"},
		{&b.items, "shelf_items", "id"},
		{&b.lockers, "lockers", "id"},
		{&b.backOffice, `"BackOffice"."Order"`, `"Id"`},
	} {
		sql := fmt.Sprintf(`SELECT coalesce(max(%[1]s), 1) FROM %[2]s WHERE %[1]s < $1`, q.key, q.table)
		if err := conn.QueryRow(ctx, sql, shiftBy).Scan(q.into); err != nil {
			return b, err
		}
	}
	return b, nil
}
