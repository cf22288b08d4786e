package migrator_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgtest"
	"github.com/heroku-migrator/migrator/internal/shop"
)

// smallSchema has what a switch has to care about, in a few rows.
var smallSchema = []string{
	`CREATE TABLE parents (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text UNIQUE)`,
	`CREATE TABLE children (id serial PRIMARY KEY, parent bigint REFERENCES parents ON DELETE CASCADE, n int CHECK (n >= 0))`,
	`CREATE TABLE journal (id bigserial PRIMARY KEY, what text)`,
	`CREATE SEQUENCE tickets INCREMENT 5`,
	`CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.journal (what) VALUES (TG_OP || ' ' || TG_NAME); RETURN NULL; END $$`,
	`CREATE TRIGGER note AFTER INSERT OR DELETE ON children FOR EACH ROW EXECUTE FUNCTION note()`,
	`CREATE TRIGGER note_always AFTER INSERT ON children FOR EACH ROW EXECUTE FUNCTION note()`,
	`ALTER TABLE children ENABLE ALWAYS TRIGGER note_always`,
	`CREATE RULE no_bad_names AS ON INSERT TO parents WHERE NEW.name = 'bad' DO INSTEAD NOTHING`,
	`INSERT INTO parents (name) SELECT 'p' || i FROM generate_series(1, 200) i`,
	`INSERT INTO children (parent, n) SELECT id, id FROM parents`,
	`SELECT nextval('tickets'), nextval('tickets')`,
}

func inSync(t *testing.T, p *pair) *migrator.Migrator {
	t.Helper()
	m := p.migrator(t)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	return m
}

func do(t *testing.T, m *migrator.Migrator, name migrator.CommandName) {
	t.Helper()
	_, err := m.Do(withTimeout(t, 3*time.Minute), name, false)
	require.NoError(t, err, name)
}

func phase(t *testing.T, m *migrator.Migrator) migrator.Phase {
	t.Helper()
	s, err := m.Status(t.Context())
	require.NoError(t, err)
	return s.Phase
}

func execute(t *testing.T, c *pgx.Conn, statements ...string) {
	t.Helper()
	for _, s := range statements {
		_, err := c.Exec(t.Context(), s)
		require.NoError(t, err, s)
	}
}

func count(t *testing.T, c *pgx.Conn, sql string) (n int64) {
	t.Helper()
	require.NoError(t, c.QueryRow(t.Context(), sql).Scan(&n))
	return n
}

func TestSwitchSequencesAndTriggers(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, smallSchema...)
	m := inSync(t, p)
	p.sql(t, `INSERT INTO children (parent, n) VALUES (7, 1)`, `UPDATE parents SET name = 'x' || name`, `SELECT nextval('tickets')`)
	do(t, m, migrator.CommandSwitch)
	require.Equal(t, migrator.PhaseSwitched, phase(t, m))
	p.requireEqual(t)

	target := p.target.Connect(t)
	require.EqualValues(t, 16, count(t, target, `SELECT nextval('tickets')`))
	require.EqualValues(t, 202, count(t, target, `INSERT INTO children (parent, n) VALUES (1, 1) RETURNING id`))
	require.EqualValues(t, 2, count(t, target, `SELECT count(*) FROM journal WHERE what LIKE 'INSERT%' AND id > 402`), "each trigger fires once")
	tag, err := target.Exec(t.Context(), `INSERT INTO parents (name) VALUES ('bad')`)
	require.NoError(t, err)
	require.Zero(t, tag.RowsAffected(), "the rule is there")
	_, err = target.Exec(t.Context(), `INSERT INTO children (parent, n) VALUES (-1, 1)`)
	require.ErrorContains(t, err, "foreign key")
	execute(t, target, `DELETE FROM parents WHERE id = 3`)
	require.Zero(t, count(t, target, `SELECT count(*) FROM children WHERE parent = 3`), "the cascade is there")

	do(t, m, migrator.CommandComplete)
	p.requireNoTrace(t)
}

