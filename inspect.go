package migrator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/heroku-migrator/migrator/internal/pgdump"
)

const (
	oldestSource = 13
	namesShown   = 10
)

// check is one look at a database: a query whose rows, if there are any, are what is wrong.
type check struct {
	name     string
	severity Severity
	sql      string // returns one text column
	message  string // %s: the rows
	remedy   string
}

// sourceChecks need nothing but SQL. Each returns the names of what it objects to.
var sourceChecks = []check{
	{
		"table_keys", SeverityWarning,
		"", // filled from the catalog, see inspectTables
		"These tables have no primary key and no unique index on NOT NULL columns: %s. They are moved as exactly as " +
			"the others, but cost more: " +
			"a write to one of them also writes the whole row, as text, to a log; each is copied in one transaction, " +
			"so that vacuum has to wait for it; and the first deletion or update builds an index on the target.",
		"Nothing has to be done. If one of them is large or busy, add a primary key before: ALTER TABLE … ADD " +
			"COLUMN id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY.",
	},
	{
		"table_owner", SeverityBlocker,
		`SELECT format('%I.%I (owned by %s)', n.nspname, c.relname, pg_get_userbyid(c.relowner)) FROM pg_class c JOIN
			pg_namespace n ON n.oid = c.relnamespace
		 WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND NOT pg_has_role(current_user, c.relowner,
		'USAGE') AND` + userRelations + ` ORDER BY 1`,
		"The role does not own these tables, so it can neither put triggers on them nor take them away: %s.",
		"Use the database's default credential, or GRANT the owner's role to it.",
	},
	{
		"readable", SeverityBlocker,
		`SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		 WHERE c.relkind IN ('r', 'p', 'S', 'v', 'm') AND c.relpersistence <> 't'
		   AND NOT (has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')) AND` +
			userRelations + ` ORDER BY 1`,
		"The role may not read: %s.",
		"GRANT SELECT on them, and USAGE on their schemas, to the role.",
	},
	{
		"create_schema", SeverityBlocker,
		`SELECT current_database()::text WHERE NOT has_database_privilege(current_database(), 'CREATE')`,
		"The role may not create a schema in database %s, which the change logs need.",
		"Use the database's default credential.",
	},
	{
		"row_security", SeverityBlocker,
		`SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		 WHERE row_security_active(c.oid) AND` + userRelations + ` ORDER BY 1`,
		"Row security would hide rows of these tables from the role: %s.",
		"ALTER TABLE … NO FORCE ROW LEVEL SECURITY for the time of the migration, or use a role that bypasses it.",
	},
	{
		"wraparound_vacuum", SeverityWarning,
		`SELECT format('pid %s: %s', pid, query) FROM pg_stat_activity
		 WHERE datname = current_database() AND query LIKE 'autovacuum:%to prevent wraparound%'`,
		"A vacuum to prevent wraparound is running, and does not give way to the locks that triggers need: %s.",
		"Wait until it has ended: capture of its table waits for it, in short attempts.",
	},
	{
		"long_transactions", SeverityWarning,
		`SELECT format('pid %s (%s, open for %s s)', pid, usename, round(extract(epoch FROM now() - xact_start)))
		 FROM pg_stat_activity WHERE datname = current_database() AND xact_start < now() - interval '30 seconds'
		   AND backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY xact_start`,
		"Transactions are open for long; capture of the tables that they wrote to waits for them: %s.",
		"End them: SELECT pg_terminate_backend(pid).",
	},
	{
		"prepared_transactions", SeverityWarning,
		`SELECT format('%s (owner %s, since %s)', gid, owner, prepared) FROM pg_prepared_xacts WHERE database =
			current_database()`,
		"Prepared transactions hold locks until somebody ends them: %s.",
		"COMMIT PREPARED or ROLLBACK PREPARED them.",
	},
	{
		"unlogged_tables", SeverityWarning,
		`SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		 WHERE c.relkind = 'r' AND c.relpersistence = 'u' AND` + userRelations + ` ORDER BY 1`,
		"These tables are unlogged: a crash of the source empties them, which no trigger sees: %s.",
		"After a crash of the source, abort and start again.",
	},
	{
		"publications", SeverityWarning, `SELECT pubname::text FROM pg_publication WHERE pubname <> 'heroku_migrator'
			ORDER BY 1`,
		"Publications are not carried over: %s.", "Create them on the target after the switch.",
	},
	{
		"subscriptions", SeverityBlocker,
		`SELECT subname::text FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname =
			current_database())`,
		"Subscriptions write to the source without firing triggers, so their changes would be lost: %s.", "Drop them " +
			"before the migration.",
	},
	{
		"foreign_tables", SeverityWarning,
		`SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		 WHERE c.relkind = 'f' AND` + userRelations + ` ORDER BY 1`,
		"Foreign tables hold no rows of this database, and none are copied: %s.",
		"Check on the target that their servers can be reached from there.",
	},
	{
		"foreign_partitions", SeverityBlocker,
		`SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		 WHERE c.relkind = 'f' AND c.relispartition AND` + userRelations + ` ORDER BY 1`,
		"These partitions are foreign tables, whose rows cannot be followed: %s.",
		"Detach them.",
	},
	{
		"database_settings", SeverityInfo,
		`SELECT format('ALTER %s SET %s', CASE WHEN s.setrole = 0 THEN 'DATABASE' ELSE format('ROLE %I',
			pg_get_userbyid(s.setrole)) END, c)
		 FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) AS c
		 WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
		   AND (s.setrole = 0 OR pg_has_role(current_user, s.setrole, 'USAGE'))
		   AND NOT (s.setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = current_user)) AND (split_part(c, '=', 1) LIKE '%.%'
			OR lower(split_part(c, '=', 1)) IN ('` + strings.Join(carriedSettings, "', '") + `'))) ORDER BY 1`,
		"These settings of the database and of its roles are not carried over, as they are made for one server or one role: %s.",
		"Set those that matter on the target: ALTER DATABASE … SET, ALTER ROLE … SET.",
	},
	{
		"privileges", SeverityInfo,
		`SELECT DISTINCT pg_get_userbyid(a.grantee) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		 CROSS JOIN aclexplode(c.relacl) AS a WHERE a.grantee NOT IN (0, c.relowner) AND` + userRelations +
			` ORDER BY 1`,
		"Privileges of other roles are not carried over: %s.",
		"Create these roles on the target and GRANT them what they need.",
	},
	{
		"function_privileges", SeverityWarning,
		`SELECT format('%I.%I', n.nspname, p.proname) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
		 WHERE p.proacl IS NOT NULL AND NOT EXISTS (SELECT 1 FROM aclexplode(p.proacl) AS a WHERE a.grantee = 0 AND
		a.privilege_type = 'EXECUTE')
		   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'heroku_migrator')
		   AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND
		d.deptype = 'e') ORDER BY 1`,
		"EXECUTE was revoked from PUBLIC on these functions, which is not carried over: %s.",
		"REVOKE it on the target too, after the switch.",
	},
	{
		"leftovers", SeverityBlocker,
		`SELECT 'schema heroku_migrator' WHERE to_regnamespace('heroku_migrator') IS NOT NULL
		 UNION ALL SELECT format('trigger %I on %s', tgname, tgrelid::regclass) FROM pg_trigger WHERE tgname LIKE
		'heroku\_migrator\_%' AND tgparentid = 0
		 UNION ALL SELECT 'publication heroku_migrator' FROM pg_publication WHERE pubname = 'heroku_migrator'
		 UNION ALL SELECT 'replication slot ' || slot_name FROM pg_replication_slots WHERE database = current_database()
		AND slot_name LIKE 'heroku\_migrator\_%'`,
		"Another migration is under way, or has left something on the source: %s.",
		"Finish or abort it first; if its target is gone, `heroku-migrate abort --force` removes what it left.",
	},
}

