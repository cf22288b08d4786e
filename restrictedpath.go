package migrator

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// A definition is parsed with an empty search_path, as pg_dump writes it. What it runs (an index evaluates its
// expression, and planning
// inlines SQL functions) would find no name that it writes without a schema; and from version 17 on, CREATE INDEX,
// REFRESH
// MATERIALIZED VIEW and ANALYZE run with a restricted search_path whatever the session's is. So the functions that are
// reached carry the application's path while the object is created: ALTER FUNCTION … SET, and RESET in the same
// transaction, so that
// nobody else ever sees it.

// reachedFunctions are the functions by relation whose names, in their bodies, are resolved by the session's path.
// Those that are
// reached as a column's default alone, which run when a column is added, are found by the relation's name only.
type reachedFunctions struct {
	byID   map[uint32][]string
	byName map[[2]string][]string
}

func (f reachedFunctions) of(schema, name string) []string { return f.byName[[2]string{schema, name}] }

// note adds to each object what its creation may run.
func (f reachedFunctions) note(objects []SchemaObject) {
	for i, o := range objects {
		functions := f.byID[o.Table]
		if o.Table == 0 && (o.Type == "TABLE" || o.Type == "TABLE ATTACH" || strings.HasPrefix(o.Type,
			"MATERIALIZED VIEW")) {
			functions = f.of(o.Schema, o.Name)
		}
		objects[i].Functions = functions
	}
}

// pathFunctions asks for the functions that expressions of tables reach: in indexes, constraints and domains,
// generated columns,
// partition keys, statistics and materialised views. It goes from functions to what depends on them, as there are few
// that matter: those with
// a body as a string and no path of their own. An index of any partition counts for all.
func pathFunctions(ctx context.Context, q querier) (f reachedFunctions, err error) {
	rows, err := q.Query(ctx, `
		WITH RECURSIVE candidate AS (
			SELECT p.oid FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
				JOIN pg_namespace n ON n.oid = p.pronamespace
			WHERE p.oid >= 16384 AND l.lanname NOT IN ('c', 'internal') AND p.prokind = 'f'
			  AND p.prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)
			  AND n.nspname <> 'heroku_migrator' AND n.nspname NOT LIKE 'pg\_temp\_%'
			  AND NOT EXISTS (SELECT FROM unnest(p.proconfig) AS c WHERE c LIKE 'search_path=%')
			  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
				AND d.deptype = 'e')),
		reached(function, classid, objid, late) AS ( -- late: only as a default
			SELECT oid, 'pg_proc'::regclass::oid, oid, false FROM candidate
			UNION
			SELECT r.function, x.classid, x.objid, r.late OR x.late FROM reached r CROSS JOIN LATERAL (
				SELECT d.classid, d.objid, false AS late FROM pg_depend d
				WHERE d.refclassid = r.classid AND d.refobjid = r.objid AND CASE r.classid
					WHEN 'pg_class'::regclass THEN d.classid = 'pg_rewrite'::regclass
					WHEN 'pg_type'::regclass THEN d.classid IN ('pg_class'::regclass, 'pg_type'::regclass)
					ELSE d.classid IN ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_class'::regclass,
						'pg_constraint'::regclass, 'pg_attrdef'::regclass,
						'pg_statistic_ext'::regclass, 'pg_rewrite'::regclass, 'pg_type'::regclass,
							'pg_opclass'::regclass, 'pg_opfamily'::regclass) END
				UNION ALL SELECT 'pg_class'::regclass, i.indrelid, false FROM pg_index i
					WHERE r.classid = 'pg_class'::regclass AND i.indexrelid = r.objid
				UNION ALL SELECT CASE k.conrelid WHEN 0 THEN 'pg_type' ELSE 'pg_class' END::regclass, CASE k.conrelid
					WHEN 0 THEN k.contypid ELSE k.conrelid END, false FROM pg_constraint k
				WHERE r.classid = 'pg_constraint'::regclass AND k.oid = r.objid
				UNION ALL SELECT 'pg_class'::regclass, f.adrelid, a.attgenerated = '' FROM pg_attrdef f
					JOIN pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum
				WHERE r.classid = 'pg_attrdef'::regclass AND f.oid = r.objid
				UNION ALL SELECT 'pg_class'::regclass, s.stxrelid, false FROM pg_statistic_ext s
					WHERE r.classid = 'pg_statistic_ext'::regclass AND s.oid = r.objid
				UNION ALL SELECT 'pg_class'::regclass, w.ev_class, false FROM pg_rewrite w
					WHERE r.classid = 'pg_rewrite'::regclass AND w.oid = r.objid AND w.rulename = '_RETURN'
				UNION ALL SELECT 'pg_class'::regclass, h.inhparent, false FROM pg_inherits h
					WHERE r.classid = 'pg_class'::regclass AND h.inhrelid = r.objid
				UNION ALL SELECT 'pg_class'::regclass, h.inhrelid, false FROM pg_inherits h
					WHERE r.classid = 'pg_class'::regclass AND h.inhparent = r.objid) AS x)
		SELECT c.oid, n.nspname, c.relname, format('%I.%I(%s)', s.nspname, p.proname, oidvectortypes(p.proargtypes)),
			bool_and(r.late)
		FROM reached r JOIN pg_class c ON r.classid = 'pg_class'::regclass AND c.oid = r.objid
			JOIN pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_proc p ON p.oid = r.function JOIN pg_namespace s ON s.oid = p.pronamespace
		WHERE c.relkind IN ('r', 'p', 'm') GROUP BY c.oid, n.nspname, c.relname, s.nspname, p.proname, p.proargtypes
			ORDER BY 1, 4`)
	if err != nil {
		return f, fmt.Errorf("ask for functions in expressions: %w", err)
	}
	f = reachedFunctions{byID: map[uint32][]string{}, byName: map[[2]string][]string{}}
	var id uint32
	var name [2]string
	var function string
	var late bool
	_, err = pgx.ForEachRow(rows, []any{&id, &name[0], &name[1], &function, &late}, func() error {
		f.byName[name] = append(f.byName[name], function)
		if !late {
			f.byID[id] = append(f.byID[id], function)
		}
		return nil
	})
	if err != nil {
		return f, fmt.Errorf("ask for functions in expressions: %w", err)
	}
	return f, nil
}

