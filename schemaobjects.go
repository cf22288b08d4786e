package migrator

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// How the objects that pg_dump knows are compared: all but tables and their columns.

// objects compares what pg_dump says, but for tables and their columns. It plans what goes first, and returns what
// comes last.
//
//nolint:gocognit // one plan, in the order in which it is carried out
func (d *schemaDiff) objects(before, now []SchemaObject, silent bool) (last []SchemaStep) {
	d.ownedSequences(before, now)
	known, goes, next := d.knownObjects(before)
	last = d.underNewNames(known, now, goes)
	d.goesWithColumns(known, now, goes)
	var first, attach []SchemaStep
	ids := map[int]int{}      // of objects, to those that they have in the journal
	anew := map[string]bool{} // foreign keys that are made anew, and so have to be validated anew
	for _, o := range now {
		if !silent && (o.Stage == StageForeign || o.Type == "TRIGGER" || o.commentsOn(now, "FK CONSTRAINT")) {
			o.Stage = StageSwitch
		}
		number := o.ID
		old, ok := known[o.key()]
		delete(known, o.key())
		if o.Type == "TABLE ATTACH" { // bounds may be labels
			old.SQL = d.relabel(old.SQL)
		}
		if again := o.Type == typeValidation && anew[o.constraint()]; ok && !again && d.unchanged(&old, o,
			goes[old.ID]) {
			o.ID, o.State, o.Error, o.Stage = old.ID, old.State, old.Error, old.Stage
			ids[number], o.Needs = o.ID, renumbered(o.Needs, ids)
			d.Objects = append(d.Objects, o)
			continue
		}
		o.ID = old.ID
		if !ok {
			next++
			o.ID = next
		}
		ids[number], o.Needs = o.ID, renumbered(o.Needs, ids)
		if ok && old.State == ObjectLeftOut { // in its new form, too
			o.State, o.Error, o.Stage = old.State, old.Error, old.Stage
			d.Objects = append(d.Objects, o)
			continue
		}
		there := ok && old.State == ObjectDone // else there is nothing to be replaced
		o.State = ObjectPending
		if o.Type == typeCheckConstraint && o.Stage == StageSwitch && there { // it is held back now
			d.stepf("%s", old.Undo)
			d.Objects = append(d.Objects, o)
			continue
		}
		// the root's index may not be built yet
		later := o.Stage == StageSwitch || o.Stage == StageValidate || (d.early && (o.Stage == StageForeign ||
			o.Stage == StageFinish || o.Type == "INDEX ATTACH"))
		if later && (!ok || old.State != ObjectDone) {
			d.Objects = append(d.Objects, o) // when its time comes
			continue
		}
		o.State = ObjectDone
		d.Objects = append(d.Objects, o)
		object := o
		step := SchemaStep{SQL: o.SQL, Object: &object}
		relation := o.Parent.Schema + "\x00" + o.Parent.Name
		switch {
		case o.Type == "TABLE":
			last = append(last, SchemaStep{SQL: strings.Replace(o.SQL, "CREATE TABLE ", "CREATE TABLE IF NOT EXISTS ",
				1)})
			continue
		case o.Type == "TABLE ATTACH", o.Type == "INDEX ATTACH":
			if o.Type == "TABLE ATTACH" && there {
				step.SQL = detach(Relation{Schema: o.Schema, Name: o.Name}) + ";\n" + o.SQL // with other bounds
			}
			attach = append(attach, step) // after the leaf's own indexes, which are then taken for the root's
			continue
		case o.Type == "TYPE" && there && strings.Contains(o.SQL, " AS ENUM ("):
			d.labels(o, old)
			continue
		case (o.Type == "DEFAULT" || o.Type == "CHECK CONSTRAINT") && d.newTables[relation]:
		case there && o.Type == "INDEX": // it may keep its columns from changing
			first = append(first, SchemaStep{SQL: dropping(old)})
			d.sayf("%s was changed", o)
		case there:
			step.SQL, step.Replaces = replaced(old, o), standsAlone(o)
			d.sayf("%s was changed", o)
		case o.Type == typeHeldBack: // no row depends on it, and it is here with its table alone
		default:
			step.Replaces = !ok && standsAlone(o)
			d.sayf("%s is new", o)
		}
		anew[o.constraint()] = anew[o.constraint()] || o.Type == "FK CONSTRAINT"
		if !goes[o.ID] && neededByColumns(o) { // else after the one that goes
			first = append(first, step)
		} else {
			last = append(last, step)
		}
	}
	empty := d.drop(known)
	d.Steps = append(d.Steps, first...)
	return append(attached(last, attach), empty...)
}

