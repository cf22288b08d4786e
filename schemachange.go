package migrator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The application may change its schema while it is migrated. Every round compares the source's schema, as its snapshot
// shows it, with the one that the journal knows; if it is another one, the round ends before it has begun, and
// FollowSchema carries the changes over. See ARCHITECTURE.md, Schema changes.

// SchemaPolicy says what is done when the source's schema changes during the migration.
type SchemaPolicy string

// The policies.
const (
	SchemaForward SchemaPolicy = "forward" // carry the changes over; the default
	SchemaPause   SchemaPolicy = "pause"   // pause and name them; resuming carries them over
	SchemaFail    SchemaPolicy = "fail"    // end in phase error and name them
)

// ErrSchemaChanged is returned by rounds when the source's schema is not the one that the journal knows. Nothing was
// applied. [FollowSchema] carries the changes over.
var ErrSchemaChanged = errors.New("the source's schema has changed: it has to be followed before the next round")

// fingerprintSQL sums up the schema in two parts. The first one is what a change of which may concern rows, or how they
// arrive: tables, columns, partitions, labels of enums, indexes and constraints; where it is another one, no round goes
// on. The second one is the rest, which may change often: views, sequences, functions, triggers, policies; that is
// followed from time to time. It is read with every round, so it reads a few catalogs once and no more. Where a row of
// a catalog may be changed in place, its xmin tells.
const fingerprintSQL = `
	WITH r AS (
		SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence, c.relrowsecurity, c.relforcerowsecurity FROM
			pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND` + userRelations + `)
	SELECT concat_ws('/',
		(SELECT sum(hashtextextended(concat_ws(' ', r.oid, r.nspname, r.relname, r.relkind), 0)) FROM r),
		(SELECT sum(hashtextextended(concat_ws(' ', i.inhrelid, i.inhparent, i.xmin), 0)) FROM pg_inherits i JOIN r ON
			r.oid = i.inhrelid),
		(SELECT sum(hashtextextended(concat_ws(' ', a.attrelid, a.attnum, a.xmin), 0))
		 FROM pg_attribute a JOIN r ON r.oid = a.attrelid WHERE a.attnum > 0 AND NOT a.attisdropped),
		(SELECT sum(hashtextextended(concat_ws(' ', f.oid, f.adrelid, f.adnum), 0)) FROM pg_attrdef f JOIN r ON r.oid =
			f.adrelid),
		(SELECT sum(hashtextextended(concat_ws(' ', e.oid, e.enumlabel, y.typname, y.typnamespace), 0)) FROM pg_enum e
			JOIN pg_type y ON y.oid = e.enumtypid),
		(SELECT sum(hashtextextended(concat_ws(' ', x.indexrelid, x.indisvalid), 0)) FROM pg_index x JOIN r ON r.oid =
			x.indrelid),
		(SELECT sum(hashtextextended(concat_ws(' ', k.oid, k.conname, k.convalidated), 0)) FROM pg_constraint k JOIN r
			ON r.oid = k.conrelid))
	|| '` + fingerprintRest + `' || concat_ws('/',
		(SELECT sum(hashtextextended(concat_ws(' ', r.oid, r.relpersistence, r.relrowsecurity, r.relforcerowsecurity),
			0)) FROM r),
		(SELECT sum(hashtextextended(concat_ws(' ', x.indexrelid), 0)) FROM pg_index x JOIN r ON r.oid = x.indrelid
			WHERE x.indisclustered),
		(SELECT sum(hashtextextended(concat_ws(' ', c.oid, n.nspname, c.relname, w.xmin, c.relispopulated, s.seqtypid,
			s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcycle), 0))
		 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		 LEFT JOIN pg_rewrite w ON w.ev_class = c.oid AND w.rulename = '_RETURN' LEFT JOIN pg_sequence s ON s.seqrelid =
			c.oid
		 WHERE c.oid >= 16384 AND c.relkind IN ('v', 'm', 'S', 'i', 'I') AND c.relpersistence <> 't' AND n.nspname NOT
			IN ('heroku_migrator', 'pg_toast')),
		(SELECT sum(hashtextextended(concat_ws(' ', p.oid, p.xmin), 0)) FROM pg_proc p JOIN pg_namespace n ON n.oid =
			p.pronamespace
		 WHERE p.oid >= 16384 AND n.nspname <> 'heroku_migrator' AND n.nspname NOT LIKE 'pg\_temp\_%'),
		(SELECT sum(hashtextextended(concat_ws(' ', g.oid, g.tgname, g.tgfoid, g.tgtype), 0)) FROM pg_trigger g JOIN r
			ON r.oid = g.tgrelid
		 WHERE NOT g.tgisinternal AND g.tgname NOT LIKE 'heroku\_migrator\_%'),
		(SELECT sum(hashtextextended(concat_ws(' ', o.oid, o.xmin), 0)) FROM pg_policy o JOIN r ON r.oid = o.polrelid),
		(SELECT sum(hashtextextended(concat_ws(' ', k.oid, k.conname, k.convalidated), 0)) FROM pg_constraint k WHERE
			k.contypid >= 16384),
		(SELECT sum(hashtextextended(concat_ws(' ', s.setdatabase, s.setrole, s.setconfig), 0))
		 FROM pg_db_role_setting s
		 WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
		   AND s.setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = current_user))))`

