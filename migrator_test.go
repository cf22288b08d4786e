package migrator_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/shop"
)

// The whole path, with writers that never stop: nothing that was acknowledged is lost, nothing that was
// refused arrives, and nothing of ours is left.
func TestWholePath(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.shop(t, 0.05)
	before := p.acl(t)
	ctx := withTimeout(t, 3*time.Minute)
	writers, err := shop.StartWriters(ctx, p.source.URL, 4, shop.Options{Rate: 150, Rest: 4, KeyChanges: true, Truncate: true})
	require.NoError(t, err)
	defer writers.Stop()

	m := p.migrator(t)
	require.NoError(t, m.Run(ctx, migrator.UntilInSync))
	status, err := m.Status(ctx)
	require.NoError(t, err)
	require.Equal(t, migrator.PhaseReplicating, status.Phase)
	require.Equal(t, "ready", status.CutoverReadiness.Level, status.CutoverReadiness.HardBlockers)
	require.Empty(t, status.Skipped)

	result, err := m.Do(ctx, migrator.CommandSwitch, false)
	require.NoError(t, err)
	t.Log(result.Message)
	p.requireEqual(t)
	require.Equal(t, before, p.acl(t))
	time.Sleep(500 * time.Millisecond)
	stats := writers.Stop()
	t.Log(stats)
	require.Zero(t, stats.Other, stats.OtherSample)
	require.NotZero(t, stats.Refused, "the fence")
	require.NoError(t, writers.CheckLedger(ctx, p.target.Connect(t)))
	require.Less(t, stats.LongestStatement, 2500*time.Millisecond)
	p.requireEqual(t)

	_, err = m.Do(ctx, migrator.CommandComplete, false)
	require.NoError(t, err)
	p.requireNoTrace(t)
	require.Equal(t, before, p.acl(t))
	p.requireEqual(t)
}
