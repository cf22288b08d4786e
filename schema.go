package migrator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/heroku-migrator/migrator/internal/pgdump"
	"github.com/heroku-migrator/migrator/internal/pgurl"
)

// Stage tells when an object of the schema is created on the target.
type Stage string

// The stages, in the order in which they are walked.
const (
	StageTables  Stage = "tables"       // before any row: types, functions, tables, views
	StageIndexes Stage = "indexes"      // when the rows of its table are there
	StageForeign Stage = "foreign_keys" // when all tables stand at one snapshot
	StageFinish  Stage = "finish"       // what may exist while changes are applied
	StageSwitch  Stage = "switch"       // what would interfere with applying changes
)

// ObjectState is what became of an object of the schema.
type ObjectState string

// The states of an object.
const (
	ObjectPending ObjectState = "pending"
	ObjectDone    ObjectState = "done"
	ObjectFailed  ObjectState = "failed"  // needs a person; tried again with the next run
	ObjectSkipped ObjectState = "skipped" // could not be created, and the migration goes on without; reported
)

// SchemaObject is the definition of one object.
type SchemaObject struct {
	ID     int
	Stage  Stage
	Type   string // as pg_restore names it
	Schema string
	Name   string // as pg_restore names it
	Table  uint32 // the table it belongs to, if it is created with it
	SQL    string
	Undo   string // for StageSwitch: takes it away again, for a revert
	State  ObjectState
	Error  string
}

func (o SchemaObject) String() string {
	name := o.Name
	if o.Schema != "" {
		name = o.Schema + "." + name
	}
	return strings.ToLower(o.Type) + " " + name
}

// dumpTools finds pg_dump and pg_restore when they are first needed.
type dumpTools struct{ dump, restore string }

// DumpSchema implements [Source] by pg_dump and pg_restore.
func (h *Heroku) DumpSchema(ctx context.Context) ([]SchemaObject, error) {
	tools, err := pgdump.Find(ctx, h.tools.dump, h.tools.restore)
	if err != nil {
		return nil, fmt.Errorf("dump the schema: %w", err)
	}
	entries, err := pgdump.Schema(ctx, tools, h.url.LibpqEnv(), SchemaName)
	if failed := new(pgdump.Error); errors.As(err, &failed) {
		if failed.LockTimeout() {
			return nil, fmt.Errorf("dump the schema: %w: another session holds an exclusive lock on a table", ErrBusy)
		}
		return nil, fmt.Errorf("dump the schema: %s", pgurl.Redact(err.Error(), h.url))
	}
	if err != nil {
		return nil, fmt.Errorf("dump the schema: %w", err)
	}
	owners, err := h.objectTables(ctx)
	if err != nil {
		return nil, fmt.Errorf("dump the schema: %w", err)
	}
	var objects []SchemaObject
	for _, e := range entries {
		if strings.Contains(e.SQL, `TRIGGER "heroku_migrator_`) {
			continue // ours
		}
		o := SchemaObject{ID: len(objects) + 1, Type: e.Type, Schema: e.Schema, Name: e.Name, SQL: e.SQL, State: ObjectPending}
		owner := owners[e.Type+"\x00"+e.Schema+"\x00"+e.Name]
		objects = append(objects, o.placed(e.Section, owner))
	}
	for i, o := range objects { // in the order of the dump, which is that of their dependencies
		first, rest := o.split()
		objects[i] = first
		if rest.Type != "" {
			rest.ID = len(objects) + 1
			objects = append(objects, rest)
		}
	}
	return objects, nil
}

// Types of objects that pg_restore does not know.
const (
	typeViewData   = "MATERIALIZED VIEW DATA" // fills a materialised view
	typeValidation = "FK VALIDATION"          // looks whether all rows satisfy a foreign key
)

// split takes from an object the part of its work that takes long, if there is such a part, and returns it as one
// that is to follow.
func (o SchemaObject) split() (first, rest SchemaObject) {
	rest = SchemaObject{Schema: o.Schema, Name: o.Name, Table: o.Table, State: ObjectPending}
	switch o.Type {
	case "MATERIALIZED VIEW":
		name := Relation{Schema: o.Schema, Name: o.Name}.Ident()
		rest.Stage, rest.Type = StageFinish, typeViewData
		rest.SQL = "REFRESH MATERIALIZED VIEW " + name + ";\nANALYZE " + name
	case "FK CONSTRAINT":
		// Partitioned tables, which are written without ONLY, cannot have foreign keys that are not valid.
		sql := strings.TrimRight(o.SQL, "; \n")
		if strings.Contains(sql, "ALTER TABLE ONLY ") && !strings.HasSuffix(sql, "NOT VALID") && !strings.HasSuffix(sql, "NOT ENFORCED") && o.Undo != "" {
			o.SQL = sql + " NOT VALID;"
			rest.Stage, rest.Type = o.Stage, typeValidation
			rest.SQL = strings.Replace(o.Undo, " DROP CONSTRAINT IF EXISTS ", " VALIDATE CONSTRAINT ", 1)
		}
	}
	return o, rest
}

