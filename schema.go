package migrator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/heroku-migrator/migrator/internal/pgdump"
	"github.com/heroku-migrator/migrator/internal/pgurl"
)

// Stage tells when an object of the schema is created on the target.
type Stage string

// The stages, in the order in which they are walked.
const (
	StageTables   Stage = "tables"       // before any row: types, functions, tables, views
	StageIndexes  Stage = "indexes"      // when the rows of its table are there
	StageForeign  Stage = "foreign_keys" // when all tables stand at one snapshot
	StageFinish   Stage = "finish"       // what may exist while changes are applied
	StageSwitch   Stage = "switch"       // what would interfere with applying changes
	StageValidate Stage = "validate"     // after the switch, while the application writes
)

// ObjectState is what became of an object of the schema.
type ObjectState string

// The states of an object.
const (
	ObjectPending ObjectState = "pending"
	ObjectDone    ObjectState = "done"
	ObjectFailed  ObjectState = "failed"   // needs a person; tried again with the next run
	ObjectSkipped ObjectState = "skipped"  // could not be created, and the migration goes on without; reported
	ObjectLeftOut ObjectState = "left_out" // a person said so by name, or it needs such an object; reported
)

// SchemaObject is the definition of one object.
type SchemaObject struct {
	ID     int
	Stage  Stage
	Type   string // as pg_dump names it
	Schema string
	Name   string // as pg_dump tags it: "table constraint" for a constraint, for example
	Table  uint32 // the table it belongs to, if it is created with it: the root of a partition
	SQL    string
	Undo   string // for StageSwitch: takes it away again, for a revert
	State  ObjectState
	Error  string

	// Parent is the relation that it is part of, if it is part of one: constraints, indexes, triggers, rules, policies,
	// defaults, statistics, and comments on a relation or on one of these.
	Parent Relation
	Drop   string // the statement that drops it, if pg_dump has one
	Needs  []int  // IDs of objects that are created before it because it depends on them
	// Class and OID are its row in the source's catalog; zero if it has none of its own.
	Class, OID uint32

	// Functions may be run when it is created, and resolve names by the session's search_path; see restrictedpath.go.
	Functions []string

	path string // the application's search_path, where the source has just said it
}

func (o SchemaObject) String() string {
	name := o.Name
	if o.Schema != "" {
		name = o.Schema + "." + name
	}
	return strings.ToLower(o.Type) + " " + name
}

// key tells objects apart. A tag alone does not: where the table's name in it ends, a space does not tell.
func (o SchemaObject) key() string {
	if own := o.ownName(); own != o.Name {
		return strings.Join([]string{o.Type, o.Schema, o.Parent.Name, own}, "\x00")
	}
	if o.Type == "OPERATOR" { // the tag lacks its arguments
		return strings.Join([]string{o.Type, o.Schema, o.Drop}, "\x00")
	}
	return strings.Join([]string{o.Type, o.Schema, o.Name}, "\x00")
}

// ownName is its name within the relation that it is part of.
func (o SchemaObject) ownName() string {
	switch o.Type {
	case "CONSTRAINT", "FK CONSTRAINT", "CHECK CONSTRAINT", "TRIGGER", "RULE", "POLICY", "DEFAULT", typeValidation,
		typeNotNull, typeCheck, typeHeldBack, typeCheckValidation, typeLateValidation:
		return strings.TrimPrefix(o.Name, o.Parent.Name+" ")
	}
	return o.Name
}

// constraint is the same for a constraint and its validation.
func (o SchemaObject) constraint() string {
	return strings.Join([]string{o.Schema, o.Parent.Name, o.ownName()}, "\x00")
}

// DumpSchema implements [Source] by pg_dump. It and we look at one snapshot.
func (h *Heroku) DumpSchema(ctx context.Context) (objects []SchemaObject, fingerprint string, err error) {
	err = pgx.BeginTxFunc(ctx, h.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly},
		func(tx pgx.Tx) error {
			if err := tx.QueryRow(ctx, fingerprintSQL).Scan(&fingerprint); err != nil {
				return err
			}
			objects, err = h.dumpSchema(ctx, tx)
			return err
		})
	if err != nil {
		return nil, "", fmt.Errorf("dump the schema: %w", err)
	}
	return objects, fingerprint, nil
}

