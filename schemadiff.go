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
		schemaPlan: p, early: early, columns: map[string]string{}, names: map[string]string{}, newTables: map[string]bool{}, dropped: map[string]bool{}, relabeled: map[string]string{}, typeNames: map[string]string{}, oldTypes: map[string]string{},
		relationsDiff: relationsDiff{apart: map[string]bool{}, taken: map[Relation]bool{}, touched: map[uint32]bool{}, left: map[uint32]bool{}, anew: map[uint32]bool{}},
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
		d.refusef("The key (%s) of table %s is another column of the same name now: that cannot be followed while changes are captured by the old one. Abort and start again.",
			strings.Join(t.Key, ", "), t)
	case !slices.Equal(keyNames, t.Key):
		d.refusef("The key of table %s is (%s) now, not (%s): that cannot be followed while changes are captured by the old one. Undo it, or abort and start again.",
			t, strings.Join(t.Key, ", "), strings.Join(k.Key, ", "))
	case !slices.Equal(k.Key, t.Key): // its capture may name them
		d.renamedKeys = append(d.renamedKeys, t)
	}
	if d.checks(k, t) {
		changed = true
	}
	if !slices.Equal(k.Parents, t.Parents) {
		d.refusef("Table %s inherits from other tables now: that cannot be followed. Undo it, or abort and start again.", t)
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

// misread tells whether capture may have found the key in other columns: it goes by their names, and these were others, perhaps for a moment.
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
				if o.Name == c.Name && (o.Missing == nil) != (c.Missing == nil) || (o.Name == c.Name && o.Missing != nil && *o.Missing != *c.Missing) {
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

// checksGone and checks compare CHECK constraints, which pg_dump writes into the table's definition. Those that go do so before their columns change.
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
			Stage: StageSwitch, Type: typeCheck, Schema: t.Schema, Name: t.Name + " " + name, Table: t.ID, State: ObjectPending, SQL: sql, Undo: undo,
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
			changed = true
			if !c.Inherited { // else it goes with its parent's
				alter(`DROP COLUMN IF EXISTS %s CASCADE`, quoteName(c.Name))
			}
			d.columnGoes(t, c)
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
		if o.Type != c.Type || o.Collation != c.Collation {
			d.columnType(t, c, emptied && t.Kind != KindInherited) // whose children's rows are not
			changed = true
			if c.Generated { // it is another column
				continue
			}
		}
		if o.Default != c.Default && o.Type == c.Type && o.Collation == c.Collation && o.Generated == c.Generated {
			d.columnDefault(t, c)
			changed = true
		}
		if o.NotNull != c.NotNull {
			d.notNull(t, c)
			changed = true
		}
		if o.Identity != c.Identity && o.Identity != "" {
			d.identity(t, c)
			changed = true
		}
		if o.Generated != c.Generated {
			d.refusef("Column %s of table %s is generated now, or no longer: that cannot be followed. Undo it, or abort and start again.", c.Name, t)
		}
	}
	return changed, key
}

// identity changes how an identity column is generated, or makes it a plain one.
func (d *schemaDiff) identity(t *Table, c Column) {
	what := map[string]string{"": "DROP IDENTITY IF EXISTS", "a": "SET GENERATED ALWAYS", "d": "SET GENERATED BY DEFAULT"}[c.Identity]
	d.stepf(`ALTER TABLE %s ALTER COLUMN %s %s`, t.Ident(), quoteName(c.Name), what)
	d.sayf("column %s of %s is another identity column now, or none", c.Name, t)
}

// columnDefault gives a column another default, or, if it is generated, another expression.
func (d *schemaDiff) columnDefault(t *Table, c Column) {
	what := fmt.Sprintf("SET DEFAULT %s", c.Default)
	switch {
	case c.Generated:
		what = fmt.Sprintf("SET EXPRESSION AS (%s)", c.Default)
	case c.Default == "":
		what = "DROP DEFAULT"
	}
	d.stepf(`ALTER TABLE %s ALTER COLUMN %s %s`, t.Ident(), quoteName(c.Name), what)
	d.sayf("column %s of %s has another default", c.Name, t)
}