// The role may not silence triggers: they and the foreign keys come at the switch.
func TestSwitchWithoutReplicationRole(t *testing.T) {
	t.Parallel()
	p := newPair(t, pgtest.WithoutReplicationRole())
	p.sql(t, smallSchema...)
	m := inSync(t, p)
	p.sql(t, `INSERT INTO children (parent, n) VALUES (7, 1)`, `DELETE FROM parents WHERE id < 5`, `UPDATE children SET id = id + 1000`)
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
	target := p.target.Connect(t)
	_, err := target.Exec(t.Context(), `INSERT INTO children (parent, n) VALUES (-1, 1)`)
	require.ErrorContains(t, err, "foreign key")

	_, err = m.Do(t.Context(), migrator.CommandRevert, false)
	require.NoError(t, err)
	p.sql(t, `DELETE FROM parents WHERE id < 9`)
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
	do(t, m, migrator.CommandComplete)
	p.requireNoTrace(t)
}

// A transaction that does not end: the switch gives up, and nothing has happened.
func TestSwitchGivesUp(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, smallSchema...)
	m := p.migrator(t, func(c *migrator.Config) { c.Cutover.FenceTimeout = 2 * time.Second })
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))

	holder := p.source.Connect(t)
	execute(t, holder, `BEGIN`, `UPDATE children SET n = 1 WHERE id = 1`)
	_, err := m.Do(t.Context(), migrator.CommandSwitch, false)
	refused := new(migrator.RefusedError)
	require.ErrorAs(t, err, &refused)
	require.ErrorContains(t, err, "pid ")
	require.Equal(t, migrator.PhaseReplicating, phase(t, m))
	execute(t, holder, `UPDATE children SET n = 2 WHERE id = 2`, `COMMIT`)
	p.sql(t, `INSERT INTO children (parent, n) VALUES (7, 1)`)
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
}

// A table that changed or appeared meanwhile would be lost in silence: the switch is refused.
func TestSwitchRefusedAfterSchemaChange(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, smallSchema...)
	m := p.migrator(t, func(c *migrator.Config) { c.SchemaChanges = migrator.SchemaFail })
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	p.sql(t, `ALTER TABLE parents ADD COLUMN age int`)
	_, err := m.Do(t.Context(), migrator.CommandSwitch, true)
	require.ErrorContains(t, err, "public.parents was changed")
	p.sql(t, `ALTER TABLE parents DROP COLUMN age`, `CREATE TABLE late (id int PRIMARY KEY)`)
	_, err = m.Do(t.Context(), migrator.CommandSwitch, false)
	require.ErrorContains(t, err, "public.late was created")
	p.sql(t, `DROP TABLE late`, `CREATE SEQUENCE late`)
	_, err = m.Do(t.Context(), migrator.CommandSwitch, true)
	require.ErrorContains(t, err, "sequence public.late was created")
	p.sql(t, `DROP SEQUENCE late`, `CREATE INDEX late ON journal (what)`)
	_, err = m.Do(t.Context(), migrator.CommandSwitch, false)
	refused := new(migrator.RefusedError)
	require.ErrorAs(t, err, &refused)
	require.True(t, refused.CanForce)
	require.ErrorContains(t, err, "index public.late")
	p.sql(t, `DROP INDEX late`,
		`ALTER TABLE journal RENAME id TO key`, `INSERT INTO journal (what) VALUES ('the application writes on')`, `ALTER TABLE journal RENAME key TO id`)
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
}

// failing makes one call to the target fail, as if the process died around it.
type failing struct {
	migrator.Target
	before, after error
}

func (f *failing) Switch(ctx context.Context, final migrator.Final) error {
	if f.before != nil {
		return f.before
	}
	if err := f.Target.Switch(ctx, final); err != nil {
		return err
	}
	return f.after
}

var errDied = errors.New("the process died here")