// underPath is the statements that create an object, in a transaction that has loaded the path. What has no expression
// of its
// own, and runs queries on whole tables, has the application's path for its own.
func (o SchemaObject) underPath(sql string) string {
	switch {
	case o.Type == "FK CONSTRAINT", o.Type == typeValidation:
		return `SELECT set_config('search_path', current_setting('heroku_migrator.search_path'), true)` + ";\n" + sql +
			";\n" + leavePath
	case len(o.Functions) == 0:
		return emptyPath + ";\n" + sql
	}
	// A function with a path is not inlined. One that is not IMMUTABLE by itself can be in an index or a generated
	// column if it is inlined, so it stays as it is there.
	immutable := !strings.HasPrefix(o.Type, "MATERIALIZED VIEW")
	return setFunctionPaths(o.Functions, immutable) + ";\n" + emptyPath + ";\n" + sql + ";\n" + resetFunctionPaths
}

// setFunctionPaths gives the path to those that are there, are ours and have none; resetFunctionPaths takes it from
// them. Which they were is
// kept in a setting of the transaction: an object may be a function of the list.
func setFunctionPaths(functions []string, immutable bool) string {
	return fmt.Sprintf(`DO $path$ DECLARE f text; path text := current_setting('heroku_migrator.search_path'); BEGIN
		IF path IN ('', '""') THEN path := ''''''; END IF;
		PERFORM set_config('heroku_migrator.functions', '', true);
		FOR f IN SELECT p.oid::regprocedure::text FROM unnest(ARRAY[%s]) AS n(name)
			JOIN pg_proc p ON p.oid = to_regprocedure(n.name)
			WHERE pg_has_role(p.proowner, 'USAGE') AND (p.provolatile = 'i' OR NOT %t)
			AND NOT EXISTS (SELECT FROM unnest(p.proconfig) AS c WHERE c LIKE 'search_path=%%') LOOP
			EXECUTE format('ALTER FUNCTION %%s SET search_path = %%s', f, path);
			PERFORM set_config('heroku_migrator.functions', concat(current_setting('heroku_migrator.functions'), f,
				E'\n'), true);
		END LOOP;
	END $path$`, literals(functions), immutable)
}

const resetFunctionPaths = `DO $path$ DECLARE f text; BEGIN
		FOREACH f IN ARRAY string_to_array(current_setting('heroku_migrator.functions'), E'\n') LOOP
			IF to_regprocedure(f) IS NOT NULL THEN
				EXECUTE format('ALTER FUNCTION %s RESET search_path', f);
			END IF;
		END LOOP;
	END $path$`

// literals writes strings for a list in SQL.
func literals(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = quoteLiteral(s)
	}
	return strings.Join(quoted, ", ")
}

// preparePath readies a transaction for underPath. It waits until no other transaction has given these functions a
// path: Postgres has no lock for that, and fails. It comes
// before any lock on a table, so nobody waits for us who has one.
func preparePath(ctx context.Context, tx pgx.Tx, functions []string) error {
	if _, err := tx.Exec(ctx, loadPath); err != nil {
		return fmt.Errorf("search path: %w", err)
	}
	if len(functions) == 0 {
		return nil
	}
	functions = slices.Clone(functions)
	slices.Sort(functions)
	_, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended('heroku_migrator.' || f.name, 0))
		FROM unnest($1::text[]) WITH ORDINALITY AS f(name, n) ORDER BY f.n`, slices.Compact(functions))
	if err != nil {
		return fmt.Errorf("wait for functions that another build uses: %w", err)
	}
	return nil
}
