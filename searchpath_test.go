package migrator_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgtest"
)

// pathSchema reaches functions that write names without a schema wherever an expression can stand.
var pathSchema = []string{
	`CREATE FUNCTION words.squash(v text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT lower(replace(v, ' ',
		'-')) $$`,
	`CREATE FUNCTION app.slug(v text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT squash(v) $$`,
	`CREATE FUNCTION app.nonempty(v text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN
		length(squash(v)) OPERATOR(pg_catalog.>) 0; END $$`,
	`CREATE FUNCTION app.initial(v text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT left(squash(v), 1) $$`,
	`CREATE FUNCTION app.atomic(v text) RETURNS text IMMUTABLE BEGIN ATOMIC SELECT slug(v); END`,
	`CREATE FUNCTION app.own(v text) RETURNS text LANGUAGE sql IMMUTABLE SET search_path = words AS $$ SELECT squash(v)
		$$`,
	`CREATE DOMAIN app.filled AS text CHECK (nonempty(VALUE))`,
	`CREATE TABLE app.pages (id int PRIMARY KEY, title text CHECK (nonempty(title)),
		slug text GENERATED ALWAYS AS (slug(title)) STORED,
		name filled, token text DEFAULT slug('A B'))`,
	`CREATE INDEX ON app.pages (slug(title))`, `CREATE INDEX ON app.pages (id) WHERE slug(title) = 'zoe'`,
	`CREATE INDEX ON app.pages (atomic(title))`,
	`CREATE INDEX ON app.pages (own(title))`, `CREATE STATISTICS app.pages_slug ON slug(title), id FROM app.pages`,
	`CREATE TABLE app.notes (page int NOT NULL REFERENCES app.pages ON DELETE CASCADE, no int, v text,
		PRIMARY KEY (page, no))`,
	`CREATE TABLE app.tags (tag filled PRIMARY KEY, n int)`,
	`CREATE TABLE app.bag (title text CHECK (nonempty(title)), d filled)`, `CREATE INDEX ON app.bag (slug(title))`,
	`CREATE TABLE app.parts (title text, n int) PARTITION BY LIST (initial(title))`,
	`CREATE TABLE app.parts_a PARTITION OF app.parts FOR VALUES IN ('a', 'b')`,
	`CREATE TABLE app.parts_other PARTITION OF app.parts DEFAULT`,
	`CREATE VIEW app.titles AS SELECT id, slug(title) AS s FROM app.pages`,
	`CREATE MATERIALIZED VIEW app.slugs AS SELECT s, count(*) AS n FROM app.titles GROUP BY s`,
	`CREATE MATERIALIZED VIEW app.ids AS SELECT id FROM app.pages`,
	`CREATE FUNCTION app.shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF nonempty(NEW.v)
		THEN NEW.v := slug(NEW.v); END IF; RETURN NEW; END $$`,
	`CREATE TRIGGER shout BEFORE INSERT ON app.notes FOR EACH ROW EXECUTE FUNCTION shout()`,
	`CREATE POLICY mine ON app.tags USING (nonempty(tag))`,
	`INSERT INTO app.pages (id, title, name) SELECT i, 'Page ' || i, 'n' FROM generate_series(1, 200) i`,
	`INSERT INTO app.notes SELECT i, 1, 'A Note' FROM generate_series(1, 200) i`,
	`INSERT INTO app.tags SELECT 'tag ' || i, i FROM generate_series(1, 50) i`,
	`INSERT INTO app.bag SELECT 'Thing ' || i % 20, 'd' FROM generate_series(1, 50) i`,
	`INSERT INTO app.parts SELECT chr(97 + i % 5) || ' part', i FROM generate_series(1, 50) i`,
	// What stands before the system's in the path, and fits better, or as well: nobody but the application may ever
	// get there.
	`CREATE FUNCTION app.trap(a text, b text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE
		'the application''s = was taken'; END $$`,
	`CREATE FUNCTION app.trap(a tid, b tid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE
		'the application''s = for tid was taken'; END $$`,
	`CREATE FUNCTION app.trap(a int, b int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE
		'the application''s = for int was taken'; END $$`,
	`CREATE FUNCTION app.trap(a bigint, b bigint) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE
		'the application''s = for bigint was taken'; END $$`,
}