// run makes the check.
func (c check) run(ctx context.Context, q querier) ([]Finding, error) {
	rows, err := q.Query(ctx, c.sql)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.name, err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.name, err)
	}
	return c.findings(list), nil
}

func (c check) findings(list []string) []Finding {
	if len(list) == 0 {
		return nil
	}
	return []Finding{{Check: c.name, Severity: c.severity, Message: fmt.Sprintf(c.message, abbreviate(list)),
		Remedy: c.remedy}}
}

func abbreviate(list []string) string {
	if n := len(list); n > namesShown {
		list = append(slices.Clone(list[:namesShown]), fmt.Sprintf("and %d more", n-namesShown))
	}
	return strings.Join(list, ", ")
}

// Inspect implements [Source].
func (h *Heroku) Inspect(ctx context.Context) ([]Finding, error) {
	id, err := h.Identify(ctx)
	if err != nil {
		return nil, err
	}
	var f []Finding
	if id.Major() < oldestSource {
		return append(f, Finding{
			Check: "source_version", Severity: SeverityBlocker,
			Message: fmt.Sprintf("The source is Postgres %s; %d is the oldest that can be migrated.", id.VersionStr,
				oldestSource),
			Remedy: "Upgrade it first (heroku pg:upgrade).",
		}), nil
	}
	if id.Timeline == 0 {
		return append(f, Finding{
			Check: "source_primary", Severity: SeverityBlocker, Message: "The source is a read-only follower.",
			Remedy: "Use the URL of its primary.",
		}), nil
	}
	f = append(f, h.inspectTools(ctx, id)...)
	var errs []error
	cat, err := h.Catalog(ctx)
	if err != nil {
		errs = append(errs, err)
	} else {
		f = append(f, inspectTables(cat)...)
	}
	h.mu.Lock()
	claimed := h.claim.Migration != ""
	h.mu.Unlock()
	for _, c := range slices.Concat(sourceChecks, largeObjectChecks) {
		if c.sql == "" || (c.name == "leftovers" && claimed) {
			continue
		}
		found, err := c.run(ctx, h.pool)
		f, errs = append(f, found...), append(errs, err)
	}
	found, err := h.inspectConstraints(ctx)
	f, errs = append(f, found...), append(errs, err)
	found, err = h.decoder.inspectCapture(ctx)
	f, errs = append(f, found...), append(errs, err)
	found, err = inspectConnections(ctx, h.pool, "source")
	return append(f, found...), errors.Join(append(errs, err)...)
}

