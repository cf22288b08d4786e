package migrator

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// CleanupConfig configures [Cleanup]. The zero value is good.
type CleanupConfig struct {
	Logger *slog.Logger
	// OnEvent is called for what is waited for.
	OnEvent func(Event)
}

// Cleanup removes everything of ours from the source (I8) and then from the target, the journal last. It goes
// on until that is done or the context is; interrupted and repeated, it goes on where it was. The phase
// must be cleaning_up: [Journal.SetGoal] sets it.
//
// Dropping a trigger takes an exclusive lock: each try makes others wait for less than a second, and is
// repeated with growing pauses.
func Cleanup(ctx context.Context, src Source, dst Target, cfg CleanupConfig) error {
	log := logger(cfg.Logger)
	state, err := dst.Journal().State(ctx)
	if err != nil {
		return err
	}
	if state.Phase != PhaseCleaningUp {
		return refuse("clean up", "The migration is in phase %s, not cleaning_up.", state.Phase)
	}
	restore := func(ctx context.Context) error {
		if err := src.CloseWayBack(ctx); err != nil {
			return err
		}
		return validateBeforeCleanup(ctx, src, dst, cfg)
	}
	for _, release := range []func(context.Context) error{restore, src.Release, dst.Release} {
		for attempt := 1; ; attempt++ {
			err := release(ctx)
			if err == nil {
				break
			}
			if !errors.Is(err, ErrBusy) || ctx.Err() != nil {
				return err
			}
			log.WarnContext(ctx, "waiting for a lock to clean up", "error", err)
			notify(cfg.OnEvent, Event{Kind: EventWaiting, Phase: PhaseCleaningUp, Message: err.Error()})
			if err := sleep(ctx, backoff(attempt, 500*time.Millisecond, 10*time.Second)); err != nil {
				return err
			}
		}
	}
	return dst.Journal().Drop(ctx) // and with it the phase: what follows is state.Goal
}
