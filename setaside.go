package migrator

import (
	"context"
	"errors"
	"time"
)

// How a table is set aside on the way to the target, while it is copied or in a round.

// isAside tells whether a step failed for the rows of one table, which can be set aside.
func isAside(s *State, err error) bool {
	if err == nil || Retryable(err) || !errors.As(err, new(*ApplyError)) {
		return false
	}
	switch s.Phase { //nolint:exhaustive // in all others no rows are on their way to the target
	case PhaseCopying, PhaseRebuildingIndexes, PhaseReplicating:
		return true
	}
	return false
}

// setAside sets the table aside that a step failed at. All others go on with the next one. The row is looked for
// later: that takes time.
func (m *Migrator) setAside(ctx context.Context, s *State, cause error) error {
	e := new(ApplyError)
	if !errors.As(cause, &e) {
		return cause
	}
	a := newAside(e, directionForward)
	if err := m.journal.setAside(ctx, a); err != nil {
		return err
	}
	a.Value = ""
	return m.tellAside(ctx, s.Phase, a.String()+". All other tables go on")
}

func (m *Migrator) tellAside(ctx context.Context, phase Phase, message string) error {
	m.log.WarnContext(ctx, message, "phase", string(phase))
	m.publish(Event{Kind: EventWarning, Phase: phase, Message: message})
	return m.journal.Record(ctx, Event{Kind: EventWarning, Message: message})
}

// mendPause is how long a table that is set aside waits before the reason is looked at again.
func (a *aside) mendPause() time.Duration {
	const first, most = 2 * time.Second, 5 * time.Minute
	return min(first<<min(a.looked+a.attempts, 16), most)
}

// ClearLog implements [Source].
func (h *Heroku) ClearLog(ctx context.Context, t *Table) error { return clearLog(ctx, h.change, t) }