func (h *Heroku) inspectTools(ctx context.Context, id Identity) []Finding {
	tools, err := pgdump.Find(ctx, h.pgDump)
	switch {
	case err != nil:
		return []Finding{{Check: "pg_dump", Severity: SeverityBlocker, Message: fmt.Sprintf("pg_dump "+
			"cannot be used: %v.", err),
			Remedy: fmt.Sprintf("Install the Postgres client programs, version %d or newer.", id.Major())}}
	case tools.Major < id.Major():
		return []Finding{{Check: "pg_dump", Severity: SeverityBlocker,
			Message: fmt.Sprintf("%s is version %s, older than the source's %s.", tools.Dump, tools.Version,
				id.VersionStr),
			Remedy: fmt.Sprintf("Install the Postgres client programs, version %d or newer.", id.Major())}}
	default:
		return []Finding{{Check: "pg_dump", Severity: SeverityOK, Message: fmt.Sprintf("pg_dump %s is %s.",
			tools.Version, tools.Dump)}}
	}
}

func inspectTables(cat *Catalog) []Finding {
	var noKey []string
	var bytes, rows int64
	for _, t := range cat.Tables {
		if len(t.Key) == 0 {
			noKey = append(noKey, t.String())
		}
		bytes += t.Bytes()
		rows += t.Rows
	}
	f := sourceChecks[0].findings(noKey)
	return append(f, Finding{
		Check: "tables", Severity: SeverityInfo,
		Message: fmt.Sprintf("%d tables with about %d rows in %s, and %d sequences, will be moved.", len(cat.Tables),
			rows, bytesText(bytes), len(cat.Sequences)),
	})
}

// inspectConnections compares what the pool may open with what the server has left.
func inspectConnections(ctx context.Context, pool *pgxpool.Pool, side string) ([]Finding, error) {
	free, err := freeConnections(ctx, pool)
	if err != nil {
		return nil, fmt.Errorf("connections: %w", err)
	}
	most := int(pool.Config().MaxConns) + 1
	f := Finding{Check: side + "_connections", Severity: SeverityOK, Message: fmt.Sprintf("At most %d connections to "+
		"the %s are used; %d are free.", most, side, free)}
	if free < most {
		f.Severity, f.Remedy = SeverityWarning, "Use fewer copy workers, or free connections."
	}
	return []Finding{f}, nil
}

