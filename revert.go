package migrator

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Revert goes back to the source: everything that was written on the target since the switch is brought there, nobody
// may write to the target any more, the source takes writes again exactly as before, and the target follows it once
// more. If anything fails before that is committed, or the context is done, the target takes writes as before and the
// phase stays switched.
//
// What cannot be brought back (the way back is disabled, or the target's schema has changed) makes it fail with a
// [*RefusedError]. With cfg.Force it goes back all the same: these rows stay behind, and the target is brought to the
// source's state.
func Revert(ctx context.Context, src Source, dst Target, cfg CutoverConfig) (*SwitchReport, error) {
	cfg = cfg.withDefaults()
	state, err := dst.Journal().State(ctx)
	if err != nil {
		return nil, err
	}
	if state.Phase != PhaseSwitched {
		return nil, refuse("revert", "The migration is in phase %s: there is no switch to revert.", state.Phase)
	}
	statuses, err := dst.Journal().Tables(ctx)
	if err != nil {
		return nil, err
	}
	tables := make([]*Table, len(statuses))
	for i, s := range statuses {
		tables[i] = s.Table
	}
	report := &SwitchReport{}
	if cfg.WayBack.Disabled {
		err := goBack(ctx, src, dst, tables, cfg, report, time.Now())
		if errors.Is(err, errAddedLate) {
			e := refuse("revert", "The target's schema was changed since the switch, and the way back is off. Force the "+
				"revert to go back without the change.")
			e.CanForce = true
			return report, e
		}
		return report, err
	}
	for attempt := 1; ; attempt++ {
		var began time.Time
		var w *wayBack
		if began, w, err = bringBack(ctx, src, dst, cfg, report); err != nil {
			break
		}
		without := cfg
		without.Force = cfg.Force && len(w.held) > 0 // nothing else may have stayed behind
		err = goBack(ctx, src, dst, w.all, without, report, began)
		if !errors.Is(err, errAddedLate) || attempt == 5 {
			return report, err
		}
	}
	if recoverErr := recoverSoon(ctx, src, dst); recoverErr != nil {
		return nil, fmt.Errorf("%w; the fence on the target could not be lifted: run any command again, which tries "+
			"that first: %w", err, recoverErr)
	}
	switch refused := new(RefusedError); {
	case ctx.Err() != nil || Retryable(err):
		return nil, err
	case cfg.Force:
		cfg.Logger.WarnContext(ctx, "what was written on the target cannot be brought back; going back without it, "+
			"as was asked for", "error", err)
		return report, goBack(ctx, src, dst, tables, cfg, report, time.Now())
	case errors.As(err, &refused) && refused.Action == "revert":
		return nil, err
	default:
		e := refuse("revert", "What was written on the target since the switch cannot be brought back to the source: "+
			"%v Force the revert to go back without it; the target then follows the source again.", err)
		e.CanForce = true
		return nil, e
	}
}

// bringBack raises the fence on the target, brings everything to the source, and makes the source as it was. It returns
// the moment since which nobody could write.
func bringBack(
	ctx context.Context, src Source, dst Target, cfg CutoverConfig, report *SwitchReport,
) (began time.Time, w *wayBack, err error) {
	limited, cancel := context.WithTimeout(ctx, cfg.FenceTimeout)
	defer cancel()
	way := cfg.WayBack
	err = patiently(limited, func(ctx context.Context) error {
		w, err = openWayBack(ctx, src, dst, way)
		return err
	})
	if err != nil {
		return began, w, err
	}
	watch := watchSequences(ctx, dst)
	if err := catchUpBefore(ctx, w.catchUp, "revert", cfg); err != nil {
		return began, w, err
	}
	if err := w.refuseHeld(cfg.Force); err != nil {
		return began, w, err
	}
	if err := w.asideRefusal(); err != nil {
		return began, w, err
	}
	large, err := prepareLargeObjects(ctx, src.ReturnLargeObjects, dst, cfg)
	if err != nil {
		return began, w, err
	}
	w.trimmer.grace = time.Hour // behind the fence, every moment counts
	if err := dst.Journal().SetPending(ctx, CommandRevert); err != nil {
		return began, w, err
	}
	if began, err = raiseFence(ctx, "revert", dst, w.all, cfg, report, w.round); err != nil {
		return began, w, err
	}
	report.Fence = time.Since(began)
	drain, cancelDrain := context.WithTimeout(ctx, cfg.DrainTimeout+2*large.Comparing)
	defer cancelDrain()
	if err := w.finish(drain, watch, cfg, report); err != nil {
		if drain.Err() != nil && ctx.Err() == nil {
			return began, w, refuse("revert", "The last changes could not be brought back within %s; the fence was "+
				"lifted and nothing has happened. Try again when the lag is small. (%v)", cfg.DrainTimeout, err)
		}
		return began, w, err
	}
	report.Drain = time.Since(began) - report.Fence
	return began, w, nil
}

