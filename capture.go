package migrator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// CaptureConfig configures [Capture]. The zero value is good.
type CaptureConfig struct {
	Logger *slog.Logger
	// OnEvent is called when a table is captured, and when a transaction is in the way.
	OnEvent func(Event)
}

// Capture records the source's tables in the journal and installs capture on each (I1). A table that a
// transaction holds is tried again later, with growing pauses, while others go on; each try makes
// writers wait for less than a second. It returns when every table is captured, or the context is done. It fails if a table
// is not any more what the journal says (dropped, say): call [FollowSchema], and Capture again.
func Capture(ctx context.Context, src Source, dst Target, cfg CaptureConfig) error {
	log := logger(cfg.Logger)
	journal := dst.Journal()
	tables, err := journal.Tables(ctx)
	if err != nil {
		return err
	}
	if len(tables) == 0 {
		cat, err := src.Catalog(ctx)
		if err != nil {
			return err
		}
		if err := journal.AddTables(ctx, cat.Tables); err != nil {
			return err
		}
		if err := journal.setSchema(ctx, cat.Fingerprint); err != nil {
			return err
		}
		if tables, err = journal.Tables(ctx); err != nil {
			return err
		}
	}
	if err := sameServer(ctx, src, journal); err != nil {
		return err
	}
	var todo []*Table
	for _, t := range tables {
		if !t.Captured {
			todo = append(todo, t.Table)
		}
	}
	for attempt := 1; len(todo) > 0; attempt++ {
		var mu sync.Mutex
		var busy []*Table
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(capturesAtOnce)
		for _, t := range todo {
			g.Go(func() error {
				err := src.Capture(gctx, t)
				if errors.Is(err, ErrBusy) && gctx.Err() == nil {
					mu.Lock()
					busy = append(busy, t)
					mu.Unlock()
					message := fmt.Sprintf("waiting for a lock to capture %s: %v", t, err)
					log.WarnContext(gctx, message, "attempt", attempt)
					notify(cfg.OnEvent, Event{Kind: EventWaiting, Phase: PhaseConfiguring, Table: t, Message: message})
					return journal.SetMessage(gctx, message)
				}
				if err != nil {
					return err
				}
				log.DebugContext(gctx, "capture installed", "table", t.String())
				notify(cfg.OnEvent, Event{Kind: EventTable, Phase: PhaseConfiguring, Table: t, Message: t.String() + ": changes are captured"})
				return journal.MarkCaptured(gctx, t)
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		todo = busy
		if len(todo) > 0 {
			if err := sleep(ctx, backoff(attempt, time.Second, 10*time.Second)); err != nil {
				return err
			}
		}
	}
	return nil
}

// capturesAtOnce is for sources that are far away. Each capture is a transaction that locks one table, so they are not
// in each other's way, nor do they make a cycle with the application's.
const capturesAtOnce = 4

// sameServer makes sure that the source is the server on which capture was begun: on another, transactions
// and their log entries may be missing. The first time, it notes which one that is.
func sameServer(ctx context.Context, src Source, journal *Journal) error {
	state, err := journal.State(ctx)
	if err != nil {
		return err
	}
	snap, err := src.Snapshot(ctx)
	if err != nil {
		return err
	}
	now := snap.Position()
	closeSnapshot(ctx, snap)
	switch {
	case state.Captured.IsZero():
		return journal.SetCaptured(ctx, now)
	case !state.Captured.SameServer(now):
		return ErrFailedOver
	}
	return nil
}

// backoff is how long to wait after the given number of failures: doubling, at most most, with jitter.
func backoff(attempt int, first, most time.Duration) time.Duration {
	d := min(first<<min(attempt-1, 16), most)
	return d/2 + rand.N(d/2+1) //nolint:gosec // jitter, not a secret
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
