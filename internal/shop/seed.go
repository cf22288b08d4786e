package shop

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Schema is the shop's schema as an SQL script.
//
//go:embed schema.sql
var Schema string

// Install creates the shop's schema in one transaction. The database must not
// hold it yet.
func Install(ctx context.Context, conn *pgx.Conn) error {
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, Schema)
		return err
	})
	if err != nil {
		return fmt.Errorf("shop: install schema: %w", err)
	}
	return nil
}

// shiftBy is how far a key change moves a numeric key. Seeded keys stay below.
const shiftBy = 1_000_000

// seedStep fills one table. The statement may use $1, the number of rows
// wanted, and {table}, the number of rows another step wants.
type seedStep struct {
	table string
	rows  int // at scale 1
	min   int // at any scale
	sql   string
}

// Seed fills an installed, empty shop and reports how many rows it inserted,
// those that triggers added included. Scale 1 makes about 400,000 rows. Equal
// scales make equal rows, apart from the ids and times that triggers assign.
func Seed(ctx context.Context, conn *pgx.Conn, scale float64) (rows int64, err error) {
	if scale <= 0 {
		return 0, fmt.Errorf("shop: seed: scale %v is not positive", scale)
	}
	counts := make(map[string]int, len(seedSteps))
	for _, step := range seedSteps {
		counts[step.table] = max(step.min, int(float64(step.rows)*scale))
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		// The seeded times and texts must not depend on the role's settings.
		if _, err := tx.Exec(ctx, `SET LOCAL TIME ZONE 'UTC'; SET LOCAL extra_float_digits = 1`); err != nil {
			return err
		}
		for _, step := range seedSteps {
			tag, err := tx.Exec(ctx, expandCounts(step.sql, counts), pgx.QueryExecModeExec, counts[step.table])
			if err != nil {
				return fmt.Errorf("%s: %w", step.table, err)
			}
			rows += tag.RowsAffected()
		}
		var fromTriggers int64
		if err := tx.QueryRow(ctx, `SELECT (SELECT count(*) FROM shop.audit_log) + (SELECT count(*) FROM shop.stock_journal)`).Scan(&fromTriggers); err != nil {
			return err
		}
		rows += fromTriggers
		_, err := tx.Exec(ctx, finishSeed)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("shop: seed: %w", err)
	}
	if _, err := conn.Exec(ctx, `ANALYZE`); err != nil {
		return rows, fmt.Errorf("shop: analyze: %w", err)
	}
	return rows, nil
}

// finishSeed moves the sequences past the explicit ids of the seed.
const finishSeed = `
SELECT setval(pg_get_serial_sequence('customers', 'id'), (SELECT max(id) FROM customers));
SELECT setval(pg_get_serial_sequence('orders', 'id'), (SELECT max(id) FROM orders));
SELECT setval(pg_get_serial_sequence('products', 'id'), (SELECT max(id) FROM products));
SELECT setval(pg_get_serial_sequence('shelf_items', 'id'), (SELECT max(id) FROM shelf_items));
SELECT setval(pg_get_serial_sequence('stock_movements', 'id'), (SELECT max(id) FROM stock_movements));
SELECT setval(pg_get_serial_sequence('lockers', 'id'), (SELECT max(id) FROM lockers));
SELECT setval(pg_get_serial_sequence('"BackOffice"."Order"', 'Id'), (SELECT max("Id") FROM "BackOffice"."Order"));
SELECT setval('order_events_id_seq', (SELECT max(id) FROM order_events));
SELECT setval('shop.invoice_number', (SELECT max(invoice) FROM orders));
REFRESH MATERIALIZED VIEW shop.daily_sales;
`
