package migrator_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgtest"
	"github.com/heroku-migrator/migrator/internal/shop"
)

// ownServer starts a server that no other test uses.
func ownServer(t *testing.T, version int) *pgtest.Cluster {
	t.Helper()
	server, err := pgtest.Start(t.Context(), version)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close(context.Background())) })
	return server
}

func newStandby(t *testing.T, primary *pgtest.Cluster) *pgtest.Cluster {
	t.Helper()
	standby, err := primary.Standby(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, standby.Close(context.Background())) })
	require.NoError(t, standby.Follow(t.Context(), primary))
	return standby
}

// run has a migrator at work until the test stops it.
func run(t *testing.T, m *migrator.Migrator) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx, "") }()
	return func() {
		cancel()
		require.ErrorIs(t, <-ended, context.Canceled)
	}
}

// countOn counts on a connection of its own, which it closes.
func countOn(t *testing.T, db *pgtest.Database, sql string) int64 {
	t.Helper()
	c, err := pgx.Connect(t.Context(), db.URL)
	if err != nil {
		return -1 // it fails over
	}
	defer c.Close(context.Background())
	var n int64
	if err := c.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		return -1
	}
	return n
}

func waitFor(t *testing.T, what string, is func() bool) {
	t.Helper()
	require.Eventually(t, is, 3*time.Minute, 50*time.Millisecond, what)
}

// The source fails over to a real standby that lags: the target follows the new server, and what was lost there is gone
// from it too.
func TestSourceFailsOverToAStandbyThatLags(t *testing.T) {
	t.Parallel()
	primary := ownServer(t, pgtest.SourceVersion())
	p := newPair(t)
	before := p.newSource(t, primary)
	address := pgtest.NewAddress(t, primary)
	p.source = address.Of(before)
	p.shop(t, 0.05)
	p.sql(t, `CREATE TABLE markers (n int PRIMARY KEY)`)
	m := p.migrator(t)
	stop := run(t, m)
	defer stop()
	waitFor(t, "in sync", func() bool { return phase(t, m) == migrator.PhaseReplicating })
	standby := newStandby(t, primary)
	writers, err := shop.StartWriters(t.Context(), p.source.URL, 2, shop.Options{Rate: 100, Rest: 4,
		KeyChanges: true, MaxHold: -1})
	require.NoError(t, err)
	time.Sleep(500 * time.Millisecond)
	require.NoError(t, standby.Detach(t.Context()))
	execute(t, before.Connect(t), `INSERT INTO markers SELECT generate_series(1, 9)`, `CREATE TABLE lost (id int
		PRIMARY KEY)`, `INSERT INTO lost SELECT generate_series(1, 5)`)
	time.Sleep(time.Second)
	writers.Stop()
	waitFor(t, "what will be lost is on the target", func() bool {
		return countOn(t, p.target, `SELECT count(*) FROM markers`) == 9 && countOn(t, p.target, `SELECT count(*)
			FROM lost`) == 5
	})
	address.Point(nil)
	waitFor(t, "it says why it waits", func() bool {
		s, err := m.Status(t.Context())
		return err == nil && s.Waiting != nil && s.Waiting.Reason != ""
	})
	require.NoError(t, standby.Promote(t.Context()))
	address.Point(standby)
	waitFor(t, "what was lost is gone", func() bool {
		return countOn(t, p.target, `SELECT count(*) FROM markers`) == 0
	})
	writers, err = shop.StartWriters(t.Context(), p.source.URL, 2, shop.Options{Rate: 100, Rest: 4, KeyChanges: true,
		MaxHold: -1})
	require.NoError(t, err)
	time.Sleep(time.Second)
	do(t, m, migrator.CommandSwitch)
	writers.Stop()
	p.requireEqual(t)
	require.Zero(t, count(t, p.target.Connect(t), `SELECT count(*) FROM pg_tables WHERE tablename = 'lost'`))
	s, err := m.Status(t.Context())
	require.NoError(t, err)
	require.Nil(t, s.Waiting)
}

// The target fails over to a real standby that lags, behind what was trimmed on the source.
func TestTargetFailsOverToAStandbyThatLags(t *testing.T) {
	t.Parallel()
	primary := ownServer(t, pgtest.TargetVersion())
	p := newPair(t)
	address := pgtest.NewAddress(t, primary)
	p.target = address.Of(primary.NewTarget(t))
	p.shop(t, 0.05)
	m := p.migrator(t, func(c *migrator.Config) { c.Replicate.TrimGrace = -1 })
	stop := run(t, m)
	defer stop()
	waitFor(t, "in sync", func() bool { return phase(t, m) == migrator.PhaseReplicating })
	writers, err := shop.StartWriters(t.Context(), p.source.URL, 2, shop.Options{Rate: 100, Rest: 4,
		KeyChanges: true, MaxHold: -1})
	require.NoError(t, err)
	defer writers.Stop()
	time.Sleep(500 * time.Millisecond)
	standby := newStandby(t, primary)
	require.NoError(t, standby.Detach(t.Context()))
	time.Sleep(1500 * time.Millisecond)
	address.Point(nil)
	require.NoError(t, standby.Promote(t.Context()))
	address.Point(standby)
	time.Sleep(500 * time.Millisecond)
	for attempt := 1; ; attempt++ { // the first may meet the failover
		if _, err := m.Do(withTimeout(t, time.Minute), migrator.CommandSwitch, false); err == nil {
			break
		} else if attempt == 5 {
			require.NoError(t, err)
		}
		time.Sleep(500 * time.Millisecond)
	}
	writers.Stop()
	p.requireEqual(t)
	require.NoError(t, writers.CheckLedger(t.Context(), p.target.Connect(t)))
}

