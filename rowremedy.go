package migrator

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// What can be done about a row that cannot be read or written. Each of these was tried: see TestRemedies.

// rowRemedy is advice, with the statement that follows it on one side.
type rowRemedy struct{ text, sql, on string }

func (r rowRemedy) String() string {
	if r.sql == "" {
		return r.text
	}
	return fmt.Sprintf("%s On the %s: %s", r.text, r.on, r.sql)
}

// columnFacts are what the two sides say of a column.
type columnFacts struct {
	typ      string
	notNull  bool
	enum     string // the type's name, if it is an enum
	encoding string // of the database
}

const columnFactsSQL = `
	SELECT format_type(a.atttypid, a.atttypmod), a.attnotnull,
	       CASE WHEN y.typtype = 'e' THEN format('%I.%I', n.nspname, y.typname) ELSE '' END,
		current_setting('server_encoding')
	FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid JOIN pg_namespace n ON n.oid = y.typnamespace
	WHERE a.attrelid = to_regclass($1) AND a.attname = $2 AND NOT a.attisdropped`

// remedy finds out what helps: what is different on the two sides decides where the cause is.
func (a *aside) remedy(ctx context.Context, from, to any) (rowRemedy, error) {
	has, ok := from.(rowSide)
	takes, ok2 := to.(rowSide)
	if !ok || !ok2 {
		return rowRemedy{}, nil
	}
	hasIt, takesIt := "source", "target"
	if a.Direction == directionReverse {
		hasIt, takesIt = takesIt, hasIt
	}
	var there, here columnFacts
	if a.Column != "" {
		for _, side := range []struct {
			q querier
			f *columnFacts
		}{{has.rowSessions(), &there}, {takes.rowSessions(), &here}} {
			err := side.q.QueryRow(ctx, columnFactsSQL, a.table.Ident(), a.Column).
				Scan(&side.f.typ, &side.f.notNull, &side.f.enum, &side.f.encoding)
			if err != nil && !errors.Is(err, pgx.ErrNoRows) {
				return rowRemedy{}, fmt.Errorf("look for a remedy: %w", err)
			}
		}
	}
	switch {
	case a.Reading && a.Column != "" && (a.SQLState == "22021" || a.SQLState == "22P05"):
		return a.reencode(hasIt, there), nil
	case a.Message == takenForInfinity && a.Row != "" && a.Column != "":
		return rowRemedy{
			"Write another value.",
			fmt.Sprintf("UPDATE %s SET %s = … WHERE %s", a.table.Ident(), quoteName(a.Column), a.Row), hasIt,
		}, nil
	case a.Reading:
		return a.damaged(hasIt), nil
	case a.Constraint != "":
		return a.violated(ctx, has.rowSessions(), takes.rowSessions(), hasIt, takesIt)
	case a.SQLState == "23514" && strings.Contains(a.Message, "no partition of relation"):
		return rowRemedy{text: fmt.Sprintf("A partition that the %s has is missing on the %s: create it there.", hasIt,
			takesIt)}, nil
	case a.SQLState == "23502" && here.notNull && !there.notNull:
		return rowRemedy{
			"The column may be NULL on the " + hasIt + ", and not here.",
			fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s DROP NOT NULL", a.table.Ident(), quoteName(a.Column)), takesIt,
		}, nil
	case a.SQLState == "22P02" && here.enum != "" && here.typ == there.typ && a.Value != "":
		return rowRemedy{
			"The label is missing in the type on the " + takesIt + ".",
			fmt.Sprintf("ALTER TYPE %s ADD VALUE %s", here.enum, strings.TrimSpace(quoteLiteral(a.Value))), takesIt,
		}, nil
	case here.typ != "" && here.typ != there.typ:
		return rowRemedy{
			fmt.Sprintf("The column is of type %s on the %s, and of type %s on the %s.", there.typ, hasIt, here.typ,
				takesIt),
			fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s TYPE %s", a.table.Ident(), quoteName(a.Column), there.typ),
			takesIt,
		}, nil
	case a.Row != "" && a.Column != "":
		return rowRemedy{
			fmt.Sprintf("The %s cannot hold this value: write one there that it can hold.", takesIt),
			fmt.Sprintf("UPDATE %s SET %s = … WHERE %s", a.table.Ident(), quoteName(a.Column), a.Row), hasIt,
		}, nil
	case a.Row != "":
		return a.change(hasIt, "Change the row, so that the "+takesIt+" can take it."), nil
	}
	return rowRemedy{}, nil
}

