package definition

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Define returns the statements that make these objects, by their keys; none for what cannot be made by a statement
// that we know. Names are written in full if the session's search_path is empty. It locks the relations of these
// objects against being dropped until the transaction ends, some of them.
func Define(ctx context.Context, q Querier, objects []Object) (map[string]string, error) {
	byKind := map[Kind][]Object{}
	for _, o := range objects {
		byKind[o.Kind] = append(byKind[o.Kind], o)
	}
	sqls := map[string]string{}
	for kind, list := range byKind {
		query, ok := defining[kind]
		if !ok {
			continue
		}
		byID := map[uint32][]Object{}
		ids := make([]uint32, len(list))
		for i, o := range list {
			ids[i] = o.ID
			byID[o.ID] = append(byID[o.ID], o)
		}
		rows, err := q.Query(ctx, query, ids)
		if err != nil {
			return nil, fmt.Errorf("read the definition of a %s: %w", kind, err)
		}
		var id uint32
		var name, sql *string
		if _, err := pgx.ForEachRow(rows, []any{&id, &name, &sql}, func() error {
			for _, o := range byID[id] {
				if sql != nil && (name == nil || *name == o.Relation+" "+o.Name) {
					sqls[o.Key()] = *sql
				}
			}
			return nil
		}); err != nil {
			return nil, fmt.Errorf("read the definition of a %s: %w", kind, err)
		}
	}
	return sqls, nil
}

// quoted writes a name as SQL has it always: in double quotes.
func quoted(name string) string { return `'"' || replace(` + name + `, '"', '""') || '"'` }

// relation is a relation's name in full, of pg_class c and pg_namespace n.
var relation = quoted("n.nspname") + ` || '.' || ` + quoted("c.relname")

// column is what a column is, of pg_attribute a and pg_class c, whose default is f. Partitions have the identity of
// their table.
const column = `
	format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod))
	|| coalesce((SELECT format(' COLLATE %I.%I', s.nspname, l.collname) FROM pg_collation l JOIN pg_namespace s ON
		s.oid = l.collnamespace
		JOIN pg_type y ON y.oid = a.atttypid WHERE l.oid = a.attcollation AND a.attcollation <> y.typcollation), '')
	|| CASE WHEN a.attgenerated <> '' THEN format(' GENERATED ALWAYS AS (%s) %s', pg_get_expr(f.adbin, f.adrelid),
			CASE a.attgenerated WHEN 'v' THEN 'VIRTUAL' ELSE 'STORED' END)
		WHEN a.attidentity <> '' AND NOT c.relispartition THEN coalesce((
			SELECT format(' GENERATED %s AS IDENTITY (SEQUENCE NAME %I.%I START WITH %s INCREMENT BY %s '
				|| 'MINVALUE %s MAXVALUE %s CACHE %s %s)',
				CASE a.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END, sn.nspname, sc.relname, q.seqstart,
					q.seqincrement, q.seqmin,
				q.seqmax, q.seqcache, CASE WHEN q.seqcycle THEN 'CYCLE' ELSE 'NO CYCLE' END)
			FROM pg_depend d JOIN pg_class sc ON sc.oid = d.objid JOIN pg_namespace sn ON sn.oid = sc.relnamespace
			JOIN pg_sequence q ON q.seqrelid = sc.oid
			WHERE d.classid = 'pg_class'::regclass AND d.deptype = 'i' AND d.refobjid = a.attrelid AND d.refobjsubid
				= a.attnum), '')
		WHEN f.adbin IS NOT NULL THEN ' DEFAULT ' || pg_get_expr(f.adbin, f.adrelid) ELSE '' END
	|| CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END`

