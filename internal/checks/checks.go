// Package checks reads CHECK constraints, and tells which of them may refuse rows that a database has.
//
// A CHECK is harmless if it was validated and gives the same answer for the same row for ever: it is made of
// nothing but immutable functions, operators and types that come with Postgres. Every other one may depend on the
// moment, the role, a setting, other rows or what a user's function does, or was never asked about old rows.
package checks

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
)

// Check is a CHECK constraint, or a NOT NULL constraint that is NOT VALID, on one table, partition or domain.
type Check struct {
	OID        uint32
	Domain     bool   // it is a domain's, not a table's
	Owner      uint32 // OID of the table or domain
	Schema     string // of the owner
	Name       string // of the owner
	Constraint string
	// Definition is what follows ADD CONSTRAINT and the name, names in full and quoted, without NOT VALID.
	Definition string
	Validated  bool
	// Local tells that it was defined for this relation; if not, the relation has it from its parents alone.
	Local     bool
	Partition bool // the owner is a partition
	Ancestors int  // relations that the owner inherits from, directly or not
	Parents   []uint32
	Comment   string
	// HeldBack tells that it is not known to be harmless.
	HeldBack bool
}

// Ident is the owner's name, quoted for SQL.
func (c Check) Ident() string { return pgx.Identifier{c.Schema, c.Name}.Sanitize() }

func (c Check) String() string { return c.Constraint + " of " + c.Schema + "." + c.Name }

func (c Check) quoted() string { return pgx.Identifier{c.Constraint}.Sanitize() }

// Add is the statement that makes the constraint without a look at rows, and gives it its comment.
func (c Check) Add() string { return c.AddValidated() + " NOT VALID" + c.Describe() }

// AddValidated is the statement that makes the constraint, which every row has to satisfy.
func (c Check) AddValidated() string {
	return fmt.Sprintf("ALTER %s %s ADD CONSTRAINT %s %s", c.kind(), c.Ident(), c.quoted(), c.Definition)
}

// Describe is a further statement that gives the constraint its comment, or nothing.
func (c Check) Describe() string {
	if c.Comment == "" {
		return ""
	}
	return c.commentOn() + quoteLiteral(c.Comment)
}

func (c Check) commentOn() string {
	domain := ""
	if c.Domain {
		domain = "DOMAIN "
	}
	return fmt.Sprintf(";\nCOMMENT ON CONSTRAINT %s ON %s%s IS ", c.quoted(), domain, c.Ident())
}

// IsComment tells whether a statement gives this constraint a comment.
func (c Check) IsComment(sql string) bool {
	return strings.HasPrefix(sql, strings.TrimPrefix(c.commentOn(), ";\n"))
}

// Drop is the statement that takes the constraint away, if there is one, from a table's children too.
func (c Check) Drop() string {
	if c.Domain {
		return fmt.Sprintf("ALTER DOMAIN %s DROP CONSTRAINT IF EXISTS %s", c.Ident(), c.quoted())
	}
	return fmt.Sprintf("ALTER TABLE IF EXISTS %s DROP CONSTRAINT IF EXISTS %s", c.Ident(), c.quoted())
}

// Validate is the statement that has the rows looked at, of a table's children too.
func (c Check) Validate() string {
	return fmt.Sprintf("ALTER %s %s VALIDATE CONSTRAINT %s", c.kind(), c.Ident(), c.quoted())
}

func (c Check) kind() string {
	if c.Domain {
		return "DOMAIN"
	}
	return "TABLE"
}

// Reader reads constraints, and remembers which of them are harmless.
type Reader struct {
	mu       sync.Mutex
	harmless map[version]bool
}

// version is one version of a constraint's entry in the catalog.
type version struct {
	oid  uint32
	xmin string
}