// renumbered are other IDs of the same objects. Those that are not there any more are left out.
func renumbered(needs []int, ids map[int]int) []int {
	list := make([]int, 0, len(needs))
	for _, id := range needs {
		if to, ok := ids[id]; ok {
			list = append(list, to)
		}
	}
	return list
}

// unchanged tells whether an object is what it was; goes, whether it may be gone with a column. If it has to be made,
// old says what is there.
func (d *schemaDiff) unchanged(old *SchemaObject, o SchemaObject, goes bool) bool {
	switch {
	case old.SQL != o.SQL && !untold(o):
		return false
	case old.State == ObjectPending && (!goes || old.Type != "SEQUENCE"):
	case goes: // the column is there again, and what is of it
		old.State = ObjectPending
		return false
	case old.State == ObjectFailed && old.Stage != StageSwitch && !d.early: // perhaps it can be made now
		old.State = ObjectDone
		return false
	}
	return true
}

// neededByColumns tells whether an object comes before columns. The sequence of an identity column comes with it.
func neededByColumns(o SchemaObject) bool {
	if o.Type == typeCheckConstraint && strings.HasPrefix(o.SQL, "ALTER DOMAIN ") {
		return true
	}
	return slices.Contains([]string{"SCHEMA", "TYPE", "DOMAIN", "FUNCTION", "PROCEDURE", "SEQUENCE", "EXTENSION",
		"COLLATION"}, o.Type) && !strings.Contains(o.SQL, "ADD GENERATED")
}

// knownObjects are those that are there when tables were dropped and renamed, by their names, and which of them may be
// gone with tables.
func (d *schemaDiff) knownObjects(before []SchemaObject) (known map[string]SchemaObject, goes map[int]bool,
	highest int) {
	known, goes = map[string]SchemaObject{}, d.goesWithTables(before)
	var stay []SchemaObject
	for _, o := range before {
		highest = max(highest, o.ID)
		switch {
		case o.Type == typeNotNull || o.Type == typeCheck || o.Type == typeLateValidation: // ours
			if !d.isUndone(o) {
				undo := o
				undo.SQL = o.Undo
				o.SQL, o.Undo = d.renamed(o).SQL, d.renamed(undo).SQL
				d.Objects = append(d.Objects, o)
			}
		case !goes[o.ID]:
			stay = append(stay, o)
		case o.Type == "SEQUENCE": // which is gone for certain
			o.State = ObjectPending
			known[o.key()] = o
		default:
			known[o.key()] = o
		}
	}
	for _, o := range stay { // what stays may have the name of what is gone by now
		o = d.renamed(o)
		known[o.key()] = o
	}
	return known, goes, highest
}

// isUndone tells whether a constraint of ours, or its table, is there no more.
func (d *schemaDiff) isUndone(o SchemaObject) bool {
	return slices.Contains(d.Dropped, o.Table) || slices.ContainsFunc(d.undone,
		func(u undone) bool { return u.table == o.Table && o.ownName() == u.name })
}

