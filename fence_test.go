package migrator_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

// I5: after the switch nobody may write to the source, whatever becomes of an attempt to open the way back.
func TestWayBackThatCannotBeginLeavesTheFenceUp(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.sql(t, smallSchema...)
	m := inSync(t, p)
	do(t, m, migrator.CommandSwitch)
	refused := func() {
		t.Helper()
		_, err := p.source.Connect(t).Exec(t.Context(), `INSERT INTO children (parent, n) VALUES (7, 1)`)
		require.ErrorContains(t, err, "permission denied")
	}
	refused()
	reader := begin(t, p.source, `LOCK TABLE children IN ROW EXCLUSIVE MODE`) // as somebody who reads large objects holds it
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx, "") }()
	waitFor(t, "the way back waits", func() bool {
		s, err := m.Status(t.Context())
		require.NoError(t, err)
		return s.WayBack != nil && s.WayBack.Error != ""
	})
	refused()
	stop()
	require.ErrorIs(t, <-ended, context.Canceled)
	refused()
	commit(t, reader)
	ctx, stop = context.WithCancel(t.Context())
	reader = begin(t, p.source, `LOCK TABLE children IN ROW EXCLUSIVE MODE`)
	go func() { ended <- m.Run(ctx, "") }()
	time.Sleep(1500 * time.Millisecond) // it waits for the transaction now
	stop()
	require.ErrorIs(t, <-ended, context.Canceled)
	refused()
	commit(t, reader)
	execute(t, p.target.Connect(t), `INSERT INTO children (parent, n) VALUES (7, 1)`)
	do(t, m, migrator.CommandRevert)
	p.requireEqual(t)
	p.sql(t, `INSERT INTO children (parent, n) VALUES (7, 1)`)
}
