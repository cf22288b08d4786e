package migrator

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// How the labels of an enum are compared. A label that has another name is told from one that is new by its OID, which
// DumpSchema notes beside the definition.

const labelOIDs = "\n-- labels "

var (
	enumLabel = regexp.MustCompile(`'((?:[^']|'')*)'`)
	labelOID  = regexp.MustCompile(`[0-9]+`)
)

// enumLabels are the quoted labels of an enum's definition, in order, and their OIDs; without, if these were not noted.
func enumLabels(sql string) (labels, oids []string) {
	sql, noted, _ := strings.Cut(sql, labelOIDs)
	_, list, ok := strings.Cut(sql, " AS ENUM (")
	if !ok {
		return nil, nil
	}
	labels, oids = enumLabel.FindAllString(list, -1), labelOID.FindAllString(noted, -1)
	if len(oids) != len(labels) {
		oids = nil
	}
	return labels, oids
}

// noteLabels adds the OIDs of its labels to the definition of each enum.
func noteLabels(ctx context.Context, q querier, objects []SchemaObject) error {
	rows, err := q.Query(ctx, `
		SELECT n.nspname, t.typname, string_agg(e.oid::text, ' ' ORDER BY e.enumsortorder)
		FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid JOIN pg_namespace n ON n.oid = t.typnamespace GROUP BY
			t.oid, n.oid`)
	if err != nil {
		return err
	}
	noted := map[[2]string]string{}
	var name [2]string
	var oids string
	if _, err := pgx.ForEachRow(rows, []any{&name[0], &name[1], &oids}, func() error {
		noted[name] = oids
		return nil
	}); err != nil {
		return err
	}
	for i, o := range objects {
		if oids, ok := noted[[2]string{o.Schema, o.Name}]; ok && o.Type == "TYPE" {
			objects[i].SQL += labelOIDs + oids
		}
	}
	return nil
}

// types renames enums, which are told by the OIDs of their labels.
func (d *schemaDiff) types(before, now []SchemaObject) {
	plain := regexp.MustCompile(`^[a-z_][a-z0-9_]*$`)
	named := func(o SchemaObject) string { // as format_type does it
		quote := func(name string) string {
			if plain.MatchString(name) {
				return name
			}
			return quoteName(name)
		}
		return quote(o.Schema) + "." + quote(o.Name)
	}
	for _, old := range before {
		_, oids := enumLabels(old.SQL)
		i := slices.IndexFunc(now, func(o SchemaObject) bool {
			_, those := enumLabels(o.SQL)
			return slices.ContainsFunc(those, func(oid string) bool { return slices.Contains(oids, oid) })
		})
		if i < 0 || old.Type != "TYPE" || (now[i].Schema == old.Schema && now[i].Name == old.Name) {
			continue
		}
		o := now[i]
		from, to := pgx.Identifier{old.Schema, old.Name}.Sanitize(), pgx.Identifier{o.Schema, o.Name}.Sanitize()
		if old.Name != o.Name {
			d.aside = append(d.aside, SchemaStep{SQL: fmt.Sprintf(`ALTER TYPE %s RENAME TO %s`, from,
				quoteName(o.Name))})
		}
		if old.Schema != o.Schema {
			d.aside = append(d.aside, SchemaStep{SQL: fmt.Sprintf(`ALTER TYPE %s SET SCHEMA %s`,
				pgx.Identifier{old.Schema, o.Name}.Sanitize(), quoteName(o.Schema))})
		}
		d.names[old.Schema+"\x00"+old.Name] = o.Schema + "\x00" + o.Name
		d.typeNames[named(old)], d.oldTypes[to] = named(o), from
		d.sayf("type %s is %s now", named(old), named(o))
	}
}

// underNewTypes is a table with its columns' types under their new names.
func (d *schemaDiff) underNewTypes(k *Table) (known *Table, changed bool) {
	t := *k
	t.Columns = slices.Clone(k.Columns)
	for i, c := range t.Columns {
		name, array := strings.CutSuffix(c.Type, "[]")
		if to, ok := d.typeNames[name]; ok {
			changed = true
			t.Columns[i].Type = to
			if array {
				t.Columns[i].Type += "[]"
			}
		}
	}
	return &t, changed
}

// labels plans what gives an enum the labels that it has now. Both forms of statement may be repeated.
func (d *schemaDiff) labels(o, old SchemaObject) {
	name := pgx.Identifier{o.Schema, o.Name}.Sanitize()
	name = cmp.Or(d.oldTypes[name], name)
	now, nowOIDs := enumLabels(o.SQL)
	before, beforeOIDs := enumLabels(old.SQL)
	renamed := map[string]string{} // labels, from old to new
	for i, label := range before {
		var is int
		if nowOIDs != nil && beforeOIDs != nil {
			is = slices.Index(nowOIDs, beforeOIDs[i])
		} else {
			is = slices.Index(now, label)
		}
		switch {
		case is < 0:
			d.refusef("Label %s of type %s is gone, renamed, or of a type that was made anew: that cannot be "+
				"followed. Undo it, or abort and start again.", label, name)
		case now[is] == label:
		case slices.Contains(before, now[is]):
			d.refusef("Label %s of type %s has the name now that another one had: that cannot be followed. Undo it, "+
				"or abort and start again.", now[is], name)
		default:
			renamed[label] = now[is]
		}
	}
	for _, label := range sortedKeys(renamed) {
		d.Labels = append(d.Labels, fmt.Sprintf(`DO $do$ BEGIN
			IF EXISTS (SELECT FROM pg_enum WHERE enumtypid = '%[1]s'::regtype AND enumlabel = %[2]s) AND NOT EXISTS
				(SELECT FROM pg_enum WHERE enumtypid = '%[1]s'::regtype AND enumlabel = %[3]s) THEN
				ALTER TYPE %[4]s RENAME VALUE %[2]s TO %[3]s;
			END IF; END $do$`, quoteText(name), label, renamed[label], name))
		d.sayf("label %s of type %s is %s now", label, name, renamed[label])
		d.relabeled[label] = renamed[label]
	}
	for i, label := range now {
		if slices.Contains(before, label) && renamed[label] == "" ||
			slices.Contains(slices.Collect(maps.Values(renamed)), label) {
			continue
		}
		place := ""
		if i > 0 {
			place = " AFTER " + now[i-1]
		} else if len(now) > 1 {
			place = " BEFORE " + now[1]
		}
		d.Labels = append(d.Labels, fmt.Sprintf(`ALTER TYPE %s ADD VALUE IF NOT EXISTS %s%s`, name, label, place))
		d.sayf("label %s of type %s is new", label, name)
	}
}

// relabel is a definition under the new names of labels.
func (d *schemaDiff) relabel(sql string) string {
	var pairs []string
	for _, label := range sortedKeys(d.relabeled) {
		pairs = append(pairs, label, d.relabeled[label])
	}
	return strings.NewReplacer(pairs...).Replace(sql)
}

// sendRelabeled has tables sent whole whose log may name rows by labels that are others now: images, and keys of types
// that are not Postgres's own.
func (d *schemaDiff) sendRelabeled(known []TableStatus, now []*Table) {
	for _, s := range known {
		i := slices.IndexFunc(now, func(t *Table) bool { return t.ID == s.Table.ID })
		if i < 0 || slices.Contains(d.resent, now[i]) {
			continue
		}
		t := now[i]
		if !t.logsArrays() {
			d.Empty, d.resent = append(d.Empty, s.Table), append(d.resent, t)
			d.sayf("table %s is sent whole again", t)
		}
	}
}