// fingerprintRest is between the two parts.
const fingerprintRest = " | "

// rowsPart is the part of a fingerprint that concerns rows.
func rowsPart(fingerprint string) string {
	part, _, _ := strings.Cut(fingerprint, fingerprintRest)
	return part
}

// Fingerprint implements [Snapshot].
func (s *herokuSnapshot) Fingerprint(ctx context.Context) (sum string, err error) {
	err = s.conn.QueryRow(ctx, fingerprintSQL).Scan(&sum)
	if err != nil {
		err = fmt.Errorf("compare the schema: %w", err)
	}
	return sum, err
}

// FollowSchema carries changes of the source's schema over to the target and records them in the journal, in one
// transaction there. Tables that are new or were rewritten are sent whole by the next round. It returns what
// it did, in words; nothing, if the schema is the one that the journal knows. It has to be called while no round is
// under way.
//
// A change that cannot be carried over (another key of a table, say) is a [*RefusedError] that names it, and none of
// the changes is carried over then.
func FollowSchema(ctx context.Context, src Source, dst Target) ([]string, error) {
	plan, err := planSchema(ctx, src, dst)
	if err != nil || plan == nil {
		return nil, err
	}
	return plan.said, plan.carry(ctx, src, dst)
}

// carry carries the changes over. Interrupted and repeated, it does the same again.
func (p *schemaPlan) carry(ctx context.Context, src Source, dst Target) error {
	if len(p.impossible) > 0 {
		return &RefusedError{Action: "follow the schema", Reasons: p.impossible}
	}
	// First on the source: what is written to a new table has to be captured before its rows are sent (I2).
	err := p.prepareSource(ctx, src)
	if schemaIsOther(err) {
		return fmt.Errorf("the source's schema changes at this moment: %w: %w", ErrBusy, err)
	}
	if err != nil {
		return err
	}
	if err := dst.ChangeSchema(ctx, &p.SchemaChange); err != nil {
		return err
	}
	return src.Forget(ctx, p.Dropped) // its log may use a type that the application drops next
}

func (p *schemaPlan) prepareSource(ctx context.Context, src Source) error {
	for _, t := range slices.Concat(p.created, p.renamedKeys) {
		if err := src.Capture(ctx, t); err != nil {
			return err
		}
	}
	for _, a := range p.adopted {
		if err := src.Adopt(ctx, a.Table, a.leaves); err != nil {
			return err
		}
	}
	for _, t := range slices.Concat(p.created, p.resent) {
		if err := src.Touch(ctx, t, strings.NewReader(""), true); err != nil {
			return err
		}
	}
	return nil
}

