package migrator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/heroku-migrator/migrator/internal/checks"
)

// The source's CHECKs, for rows that come back. Rows of the target are right by definition, but a CHECK of the source
// may refuse them: it held when they were written, or for who wrote them. Such a CHECK is taken away when it refuses a
// round, in the transaction that records it, and is put back before the source takes writes of others, NOT VALID as a
// look at the rows would take time. If it was validated, it is validated afterwards, while the application writes.

// ErrConstraintTaken is returned by [Returner.ApplyBack] when a constraint of the source refused rows, and was taken
// away until the way back is closed. The round works when it is repeated, unless another constraint is in the way.
var ErrConstraintTaken = errors.New("a constraint of the source refuses rows, and was taken away until a revert")

// takenTable holds what was taken away, and what of it is back but not validated.
const takenTable = `
	CREATE TABLE IF NOT EXISTS heroku_migrator.taken (
		owner oid NOT NULL, domain boolean NOT NULL, name text NOT NULL, definition text NOT NULL, comment text NOT
			NULL,
		local boolean NOT NULL, ancestors int NOT NULL, validate boolean NOT NULL, restored boolean NOT NULL DEFAULT
			false,
		PRIMARY KEY (owner, domain, name))`

// takeConstraint takes away the constraint that an error names, with what it is one with. A constraint's function may
// fail with an error of its own, which names none: then it is those of the table that are not harmless. It returns
// nothing if there is none.
func (h *Heroku) takeConstraint(ctx context.Context, cause error) (names []string, err error) {
	pg, at := new(pgconn.PgError), new(tableError)
	if !errors.As(cause, &pg) {
		return nil, nil
	}
	named := pg.Code == "23514" && pg.ConstraintName != ""
	if !named && (strings.HasPrefix(pg.Code, "23") || Retryable(cause) || !errors.As(cause, &at)) {
		return nil, nil
	}
	var list []checks.Check
	err = pgx.BeginTxFunc(ctx, h.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly},
		func(tx pgx.Tx) (err error) {
			if list, err = h.checks.Read(ctx, tx, nil); err != nil {
				return err
			}
			if named {
				list = sameConstraint(list, pg)
				return nil
			}
			list, err = suspects(ctx, tx, list, at.table)
			return err
		})
	if err != nil || len(list) == 0 {
		return nil, err
	}
	for _, c := range list {
		if c.Local {
			names = append(names, c.String())
		}
	}
	return names, h.take(ctx, list)
}

// suspects are the constraints that are not harmless of a table, with its partitions, and of the domains of its
// columns.
func suspects(ctx context.Context, tx pgx.Tx, list []checks.Check, t *Table) (found []checks.Check, err error) {
	domains, err := checks.DomainsOf(ctx, tx, t.ID)
	if err != nil {
		return nil, err
	}
	relations := t.relations()
	for _, c := range checks.Held(list) {
		of := slices.ContainsFunc(relations, func(r Relation) bool { return r.ID == c.Owner })
		if (c.Domain && slices.Contains(domains, c.Owner)) || (!c.Domain && of) {
			for _, more := range related(list, c) {
				if !slices.ContainsFunc(found, func(f checks.Check) bool { return f.OID == more.OID }) {
					found = append(found, more)
				}
			}
		}
	}
	return found, nil
}

// sameConstraint finds the constraint that an error names, with those of parents and children that it is one with.
func sameConstraint(list []checks.Check, pg *pgconn.PgError) []checks.Check {
	at := slices.IndexFunc(list, func(c checks.Check) bool {
		owner := pg.TableName
		if c.Domain {
			owner = pg.DataTypeName
		}
		return c.Constraint == pg.ConstraintName && c.Schema == pg.SchemaName && c.Name == owner
	})
	if at < 0 {
		return nil
	}
	return related(list, list[at])
}

// related are a constraint and those of the same name that parents and children of its table have.
func related(list []checks.Check, c checks.Check) []checks.Check {
	found := []checks.Check{c}
	for i := 0; i < len(found) && !c.Domain; i++ {
		for _, o := range list {
			same := !o.Domain && o.Constraint == c.Constraint && (slices.Contains(found[i].Parents, o.Owner) ||
				slices.Contains(o.Parents, found[i].Owner))
			if same && !slices.ContainsFunc(found, func(f checks.Check) bool { return f.OID == o.OID }) {
				found = append(found, o)
			}
		}
	}
	return found
}