func (h *Heroku) dumpSchema(ctx context.Context, tx pgx.Tx) ([]SchemaObject, error) {
	tools, err := pgdump.Find(ctx, h.pgDump)
	if err != nil {
		return nil, err
	}
	url, err := h.url.current(ctx)
	if err != nil {
		return nil, err
	}
	var snapshot string
	if err := tx.QueryRow(ctx, `SELECT pg_export_snapshot()`).Scan(&snapshot); err != nil {
		return nil, err
	}
	// It locks every table, and holds all of these locks while it waits for the next.
	name := fmt.Sprintf("%s dump %08x", SchemaName, rand.Uint32()) //nolint:gosec // not a secret
	locks := h.way.enter(ctx, 0, name, "dump")
	entries, err := pgdump.Schema(ctx, tools, append(url.LibpqEnv(), "PGAPPNAME="+name),
		pgdump.SchemaOptions{Snapshot: snapshot, LeaveOut: []string{SchemaName}})
	if locks.leave() && err != nil {
		return nil, fmt.Errorf("%w: pg_dump was ended: %s", errGaveWay, pgurl.Redact(err.Error(), url))
	}
	if failed := new(pgdump.Error); errors.As(err, &failed) {
		if failed.LockTimeout() {
			return nil, fmt.Errorf("%w: another session holds an exclusive lock on a table", ErrBusy)
		}
		if failed.Passing() {
			return nil, fmt.Errorf("%w: %s", errPassing, pgurl.Redact(err.Error(), url))
		}
		return nil, errors.New(pgurl.Redact(err.Error(), url))
	}
	if err != nil {
		return nil, err
	}
	owners, err := objectTables(ctx, tx)
	if err != nil {
		return nil, err
	}
	objects := placedObjects(entries, owners)
	constraints, err := h.checks.Read(ctx, tx, nil)
	if err != nil {
		return nil, err
	}
	objects = append(leaveOutChecks(objects, constraints), heldBackObjects(constraints)...)
	ids := map[int]int{}
	for i := range objects {
		ids[objects[i].ID] = i + 1
		objects[i].ID, objects[i].Needs = i+1, renumbered(objects[i].Needs, ids)
	}
	for i, o := range objects {
		if adding, validation, ok := o.unvalidated(); ok {
			validation.ID, validation.Needs = len(objects)+1, []int{o.ID}
			objects[i] = adding
			objects = append(objects, validation)
		}
	}
	if err := noteLabels(ctx, tx, objects); err != nil {
		return nil, err
	}
	reached, err := pathFunctions(ctx, tx)
	if err != nil {
		return nil, err
	}
	path, err := searchPath(ctx, tx)
	if err != nil {
		return nil, err
	}
	reached.note(objects)
	settings, err := databaseSettings(ctx, tx)
	if err != nil {
		return nil, err
	}
	for _, o := range settings {
		o.ID = len(objects) + 1
		objects = append(objects, o)
	}
	views, err := viewOrder(ctx, tx)
	if err != nil {
		return nil, err
	}
	for _, v := range views {
		if !v.populated {
			continue // it stays without data
		}
		objects = append(objects, SchemaObject{
			ID: len(objects) + 1, Stage: StageFinish, Type: typeViewData, Schema: v.Schema, Name: v.Name,
			State: ObjectPending, Functions: reached.of(v.Schema, v.Name),
			SQL: v.fill(),
		})
	}
	for i := range objects {
		objects[i].path = path
	}
	return objects, nil
}

// Types of objects that pg_dump does not know.
const (
	typeViewData   = "MATERIALIZED VIEW DATA" // fills a materialised view
	typeValidation = "FK VALIDATION"          // looks whether all rows satisfy a foreign key
)

// unvalidated cuts a foreign key in two: one that is added without a look at the rows, and its validation.
// Partitioned tables, which are written without ONLY, cannot have such.
func (o SchemaObject) unvalidated() (adding, validation SchemaObject, ok bool) {
	sql := strings.TrimRight(o.SQL, "; \n")
	if o.Type != "FK CONSTRAINT" || o.Undo == "" || !strings.Contains(sql, "ALTER TABLE ONLY ") ||
		strings.HasSuffix(sql, "NOT VALID") || strings.HasSuffix(sql, "NOT ENFORCED") {
		return o, validation, false
	}
	validation = SchemaObject{
		Stage: o.Stage, Type: typeValidation, Schema: o.Schema, Name: o.Name, Table: o.Table, Parent: o.Parent,
		State: ObjectPending,
		SQL:   strings.Replace(o.Undo, " DROP CONSTRAINT IF EXISTS ", " VALIDATE CONSTRAINT ", 1),
	}
	o.SQL = sql + " NOT VALID;"
	return o, validation, true
}