// The switch dies behind the fence: the next process that leads lifts it. It dies after the commit: the switch
// is made.
func TestSwitchInterrupted(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, smallSchema...)
	m := inSync(t, p)

	// Fence up, marker set, and the process is gone.
	src, dst := p.open(t)
	lead, err := dst.Journal().TryLead(t.Context(), false)
	require.NoError(t, err)
	state, err := dst.Journal().State(t.Context())
	require.NoError(t, err)
	require.NoError(t, src.Claim(t.Context(), migrator.Claim{Migration: state.ID, Epoch: lead.Epoch}, false))
	require.NoError(t, dst.Journal().SetPending(t.Context(), migrator.CommandSwitch))
	statuses, err := dst.Journal().Tables(t.Context())
	require.NoError(t, err)
	var tables []*migrator.Table
	for _, s := range statuses {
		tables = append(tables, s.Table)
	}
	require.NoError(t, src.Fence(t.Context(), tables, migrator.FenceConfig{}))
	_, err = p.source.Connect(t).Exec(t.Context(), `DELETE FROM journal`)
	require.ErrorContains(t, err, "permission denied")
	lead.Release()
	do(t, m, migrator.CommandPause) // any command: its process leads for a moment
	do(t, m, migrator.CommandResume)
	p.sql(t, `INSERT INTO children (parent, n) VALUES (7, 1)`)

	// The commit is refused, or its answer is lost.
	run := func(f *failing) error {
		src, dst := p.open(t)
		f.Target = dst
		m, err := migrator.New(migrator.Config{Source: src, Target: f})
		require.NoError(t, err)
		_, err = m.Do(t.Context(), migrator.CommandSwitch, false)
		return err
	}
	require.ErrorContains(t, run(&failing{before: errDied}), errDied.Error())
	p.sql(t, `INSERT INTO children (parent, n) VALUES (7, 1)`)
	require.Equal(t, migrator.PhaseReplicating, phase(t, m))
	require.NoError(t, run(&failing{after: errDied}))
	require.Equal(t, migrator.PhaseSwitched, phase(t, m))
	p.requireEqual(t)
}

// Abort at any time leaves nothing behind, while readers and writers are at work.
func TestAbort(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.shop(t, 0.02)
	before := p.acl(t)
	writers, err := shop.StartWriters(t.Context(), p.source.URL, 2, shop.Options{Rate: 50, Rest: 4, KeyChanges: true})
	require.NoError(t, err)
	defer writers.Stop()
	m := inSync(t, p)
	do(t, m, migrator.CommandAbort)
	p.requireNoTrace(t)
	require.Equal(t, before, p.acl(t))
	stats := writers.Stop()
	require.Zero(t, stats.Other, stats.OtherSample)
	require.Zero(t, stats.Refused)
	require.Less(t, stats.LongestStatement, 2500*time.Millisecond)
}

// Commands reach the process that leads, and are answered by it.
func TestCommandsReachTheLeader(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, smallSchema...)
	ctx := withTimeout(t, time.Minute)
	leader, other := p.migrator(t), p.migrator(t)
	done := make(chan error, 1)
	go func() { done <- leader.Run(ctx, "") }()
	require.Eventually(t, func() bool { return phase(t, other) == migrator.PhaseReplicating }, 30*time.Second, 50*time.Millisecond)

	_, err := other.Do(ctx, migrator.CommandComplete, false)
	require.ErrorAs(t, err, new(*migrator.RefusedError))
	do(t, other, migrator.CommandPause)
	p.sql(t, `INSERT INTO children (parent, n) VALUES (7, 1)`)
	_, err = other.Do(ctx, migrator.CommandSwitch, false)
	require.ErrorContains(t, err, "paused")
	do(t, other, migrator.CommandResume)
	do(t, other, migrator.CommandSwitch)
	p.requireEqual(t)
	do(t, other, migrator.CommandRevert)
	do(t, other, migrator.CommandSwitch)
	do(t, other, migrator.CommandComplete)
	require.NoError(t, <-done)
	p.requireNoTrace(t)
	require.Equal(t, migrator.PhaseWaiting, phase(t, other))
}

// A rewrite fires no trigger and may change values; the table is carried over as a whole.
func TestSwitchAfterRewrite(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, smallSchema...)
	m := inSync(t, p)
	p.sql(t, `ALTER TABLE children ALTER n TYPE int USING n + 7`, `VACUUM FULL parents`)
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
}

