package shop

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// operation is one kind of transaction.
type operation struct {
	name   string
	weight int
	run    func(ctx context.Context, t *txn) error
}

// deck is the mix a writer draws from.
type deck struct {
	operations []operation
	total      int
}

// newDeck is the mix that opts ask for.
func newDeck(opts Options) deck {
	ops := []operation{
		{"insert customer", 40, insertCustomer},
		{"update customer", 40, updateCustomer},
		{"delete customer", 6, deleteCustomer},
		{"place order", 80, placeOrder},
		{"advance order", 60, advanceOrder},
		{"delete order", 25, deleteOrder},
		{"change price", 40, changePrice},
		{"edit document", 20, editDocument},
		{"fill cart", 40, fillCart},
		{"archive cart", 20, archiveCart},
		{"replace row", 15, replaceRow},
		{"short life", 15, shortLife},
		{"deferred check", 10, deferredCheck},
		{"back office", 30, backOffice},
		{"delivery slot", 25, deliverySlot},
		{"sequences", 20, useSequences},
		{"upsert", 40, upsertStock},
		{"merge", 25, mergeStock},
		{"bulk insert", 5, bulkInsert},
		{"bulk update", 5, bulkUpdate},
		{"bulk delete", 9, bulkDelete},
		{"copy", 6, copyIn},
		{"savepoint", 20, savepoint},
		{"rollback", 20, rollback},
	}
	if opts.MaxHold > 0 {
		ops = append(ops, operation{"hold open", 3, holdOpen})
	}
	if opts.KeyChanges {
		ops = append(ops,
			operation{"change order key", 20, changeOrderKey},
			operation{"change customer key", 6, changeCustomerKey},
			operation{"change text key", 20, changeTextKey},
			operation{"change uuid key", 12, changeUUIDKey},
			operation{"change case of key", 8, changeCaseOfKey},
			operation{"swap keys", 20, swapKeys},
			operation{"shift keys", 4, shiftKeys},
			operation{"swap unique", 20, swapUnique},
			operation{"shift unique", 12, shiftUnique},
			operation{"pass unique on", 25, passUniqueOn},
			operation{"change partition", 25, changePartition},
			operation{"change partitions", 3, changePartitions},
			operation{"change date key", 15, changeDateKey},
			operation{"change nameless key", 15, changeNamelessKey},
		)
	}
	if opts.Truncate {
		ops = append(ops, operation{"truncate", 3, truncateRates})
	}
	d := deck{operations: ops}
	for _, op := range ops {
		d.total += op.weight
	}
	return d
}

// OperationNames lists the operations that writers with opts mix.
func OperationNames(opts Options) []string {
	var names []string
	for _, op := range newDeck(opts.withDefaults()).operations {
		names = append(names, op.name)
	}
	return names
}

// draw takes an operation at random, by weight.
func (d *deck) draw(rng *rand.Rand) *operation {
	n := rng.IntN(d.total)
	for i := range d.operations {
		if n -= d.operations[i].weight; n < 0 {
			return &d.operations[i]
		}
	}
	return &d.operations[0]
}

func insertCustomer(ctx context.Context, t *txn) error {
	return t.exec(ctx, `
INSERT INTO customers (email, name, address, location, referred_by, preferences, last_ip, credit, rating, member_until)
VALUES (gen_random_uuid() || '@new.example', $3, ROW('A "street", (2)', NULL, '', 'DK'), point(random(), 1e-300),
  (SELECT id FROM customers WHERE id >= $2 ORDER BY id LIMIT 1), jsonb_build_object('note', $1::text, 'none', NULL),
  '2001:db8::1', 1.5, 'NaN', CASE WHEN random() < 0.5 THEN '-infinity' ELSE clock_timestamp() END)`,
		t.text(), t.key(t.w.bounds.customers), t.name())
}

func updateCustomer(ctx context.Context, t *txn) error {
	id, found, err := t.pick(ctx, "customers", t.w.bounds.customers)
	if err != nil || !found {
		return err
	}
	return t.exec(ctx, `
UPDATE customers SET name = $2, credit = credit + 0.01, address.city = 'City ' || $1::bigint,
  preferences = preferences || jsonb_build_object('seen', clock_timestamp()), member_until = 'infinity' WHERE id = $1`, id, t.name())
}

// deleteCustomer cascades to carts, notes and the back office, and empties
// references in orders, vouchers and other customers.
func deleteCustomer(ctx context.Context, t *txn) error {
	id, found, err := t.pick(ctx, "customers", t.w.bounds.customers)
	if err != nil || !found {
		return err
	}
	return t.exec(ctx, `DELETE FROM customers WHERE id = $1`, id)
}