// The source fails over after the switch, to a standby that has neither the fence nor the last rows: it is fenced
// again, and everything comes back to it.
func TestSourceFailsOverAfterTheSwitch(t *testing.T) {
	t.Parallel()
	primary := ownServer(t, pgtest.SourceVersion())
	p := newPair(t)
	before := p.newSource(t, primary)
	address := pgtest.NewAddress(t, primary)
	p.source = address.Of(before)
	p.sql(t, smallSchema...)
	p.sql(t, backSchema[:len(backSchema)-1]...)
	m := p.migrator(t)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	untouched := p.loud(t)
	standby := newStandby(t, primary)
	require.NoError(t, standby.Detach(t.Context()))
	// the standby will not have these
	p.sql(t, `INSERT INTO children (parent, n) VALUES (7, 7777)`, `DELETE FROM users WHERE id = 9`)
	do(t, m, migrator.CommandSwitch)
	stop := run(t, m)
	execute(t, p.target.Connect(t), `INSERT INTO children (parent, n) VALUES (8, 8888)`)
	waitFor(t, "the way back is open", func() bool {
		return countOn(t, before, `SELECT count(*) FROM children WHERE n = 8888`) == 1
	})
	address.Point(nil)
	require.NoError(t, standby.Promote(t.Context()))
	address.Point(standby)
	waitFor(t, "it is fenced, and has everything", func() bool {
		return countOn(t, p.source, `SELECT count(*) FROM children WHERE n IN (7777, 8888)`) == 2
	})
	_, err := p.source.Connect(t).Exec(t.Context(), `DELETE FROM children`)
	require.ErrorContains(t, err, "permission denied")
	execute(t, p.target.Connect(t), `UPDATE children SET n = 99 WHERE n = 888888`, `DELETE FROM users WHERE id = 12`)
	do(t, m, migrator.CommandRevert)
	p.requireEqual(t)
	require.Equal(t, untouched, p.loud(t))
	stop()
	p.sql(t, `INSERT INTO children (parent, n) VALUES (7, 1)`)
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
}

// Constraints that somebody adds on the target keep no row from it.
func TestConstraintsAddedOnTheTarget(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, smallSchema...)
	p.sql(t, `CREATE DOMAIN tag AS text`, `CREATE TABLE tagged (id int PRIMARY KEY, tag tag)`)
	m := inSync(t, p)
	// A CHECK is held back by itself, and not lost: also when it is harmless, as a library of the target may see the
	// row otherwise.
	execute(t, p.target.Connect(t), `ALTER TABLE children ADD CONSTRAINT small CHECK (n < 5000)`,
		`ALTER DOMAIN tag ADD CONSTRAINT short CHECK (length(VALUE) < 5)`)
	p.sql(t, `UPDATE children SET n = 6000 WHERE id = 17`, `INSERT INTO tagged VALUES (1, 'much too long')`)
	require.NoError(t, m.Run(withTimeout(t, 30*time.Second), migrator.UntilInSync))
	p.sql(t, `ALTER TABLE children ADD COLUMN later int`) // following the schema does not forget it
	require.NoError(t, m.Run(withTimeout(t, 30*time.Second), migrator.UntilInSync))
	p.requireEqual(t)
	require.NotContains(t, constraintsOf(t, p.target, false), "children small")
	do(t, m, migrator.CommandSwitch)
	require.Equal(t, []string{"children small", "tag short"}, notValid(t, p.target))
	require.Contains(t, constraintsOf(t, p.target, false)["children small"], "n < 5000")
}

