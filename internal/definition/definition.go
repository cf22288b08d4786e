// Package definition reads from a server's catalogs what there is in its schema, and the statements that make it.
// Unlike pg_dump it needs no program of the server's version, and it reads the definitions of a few objects among many
// without locking the others.
package definition

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Kind is what an object is.
type Kind string

// The kinds, in an order in which most objects can be made.
const (
	Schema      Kind = "schema"
	Extension   Kind = "extension"
	Type        Kind = "type"
	Label       Kind = "label" // of an enum
	Sequence    Kind = "sequence"
	Function    Kind = "function"
	Aggregate   Kind = "aggregate"
	Table       Kind = "table"
	Attach      Kind = "partition" // that a table is a partition of another
	Owned       Kind = "owned sequence"
	Constraint  Kind = "constraint"
	Index       Kind = "index"
	IndexAttach Kind = "index partition"
	ForeignKey  Kind = "foreign key"
	Statistics  Kind = "statistics"
	View        Kind = "view"
	MatView     Kind = "materialized view"
	Rule        Kind = "rule"
	Trigger     Kind = "trigger"
	RowSecurity Kind = "row security"
	Policy      Kind = "policy"
	Comment     Kind = "comment"
)

var order = []Kind{
	Schema, Extension, Type, Label, Sequence, Function, Aggregate, Table, Attach, Owned, Constraint, Index,
	IndexAttach, ForeignKey, Statistics, View, MatView, Rule, Trigger, RowSecurity, Policy, Comment,
}

// Object is one object, or one property of it, without its definition.
type Object struct {
	Kind Kind   `json:"kind"`
	ID   uint32 `json:"id"` // its OID
	// Schema and Name are what it is called; Relation is the table (of a label, the type) that it belongs to, in the
	// same schema.
	Schema   string `json:"schema,omitempty"`
	Relation string `json:"relation,omitempty"`
	Name     string `json:"name,omitempty"`
	// Version differs when the object was changed since, and perhaps when it was not.
	Version string `json:"version,omitempty"`
}

// Key tells it from all others, on every server.
func (o Object) Key() string {
	return strings.Join([]string{string(o.Kind), o.Schema, o.Relation, o.Name}, "\x00")
}

func (o Object) String() string {
	var name []string
	for _, part := range []string{o.Schema, o.Relation, o.Name} {
		if part != "" {
			name = append(name, part)
		}
	}
	if o.Kind == Comment {
		return "comment on " + o.Relation + " " + o.Name
	}
	return string(o.Kind) + " " + strings.Join(name, ".")
}

// Rank orders kinds so that what others need comes first, as far as that can be said of kinds.
func (o Object) Rank() int {
	for i, k := range order {
		if k == o.Kind {
			return i
		}
	}
	return len(order)
}

// Querier is what connections, pools and transactions have in common.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// List lists what there is in the schemas of users, but for what belongs to extensions, and for the schema left out and
// objects whose names begin with it. It locks nothing of theirs.
func List(ctx context.Context, q Querier, leaveOut string) ([]Object, error) {
	rows, err := q.Query(ctx, listSQL, leaveOut)
	if err != nil {
		return nil, fmt.Errorf("list the schema's objects: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (o Object, err error) {
		err = row.Scan(&o.Kind, &o.ID, &o.Schema, &o.Relation, &o.Name, &o.Version)
		return o, err
	})
	if err != nil {
		return nil, fmt.Errorf("list the schema's objects: %w", err)
	}
	return list, nil
}

