package migrator

import (
	"context"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/heroku-migrator/migrator/internal/pgdump"
)

// Which relation an object of the schema is part of, and when it is created. Objects are told by their rows in the
// catalog: their names, joined to tags, may be ambiguous.

// objectOwner says to which table an object belongs, and how to take it away.
type objectOwner struct {
	parent Relation // the relation itself
	table  uint32   // its root, if it is a partition
	undo   string
	always bool // a trigger that fires in sessions with session_replication_role = replica
	late   bool // it uses a function that exists only when all keys do
}

// catalogRow names an object by its catalog and its OID there.
type catalogRow struct{ class, oid uint32 }

// objectOwners knows the owners of objects.
type objectOwners struct {
	rows    map[catalogRow]objectOwner
	indexes map[Relation]objectOwner // by schema and name, for what attaches them, which has no row
}

func (l objectOwners) of(e pgdump.Entry) objectOwner {
	if e.Type == "INDEX ATTACH" {
		return l.indexes[Relation{Schema: e.Schema, Name: e.Name}]
	}
	return l.rows[catalogRow{e.Class, e.OID}]
}

// placedObjects decides when the entries of a dump are created. Ours are left out.
func placedObjects(entries []pgdump.Entry, owners objectOwners) []SchemaObject {
	var objects []SchemaObject
	ids := map[int]int{} // of entries, to those of objects
	for _, e := range entries {
		owner := owners.of(e)
		if own := strings.TrimPrefix(e.Name, owner.parent.Name+" "); e.Type == "TRIGGER" && strings.HasPrefix(own,
			"heroku_migrator_") {
			continue // ours
		}
		ids[e.ID] = len(objects) + 1
		o := SchemaObject{
			ID: len(objects) + 1, Type: e.Type, Schema: e.Schema, Name: e.Name, SQL: e.SQL, State: ObjectPending,
			Parent: owner.parent, Drop: e.Drop, Class: e.Class, OID: e.OID,
		}
		for _, id := range e.Needs {
			if need, ok := ids[id]; ok {
				o.Needs = append(o.Needs, need)
			}
		}
		if o.Type == "COMMENT" && len(o.Needs) > 0 {
			on := objects[o.Needs[0]-1]
			if o.Parent = on.Parent; on.relation() {
				o.Parent = Relation{ID: on.OID, Schema: on.Schema, Name: on.Name}
			}
		}
		objects = append(objects, o.placed(e.Section, owner, objects))
	}
	return objects
}

// relation tells whether it is a relation that has parts.
func (o SchemaObject) relation() bool {
	return slices.Contains([]string{"TABLE", "VIEW", "MATERIALIZED VIEW", "FOREIGN TABLE", "SEQUENCE"}, o.Type)
}

// commentsOn tells whether it is the comment on an object of one of these types.
func (o SchemaObject) commentsOn(objects []SchemaObject, types ...string) bool {
	if o.Type != "COMMENT" || len(o.Needs) == 0 {
		return false
	}
	i, found := slices.BinarySearchFunc(objects, o.Needs[0], func(o SchemaObject, id int) int { return o.ID - id })
	return found && slices.Contains(types, objects[i].Type)
}

// placed decides when an object is created; before are those that stand before it.
func (o SchemaObject) placed(section pgdump.Section, owner objectOwner, before []SchemaObject) SchemaObject {
	o.Undo = owner.undo
	switch {
	case section == pgdump.PreData:
		o.Stage = StageTables
		if o.Type == "SCHEMA" { // public exists already, and others may
			o.SQL = strings.Replace(o.SQL, "CREATE SCHEMA ", "CREATE SCHEMA IF NOT EXISTS ", 1)
		}
	case o.Type == "FK CONSTRAINT":
		o.Stage, o.Table = StageForeign, owner.table
	case o.Type == "RULE" && o.ownName() == "_RETURN": // a view's body, which had to wait for a key
		o.Stage = StageFinish
	case o.Type == "RULE", o.Type == "TRIGGER" && owner.always, o.commentsOn(before, "TRIGGER", "RULE"):
		o.Stage = StageSwitch
	case owner.table != 0 && slices.Contains([]string{"INDEX", "INDEX ATTACH", "CONSTRAINT", "CHECK CONSTRAINT",
		"STATISTICS"}, o.Type) && !owner.late:
		o.Stage, o.Table = StageIndexes, owner.table
	default:
		o.Stage = StageFinish
	}
	if o.Stage == StageFinish || o.Stage == StageSwitch {
		o.Table = owner.table
	}
	return o
}