func placeOrder(ctx context.Context, t *txn) error {
	var id int64
	_, err := t.get(ctx, []any{&id}, `
INSERT INTO orders (customer_id, invoice, note)
VALUES ((SELECT id FROM customers WHERE id >= $1 ORDER BY id LIMIT 1), nextval('shop.invoice_number'), $2) RETURNING id`,
		t.key(t.w.bounds.customers), t.text())
	if err != nil {
		return err
	}
	t.rows++
	err = t.exec(ctx, `
INSERT INTO order_lines (order_id, line, product_id, quantity, unit_price)
SELECT $1, row_number() OVER (ORDER BY id), id, 1 + id % 3, price FROM (SELECT id, price FROM products WHERE id >= $2 ORDER BY id LIMIT $3) p`,
		id, t.rng.Int64N(t.w.bounds.products), 1+t.rng.IntN(4))
	if err != nil {
		return err
	}
	return t.execAll(ctx, []any{id},
		`UPDATE orders SET total = coalesce((SELECT sum(amount) FROM order_lines WHERE order_id = $1), 0) WHERE id = $1`,
		`INSERT INTO order_events (happened_at, order_id, kind) VALUES (timestamptz '2025-01-01' + random() * interval '150 days', $1, 'placed')`)
}

func advanceOrder(ctx context.Context, t *txn) error {
	id, found, err := t.pick(ctx, "orders", t.w.bounds.orders)
	if err != nil || !found {
		return err
	}
	return t.execAll(ctx, []any{id},
		`UPDATE orders SET status = (enum_range(NULL::order_status))[1 + floor(random() * 6)::int] WHERE id = $1`,
		`UPDATE order_lines SET quantity = 1 + (quantity + 1) % 7 WHERE order_id = $1`,
		`INSERT INTO order_events (happened_at, order_id, kind, detail) VALUES (clock_timestamp(), $1, 'advanced', '{"by": "writer"}')`)
}

func deleteOrder(ctx context.Context, t *txn) error {
	id, found, err := t.pick(ctx, "orders", t.w.bounds.orders)
	if err != nil || !found {
		return err
	}
	return t.exec(ctx, `DELETE FROM orders WHERE id = $1`, id)
}

// changePrice leaves the TOASTed columns of the product alone.
func changePrice(ctx context.Context, t *txn) error {
	id, found, err := t.pick(ctx, "products", t.w.bounds.products)
	if err != nil || !found {
		return err
	}
	return t.execAll(ctx, []any{id},
		`UPDATE products SET price = round((price * 7 + 13) % 500, 2), tags = array_append(tags[1:3], 'sale') WHERE id = $1`,
		`INSERT INTO price_history (product_id, valid_from, price) SELECT id, clock_timestamp()::timestamp, price FROM products WHERE id = $1`,
		`DELETE FROM price_history WHERE product_id = $1 AND valid_from = (SELECT min(valid_from) FROM price_history WHERE product_id = $1)`)
}

func editDocument(ctx context.Context, t *txn) error {
	id, found, err := t.pick(ctx, "products", t.w.bounds.products)
	if err != nil || !found {
		return err
	}
	return t.exec(ctx, `
UPDATE products SET document = CASE WHEN jsonb_typeof(document) = 'object' THEN jsonb_set(document, '{edited}', to_jsonb($2::text)) ELSE '[]' END,
  title = 'Product ' || md5($2), thumbnail = decode(md5($2), 'hex'), labels = ARRAY[$2, NULL, ''], warranty = '1 mon -2 days',
  age_range = int4range($1 % 9, 12) WHERE id = $1`, int32(id), t.text())
}

func fillCart(ctx context.Context, t *txn) error {
	var cart string
	_, err := t.get(ctx, []any{&cart}, `
INSERT INTO carts (customer_id, payload) VALUES ((SELECT id FROM customers WHERE id >= $1 ORDER BY id LIMIT 1), '{"a" : 1}') RETURNING id::text`,
		t.key(t.w.bounds.customers))
	if err != nil {
		return err
	}
	t.rows++
	return t.exec(ctx, `
INSERT INTO cart_items (cart_id, line, product_id, quantity)
SELECT $1::text::uuid, row_number() OVER (), id, 2 FROM (SELECT id FROM products WHERE id >= $2 ORDER BY id LIMIT 3) p`, cart, t.rng.Int64N(t.w.bounds.products))
}

// archiveCart moves rows in one statement that changes two tables.
func archiveCart(ctx context.Context, t *txn) error {
	cart, found, err := t.pickCart(ctx)
	if err != nil || !found {
		return err
	}
	return t.execAll(ctx, []any{cart}, `
WITH moved AS (DELETE FROM cart_items WHERE cart_id = $1::text::uuid RETURNING *)
INSERT INTO cart_archive (cart_id, line, contents) SELECT cart_id, line, to_jsonb(moved) FROM moved`,
		`DELETE FROM carts WHERE id = $1::text::uuid`)
}

func (t *txn) pickCart(ctx context.Context) (id string, found bool, err error) {
	found, err = t.get(ctx, []any{&id}, `SELECT id::text FROM carts WHERE id >= gen_random_uuid() ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED`)
	return id, found, err
}

