package migrator

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"
)

// What the state machine does in each phase.

// step does the work of one phase and goes on to the next.
func (m *Migrator) step(ctx context.Context, s *State, until Until) error {
	if s.Run == StatePaused && s.Phase != PhaseSwitched && s.Phase != PhaseCleaningUp {
		m.log.WarnContext(ctx, "the migration is paused; resume it to go on", "phase", string(s.Phase))
		return m.idle(ctx, m.cfg.Source)
	}
	src, dst := m.cfg.Source, m.cfg.Target
	advance := func(to Phase, message string) error {
		if err := m.journal.Advance(ctx, s.Phase, to, message); err != nil {
			return err
		}
		m.log.InfoContext(ctx, "phase", "phase", string(to))
		m.publish(Event{Kind: EventPhase, Phase: to, Message: message})
		return nil
	}
	switch s.Phase {
	case PhaseStarting:
		report, err := m.Preflight(ctx)
		if err != nil {
			return err
		}
		for _, f := range report.Findings {
			if f.Severity == SeverityWarning {
				m.log.WarnContext(ctx, f.Message, "check", f.Check, "remedy", f.Remedy)
			}
		}
		if err := report.Err(); err != nil {
			// Nothing was done on either side: leave nothing there. This target may be a database in production.
			return errors.Join(err, m.journal.Drop(ctx))
		}
		return advance(PhaseConfiguring, "cloning the schema and installing capture")
	case PhaseConfiguring:
		if err := reclone(ctx, src, dst); err != nil {
			return err
		}
		if err := CloneSchema(ctx, src, dst, CloneSchemaConfig{Logger: m.log, LeaveOut: m.cfg.LeaveOut,
			dumped: m.dumped.Swap(nil)}); err != nil {
			return err
		}
		if err := src.Claim(ctx, Claim{Migration: s.ID, Epoch: s.Epoch}, true); err != nil {
			return err
		}
		if err := m.rehearse(ctx, s); err != nil { // before anything on the source waits for it
			return err
		}
		if err := Capture(ctx, src, dst, CaptureConfig{Logger: m.log, OnEvent: m.publish}); err != nil {
			return err
		}
		return advance(PhaseReadyToCopy, "every change on the source is captured")
	case PhaseReadyToCopy:
		if m.cfg.HoldBeforeCopy {
			return m.idle(ctx, m.cfg.Source) // until a command says so
		}
		return advance(PhaseCopying, "copying")
	case PhaseCopying:
		if err := m.copy(ctx); err != nil {
			return err
		}
		return advance(PhaseRebuildingIndexes, "building indexes and constraints")
	case PhaseRebuildingIndexes:
		if err := BuildIndexes(ctx, src, dst, m.indexConfig()); err != nil {
			return err
		}
		return advance(PhaseReplicating, "the target follows the source")
	case PhaseReplicating:
		if err := m.callLateHook(ctx, s); err != nil {
			return err
		}
		if until == UntilInSync {
			return m.untilInSync(ctx)
		}
		return m.alongside(ctx, s.Phase, src.ValidateConstraints, m.replicate)
	case PhaseSwitched:
		if err := m.callLateHook(ctx, s); err != nil {
			return err
		}
		validate := func(ctx context.Context) ([]string, error) { return ValidateConstraints(ctx, dst) }
		return m.alongside(ctx, s.Phase, validate, m.wayBack)
	case PhaseCleaningUp:
		if err := m.cleanUp(ctx, s.Goal); err != nil {
			return err
		}
		return errCleanedUp
	case PhaseWaiting, PhaseCompleted, PhaseAborted, PhaseError:
	}
	return fmt.Errorf("there is nothing to do in phase %s", s.Phase)
}

// idle waits until the context is done, and watches how the log grows meanwhile. A slot goes on by that, so that it
// retains little; those of others, too.
func (m *Migrator) idle(ctx context.Context, log ChangeLog, others ...ChangeLog) error {
	for {
		m.measure(ctx, log)
		for _, other := range others {
			_, _ = other.LogSize(ctx)
		}
		if err := sleep(ctx, logEvery); err != nil {
			return err
		}
	}
}

func (m *Migrator) measure(ctx context.Context, log ChangeLog) {
	bytes, err := log.LogSize(ctx)
	if err == nil {
		err = m.journal.setLog(ctx, bytes, Position{}, -1)
	}
	if err != nil && ctx.Err() == nil {
		m.log.DebugContext(ctx, "the change log could not be measured", "error", err)
	}
}

// copy copies, and builds indexes of what is copied already.
func (m *Migrator) copy(ctx context.Context) error {
	copied := make(chan struct{})
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		mending, stop := context.WithCancel(gctx)
		defer stop()
		g.Go(func() error {
			_, err := (&mender{Migrator: m, phase: PhaseCopying}).run(mending)
			if mending.Err() != nil && gctx.Err() == nil {
				return nil // the copy of the others is over
			}
			return err
		})
		err := Copy(gctx, m.cfg.Source, m.cfg.Target, m.cfg.Copy)
		if err == nil {
			close(copied)
		}
		return err
	})
	g.Go(func() error { return watchLog(gctx, m.cfg.Source, m.journal, copied) })
	g.Go(func() error {
		err := BuildIndexesMeanwhile(gctx, m.cfg.Target, copied, m.indexConfig())
		if failed := new(ObjectError); errors.As(err, &failed) { // the copy goes on; the next phase reports it
			m.log.WarnContext(ctx, "an index could not be built", "error", err)
			m.publish(Event{Kind: EventWarning, Phase: PhaseCopying, Message: err.Error()})
			return nil
		}
		return err
	})
	return g.Wait()
}

// How a step tells that Run is to end.
var (
	errCleanedUp = errors.New("everything is cleaned up")
	errInSync    = errors.New("the target is in sync")
)

func (m *Migrator) cleanUp(ctx context.Context, goal Phase) error {
	if err := Cleanup(ctx, m.cfg.Source, m.cfg.Target, CleanupConfig{Logger: m.log, OnEvent: m.publish}); err != nil {
		return err
	}
	m.log.InfoContext(ctx, "phase", "phase", string(goal))
	m.publish(Event{Kind: EventPhase, Phase: goal})
	return nil
}
