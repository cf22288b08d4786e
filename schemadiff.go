package migrator

import (
	"fmt"
	"slices"
	"strings"
)

// How tables and columns are compared.

// schemaDiff compares what the journal knows with what there is.
type schemaDiff struct {
	*schemaPlan

	early     bool              // indexes and foreign keys are not all there yet
	columns   map[string]string // renamed: table and old name, to the new one
	names     map[string]string // renamed: old name of a relation, quoted, to the new one
	newTables map[string]bool   // names of relations as pg_dump has them: schema and name
	dropped   map[string]bool   // relations that are dropped on the target, quoted
	columnsGo [][2]string       // columns that are dropped there, or of another type: table and name, quoted
	undone    []undone          // what is not to be waited for any more
	own       map[uint32]bool   // what is a table of its own now
	apart     map[string]bool   // partitions that could not be attached on the target: schema and name

	// Names may go from one relation to another. What is gone goes first; then those move out of the way whose new names are taken.
	gone, aside, named []SchemaStep
	taken              map[Relation]bool // names that relations had, without IDs
}

// undone is a constraint, or the NOT NULL of a column, that is there no more.
type undone struct {
	table uint32
	name  string
}

func newSchemaDiff(p *schemaPlan, before []SchemaObject, early bool) *schemaDiff {
	d := &schemaDiff{
		schemaPlan: p, early: early, own: map[uint32]bool{}, columns: map[string]string{}, names: map[string]string{},
		newTables: map[string]bool{}, dropped: map[string]bool{}, apart: map[string]bool{},
	}
	for _, o := range before {
		if o.Type == "TABLE ATTACH" && o.State == ObjectFailed {
			d.apart[o.Schema+"\x00"+o.Name] = true
		}
	}
	return d
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
		if now[k.ID] == nil && isLeaf(now, k.ID) { // what was written to it last is in a log that is not read any more
			d.Empty = append(d.Empty, k)
		}
		if now[k.ID] == nil && !isLeaf(now, k.ID) {
			d.gone = append(d.gone, SchemaStep{SQL: fmt.Sprintf(`DROP TABLE IF EXISTS %s CASCADE`, k.Ident())})
			for _, r := range k.relations() {
				d.dropped[r.Ident()] = true
			}
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
	leavesChanged, whole := d.leaves(k, t)
	changed = leavesChanged || changed
	columnsChanged, keyNames := d.columnsOf(k, t, whole || t.Keyless() || rewritten(k, t))
	if !slices.Equal(keyNames, t.Key) {
		d.refusef("The key of table %s is (%s) now, not (%s): that cannot be followed while changes are captured by the old one. Undo it, or abort and start again.",
			t, strings.Join(t.Key, ", "), strings.Join(k.Key, ", "))
	} else if !slices.Equal(k.Key, t.Key) { // its capture may name them
		d.renamedKeys = append(d.renamedKeys, t)
	}
	if d.checks(k, t) {
		changed = true
	}
	resent := whole || columnsChanged && (t.Keyless() || rewritten(k, t))
	if resent {
		d.Empty, d.resent = append(d.Empty, k), append(d.resent, t)
		d.sayf("table %s is sent whole again", t)
	}
	if changed || columnsChanged {
		if !resent { // that it was rewritten is not forgotten: before the switch, it is sent whole
			t = withFilesOf(k, t)
		}
		d.Tables = append(d.Tables, t)
	}
}

// withFilesOf is the table with the files that are known.
func withFilesOf(k, t *Table) *Table {
	known := *t
	known.Leaves = slices.Clone(t.Leaves)
	for i, l := range known.Leaves {
		for _, o := range k.Leaves {
			if o.ID == l.ID {
				known.Leaves[i].Filenode = o.Filenode
			}
		}
	}
	return &known
}

// checks compares CHECK constraints, which pg_dump writes into the table's definition.
func (d *schemaDiff) checks(k, t *Table) (changed bool) {
	for _, name := range sortedKeys(k.Checks) {
		if t.Checks[name] != k.Checks[name] {
			d.stepf(`ALTER TABLE %s DROP CONSTRAINT IF EXISTS %s`, t.Ident(), quoteName(name))
			d.undone = append(d.undone, undone{t.ID, name})
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

// leaves compares the partitions of a table, and tells whether it has to be sent whole.
func (d *schemaDiff) leaves(k, t *Table) (changed, whole bool) {
	if t.Kind != KindPartitioned {
		return false, false
	}
	a := adopted{Table: t}
	before := slices.Clone(k.Leaves)
	for i, o := range before {
		if d.apart[o.Schema+"\x00"+o.Name] { // it is made anew
			before[i].ID = 0
		}
	}
	for _, l := range t.Leaves {
		i := slices.IndexFunc(before, func(o Leaf) bool { return o.ID == l.ID })
		if i < 0 {
			a.leaves = append(a.leaves, l.Relation)
			d.newTables[l.Schema+"\x00"+l.Name] = true
			d.sayf("partition %s of %s is new", l.Relation, t)
			continue
		}
		if before[i].Relation != l.Relation {
			d.rename(before[i].Relation, l.Relation)
			changed = true
		}
		if before[i].Attached != "" && before[i].Attached != l.Attached { // its root's triggers did not see what was written while it was detached
			a.leaves = append(a.leaves, l.Relation)
			d.Empty = append(d.Empty, &Table{Relation: before[i].Relation, Kind: KindOrdinary, Key: k.Key})
			d.sayf("partition %s of %s was detached and attached again, and is sent whole", l.Relation, t)
		}
	}
	for _, o := range before {
		if slices.ContainsFunc(t.Leaves, func(l Leaf) bool { return o.ID == l.ID }) {
			continue
		}
		sql := fmt.Sprintf(`DROP TABLE IF EXISTS %s`, o.Ident())
		if !d.own[o.ID] {
			d.dropped[o.Ident()] = true
		} else {
			sql = detach(o.Relation)
		}
		d.gone = append(d.gone, SchemaStep{SQL: sql})
		d.sayf("partition %s of %s is gone", o.Relation, t)
		changed, whole = true, t.Keyless() // its rows' images may be those of others
	}
	if len(a.leaves) > 0 {
		d.adopted = append(d.adopted, a)
		changed = true
	}
	return changed, whole
}

// detach is the statement that detaches a partition from whatever it is in.
func detach(leaf Relation) string {
	return fmt.Sprintf(`DO $do$ DECLARE parent regclass := (SELECT inhparent FROM pg_inherits WHERE inhrelid = to_regclass('%s')); BEGIN
		IF parent IS NOT NULL THEN EXECUTE format('ALTER TABLE %%s DETACH PARTITION %%s', parent, '%[1]s'::regclass); END IF; END $do$`, quoteText(leaf.Ident()))
}

// columnsOf compares columns by their number, which a new name does not change; emptied tells that there will be no rows. It returns the old key under
// new names.
func (d *schemaDiff) columnsOf(k, t *Table, emptied bool) (changed bool, key []string) {
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
			d.columnsGo = append(d.columnsGo, [2]string{k.Ident(), quoteName(c.Name)})
			d.undone = append(d.undone, undone{t.ID, c.Name})
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
			d.columnType(t, c, emptied)
			changed = true
			if c.Generated { // it is another column
				continue
			}
		}
		if o.Default != c.Default && !c.Generated && o.Type == c.Type {
			if c.Default == "" {
				alter(`ALTER COLUMN %s DROP DEFAULT`, quoteName(c.Name))
			} else {
				alter(`ALTER COLUMN %s SET DEFAULT %s`, quoteName(c.Name), c.Default)
			}
			d.sayf("column %s of %s has another default", c.Name, t)
		}
		if o.Default != c.Default && c.Generated && o.Generated && o.Type == c.Type {
			alter(`ALTER COLUMN %s SET EXPRESSION AS (%s)`, quoteName(c.Name), c.Default)
			d.sayf("column %s of %s is generated from another expression", c.Name, t)
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

// columnType gives a column another type.
func (d *schemaDiff) columnType(t *Table, c Column, emptied bool) {
	name := quoteName(c.Name)
	alter := func(format string, args ...any) {
		d.stepf(`ALTER TABLE %s `+format, append([]any{t.Ident()}, args...)...)
	}
	if slices.Contains(t.Key, c.Name) {
		d.refusef("The type of key column %s of table %s is %s now: that cannot be followed while changes are captured with the old one. Undo it, or abort and start again.", c.Name, t, c.Type)
	}
	d.columnsGo = append(d.columnsGo, [2]string{t.Ident(), name})
	d.sayf("column %s of %s is of type %s now", c.Name, t, c.Type)
	if c.Generated {
		alter(`DROP COLUMN IF EXISTS %s CASCADE`, name)
		d.add(t, c)
		return
	}
	alter(`ALTER COLUMN %s DROP DEFAULT`, name)
	using := name
	if emptied { // there need not be a cast
		using = "NULL"
	}
	alter(`ALTER COLUMN %[2]s TYPE %[3]s USING %[4]s::%[3]s`, name, c.Type, using)
	if c.Default != "" {
		alter(`ALTER COLUMN %s SET DEFAULT %s`, name, c.Default)
	}
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
		d.undone = append(d.undone, undone{t.ID, c.Name})
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
		kind := "STORED"
		if c.Virtual {
			kind = "VIRTUAL"
		}
		d.stepf(`%s GENERATED ALWAYS AS (%s) %s`, sql, c.Default, kind)
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
