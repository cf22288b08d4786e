package migrator_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/shop"
)

// Three processes share one copy; one of them is killed again and again. Every chunk is copied once (I3).
func TestSeveralProcessesShareACopy(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.shop(t, 0.2)
	ctx := withTimeout(t, 2*time.Minute)
	writers, err := shop.StartWriters(ctx, p.source.URL, 2, shop.Options{Rate: 40, Rest: 4, KeyChanges: true, MaxHold: 200 * time.Millisecond})
	require.NoError(t, err)
	defer writers.Stop()

	workers := []*worker{p.worker(t), p.worker(t)}
	m := p.migrator(t, func(c *migrator.Config) { c.Copy.ChunkBytes, c.Copy.Workers = 64<<10, 1 })
	leading := make(chan error, 1)
	go func() { leading <- m.Run(ctx, migrator.UntilInSync) }()
	for range 3 {
		time.Sleep(time.Second)
		workers[0].kill(t)
		workers[0] = p.worker(t)
	}
	require.NoError(t, <-leading)
	require.Greater(t, count(t, p.target.Connect(t), `SELECT count(DISTINCT copied_by) FROM heroku_migrator.chunks`), int64(2))
	for _, w := range workers {
		require.NoError(t, w.cmd.Wait(), w.output.String())
	}
	do(t, m, migrator.CommandSwitch)
	p.requireEqual(t)
}
