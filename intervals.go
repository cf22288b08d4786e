package migrator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Postgres 17 has intervals that are infinite, and takes the longest one that an older version can hold, which is
// finite there, for one of them, in text as in binary. It cannot be moved as what it is, so it is not moved at all:
// preflight refuses it, and if one comes later, its table is set aside. The other way, an older version does not read
// the text of an infinite one, and rows with intervals travel as text there.

const (
	infiniteIntervals = 170000 // the first version that has them
	longestInterval   = "178956970 years 7 mons 2147483647 days 2562047788:00:54.775807"
	// takenForInfinity is what a row fails at that has one.
	takenForInfinity = "Postgres 17 and later take this value for infinity"

	intervalsPatience = 30 * time.Second // what preflight may take to look for them
)

// intervalTypes is a CTE: the types that hold intervals.
const intervalTypes = `
	interval_types(id) AS (
		SELECT 'interval'::regtype::oid
		UNION
		SELECT u.oid FROM interval_types i CROSS JOIN LATERAL (
			SELECT y.oid FROM pg_type y WHERE (y.typelem = i.id AND y.typcategory = 'A') OR (y.typtype = 'd' AND
				y.typbasetype = i.id)
			UNION ALL SELECT g.rngtypid FROM pg_range g WHERE g.rngsubtype = i.id
			UNION ALL SELECT y.oid FROM pg_type y JOIN pg_attribute a ON a.attrelid = y.typrelid
				WHERE a.atttypid = i.id AND a.attnum > 0 AND NOT a.attisdropped) AS u)`

// intervalGuard keeps a source from sending intervals that the target takes for infinite.
type intervalGuard struct{ on atomic.Bool }

// guarder is implemented by sources that may hold such intervals.
type guarder interface {
	guardIntervals(target, source Identity)
	guardsIntervals() bool
}

func (h *Heroku) guardsIntervals() bool { return h.intervals.on.Load() }

func (h *Heroku) guardIntervals(target, source Identity) {
	h.intervals.on.Store(source.Version < infiniteIntervals && target.Version >= infiniteIntervals)
}

// guardIntervals asks the servers for their versions, once in each process.
func guardIntervals(ctx context.Context, src Source, dst Target) error {
	g, ok := src.(guarder)
	if !ok {
		return nil
	}
	from, err := src.Identify(ctx)
	if err != nil {
		return err
	}
	to, err := dst.Identify(ctx)
	if err != nil {
		return err
	}
	g.guardIntervals(to, from)
	return nil
}

// sent returns the quoted columns that are copied, each with the prefix. Guarded, an interval that would arrive as
// another one fails: the text that it is cast from is none of its type.
func (t *Table) sent(prefix string, guarded bool) string {
	if !guarded || !t.hasIntervals() {
		return t.copied(prefix)
	}
	var b []string
	for _, c := range t.Columns {
		if !c.Generated {
			b = append(b, c.sent(prefix, guarded))
		}
	}
	return strings.Join(b, ", ")
}

func (c Column) sent(prefix string, guarded bool) string {
	name := prefix + quoteName(c.Name)
	if !guarded || !c.Interval {
		return name
	}
	return fmt.Sprintf("CASE WHEN %[1]s::text LIKE '%%%[2]s%%' THEN (left(%[1]s::text, 0) || '%[3]s')::%[4]s ELSE "+
		"%[1]s END AS %[5]s",
		name, longestInterval, takenForInfinity, c.Type, quoteName(c.Name))
}

func (t *Table) hasIntervals() bool {
	for _, c := range t.Columns {
		if c.Interval && !c.Generated {
			return true
		}
	}
	return false
}

// guardImages is the query for images of a table without a key, of which one fails that has such an interval.
func (t *Table) guardImages(images string) string {
	if !t.hasIntervals() {
		return images
	}
	return fmt.Sprintf(`SELECT CASE WHEN g.image LIKE '%%%s%%' THEN (left(g.image, 0) || '%s')::interval::text ELSE
		g.image END, g.sum FROM (%s) AS g(image, sum)`,
		longestInterval, takenForInfinity, images)
}

// checkIntervals looks for intervals that cannot be moved.
func checkIntervals(ctx context.Context, src Source, from, to Identity) []Finding {
	side, ok := src.(rowSide)
	if !ok || from.Version >= infiniteIntervals || to.Version < infiniteIntervals {
		return nil
	}
	cat, err := src.Catalog(ctx)
	if err != nil {
		return nil // which is a finding of its own
	}
	var found, unseen []string
	deadline := time.Now().Add(intervalsPatience)
	for _, t := range cat.Tables {
		for _, c := range t.Columns {
			if !c.Interval || c.Generated {
				continue
			}
			name := fmt.Sprintf("%s.%s", t, c.Name)
			switch has, err := hasLongestInterval(ctx, side.rowSessions(), t, c, time.Until(deadline)); {
			case err != nil:
				unseen = append(unseen, name)
			case has:
				found = append(found, name)
			}
		}
	}
	var f []Finding
	if len(found) > 0 {
		where := fmt.Sprintf("strpos(…::text, '%s') > 0", longestInterval)
		f = append(f, Finding{
			Check: "intervals", Severity: SeverityBlocker,
			Message: fmt.Sprintf("These columns have intervals of %s, which Postgres %d takes for infinity: %s.",
				longestInterval, to.Major(), abbreviate(found)),
			Remedy: fmt.Sprintf("Write other values into the rows WHERE %s.", where),
		})
	}
	if len(unseen) > 0 {
		f = append(f, Finding{
			Check: "intervals", Severity: SeverityWarning,
			Message: fmt.Sprintf("There was no time to look into these columns for intervals that Postgres %d takes "+
				"for infinity: %s.", to.Major(), abbreviate(unseen)),
			Remedy: "Nothing has to be done: if there is one, its table is set aside, with the row, and the switch " +
				"is blocked until it is mended.",
		})
	}
	return f
}

func hasLongestInterval(ctx context.Context, pool *pgxpool.Pool, t *Table, c Column,
	patience time.Duration) (has bool, err error) {
	if patience <= 0 {
		return false, errors.New("no time is left")
	}
	err = pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL statement_timeout = %d`,
			patience.Milliseconds()+1)); err != nil {
			return err
		}
		return tx.QueryRow(ctx, fmt.Sprintf(`SELECT EXISTS (SELECT 1 FROM %s AS t WHERE t.%s::text LIKE '%%%s%%')`,
			t.Only(), quoteName(c.Name), longestInterval)).Scan(&has)
	})
	return has, err
}
