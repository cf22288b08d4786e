package rehearse

import (
	"regexp"
	"slices"
	"strings"
)

// What an object needs is read from its definition, in which every name is written in full and quoted. Names in the
// text of a function's body are not: nothing is looked up there when it is created.

var (
	qualified = regexp.MustCompile(`"(?:[^"]|"")*"\."(?:[^"]|"")*"`)
	keyOf     = regexp.MustCompile(`^ALTER TABLE (?:ONLY )?("(?:[^"]|"")*"\."(?:[^"]|"")*")`)
	uniqueOn  = regexp.MustCompile(`^CREATE UNIQUE INDEX "(?:[^"]|"")*" ON (?:ONLY )?("(?:[^"]|"")*"\."(?:[^"]|"")*")`)
	refersTo  = regexp.MustCompile(`REFERENCES ("(?:[^"]|"")*"\."(?:[^"]|"")*")`)
)

func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// keys is what the keys of a table are called among what objects need and provide.
func keys(table string) string { return "keys of " + table }

// provides is what others may need of an object: names, as they are written in definitions.
func provides(o Object) []string {
	switch o.Type {
	case "TABLE", "FOREIGN TABLE", "VIEW", "MATERIALIZED VIEW", "SEQUENCE", "TYPE", "SHELL TYPE", "DOMAIN", "COLLATION",
		"STATISTICS", "CONVERSION",
		"TEXT SEARCH CONFIGURATION", "TEXT SEARCH DICTIONARY", "TEXT SEARCH PARSER", "TEXT SEARCH TEMPLATE",
		"OPERATOR CLASS", "OPERATOR FAMILY":
		return []string{quote(o.Schema) + "." + quote(o.Name)}
	case "FUNCTION", "PROCEDURE", "AGGREGATE":
		name, _, _ := strings.Cut(o.Name, "(")
		return []string{quote(o.Schema) + "." + quote(name)}
	case "OPERATOR":
		return []string{quote(o.Schema) + "." + o.Name}
	case "INDEX":
		names := []string{quote(o.Schema) + "." + quote(o.Name)}
		if m := uniqueOn.FindStringSubmatch(o.SQL); m != nil {
			names = append(names, keys(m[1]))
		}
		return names
	case "CONSTRAINT":
		m := keyOf.FindStringSubmatch(o.SQL)
		if m == nil {
			return nil
		}
		table := qualified.FindString(m[1])
		bare := strings.TrimPrefix(table, quote(o.Schema)+".")
		index := strings.TrimPrefix(o.Name, strings.ReplaceAll(strings.Trim(bare, `"`), `""`, `"`)+" ")
		return []string{keys(table), quote(o.Schema) + "." + quote(index)}
	case "EXTENSION", "LANGUAGE", "PROCEDURAL LANGUAGE", "SERVER", "FOREIGN DATA WRAPPER", "SCHEMA", "ACCESS METHOD":
		return []string{keyword(o.Type) + quote(o.Name)}
	}
	return nil
}

// keyword is what stands before the name where an object is mentioned that is in no schema.
func keyword(kind string) string {
	switch kind {
	case "LANGUAGE", "PROCEDURAL LANGUAGE":
		return "LANGUAGE "
	case "ACCESS METHOD":
		return "USING "
	default:
		return kind + " "
	}
}

// needs is what an object's definition mentions: names of others, and the keys that it relies on.
func needs(o Object) []string {
	names := qualified.FindAllString(o.SQL, -1)
	switch o.Type {
	case "FK CONSTRAINT":
		for _, m := range refersTo.FindAllStringSubmatch(o.SQL, -1) {
			names = append(names, keys(m[1]))
		}
	case "VIEW", "MATERIALIZED VIEW", "RULE", "FUNCTION", "PROCEDURE": // GROUP BY a primary key
		for _, name := range slices.Clone(names) {
			names = append(names, keys(name))
		}
	case "TABLE ATTACH", "INDEX ATTACH": // of the one whose names it has
	}
	return names
}

// Mentions tells whether the definition of o names the other one, or what is made by it.
func Mentions(o, other Object) bool {
	if o.ID == other.ID {
		return false
	}
	sql := o.SQL
	for _, name := range provides(other) {
		if strings.HasPrefix(name, "keys of ") {
			if o.Type == "FK CONSTRAINT" && slices.Contains(needs(o), name) {
				return true
			}
			continue
		}
		if strings.Contains(sql, name) {
			return true
		}
	}
	switch other.Type {
	case "FK CONSTRAINT", "CONSTRAINT", "CHECK CONSTRAINT", "TRIGGER", "POLICY", "RULE": // its comment, its validation
		return o.Schema == other.Schema && (o.Name == other.Name || o.Name == other.Type+" "+other.Name) &&
			o.Type != other.Type
	case "CAST", "EVENT TRIGGER", "DOMAIN CONSTRAINT":
		return o.Type == "COMMENT" && o.Name == other.Type+" "+other.Name
	}
	return false
}

// isUnresolved tells whether an error says that something is not there which a definition needs.
func isUnresolved(code string) bool {
	switch code {
	case "42P01", "42883", "42704", "42703", "3F000", "42809", "42830", "42P17", "42P02", "42803", "55000", "0A000":
		return true
	}
	return false
}

// Follows returns which of the absent objects it is that o could not be created without.
func Follows(o Object, code string, absent []Object) (Object, bool) {
	if !isUnresolved(code) {
		return Object{}, false
	}
	for _, other := range absent {
		if Mentions(o, other) {
			return other, true
		}
	}
	return Object{}, false
}

// findCauses finds out which failures are due to an object that is not there: one that failed before, or is absent on
// purpose.
func findCauses(failures []Failure, objects, absent []Object) {
	byID := make(map[int]Object, len(objects))
	for _, o := range objects {
		byID[o.ID] = o
	}
	missing := slices.Clone(absent)
	for i := range failures {
		o := byID[failures[i].ID]
		if other, ok := Follows(o, failures[i].Err.Code, missing); ok {
			failures[i].Cause = other.ID
		}
		missing = append(missing, o)
	}
}
