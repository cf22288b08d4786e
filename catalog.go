package migrator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
)

// userRelations is the condition, on pg_class c and pg_namespace n, for relations that users made.
const userRelations = `
	n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'heroku_migrator')
	AND n.nspname NOT LIKE 'pg\_temp\_%' AND n.nspname NOT LIKE 'pg\_toast\_temp\_%'
	AND NOT EXISTS (SELECT 1 FROM pg_depend d
		WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')`

// binaryTypes are types whose binary form is the same in all versions and databases (for intervals, see
// intervals.go); so is that of enums (their labels), of domains over these, and of arrays of them (whose elements'
// OIDs are fixed).
const binaryTypes = `'{bool, bytea, "char", name, int8, int2, int4, text, oid, json, jsonb,
	float4, float8, macaddr, macaddr8, inet,
	cidr, bpchar, varchar, date, time, timestamp, timestamptz, timetz, bit, varbit, numeric, uuid,
	point, lseg, path, box, polygon, line, circle,
	int4range, int8range, numrange, tsrange, tstzrange, daterange}'::regtype[]::oid[]
	|| CASE WHEN current_setting('server_version_num')::int >= 170000 THEN '{interval}'::regtype[]::oid[] END`

// One row per table, as JSON in the shape of Table. The key is the best valid, complete (neither partial
// nor on expressions) unique index whose columns are all NOT NULL: the primary key if there is one.
var catalogSQL = `
WITH RECURSIVE` + intervalTypes + `,
silenced AS (
	SELECT coalesce((SELECT r.relid::oid FROM pg_partition_ancestors(g.tgrelid) WITH ORDINALITY AS r(relid, n) ORDER BY
	n DESC LIMIT 1), g.tgrelid) AS root
	FROM pg_trigger g WHERE g.tgname LIKE 'heroku\_migrator\_%' AND g.tgenabled <> 'A')
SELECT json_build_object(
	'id', c.oid::int8, 'schema', n.nspname, 'name', c.relname, 'rows', greatest(c.reltuples, 0)::int8,
	'kind', CASE
		WHEN c.relkind = 'p' THEN 'partitioned'
		WHEN EXISTS (SELECT 1 FROM pg_inherits i WHERE c.oid IN (i.inhparent, i.inhrelid)) THEN 'inherited'
		ELSE 'ordinary' END,
	'silenced', c.oid IN (SELECT root FROM silenced), 'unlogged', c.relpersistence = 'u',
	'parents', CASE WHEN c.relkind = 'r' THEN (SELECT json_agg(i.inhparent::int8 ORDER BY i.inhseqno) FROM pg_inherits i
	WHERE i.inhrelid = c.oid) END,
	'columns', coalesce((
		SELECT json_agg(json_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
			'num', a.attnum, 'identity', a.attidentity, 'missing', CASE WHEN c.relkind <> 'p' THEN
			(a.attmissingval::text::text[])[1] ELSE ( -- a root has no rows, and none of it
				SELECT (m.attmissingval::text::text[])[1] FROM ` + treeOf(`c.oid`) +
	` AS p JOIN pg_attribute m ON m.attrelid = p.relid
				WHERE p.isleaf AND m.attname = a.attname AND m.atthasmissing LIMIT 1) END,
			'mixed', c.relkind = 'p' AND (
				SELECT count(DISTINCT coalesce(m.attmissingval::text, '')) > 1 FROM ` + treeOf(`c.oid`) +
	` AS p JOIN pg_attribute m ON m.attrelid = p.relid
				WHERE p.isleaf AND m.attname = a.attname),
			'written', a.xmin::text,
			'default', coalesce((SELECT pg_get_expr(f.adbin, f.adrelid) FROM pg_attrdef f WHERE f.adrelid = a.attrelid
			AND f.adnum = a.attnum), ''),
			'collation', coalesce((SELECT format('%I.%I', s.nspname, l.collname) FROM pg_collation l JOIN pg_namespace s
			ON s.oid = l.collnamespace
				WHERE l.oid = a.attcollation AND a.attcollation <> y.typcollation), ''),
			'not_null', a.attnotnull, 'generated', a.attgenerated <> '', 'virtual', a.attgenerated = 'v', 'inherited',
			a.attinhcount > 0,
			'interval', a.atttypid IN (SELECT id FROM interval_types),
			'binary', b.typtype = 'e' OR b.oid = ANY (` + binaryTypes + `) OR (b.typcategory = 'A' AND b.typelem = ANY
				(` + binaryTypes + `)))
			ORDER BY a.attnum)
		FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid
		JOIN pg_type b ON b.oid = CASE y.typtype WHEN 'd' THEN y.typbasetype ELSE y.oid END
		WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '[]'),
	'key', coalesce((
		SELECT (SELECT json_agg(a.attname ORDER BY k.n)
		        FROM unnest(x.indkey[0:x.indnkeyatts - 1]) WITH ORDINALITY AS k(att, n)
		        JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.att)
		FROM pg_index x
		WHERE x.indrelid = c.oid AND x.indisunique AND x.indisvalid AND x.indpred IS NULL AND x.indexprs IS NULL
		  AND NOT EXISTS (
			SELECT 1 FROM unnest(x.indkey[0:x.indnkeyatts - 1], x.indcollation[0:x.indnkeyatts - 1]) AS k(att, coll)
			JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.att
			WHERE NOT a.attnotnull OR a.attcollation <> k.coll
			   OR EXISTS (SELECT 1 FROM pg_constraint v WHERE v.conrelid = x.indrelid AND v.contype = 'n' AND
			   	v.conkey[1] = k.att AND NOT v.convalidated))
		ORDER BY x.indisprimary DESC, x.indimmediate DESC, x.indnkeyatts, x.indexrelid LIMIT 1), '[]'),
	'checks', coalesce((SELECT json_object_agg(k.conname, pg_get_constraintdef(k.oid)) FROM pg_constraint k
		WHERE k.conrelid = c.oid AND k.contype = 'c' AND k.convalidated AND k.conislocal), '{}'),
	'leaves', coalesce((
		SELECT json_agg(json_build_object('id', l.oid::int8, 'schema', ln.nspname, 'name', l.relname,
			'filenode', pg_relation_filenode(l.oid)::int8,
			'attached', CASE WHEN c.relkind = 'p' THEN (
				SELECT string_agg(i.xmin::text, ' ' ORDER BY i.inhrelid) FROM pg_inherits i
				WHERE i.inhrelid IN (SELECT relid FROM pg_partition_ancestors(l.oid))) END,
			'pages', pg_relation_size(l.oid) / current_setting('block_size')::int, 'bytes', pg_table_size(l.oid))
			ORDER BY l.oid)
		FROM (SELECT c.oid AS relid WHERE c.relkind = 'r'
		      UNION ALL SELECT t.relid FROM ` + treeOf(`c.oid`) + ` AS t WHERE c.relkind = 'p' AND t.isleaf) r
		JOIN pg_class l ON l.oid = r.relid AND l.relkind = 'r'
		JOIN pg_namespace ln ON ln.oid = l.relnamespace), '[]'))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND NOT c.relispartition AND` + userRelations + `
ORDER BY c.oid`

