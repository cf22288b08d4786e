package shop

import (
	"fmt"
	"strings"
)

// expandCounts replaces each {table} in sql by that table's row count.
func expandCounts(sql string, counts map[string]int) string {
	pairs := make([]string, 0, 2*len(counts))
	for table, n := range counts {
		pairs = append(pairs, "{"+table+"}", fmt.Sprint(n))
	}
	return strings.NewReplacer(pairs...).Replace(sql)
}

// seedSteps fills the tables, parents before children.
var seedSteps = []seedStep{
	{"customers", 25_000, 100, `
INSERT INTO customers (id, email, name, address, location, referred_by, preferences, last_ip,
  networks, credit, rating, member_until, born_on, created_at, updated_at) OVERRIDING SYSTEM VALUE
SELECT i, 'c' || i || '@Example.com',
  (ARRAY['Ada','Zoë','Søren','李雷','O''Neil','Tab' || chr(9) || 'bed','back\slash'])[1 + i % 7] || ' ' || md5(i::text),
  CASE WHEN i % 11 > 0 THEN ROW('Street "' || i || '", flat (2)', 'City ' || i % 97, lpad((i % 99999)::text, 5, '0'), 'SE')::postal_address END,
  CASE WHEN i % 4 = 0 THEN point(i / 7.0, -i / 3.0) END,
  CASE WHEN i % 5 = 0 THEN 1 + i / 2 % greatest(i - 1, 1) END,
  jsonb_build_object('theme', md5((i % 50)::text), 'n', i, 'tags', jsonb_build_array(i % 3, NULL, 'x')),
  CASE WHEN i % 3 > 0 THEN '10.0.0.0'::inet + i END,
  CASE WHEN i % 6 = 0 THEN ARRAY['10.1.0.0/16', '2001:db8::/32']::cidr[] END,
  (i % 100000) / 100.0,
  CASE i % 500 WHEN 1 THEN 'NaN' WHEN 2 THEN 'Infinity' WHEN 3 THEN '-0' ELSE i / 3.0 END,
  CASE WHEN i % 9 = 0 THEN '2031-05-06 07:08:09.123456+00' WHEN i % 900 = 1 THEN '-infinity' ELSE 'infinity' END::timestamptz,
  CASE WHEN i % 700 = 0 THEN 'infinity' WHEN i % 701 = 0 THEN '0044-03-15 BC' ELSE date '1950-01-01' + i % 20000 END,
  timestamptz '2024-01-01' + i * interval '17 minutes', timestamptz '2024-06-01' + i * interval '3 minutes'
FROM generate_series(1, $1::int) i`},
	{"products", 4_000, 60, `
INSERT INTO products (id, sku, title, description, price, tags, sizes, labels, warranty, age_range,
  document, thumbnail, flags, updated_at)
SELECT i, chr(65 + i % 26) || chr(65 + i / 26 % 26) || '-' || lpad(i::text, 6, '0'), 'Product ' || md5(i::text),
  CASE WHEN i % 4 = 0 THEN (SELECT string_agg(md5(i || '/' || g), E'\n') FROM generate_series(1, 40 + i % 300) g) END,
  (i * 37 % 50000) / 100.0,
  (ARRAY['new','sale','fragile','heavy','gift']::product_tag[])[1 + i % 3 : i % 5],
  CASE WHEN i % 3 = 0 THEN ARRAY[i / 7.0, NULL, 'NaN'] END,
  CASE WHEN i % 5 = 0 THEN ARRAY['', 'NULL', 'a,b', '{"x"}', 'ü\'] WHEN i % 5 = 1 THEN '{}' END,
  CASE WHEN i % 2 = 0 THEN make_interval(months => i % 40, days => i % 7, secs => i / 10.0) END,
  CASE i % 4 WHEN 0 THEN int4range(i % 10, NULL) WHEN 1 THEN 'empty' WHEN 2 THEN int4range(3, 12, '[]') END,
  CASE WHEN i % 3 = 0 THEN jsonb_build_object('brand', 'B' || i % 40, 'pages',
    (SELECT jsonb_agg(jsonb_build_object('k', g, 'v', md5(g || '-' || i))) FROM generate_series(1, 20 + i % 200) g))
    WHEN i % 3 = 1 THEN 'null' END,
  CASE WHEN i % 8 = 0 THEN (SELECT string_agg(decode(md5(i || '.' || g), 'hex'), '') FROM generate_series(1, 300) g) END,
  (i % 65536)::bit(16)::bit varying(16), timestamptz '2025-01-01' + i * interval '1 minute'
FROM generate_series(1, $1::int) i`},
	{"categories", 200, 20, `
INSERT INTO categories (code, parent, caption)
SELECT CASE WHEN i % 2 = 0 THEN 'Cat' ELSE 'CAT' END || i, CASE WHEN i > 5 THEN 'cat' || i / 5 END, 'Category ' || i
FROM generate_series(1, $1::int) i`},
	{"product_categories", 12_000, 150, `
INSERT INTO product_categories (product_id, category_code, weight)
SELECT 1 + i % {products}, 'cat' || 1 + (i / {products} * 7 + i) % {categories}, (i % 100) / 7.0
FROM generate_series(1, $1::int) i ON CONFLICT DO NOTHING`},
	{"price_history", 16_000, 200, `
INSERT INTO price_history (product_id, valid_from, price, reason)
SELECT 1 + i % {products}, timestamp '2024-01-01' + i / {products} * interval '40 days' + i * interval '1 second',
  CASE WHEN i % 1000 = 0 THEN 'NaN' WHEN i % 13 > 0 THEN i / 17.0 END, CASE WHEN i % 3 = 0 THEN 'season ' || i % 4 END
FROM generate_series(1, $1::int) i`},
	{"carts", 8_000, 80, `
INSERT INTO carts (id, customer_id, payload, opened_at)
SELECT md5('cart' || i)::uuid, CASE WHEN i % 10 > 0 THEN 1 + i * 31 % {customers} END,
  CASE WHEN i % 3 = 0 THEN ('{"b": ' || i || ',   "a":1, "a":2}')::json END, timestamptz '2025-02-01' + i * interval '5 minutes'
FROM generate_series(1, $1::int) i`},
	{"cart_items", 20_000, 200, `
INSERT INTO cart_items (cart_id, line, product_id, quantity)
SELECT md5('cart' || 1 + i % {carts})::uuid, 1 + i / {carts}, 1 + i * 13 % {products}, 1 + i % 9
FROM generate_series(1, $1::int) i`},
	{"orders", 50_000, 400, `
INSERT INTO orders (id, customer_id, status, total, invoice, note, placed_at, updated_at)
SELECT i, CASE WHEN i % 20 > 0 THEN 1 + i * 17 % {customers} END,
  (enum_range(NULL::order_status))[1 + i * 7 % 6], (i * 41 % 90000) / 100.0, CASE WHEN i % 2 = 0 THEN 1000 + i * 5 END,
  CASE i % 50 WHEN 0 THEN 'ring twice' || chr(10) || 'then wait' WHEN 1 THEN '' END,
  timestamptz '2025-01-01' + i * interval '3 minutes', timestamptz '2025-01-02' + i * interval '3 minutes'
FROM generate_series(1, $1::int) i`},
	{"order_lines", 100_000, 800, `
INSERT INTO order_lines (order_id, line, product_id, quantity, unit_price)
SELECT 1 + i % {orders}, 1 + i / {orders}, 1 + i * 11 % {products}, 1 + i % 5, (i * 37 % 50000) / 100.0
FROM generate_series(1, $1::int) i`},
	{"order_events", 60_000, 500, `
INSERT INTO order_events (id, happened_at, order_id, kind, detail)
SELECT i, CASE WHEN i % 5000 = 0 THEN 'infinity' ELSE timestamptz '2024-12-20' + (i * 7919::bigint % 190000) * interval '1 minute' END,
  1 + i * 3 % {orders}, (ARRAY['placed','paid','packed','sent'])[1 + i % 4], CASE WHEN i % 3 = 0 THEN jsonb_build_object('by', i % 77, 'ok', true) END
FROM generate_series(1, $1::int) i`},
	{"stock_levels", 8_000, 100, `
INSERT INTO stock_levels (product_id, warehouse, quantity)
SELECT 1 + i % {products}, 'W' || i / {products}, i FROM generate_series(1, $1::int) i`},
	{"stock_movements", 25_000, 2_500, `
INSERT INTO stock_movements (id, product_id, warehouse, change, factor, moved_at)
SELECT i, 1 + i % {products}, 'W' || i % 3, i % 41 - 20, CASE WHEN i % 4 = 0 THEN 1.0 / i END,
  timestamp '2025-03-01' + i * interval '1.003 minutes'
FROM generate_series(1, $1::int) i`},
	{"shelf_items", 8_000, 1_000, `
INSERT INTO shelf_items (id, shelf, position, label)
SELECT i, i / 100, i % 100, md5(i::text) FROM generate_series(1, $1::int) i`},
	{"lockers", 400, 40, `
INSERT INTO lockers (id, code) SELECT 2 * i - 1, CASE WHEN i % 4 > 0 THEN 'code-' || i END FROM generate_series(1, $1::int) i`},
	{"vouchers", 3_000, 200, `
INSERT INTO vouchers (code, worth, validity, used_by)
SELECT 'V-' || md5(i::text), i / 4.0, tstzrange(timestamptz '2025-01-01' + i * interval '1 hour', CASE WHEN i % 3 > 0 THEN timestamptz '2026-01-01' END, '[)'),
  CASE WHEN i % 4 = 0 THEN 1 + i % {customers} END
FROM generate_series(1, $1::int) i`},
	{"delivery_slots", 1_500, 150, `
INSERT INTO delivery_slots (day, slot, minutes, courier)
SELECT date '2025-01-01' + i / 8, i % 8, int4range(i * 60, i * 60 + 45), CASE WHEN i % 3 > 0 THEN 'courier ' || i % 12 END
FROM generate_series(1, $1::int) i`},
	{"exchange_rates", 30, 30, `
INSERT INTO exchange_rates (currency, rate, fetched)
SELECT 'X' || chr(65 + i % 26) || i % 3, 1 + i / 7.0, timestamptz '2025-05-01' FROM generate_series(1, $1::int) i`},
	{"page_views", 12_000, 200, `
INSERT INTO page_views (path, viewer, viewed_at)
SELECT '/p/' || i % 400, '192.168.0.0'::inet + i % 60000, timestamptz '2025-05-01' + i * interval '2 seconds' FROM generate_series(1, $1::int) i`},
	{"support_notes", 3_000, 60, `
INSERT INTO support_notes (customer_id, author, body)
SELECT 1 + i * 3 % {customers}, CASE WHEN i % 2 = 0 THEN current_user ELSE 'somebody else' END, repeat(md5(i::text) || ' ', 1 + i % 30)
FROM generate_series(1, $1::int) i`},
	{"\"BackOffice\".\"Order\"", 6_000, 100, `
INSERT INTO "BackOffice"."Order" ("Id", "select", "Level", "Say ""hi""", "customer")
SELECT i, 'from ' || i, (enum_range(NULL::"BackOffice"."Level"))[1 + i % 3], CASE WHEN i % 2 = 0 THEN ARRAY['hi', NULL, 'say "hi"'] END, 1 + i * 5 % {customers}
FROM generate_series(1, $1::int) i`},
	{"\"BackOffice\".\"Order Line\"", 9_000, 150, `
INSERT INTO "BackOffice"."Order Line" ("Order", "No.", "user")
SELECT 1 + i % {"BackOffice"."Order"}, 1 + i / {"BackOffice"."Order"}, 'user ' || i % 9 FROM generate_series(1, $1::int) i`},
}