// refuseHeld names the tables whose rows would stay behind.
func (w *wayBack) refuseHeld(force bool) error {
	if len(w.held) == 0 || force {
		return nil
	}
	e := &RefusedError{Action: "revert", CanForce: true}
	for _, t := range w.held {
		e.Reasons = append(e.Reasons, fmt.Sprintf("Rows of %s cannot be brought back to the source: %s. "+
			"Or force the revert, which goes back without what was written there since.", t.Table, t.Reason))
	}
	return e
}

// catchUp does rounds until one begins and ends within the lag given.
func (w *wayBack) catchUp(ctx context.Context, lag time.Duration) error {
	return w.run(ctx, func(s roundStats) bool { return s.rows == 0 || s.took <= lag })
}

// finish brings the rest back, behind the target's fence.
func (w *wayBack) finish(ctx context.Context, watch sequenceWatch, cfg CutoverConfig, report *SwitchReport) error {
	if err := w.dst.ResendRewritten(ctx, w.tables); err != nil {
		return err
	}
	for late := false; ; {
		stats, err := w.round(ctx)
		if err != nil {
			return err
		}
		report.RowsDrained += stats.rows
		if err := w.asideRefusal(); err != nil {
			return err
		}
		if stats.rows > 0 {
			continue
		}
		if late || !w.again {
			break
		}
		late = true // all rows are there now that constraints may have had to wait for
		if err := w.followTarget(ctx); err != nil {
			return err
		}
	}
	if err := w.refuseHeld(cfg.Force); err != nil {
		return err
	}
	large, err := finishLargeObjects(ctx, w.src.ReturnLargeObjects, w.dst)
	if err != nil {
		return err
	}
	report.LargeObjects = large.Objects
	snap, err := w.dst.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer closeSnapshot(ctx, snap)
	sequences, err := snap.Sequences(ctx)
	if err != nil {
		return err
	}
	report.Sequences, report.SequenceMargin = len(sequences), watch.margins(sequences, cfg.SequenceMargin)
	if err := w.src.SetSequences(ctx, sequences); err != nil {
		return err
	}
	if !w.position.IsZero() { // everything in the log is on the source
		if err := w.dst.Trim(ctx, w.tables, w.position); err != nil {
			return err
		}
	}
	return patiently(ctx, w.src.CloseWayBack)
}

// patiently repeats what may fail because of locks, until the context is done.
func patiently(ctx context.Context, do func(context.Context) error) error {
	for attempt := 1; ; attempt++ {
		err := do(ctx)
		if !errors.Is(err, ErrBusy) {
			return err
		}
		if waitErr := sleep(ctx, backoff(attempt, 100*time.Millisecond, time.Second)); waitErr != nil {
			return fmt.Errorf("%w; %w", err, waitErr)
		}
	}
}

// goBack makes the source the one that takes writes. Rows that are on the target alone are named, or handed over to be
// undone.
func goBack(ctx context.Context, src Source, dst Target, tables []*Table, cfg CutoverConfig, report *SwitchReport,
	began time.Time) error {
	if cfg.WayBack.Disabled && !cfg.Force {
		if err := largeObjectsBlockRevert(ctx, src, dst); err != nil {
			return err
		}
	}
	if err := dst.Journal().SetPending(ctx, CommandRevert); err != nil {
		return err
	}
	revertErr := dst.Revert(ctx, tables, cfg.Force, src.Touch)
	if err := recoverSoon(ctx, src, dst); err != nil {
		return errors.Join(revertErr, err)
	}
	finish, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	state, err := dst.Journal().State(finish)
	if err != nil || state.Phase != PhaseReplicating {
		return errors.Join(revertErr, err)
	}
	report.At, report.WithoutWrites = time.Now(), time.Since(began)
	report.Finish = report.WithoutWrites - report.Fence - report.Drain
	if err := dst.Journal().forgetReverse(finish); err != nil {
		return err
	}
	return dst.Journal().setRevertReport(finish, *report)
}

// recoverSoon is Recover, also when the context is done: this process may be about to end.
func recoverSoon(ctx context.Context, src Source, dst Target) error {
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	for attempt := 1; ; attempt++ {
		err := Recover(undo, src, dst)
		if err == nil || errors.Is(err, ErrLostLead) { // the process that leads now does it
			return nil
		}
		if sleep(undo, backoff(attempt, 200*time.Millisecond, 5*time.Second)) != nil {
			return err
		}
	}
}

// Recover finishes or undoes a switch or a revert that was interrupted: in phase replicating the source
// takes writes, and has everything that was there before the way back was opened; in phase switched the target
// takes them. The process that has just taken the lead calls it first.
func Recover(ctx context.Context, src Source, dst Target) error {
	err := dst.Journal().settle(ctx, func(phase Phase) error {
		if phase == PhaseSwitched {
			return dst.Unfence(ctx)
		}
		if err := src.CloseWayBack(ctx); err != nil {
			return err
		}
		return src.Unfence(ctx)
	})
	if err != nil {
		return err
	}
	return dst.ForgetWrites(ctx)
}