// Catalog implements [Source].
func (h *Heroku) Catalog(ctx context.Context) (*Catalog, error) {
	var cat Catalog
	err := pgx.BeginTxFunc(ctx, h.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly},
		func(tx pgx.Tx) error {
			rows, err := tx.Query(ctx, catalogSQL)
			if err != nil {
				return err
			}
			tables, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*Table, error) {
				var text []byte
				if err := row.Scan(&text); err != nil {
					return nil, err
				}
				t := new(Table)
				return t, json.Unmarshal(text, t)
			})
			if err != nil {
				return err
			}
			cat.Tables = tables
			sequences, err := listSequences(ctx, tx)
			if err != nil {
				return err
			}
			for _, s := range sequences {
				cat.Sequences = append(cat.Sequences, s.Relation)
			}
			if err := h.leaveOutHeldBack(ctx, tx, tables); err != nil {
				return err
			}
			if err := h.noteLostTriggers(ctx, tx, cat.Tables); err != nil {
				return err
			}
			if cat.SearchPath, err = searchPath(ctx, tx); err != nil {
				return err
			}
			return tx.QueryRow(ctx, fingerprintSQL).Scan(&cat.Fingerprint)
		})
	if err != nil {
		return nil, fmt.Errorf("read the source's catalog: %w", err)
	}
	return &cat, nil
}

// noteLostTriggers marks the tables that were captured and have not all of their triggers any more.
func (h *Heroku) noteLostTriggers(ctx context.Context, tx pgx.Tx, tables []*Table) error {
	var captures bool
	if err := tx.QueryRow(ctx, `SELECT to_regclass('heroku_migrator.captured') IS NOT
		NULL`).Scan(&captures); err != nil || !captures {
		return err
	}
	rows, err := tx.Query(ctx, `
		SELECT relid FROM heroku_migrator.captured c
		WHERE EXISTS (SELECT FROM unnest(c.triggers) AS n WHERE NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid =
		c.relid AND g.tgname = n))`)
	if err != nil {
		return err
	}
	lost, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	for _, t := range tables {
		t.Silenced = t.Silenced || slices.Contains(lost, t.ID)
	}
	return err
}