// Inspect implements [Target].
func (p *PlanetScale) Inspect(ctx context.Context) ([]Finding, error) {
	var f []Finding
	if direct, ok := p.url.last().IsPlanetScalePooler(); ok {
		f = append(f, Finding{
			Check: "target_port", Severity: SeverityBlocker,
			Message: "The target's URL goes through PgBouncer (port 6432), which cannot carry a migration.",
			Remedy:  "Use the direct port: " + direct,
		})
	}
	for _, c := range targetChecks {
		found, err := c.run(ctx, p.pool)
		if err != nil {
			return f, err
		}
		f = append(f, found...)
	}
	silent, err := p.AppliesSilently(ctx)
	if err != nil {
		return f, err
	}
	if silent {
		f = append(f, Finding{Check: "session_replication_role", Severity: SeverityOK,
			Message: "Foreign keys and triggers can exist on the target while changes are applied."})
	} else {
		f = append(f, Finding{Check: "session_replication_role", Severity: SeverityWarning,
			Message: "The role may not set session_replication_role on the target, so foreign keys and triggers are " +
				"created at the switch, which takes longer.",
			Remedy: "Use the branch's default role, if it may."})
	}
	way, err := p.decoder.inspectWayBack(ctx)
	if err != nil {
		return f, err
	}
	found, err := inspectConnections(ctx, p.pool, "target")
	return append(append(f, way), found...), err
}

var targetChecks = []check{
	{
		"target_primary", SeverityBlocker, `SELECT 'a replica' WHERE pg_is_in_recovery()`,
		"The target is %s and cannot be written to.", "Use the URL of its primary.",
	},
	{
		"target_empty", SeverityBlocker,
		`SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND c.relpersistence <> 't'
		   AND n.nspname NOT IN ('pscale_extensions') AND` + userRelations + `
		 UNION ALL SELECT format('%s large objects', count(*)) FROM pg_largeobject_metadata HAVING count(*) > 0 ORDER BY
		1`,
		"The target is not empty: %s.",
		"Use a fresh database or branch, so that nothing of it can be overwritten or mixed up.",
	},
	{
		"target_create", SeverityBlocker,
		`SELECT current_database()::text WHERE NOT has_database_privilege(current_database(), 'CREATE')
		 UNION ALL SELECT 'schema public of ' || current_database() WHERE to_regnamespace('public') IS NOT NULL AND NOT
		has_schema_privilege('public', 'CREATE')`,
		"The role may not create objects in %s.", "Use the branch's default role.",
	},
	{
		"target_role", SeverityWarning,
		`SELECT format('%s%s', rolname, ', valid until ' || rolvaliduntil) FROM pg_roles
		 WHERE rolname = current_user AND (rolname LIKE 'pscale\_api\_%' OR rolvaliduntil < 'infinity')`,
		"The target's role (%s) may expire, and will own everything that is migrated.",
		"Use the branch's default role, or reassign ownership afterwards: REASSIGN OWNED BY … TO ….",
	},
}

// extensionSet is what a database knows of extensions.
type extensionSet struct {
	installed map[string]string // the schema of each
	available map[string]bool   // whether the role may create it
	tables    []ExtensionTable
}

func (h *Heroku) extensions(ctx context.Context) (extensionSet, error) {
	return readExtensions(ctx, h.pool)
}

func (p *PlanetScale) extensions(ctx context.Context) (extensionSet, error) {
	return readExtensions(ctx, p.pool)
}

func readExtensions(ctx context.Context, pool *pgxpool.Pool) (extensionSet, error) {
	set := extensionSet{installed: map[string]string{}, available: map[string]bool{}}
	rows, err := pool.Query(ctx, `
		SELECT a.name, coalesce(n.nspname, ''),
		       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) OR coalesce((
			SELECT v.trusted OR NOT v.superuser FROM pg_available_extension_versions v WHERE v.name = a.name AND
			v.version = a.default_version), true)
		FROM pg_available_extensions a
		LEFT JOIN pg_extension e ON e.extname = a.name LEFT JOIN pg_namespace n ON n.oid = e.extnamespace`)
	if err != nil {
		return set, err
	}
	var name, have string
	var may bool
	_, err = pgx.ForEachRow(rows, []any{&name, &have, &may}, func() error {
		set.available[name] = may
		if have != "" {
			set.installed[name] = have
		}
		return nil
	})
	if err != nil {
		return set, err
	}
	set.tables, err = readExtensionTables(ctx, pool)
	return set, err
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