// Passwords are changed while it runs, and sessions ended: the callback delivers the new URL.
func TestCredentialsAreRotated(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, smallSchema...)
	dir := t.TempDir()
	files := [2]string{filepath.Join(dir, "source"), filepath.Join(dir, "target")}
	write := func(i int, url string) { require.NoError(t, os.WriteFile(files[i], []byte(url+"\n"), 0o600)) }
	write(0, p.source.URL)
	write(1, p.target.URL)
	read := func(i int) func(context.Context) (string, error) {
		return func(context.Context) (string, error) {
			b, err := os.ReadFile(files[i])
			return strings.TrimSpace(string(b)), err
		}
	}
	src, err := migrator.OpenHeroku(t.Context(), p.source.URL, migrator.HerokuConfig{PgDump: p.pgDump, URL: read(0)})
	require.NoError(t, err)
	defer src.Close()
	dst, err := migrator.OpenPlanetScale(t.Context(), p.target.URL, migrator.PlanetScaleConfig{URL: read(1)})
	require.NoError(t, err)
	defer dst.Close()
	m, err := migrator.New(migrator.Config{Source: src, Target: dst, Logger: testLogger(t)})
	require.NoError(t, err)
	stop := run(t, m)
	defer stop()
	waitFor(t, "in sync", func() bool { return phase(t, m) == migrator.PhaseReplicating })
	for _, d := range []*pgtest.Database{p.source, p.target} {
		execute(t, d.ConnectAdmin(t), fmt.Sprintf(`ALTER ROLE %s PASSWORD 'another'`, d.Role),
			fmt.Sprintf(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '%s'`, d.Role))
	}
	time.Sleep(time.Second)
	for i, d := range []*pgtest.Database{p.source, p.target} {
		fresh := d.WithPassword("another")
		if i == 0 {
			p.source = fresh
		} else {
			p.target = fresh
		}
		write(i, fresh.URL)
	}
	p.sql(t, `INSERT INTO children (parent, n) VALUES (7, 7777)`)
	waitFor(t, "it goes on", func() bool {
		return countOn(t, p.target, `SELECT count(*) FROM children WHERE n = 7777`) == 1
	})
	do(t, m, migrator.CommandSwitch) // pg_dump has the new password too
	p.requireEqual(t)
}

// Statements are cancelled at random on both sides, during the copy and after.
func TestStatementsAreCancelled(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.shop(t, 0.1)
	m := p.migrator(t)
	stop := run(t, m)
	waitFor(t, "preflight is over", func() bool {
		now := phase(t, m)
		return now != migrator.PhaseWaiting && now != migrator.PhaseStarting
	})
	const cancel = `SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name LIKE
		'heroku\_migrator%' AND datname = current_database() AND state <> 'idle'`
	source, target := p.source.ConnectAdmin(t), p.target.ConnectAdmin(t)
	for range 30 {
		execute(t, source, cancel)
		execute(t, target, cancel)
		time.Sleep(70 * time.Millisecond)
	}
	waitFor(t, "in sync", func() bool {
		s, err := m.Status(t.Context())
		return err == nil && s.Phase == migrator.PhaseReplicating
	})
	stop()
	var err error
	for range 3 {
		if _, err = m.Do(withTimeout(t, time.Minute), migrator.CommandSwitch, false); err == nil {
			break
		}
	}
	require.NoError(t, err)
	p.requireEqual(t)
}

// The target's disk is full: it waits and says why, the application goes on, and so does the migration once there is
// room.
func TestTargetRunsOutOfDisk(t *testing.T) {
	t.Parallel()
	server, err := pgtest.StartWith(t.Context(), pgtest.TargetVersion(), pgtest.Options{SmallDisk: 64 << 20})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close(context.Background())) })
	admin, err := pgx.Connect(t.Context(), server.AdminURL("postgres"))
	require.NoError(t, err)
	defer admin.Close(context.Background())
	if _, err := admin.Exec(t.Context(), `CREATE TABLESPACE small LOCATION '`+pgtest.SmallDisk+`'`); err != nil {
		t.Skipf("servers that run without Docker have no small disk: %v", err)
	}
	p := newPair(t)
	p.target = server.NewTarget(t)
	execute(t, admin, `ALTER DATABASE `+pgx.Identifier{p.target.Name}.Sanitize()+` SET TABLESPACE small`)
	p.sql(t, smallSchema...)
	m := p.migrator(t)
	stop := run(t, m)
	defer stop()
	waitFor(t, "in sync", func() bool { return phase(t, m) == migrator.PhaseReplicating })
	junk := p.target.ConnectAdmin(t)
	execute(t, junk, `CREATE TABLE public.junk (v text)`)
	for range 100 {
		if _, err = junk.Exec(t.Context(), `INSERT INTO public.junk SELECT repeat('x', 1000) FROM generate_series(1,
			2000)`); err != nil {
			break
		}
	}
	require.Equal(t, "53100", state(err))
	p.sql(t, `INSERT INTO journal (what) SELECT repeat('y', 500) FROM generate_series(1, 20000)`)
	waitFor(t, "it says why it waits", func() bool {
		s, err := m.Status(t.Context())
		return err == nil && s.Waiting != nil && strings.Contains(s.Waiting.Reason, "No space left on device")
	})
	p.sql(t, `INSERT INTO journal (what) VALUES ('the application goes on')`)
	execute(t, junk, `DROP TABLE public.junk`, `CHECKPOINT`)
	waitFor(t, "it goes on by itself", func() bool {
		return countOn(t, p.target, `SELECT count(*) FROM journal WHERE what = 'the application goes on'`) == 1
	})
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
}
