package shop

import (
	"context"
	"fmt"
)

// changeOrderKey moves a numeric key far up or back again; lines and events
// follow by cascade.
func changeOrderKey(ctx context.Context, t *txn) error {
	id, found, err := t.pick(ctx, "orders", t.w.bounds.orders)
	if err != nil || !found {
		return err
	}
	return t.exec(ctx, `UPDATE orders SET id = CASE WHEN id < $2 THEN id + $2 ELSE id - $2 END WHERE id = $1`, id, shiftBy)
}

// changeCustomerKey gives a customer the next id: an identity column that is
// GENERATED ALWAYS can be set to nothing else.
func changeCustomerKey(ctx context.Context, t *txn) error {
	id, found, err := t.pick(ctx, "customers", t.w.bounds.customers)
	if err != nil || !found {
		return err
	}
	return t.exec(ctx, `UPDATE customers SET id = DEFAULT WHERE id = $1`, id)
}

func changeTextKey(ctx context.Context, t *txn) error {
	return t.exec(ctx, `
UPDATE vouchers SET code = 'V-' || md5(code), worth = worth + 1
WHERE code = (SELECT code FROM vouchers WHERE code >= 'V-' || md5($1) ORDER BY code LIMIT 1 FOR UPDATE SKIP LOCKED)`, t.text())
}

func changeUUIDKey(ctx context.Context, t *txn) error {
	cart, found, err := t.pickCart(ctx)
	if err != nil || !found {
		return err
	}
	return t.exec(ctx, `UPDATE carts SET id = gen_random_uuid() WHERE id = $1::text::uuid`, cart)
}

// changeCaseOfKey changes a key to one that is equal to it and yet another text.
func changeCaseOfKey(ctx context.Context, t *txn) error {
	return t.exec(ctx, `
UPDATE categories SET code = CASE WHEN code::text = lower(code::text) THEN upper(code::text) ELSE lower(code::text) END::citext
WHERE code = (SELECT code FROM categories WHERE code >= $1::text::citext ORDER BY code LIMIT 1 FOR UPDATE SKIP LOCKED)`,
		fmt.Sprintf("cat%d", t.rng.IntN(200)))
}

// pair locks two neighbouring rows of table.
func (t *txn) pair(ctx context.Context, table string, highest int64) (a, b int64, found bool, err error) {
	sql := fmt.Sprintf(`
SELECT min(id), max(id) FROM (SELECT id FROM %s WHERE id >= $1 ORDER BY id LIMIT 2 FOR UPDATE SKIP LOCKED) p HAVING count(*) = 2`, table)
	found, err = t.get(ctx, []any{&a, &b}, sql, t.key(highest))
	return a, b, found, err
}

// swapKeys exchanges the keys of two rows by way of a third value.
func swapKeys(ctx context.Context, t *txn) error {
	a, b, found, err := t.pair(ctx, "shelf_items", t.w.bounds.items)
	if err != nil || !found {
		return err
	}
	for _, move := range [][2]int64{{a, -a}, {b, a}, {-a, b}} {
		if err := t.exec(ctx, `UPDATE shelf_items SET id = $2 WHERE id = $1`, move[0], move[1]); err != nil {
			return err
		}
	}
	return nil
}

// shiftKeys moves the keys of many rows with one statement.
func shiftKeys(ctx context.Context, t *txn) error {
	var orders []int64
	_, err := t.get(ctx, []any{&orders}, `
SELECT coalesce(array_agg(id), '{}') FROM (SELECT id FROM orders WHERE id >= $1 ORDER BY id LIMIT 50 FOR UPDATE SKIP LOCKED) o`, t.key(t.w.bounds.orders))
	if err != nil {
		return err
	}
	err = t.exec(ctx, `UPDATE orders SET id = CASE WHEN id < $2 THEN id + $2 ELSE id - $2 END WHERE id = ANY ($1)`, orders, shiftBy)
	if err != nil {
		return err
	}
	return t.exec(ctx, `
UPDATE shelf_items SET id = CASE WHEN id < $3 THEN id + $3 ELSE id - $3 END
WHERE id IN (SELECT id FROM shelf_items WHERE id >= $1 ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED)`, t.key(t.w.bounds.items), t.many()/2, shiftBy)
}

// swapUnique exchanges two unique values with one statement; the constraint is
// checked after it, not row by row.
func swapUnique(ctx context.Context, t *txn) error {
	a, b, found, err := t.pair(ctx, "shelf_items", t.w.bounds.items)
	if err != nil || !found {
		return err
	}
	return t.exec(ctx, `
UPDATE shelf_items x SET shelf = y.shelf, position = y.position
FROM shelf_items y WHERE (x.id, y.id) IN (($1, $2), ($2, $1))`, a, b)
}