// replaceRow deletes a row and inserts its key anew in the same transaction.
func replaceRow(ctx context.Context, t *txn) error {
	id, found, err := t.pick(ctx, "shelf_items", t.w.bounds.items)
	if err != nil || !found {
		return err
	}
	var shelf, position int
	if _, err := t.get(ctx, []any{&shelf, &position}, `DELETE FROM shelf_items WHERE id = $1 RETURNING shelf, position`, id); err != nil {
		return err
	}
	t.rows++
	return t.exec(ctx, `INSERT INTO shelf_items (id, shelf, position, label) VALUES ($1, $2, $3, 'replaced')`, id, shelf, position)
}

// shortLife inserts, changes twice and deletes a row in one transaction.
func shortLife(ctx context.Context, t *txn) error {
	return t.execAll(ctx, []any{fmt.Sprintf("short-%d-%x", t.number, t.rng.Uint64())},
		`INSERT INTO vouchers (code, validity) VALUES ($1, 'empty')`,
		`UPDATE vouchers SET worth = 1 WHERE code = $1`,
		`UPDATE vouchers SET worth = 'NaN', validity = '(,)' WHERE code = $1`,
		`DELETE FROM vouchers WHERE code = $1`)
}

// deferredCheck inserts a child before its parent.
func deferredCheck(ctx context.Context, t *txn) error {
	return t.execAll(ctx, []any{fmt.Sprintf("New%d-%x", t.number, t.rng.Uint32())},
		`INSERT INTO categories (code, parent, caption) VALUES ($1 || '/child', upper($1), 'before its parent')`,
		`INSERT INTO categories (code, caption) VALUES ($1, 'after its child')`,
		`INSERT INTO product_categories (product_id, category_code) SELECT min(id), lower($1) FROM products HAVING min(id) IS NOT NULL`)
}

func backOffice(ctx context.Context, t *txn) error {
	var id int64
	found, err := t.get(ctx, []any{&id}, `SELECT "Id" FROM "BackOffice"."Order" WHERE "Id" >= $1 ORDER BY "Id" LIMIT 1 FOR UPDATE SKIP LOCKED`, t.key(t.w.bounds.backOffice))
	if err != nil {
		return err
	}
	err = t.exec(ctx, `
INSERT INTO "BackOffice"."Order" ("select", "Level", "Say ""hi""", "customer")
VALUES ($1, 'it''s urgent', ARRAY[$1, NULL], (SELECT id FROM public.customers WHERE id >= $2 ORDER BY id LIMIT 1))`, t.text(), t.key(t.w.bounds.customers))
	if err != nil || !found {
		return err
	}
	if id%3 == 0 {
		return t.exec(ctx, `DELETE FROM "BackOffice"."Order" WHERE "Id" = $1`, id)
	}
	if err := t.exec(ctx, `SET CONSTRAINTS ALL DEFERRED`); err != nil {
		return err
	}
	return t.execAll(ctx, []any{id},
		`CALL "BackOffice"."Rename Order"($1, 'renamed')`,
		`INSERT INTO "BackOffice"."Order Line" ("Order", "No.", "user") VALUES ($1, 100, 'w') ON CONFLICT ("Order", "No.") DO UPDATE SET "user" = 'again'`)
}

func deliverySlot(ctx context.Context, t *txn) error {
	n := 200_000 + t.rng.Int64N(2_000_000)
	err := t.exec(ctx, `
INSERT INTO delivery_slots (day, slot, minutes) VALUES (date '2026-01-01' + ($1 % 900)::int, 100 + ($1 / 900)::int, int4range(($1 * 10)::int, ($1 * 10 + 10)::int))
ON CONFLICT DO NOTHING`, n)
	if err != nil || n%2 == 0 {
		return err
	}
	return t.exec(ctx, `
DELETE FROM delivery_slots WHERE (day, slot) = (SELECT day, slot FROM delivery_slots WHERE day >= date '2026-01-01' + ($1::bigint % 900)::int ORDER BY day, slot LIMIT 1)`, n)
}

func useSequences(ctx context.Context, t *txn) error {
	return t.exec(ctx, `SELECT nextval('shop.invoice_number'), nextval('shop.ticket_wheel'), nextval('shop.countdown'), lastval()`)
}

// holdOpen leaves its transaction open for a while. It holds only rows that
// other operations skip or do not use.
func holdOpen(ctx context.Context, t *txn) error {
	id, found, err := t.pick(ctx, "support_notes", 1000)
	if err != nil {
		return err
	}
	if found {
		if err := t.exec(ctx, `UPDATE support_notes SET body = $2 WHERE id = $1`, id, t.text()); err != nil {
			return err
		}
	}
	if err := t.exec(ctx, `INSERT INTO support_notes (body) VALUES ($1)`, t.text()); err != nil {
		return err
	}
	shortest := min(100*time.Millisecond, t.w.opts.MaxHold)
	t.w.pause(ctx, shortest+time.Duration(t.rng.Int64N(int64(t.w.opts.MaxHold-shortest)+1)))
	return t.exec(ctx, `INSERT INTO page_views (path, viewer) VALUES ('/held', '::1')`)
}
