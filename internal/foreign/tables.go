package foreign

import (
	"context"
	"fmt"
	"regexp"

	"github.com/jackc/pgx/v5"
)

// table is one that rows can be inserted into: ordinary or partitioned, but no partition.
type table struct {
	oid     uint32
	name    string // quoted, with its schema
	columns []column
	keys    []foreignKey
	bounds  []map[string]string // of partitions: values of key columns, as SQL, that lead there

	tuples map[string][][]string // keys of rows that others may refer to, by their columns, as SQL
}

type column struct {
	name, typ  string // quoted; with its modifier
	base       string // the name of the type below a domain, without a modifier
	category   string // pg_type.typcategory
	kind       string // pg_type.typtype
	length     int    // of characters or bits; 0: any
	scale      int
	precision  int
	notNull    bool
	hasDefault bool
	serial     bool // the default is a sequence's, or the column is an identity
	generated  bool
	labels     []string
	element    *column
	words      []string // literals in CHECKs that name the column
}

type foreignKey struct {
	columns, referred []string
	parent            uint32
}

const readColumns = `
	SELECT a.attrelid, quote_ident(a.attname), format_type(a.atttypid, a.atttypmod),
	       b.typname, b.typcategory::text, b.typtype::text,
	       a.attnotnull OR t.typnotnull, a.atthasdef OR a.attidentity <> '' OR t.typdefault IS NOT NULL,
	       a.attidentity <> '' OR coalesce(pg_get_expr(d.adbin, d.adrelid) LIKE 'nextval(%', false),
	       a.attgenerated <> '',
	       CASE WHEN b.typname IN ('varchar', 'bpchar') AND m.mod > 0 THEN m.mod - 4
	            WHEN b.typname IN ('bit', 'varbit') THEN greatest(m.mod, 0) ELSE 0 END,
	       CASE WHEN b.typname = 'numeric' AND m.mod > 0 THEN ((m.mod - 4) >> 16) & 65535 ELSE 0 END,
	       CASE WHEN b.typname = 'numeric' AND m.mod > 0 THEN (m.mod - 4) & 2047 ELSE 0 END,
	       ARRAY(SELECT enumlabel::text FROM pg_enum WHERE enumtypid = b.oid ORDER BY enumsortorder),
	       coalesce(e.typname::text, ''), coalesce(e.typcategory::text, ''), coalesce(e.typtype::text, ''),
	       ARRAY(SELECT enumlabel::text FROM pg_enum WHERE enumtypid = e.oid ORDER BY enumsortorder)
	FROM pg_attribute a
	JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
	JOIN pg_type t ON t.oid = a.atttypid
	CROSS JOIN LATERAL (
		WITH RECURSIVE down AS (
			SELECT t.oid, t.typtype, t.typbasetype, a.atttypmod AS mod
			UNION ALL
			SELECT x.oid, x.typtype, x.typbasetype, CASE WHEN down.mod < 0 THEN y.typtypmod ELSE down.mod END
			FROM down JOIN pg_type y ON y.oid = down.oid JOIN pg_type x ON x.oid = down.typbasetype
			WHERE down.typtype = 'd')
		SELECT oid, mod FROM down WHERE typtype <> 'd') m
	JOIN pg_type b ON b.oid = m.oid
	LEFT JOIN pg_type e ON e.oid = b.typelem AND b.typcategory = 'A'
	LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
	WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p') AND NOT c.relispartition
	AND ` + others + `
	ORDER BY a.attrelid, a.attnum`

const readTables = `
	SELECT c.oid, quote_ident(nspname) || '.' || quote_ident(relname)
	FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
	WHERE relkind IN ('r', 'p') AND NOT relispartition AND ` + others + `
	AND NOT EXISTS (
		SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
	ORDER BY 2`

const readKeys = `
	SELECT conrelid, confrelid,
	       ARRAY(SELECT quote_ident(attname) FROM unnest(conkey) WITH ORDINALITY k(n, i)
	             JOIN pg_attribute ON attrelid = conrelid AND attnum = n ORDER BY i),
	       ARRAY(SELECT quote_ident(attname) FROM unnest(confkey) WITH ORDINALITY k(n, i)
	             JOIN pg_attribute ON attrelid = confrelid AND attnum = n ORDER BY i)
	FROM pg_constraint WHERE contype = 'f' AND conparentid = 0 ORDER BY conrelid, conname`

