package migrator

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// How objects beside the tables get the names that they have now.

// renamed is an object as it would be after the renames that are carried over anyway.
func (d *schemaDiff) renamed(o SchemaObject) SchemaObject {
	sides := []string{o.SQL}
	if o.Type == "FK CONSTRAINT" { // two tables may have columns of the same name
		sides = strings.SplitAfter(o.SQL, " REFERENCES ")
	}
	sides = append(sides, o.Drop)
	// All at once, since names may change places.
	for i, side := range sides {
		var pairs []string
		for _, from := range sortedKeys(d.names) { // pg_dump quotes all names
			pairs = append(pairs, pgx.Identifier(strings.Split(from, "\x00")).Sanitize(),
				pgx.Identifier(strings.Split(d.names[from], "\x00")).Sanitize())
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
		if o.Parent.Schema == f[0] && o.Parent.Name == f[1] {
			if own := o.ownName(); own != o.Name {
				o.Schema, o.Name = t[0], t[1]+" "+own
			}
			o.Parent.Schema, o.Parent.Name = t[0], t[1]
			break
		}
		if o.Parent == (Relation{}) && o.Schema == f[0] && o.Name == f[1] {
			o.Schema, o.Name = t[0], t[1]
			break
		}
	}
	o.SQL, o.Drop = strings.Join(sides[:len(sides)-1], ""), sides[len(sides)-1]
	return o
}

// ownedSequences notes the sequences that move to another schema with the tables that own them.
func (d *schemaDiff) ownedSequences(before, now []SchemaObject) {
	there := func(schema, name string) bool {
		return slices.ContainsFunc(now, func(o SchemaObject) bool {
			return o.Type == "SEQUENCE" && o.Schema == schema &&
				o.Name == name
		})
	}
	for _, from := range sortedKeys(d.names) {
		schema, _, _ := strings.Cut(d.names[from], "\x00")
		table := pgx.Identifier(strings.Split(from, "\x00")).Sanitize()
		for _, o := range before {
			if o.Type == "SEQUENCE OWNED BY" && o.Schema != schema && strings.Contains(o.SQL, table+".") &&
				there(schema, o.Name) && !there(o.Schema, o.Name) {
				d.names[o.Schema+"\x00"+o.Name] = schema + "\x00" + o.Name
			}
		}
	}
}

// underNewNames finds indexes, with the constraints that they are of, and sequences of identity columns that have
// other names and are the same otherwise.
// A foreign key may rely on them, so that they cannot be made anew.
func (d *schemaDiff) underNewNames(known map[string]SchemaObject, now []SchemaObject, goes map[int]bool) []SchemaStep {
	var first, then []SchemaStep
	names := map[string]bool{}
	for _, o := range now {
		names[o.key()] = true
	}
	for _, o := range now {
		identity := o.Type == "SEQUENCE" && strings.Contains(o.SQL, "ADD GENERATED")
		if _, ok := known[o.key()]; ok || (o.Type != "INDEX" && o.Type != "CONSTRAINT" && !identity) {
			continue
		}
		for _, key := range slices.Sorted(maps.Keys(known)) {
			old := known[key]
			to, from := o.ownName(), old.ownName()
			if old.Type != o.Type || names[key] || goes[old.ID] || strings.ReplaceAll(old.SQL, quoteName(from),
				quoteName(to)) != o.SQL {
				continue
			}
			delete(known, key)
			old.SQL = o.SQL
			known[o.key()] = old
			if old.State == ObjectDone { // names may go from one to another: all of them step aside first
				kind, aside := "INDEX", fmt.Sprintf("heroku_migrator_renamed_%d", old.ID)
				if identity {
					kind = "SEQUENCE"
				}
				rename := func(from, to string) SchemaStep {
					return SchemaStep{SQL: fmt.Sprintf(`ALTER %s IF EXISTS %s RENAME TO %s`, kind,
						pgx.Identifier{o.Schema, from}.Sanitize(), quoteName(to))}
				}
				first, then = append(first, rename(from, aside)), append(then, rename(aside, to))
			}
			d.sayf("%s is %s now", old, to)
			for other, k := range known { // which attach to it
				if k.Type == "INDEX ATTACH" {
					k.SQL = strings.ReplaceAll(k.SQL, pgx.Identifier{o.Schema, from}.Sanitize(),
						pgx.Identifier{o.Schema, to}.Sanitize())
					known[other] = k
				}
			}
			break
		}
	}
	return append(first, then...)
}
