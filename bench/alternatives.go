package main

import (
	"context"
	"fmt"
	"strings"
)

// The designs of capture that there are to choose from, as prototypes, each alone with the same load as in the case writecost: the
// measurement that decided which one is built. What ours costs as it is, writecost tells.

// loggedTable is a table of replication.sql, with its key.
type loggedTable struct {
	name string
	key  []string
}

var loggedTables = []loggedTable{
	{"accounts", []string{"id"}}, {"orders", []string{"id"}}, {"order_lines", []string{"order_id", "line_no"}}, {"bulk", []string{"id"}},
}

func (t loggedTable) keys(prefix string) string {
	list := make([]string, len(t.key))
	for i, k := range t.key {
		list[i] = prefix + k
	}
	return strings.Join(list, ", ")
}

// arrays are the key's columns, each gathered into one array.
func (t loggedTable) arrays() string {
	list := make([]string, len(t.key))
	for i, k := range t.key {
		list[i] = "array_agg(" + k + ")"
	}
	return strings.Join(list, ", ")
}

// many are the log's columns for arrays.
func (t loggedTable) many() []string {
	list := make([]string, len(t.key))
	for i, k := range t.key {
		list[i] = "many_" + k
	}
	return list
}

// keyChanged compares the keys of a row that is updated.
func (t loggedTable) keyChanged() string {
	list := make([]string, len(t.key))
	for i, k := range t.key {
		list[i] = fmt.Sprintf("OLD.%[1]s = NEW.%[1]s", k)
	}
	return "NOT (" + strings.Join(list, " AND ") + ")"
}

// function and trigger write the statements of a prototype.
func (t loggedTable) function(name, body string) string {
	return fmt.Sprintf("CREATE FUNCTION capture.%s_%s() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ %s $$;\n", t.name, name, body)
}

func (t loggedTable) trigger(event, how, function string) string {
	return fmt.Sprintf("CREATE TRIGGER capture_%[1]s AFTER %[2]s ON %[3]s %[4]s EXECUTE FUNCTION capture.%[3]s_%[5]s();\n",
		strings.ToLower(strings.Fields(event)[0])+function, event, t.name, how, function)
}

