package migrator

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
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

// fingerprintSQL sums up what a change of which may concern rows, or how they arrive: tables, columns, partitions, labels of
// enums, indexes and constraints. It is read with every round, so it reads a few catalogs once and no more.
const fingerprintSQL = `
	WITH r AS (
		SELECT c.oid, n.nspname, c.relname, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND` + userRelations + `)
	SELECT concat_ws('/',
		(SELECT sum(hashtextextended(concat_ws(' ', r.oid, r.nspname, r.relname, r.relkind), 0)) FROM r),
		(SELECT sum(hashtextextended(concat_ws(' ', i.inhrelid, i.inhparent), 0)) FROM pg_inherits i JOIN r ON r.oid = i.inhrelid),
		(SELECT sum(hashtextextended(concat_ws(' ', a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attnotnull, a.attgenerated), 0))
		 FROM pg_attribute a JOIN r ON r.oid = a.attrelid WHERE a.attnum > 0 AND NOT a.attisdropped),
		(SELECT sum(hashtextextended(concat_ws(' ', f.oid, f.adrelid, f.adnum), 0)) FROM pg_attrdef f JOIN r ON r.oid = f.adrelid),
		(SELECT sum(hashtextextended(concat_ws(' ', e.oid, e.enumlabel), 0)) FROM pg_enum e),
		(SELECT sum(hashtextextended(concat_ws(' ', x.indexrelid, x.indisvalid), 0)) FROM pg_index x JOIN r ON r.oid = x.indrelid),
		(SELECT sum(hashtextextended(concat_ws(' ', k.oid, k.conname, k.convalidated), 0)) FROM pg_constraint k JOIN r ON r.oid = k.conrelid))`

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
// it did, in words; nothing, if the schema is the one that the journal knows. It has to be called while no round is under way.
//
// A change that cannot be carried over (another key of a table, say) is a [*RefusedError] that names it, and none of the changes is
// carried over then.
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
	for _, t := range p.created {
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
	return dst.ChangeSchema(ctx, &p.SchemaChange)
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
}

// SchemaStep is a statement. If Object is set, it may fail, which is recorded.
type SchemaStep struct {
	SQL    string
	Object *SchemaObject
}