// $1, if it is not NULL, is the name of constraints to look for.
const readSQL = `
	SELECT k.oid, k.xmin::text, k.contype::text, k.contypid <> 0, o.oid, n.nspname, o.name, k.conname::text,
		pg_get_constraintdef(k.oid),
	       k.convalidated, k.contypid <> 0 OR k.conislocal, o.partition,
	       (WITH RECURSIVE up AS (
			SELECT inhparent FROM pg_inherits WHERE inhrelid = k.conrelid
			UNION SELECT i.inhparent FROM up JOIN pg_inherits i ON i.inhrelid = up.inhparent)
		SELECT count(*)::int FROM up),
	       coalesce((SELECT array_agg(inhparent) FROM pg_inherits WHERE inhrelid = k.conrelid), '{}'),
	       coalesce(obj_description(k.oid, 'pg_constraint'), '')
	FROM pg_constraint k
	JOIN (SELECT oid, relnamespace AS namespace, relname::text AS name, relispartition AS partition,
		'pg_class'::regclass AS class
	      FROM pg_class WHERE relkind IN ('r', 'p') AND relpersistence <> 't'
	      UNION ALL SELECT oid, typnamespace, typname, false, 'pg_type'::regclass FROM pg_type WHERE typtype = 'd') AS o
	  ON o.oid = CASE WHEN k.contypid <> 0 THEN k.contypid ELSE k.conrelid END
	     AND o.class = CASE WHEN k.contypid <> 0 THEN 'pg_type'::regclass ELSE 'pg_class'::regclass END
	JOIN pg_namespace n ON n.oid = o.namespace
	WHERE (k.contype = 'c' OR (k.contype = 'n' AND k.conrelid <> 0 AND NOT k.convalidated))
	  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'heroku_migrator')
	  AND n.nspname NOT LIKE 'pg\_temp\_%' AND n.nspname NOT LIKE 'pg\_toast\_temp\_%'
	  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype = 'e')
	  AND ($1::text IS NULL OR k.conname = $1)
	ORDER BY k.contypid <> 0 DESC, n.nspname, o.name, k.conname COLLATE "C"`

// Read lists the constraints of all tables, partitions and domains of users; with a name, those of that name.
// Constraints that are NOT ENFORCED refuse nothing, and are left out.
func (r *Reader) Read(ctx context.Context, tx pgx.Tx, name *string) ([]Check, error) {
	var list []Check
	var versions []version
	var path, quote string
	var batch pgx.Batch
	batch.Queue(`SELECT current_setting('search_path'), current_setting('quote_all_identifiers')`).
		QueryRow(func(row pgx.Row) error { return row.Scan(&path, &quote) })
	batch.Queue(`SELECT set_config('search_path', '', true), set_config('quote_all_identifiers', 'on', true)`)
	batch.Queue(readSQL, name).Query(func(rows pgx.Rows) error {
		var c Check
		var v version
		var kind string
		_, err := pgx.ForEachRow(rows, []any{
			&c.OID, &v.xmin, &kind, &c.Domain, &c.Owner, &c.Schema, &c.Name, &c.Constraint, &c.Definition,
			&c.Validated, &c.Local, &c.Partition, &c.Ancestors, &c.Parents, &c.Comment,
		}, func() error {
			if strings.HasSuffix(c.Definition, " NOT ENFORCED") {
				return nil
			}
			v.oid = c.OID
			c.Definition = strings.TrimSuffix(c.Definition, " NOT VALID")
			c.Parents = slices.Clone(c.Parents)
			list, versions = append(list, c), append(versions, v)
			return nil
		})
		return err
	})
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, fmt.Errorf("read constraints: %w", err)
	}
	_, err := tx.Exec(ctx, `SELECT set_config('search_path', $1, true), set_config('quote_all_identifiers', $2,
		true)`, path, quote)
	if err == nil {
		err = r.judge(ctx, tx, list, versions)
	}
	if err != nil {
		return nil, fmt.Errorf("read constraints: %w", err)
	}
	return list, nil
}