// keyOperator tells values of a key column apart.
type keyOperator struct {
	operator string // in full: OPERATOR(public.=) for a citext column
	cast     string // for a domain: to its base type, since not every operator takes a domain
}

// keyEquals returns, for each key column, the operator of the key's index. It is looked up on each side, since
// an extension may live in another schema there.
func keyEquals(ctx context.Context, q querier, t *Table) ([]keyOperator, error) {
	rows, err := q.Query(ctx, `
		WITH key AS (
			SELECT x.indrelid, x.indkey[0:x.indnkeyatts - 1] AS atts, x.indclass[0:x.indnkeyatts - 1] AS classes
			FROM pg_index x JOIN pg_class c ON c.oid = x.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
			JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_am am ON am.oid = i.relam AND am.amname = 'btree'
			WHERE n.nspname = $1 AND c.relname = $2 AND x.indisunique AND x.indpred IS NULL AND x.indexprs IS NULL
			  AND (SELECT array_agg(a.attname::text ORDER BY k.n)
			       FROM unnest(x.indkey[0:x.indnkeyatts - 1]) WITH ORDINALITY AS k(att, n)
			       JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.att) = $3::text[]
			ORDER BY x.indisprimary DESC, x.indisvalid DESC, x.indexrelid LIMIT 1)
		SELECT format('OPERATOR(%I.%s)', s.nspname, o.oprname),
		       CASE WHEN y.typtype <> 'd' THEN '' ELSE '::' || (
			WITH RECURSIVE base AS (
				SELECT y.typbasetype AS id
				UNION ALL SELECT b.typbasetype FROM base JOIN pg_type b ON b.oid = base.id AND b.typtype = 'd')
			SELECT format('%I.%I', n.nspname, b.typname) FROM base JOIN pg_type b ON b.oid = base.id AND b.typtype <>
			'd'
			JOIN pg_namespace n ON n.oid = b.typnamespace) END
		FROM key CROSS JOIN unnest(key.atts, key.classes) WITH ORDINALITY AS k(att, class, n)
		JOIN pg_attribute a ON a.attrelid = key.indrelid AND a.attnum = k.att JOIN pg_type y ON y.oid = a.atttypid
		JOIN pg_opclass oc ON oc.oid = k.class
		JOIN pg_amop ao ON ao.amopfamily = oc.opcfamily AND ao.amopstrategy = 3 AND ao.amoplefttype = oc.opcintype AND
		ao.amoprighttype = oc.opcintype
		JOIN pg_operator o ON o.oid = ao.amopopr JOIN pg_namespace s ON s.oid = o.oprnamespace
		ORDER BY k.n`, t.Schema, t.Name, t.Key)
	if err != nil {
		return nil, fmt.Errorf("key of %s: %w", t, err)
	}
	ops, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (o keyOperator, err error) {
		err = row.Scan(&o.operator, &o.cast)
		return o, err
	})
	if err != nil {
		return nil, fmt.Errorf("key of %s: %w", t, err)
	}
	if len(ops) == 0 || len(ops) != len(t.Key) {
		return nil, fmt.Errorf("key of %s: %w on (%s)", t, errNoKeyIndex, t.keyList(""))
	}
	return ops, nil
}

var errNoKeyIndex = errors.New("there is no unique index")

// operatorCache remembers the operators of tables whose rows are being moved: they are needed for every chunk and
// every round.
type operatorCache struct {
	mu  sync.Mutex
	ops map[uint32][]keyOperator
}

func (c *operatorCache) get(ctx context.Context, q querier, t *Table) ([]keyOperator, error) {
	c.mu.Lock()
	ops, ok := c.ops[t.ID]
	c.mu.Unlock()
	if ok {
		return ops, nil
	}
	ops, err := keyEquals(ctx, q, t)
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.ops == nil {
			c.ops = map[uint32][]keyOperator{}
		}
		c.ops[t.ID] = ops
	}
	return ops, err
}

// forget is called after a failure, which may come from operators that are not there any more.
func (c *operatorCache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ops = nil
}

// matchKey returns the condition that two rows have the same key.
func matchKey(t *Table, ops []keyOperator, left, right string) string {
	conditions := make([]string, len(t.Key))
	for i, k := range t.Key {
		conditions[i] = fmt.Sprintf("(%s%s)%s %s (%s%s)%s", left, quoteName(k), ops[i].cast, ops[i].operator, right,
			quoteName(k), ops[i].cast)
	}
	return strings.Join(conditions, " AND ")
}