// objectOwner says to which table an object belongs, and how to take it away.
type objectOwner struct {
	table  uint32
	undo   string
	always bool // a trigger that fires in sessions with session_replication_role = replica
}

// placed decides when an object is created.
func (o SchemaObject) placed(section pgdump.Section, owner objectOwner) SchemaObject {
	o.Undo = owner.undo
	switch {
	case section == pgdump.PreData:
		o.Stage = StageTables
		if o.Type == "SCHEMA" { // public exists already, and others may
			o.SQL = strings.Replace(o.SQL, "CREATE SCHEMA ", "CREATE SCHEMA IF NOT EXISTS ", 1)
		}
	case o.Type == "FK CONSTRAINT":
		o.Stage, o.Table = StageForeign, owner.table
	case o.Type == "RULE" && strings.HasSuffix(o.Name, " _RETURN"): // a view's body, which had to wait for a key
		o.Stage = StageFinish
	case o.Type == "RULE", o.Type == "TRIGGER" && owner.always,
		o.Type == "COMMENT" && (strings.HasPrefix(o.Name, "TRIGGER ") || strings.HasPrefix(o.Name, "RULE ")):
		o.Stage = StageSwitch
	case owner.table != 0 && o.Type != "TRIGGER":
		o.Stage, o.Table = StageIndexes, owner.table
	default:
		o.Stage = StageFinish
	}
	if o.Stage == StageFinish || o.Stage == StageSwitch {
		o.Table = owner.table
	}
	return o
}