// shiftUnique moves the unique values of one shelf each to the row before; the
// constraint is checked at the commit. It leaves a shelf alone of which another
// writer holds a row: two that shift the same one would wait for each other.
func shiftUnique(ctx context.Context, t *txn) error {
	if err := t.exec(ctx, `SET CONSTRAINTS shelf_items_place DEFERRED`); err != nil {
		return err
	}
	return t.exec(ctx, `
WITH wanted AS MATERIALIZED (
  SELECT id FROM shelf_items WHERE shelf = (SELECT shelf FROM shelf_items WHERE id >= $1 ORDER BY id LIMIT 1)
), held AS MATERIALIZED (
  SELECT id FROM shelf_items WHERE id IN (SELECT id FROM wanted) FOR UPDATE SKIP LOCKED
)
UPDATE shelf_items SET position = position + 1
WHERE id IN (SELECT id FROM held) AND (SELECT count(*) FROM held) = (SELECT count(*) FROM wanted)`, t.key(t.w.bounds.items))
}

// passUniqueOn moves a unique value from one row to another and the other's
// back, with a null between: the constraint is checked at once.
func passUniqueOn(ctx context.Context, t *txn) error {
	a, b, found, err := t.pair(ctx, "lockers", t.w.bounds.lockers)
	if err != nil || !found {
		return err
	}
	var codeA, codeB *string
	if _, err := t.get(ctx, []any{&codeA, &codeB}, `SELECT a.code, b.code FROM lockers a, lockers b WHERE a.id = $1 AND b.id = $2`, a, b); err != nil {
		return err
	}
	if codeA == nil && codeB == nil {
		return t.exec(ctx, `UPDATE lockers SET code = 'code-' || $1, opened_on = current_date WHERE id = $2`, fmt.Sprintf("%x", t.rng.Uint64()), a)
	}
	for _, move := range []struct {
		id   int64
		code *string
	}{{a, nil}, {b, codeA}, {a, codeB}} {
		if err := t.exec(ctx, `UPDATE lockers SET code = $2 WHERE id = $1`, move.id, move.code); err != nil {
			return err
		}
	}
	return nil
}

// lockEvents selects events whose order no other writer is about to change:
// such a one would wait for the event, and the event's new row for the order.
const lockEvents = `
SELECT e.id, e.happened_at FROM order_events e JOIN orders o ON o.id = e.order_id
WHERE e.id >= $1 AND isfinite(e.happened_at) ORDER BY e.id LIMIT $2
FOR UPDATE OF e SKIP LOCKED FOR KEY SHARE OF o SKIP LOCKED`

// changePartition moves one row to the next month.
func changePartition(ctx context.Context, t *txn) error {
	return t.exec(ctx, `
UPDATE order_events e SET detail = jsonb_build_object('moved', true),
  happened_at = CASE WHEN e.happened_at < '2025-05-15' THEN e.happened_at + interval '1 month' ELSE e.happened_at - interval '5 months' END
FROM (`+lockEvents+`) p WHERE (e.id, e.happened_at) = (p.id, p.happened_at)`, t.key(t.w.bounds.events), 1)
}

// changePartitions moves many rows to another partition, and key with them.
func changePartitions(ctx context.Context, t *txn) error {
	return t.exec(ctx, `
UPDATE order_events e SET id = nextval('order_events_id_seq'), happened_at = timestamptz '2025-01-01' + (e.id % 170) * interval '1 day'
FROM (`+lockEvents+`) p WHERE (e.id, e.happened_at) = (p.id, p.happened_at)`, t.key(t.w.bounds.events), t.many()/4)
}

func changeDateKey(ctx context.Context, t *txn) error {
	return t.exec(ctx, `
UPDATE delivery_slots SET day = day + 1, slot = slot + 1, courier = NULL
WHERE (day, slot) = (SELECT day, slot FROM delivery_slots WHERE day >= date '2025-01-01' + $1::int ORDER BY day, slot LIMIT 1 FOR UPDATE SKIP LOCKED)`, t.rng.IntN(900))
}

// changeNamelessKey changes the unique columns of the table without a primary key.
func changeNamelessKey(ctx context.Context, t *txn) error {
	return t.exec(ctx, `
UPDATE price_history SET valid_from = valid_from - interval '1 second', product_id = 1 + $1::bigint % $2
WHERE (product_id, valid_from) = (SELECT product_id, valid_from FROM price_history WHERE product_id >= $1 ORDER BY product_id, valid_from LIMIT 1 FOR UPDATE SKIP LOCKED)`,
		t.rng.Int64N(t.w.bounds.products), t.w.bounds.products)
}