type schemaPlan struct {
	SchemaChange
	created, resent []*Table
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
	now, err := src.DumpSchema(ctx)
	if err != nil {
		return nil, err
	}
	again, err := src.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	if again.Fingerprint != cat.Fingerprint {
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
	p.Fingerprint = cat.Fingerprint
	early := state.Phase != PhaseReplicating && state.Resume != PhaseReplicating
	d := &schemaDiff{schemaPlan: p, own: map[uint32]bool{}, columns: map[string]string{}, names: map[string]string{}, newTables: map[string]bool{}, newLeaves: map[string]bool{}}
	d.tables(cat, tables)
	// In order: away with what depends on columns; what columns need; columns; the rest.
	columns := p.Steps
	p.Steps = nil
	last := d.objects(before, now, silent, early)
	p.Steps = slices.Concat(p.Steps, columns, last)
	return p, nil
}

// schemaDiff compares what the journal knows with what there is.
type schemaDiff struct {
	*schemaPlan

	columns   map[string]string // renamed: table and old name, to the new one
	names     map[string]string // renamed: old name of a relation, quoted, to the new one
	newTables map[string]bool   // names of relations as pg_dump has them: schema and name
	newLeaves map[string]bool
	own       map[uint32]bool // what is a table of its own now

	// Names may go from one relation to another. What is gone goes first; then those move out of the way whose new names are taken.
	gone, aside, named []SchemaStep
	taken              map[Relation]bool // names that relations had, without IDs
}

func (d *schemaDiff) tables(cat *Catalog, tables []TableStatus) {
	known, now := map[uint32]*Table{}, map[uint32]*Table{}
	d.taken = map[Relation]bool{}
	for _, t := range tables {
		known[t.Table.ID] = t.Table
		for _, r := range t.Table.relations() {
			d.taken[Relation{Schema: r.Schema, Name: r.Name}] = true
		}
	}
	for _, t := range cat.Tables {
		now[t.ID], d.own[t.ID] = t, true
	}
	for _, k := range known {
		if now[k.ID] == nil && !isLeaf(now, k.ID) {
			d.gone = append(d.gone, SchemaStep{SQL: fmt.Sprintf(`DROP TABLE IF EXISTS %s CASCADE`, k.Ident())})
			d.sayf("table %s was dropped", k)
		}
		if now[k.ID] == nil {
			d.Dropped = append(d.Dropped, k.ID)
		}
	}
	for _, t := range cat.Tables {
		k := known[t.ID]
		switch {
		case k == nil:
			d.newTables[t.Schema+"\x00"+t.Name] = true
			for _, l := range t.Leaves {
				d.newTables[l.Schema+"\x00"+l.Name] = true
			}
			d.created, d.Tables = append(d.created, t), append(d.Tables, t)
			d.sayf("table %s is new, and is sent whole", t)
		case t.Kind != k.Kind:
			d.refusef("Table %s became %s: that cannot be followed. Abort and start again.", t, t.Kind)
		default:
			d.table(k, t)
		}
	}
	d.Steps = slices.Concat(d.gone, d.aside, d.named, d.Steps)
}

func isLeaf(tables map[uint32]*Table, id uint32) bool {
	for _, t := range tables {
		if t.ID != id && slices.ContainsFunc(t.Leaves, func(l Leaf) bool { return l.ID == id }) {
			return true
		}
	}
	return false
}

// table compares a table that is still there.
func (d *schemaDiff) table(k, t *Table) {
	changed := false
	if k.Relation != t.Relation {
		changed = true
		d.rename(k.Relation, t.Relation)
		d.sayf("table %s is %s now", k, t)
	}
	changed = d.leaves(k, t) || changed
	columnsChanged, keyNames := d.columnsOf(k, t)
	if !slices.Equal(keyNames, t.Key) {
		d.refusef("The key of table %s is (%s) now, not (%s): that cannot be followed while changes are captured by the old one. Undo it, or abort and start again.",
			t, strings.Join(t.Key, ", "), strings.Join(k.Key, ", "))
	} else if columnsChanged && !slices.Equal(k.Key, t.Key) && t.Kind != KindOrdinary {
		d.refusef("A key column of table %s was renamed: its capture names it. Undo it, or abort and start again.", t)
	}
	if d.checks(k, t) {
		changed = true
	}
	if columnsChanged && (t.Keyless() || rewritten(k, t)) {
		d.Empty, d.resent = append(d.Empty, k), append(d.resent, t)
		d.sayf("table %s is sent whole again", t)
	}
	if changed || columnsChanged {
		d.Tables = append(d.Tables, t)
	}
}

// checks compares CHECK constraints, which pg_dump writes into the table's definition.
func (d *schemaDiff) checks(k, t *Table) (changed bool) {
	for _, name := range sortedKeys(k.Checks) {
		if t.Checks[name] != k.Checks[name] {
			d.stepf(`ALTER TABLE %s DROP CONSTRAINT IF EXISTS %s`, t.Ident(), quoteName(name))
			d.sayf("constraint %s of %s is gone, or another", name, t)
			changed = true
		}
	}
	for _, name := range sortedKeys(t.Checks) {
		if t.Checks[name] == k.Checks[name] {
			continue
		}
		sql := fmt.Sprintf(`ALTER TABLE %s ADD CONSTRAINT %s %s`, t.Ident(), quoteName(name), t.Checks[name])
		undo := fmt.Sprintf(`ALTER TABLE %s DROP CONSTRAINT IF EXISTS %s`, t.Ident(), quoteName(name))
		d.Steps = append(d.Steps, SchemaStep{SQL: sql, Object: &SchemaObject{
			Stage: StageSwitch, Type: typeCheck, Schema: t.Schema, Name: t.Name + " " + name, Table: t.ID, State: ObjectPending, SQL: sql, Undo: undo,
		}})
		d.sayf("constraint %s of %s is new", name, t)
		changed = true
	}
	return changed
}

// rewritten tells whether a file of the table is another one: values may be others, too.
func rewritten(k, t *Table) bool {
	for _, l := range t.Leaves {
		for _, o := range k.Leaves {
			if o.ID == l.ID && o.Filenode != l.Filenode {
				return true
			}
		}
	}
	return false
}

func (d *schemaDiff) rename(from, to Relation) {
	name, steps := from, &d.aside
	step := func(format string, args ...any) {
		*steps = append(*steps, SchemaStep{SQL: fmt.Sprintf(format, args...)})
	}
	if d.taken[Relation{Schema: to.Schema, Name: to.Name}] || (from.Schema != to.Schema && d.taken[Relation{Schema: to.Schema, Name: from.Name}]) {
		name.Name = fmt.Sprintf("heroku_migrator_renamed_%d", from.ID)
		step(`ALTER TABLE %s RENAME TO %s`, from.Ident(), quoteName(name.Name))
		steps = &d.named
	}
	if name.Schema != to.Schema {
		step(`ALTER TABLE %s SET SCHEMA %s`, name.Ident(), quoteName(to.Schema))
		name.Schema = to.Schema
	}
	if name.Name != to.Name {
		step(`ALTER TABLE %s RENAME TO %s`, name.Ident(), quoteName(to.Name))
	}
	d.names[from.Schema+"\x00"+from.Name] = to.Schema + "\x00" + to.Name
}

// leaves compares the partitions of a table.
func (d *schemaDiff) leaves(k, t *Table) (changed bool) {
	if t.Kind != KindPartitioned {
		return false
	}
	a := adopted{Table: t}
	for _, l := range t.Leaves {
		i := slices.IndexFunc(k.Leaves, func(o Leaf) bool { return o.ID == l.ID })
		switch {
		case i < 0:
			a.leaves = append(a.leaves, l.Relation)
			d.newTables[l.Schema+"\x00"+l.Name], d.newLeaves[l.Schema+"\x00"+l.Name] = true, true
			d.sayf("partition %s of %s is new", l.Relation, t)
		case k.Leaves[i].Relation != l.Relation:
			d.rename(k.Leaves[i].Relation, l.Relation)
			changed = true
		}
	}
	for _, o := range k.Leaves {
		if !slices.ContainsFunc(t.Leaves, func(l Leaf) bool { return o.ID == l.ID }) {
			sql := fmt.Sprintf(`DROP TABLE IF EXISTS %s`, o.Ident())
			if d.own[o.ID] {
				sql = fmt.Sprintf(`ALTER TABLE %s DETACH PARTITION %s`, k.Ident(), o.Ident())
			}
			d.gone = append(d.gone, SchemaStep{SQL: sql})
			d.sayf("partition %s of %s is gone", o.Relation, t)
			changed = true
		}
	}
	if len(a.leaves) > 0 {
		d.adopted = append(d.adopted, a)
		changed = true
	}
	return changed
}

// columnsOf compares columns by their number, which a new name does not change. It returns the old key under new names.
func (d *schemaDiff) columnsOf(k, t *Table) (changed bool, key []string) {
	key = slices.Clone(k.Key)
	find := func(table *Table, num int) *Column {
		i := slices.IndexFunc(table.Columns, func(c Column) bool { return c.Num == num })
		if i < 0 {
			return nil
		}
		return &table.Columns[i]
	}
	alter := func(format string, args ...any) {
		changed = true
		d.stepf(`ALTER TABLE %s `+format, append([]any{t.Ident()}, args...)...)
	}
	for _, c := range k.Columns {
		if find(t, c.Num) == nil {
			alter(`DROP COLUMN IF EXISTS %s CASCADE`, quoteName(c.Name))
			d.sayf("column %s of %s was dropped", c.Name, t)
		}
	}
	d.renameColumns(k, t, find)
	for _, c := range t.Columns {
		o := find(k, c.Num)
		if o == nil {
			changed = true
			d.add(t, c)
			d.sayf("column %s of %s is new", c.Name, t)
			continue
		}
		if o.Name != c.Name {
			changed = true
			for i := range key {
				if k.Key[i] == o.Name {
					key[i] = c.Name
				}
			}
			d.columns[k.Schema+"\x00"+k.Name+"\x00"+o.Name] = c.Name
			d.sayf("column %s of %s is %s now", o.Name, t, c.Name)
		}
		if o.Type != c.Type {
			if slices.Contains(t.Key, c.Name) {
				d.refusef("The type of key column %s of table %s is %s now: that cannot be followed while changes are captured with the old one. Undo it, or abort and start again.", c.Name, t, c.Type)
			}
			alter(`ALTER COLUMN %s DROP DEFAULT`, quoteName(c.Name))
			alter(`ALTER COLUMN %[2]s TYPE %[3]s USING %[2]s::%[3]s`, quoteName(c.Name), c.Type)
			if c.Default != "" && !c.Generated {
				alter(`ALTER COLUMN %s SET DEFAULT %s`, quoteName(c.Name), c.Default)
			}
			d.sayf("column %s of %s is of type %s now", c.Name, t, c.Type)
		}
		if o.Default != c.Default && !c.Generated && o.Type == c.Type {
			if c.Default == "" {
				alter(`ALTER COLUMN %s DROP DEFAULT`, quoteName(c.Name))
			} else {
				alter(`ALTER COLUMN %s SET DEFAULT %s`, quoteName(c.Name), c.Default)
			}
			d.sayf("column %s of %s has another default", c.Name, t)
		}
		if o.NotNull != c.NotNull {
			d.notNull(t, c)
			changed = true
		}
		if o.Generated != c.Generated {
			d.refusef("Column %s of table %s is generated now, or no longer: that cannot be followed. Undo it, or abort and start again.", c.Name, t)
		}
	}
	return changed, key
}

// renameColumns gives columns their new names. One whose new name is still that of another steps aside first.
func (d *schemaDiff) renameColumns(k, t *Table, find func(*Table, int) *Column) {
	// With its table's name as it is by then; a child has it from its parent.
	rename := func(from, to string) {
		d.stepf(`DO $do$ BEGIN IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = '%s'::regclass AND attname = '%s' AND NOT attisdropped) THEN
			ALTER TABLE %[3]s RENAME COLUMN %[4]s TO %[5]s; END IF; END $do$`, quoteText(t.Ident()), quoteText(from), t.Ident(), quoteName(from), quoteName(to))
	}
	aside := map[int]string{} // columns whose new names are still those of others
	for _, c := range t.Columns {
		o := find(k, c.Num)
		switch {
		case o == nil || o.Name == c.Name:
		case slices.ContainsFunc(k.Columns, func(other Column) bool { return other.Name == c.Name }):
			aside[c.Num] = fmt.Sprintf("heroku_migrator_renamed_%d", c.Num)
			rename(o.Name, aside[c.Num])
		default:
			rename(o.Name, c.Name)
		}
	}
	for _, c := range t.Columns {
		if name, ok := aside[c.Num]; ok {
			rename(name, c.Name)
		}
	}
}

// notNull makes a column NOT NULL on the target, or no longer. Rows there may still have none that come with the next
// round: then it is left to the switch.
func (d *schemaDiff) notNull(t *Table, c Column) {
	drop := fmt.Sprintf(`ALTER TABLE %s ALTER COLUMN %s DROP NOT NULL`, t.Ident(), quoteName(c.Name))
	if !c.NotNull {
		d.stepf("%s", drop)
		d.sayf("column %s of %s may be NULL now", c.Name, t)
		return
	}
	d.Steps = append(d.Steps, SchemaStep{
		SQL: fmt.Sprintf(`ALTER TABLE %s ALTER COLUMN %s SET NOT NULL`, t.Ident(), quoteName(c.Name)),
		Object: &SchemaObject{
			Stage: StageSwitch, Type: typeNotNull, Schema: t.Schema, Name: t.Name + " " + c.Name, Table: t.ID, State: ObjectPending,
			SQL: fmt.Sprintf(`ALTER TABLE %s ALTER COLUMN %s SET NOT NULL`, t.Ident(), quoteName(c.Name)), Undo: drop,
		},
	})
	d.sayf("column %s of %s is NOT NULL now", c.Name, t)
}

// Types of objects that are left to the switch, and are not among pg_dump's.
const (
	typeNotNull = "NOT NULL"
	typeCheck   = "CHECK"
)

// add adds a column. Rows that were there get the value that the source's got (attmissingval), whatever the default has
// become since; those that were changed since come with the next round.
func (d *schemaDiff) add(t *Table, c Column) {
	sql := fmt.Sprintf(`ALTER TABLE %s ADD COLUMN IF NOT EXISTS %s %s`, t.Ident(), quoteName(c.Name), c.Type)
	if c.Collation != "" {
		sql += " COLLATE " + c.Collation
	}
	switch {
	case c.Generated:
		d.stepf(`%s GENERATED ALWAYS AS (%s) STORED`, sql, c.Default)
		return
	case c.Identity != "":
		kind := "BY DEFAULT"
		if c.Identity == "a" {
			kind = "ALWAYS"
		}
		d.stepf(`%s GENERATED %s AS IDENTITY`, sql, kind)
		return
	}
	if c.Missing != nil {
		sql += fmt.Sprintf(" DEFAULT '%s'::%s", quoteText(*c.Missing), c.Type)
	}
	d.stepf("%s", sql)
	if c.NotNull {
		d.notNull(t, c)
	}
	switch {
	case c.Default != "":
		d.stepf(`ALTER TABLE %s ALTER COLUMN %s SET DEFAULT %s`, t.Ident(), quoteName(c.Name), c.Default)
	case c.Missing != nil:
		d.stepf(`ALTER TABLE %s ALTER COLUMN %s DROP DEFAULT`, t.Ident(), quoteName(c.Name))
	}
}

func quoteText(s string) string { return strings.ReplaceAll(s, "'", "''") }

// objects compares what pg_dump says, but for tables and their columns. It plans what goes first, and returns what comes last.
func (d *schemaDiff) objects(before, now []SchemaObject, silent, early bool) (last []SchemaStep) {
	known := map[string]SchemaObject{}
	next := 0
	for _, o := range before {
		next = max(next, o.ID)
		if o.Type == typeNotNull || o.Type == typeCheck {
			d.Objects = append(d.Objects, o) // ours
			continue
		}
		name, sql := d.renamed(o)
		o.SQL = sql
		known[name] = o
	}
	var first, attach []SchemaStep
	anew := map[string]bool{} // foreign keys that are made anew, and so have to be validated anew
	for _, o := range now {
		if !silent && (o.Stage == StageForeign || o.Type == "TRIGGER") {
			o.Stage = StageSwitch
		}
		old, ok := known[o.String()]
		delete(known, o.String())
		same := old.SQL == o.SQL && (o.Type != typeValidation || !anew[o.Schema+"\x00"+o.Name])
		if ok && (same || o.Type == "TABLE" || o.Type == typeViewData) {
			o.ID, o.State, o.Error, o.Stage = old.ID, old.State, old.Error, old.Stage
			d.Objects = append(d.Objects, o)
			continue
		}
		if ok {
			o.ID = old.ID
		} else {
			next++
			o.ID = next
		}
		o.State = ObjectPending
		later := o.Stage == StageSwitch || (early && (o.Stage == StageForeign || o.Stage == StageFinish))
		if later && (!ok || old.State != ObjectDone) {
			d.Objects = append(d.Objects, o) // when its time comes
			continue
		}
		o.State = ObjectDone
		d.Objects = append(d.Objects, o)
		object := o
		step := SchemaStep{SQL: o.SQL, Object: &object}
		relation := o.Schema + "\x00" + strings.SplitN(o.Name, " ", 2)[0]
		switch {
		case o.Type == "TABLE" && !d.newTables[o.Schema+"\x00"+o.Name]:
			continue // a view's companion, say; its columns are compared elsewhere
		case o.Type == "TABLE":
			last = append(last, SchemaStep{SQL: strings.Replace(o.SQL, "CREATE TABLE ", "CREATE TABLE IF NOT EXISTS ", 1)})
			continue
		case o.Type == "TABLE ATTACH", o.Type == "INDEX ATTACH":
			attach = append(attach, step) // after the leaf's own indexes, which are then taken for the root's
			continue
		case o.Type == "TYPE" && ok && strings.Contains(o.SQL, " AS ENUM ("):
			d.Labels = append(d.Labels, newLabels(o.SQL, old.SQL)...)
			d.sayf("%s has new labels", o)
			continue
		case (o.Type == "DEFAULT" || o.Type == "CHECK CONSTRAINT") && d.newTables[relation]:
		case ok:
			step.SQL = replaced(old, o)
			if o.Type == "FK CONSTRAINT" {
				anew[o.Schema+"\x00"+o.Name] = true
			}
			d.sayf("%s was changed", o)
		default:
			d.sayf("%s is new", o)
		}
		switch o.Type {
		case "SCHEMA", "TYPE", "DOMAIN", "FUNCTION", "PROCEDURE", "SEQUENCE", "EXTENSION", "COLLATION":
			first = append(first, step)
		default:
			last = append(last, step)
		}
	}
	d.drop(known)
	d.Steps = append(d.Steps, first...)
	// A partition joins its root when it has its own indexes.
	constraints := slices.IndexFunc(last, func(s SchemaStep) bool { return s.Object != nil && s.Object.Type == "FK CONSTRAINT" })
	if constraints < 0 {
		constraints = len(last)
	}
	return slices.Concat(last[:constraints], attach, last[constraints:])
}

// drop takes away what is not there any more.
func (d *schemaDiff) drop(gone map[string]SchemaObject) {
	for _, o := range gone {
		sql := dropping(o)
		if o.State != ObjectDone || sql == "" || o.Type == typeValidation {
			continue
		}
		d.Steps = append(d.Steps, SchemaStep{SQL: sql, Object: &o})
		d.sayf("%s was dropped", o)
	}
}

// renamed is an object's name and definition as they would be after the renames that are carried over anyway.
func (d *schemaDiff) renamed(o SchemaObject) (name, sql string) {
	sides := []string{o.SQL}
	if o.Type == "FK CONSTRAINT" { // two tables may have columns of the same name
		sides = strings.SplitAfter(o.SQL, " REFERENCES ")
	}
	// All at once, since names may change places.
	for i, side := range sides {
		var pairs []string
		for _, from := range sortedKeys(d.names) { // pg_dump quotes all names
			pairs = append(pairs, pgx.Identifier(strings.Split(from, "\x00")).Sanitize(), pgx.Identifier(strings.Split(d.names[from], "\x00")).Sanitize())
		}
		for _, key := range sortedKeys(d.columns) {
			parts := strings.Split(key, "\x00")
			if strings.Contains(side, pgx.Identifier(parts[:2]).Sanitize()) {
				pairs = append(pairs, quoteName(parts[2]), quoteName(d.columns[key]))
			}
		}
		sides[i] = strings.NewReplacer(pairs...).Replace(side)
	}
	for _, from := range sortedKeys(d.names) {
		f, t := strings.Split(from, "\x00"), strings.Split(d.names[from], "\x00")
		if o.Schema == f[0] && (o.Name == f[1] || strings.HasPrefix(o.Name, f[1]+" ")) {
			o.Schema, o.Name = t[0], t[1]+strings.TrimPrefix(o.Name, f[1])
			break
		}
	}
	return o.String(), strings.Join(sides, "")
}

// replaced changes an object into its new form.
func replaced(old, o SchemaObject) string {
	switch o.Type {
	case "FUNCTION", "PROCEDURE", "VIEW":
		return strings.Replace(o.SQL, "CREATE "+o.Type+" ", "CREATE OR REPLACE "+o.Type+" ", 1)
	case "SEQUENCE":
		return strings.Replace(o.SQL, "CREATE SEQUENCE ", "ALTER SEQUENCE ", 1)
	}
	if drop := dropping(old); drop != "" {
		return drop + ";\n" + o.SQL
	}
	return o.SQL
}

// dropping takes an object away; "": it stays, and does no harm.
func dropping(o SchemaObject) string {
	ident := pgx.Identifier{o.Schema, o.Name}.Sanitize()
	switch o.Type {
	case "INDEX", "VIEW", "MATERIALIZED VIEW", "STATISTICS":
		return "DROP " + o.Type + " IF EXISTS " + ident
	case "CONSTRAINT", "CHECK CONSTRAINT", "FK CONSTRAINT", "TRIGGER", "RULE":
		if o.Undo == "" {
			return ""
		}
		if strings.HasPrefix(o.Undo, "DO ") { // the clone of a trigger, which is now in the state that clones have
			return strings.Replace(o.Undo, " DISABLE TRIGGER ", " ENABLE TRIGGER ", 1)
		}
		return fmt.Sprintf(`DO $do$ BEGIN %s; EXCEPTION WHEN undefined_table THEN NULL; END $do$`, o.Undo)
	}
	return ""
}

var enumLabel = regexp.MustCompile(`'((?:[^']|'')*)'`)

// newLabels are the statements that add the labels which an enum has and had not.
func newLabels(now, before string) (statements []string) {
	_, name, _ := strings.Cut(now, "CREATE TYPE ")
	name, _, _ = strings.Cut(name, " AS ENUM ")
	old := enumLabel.FindAllString(before, -1)
	labels := enumLabel.FindAllString(now, -1)
	for i, label := range labels {
		if slices.Contains(old, label) {
			continue
		}
		place := ""
		if i > 0 {
			place = " AFTER " + labels[i-1]
		} else if len(labels) > 1 {
			place = " BEFORE " + labels[1]
		}
		statements = append(statements, fmt.Sprintf(`ALTER TYPE %s ADD VALUE IF NOT EXISTS %s%s`, name, label, place))
	}
	return statements
}