// pathTraps stand before the system's in the path.
func pathTraps() (list []string) {
	for _, op := range []string{"=", "<", ">=", ">", "<=", "<>"} {
		for _, typ := range []string{"text", "tid", "int", "bigint"} {
			list = append(list, fmt.Sprintf(`CREATE OPERATOR app.%s (FUNCTION = app.trap, LEFTARG = %s,
				RIGHTARG = %[2]s)`, op, typ))
		}
	}
	for _, f := range []string{
		"count()", "count(int)", "sum(bigint)", "sum(smallint)", "hashtextextended(text, bigint)", "format(text, text)",
		"generate_series(int, bigint)", "unnest(text[])",
		"unnest(anyarray)", "set_config(text, text, boolean)", "current_setting(text, boolean)",
		"pg_visible_in_snapshot(xid8, pg_snapshot)", "octet_length(text)",
		"row_number()", "concat(text, text)", "to_regclass(text)", "pg_relation_filenode(regclass)", "array_agg(int)",
		"cardinality(int[])",
	} {
		returns := "bigint"
		if f == "unnest(text[])" || f == "unnest(anyarray)" || f == "set_config(text, text, boolean)" ||
			f == "current_setting(text, boolean)" {
			returns = "text"
		}
		list = append(list, fmt.Sprintf(`CREATE FUNCTION app.%s RETURNS %s LANGUAGE plpgsql AS $$ BEGIN
			RAISE 'the application''s function was taken'; END $$`, f, returns))
	}
	return list
}

// Names resolve for us as for the application, on both sides and both ways, and nothing of the application's takes the
// place of what our own
// statements mean.
func TestNamesResolveAsForTheApplication(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	admin := p.source.ConnectAdmin(t)
	p.sql(t, `CREATE SCHEMA app`, `CREATE SCHEMA words`)
	execute(t, admin, fmt.Sprintf(`ALTER ROLE %s IN DATABASE %s SET search_path = app, words, public, pg_catalog`,
		p.source.Role, p.source.Name))
	p.sql(t, pathSchema...)
	p.sql(t, pathTraps()...)
	functions := func(db *pgtest.Database) (list []string) {
		rows, err := db.ConnectAdmin(t).Query(t.Context(),
			`SELECT concat_ws(' ', pronamespace::regnamespace, proname, prosrc, proconfig) FROM pg_proc
			WHERE pronamespace::regnamespace::text OPERATOR(pg_catalog.=) ANY ('{app,words}') ORDER BY 1`)
		require.NoError(t, err)
		list, err = pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		return list
	}
	before := functions(p.source)
	m := inSync(t, p)
	write := func(c *pgx.Conn, round int) {
		// As the application does: without a schema.
		execute(t, c,
			fmt.Sprintf(`INSERT INTO pages (id, title, name) VALUES (%d, 'Made Later', 'x')`, 1000+round),
			fmt.Sprintf(`UPDATE pages SET title = 'Page again %d' WHERE id OPERATOR(pg_catalog.<) 20`, round),
			fmt.Sprintf(`INSERT INTO notes VALUES (%d, 1, 'Written Later')`, 1000+round), fmt.Sprintf(`DELETE FROM pages
				WHERE id OPERATOR(pg_catalog.=) %d`, 100+round),
			fmt.Sprintf(`INSERT INTO tags VALUES ('later %d', 1)`, round), fmt.Sprintf(`DELETE FROM tags
				WHERE n OPERATOR(pg_catalog.=) %d`, 10+round),
			`INSERT INTO bag VALUES ('Thing 1', 'e')`, fmt.Sprintf(`UPDATE bag SET d = 'f'
				WHERE title OPERATOR(pg_catalog.=) 'Thing %d'`, round),
			fmt.Sprintf(`INSERT INTO parts VALUES ('b later', %d)`, round),
			fmt.Sprintf(`UPDATE parts SET title = 'z moved' WHERE n OPERATOR(pg_catalog.=) %d`, 20+round))
	}
	write(p.source.Connect(t), 1)
	// followed
	p.sql(t, `ALTER TABLE pages ADD COLUMN again text GENERATED ALWAYS AS (slug(title)) STORED`,
		`CREATE INDEX ON pages (initial(title))`)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	p.requireEqual(t)
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
	var path string
	require.NoError(t, p.target.Connect(t).QueryRow(t.Context(), `SHOW search_path`).Scan(&path))
	require.Equal(t, "app, words, public, pg_catalog", path)
	write(p.target.Connect(t), 2)
	do(t, m, migrator.CommandRevert)
	p.requireEqual(t)
	write(p.source.Connect(t), 3)
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
	do(t, m, migrator.CommandComplete)
	p.requireNoTrace(t)
	require.Equal(t, before, functions(p.source), "the source's functions are what they were")
	require.Equal(t, before, functions(p.target))
}