// reencode is about bytes that are no text in the encoding of the database, or none that the other side knows.
func (a *aside) reencode(side string, there columnFacts) rowRemedy {
	name := quoteName(a.Column)
	if there.encoding != "SQL_ASCII" || a.Row == "" {
		return rowRemedy{
			"The value has characters that UTF8 does not have: write it without them.",
			fmt.Sprintf("UPDATE %s SET %s = … WHERE %s", a.table.Ident(), name, a.whereOr("…")), side,
		}
	}
	return rowRemedy{
		"The value's bytes are no UTF8. If they were written as LATIN1 (else put another encoding in its place):",
		fmt.Sprintf("UPDATE %s SET %s = convert_from(convert(convert_to(%[2]s::text, 'SQL_ASCII'), 'LATIN1', "+
			"'UTF8'), 'UTF8') WHERE %s",
			a.table.Ident(), name, a.Row), side,
	}
}

func (a *aside) whereOr(other string) string {
	if a.Row == "" {
		return other
	}
	return a.Row
}

// damaged is about a row that its own server cannot read.
func (a *aside) damaged(side string) rowRemedy {
	if a.Row == "" {
		return rowRemedy{text: fmt.Sprintf("The %s cannot read a part of the table itself: restore it there from a "+
			"backup, into the same table.", side)}
	}
	if a.Column != "" {
		return rowRemedy{
			fmt.Sprintf("The %s cannot read the value itself. If it is known from elsewhere, or not needed, write "+
				"it again.", side),
			fmt.Sprintf("UPDATE %s SET %s = … WHERE %s", a.table.Ident(), quoteName(a.Column), a.Row), side,
		}
	}
	return a.change(side, fmt.Sprintf("The %s cannot read the row itself: write it again, or delete it.", side))
}

func (a *aside) change(side, text string) rowRemedy {
	return rowRemedy{text, fmt.Sprintf("DELETE FROM %s WHERE %s", a.table.Ident(), a.Row), side}
}

// constraintSQL tells how a constraint, or a unique index, of this name is taken away.
const constraintSQL = `
	SELECT CASE WHEN k.contypid <> 0 THEN format('ALTER DOMAIN %s DROP CONSTRAINT %I', k.contypid::regtype, k.conname)
		ELSE format('ALTER TABLE %s DROP CONSTRAINT %I', k.conrelid::regclass, k.conname) END
	FROM pg_constraint k
	WHERE k.conname = $2 AND (k.conrelid = to_regclass($1) OR k.conrelid IN (SELECT relid FROM
		pg_partition_tree(to_regclass($1)))
		OR k.contypid IN (SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = to_regclass($1)))
	UNION ALL
	SELECT format('DROP INDEX %s', i.oid::regclass) FROM pg_class i JOIN pg_index x ON x.indexrelid = i.oid
	WHERE i.relname = $2 AND (x.indrelid = to_regclass($1) OR x.indrelid IN (SELECT relid FROM
		pg_partition_tree(to_regclass($1))))
	  AND NOT EXISTS (SELECT 1 FROM pg_constraint k WHERE k.conindid = i.oid)
	LIMIT 1`

// violated is about a constraint. One that both sides have is never to be dropped: then it is the row that is wrong.
func (a *aside) violated(ctx context.Context, from, to querier, hasIt, takesIt string) (rowRemedy, error) {
	drop := make([]string, 2)
	for i, q := range []querier{from, to} {
		err := q.QueryRow(ctx, constraintSQL, a.table.Ident(), a.Constraint).Scan(&drop[i])
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return rowRemedy{}, fmt.Errorf("look for a remedy: %w", err)
		}
	}
	switch {
	case drop[0] == "" && drop[1] != "":
		text := fmt.Sprintf("Only the %s has the constraint %s.", takesIt, a.Constraint)
		return rowRemedy{text, drop[1], takesIt}, nil
	case drop[0] != "" && (a.SQLState == "23505" || a.SQLState == "23P01"):
		return rowRemedy{text: fmt.Sprintf("The %s has the same constraint %s, so its index is broken: delete one of "+
			"the rows there, then REINDEX INDEX.",
			hasIt, a.Constraint)}, nil
	case a.Row != "":
		return a.change(hasIt, fmt.Sprintf("The row violates the constraint %s: change it so that it does not, or "+
			"delete it.", a.Constraint)), nil
	}
	return rowRemedy{text: fmt.Sprintf("Rows violate the constraint %s: change them on the %s so that they do not.",
		a.Constraint, hasIt)}, nil
}
