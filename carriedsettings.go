package migrator

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Settings of the source's database and of its role are no part of a dump, and the application relies on them: above
// all on the
// search_path. Those that decide what a statement means, or how long it may take, become settings of the target's
// database, as
// objects of the schema: recorded, compared and followed like these. The role has another name there, and the
// application may use
// several, so what was the role's becomes the database's.

// typeSetting is the type of such an object. Its name is that of the setting.
const typeSetting = "DATABASE SETTING"

// carriedSettings are those of Postgres itself; those with a dot in their names belong to extensions and applications.
var carriedSettings = []string{
	"array_nulls", "backslash_quote", "bytea_output", "check_function_bodies", "datestyle",
	"default_text_search_config",
	"default_transaction_deferrable", "default_transaction_isolation", "escape_string_warning", "extra_float_digits",
	"gin_fuzzy_search_limit", "idle_in_transaction_session_timeout", "idle_session_timeout", "intervalstyle",
	"lc_monetary", "lc_numeric",
	"lc_time", "lock_timeout", "row_security", "search_path", "standard_conforming_strings", "statement_timeout",
	"timezone",
	"timezone_abbreviations", "transaction_timeout", "transform_null_equals", "xmlbinary", "xmloption",
}

// serverSettings are those that are carried from the server's own configuration, too, where somebody has changed it.
var serverSettings = []string{
	"array_nulls", "backslash_quote", "bytea_output", "datestyle", "extra_float_digits", "intervalstyle", "search_path",
	"standard_conforming_strings", "transform_null_equals", "xmlbinary", "xmloption",
}

// ownSettings is the query for the settings that a session of the role gets from its role and its database: name and
// value.
const ownSettings = `
	SELECT DISTINCT ON (name) name, value FROM (
		SELECT lower(split_part(c, '=', 1)) AS name, substr(c, strpos(c, '=') + 1) AS value,
		       CASE WHEN s.setrole <> 0 AND s.setdatabase <> 0 THEN 1 WHEN s.setrole <> 0 THEN 2 WHEN s.setdatabase <> 0
			THEN 3 ELSE 4 END AS level
		FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) AS c
		WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
		  AND s.setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = current_user))) AS s
	ORDER BY name, level`

func isCarried(name string) bool {
	return strings.Contains(name, ".") || slices.Contains(carriedSettings, name)
}

// databaseSettings lists the settings that are carried over.
func databaseSettings(ctx context.Context, q querier) ([]SchemaObject, error) {
	rows, err := q.Query(ctx, `
		WITH own AS (`+ownSettings+`)
		SELECT name, value, current_user, to_regnamespace(quote_ident(current_user)) IS NOT NULL FROM own
		UNION ALL
		SELECT lower(s.name), s.reset_val, current_user, to_regnamespace(quote_ident(current_user)) IS NOT NULL
			FROM pg_settings s
		WHERE lower(s.name) = ANY ($1::text[]) AND lower(s.name) NOT IN (SELECT name FROM own)
		  AND (s.reset_val IS DISTINCT FROM s.boot_val OR (s.name = 'search_path'
			AND to_regnamespace(quote_ident(current_user)) IS NOT NULL))
		ORDER BY 1`, serverSettings)
	if err != nil {
		return nil, fmt.Errorf("ask for settings of the database: %w", err)
	}
	var objects []SchemaObject
	var name, value, role string
	var ofRole bool
	_, err = pgx.ForEachRow(rows, []any{&name, &value, &role, &ofRole}, func() error {
		if isCarried(name) {
			objects = append(objects, settingObject(name, value, role, ofRole))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("ask for settings of the database: %w", err)
	}
	return objects, nil
}

// settingObject sets one for the target's database; if that belongs to somebody else, or the role has another value
// there, for the role
// in it. ofRole tells that there is a schema with the name of the source's role, which "$user" stands for.
func settingObject(name, value, role string, ofRole bool) SchemaObject {
	o := SchemaObject{Stage: StageTables, Type: typeSetting, Name: name, State: ObjectPending}
	to, without := quoteLiteral(value), ""
	if name == "search_path" {
		var path, others []string
		for _, schema := range splitPath(value) {
			if schema == "$user" && ofRole {
				schema = role
			}
			path = append(path, quoteLiteral(schema))
			if schema != "$user" {
				others = append(others, quoteLiteral(schema))
			}
		}
		to, without = strings.Join(path, ", "), strings.Join(others, ", ")
		if to == "" {
			to = "''"
		}
		if without == "" {
			without = "''"
		}
	}
	o.SQL = fmt.Sprintf(`DO $setting$ DECLARE value text := %s; own oid := (SELECT oid FROM pg_roles
		WHERE rolname = current_user); BEGIN`, quoteLiteral(to))
	if without != "" && without != to {
		o.SQL += fmt.Sprintf(`
	IF to_regnamespace(quote_ident(current_user)) IS NOT NULL THEN value := %s; END IF;
		-- "$user" is somebody else here`, quoteLiteral(without))
	}
	o.SQL += fmt.Sprintf(`
	IF (SELECT pg_has_role(datdba, 'USAGE') FROM pg_database WHERE datname = current_database()) THEN
		EXECUTE format('ALTER DATABASE %%I SET %[1]s TO %%s', current_database(), value);
		IF NOT EXISTS (SELECT FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) AS c
			WHERE s.setrole = own AND lower(split_part(c, '=', 1)) = %[2]s) THEN
			RETURN;
		END IF;
	END IF;
	EXECUTE format('ALTER ROLE %%I IN DATABASE %%I SET %[1]s TO %%s', current_user, current_database(), value);
END $setting$;`, settingName(name), quoteLiteral(name))
	return o
}

// unset takes a setting back that the source has no longer.
func unset(name string) string {
	return fmt.Sprintf(`DO $setting$ BEGIN
	IF (SELECT pg_has_role(datdba, 'USAGE') FROM pg_database WHERE datname = current_database()) THEN
		EXECUTE format('ALTER DATABASE %%I RESET %[1]s', current_database());
	END IF;
	EXECUTE format('ALTER ROLE %%I IN DATABASE %%I RESET %[1]s', current_user, current_database());
END $setting$;`, settingName(name))
}

// settingName writes the name of a setting within a format string within a string.
func settingName(name string) string {
	parts := strings.Split(name, ".")
	for i, part := range parts {
		parts[i] = quoteName(part)
	}
	return strings.ReplaceAll(strings.ReplaceAll(strings.Join(parts, "."), "'", "''"), "%", "%%")
}

// splitPath takes a search_path apart, as Postgres does: names are separated by commas, folded to lower case unless
// they are quoted.
func splitPath(text string) (names []string) {
	var name strings.Builder
	quoted, begun := false, false
	end := func() {
		if begun {
			names = append(names, name.String())
		}
		name.Reset()
		begun = false
	}
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '"' && i+1 < len(text) && text[i+1] == '"':
			name.WriteByte('"')
			i++
		case c == '"':
			quoted = !quoted
			begun = true
		case quoted:
			name.WriteByte(c)
		case c == ',':
			end()
		case c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f':
		default:
			if c >= 'A' && c <= 'Z' {
				c += 'a' - 'A'
			}
			name.WriteByte(c)
			begun = true
		}
	}
	end()
	return slices.DeleteFunc(names, func(name string) bool { return name == "" })
}