// Each query takes OIDs, and returns the OID, the relation and name where several objects have one OID, and the
// statement.
var defining = map[Kind]string{
	Schema: `SELECT oid, NULL::text, format('CREATE SCHEMA IF NOT EXISTS %I', nspname) FROM pg_namespace WHERE oid
		= ANY ($1::oid[])`,
	Extension: `SELECT e.oid, NULL::text, format('CREATE EXTENSION IF NOT EXISTS %I WITH SCHEMA %I', extname,
		nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.oid = ANY ($1::oid[])`,
	Type: `SELECT y.oid, NULL::text, CASE y.typtype
		WHEN 'e' THEN format('CREATE TYPE %I.%I AS ENUM (%s)', n.nspname, y.typname,
			(SELECT string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder) FROM pg_enum e WHERE
				e.enumtypid = y.oid))
		WHEN 'c' THEN format('CREATE TYPE %I.%I AS (%s)', n.nspname, y.typname,
			(SELECT string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum)
			 FROM pg_attribute a WHERE a.attrelid = y.typrelid AND a.attnum > 0 AND NOT a.attisdropped))
		WHEN 'd' THEN format('CREATE DOMAIN %I.%I AS %s%s%s%s', n.nspname, y.typname, format_type(y.typbasetype,
			y.typtypmod),
			coalesce(' DEFAULT ' || y.typdefault, ''), CASE WHEN y.typnotnull THEN ' NOT NULL' ELSE '' END,
			coalesce((SELECT string_agg(format(' CONSTRAINT %I %s', k.conname, pg_get_constraintdef(k.oid)), '' ORDER
				BY k.conname)
			          FROM pg_constraint k WHERE k.contypid = y.oid AND k.contype = 'c'), ''))
		WHEN 'r' THEN (SELECT format('CREATE TYPE %I.%I AS RANGE (SUBTYPE = %s)', n.nspname, y.typname,
			format_type(g.rngsubtype, NULL))
			FROM pg_range g WHERE g.rngtypid = y.oid) END
		FROM pg_type y JOIN pg_namespace n ON n.oid = y.typnamespace WHERE y.oid = ANY ($1::oid[])`,
	Label: `SELECT e.oid, NULL::text, format('ALTER TYPE %I.%I ADD VALUE IF NOT EXISTS %L%s', n.nspname, y.typname,
		e.enumlabel, coalesce(
			(SELECT format(' AFTER %L', o.enumlabel) FROM pg_enum o WHERE o.enumtypid = y.oid AND o.enumsortorder <
				e.enumsortorder ORDER BY o.enumsortorder DESC LIMIT 1),
			(SELECT format(' BEFORE %L', o.enumlabel) FROM pg_enum o WHERE o.enumtypid = y.oid AND o.enumsortorder >
				e.enumsortorder ORDER BY o.enumsortorder LIMIT 1), ''))
		FROM pg_enum e JOIN pg_type y ON y.oid = e.enumtypid JOIN pg_namespace n ON n.oid = y.typnamespace WHERE
			e.oid = ANY ($1::oid[]) ORDER BY e.enumsortorder`,
	Sequence: `SELECT c.oid, NULL::text,
		format('CREATE %sSEQUENCE %I.%I AS %s START WITH %s INCREMENT BY %s MINVALUE %s MAXVALUE %s CACHE %s%s',
			CASE c.relpersistence WHEN 'u' THEN 'UNLOGGED ' ELSE '' END, n.nspname, c.relname,
				format_type(q.seqtypid, NULL), q.seqstart,
			q.seqincrement, q.seqmin, q.seqmax, q.seqcache, CASE WHEN q.seqcycle THEN ' CYCLE' ELSE '' END)
		FROM pg_sequence q JOIN pg_class c ON c.oid = q.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE
			c.oid = ANY ($1::oid[])`,
	Owned: `SELECT c.oid, NULL::text, format('ALTER SEQUENCE %I.%I OWNED BY %I.%I.%I', n.nspname, c.relname,
		tn.nspname, t.relname, a.attname)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'a'
		JOIN pg_class t ON t.oid = d.refobjid JOIN pg_namespace tn ON tn.oid = t.relnamespace
		JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid WHERE c.oid = ANY ($1::oid[])`,
	Function: `SELECT oid, NULL::text, pg_get_functiondef(oid) FROM pg_proc WHERE oid = ANY ($1::oid[]) AND prokind
		<> 'a'`,
	Table: `SELECT c.oid, NULL::text, 'CREATE ' || CASE c.relpersistence WHEN 'u' THEN 'UNLOGGED ' ELSE '' END ||
		'TABLE ' || ` + relation + ` || ' (' || coalesce((
			SELECT string_agg(` + column + `, ', ' ORDER BY a.attnum)
			FROM pg_attribute a LEFT JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
			WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND (a.attislocal OR c.relispartition)),
				'') || ')'
		|| CASE WHEN c.relispartition THEN '' ELSE coalesce((
			SELECT ' INHERITS (' || string_agg(format('%I.%I', pn.nspname, p.relname), ', ' ORDER BY i.inhseqno) || ')'
			FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace pn ON pn.oid = p.relnamespace
				WHERE i.inhrelid = c.oid), '') END
		|| CASE c.relkind WHEN 'p' THEN ' PARTITION BY ' || pg_get_partkeydef(c.oid) ELSE '' END
		|| coalesce(' WITH (' || array_to_string(c.reloptions, ', ') || ')', '')
		|| coalesce((SELECT string_agg(format('; ALTER TABLE ONLY %s ALTER COLUMN %I SET STORAGE %s', ` + relation +
		`, a.attname,
				CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED'
					END), '')
			FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid
			WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attstorage <> y.typstorage), '')
		|| CASE c.relreplident WHEN 'f' THEN '; ALTER TABLE ONLY ' || ` + relation + ` || ' REPLICA IDENTITY FULL'
			WHEN 'n' THEN '; ALTER TABLE ONLY ' || ` + relation + ` || ' REPLICA IDENTITY NOTHING' ELSE '' END
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ($1::oid[])`,
	Attach: `SELECT c.oid, NULL::text, 'ALTER TABLE ONLY ' || (SELECT ` + relation + ` FROM pg_class c JOIN
		pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = i.inhparent)
		|| ' ATTACH PARTITION ' || ` + relation + ` || ' ' || pg_get_expr(c.relpartbound, c.oid)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_inherits i ON i.inhrelid = c.oid
		WHERE c.relispartition AND c.oid = ANY ($1::oid[])`,
	Constraint: constraints, ForeignKey: constraints,
	Index: `SELECT oid, NULL::text, pg_get_indexdef(oid) FROM unnest($1::oid[]) AS i(oid)`,
	IndexAttach: `SELECT c.oid, NULL::text, format('ALTER INDEX %I.%I ATTACH PARTITION %I.%I', pn.nspname, p.relname,
		n.nspname, c.relname)
		FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace pn ON pn.oid = p.relnamespace WHERE c.oid = ANY
			($1::oid[])`,
	Statistics: `SELECT oid, NULL::text, pg_get_statisticsobjdef(oid) FROM unnest($1::oid[]) AS s(oid)`,
	View: `SELECT c.oid, NULL::text, format('CREATE OR REPLACE VIEW %I.%I%s AS %s', n.nspname, c.relname,
			coalesce(' WITH (' || array_to_string(c.reloptions, ', ') || ')', ''), rtrim(pg_get_viewdef(c.oid), ';'))
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ($1::oid[])`,
	MatView: `SELECT c.oid, NULL::text, format('CREATE MATERIALIZED VIEW %I.%I%s AS %s%s', n.nspname, c.relname,
			coalesce(' WITH (' || array_to_string(c.reloptions, ', ') || ')', ''), rtrim(pg_get_viewdef(c.oid), ';'),
			CASE WHEN c.relispopulated THEN '' ELSE ' WITH NO DATA' END)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ($1::oid[])`,
	Rule: `SELECT oid, NULL::text, pg_get_ruledef(oid) FROM unnest($1::oid[]) AS r(oid)`,
	Trigger: `SELECT g.oid, NULL::text, pg_get_triggerdef(g.oid) || CASE g.tgenabled WHEN 'O' THEN '' ELSE
		format('; ALTER TABLE %I.%I %s TRIGGER %I',
			n.nspname, c.relname, CASE g.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'A' THEN 'ENABLE ALWAYS' ELSE
				'ENABLE REPLICA' END, g.tgname) END
		FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE
			g.oid = ANY ($1::oid[])`,
	RowSecurity: `SELECT c.oid, NULL::text, format('ALTER TABLE %1$I.%2$I ENABLE ROW LEVEL SECURITY', n.nspname,
		c.relname)
			|| CASE WHEN c.relforcerowsecurity THEN format('; ALTER TABLE %I.%I FORCE ROW LEVEL SECURITY', n.nspname,
				c.relname) ELSE '' END
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ($1::oid[])`,
	Policy: `SELECT o.oid, NULL::text, format('CREATE POLICY %I ON %I.%I AS %s FOR %s TO %s%s%s', o.polname,
		n.nspname, c.relname,
			CASE WHEN o.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
			CASE o.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE'
				ELSE 'ALL' END,
			(SELECT string_agg(CASE r WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r)) END, ', ') FROM
				unnest(o.polroles) AS u(r)),
			coalesce(' USING (' || pg_get_expr(o.polqual, o.polrelid) || ')', ''), coalesce(' WITH CHECK (' ||
				pg_get_expr(o.polwithcheck, o.polrelid) || ')', ''))
		FROM pg_policy o JOIN pg_class c ON c.oid = o.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE
			o.oid = ANY ($1::oid[])`,
	Comment: `SELECT d.objoid, i.type || ' ' || i.identity, format('COMMENT ON %s %s IS %L', CASE
			WHEN i.type LIKE '% column' THEN 'COLUMN' WHEN i.type LIKE '% constraint' THEN 'CONSTRAINT' ELSE
				upper(i.type) END, i.identity, d.description)
		FROM pg_description d CROSS JOIN LATERAL pg_identify_object(d.classoid, d.objoid, d.objsubid) i WHERE
			d.objoid = ANY ($1::oid[])`,
}

// Index constraints of a partitioned table are made for it alone, since its partitions have theirs under names of their
// own.
var constraints = `SELECT k.oid, NULL::text, 'ALTER TABLE ' || CASE WHEN k.contype IN ('p', 'u', 'x') THEN 'ONLY '
	ELSE '' END || ` + relation + `
		|| format(' ADD CONSTRAINT %I %s', k.conname, pg_get_constraintdef(k.oid))
	FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE
		k.oid = ANY ($1::oid[])`
