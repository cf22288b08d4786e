package migrator

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Which commands make sense where: the same that the leader permits.
func TestAllowed(t *testing.T) {
	t.Parallel()
	all := []CommandName{CommandCopy, CommandVerify, CommandPause, CommandResume, CommandSwitch, CommandRevert, CommandComplete, CommandAbort}
	for _, c := range []struct {
		name   string
		status Status
		want   []CommandName
	}{
		{"none", Status{Phase: PhaseWaiting}, nil},
		{"completed", Status{Phase: PhaseCompleted}, nil},
		{"aborted", Status{Phase: PhaseAborted}, nil},
		{"refused by preflight", Status{Phase: PhaseError}, nil},
		{"ready", Status{Phase: PhaseReadyToCopy, State: StateRunning}, []CommandName{CommandCopy, CommandPause, CommandAbort}},
		{"copying", Status{Phase: PhaseCopying, State: StateRunning}, []CommandName{CommandPause, CommandAbort}},
		{"paused", Status{Phase: PhaseCopying, State: StatePaused}, []CommandName{CommandResume, CommandAbort}},
		{"in sync", Status{Phase: PhaseReplicating, State: StateRunning}, []CommandName{CommandVerify, CommandPause, CommandSwitch, CommandAbort}},
		{"in sync, paused", Status{Phase: PhaseReplicating, State: StatePaused}, []CommandName{CommandResume, CommandAbort}},
		{"switched", Status{Phase: PhaseSwitched, State: StateRunning}, []CommandName{CommandRevert, CommandComplete}},
		{"failed after the switch", Status{Phase: PhaseError, FailedPhase: PhaseSwitched, State: StateRunning}, []CommandName{CommandRevert, CommandComplete}},
		{"failed in the copy", Status{Phase: PhaseError, FailedPhase: PhaseCopying, State: StateRunning}, []CommandName{CommandPause, CommandAbort}},
		{"being completed", Status{Phase: PhaseCleaningUp, Goal: PhaseCompleted, State: StateRunning}, []CommandName{CommandComplete}},
		{"being aborted", Status{Phase: PhaseCleaningUp, Goal: PhaseAborted, State: StateRunning}, []CommandName{CommandAbort}},
	} {
		var got []CommandName
		for _, name := range all {
			ok, reason := c.status.Allowed(name)
			require.Equal(t, ok, reason == "", "%s: %s: a reason says why not", c.name, name)
			if ok {
				got = append(got, name)
			}
		}
		require.ElementsMatch(t, c.want, got, c.name)
	}
}

func TestSetIndexWorkers(t *testing.T) {
	t.Parallel()
	m := &Migrator{cfg: Config{Indexes: IndexConfig{Workers: 3}}}
	require.Equal(t, 3, m.indexConfig().Workers)
	m.SetIndexWorkers(7)
	require.Equal(t, 7, m.indexConfig().Workers)
	m.SetIndexWorkers(0)
	require.Equal(t, 3, m.indexConfig().Workers)
}
