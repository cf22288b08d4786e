package migrator

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// How relations are compared: tables and their partitions. One is the same as before if it has the same OID, whatever its name and whatever it is a
// partition of. What is the same stays on the target, under the name that it has now; but if it is a partition now and was not, or of another
// table, its rows are sent anew, since no log says what was done to it in between.

// place is where a relation is: a table of its own, or a partition of one.
type place struct {
	Relation
	table    *Table
	attached string
}

// columns are those of a table that is there.
func (p place) columns() []Column {
	if p.table == nil {
		return nil
	}
	return p.table.Columns
}

func (p place) own() bool { return p.ID == p.table.ID }

func places(tables []*Table) map[uint32]place {
	list := map[uint32]place{}
	for _, t := range tables {
		list[t.ID] = place{Relation: t.Relation, table: t}
		for _, l := range t.Leaves {
			if l.ID != t.ID {
				list[l.ID] = place{Relation: l.Relation, table: t, attached: l.Attached}
			}
		}
	}
	return list
}

// relationsDiff is what schemaDiff knows of relations.
type relationsDiff struct {
	before, now map[uint32]place
	apart       map[string]bool // partitions that could not be attached on the target: schema and name
	anew        map[uint32]bool // relations that are there still, but are made anew on the target
	touched     map[uint32]bool // tables that are, or have partitions that are, under another name or elsewhere
	left        map[uint32]bool // tables that partitions have left

	// Names may go from one relation to another. What is gone goes first; then those move out of the way whose new names are taken.
	gone, aside, named []SchemaStep
	taken              map[Relation]bool // names that relations had, without IDs
}

// relations plans what becomes of the relations that the target has, and finds those that are new.
func (d *schemaDiff) relations(known, now []*Table) {
	d.before, d.now = places(known), places(now)
	ids := slices.Sorted(maps.Keys(d.before))
	for _, id := range ids {
		old := d.before[id]
		d.taken[Relation{Schema: old.Schema, Name: old.Name}] = true
	}
	slices.SortStableFunc(ids, func(a, b uint32) int { // partitions before their tables
		first := func(id uint32) int {
			if d.before[id].own() {
				return 1
			}
			return 0
		}
		return cmp.Compare(first(a), first(b))
	})
	for _, id := range ids {
		old := d.before[id]
		there, ok := d.now[id]
		if old.own() && (!ok || !there.own()) {
			d.Dropped = append(d.Dropped, id)
		}
		switch {
		case !ok:
			d.goes(old)
		case !old.own() && d.apart[old.Schema+"\x00"+old.Name]: // perhaps it can be attached when it is made as it is now
			d.remake(old)
		case there.table.ID == old.table.ID:
			d.stays(old, there)
		default:
			d.moves(old, there)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(d.now)) {
		if _, ok := d.before[id]; !ok || d.anew[id] {
			d.newTables[d.now[id].Schema+"\x00"+d.now[id].Name] = true
		}
	}
}

// goes is for a relation that was dropped.
func (d *schemaDiff) goes(old place) {
	d.dropped[old.Ident()] = true
	root, ok := d.now[old.table.ID]
	switch {
	case old.own():
		for _, l := range old.table.Leaves { // a table that is a partition now, with its own
			if _, ok := d.now[l.ID]; ok && l.ID != old.ID {
				d.gone = append(d.gone, SchemaStep{SQL: detach(l.Relation)})
			}
		}
		d.sayf("table %s was dropped", old.Relation)
	case ok && root.own():
		d.left[old.table.ID], d.touched[old.table.ID] = true, true
		d.sayf("partition %s of %s is gone", old.Relation, root.Relation)
	default:
		return // it goes with its table
	}
	d.dropRelation(old)
}

// dropRelation drops it on the target. A partition is emptied and detached first, or a foreign key that refers to its table would keep it.
func (d *schemaDiff) dropRelation(old place) {
	if !old.own() {
		d.emptyRelation(old)
		d.gone = append(d.gone, SchemaStep{SQL: detach(old.Relation)})
	}
	d.gone = append(d.gone, SchemaStep{SQL: fmt.Sprintf(`DROP TABLE IF EXISTS %s CASCADE`, old.Ident())})
}

func (d *schemaDiff) emptyRelation(old place) {
	d.Empty = append(d.Empty, &Table{Relation: old.Relation, Kind: KindOrdinary, Key: old.table.Key})
}

// remake is for a relation that is made anew.
func (d *schemaDiff) remake(old place) {
	d.dropped[old.Ident()], d.anew[old.ID], d.touched[old.table.ID] = true, true, true
	d.dropRelation(old)
}

// stays is for a relation that is what it was, perhaps under another name.
func (d *schemaDiff) stays(old, there place) {
	if old.Relation != there.Relation {
		d.touched[there.table.ID] = true
		d.rename(old.Relation, there.Relation)
		d.sayf("table %s is %s now", old.Relation, there.Relation)
	}
	if old.own() || old.attached == there.attached {
		return
	}
	d.touched[there.table.ID] = true // so that it is known from now on
	if old.attached != "" {          // its table's triggers did not see what was written while it was detached
		d.emptyRelation(old)
		d.sayf("partition %s of %s was detached and attached again, and is sent whole", there.Relation, there.table)
	}
}

// moves is for a partition that is a table now, or one of another table, and for a table that is a partition now.
func (d *schemaDiff) moves(old, there place) {
	if !old.own() {
		d.left[old.table.ID], d.touched[old.table.ID] = true, true
		d.sayf("partition %s of %s is elsewhere now", old.Relation, old.table)
	}
	if old.own() && old.table.Kind == KindPartitioned || !sameColumns(old.table, there.table) {
		d.remake(old)
		return
	}
	d.emptyRelation(old) // and it is detached and attached as far as the objects say so
	if old.Relation != there.Relation {
		d.rename(old.Relation, there.Relation)
	}
}

// sameColumns tells whether the relations of two tables have the same columns, whatever their order.
func sameColumns(a, b *Table) bool {
	plain := func(t *Table) []Column {
		list := slices.Clone(t.Columns)
		for i := range list {
			list[i].Num, list[i].Missing = 0, nil
		}
		slices.SortFunc(list, func(x, y Column) int { return cmp.Compare(x.Name, y.Name) })
		return list
	}
	return slices.Equal(plain(a), plain(b))
}

// adopt notes the partitions whose rows have to be sent: new ones, those that come from elsewhere, and those that were attached again.
func (d *schemaDiff) adopt(k, t *Table) (adopts bool) {
	a := adopted{Table: t}
	for _, l := range t.Leaves {
		old, was := d.before[l.ID]
		if l.ID == t.ID || (!was && k == t) { // of a table that is new and sent whole
			continue
		}
		if !was || d.anew[l.ID] || old.table.ID != k.ID {
			d.sayf("partition %s of %s is new", l.Relation, t)
		} else if old.attached == "" || old.attached == l.Attached {
			continue
		}
		a.leaves = append(a.leaves, l.Relation)
	}
	if len(a.leaves) > 0 {
		d.adopted = append(d.adopted, a)
	}
	return len(a.leaves) > 0
}

// rename gives a relation its new name.
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

// detach is the statement that detaches a partition from whatever it is in.
func detach(leaf Relation) string {
	return fmt.Sprintf(`DO $do$ DECLARE parent regclass := (SELECT inhparent FROM pg_inherits WHERE inhrelid = to_regclass('%s')); BEGIN
		IF parent IS NOT NULL THEN EXECUTE format('ALTER TABLE %%s DETACH PARTITION %%s', parent, '%[1]s'::regclass); END IF; END $do$`, quoteText(leaf.Ident()))
}