// objectTables finds the relation of everything that is part of one: indexes, constraints, statistics, triggers, rules,
// policies, defaults. The table of what belongs to a partition is the root.
//
// A function written BEGIN ATOMIC may rely on a primary key (GROUP BY id), of any table. pg_dump has it after the keys
// then, and what uses it in an expression (late) cannot be created together with its own table's indexes.
func objectTables(ctx context.Context, q querier) (objectOwners, error) {
	owners := objectOwners{rows: map[catalogRow]objectOwner{}, indexes: map[Relation]objectOwner{}}
	// Names are text: a UNION with a branch of type name cuts those of all others at 63 bytes.
	rows, err := q.Query(ctx, `
		WITH RECURSIVE late AS (
			SELECT classid, objid FROM pg_depend
			WHERE classid = 'pg_proc'::regclass AND refclassid = 'pg_constraint'::regclass
			UNION
			SELECT d.classid, d.objid FROM late l JOIN pg_depend d ON d.refclassid = l.classid AND d.refobjid = l.objid
			WHERE d.classid IN ('pg_proc'::regclass, 'pg_constraint'::regclass, 'pg_statistic_ext'::regclass)
			   OR (d.classid = 'pg_class'::regclass AND EXISTS (SELECT 1 FROM pg_index x
				WHERE x.indexrelid = d.objid))),
		rel AS (
			SELECT c.oid, n.nspname::text, c.relname::text, CASE WHEN c.relkind IN ('m', 'f')
				THEN 0 -- has no rows of ours
				ELSE coalesce((SELECT r.relid::oid FROM pg_partition_ancestors(c.oid) WITH ORDINALITY AS r(relid, n)
				               ORDER BY n DESC LIMIT 1), c.oid) END AS root
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND `+userRelations+`),
		parts(class, oid, rel, index, undo, always, late) AS (
			SELECT 'pg_class'::regclass::oid, x.indexrelid, x.indrelid, i.relname::text, '', false, false
			FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
			UNION ALL
			SELECT 'pg_constraint'::regclass, k.oid, k.conrelid, '',
			       format('ALTER TABLE %I.%I DROP CONSTRAINT IF EXISTS %I', r.nspname, r.relname, k.conname), false,
			       k.conindid IN (SELECT objid FROM late WHERE classid = 'pg_class'::regclass)
			FROM pg_constraint k JOIN rel r ON r.oid = k.conrelid
			UNION ALL
			SELECT 'pg_statistic_ext'::regclass, s.oid, s.stxrelid, '', '', false, false FROM pg_statistic_ext s
			UNION ALL
			SELECT 'pg_trigger'::regclass, t.oid, t.tgrelid, '',
			       CASE WHEN t.tgparentid = 0 THEN format('DROP TRIGGER IF EXISTS %I ON %I.%I', t.tgname, r.nspname,
				r.relname)
			       ELSE format('DO $undo$ BEGIN ALTER TABLE ONLY %I.%I DISABLE TRIGGER %I; `+
		`EXCEPTION WHEN undefined_object OR undefined_table THEN NULL; END $undo$',
			                   r.nspname, r.relname, t.tgname) END, -- the clone of a root's trigger, which may stay
			       t.tgenabled IN ('A', 'R') OR EXISTS (
				SELECT 1 FROM pg_trigger p JOIN pg_class pc ON pc.oid = p.tgrelid
				WHERE t.tgparentid <> 0 AND p.tgname = t.tgname AND p.tgrelid = r.root
					AND p.tgenabled IN ('A', 'R')), false
			FROM pg_trigger t JOIN rel r ON r.oid = t.tgrelid WHERE NOT t.tgisinternal
			UNION ALL
			SELECT 'pg_rewrite'::regclass, w.oid, w.ev_class, '',
			       CASE WHEN w.rulename <> '_RETURN' THEN format('DROP RULE IF EXISTS %I ON %I.%I', w.rulename,
				r.nspname, r.relname)
			       ELSE '' END, false, false
			FROM pg_rewrite w JOIN rel r ON r.oid = w.ev_class
			UNION ALL
			SELECT 'pg_policy'::regclass, o.oid, o.polrelid, '', '', false, false FROM pg_policy o
			UNION ALL
			SELECT 'pg_attrdef'::regclass, f.oid, f.adrelid, '', '', false, false FROM pg_attrdef f)
		SELECT p.class, p.oid, p.index, r.oid, r.nspname, r.relname, r.root, p.undo, p.always,
		       p.late OR (p.class, p.oid) IN (SELECT classid, objid FROM late)
		FROM parts p JOIN rel r ON r.oid = p.rel`)
	if err != nil {
		return owners, err
	}
	var row catalogRow
	var index string
	var o objectOwner
	_, err = pgx.ForEachRow(rows, []any{
		&row.class, &row.oid, &index, &o.parent.ID, &o.parent.Schema, &o.parent.Name, &o.table, &o.undo, &o.always,
		&o.late,
	}, func() error {
		owners.rows[row] = o
		if index != "" {
			owners.indexes[Relation{Schema: o.parent.Schema, Name: index}] = o
		}
		return nil
	})
	return owners, err
}
