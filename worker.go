package migrator

import (
	"context"
	"errors"
	"time"
)

// CopyWorker shares the copy of a migration that another process leads: it takes chunks beside it, in the phase
// copying, and waits before and while the migration is paused. It returns when the copy is done. Any number
// of processes can do this; killing one gives its chunks back.
//
// It fails with [ErrNoMigration] if the target holds no migration.
func CopyWorker(ctx context.Context, src Source, dst Target, cfg CopyConfig) error {
	cfg.Logger = logger(cfg.Logger)
	journal := dst.Journal()
	for attempt := 1; ; attempt++ {
		s, err := journal.State(ctx)
		if err != nil && !Retryable(err) {
			return err
		}
		switch {
		case err != nil:
		case s.Phase == PhaseCopying && s.Run == StateRunning:
			began := time.Now()
			err = shareCopy(ctx, src, dst, cfg)
			if err == nil {
				return nil
			}
			if time.Since(began) > time.Minute {
				attempt = 1
			}
		case copyIsAhead(s):
			attempt = 1
		default:
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		aside := errors.As(err, new(*ApplyError)) // the process that leads meets it too, and sets the table aside
		if err != nil && !Retryable(err) && !errors.Is(err, errNotCopying) && !aside {
			return err
		}
		if err != nil && !errors.Is(err, errNotCopying) {
			cfg.Logger.WarnContext(ctx, "trying again", "error", err)
		}
		if err := sleep(ctx, backoff(attempt, time.Second, 15*time.Second)); err != nil {
			return err
		}
	}
}

// copyIsAhead tells whether the phase copying may still come, or come back.
func copyIsAhead(s *State) bool {
	phase := s.Phase
	if phase == PhaseError {
		phase = s.Resume
	}
	switch phase {
	case PhaseWaiting, PhaseStarting, PhaseConfiguring, PhaseReadyToCopy, PhaseCopying:
		return true
	case PhaseRebuildingIndexes, PhaseReplicating, PhaseSwitched, PhaseCleaningUp, PhaseCompleted, PhaseAborted,
		PhaseError:
	}
	return false
}

// errNotCopying interrupts a worker when the copy is paused, has failed or is over.
var errNotCopying = errors.New("nothing is being copied now")

// shareCopy copies chunks as long as the phase lasts.
func shareCopy(ctx context.Context, src Source, dst Target, cfg CopyConfig) error {
	if err := dst.Journal().join(ctx); err != nil {
		return err
	}
	c, err := newCopier(ctx, src, dst, cfg)
	if err != nil {
		return err
	}
	sharing, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	done := make(chan struct{})
	go watchCopy(sharing, stop, dst, done)
	err = c.run(sharing, func(ctx context.Context, share float64, reason string) {
		c.cfg.Logger.InfoContext(ctx, "throttle", "share", share, "reason", reason)
	})
	stop(nil)
	<-done
	if errors.Is(context.Cause(sharing), errNotCopying) && ctx.Err() == nil {
		return errNotCopying
	}
	return err
}

func watchCopy(ctx context.Context, stop context.CancelCauseFunc, dst Target, done chan<- struct{}) {
	defer close(done)
	for sleep(ctx, time.Second) == nil {
		s, err := dst.Journal().State(ctx)
		if errors.Is(err, ErrNoMigration) || (err == nil && (s.Phase != PhaseCopying || s.Run != StateRunning)) {
			stop(errNotCopying)
			return
		}
	}
}