// judge sets HeldBack. What a constraint is made of does not change while its entry does not.
func (r *Reader) judge(ctx context.Context, tx pgx.Tx, list []Check, versions []version) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var unknown []uint32
	known := make(map[version]bool, len(list)) // what is gone is forgotten
	for i, c := range list {
		harmless, ok := r.harmless[versions[i]]
		if ok {
			known[versions[i]] = harmless
		} else if c.Validated {
			unknown = append(unknown, c.OID)
		}
	}
	harmless, err := immutable(ctx, tx, unknown)
	if err != nil {
		return err
	}
	for i := range list {
		c, v := &list[i], versions[i]
		if _, ok := known[v]; !ok && c.Validated {
			known[v] = harmless[c.OID]
		}
		c.HeldBack = !c.Validated || !known[v]
	}
	r.harmless = known
	return nil
}

// made follows domains into the types that are made of them: arrays, composites, ranges and further domains.
const made = `
	WITH RECURSIVE made AS (
		SELECT oid AS domain, oid AS type, false AS contained FROM pg_type WHERE typtype = 'd' AND oid >= 16384
		UNION
		SELECT m.domain, y.oid, m.contained OR y.typtype <> 'd'
		FROM made m JOIN pg_type y ON y.oid <> m.type AND (y.typbasetype = m.type OR (y.typelem = m.type AND
			y.typcategory = 'A')
			OR y.oid IN (SELECT rngtypid FROM pg_range WHERE rngsubtype = m.type)
			OR (y.typtype = 'c' AND y.typrelid IN (SELECT attrelid FROM pg_attribute WHERE atttypid = m.type AND
				attnum > 0 AND NOT attisdropped))))
	SELECT DISTINCT m.domain FROM made m JOIN pg_attribute a ON a.atttypid = m.type AND a.attnum > 0 AND NOT
		a.attisdropped
	JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p', 'm') WHERE `

// ContainedDomains lists domains of which columns hold arrays, composites or ranges: ALTER DOMAIN … VALIDATE
// CONSTRAINT refuses these.
func ContainedDomains(ctx context.Context, tx pgx.Tx) ([]uint32, error) {
	return domains(ctx, tx, made+`m.contained`)
}

// DomainsOf lists domains that a table's columns are made of.
func DomainsOf(ctx context.Context, tx pgx.Tx, table uint32) ([]uint32, error) {
	return domains(ctx, tx, made+`c.oid = $1`, table)
}

func domains(ctx context.Context, tx pgx.Tx, sql string, args ...any) ([]uint32, error) {
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("read columns of domains: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return nil, fmt.Errorf("read columns of domains: %w", err)
	}
	return list, nil
}

// Held are the constraints that are held back.
func Held(list []Check) []Check {
	return slices.DeleteFunc(slices.Clone(list), func(c Check) bool { return !c.HeldBack })
}

// BottomUp orders constraints so that those of children come before those of their parents: what a parent's
// constraint finds on its children then is taken for its own, and stays theirs too.
func BottomUp(list []Check) []Check {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b Check) int { return b.Ancestors - a.Ancestors })
	return list
}

// ToValidate are those that have to be validated one by one. The others are with their parents', or are not valid.
func ToValidate(list []Check) []Check {
	type key struct {
		owner uint32
		name  string
	}
	valid := map[key]bool{}
	for _, c := range list {
		if !c.Domain && c.Validated && !strings.HasSuffix(c.Definition, " NO INHERIT") {
			valid[key{c.Owner, c.Constraint}] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(list), func(c Check) bool {
		return !c.Validated || slices.ContainsFunc(c.Parents, func(id uint32) bool {
			return valid[key{id,
				c.Constraint}]
		})
	})
}

func quoteLiteral(s string) string {
	if strings.Contains(s, `\`) {
		return ` E'` + strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\\`), "'", "''") + "'"
	}
	return "'" + strings.ReplaceAll(s, "'", "''") + "'"
}