// prototypes are the designs. All logs have the key's own columns and the transaction's number, but for the last. All enter the old key, too, of
// a row whose key changes.
func prototypes() map[string]func(loggedTable) string {
	const inserted, deleted = "REFERENCING NEW TABLE AS r FOR EACH STATEMENT", "REFERENCING OLD TABLE AS r FOR EACH STATEMENT"
	insert := func(t loggedTable, from string) string {
		return fmt.Sprintf("INSERT INTO capture.log_%s (%s) %s;", t.name, t.keys(""), from)
	}
	all := func(t loggedTable) string {
		return "BEGIN " + insert(t, "SELECT "+t.keys("")+" FROM r") + " RETURN NULL; END"
	}
	arrays := func(t loggedTable) string {
		return fmt.Sprintf(`DECLARE n bigint; BEGIN %s GET DIAGNOSTICS n = ROW_COUNT; IF n < 50 THEN RETURN NULL; END IF;
			INSERT INTO capture.log_%s (%s) SELECT %s FROM (SELECT %s FROM r OFFSET 50) AS s HAVING count(*) > 0; RETURN NULL; END`,
			insert(t, "SELECT "+t.keys("")+" FROM r LIMIT 50"), t.name, strings.Join(t.many(), ", "), t.arrays(), t.keys(""))
	}
	oldKey := func(t loggedTable) string {
		return t.function("old", "BEGIN "+insert(t, "VALUES ("+t.keys("OLD.")+")")+" RETURN NULL; END")
	}
	when := func(t loggedTable) string {
		return oldKey(t) + t.trigger("UPDATE", "FOR EACH ROW WHEN ("+t.keyChanged()+")", "old")
	}
	return map[string]func(loggedTable) string{
		"row level": func(t loggedTable) string {
			return t.function("new", "BEGIN "+insert(t, "VALUES ("+t.keys("NEW.")+")")+" RETURN NULL; END") + oldKey(t) +
				t.function("update", "BEGIN "+insert(t, "VALUES ("+t.keys("NEW.")+")")+" IF "+t.keyChanged()+" THEN "+insert(t, "VALUES ("+t.keys("OLD.")+")")+" END IF; RETURN NULL; END") +
				t.trigger("INSERT", "FOR EACH ROW", "new") + t.trigger("UPDATE", "FOR EACH ROW", "update") + t.trigger("DELETE", "FOR EACH ROW", "old")
		},
		"statement level": func(t loggedTable) string {
			return t.function("rows", all(t)) + t.trigger("INSERT", inserted, "rows") + t.trigger("UPDATE", inserted, "rows") + t.trigger("DELETE", deleted, "rows") + when(t)
		},
		"statement level, old and new keys": func(t loggedTable) string {
			return t.function("rows", all(t)) + t.trigger("INSERT", inserted, "rows") + t.trigger("DELETE", deleted, "rows") +
				t.function("both", "BEGIN "+insert(t, "SELECT "+t.keys("")+" FROM o UNION SELECT "+t.keys("")+" FROM r")+" RETURN NULL; END") +
				t.trigger("UPDATE", "REFERENCING OLD TABLE AS o NEW TABLE AS r FOR EACH STATEMENT", "both")
		},
		"statement level, many keys as arrays": func(t loggedTable) string { // this is ours
			return alterArrays(t) + t.function("rows", arrays(t)) +
				t.trigger("INSERT", inserted, "rows") + t.trigger("UPDATE", inserted, "rows") + t.trigger("DELETE", deleted, "rows") + when(t)
		},
		"statement level, arrays for DELETE alone": func(t loggedTable) string {
			return alterArrays(t) + t.function("rows", all(t)) + t.function("deleted", arrays(t)) +
				t.trigger("INSERT", inserted, "rows") + t.trigger("UPDATE", inserted, "rows") + t.trigger("DELETE", deleted, "deleted") + when(t)
		},
		"statement level, arrays; changed keys are missed": func(t loggedTable) string {
			return alterArrays(t) + t.function("rows", arrays(t)) +
				t.trigger("INSERT", inserted, "rows") + t.trigger("UPDATE", inserted, "rows") + t.trigger("DELETE", deleted, "rows")
		},
		"functions that do nothing": func(t loggedTable) string {
			return t.function("rows", "BEGIN RETURN NULL; END") + t.trigger("INSERT", inserted, "rows") + t.trigger("UPDATE", inserted, "rows") + t.trigger("DELETE", deleted, "rows")
		},
		"one log of jsonb keys, row level": func(t loggedTable) string {
			object := func(of string) string {
				pairs := make([]string, len(t.key))
				for i, k := range t.key {
					pairs[i] = fmt.Sprintf("'%s', %s%s", k, of, k)
				}
				return fmt.Sprintf("INSERT INTO capture.queue (relid, key) VALUES (TG_RELID, jsonb_build_object(%s));", strings.Join(pairs, ", "))
			}
			return t.function("new", "BEGIN "+object("NEW.")+" RETURN NULL; END") + t.function("old", "BEGIN "+object("OLD.")+" RETURN NULL; END") +
				t.function("update", "BEGIN "+object("NEW.")+" IF "+t.keyChanged()+" THEN "+object("OLD.")+" END IF; RETURN NULL; END") +
				t.trigger("INSERT", "FOR EACH ROW", "new") + t.trigger("UPDATE", "FOR EACH ROW", "update") + t.trigger("DELETE", "FOR EACH ROW", "old")
		},
	}
}

// alterArrays adds a log's columns for arrays.
func alterArrays(t loggedTable) string {
	var b strings.Builder
	for i, c := range t.many() {
		kind := "bigint[]"
		if t.key[i] == "line_no" {
			kind = "int[]"
		}
		fmt.Fprintf(&b, "ALTER TABLE capture.log_%s ADD %s %s, ALTER %s SET STORAGE EXTERNAL;\n", t.name, c, kind, c)
	}
	return b.String()
}

// alternatives measures the prototypes.
func (b *bench) alternatives(ctx context.Context, r *report) error {
	all := []*follower{{name: bare, capture: func(context.Context, *job) error { return nil }}}
	for name, design := range prototypes() {
		all = append(all, &follower{name: name, capture: func(ctx context.Context, j *job) error {
			var script strings.Builder
			script.WriteString("CREATE SCHEMA capture; CREATE TABLE capture.queue (relid oid, key jsonb, xid xid8 DEFAULT pg_current_xact_id());\n")
			for _, t := range loggedTables {
				fmt.Fprintf(&script, "CREATE TABLE capture.log_%s AS SELECT %s FROM %[1]s WITH NO DATA; ALTER TABLE capture.log_%[1]s ADD xid xid8 DEFAULT pg_current_xact_id();\n%[3]s", t.name, t.keys(""), design(t))
			}
			j.cleanUp = func(ctx context.Context, j *job) error {
				return execute(ctx, j.from.URL, "DROP SCHEMA capture CASCADE")
			}
			return execute(ctx, j.from.URL, script.String())
		}})
	}
	r.alternatives = map[string][]cost{}
	return b.costsOf(ctx, all, r.alternatives)
}