const readChecks = `
	SELECT conrelid, quote_ident(attname), pg_get_constraintdef(o.oid)
	FROM pg_constraint o CROSS JOIN unnest(conkey) k JOIN pg_attribute ON attrelid = conrelid AND attnum = k
	WHERE contype = 'c' AND conrelid <> 0
	UNION ALL
	SELECT a.attrelid, quote_ident(attname), pg_get_constraintdef(o.oid)
	FROM pg_constraint o JOIN pg_attribute a ON atttypid = contypid WHERE contypid <> 0 AND contype = 'c'`

// readBounds reads where the partitions of a root are: the bound and the key's columns of each leaf's parent.
const readBounds = `
	WITH RECURSIVE tree AS (
		SELECT c.oid AS root, c.oid FROM pg_class c WHERE relkind = 'p' AND NOT relispartition
		UNION ALL
		SELECT root, inhrelid FROM tree JOIN pg_inherits ON inhparent = tree.oid)
	SELECT root, coalesce(pg_get_expr(relpartbound, c.oid), ''),
	       ARRAY(SELECT quote_ident(attname) FROM unnest(p.partattrs::int2[]) WITH ORDINALITY k(n, i)
	             JOIN pg_attribute ON attrelid = p.partrelid AND attnum = n ORDER BY i)
	FROM tree JOIN pg_class c ON c.oid = tree.oid JOIN pg_inherits h ON inhrelid = c.oid
	JOIN pg_partitioned_table p ON p.partrelid = inhparent
	WHERE relispartition`

var (
	quoted    = regexp.MustCompile(`'((?:[^']|'')*)'`)
	fromBound = regexp.MustCompile(`FOR VALUES FROM \((.*)\) TO \(`)
	inBound   = regexp.MustCompile(`FOR VALUES IN \((.*)\)`)
	bound     = regexp.MustCompile(`'(?:[^']|'')*'|[^,\s]+`)
)

// readAll reads what can be filled.
func readAll(ctx context.Context, conn *pgx.Conn) ([]*table, error) {
	var list []*table
	byOID := map[uint32]*table{}
	var oid, parent uint32
	var name, text string
	var columns, referred []string
	if err := each(ctx, conn, readTables, []any{&oid, &name}, func() {
		t := &table{oid: oid, name: name, tuples: map[string][][]string{}}
		list, byOID[oid] = append(list, t), t
	}); err != nil {
		return nil, err
	}
	var c, e column
	if err := each(ctx, conn, readColumns, []any{
		&oid, &c.name, &c.typ, &c.base, &c.category, &c.kind, &c.notNull, &c.hasDefault, &c.serial, &c.generated,
		&c.length, &c.precision, &c.scale, &c.labels, &e.base, &e.category, &e.kind, &e.labels,
	}, func() {
		if t := byOID[oid]; t != nil {
			full := c
			if e.base != "" {
				element := e
				full.element = &element
			}
			t.columns = append(t.columns, full)
		}
	}); err != nil {
		return nil, err
	}
	if err := each(ctx, conn, readKeys, []any{&oid, &parent, &columns, &referred}, func() {
		if t := byOID[oid]; t != nil {
			t.keys = append(t.keys, foreignKey{columns, referred, parent})
		}
	}); err != nil {
		return nil, err
	}
	if err := each(ctx, conn, readChecks, []any{&oid, &name, &text}, func() {
		if t := byOID[oid]; t != nil {
			for i := range t.columns {
				if t.columns[i].name == name {
					for _, word := range quoted.FindAllStringSubmatch(text, -1) {
						t.columns[i].words = append(t.columns[i].words, word[1])
					}
				}
			}
		}
	}); err != nil {
		return nil, err
	}
	err := each(ctx, conn, readBounds, []any{&oid, &text, &columns}, func() {
		if t := byOID[oid]; t != nil {
			t.bounds = append(t.bounds, boundValues(text, columns)...)
		}
	})
	return list, err
}

// boundValues returns values of key columns that lead into a partition; none if the bound does not say.
func boundValues(text string, columns []string) []map[string]string {
	var values []string
	if m := fromBound.FindStringSubmatch(text); m != nil {
		values = bound.FindAllString(m[1], -1)
	} else if m := inBound.FindStringSubmatch(text); m != nil && len(columns) == 1 {
		values = bound.FindAllString(m[1], 1)
	}
	if len(values) == 0 || len(values) != len(columns) || values[0] == "MINVALUE" {
		return nil
	}
	row := map[string]string{}
	for i, c := range columns {
		if values[i] != "MINVALUE" {
			row[c] = values[i]
		}
	}
	return []map[string]string{row}
}

func each(ctx context.Context, conn *pgx.Conn, sql string, into []any, fn func()) error {
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		return err
	}
	if _, err := pgx.ForEachRow(rows, into, func() error { fn(); return nil }); err != nil {
		return fmt.Errorf("reading the catalog: %w", err)
	}
	return nil
}