// filledView is a materialised view.
type filledView struct {
	Relation
	populated bool
	// reads are materialised views without data that it reads, in order.
	reads []string
}

// fill gives the view its data, and collects its statistics, which nothing else would do soon. A view without data that
// it reads had some when the source's was filled, so it is filled for that moment.
func (v filledView) fill() string {
	var sql []string
	for _, name := range v.reads {
		sql = append(sql, "REFRESH MATERIALIZED VIEW "+name)
	}
	sql = append(sql, "REFRESH MATERIALIZED VIEW "+v.Ident())
	for _, name := range slices.Backward(v.reads) {
		sql = append(sql, "REFRESH MATERIALIZED VIEW "+name+" WITH NO DATA")
	}
	return strings.Join(append(sql, "ANALYZE "+v.Ident()), "; ")
}

// viewOrder lists materialised views, each after those that it reads: it uses more of them than any of these does. The
// dump's order is another one, since a view may stand in it before what it reads.
func viewOrder(ctx context.Context, q querier) ([]filledView, error) {
	rows, err := q.Query(ctx, `
		WITH RECURSIVE used(view, classid, objid) AS (
			SELECT oid, 'pg_class'::regclass::oid, oid FROM pg_class WHERE relkind = 'm'
			UNION
			SELECT u.view, d.refclassid, d.refobjid
			FROM used u LEFT JOIN pg_rewrite w ON u.classid = 'pg_class'::regclass AND w.ev_class = u.objid
			JOIN pg_depend d ON (d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid) OR (d.classid =
				'pg_proc'::regclass AND u.classid = d.classid AND d.objid = u.objid)
			WHERE d.refclassid IN ('pg_class'::regclass, 'pg_proc'::regclass)),
		view AS (
			SELECT c.oid, n.nspname, c.relname, c.relispopulated, array_remove(array_agg(m.oid), c.oid) AS reads
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			JOIN used u ON u.view = c.oid AND u.classid = 'pg_class'::regclass JOIN pg_class m ON m.oid = u.objid AND
				m.relkind = 'm'
			WHERE c.relkind = 'm' AND`+userRelations+`
			GROUP BY c.oid, n.nspname)
		SELECT v.oid, v.nspname, v.relname, v.relispopulated, ARRAY (
			SELECT format('"%s"."%s"', replace(r.nspname, '"', '""'), replace(r.relname, '"', '""')) FROM view r
			WHERE r.oid = ANY (v.reads) AND NOT r.relispopulated ORDER BY cardinality(r.reads), r.oid)
		FROM view v ORDER BY cardinality(v.reads), v.oid`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (v filledView, err error) {
		err = row.Scan(&v.ID, &v.Schema, &v.Name, &v.populated, &v.reads)
		return v, err
	})
}

// CloneSchemaConfig configures [CloneSchema]. The zero value is good.
type CloneSchemaConfig struct {
	// LeaveOut names objects that are not created on the target, see [Config].
	LeaveOut []string
	Logger   *slog.Logger

	dumped *dumpedSchema // what preflight has read; nil: nothing
}

// dumpedSchema is the source's schema at one moment.
type dumpedSchema struct {
	at          time.Time
	objects     []SchemaObject
	fingerprint string
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
		cat, err := dumpWithCatalog(ctx, src, &objects, cfg.dumped)
		if err != nil {
			return err
		}
		if _, refused := leaveOut(objects, cfg.LeaveOut); len(refused) > 0 {
			return refuseLeaveOut(refused)
		}
		capable, err := dst.AppliesSilently(ctx)
		if err != nil {
			return err
		}
		for i := range objects {
			o := &objects[i]
			if !capable && (o.Stage == StageForeign || o.Type == "TRIGGER" || o.commentsOn(objects, "FK CONSTRAINT")) {
				o.Stage = StageSwitch // they would fire for every change that is applied
			}
		}
		if err := dst.Journal().addSchema(ctx, cat, objects); err != nil {
			return err
		}
	}
	return createObjects(ctx, dst, logger(cfg.Logger), objects, StageTables)
}

