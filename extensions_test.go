package migrator_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

// An extension that keeps jobs of its users, beside its own, as pg_cron and pg_partman do.
const jobsExtension = `
CREATE TABLE job (id serial PRIMARY KEY, command text UNIQUE, username text DEFAULT CURRENT_USER, db name DEFAULT current_database(),
	builtin boolean NOT NULL DEFAULT false, label char(3), tags text[], twice int GENERATED ALWAYS AS (length(command) * 2) STORED, plan int);
CREATE TABLE plan (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, every interval);
ALTER TABLE job ADD FOREIGN KEY (plan) REFERENCES plan;
INSERT INTO job (command, builtin) VALUES ('own', true);
CREATE TABLE woken (at timestamptz DEFAULT now());
CREATE FUNCTION wake() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO @extschema@.woken DEFAULT VALUES; RETURN NULL; END $$;
CREATE TRIGGER wake AFTER INSERT ON job EXECUTE FUNCTION wake();
SELECT pg_extension_config_dump('job', 'WHERE NOT builtin');
SELECT pg_extension_config_dump('job_id_seq', '');
SELECT pg_extension_config_dump('plan', '');
`

// One whose rows cannot be written on the target.
const lockedExtension = `
CREATE TABLE conf (k text PRIMARY KEY);
INSERT INTO conf SELECT 'the platform''s' WHERE current_database() LIKE 'target%';
CREATE FUNCTION check_database() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
	IF current_database() LIKE 'target%' THEN RAISE insufficient_privilege; END IF;
	RETURN NEW; END $$;
CREATE TRIGGER check_database BEFORE INSERT ON conf FOR EACH ROW EXECUTE FUNCTION check_database();
SELECT pg_extension_config_dump('conf', '');
`

// Rows that users added to an extension's tables come with the switch, go with a revert, and come again.
func TestRowsInTablesOfExtensions(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for name, script := range map[string]string{"migrator_jobs": jobsExtension, "migrator_locked": lockedExtension} {
		require.NoError(t, p.source.Cluster.AddExtension(t.Context(), name, "superuser = false", script))
		require.NoError(t, p.target.Cluster.AddExtension(t.Context(), name, "superuser = false", script))
	}
	p.sql(t, `CREATE SCHEMA jobs`, `CREATE EXTENSION migrator_jobs WITH SCHEMA jobs`, `CREATE EXTENSION migrator_locked`, `CREATE TABLE t (id int PRIMARY KEY)`,
		`INSERT INTO jobs.plan (every) VALUES ('1 hour'), ('1 day')`,
		`INSERT INTO jobs.job (command, label, tags, plan) VALUES (E'VACUUM\t"x"', 'a', '{a,NULL,"b c"}', 2), ('it''s', NULL, '{}', NULL)`,
		`INSERT INTO conf VALUES ('a'), ('b')`)
	m := p.migrator(t)
	report, err := m.Preflight(t.Context())
	require.NoError(t, err)
	require.Contains(t, report.Findings, migrator.Finding{Check: "extension_tables", Severity: migrator.SeverityInfo, Message: "2 rows of users in jobs.job of extension migrator_jobs are copied at the switch."})
	require.Empty(t, report.Blockers())
	require.NoError(t, m.Run(t.Context(), migrator.UntilInSync))

	source, target := p.source.Connect(t), p.target.Connect(t)
	const jobs = `SELECT count(*) FROM jobs.job WHERE NOT builtin`
	require.Zero(t, count(t, target, jobs), "nothing runs there yet")
	do(t, m, migrator.CommandSwitch)
	const digest = `SELECT hashtextextended(string_agg(ROW(j.id, command, builtin, label, tags, twice, plan, every)::text, ',' ORDER BY j.id), 0) FROM jobs.job j LEFT JOIN jobs.plan p ON p.id = plan`
	require.Equal(t, count(t, source, digest), count(t, target, digest))
	require.EqualValues(t, 2, count(t, target, jobs+` AND username = current_user AND db = current_database()`), "they belong to where they are")
	require.EqualValues(t, 1, count(t, target, `SELECT count(*) FROM jobs.woken`), "the extension was told")
	require.Equal(t, count(t, source, `SELECT nextval('jobs.job_id_seq')`), count(t, target, `SELECT nextval('jobs.job_id_seq')`))
	require.EqualValues(t, 1, count(t, target, `SELECT count(*) FROM conf WHERE k = 'the platform''s'`), "it keeps what it has")
	require.EqualValues(t, 1, count(t, target, `SELECT count(*) FROM heroku_migrator.events WHERE kind = 'warning' AND message LIKE '2 rows of users in public.conf of extension migrator_locked%by hand%'`))

	do(t, m, migrator.CommandRevert)
	require.Zero(t, count(t, target, jobs), "nothing runs there any more")
	require.EqualValues(t, 1, count(t, target, `SELECT count(*) FROM jobs.job`))
	execute(t, source, `DELETE FROM jobs.job WHERE command LIKE 'VACUUM%'`, `INSERT INTO jobs.job (command, plan) VALUES ('new', 1)`)
	do(t, m, migrator.CommandSwitch)
	require.Equal(t, count(t, source, digest), count(t, target, digest))
	do(t, m, migrator.CommandComplete)
	p.requireNoTrace(t)
	require.Equal(t, count(t, source, digest), count(t, target, digest))
}

func TestPreflightOfExtensionsThatAreNotTrusted(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	require.NoError(t, p.source.Cluster.AddExtension(t.Context(), "migrator_untrusted", "superuser = true", ""))
	require.NoError(t, p.target.Cluster.AddExtension(t.Context(), "migrator_untrusted", "superuser = true", ""))
	execute(t, p.source.ConnectAdmin(t), `CREATE EXTENSION migrator_untrusted`)
	m := p.migrator(t)
	find := func() (list []migrator.Finding) {
		report, err := m.Preflight(t.Context())
		require.NoError(t, err)
		for _, f := range report.Findings {
			if f.Check == "extensions" {
				list = append(list, f)
			}
		}
		return list
	}
	f := find()
	require.Len(t, f, 1)
	require.Equal(t, migrator.SeverityWarning, f[0].Severity, f[0].Message)
	require.Contains(t, f[0].Message, "neither installed nor trusted")
	execute(t, p.target.ConnectAdmin(t), `CREATE EXTENSION migrator_untrusted`)
	f = find()
	require.Len(t, f, 1)
	require.Equal(t, migrator.SeverityOK, f[0].Severity)
}