// goesWithTables tells which objects may be gone when the tables are that were dropped: DROP TABLE … CASCADE takes
// away what depends on them. What is there nevertheless is found there when it is made.
func (d *schemaDiff) goesWithTables(before []SchemaObject) map[int]bool {
	goes, names := map[int]bool{}, slices.Collect(maps.Keys(d.dropped))
	for again := len(names) > 0; again; {
		again = false
		for _, o := range before {
			if goes[o.ID] {
				continue
			}
			ident := pgx.Identifier{o.Schema, o.Name}.Sanitize()
			owned := o.Type == "SEQUENCE" && d.dropped[ident]
			if !owned && !slices.ContainsFunc(names, func(name string) bool { return strings.Contains(o.SQL, name) }) {
				continue
			}
			goes[o.ID] = true
			if name := takesAlong(o); name != "" {
				names, again = append(names, name), true
			} else if o.Type == "SEQUENCE OWNED BY" {
				d.dropped[ident], again = true, true
			}
		}
	}
	return goes
}

// takesAlong is how those objects name this one that go when it does; empty, if there are none.
func takesAlong(o SchemaObject) string {
	switch o.Type {
	case "VIEW", "MATERIALIZED VIEW", "INDEX":
		return pgx.Identifier{o.Schema, o.Name}.Sanitize()
	case "CONSTRAINT": // its index
		return pgx.Identifier{o.Schema, o.ownName()}.Sanitize()
	case "FUNCTION":
		name, _, _ := strings.Cut(o.Name, "(")
		return pgx.Identifier{o.Schema, name}.Sanitize() + "("
	}
	return ""
}

// goesWithColumns adds what may be gone when columns are dropped, or views over them, and what goes with a materialised
// view that is another one now.
func (d *schemaDiff) goesWithColumns(known map[string]SchemaObject, now []SchemaObject, goes map[int]bool) {
	var names []string
	for _, o := range now {
		if old, ok := known[o.key()]; ok && o.Type == "MATERIALIZED VIEW" && old.SQL != o.SQL {
			names = append(names, takesAlong(o))
		}
	}
	for again := len(d.columnsGo)+len(names) > 0; again; {
		again = false
		for _, o := range known {
			if goes[o.ID] || slices.Contains([]string{"TABLE", "TABLE ATTACH", "SEQUENCE"}, o.Type) {
				continue
			}
			if !slices.ContainsFunc(names, func(name string) bool { return strings.Contains(o.SQL, name) }) &&
				!slices.ContainsFunc(d.columnsGo, func(c [2]string) bool {
					return strings.Contains(o.SQL, c[0]) &&
						strings.Contains(o.SQL, c[1])
				}) {
				continue
			}
			goes[o.ID] = true
			if name := takesAlong(o); name != "" {
				names, again = append(names, name), true
			} else if o.Type == "SEQUENCE OWNED BY" { // the sequence need not go
				d.stepf(`ALTER SEQUENCE IF EXISTS %s OWNED BY NONE`, pgx.Identifier{o.Schema, o.Name}.Sanitize())
			}
		}
	}
}

// attached puts the steps by which partitions join their roots where they have their own indexes, before foreign keys.
func attached(last, attach []SchemaStep) []SchemaStep {
	constraints := slices.IndexFunc(last, func(s SchemaStep) bool {
		return s.Object != nil && s.Object.Type == "FK "+
			"CONSTRAINT"
	})
	if constraints < 0 {
		constraints = len(last)
	}
	return slices.Concat(last[:constraints], attach, last[constraints:])
}

// untold tells whether an object's definition says nothing new: a table's columns are compared elsewhere.
func untold(o SchemaObject) bool { return o.Type == "TABLE" || o.Type == typeViewData }

// standsAlone tells whether an object comes with no other: if it is there when it is made, it is there in its old form.
func standsAlone(o SchemaObject) bool {
	return slices.Contains([]string{"AGGREGATE", "COLLATION", "DOMAIN", "OPERATOR", "POLICY", "TYPE", "VIEW"}, o.Type)
}

// policyHead is the name of a policy and its table, as pg_dump writes them.
var policyHead = regexp.MustCompile(`^CREATE POLICY ("(?:[^"]|"")*" ON "(?:[^"]|"")*"\."(?:[^"]|"")*")`)