const listSQL = `
	WITH s AS (
		SELECT n.oid, n.nspname FROM pg_namespace n
		WHERE n.nspname !~ '^(pg_|pscale_)' AND n.nspname NOT IN ('information_schema', $1)
		  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_namespace'::regclass AND d.objid = n.oid AND
		  	d.deptype = 'e')),
	ext AS (SELECT classid, objid FROM pg_depend WHERE deptype = 'e'),
	r AS (
		SELECT c.*, s.nspname FROM pg_class c JOIN s ON s.oid = c.relnamespace
		WHERE c.relpersistence <> 't' AND NOT EXISTS (SELECT FROM ext WHERE ext.classid = 'pg_class'::regclass AND
			ext.objid = c.oid)),
	t AS (SELECT * FROM r WHERE relkind IN ('r', 'p')),
	all_ AS (
	SELECT 'schema' AS kind, s.oid, '' AS schema, '' AS relation, s.nspname::text AS name, '' AS version FROM s
	UNION ALL SELECT 'extension', e.oid, '', '', e.extname, e.extversion FROM pg_extension e
	UNION ALL SELECT 'type', y.oid, s.nspname, '', y.typname, y.oid || ' ' || y.xmin FROM pg_type y JOIN s ON s.oid =
		y.typnamespace
		LEFT JOIN pg_class c ON c.oid = y.typrelid
		WHERE (y.typtype IN ('e', 'd', 'r') OR (y.typtype = 'c' AND c.relkind = 'c') OR (y.typtype = 'b' AND
			y.typcategory <> 'A'))
		  AND NOT EXISTS (SELECT FROM ext WHERE ext.classid = 'pg_type'::regclass AND ext.objid = y.oid)
	UNION ALL SELECT 'label', e.oid, s.nspname, y.typname, e.enumlabel, '' FROM pg_enum e JOIN pg_type y ON y.oid =
		e.enumtypid
		JOIN s ON s.oid = y.typnamespace
		WHERE NOT EXISTS (SELECT FROM ext WHERE ext.classid = 'pg_type'::regclass AND ext.objid = y.oid)
	UNION ALL SELECT 'sequence', r.oid, r.nspname, '', r.relname, q.xmin::text FROM r JOIN pg_sequence q ON
		q.seqrelid = r.oid
		WHERE r.relkind = 'S' AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND
			d.objid = r.oid AND d.deptype = 'i')
	UNION ALL SELECT 'owned sequence', r.oid, r.nspname, '', r.relname, d.refobjid || '.' || d.refobjsubid FROM r
		JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = r.oid AND d.deptype = 'a' AND d.refclassid
			= d.classid
		WHERE r.relkind = 'S'
	UNION ALL SELECT CASE p.prokind WHEN 'a' THEN 'aggregate' ELSE 'function' END, p.oid, s.nspname, '',
		p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')', p.xmin::text
		FROM pg_proc p JOIN s ON s.oid = p.pronamespace
		WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND
			d.deptype IN ('e', 'i'))
	UNION ALL SELECT 'table', t.oid, t.nspname, '', t.relname, t.oid::text FROM t
	UNION ALL SELECT 'partition', t.oid, t.nspname, '', t.relname, i.inhparent || ' ' || i.xmin FROM t JOIN
		pg_inherits i ON i.inhrelid = t.oid
		WHERE t.relispartition
	UNION ALL SELECT CASE k.contype WHEN 'f' THEN 'foreign key' ELSE 'constraint' END, k.oid, t.nspname, t.relname,
		k.conname,
		k.convalidated::text FROM pg_constraint k JOIN t ON t.oid = k.conrelid
		WHERE k.contype IN ('p', 'u', 'x') OR (k.contype = 'c' AND k.coninhcount = 0) OR (k.contype = 'f' AND
			k.conparentid = 0)
	UNION ALL SELECT 'index', x.indexrelid, r.nspname, r.relname, i.relname, '' FROM pg_index x JOIN r ON r.oid =
		x.indrelid
		JOIN pg_class i ON i.oid = x.indexrelid
		WHERE (x.indisvalid OR i.relkind = 'I') AND i.relname NOT LIKE replace($1, '_', '\_') || '%'
		  AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = x.indexrelid AND k.contype IN ('p', 'u', 'x'))
	UNION ALL SELECT 'index partition', x.indexrelid, r.nspname, r.relname, c.relname, '' FROM pg_index x JOIN r ON
		r.oid = x.indrelid
		JOIN pg_inherits i ON i.inhrelid = x.indexrelid JOIN pg_class c ON c.oid = x.indexrelid
	UNION ALL SELECT 'statistics', e.oid, s.nspname, '', e.stxname, '' FROM pg_statistic_ext e JOIN s ON s.oid =
		e.stxnamespace
	UNION ALL SELECT CASE r.relkind WHEN 'v' THEN 'view' ELSE 'materialized view' END, r.oid, r.nspname, '',
		r.relname, r.oid || ' ' || w.xmin
		FROM r JOIN pg_rewrite w ON w.ev_class = r.oid AND w.rulename = '_RETURN' WHERE r.relkind IN ('v', 'm')
	UNION ALL SELECT 'rule', w.oid, r.nspname, r.relname, w.rulename, w.xmin::text FROM pg_rewrite w JOIN r ON r.oid
		= w.ev_class
		WHERE w.rulename <> '_RETURN'
	UNION ALL SELECT 'trigger', g.oid, r.nspname, r.relname, g.tgname, g.oid || ' ' || g.tgenabled::text FROM
		pg_trigger g JOIN r ON r.oid = g.tgrelid
		WHERE NOT g.tgisinternal AND g.tgparentid = 0 AND g.tgname NOT LIKE replace($1, '_', '\_') || '%'
	UNION ALL SELECT 'row security', t.oid, t.nspname, t.relname, '', t.relforcerowsecurity::text FROM t WHERE
		t.relrowsecurity
	UNION ALL SELECT 'policy', o.oid, t.nspname, t.relname, o.polname, o.xmin::text FROM pg_policy o JOIN t ON t.oid
		= o.polrelid
	UNION ALL SELECT 'comment', d.objoid, '', i.type, i.identity, d.classoid || ' ' || d.objsubid || ' ' ||
		md5(d.description)
		FROM pg_description d CROSS JOIN LATERAL pg_identify_object(d.classoid, d.objoid, d.objsubid) i
		WHERE (d.classoid = 'pg_class'::regclass AND d.objoid IN (SELECT oid FROM r WHERE relkind IN ('r', 'p', 'v',
			'm', 'S', 'i', 'I'))
		    OR d.classoid = 'pg_proc'::regclass AND d.objoid IN (SELECT p.oid FROM pg_proc p JOIN s ON s.oid =
		    	p.pronamespace)
		    OR d.classoid = 'pg_type'::regclass AND d.objoid IN (SELECT y.oid FROM pg_type y JOIN s ON s.oid =
		    	y.typnamespace)
		    OR d.classoid = 'pg_constraint'::regclass AND d.objoid IN (SELECT k.oid FROM pg_constraint k JOIN t ON
		    	t.oid = k.conrelid)
		    OR d.classoid = 'pg_trigger'::regclass AND d.objoid IN (SELECT g.oid FROM pg_trigger g JOIN t ON t.oid =
		    	g.tgrelid)
		    OR d.classoid = 'pg_namespace'::regclass AND d.objoid IN (SELECT s.oid FROM s WHERE nspname <> 'public'))
		  AND d.objsubid >= 0 AND NOT EXISTS (SELECT FROM ext WHERE ext.classid = d.classoid AND ext.objid = d.objoid))
	SELECT kind, oid, schema, relation, name, version FROM all_ ORDER BY kind, oid`