// dumpWithCatalog returns the catalog that the dump belongs to: what changes later is found by comparing with it.
// known is what was read a moment ago, and need not be read again if nothing has changed since.
func dumpWithCatalog(ctx context.Context, src Source, objects *[]SchemaObject, known *dumpedSchema) (*Catalog, error) {
	for attempt := 1; ; attempt++ {
		cat, err := src.Catalog(ctx)
		if err != nil {
			return nil, err
		}
		if known != nil && cat.Fingerprint == known.fingerprint && time.Since(known.at) < time.Minute {
			*objects = slices.Clone(known.objects)
			return cat, nil
		}
		var fingerprint string
		if *objects, fingerprint, err = src.DumpSchema(ctx); err != nil {
			return nil, err
		}
		again, err := src.Catalog(ctx)
		if err != nil {
			return nil, err
		}
		if rowsPart(fingerprint) == rowsPart(cat.Fingerprint) &&
			rowsPart(again.Fingerprint) == rowsPart(cat.Fingerprint) {
			cat.Fingerprint = fingerprint
			return cat, nil
		}
		if err := sleep(ctx, backoff(attempt, 100*time.Millisecond, 5*time.Second)); err != nil {
			return nil, err
		}
	}
}

// createObjects creates what is not there yet of a stage, in order.
func createObjects(ctx context.Context, dst Target, log *slog.Logger, objects []SchemaObject, stage Stage) error {
	var todo []SchemaObject
	for _, o := range objects {
		if o.Stage == stage && (o.State == ObjectPending || o.State == ObjectFailed) {
			todo = append(todo, o)
		}
	}
	for len(todo) > 0 {
		n := min(len(todo), 50)
		if err := createBatch(ctx, dst, log, todo[:n], objects); err != nil {
			return err
		}
		todo = todo[n:]
	}
	return nil
}

// createBatch tries all in one transaction; if that fails, one by one, to find the culprit.
// all are the objects of the schema, as far as they are known.
func createBatch(ctx context.Context, dst Target, log *slog.Logger, batch, all []SchemaObject) error {
	err := dst.Create(ctx, batch)
	if err == nil || ctx.Err() != nil || Retryable(err) || sqlState(err) == "" {
		return err
	}
	var failed []error
	for _, o := range batch {
		err := dst.Create(ctx, []SchemaObject{o})
		reason, follows := followsLeftOut(o, err, all)
		switch {
		case err == nil:
		case ctx.Err() != nil || Retryable(err) || sqlState(err) == "":
			return err
		case follows:
			log.WarnContext(ctx, "an object is left out", "object", o.String(), "reason", reason)
			if err := dst.Journal().leaveOut(ctx, o, reason); err != nil {
				return err
			}
			for i := range all { // what needs this one follows too
				if all[i].ID == o.ID {
					all[i].State = ObjectLeftOut
				}
			}
		case o.optional():
			log.WarnContext(ctx, "an object could not be created on the target; going on without it", "object",
				o.String(), "reason", err.Error())
			if err := dst.Journal().MarkObject(ctx, o.ID, ObjectSkipped, err.Error()); err != nil {
				return err
			}
			if err := dst.Journal().Record(ctx, Event{Kind: EventWarning, Message: fmt.Sprintf("%s could not be "+
				"created on the target and was left out: %v", o, err)}); err != nil {
				return err
			}
		default:
			if err := dst.Journal().MarkObject(ctx, o.ID, ObjectFailed, withDuplicate(err)); err != nil {
				return err
			}
			failed = append(failed, &ObjectError{Object: o, Err: err})
			if o.Stage != StageIndexes && o.Stage != StageForeign { // what follows may depend on it
				return failed[0]
			}
		}
	}
	return errors.Join(failed...)
}

// optional tells whether the migration can do without an object that could not be created.
func (o SchemaObject) optional() bool {
	switch o.Type {
	case typeViewData, typeSetting, "COMMENT", "PUBLICATION", "PUBLICATION TABLE", "PUBLICATION TABLES IN SCHEMA", "EVENT TRIGGER",
		"SERVER", "USER MAPPING", "FOREIGN TABLE", "FOREIGN DATA WRAPPER":
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
