package migrator

import (
	"fmt"
	"slices"
	"strings"
)

// How tables are compared.

// schemaDiff compares what the journal knows with what there is.
type schemaDiff struct {
	*schemaPlan

	early     bool              // indexes and foreign keys are not all there yet
	columns   map[string]string // renamed: table and old name, to the new one
	names     map[string]string // renamed: old name of a relation, quoted, to the new one
	newTables map[string]bool   // names of relations as pg_dump has them: schema and name
	dropped   map[string]bool   // relations that are dropped on the target, quoted
	columnsGo [][2]string       // columns that are dropped there, or of another type: table and name, quoted
	typeNames map[string]string // enums that are renamed: as columns name them
	oldTypes  map[string]string // and as the target has them still when labels are added: new name to old one, quoted
	relabeled map[string]string // labels of enums that have other names, quoted
	undone    []undone          // what is not to be waited for any more
	relationsDiff
}

// undone is a constraint, or the NOT NULL of a column, that is there no more.
type undone struct {
	table uint32
	name  string
}

func newSchemaDiff(p *schemaPlan, before []SchemaObject, early bool) *schemaDiff {
	d := &schemaDiff{
		schemaPlan: p, early: early, columns: map[string]string{}, names: map[string]string{},
		newTables: map[string]bool{}, dropped: map[string]bool{}, relabeled: map[string]string{},
		typeNames: map[string]string{}, oldTypes: map[string]string{},
		relationsDiff: relationsDiff{apart: map[string]bool{}, taken: map[Relation]bool{}, touched: map[uint32]bool{},
			left: map[uint32]bool{}, anew: map[uint32]bool{}},
	}
	for _, o := range before {
		if o.Type == "TABLE ATTACH" && o.State == ObjectFailed {
			d.apart[o.Schema+"\x00"+o.Name] = true
		}
	}
	return d
}

func (d *schemaDiff) tables(cat *Catalog, tables []TableStatus) {
	known := map[uint32]*Table{}
	list := make([]*Table, len(tables))
	for i, t := range tables {
		list[i], known[t.Table.ID] = t.Table, t.Table
	}
	d.relations(list, cat.Tables)
	for _, t := range cat.Tables {
		k := known[t.ID]
		switch {
		case k == nil:
			d.created, d.Tables = append(d.created, t), append(d.Tables, t)
			d.adopt(t, t)
			d.sayf("table %s is new, and is sent whole", t)
		case t.Kind != k.Kind:
			d.refusef("Table %s became %s: that cannot be followed. Abort and start again.", t, t.Kind)
		default:
			d.table(k, t)
		}
	}
	d.Steps = slices.Concat(d.gone, d.aside, d.named, d.Steps)
}