// I1: whoever disables triggers, as loaders of data do, writes without leaving keys. It is noticed.
func TestSwitchRefusedAfterTriggersWereDisabled(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, smallSchema...)
	m := inSync(t, p)
	p.sql(t, `ALTER TABLE journal DISABLE TRIGGER USER`, `INSERT INTO journal (what) VALUES ('unseen')`, `ALTER TABLE journal ENABLE TRIGGER USER`)
	_, err := m.Do(t.Context(), migrator.CommandSwitch, true)
	require.ErrorContains(t, err, "triggers that capture changes of table public.journal were disabled")
}

func TestSwitchRefusedAfterATriggerWasDropped(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, smallSchema...)
	m := inSync(t, p)
	p.sql(t, `DROP TRIGGER heroku_migrator_update ON journal`)
	_, err := m.Do(t.Context(), migrator.CommandSwitch, true)
	require.ErrorContains(t, err, "triggers that capture changes of table public.journal were disabled or dropped")
}

// After a revert nobody may write to the target, until the next switch.
func TestWritesOnTheTargetAfterARevert(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, smallSchema...)
	m := inSync(t, p)
	do(t, m, migrator.CommandSwitch)
	do(t, m, migrator.CommandRevert)
	_, err := p.target.Connect(t).Exec(t.Context(), `INSERT INTO journal (id, what) VALUES (-1, 'stray')`)
	require.ErrorContains(t, err, "permission denied")
	p.sql(t, `INSERT INTO children (parent, n) VALUES (7, 1)`)
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
	execute(t, p.target.Connect(t), `INSERT INTO journal (id, what) VALUES (-1, 'no stray')`)
}

// I5: the commit of the switch takes longer than anybody waits for it. Whatever becomes of it, one side takes writes.
func TestSwitchWhoseCommitIsSlow(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, smallSchema...)
	inSync(t, p)
	execute(t, p.target.ConnectAdmin(t), `
		CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE till timestamptz := clock_timestamp() + interval '4 seconds'; BEGIN
			WHILE clock_timestamp() < till LOOP BEGIN PERFORM pg_sleep(0.2); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; RETURN NULL; END $$`,
		`CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON heroku_migrator.migration DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW WHEN (NEW.phase = 'switched' AND OLD.phase <> 'switched') EXECUTE FUNCTION public.slow()`)
	m := p.migrator(t, func(c *migrator.Config) { c.Cutover.DrainTimeout = 2 * time.Second })
	_, err := m.Do(withTimeout(t, 30*time.Second), migrator.CommandSwitch, false)
	_, writeErr := p.source.Connect(t).Exec(t.Context(), `INSERT INTO journal (what) VALUES ('late')`)
	if phase(t, m) == migrator.PhaseSwitched {
		require.ErrorContains(t, writeErr, "permission denied")
		require.NoError(t, err)
	} else {
		require.NoError(t, writeErr)
		require.Error(t, err)
	}
}

// An ordinary autovacuum gives way only to those who wait longer than deadlock_timeout: capture does, without keeping writers.
func TestCaptureInterruptsAutovacuum(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, `CREATE TABLE big (id int PRIMARY KEY, v text) WITH (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1, autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0)`,
		`INSERT INTO big SELECT i, repeat('x', 500) FROM generate_series(1, 20000) i`, `UPDATE big SET v = v || 'y'`)
	admin := p.source.ConnectAdmin(t)
	execute(t, admin, `ALTER SYSTEM SET autovacuum_naptime = '1s'`, `SELECT pg_reload_conf()`)
	t.Cleanup(func() {
		c, err := pgx.Connect(context.Background(), p.source.AdminURL)
		require.NoError(t, err)
		_, err = c.Exec(context.Background(), `ALTER SYSTEM RESET autovacuum_naptime`)
		require.NoError(t, err)
		_, err = c.Exec(context.Background(), `SELECT pg_reload_conf()`)
		require.NoError(t, errors.Join(err, c.Close(context.Background())))
	})
	require.Eventually(t, func() bool {
		return count(t, admin, `SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'autovacuum worker' AND query LIKE '%public.big%'`) > 0
	}, 60*time.Second, 100*time.Millisecond)
	inSync(t, p)
	p.requireEqual(t)
}
