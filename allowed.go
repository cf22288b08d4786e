package migrator

import (
	"context"

	"golang.org/x/sync/errgroup"
)

// Allowed tells whether a command makes sense where the migration stands, and if not, why. It goes by the phase alone: reasons against a
// switch are in [Status.CutoverReadiness]. [Migrator.Do] looks again.
func (st *Status) Allowed(name CommandName) (ok bool, reason string) {
	if st.Phase == PhaseWaiting || st.Phase == PhaseCompleted || st.Phase == PhaseAborted || (st.Phase == PhaseError && st.FailedPhase == "") {
		return false, "No migration is under way."
	}
	done, refused := (&command{name: name}).permit(&State{Phase: st.Phase, Resume: st.FailedPhase, Run: st.State, Goal: st.Goal})
	if refused != nil {
		return false, refused.Reasons[0]
	}
	return done == "", done
}

// Identify asks both databases who they are, at the same time. What could be had is returned with the error.
func (m *Migrator) Identify(ctx context.Context) (source, target Identity, err error) {
	var g errgroup.Group
	g.Go(func() (err error) {
		source, err = m.cfg.Source.Identify(ctx)
		return err
	})
	g.Go(func() (err error) {
		target, err = m.cfg.Target.Identify(ctx)
		return err
	})
	err = g.Wait()
	return source, target, err
}

// SetIndexWorkers changes [IndexConfig.Workers] for this process. It holds from the next time that the migration begins to build, which a pause
// and a resume bring about; 0 brings back what was configured.
func (m *Migrator) SetIndexWorkers(n int) { m.indexWorkers.Store(int64(n)) }

func (m *Migrator) indexConfig() IndexConfig {
	cfg := m.cfg.Indexes
	if n := m.indexWorkers.Load(); n > 0 {
		cfg.Workers = int(n)
	}
	return cfg
}