// drop takes away what is not there any more, the last made first. It returns what can go only at the end.
func (d *schemaDiff) drop(gone map[string]SchemaObject) (empty []SchemaStep) {
	list := slices.SortedFunc(maps.Values(gone), func(a, b SchemaObject) int { return b.ID - a.ID })
	for _, o := range list {
		if o.State != ObjectDone || o.Type == typeValidation {
			continue
		}
		switch sql := dropping(o); {
		case sql != "":
			d.Steps = append(d.Steps, SchemaStep{SQL: sql, Object: &o, Drops: true})
			d.sayf("%s was dropped", o)
		case o.Type == "TYPE" || o.Type == "DOMAIN":
			empty = append(empty, SchemaStep{SQL: fmt.Sprintf(`DO $do$ BEGIN DROP TYPE IF EXISTS %s; EXCEPTION WHEN
				dependent_objects_still_exist THEN NULL; END $do$`, pgx.Identifier{o.Schema, o.Name}.Sanitize())})
		case o.Type == "TABLE ATTACH": // it may be a table, of its own or of other partitions
			d.stepf("%s", detach(Relation{Schema: o.Schema, Name: o.Name}))
		case o.Type == "TABLE": // one that holds no rows: a partition that had partitions, or one without columns
			empty = append(empty, SchemaStep{SQL: fmt.Sprintf(`DO $do$ DECLARE it regclass := to_regclass('%s'); filled
				bool; BEGIN
				IF it IS NOT NULL AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhparent = it) THEN
					EXECUTE format('SELECT EXISTS (SELECT FROM %%s)', it) INTO filled;
					IF NOT filled THEN EXECUTE format('DROP TABLE %%s', it); END IF;
				END IF; END $do$`, quoteText(pgx.Identifier{o.Schema, o.Name}.Sanitize()))})
		}
	}
	return empty
}

// replaced changes an object into its new form.
func replaced(old, o SchemaObject) string {
	switch o.Type {
	case "FUNCTION", "PROCEDURE", "VIEW":
		return strings.Replace(o.SQL, "CREATE "+o.Type+" ", "CREATE OR REPLACE "+o.Type+" ", 1)
	case "SEQUENCE":
		if strings.Contains(o.SQL, "ADD GENERATED") {
			return dropping(old) + ";\n" + o.SQL
		}
		sql := strings.Replace(o.SQL, "CREATE SEQUENCE ", "ALTER SEQUENCE ", 1)
		if !strings.Contains(sql, "\n    AS ") { // pg_dump leaves out what is the default for a new one
			sql = strings.Replace(sql, "\n", "\n    AS bigint\n", 1)
		}
		return sql
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
	case typeViewData: // it has no data on the source now
		return "REFRESH MATERIALIZED VIEW " + ident + " WITH NO DATA"
	case "SEQUENCE":
		return fmt.Sprintf(`DO $do$ BEGIN DROP SEQUENCE IF EXISTS %s; EXCEPTION WHEN dependent_objects_still_exist THEN
			NULL; END $do$`, ident)
	case "FUNCTION", "PROCEDURE":
		drop := strings.Replace(strings.TrimRight(o.Drop, "; \n"), "DROP "+o.Type+" ", "DROP "+o.Type+" IF EXISTS ", 1)
		return fmt.Sprintf(`DO $do$ BEGIN %s; EXCEPTION WHEN dependent_objects_still_exist THEN NULL; END $do$`, drop)
	case typeSetting:
		return unset(o.Name)
	case "ROW SECURITY":
		return fmt.Sprintf(`ALTER TABLE IF EXISTS %s DISABLE ROW LEVEL SECURITY`, ident)
	case "POLICY":
		if head := policyHead.FindStringSubmatch(o.SQL); head != nil {
			return fmt.Sprintf(`DO $do$ BEGIN DROP POLICY IF EXISTS %s; EXCEPTION WHEN undefined_table THEN NULL; END
				$do$`, head[1])
		}
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