// columnGoes notes a column that is dropped, or of another type: what is made of it, on the table or a partition, may go.
func (d *schemaDiff) columnGoes(t *Table, c Column) {
	for _, r := range t.relations() {
		d.columnsGo = append(d.columnsGo, [2]string{r.Ident(), quoteName(c.Name)})
	}
}

// dropReaders is the statement that drops what keeps a column from getting another type: views that read it, and policies, rules, triggers and functions that
// name it. On the source, they were dropped for that.
func dropReaders(t *Table, c Column) string {
	return fmt.Sprintf(`DO $do$ DECLARE statement text; BEGIN
		FOR statement IN
			SELECT DISTINCT CASE WHEN c.relkind IN ('v', 'm') THEN format('DROP %%s IF EXISTS %%s CASCADE', CASE c.relkind WHEN 'v' THEN 'VIEW' ELSE 'MATERIALIZED VIEW' END, c.oid::regclass)
				ELSE format('DROP RULE IF EXISTS %%I ON %%s', w.rulename, c.oid::regclass) END
			FROM pg_depend d JOIN pg_rewrite w ON d.classid = 'pg_rewrite'::regclass AND w.oid = d.objid JOIN pg_class c ON c.oid = w.ev_class
			WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = '%[1]s'::regclass AND d.refobjsubid = (SELECT attnum FROM pg_attribute WHERE attrelid = d.refobjid AND attname = '%[2]s')
			UNION ALL
			SELECT DISTINCT format('DROP POLICY IF EXISTS %%I ON %%s', p.polname, p.polrelid::regclass)
			FROM pg_depend d JOIN pg_policy p ON d.classid = 'pg_policy'::regclass AND p.oid = d.objid
			WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = '%[1]s'::regclass AND d.refobjsubid = (SELECT attnum FROM pg_attribute WHERE attrelid = d.refobjid AND attname = '%[2]s')
			UNION ALL
			SELECT DISTINCT format('DROP TRIGGER IF EXISTS %%I ON %%s', g.tgname, g.tgrelid::regclass)
			FROM pg_depend d JOIN pg_trigger g ON d.classid = 'pg_trigger'::regclass AND g.oid = d.objid AND NOT g.tgisinternal AND g.tgparentid = 0
			WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = '%[1]s'::regclass AND d.refobjsubid = (SELECT attnum FROM pg_attribute WHERE attrelid = d.refobjid AND attname = '%[2]s')
			UNION ALL
			SELECT DISTINCT format('DROP FUNCTION IF EXISTS %%s CASCADE', d.objid::regprocedure)
			FROM pg_depend d
			WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = '%[1]s'::regclass
			  AND d.refobjsubid = (SELECT attnum FROM pg_attribute WHERE attrelid = d.refobjid AND attname = '%[2]s')
		LOOP
			EXECUTE statement;
		END LOOP;
	END $do$`, quoteText(t.Ident()), quoteText(c.Name))
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
	d.columnGoes(t, c)
	d.sayf("column %s of %s is of type %s now", c.Name, t, c.Type)
	if c.Generated && t.Keyless() {
		d.refusef("Generated column %s of table %s, which has no key, is of type %s now: that cannot be followed, as images of rows have it at its place. Undo it, or abort and start again.", c.Name, t, c.Type)
	}
	d.stepf("%s", dropReaders(t, c))
	if c.Inherited { // it is its parent's that is altered
		return
	}
	if c.Generated {
		alter(`DROP COLUMN IF EXISTS %s CASCADE`, name)
		d.add(t, c)
		return
	}
	if c.Identity == "" {
		alter(`ALTER COLUMN %s DROP DEFAULT`, name)
	}
	using := name
	if emptied { // there need not be a cast
		using = "NULL"
	}
	collate := ""
	if c.Collation != "" {
		collate = " COLLATE " + c.Collation
	}
	alter(`ALTER COLUMN %[2]s TYPE %[3]s%[5]s USING %[4]s::%[3]s`, name, c.Type, using, collate)
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
		if c.NotNull {
			d.notNull(t, c)
		}
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
