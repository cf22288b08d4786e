package migrator_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

// Everything that is to be known before a switch is told with a code, as it stands now; what a switch waits for itself need not be forced.
func TestReadiness(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, smallSchema...)
	lagLimit := time.Hour
	m := p.migrator(t, func(c *migrator.Config) {
		c.Cutover.DrainTime, c.Cutover.LagLimit = 500*time.Millisecond, lagLimit
		c.SchemaChanges = migrator.SchemaFail
	})
	ready := func(m *migrator.Migrator, level string, codes ...migrator.BlockerCode) migrator.ReadinessStatus {
		t.Helper()
		s, err := m.Status(t.Context())
		require.NoError(t, err)
		r := s.CutoverReadiness
		require.Equal(t, level, r.Level, r)
		var found []migrator.BlockerCode
		for _, b := range r.Blockers {
			found = append(found, b.Code)
			require.Contains(t, map[string][]string{"hard": r.HardBlockers, "soft": r.SoftBlockers, "note": r.Notes}[b.Level], b.Reason)
		}
		require.Equal(t, codes, found)
		require.Len(t, r.Blockers, len(r.HardBlockers)+len(r.SoftBlockers)+len(r.Notes))
		require.Equal(t, level == "ready" || level == "warning", r.CanForce)
		return r
	}
	ready(m, "not_ready")
	require.NoError(t, m.Run(withTimeout(t, time.Minute), migrator.UntilInSync))
	ready(m, "ready", migrator.BlockerNoVerification)
	do(t, m, migrator.CommandVerify)
	ready(m, "ready")

	holder := p.source.Connect(t)
	execute(t, holder, `BEGIN`, `UPDATE children SET n = 1 WHERE id = 1`)
	require.Eventually(t, func() bool {
		s, err := m.Status(t.Context())
		return err == nil && s.CutoverReadiness.Level == "warning"
	}, 20*time.Second, 50*time.Millisecond)
	r := ready(m, "warning", migrator.BlockerLongTransactions)
	require.Contains(t, r.SoftBlockers[0], "pid ")
	execute(t, holder, `COMMIT`)
	ready(m, "ready")

	hasty := p.migrator(t, func(c *migrator.Config) { c.Cutover.LagLimit = time.Millisecond })
	r = ready(hasty, "warning", migrator.BlockerLag) // no process runs
	require.True(t, r.Blockers[0].Waits)

	do(t, m, migrator.CommandPause)
	ready(m, "blocked", migrator.BlockerPaused)
	do(t, m, migrator.CommandResume)

	execute(t, p.target.Connect(t), `SET heroku_migrator.pass = 'on'`, `UPDATE children SET n = n + 1 WHERE id = 2`)
	_, err := m.Do(t.Context(), migrator.CommandVerify, false)
	require.ErrorContains(t, err, "public.children")
	ready(m, "blocked", migrator.BlockerVerification)
	_, err = m.Do(t.Context(), migrator.CommandSwitch, true)
	refused := new(migrator.RefusedError)
	require.ErrorAs(t, err, &refused)
	require.False(t, refused.CanForce)
	_, err = m.Do(t.Context(), migrator.CommandVerify, true)
	require.NoError(t, err)
	do(t, m, migrator.CommandVerify)
	ready(m, "ready")

	p.sql(t, `CREATE TABLE late (id int PRIMARY KEY)`)
	require.Eventually(t, func() bool { // a status may know the catalog from a moment ago
		s, err := m.Status(t.Context())
		return err == nil && s.CutoverReadiness.Level == "blocked"
	}, 20*time.Second, 50*time.Millisecond)
	ready(m, "blocked", migrator.BlockerDrift)
	p.sql(t, `DROP TABLE late`)
	require.Eventually(t, func() bool {
		s, err := m.Status(t.Context())
		return err == nil && s.CutoverReadiness.Level == "ready"
	}, 20*time.Second, 50*time.Millisecond)
	execute(t, p.target.Connect(t), `UPDATE heroku_migrator.objects SET state = 'failed' WHERE id = (SELECT max(id) FROM heroku_migrator.objects WHERE stage = 'indexes')`)
	ready(m, "warning", migrator.BlockerObjectFailed)
	_, err = m.Do(t.Context(), migrator.CommandSwitch, false)
	require.ErrorAs(t, err, &refused)
	require.True(t, refused.CanForce)
	execute(t, p.target.Connect(t), `UPDATE heroku_migrator.objects SET state = 'done' WHERE state = 'failed'`)
	do(t, hasty, migrator.CommandSwitch) // it catches up, and was not forced
	ready(m, "not_ready")
}