// SchemaChange is what [Target.ChangeSchema] commits.
type SchemaChange struct {
	Labels  []string // statements that no later one of the same transaction may rely on: new labels of enums
	Empty   []*Table // as the target has them: their rows will be sent again
	Steps   []SchemaStep
	Tables  []*Table // new, or changed
	Dropped []uint32
	Objects []SchemaObject // all that there are now
	// Fingerprint is the schema's, that is followed with this.
	Fingerprint string
	// SearchPath is the application's, as [Catalog] has it.
	SearchPath string
}

// SchemaStep is a statement. If Object is set, it may fail, which is recorded.
type SchemaStep struct {
	SQL    string
	Object *SchemaObject
	// Replaces tells that the object is there in another form: that it exists is no success.
	Replaces bool
	// Drops tells that the object is there no more.
	Drops bool
}

type schemaPlan struct {
	SchemaChange
	created, resent []*Table
	renamedKeys     []*Table
	adopted         []adopted
	impossible      []string
	said            []string
}

// adopted are partitions that are new in a table.
type adopted struct {
	*Table
	leaves []Relation
}

func (p *schemaPlan) stepf(format string, args ...any) {
	p.Steps = append(p.Steps, SchemaStep{SQL: fmt.Sprintf(format, args...)})
}

func (p *schemaPlan) sayf(format string, args ...any) {
	p.said = append(p.said, fmt.Sprintf(format, args...))
}

func (p *schemaPlan) refusef(format string, args ...any) {
	p.impossible = append(p.impossible, fmt.Sprintf(format, args...))
}

// planSchema finds out what has changed; nil: nothing.
func planSchema(ctx context.Context, src Source, dst Target) (*schemaPlan, error) {
	state, err := dst.Journal().State(ctx)
	if err != nil {
		return nil, err
	}
	cat, err := src.Catalog(ctx)
	if err != nil || cat.Fingerprint == state.Schema {
		return nil, err
	}
	return planFrom(ctx, src, dst, state, cat)
}

// planAnySchema is planSchema where the fingerprint is no measure: an operator, say, is not in it.
func planAnySchema(ctx context.Context, src Source, dst Target) (*schemaPlan, error) {
	state, err := dst.Journal().State(ctx)
	if err != nil {
		return nil, err
	}
	cat, err := src.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	return planFrom(ctx, src, dst, state, cat)
}

func planFrom(ctx context.Context, src Source, dst Target, state *State, cat *Catalog) (*schemaPlan, error) {
	now, fingerprint, err := src.DumpSchema(ctx)
	if err != nil {
		return nil, err
	}
	again, err := src.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	if rowsPart(fingerprint) != rowsPart(cat.Fingerprint) || rowsPart(again.Fingerprint) != rowsPart(cat.Fingerprint) {
		return nil, fmt.Errorf("the source's schema changes at this moment: %w", ErrBusy)
	}
	tables, err := dst.Journal().Tables(ctx)
	if err != nil {
		return nil, err
	}
	before, err := dst.Journal().Objects(ctx)
	if err != nil {
		return nil, err
	}
	silent, err := dst.AppliesSilently(ctx)
	if err != nil {
		return nil, err
	}
	p := &schemaPlan{}
	p.Fingerprint, p.SearchPath = fingerprint, cat.SearchPath
	early := state.Phase != PhaseReplicating && state.Resume != PhaseReplicating
	d := newSchemaDiff(p, before, early)
	d.types(before, now)
	d.tables(cat, tables)
	// In order: away with what depends on columns; what columns need; columns; the rest.
	columns := p.Steps
	p.Steps = nil
	last := d.objects(before, now, silent)
	p.Steps = slices.Concat(p.Steps, columns, last)
	for i, o := range p.Objects {
		if o.Type == typeCheck { // ours: it looks at the rows at the switch
			p.Objects[i].Functions = p.functions()
		}
	}
	if len(d.relabeled) > 0 {
		d.sendRelabeled(tables, cat.Tables)
	}
	return p, nil
}