// Where a session of the application finds names, and what it takes for granted, is the same on the target, whoever
// says so on the source.
func TestSettingsAreCarriedOver(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	source, target := p.source.ConnectAdmin(t), p.target.ConnectAdmin(t)
	p.sql(t, `CREATE SCHEMA "Odd, ""one"""`, fmt.Sprintf(`CREATE SCHEMA %s`, p.source.Role),
		`CREATE TABLE here (id int PRIMARY KEY)`)
	for _, set := range []string{
		fmt.Sprintf(`ALTER DATABASE %s SET search_path = public`, p.source.Name),
		fmt.Sprintf(`ALTER ROLE %s SET search_path = "$user", public, "Odd, ""one""", missing`, p.source.Role), // wins
		fmt.Sprintf(`ALTER ROLE %s SET array_nulls = off`, p.source.Role),
		fmt.Sprintf(`ALTER ROLE %s IN DATABASE %s SET array_nulls = on`, p.source.Role, p.source.Name), // wins
		fmt.Sprintf(`ALTER DATABASE %s SET DateStyle = 'German'`, p.source.Name),
		fmt.Sprintf(`ALTER DATABASE %s SET app.tenant = 'O''Neill %%s'`, p.source.Name),
		fmt.Sprintf(`ALTER DATABASE %s SET work_mem = '5MB'`, p.source.Name),
		fmt.Sprintf(`ALTER ROLE %s SET statement_timeout = '33s'`, p.source.Role),
	} {
		execute(t, source, set)
	}
	execute(t, target, fmt.Sprintf(`ALTER ROLE %s SET array_nulls = off`, p.target.Role)) // of the platform, say
	untilInSync(t, p)
	settings := func() map[string]string {
		now := map[string]string{}
		c := p.target.Connect(t)
		for _, name := range []string{"search_path", "array_nulls", "DateStyle", "app.tenant", "work_mem",
			"statement_timeout"} {
			var value *string
			require.NoError(t, c.QueryRow(t.Context(), `SELECT current_setting($1, true)`, name).Scan(&value))
			if value != nil {
				now[name] = *value
			}
		}
		return now
	}
	require.Equal(t, map[string]string{
		"search_path": p.source.Role + `, public, "Odd, ""one""", missing`, "array_nulls": "on",
		"DateStyle": "German, DMY", // app.tenant takes a superuser: preflight tells that it is left out
		"work_mem":  "4MB", "statement_timeout": "33s",
	}, settings())
	// Changes are followed.
	for _, set := range []string{
		fmt.Sprintf(`ALTER ROLE %s RESET statement_timeout`, p.source.Role),
		fmt.Sprintf(`ALTER ROLE %s RESET search_path`, p.source.Role),
		fmt.Sprintf(`ALTER DATABASE %s SET DateStyle = 'ISO, DMY'`, p.source.Name),
	} {
		execute(t, source, set)
	}
	m := p.migrator(t)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	do(t, m, migrator.CommandSwitch)
	require.Equal(t, map[string]string{
		"search_path": "public", "array_nulls": "on", "DateStyle": "ISO, DMY",
		"work_mem": "4MB", "statement_timeout": "0",
	}, settings())
}

// Whoever sets the path, our sessions know it: the role, the database, the role in the database.
func TestSearchPathOfTheApplication(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	admin := p.source.ConnectAdmin(t)
	p.sql(t, `CREATE SCHEMA app`, `CREATE SCHEMA "Odd, ""one"""`)
	for _, c := range []struct{ sql, path string }{
		{`SELECT`, `public`},
		{fmt.Sprintf(`ALTER DATABASE %s SET search_path = app, missing, public`, p.source.Name), `app, public`},
		{fmt.Sprintf(`ALTER ROLE %s SET search_path = "Odd, ""one""", "$user"`, p.source.Role), `"Odd, ""one"""`},
		{fmt.Sprintf(`CREATE SCHEMA %s AUTHORIZATION %[1]s`, p.source.Role), `"Odd, ""one""", ` + p.source.Role},
		{fmt.Sprintf(`ALTER ROLE %s IN DATABASE %s SET search_path = public, pg_catalog, app`, p.source.Role,
			p.source.Name), `public, pg_catalog, app`},
		{fmt.Sprintf(`ALTER ROLE %s IN DATABASE %s SET search_path = ''`, p.source.Role, p.source.Name), `""`},
	} {
		execute(t, admin, c.sql)
		src, _ := p.open(t)
		cat, err := src.Catalog(t.Context())
		require.NoError(t, err)
		require.Equal(t, c.path, cat.SearchPath, c.sql)
	}
}