// table compares a table that is still there.
func (d *schemaDiff) table(k, t *Table) {
	changed := d.adopt(k, t) || d.touched[t.ID]
	k, retyped := d.underNewTypes(k)
	changed = changed || retyped
	if d.checksGone(k, t) {
		changed = true
	}
	whole := t.Keyless() && d.left[t.ID] // its rows' images may be those of others
	columnsChanged, keyNames := d.columnsOf(k, t, whole || t.Keyless() || rewritten(k, t))
	switch {
	case slices.Equal(k.Key, t.Key) && !slices.Equal(k.keyNumbers(), t.keyNumbers()):
		d.refusef("The key (%s) of table %s is another column of the same name now: that cannot be followed while "+
			"changes are captured by the old one. Abort and start again.",
			strings.Join(t.Key, ", "), t)
	case !slices.Equal(keyNames, t.Key):
		d.refusef("The key of table %s is (%s) now, not (%s): that cannot be followed while changes are captured by "+
			"the old one. Undo it, or abort and start again.",
			t, strings.Join(t.Key, ", "), strings.Join(k.Key, ", "))
	case !slices.Equal(k.Key, t.Key): // its capture may name them
		d.renamedKeys = append(d.renamedKeys, t)
	}
	if d.checks(k, t) {
		changed = true
	}
	if !slices.Equal(k.Parents, t.Parents) {
		d.refusef("Table %s inherits from other tables now: that cannot be followed. Undo it, or abort and start "+
			"again.", t)
	}
	if k.Unlogged != t.Unlogged {
		to := map[bool]string{false: "LOGGED", true: "UNLOGGED"}[t.Unlogged]
		d.stepf(`ALTER TABLE %s SET %s`, t.Ident(), to)
		d.sayf("table %s is %s now", t, to)
		changed = true
	}
	if misread(k, t) { // what was logged in between may be the values of another column
		d.renamedKeys = append(d.renamedKeys, t)
		whole, changed = true, true
	}
	resent := whole || d.missingDiffers(k, t) || columnsChanged && (t.Keyless() || rewritten(k, t))
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

// keyNumbers are the numbers of the key's columns.
func (t *Table) keyNumbers() []int {
	numbers := make([]int, len(t.Key))
	for i, name := range t.Key {
		if at := slices.IndexFunc(t.Columns, func(c Column) bool { return c.Name == name }); at >= 0 {
			numbers[i] = t.Columns[at].Num
		}
	}
	return numbers
}

// misread tells whether capture may have found the key in other columns: it goes by their names, and these were
// others, perhaps for a moment.
func misread(k, t *Table) bool {
	if _, ok := t.keyByPlace(); ok || t.Keyless() {
		return false
	}
	numbers := t.keyNumbers()
	for _, c := range t.Columns {
		i := slices.IndexFunc(k.Columns, func(o Column) bool { return o.Num == c.Num })
		if i >= 0 && slices.Contains(numbers, c.Num) && k.Columns[i].Written != c.Written {
			return true
		}
	}
	return false
}

// missingDiffers tells whether rows have other values in a new column than the one that the target's get.
func (d *schemaDiff) missingDiffers(k, t *Table) bool {
	for _, c := range t.Columns {
		if slices.ContainsFunc(k.Columns, func(o Column) bool { return o.Num == c.Num }) {
			continue
		}
		if c.Mixed {
			return true
		}
		for _, id := range t.Parents {
			for _, o := range d.now[id].columns() {
				if o.Name == c.Name && (o.Missing == nil) != (c.Missing == nil) || (o.Name == c.Name &&
					o.Missing != nil && *o.Missing != *c.Missing) {
					return true
				}
			}
		}
	}
	return false
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

// checksGone and checks compare CHECK constraints, which pg_dump writes into the table's definition. Those that go do
// so before their columns change.
func (d *schemaDiff) checksGone(k, t *Table) (changed bool) {
	for _, name := range sortedKeys(k.Checks) {
		if t.Checks[name] != k.Checks[name] {
			d.stepf(`ALTER TABLE %s DROP CONSTRAINT IF EXISTS %s`, t.Ident(), quoteName(name))
			d.undone = append(d.undone, undone{t.ID, name})
			d.sayf("constraint %s of %s is gone, or another", name, t)
			changed = true
		}
	}
	return changed
}

func (d *schemaDiff) checks(k, t *Table) (changed bool) {
	for _, name := range sortedKeys(t.Checks) {
		if t.Checks[name] == k.Checks[name] && !d.goneWith(t, t.Checks[name]) {
			continue
		}
		sql := fmt.Sprintf(`ALTER TABLE %s ADD CONSTRAINT %s %s`, t.Ident(), quoteName(name), t.Checks[name])
		undo := fmt.Sprintf(`ALTER TABLE %s DROP CONSTRAINT IF EXISTS %s`, t.Ident(), quoteName(name))
		d.Steps = append(d.Steps, SchemaStep{SQL: sql, Object: &SchemaObject{
			Stage: StageSwitch, Type: typeCheck, Schema: t.Schema, Name: t.Name + " " + name, Parent: t.Relation,
			Table: t.ID, State: ObjectPending, SQL: sql, Undo: undo,
		}})
		d.sayf("constraint %s of %s is new", name, t)
		changed = true
	}
	return changed
}

// goneWith tells whether a constraint may have gone with a column.
func (d *schemaDiff) goneWith(t *Table, definition string) bool {
	return slices.ContainsFunc(d.columnsGo, func(c [2]string) bool {
		return c[0] == t.Ident() && strings.Contains(definition, strings.Trim(c[1], `"`))
	})
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

// Types of objects that are left to the switch, and are not among pg_dump's.
const (
	typeNotNull = "NOT NULL"
	typeCheck   = "CHECK"
)

func quoteText(s string) string { return strings.ReplaceAll(s, "'", "''") }