// take records constraints and drops them, in one transaction.
func (h *Heroku) take(ctx context.Context, list []checks.Check) error {
	alone := checks.ToValidate(list)
	var drops strings.Builder
	var tables []string
	for _, c := range slices.Backward(checks.BottomUp(list)) { // parents first
		if c.Local {
			drops.WriteString(c.Drop() + ";\n")
		}
		if !c.Domain {
			tables = append(tables, "ONLY "+c.Ident())
		}
	}
	return h.change(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, takenTable); err != nil {
			return err
		}
		for _, c := range list {
			validate := slices.ContainsFunc(alone, func(a checks.Check) bool { return a.OID == c.OID })
			// One that is back and not validated yet was valid before.
			if _, err := tx.Exec(ctx, `
				INSERT INTO heroku_migrator.taken AS t (owner, domain, name, definition, comment, local, ancestors,
					validate)
				VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
				ON CONFLICT (owner, domain, name) DO UPDATE SET definition = excluded.definition, comment =
					excluded.comment,
					local = excluded.local, ancestors = excluded.ancestors, validate = t.validate OR
						excluded.validate, restored = false`,
				c.Owner, c.Domain, c.Constraint, c.Definition, c.Comment, c.Local, c.Ancestors, validate); err != nil {
				return err
			}
		}
		if len(tables) == 0 { // a domain: no table is locked
			_, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '1s';`+drops.String())
			if isBusy(ctx, err) {
				return ErrBusy
			}
			return err
		}
		return lock(ctx, tx, strings.Join(tables, ", "), "ACCESS EXCLUSIVE", drops.String())
	})
}

// takenChecks lists what was taken away, under the names that it has now: what is not back, children first, or what is.
func takenChecks(ctx context.Context, q querier, restored bool) ([]takenCheck, error) {
	var exists bool
	if err := q.QueryRow(ctx, `SELECT to_regclass('heroku_migrator.taken') IS NOT NULL`).Scan(&exists); err != nil ||
		!exists {
		return nil, err
	}
	rows, err := q.Query(ctx, `
		SELECT t.owner, t.domain, coalesce(n.nspname, ''), coalesce(c.relname, y.typname, ''), t.name, t.definition,
			t.comment, t.local, t.validate,
		       EXISTS (SELECT FROM pg_constraint k WHERE k.conname = t.name AND t.owner = CASE WHEN t.domain THEN
		       	k.contypid ELSE k.conrelid END)
		FROM heroku_migrator.taken t LEFT JOIN pg_class c ON c.oid = t.owner AND NOT t.domain LEFT JOIN pg_type y ON
			y.oid = t.owner AND t.domain
		LEFT JOIN pg_namespace n ON n.oid = coalesce(c.relnamespace, y.typnamespace)
		WHERE t.restored = $1 ORDER BY t.local DESC, t.ancestors DESC, t.owner, t.name`, restored)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (t takenCheck, err error) {
		err = row.Scan(&t.Owner, &t.Domain, &t.Schema, &t.Name, &t.Constraint, &t.Definition, &t.Comment, &t.Local,
			&t.validate, &t.there)
		return t, err
	})
}

type takenCheck struct {
	checks.Check
	validate bool // by a statement of its own
	there    bool
}

// restoreChecks puts back what was taken away, as it is recorded. Interrupted and repeated, it does what is left.
func restoreChecks(ctx context.Context, q querier, change beginner) error {
	list, err := takenChecks(ctx, q, false)
	if err != nil {
		return fmt.Errorf("put constraints back: %w", err)
	}
	for _, t := range list {
		key := fmt.Sprintf("WHERE owner = %d AND domain = %t AND name = %s", t.Owner, t.Domain,
			quoteLiteral(t.Constraint))
		done := "DELETE FROM heroku_migrator.taken " + key
		if t.validate {
			done = "UPDATE heroku_migrator.taken SET restored = true " + key
		}
		script, mode := "", "ACCESS EXCLUSIVE"
		switch {
		case t.Name == "": // somebody dropped what it was on
			done = "DELETE FROM heroku_migrator.taken " + key
		case t.there || !t.Local: // it came with its parent's
			script = strings.TrimPrefix(t.Describe(), ";\n")
		default:
			script = t.Add()
		}
		if script != "" {
			script += ";\n"
		}
		err := change(ctx, func(tx pgx.Tx) error {
			if script == "" || t.Domain {
				_, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '1s';`+script+done)
				if isBusy(ctx, err) {
					return ErrBusy
				}
				return err
			}
			return lock(ctx, tx, t.Ident(), mode, script+done)
		})
		if err != nil {
			return fmt.Errorf("put constraint %s back, which was taken away for rows that came back: %w", t.Check, err)
		}
	}
	return nil
}

// ValidateConstraints implements [Source].
func (h *Heroku) ValidateConstraints(ctx context.Context) (left []string, err error) {
	if !h.claimed() {
		return nil, nil
	}
	return validateTaken(ctx, h.pool, h.change)
}

// validateTaken holds nothing of ours while it looks at rows, which may take long: that a process which leads no longer
// validates a constraint does no harm.
func validateTaken(ctx context.Context, pool *pgxpool.Pool, change beginner) (left []string, err error) {
	list, err := takenChecks(ctx, pool, true)
	if err != nil {
		return nil, fmt.Errorf("validate constraints of the source: %w", err)
	}
	begin := func(ctx context.Context, fn func(pgx.Tx) error) error { return pgx.BeginFunc(ctx, pool, fn) }
	var busy error
	for _, t := range list {
		if t.there {
			err = validateGently(ctx, pool, begin, t.Validate(), nil)
		}
		switch {
		case err == nil:
		case errors.Is(err, ErrBusy):
			busy = err
			continue
		case ctx.Err() != nil || Retryable(err) || sqlState(err) == "":
			return left, err
		default:
			left = append(left, fmt.Sprintf("constraint %s is NOT VALID on the source, where it was validated "+
				"before: rows that came back do not satisfy it: %v", t.Check, err))
		}
		err = change(ctx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `DELETE FROM heroku_migrator.taken WHERE owner = $1 AND domain = $2 AND name =
				$3`, t.Owner, t.Domain, t.Constraint)
			return err
		})
		if err != nil {
			return left, err
		}
	}
	return left, busy
}