// objectTables maps what pg_restore calls an object to its table: indexes, constraints, triggers, rules.
// Those of partitions belong to the root.
func (h *Heroku) objectTables(ctx context.Context) (map[string]objectOwner, error) {
	rows, err := h.pool.Query(ctx, `
		WITH rel AS (
			SELECT c.oid, n.nspname, c.relname, c.relkind,
			       coalesce((SELECT r.relid::oid FROM pg_partition_ancestors(c.oid) WITH ORDINALITY AS r(relid, n) ORDER BY n DESC LIMIT 1), c.oid) AS root
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE c.relkind IN ('r', 'p', 'v') AND `+userRelations+`)
		SELECT 'INDEX', r.nspname, i.relname, r.root, '', false
		FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN rel r ON r.oid = x.indrelid
		UNION ALL
		SELECT 'INDEX ATTACH', r.nspname, i.relname, r.root, '', false
		FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN rel r ON r.oid = x.indrelid
		UNION ALL
		SELECT CASE k.contype WHEN 'f' THEN 'FK CONSTRAINT' WHEN 'c' THEN 'CHECK CONSTRAINT' ELSE 'CONSTRAINT' END,
		       r.nspname, r.relname || ' ' || k.conname, r.root,
		       format('ALTER TABLE %I.%I DROP CONSTRAINT IF EXISTS %I', r.nspname, r.relname, k.conname), false
		FROM pg_constraint k JOIN rel r ON r.oid = k.conrelid
		UNION ALL
		SELECT 'TRIGGER', r.nspname, r.relname || ' ' || t.tgname, r.root,
		       CASE WHEN t.tgparentid <> 0 THEN '' ELSE format('DROP TRIGGER IF EXISTS %I ON %I.%I', t.tgname, r.nspname, r.relname) END,
		       t.tgenabled IN ('A', 'R') OR EXISTS (
			SELECT 1 FROM pg_trigger p JOIN pg_class pc ON pc.oid = p.tgrelid
			WHERE t.tgparentid <> 0 AND p.tgname = t.tgname AND p.tgrelid = r.root AND p.tgenabled IN ('A', 'R'))
		FROM pg_trigger t JOIN rel r ON r.oid = t.tgrelid WHERE NOT t.tgisinternal
		UNION ALL
		SELECT 'RULE', r.nspname, r.relname || ' ' || w.rulename, r.root,
		       format('DROP RULE IF EXISTS %I ON %I.%I', w.rulename, r.nspname, r.relname), false
		FROM pg_rewrite w JOIN rel r ON r.oid = w.ev_class WHERE w.rulename <> '_RETURN'`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	owners := map[string]objectOwner{}
	for rows.Next() {
		var kind, schema, name string
		var o objectOwner
		if err := rows.Scan(&kind, &schema, &name, &o.table, &o.undo, &o.always); err != nil {
			return nil, err
		}
		owners[kind+"\x00"+schema+"\x00"+name] = o
	}
	return owners, rows.Err()
}

// CloneSchemaConfig configures [CloneSchema]. The zero value is good.
type CloneSchemaConfig struct {
	Logger *slog.Logger
}

// CloneSchema records the source's schema in the target's journal, and creates everything there that has
// to exist before the first row: types, functions, tables, views. Indexes, constraints and triggers
// follow in later phases. Repeated, it goes on where it was.
//
// An object that the role may not create, and that no row depends on (an extension's comment, say), is
// reported through the journal and skipped; any other failure is an [*ObjectError].
func CloneSchema(ctx context.Context, src Source, dst Target, cfg CloneSchemaConfig) error {
	objects, err := dst.Journal().Objects(ctx)
	if err != nil {
		return err
	}
	if len(objects) == 0 {
		if objects, err = src.DumpSchema(ctx); err != nil {
			return err
		}
		capable, err := dst.AppliesSilently(ctx)
		if err != nil {
			return err
		}
		for i := range objects {
			o := &objects[i]
			constraint := o.Stage == StageFinish && o.Type == "COMMENT" && strings.HasPrefix(o.Name, "CONSTRAINT ")
			if !capable && (o.Stage == StageForeign || o.Type == "TRIGGER" || constraint) {
				o.Stage = StageSwitch // they would fire for every change that is applied
			}
		}
		if err := dst.Journal().AddObjects(ctx, objects); err != nil {
			return err
		}
	}
	return createObjects(ctx, dst, logger(cfg.Logger), objects, StageTables)
}

// createObjects creates what is not there yet of a stage, in order.
func createObjects(ctx context.Context, dst Target, log *slog.Logger, objects []SchemaObject, stage Stage) error {
	var todo []SchemaObject
	for _, o := range objects {
		if o.Stage == stage && o.State != ObjectDone && o.State != ObjectSkipped {
			todo = append(todo, o)
		}
	}
	for len(todo) > 0 {
		n := min(len(todo), 50)
		if err := createBatch(ctx, dst, log, todo[:n]); err != nil {
			return err
		}
		todo = todo[n:]
	}
	return nil
}

// createBatch tries all in one transaction; if that fails, one by one, to find the culprit.
func createBatch(ctx context.Context, dst Target, log *slog.Logger, batch []SchemaObject) error {
	err := dst.Create(ctx, batch)
	if err == nil || ctx.Err() != nil || Retryable(err) || sqlState(err) == "" {
		return err
	}
	for _, o := range batch {
		err := dst.Create(ctx, []SchemaObject{o})
		switch {
		case err == nil:
		case ctx.Err() != nil || Retryable(err) || sqlState(err) == "":
			return err
		case o.optional():
			log.WarnContext(ctx, "an object could not be created on the target; going on without it", "object", o.String(), "reason", err.Error())
			if err := dst.Journal().MarkObject(ctx, o.ID, ObjectSkipped, err.Error()); err != nil {
				return err
			}
			if err := dst.Journal().Record(ctx, Event{Kind: EventWarning, Message: fmt.Sprintf("%s could not be created on the target and was left out: %v", o, err)}); err != nil {
				return err
			}
		default:
			if err := dst.Journal().MarkObject(ctx, o.ID, ObjectFailed, err.Error()); err != nil {
				return err
			}
			return &ObjectError{Object: o, Err: err}
		}
	}
	return nil
}

// optional tells whether the migration can do without an object that could not be created.
func (o SchemaObject) optional() bool {
	switch o.Type {
	case typeViewData, "COMMENT", "PUBLICATION", "PUBLICATION TABLE", "PUBLICATION TABLES IN SCHEMA", "EVENT TRIGGER", "SERVER", "USER MAPPING", "FOREIGN TABLE", "FOREIGN DATA WRAPPER":
		return true
	case "EXTENSION":
		return optionalExtensions[o.Name]
	default:
		return false
	}
}

// optionalExtensions watch a server rather than serve an application.
var optionalExtensions = map[string]bool{
	"pg_stat_statements": true, "pg_buffercache": true, "pg_prewarm": true, "pgstattuple": true, "pgrowlocks": true,
	"pg_freespacemap": true, "pg_visibility": true, "amcheck": true, "pageinspect": true, "auto_explain": true,
}
