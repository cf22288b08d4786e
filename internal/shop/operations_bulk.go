package shop

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// many is the size of a bulk statement.
func (t *txn) many() int { return 200 + t.rng.IntN(1800) }

func bulkInsert(ctx context.Context, t *txn) error {
	return t.exec(ctx, `
INSERT INTO stock_movements (product_id, warehouse, change, factor)
SELECT g, 'W' || g % 3, g % 100, CASE g % 4 WHEN 0 THEN 'NaN' WHEN 1 THEN '-Infinity' WHEN 2 THEN g / 3.0 END FROM generate_series(1, $1::int) g`, t.many())
}

func bulkUpdate(ctx context.Context, t *txn) error {
	if t.rng.IntN(2) == 0 {
		return t.exec(ctx, `
UPDATE orders SET note = 'bulk ' || id, total = (id % 900)::numeric WHERE id IN (SELECT id FROM orders WHERE id >= $1 ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED)`,
			t.key(t.w.bounds.orders), t.many()/4)
	}
	return t.exec(ctx, `
UPDATE stock_movements SET change = change + 1 WHERE id IN (SELECT id FROM stock_movements WHERE id >= $1 ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED)`,
		t.key(t.w.bounds.movements), t.many())
}

func bulkDelete(ctx context.Context, t *txn) error {
	return t.exec(ctx, `
DELETE FROM stock_movements WHERE id IN (SELECT id FROM stock_movements WHERE id >= $1 ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED)`,
		t.key(t.w.bounds.movements), t.many())
}

func copyIn(ctx context.Context, t *txn) error {
	n, now := t.many(), time.Now()
	return t.timed(func() error {
		copied, err := t.tx.CopyFrom(ctx, pgx.Identifier{"stock_movements"},
			[]string{"product_id", "warehouse", "change", "factor", "moved_at"},
			pgx.CopyFromSlice(n, func(i int) ([]any, error) {
				return []any{int32(i), "COPY", int32(t.rng.IntN(100)), float64(i) / 7, now}, nil
			}))
		t.rows += copied
		return err
	})
}

func upsertStock(ctx context.Context, t *txn) error {
	return t.exec(ctx, `
INSERT INTO stock_levels (product_id, warehouse, quantity)
SELECT id, 'W' || id % 4, 5 FROM products WHERE id >= $1 ORDER BY id LIMIT $2
ON CONFLICT (product_id, warehouse) DO UPDATE SET quantity = stock_levels.quantity + excluded.quantity, counted_at = clock_timestamp()`,
		t.rng.Int64N(t.w.bounds.products), 1+t.rng.IntN(20))
}

// mergeStock inserts, changes and deletes with one MERGE; servers before
// version 15 get the same from two statements.
func mergeStock(ctx context.Context, t *txn) error {
	from, limit := t.rng.Int64N(t.w.bounds.products), 1+t.rng.IntN(20)
	if t.version >= 150000 {
		return t.exec(ctx, `
MERGE INTO stock_levels s
USING (SELECT id FROM products WHERE id >= $1 ORDER BY id LIMIT $2) p ON s.product_id = p.id AND s.warehouse = 'merged'
WHEN MATCHED AND s.quantity > 2 THEN DELETE
WHEN MATCHED THEN UPDATE SET quantity = s.quantity + 1
WHEN NOT MATCHED THEN INSERT (product_id, warehouse, quantity) VALUES (p.id, 'merged', 1)`, from, limit)
	}
	return t.execAll(ctx, []any{from, limit}, `
DELETE FROM stock_levels WHERE warehouse = 'merged' AND quantity > 2
AND product_id IN (SELECT id FROM products WHERE id >= $1 ORDER BY id LIMIT $2)`, `
INSERT INTO stock_levels (product_id, warehouse, quantity) SELECT id, 'merged', 1 FROM products WHERE id >= $1 ORDER BY id LIMIT $2
ON CONFLICT (product_id, warehouse) DO UPDATE SET quantity = stock_levels.quantity + 1`)
}

// savepoint undoes part of its transaction, once on purpose and once because a
// statement failed, and keeps the rest.
func savepoint(ctx context.Context, t *txn) error {
	if err := t.execAll(ctx, nil,
		`INSERT INTO page_views (path) VALUES ('/kept')`,
		`SAVEPOINT undone`,
		`INSERT INTO page_views (path) VALUES ('/undone')`,
		`UPDATE exchange_rates SET rate = rate + 1 WHERE currency = 'never'`,
		`DELETE FROM lockers WHERE id = (SELECT min(id) FROM lockers)`,
		`ROLLBACK TO undone`); err != nil {
		return err
	}
	outer := t.tx
	inner, err := outer.Begin(ctx)
	if err != nil {
		return err
	}
	t.tx = inner
	err = t.exec(ctx, `INSERT INTO stock_movements (product_id, warehouse, change) VALUES (1, 'far too long a name', 1)`)
	t.tx = outer
	if err == nil {
		return fmt.Errorf("a value that is too long was stored")
	}
	if classify(err) != kindOther {
		return err
	}
	if err := inner.Rollback(ctx); err != nil {
		return err
	}
	return t.execAll(ctx, nil,
		`INSERT INTO stock_movements (product_id, warehouse, change) VALUES (1, 'kept', 1)`,
		`RELEASE undone`)
}

// rollback does work of several kinds for nothing.
func rollback(ctx context.Context, t *txn) error {
	for _, work := range []func(context.Context, *txn) error{insertCustomer, placeOrder, deleteOrder} {
		if err := work(ctx, t); err != nil {
			return err
		}
	}
	return errRollback
}

// truncateRates empties a small table and fills it anew.
func truncateRates(ctx context.Context, t *txn) error {
	return t.execAll(ctx, nil, `TRUNCATE exchange_rates`, `
INSERT INTO exchange_rates (currency, rate)
SELECT 'X' || chr(65 + i % 26) || i % 3, 1 + random() FROM generate_series(1, 30) i`)
}
