package foreign

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Filler writes rows into tables that it does not know. It finds values by type, from foreign keys and from the
// literals of CHECK constraints, and tries again with others when the server refuses a row. A session of the
// application's role writes, so that triggers and constraints act.
type Filler struct {
	conn   *pgx.Conn
	random *rand.Rand
	tables []*table
	serial int

	// Refused holds the last refusal of each table that took no row.
	Refused map[string]string
}

// NewFiller reads the catalog. The same seed makes the same choices.
func NewFiller(ctx context.Context, conn *pgx.Conn, seed uint64) (*Filler, error) {
	random := rand.New(rand.NewPCG(seed, seed)) //nolint:gosec // repeatable
	f := &Filler{conn: conn, random: random, Refused: map[string]string{}}
	var err error
	f.tables, err = readAll(ctx, conn)
	f.serial = int(seed%1000) * 1000
	return f, err
}

// Tables is the number of tables that rows can go to.
func (f *Filler) Tables() int { return len(f.tables) }

// Fill inserts that many rows into every table, parents first, and returns how many there were.
func (f *Filler) Fill(ctx context.Context, rows int) (total int, err error) {
	done := map[uint32]bool{}
	for range 6 { // more passes than one: what a row refers to may come late
		progress := false
		for _, t := range f.tables {
			if done[t.oid] {
				continue
			}
			n, err := f.fillTable(ctx, t, rows)
			if err != nil {
				return total, err
			}
			if total += n; n > 0 {
				done[t.oid], progress = true, true
				delete(f.Refused, t.name)
			}
		}
		if !progress {
			break
		}
	}
	return total, nil
}

// Churn inserts a row into about one table of every, updates and deletes rows there, and returns how many statements
// took.
func (f *Filler) Churn(ctx context.Context, every int) (taken int, err error) {
	for _, t := range f.tables {
		if f.random.IntN(every) > 0 {
			continue
		}
		n, err := f.fillTable(ctx, t, 1)
		if err != nil {
			return taken, err
		}
		taken += n
		statements := []string{fmt.Sprintf(
			`DELETE FROM %[1]s WHERE ctid = (SELECT ctid FROM ONLY %[1]s ORDER BY random() LIMIT 1)`, t.name)}
		for _, c := range t.columns {
			if !c.generated && !c.serial && !f.inKey(t, c.name) {
				statements = append(statements, fmt.Sprintf(`UPDATE %[1]s SET %[2]s = %[3]s
					WHERE ctid = (SELECT ctid FROM ONLY %[1]s ORDER BY random() LIMIT 1)`, t.name, c.name, f.value(&c)))
			}
		}
		for _, sql := range statements {
			ok, _, err := f.try(ctx, sql)
			if err != nil {
				return taken, err
			}
			if ok {
				taken++
			}
		}
	}
	return taken, nil
}

func (f *Filler) inKey(t *table, name string) bool {
	return slices.ContainsFunc(t.keys, func(k foreignKey) bool { return slices.Contains(k.columns, name) })
}

func (f *Filler) fillTable(ctx context.Context, t *table, rows int) (int, error) {
	inserted := 0
	for range rows {
		for attempt := range 12 {
			sql, missing, err := f.insert(ctx, t, attempt)
			if err != nil {
				return inserted, err
			}
			if missing != "" {
				f.Refused[t.name] = "refers to a table without rows: " + missing
				return inserted, nil
			}
			ok, refusal, err := f.try(ctx, sql)
			if err != nil {
				return inserted, err
			}
			if ok {
				inserted++
				break
			}
			f.Refused[t.name] = refusal
			if inserted > 0 && attempt > 4 {
				break
			}
		}
		if inserted == 0 {
			break
		}
	}
	if inserted > 0 {
		clear(t.tuples)
	}
	return inserted, nil
}

// try runs one statement, which the server may refuse.
func (f *Filler) try(ctx context.Context, sql string) (ok bool, refusal string, err error) {
	_, err = f.conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
	var refused *pgconn.PgError
	if errors.As(err, &refused) && !strings.HasPrefix(refused.Code, "57P") {
		return false, refused.Code + " " + refused.Message, nil
	}
	return err == nil, "", err
}

// insert makes a statement. What it refers to may have no rows: missing names it.
func (f *Filler) insert(ctx context.Context, t *table, attempt int) (sql, missing string, err error) {
	fixed := map[string]string{}
	if len(t.bounds) > 0 && attempt < 10 {
		maps.Copy(fixed, t.bounds[f.random.IntN(len(t.bounds))])
	}
	nulls := []float64{0.3, 0, 0.9, 0.5}[attempt%4]
	for _, k := range t.keys {
		parent := f.byOID(k.parent)
		if parent == nil {
			continue
		}
		tuples, err := f.tuplesOf(ctx, parent, k.referred)
		if err != nil {
			return "", "", err
		}
		optional := slices.ContainsFunc(t.columns, func(c column) bool {
			return slices.Contains(k.columns, c.name) && !c.notNull
		})
		switch {
		case len(tuples) > 0 && (!optional || f.random.Float64() >= nulls):
			tuple := tuples[f.random.IntN(len(tuples))]
			for i, c := range k.columns {
				if _, set := fixed[c]; !set || fixed[c] == "NULL" {
					fixed[c] = tuple[i]
				}
			}
		case optional:
			for _, c := range t.columns {
				if _, set := fixed[c.name]; !set && slices.Contains(k.columns, c.name) && !c.notNull {
					fixed[c.name] = "NULL"
				}
			}
		case k.parent != t.oid:
			return "", parent.name, nil
		}
	}
	var names, values []string
	for i := range t.columns {
		c := &t.columns[i]
		v, set := fixed[c.name]
		switch {
		case c.generated, !set && c.serial, !set && c.hasDefault && f.random.IntN(4) > 0:
			continue
		case !set && !c.notNull && f.random.Float64() < nulls:
			continue
		case !set:
			v = f.value(c)
		}
		names, values = append(names, c.name), append(values, v)
	}
	if len(names) == 0 {
		return fmt.Sprintf("INSERT INTO %s DEFAULT VALUES", t.name), "", nil
	}
	return fmt.Sprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE VALUES (%s)", t.name, strings.Join(names, ", "),
		strings.Join(values, ", ")), "", nil
}

func (f *Filler) byOID(oid uint32) *table {
	for _, t := range f.tables {
		if t.oid == oid {
			return t
		}
	}
	return nil
}

// tuplesOf returns values that a foreign key may refer to.
func (f *Filler) tuplesOf(ctx context.Context, t *table, columns []string) ([][]string, error) {
	key := strings.Join(columns, ",")
	if list, ok := t.tuples[key]; ok {
		return list, nil
	}
	cast := make([]string, len(columns))
	for i, c := range columns {
		cast[i] = fmt.Sprintf("pg_catalog.quote_nullable(%s::text)", c)
	}
	rows, err := f.conn.Query(ctx, fmt.Sprintf("SELECT ARRAY[%s] FROM %s WHERE (%s) IS NOT NULL LIMIT 50",
		strings.Join(cast, ", "), t.name, key), pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return nil, err
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[[]string])
	t.tuples[key] = list
	return list, err
}
