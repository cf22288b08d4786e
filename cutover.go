package migrator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// CutoverConfig configures [Cutover] and [Revert]. The zero value is good.
type CutoverConfig struct {
	// CatchUp is how long to do rounds before the fence until the target is less than two seconds behind.
	// Default: 2 minutes.
	CatchUp time.Duration
	// FenceTimeout is how long to try to get the fence up while transactions are in the way. Each try refuses
	// writes for three seconds at most. Default: 60 s.
	FenceTimeout time.Duration
	// DrainTimeout is how long the last rounds may take behind the fence. After it, the fence is lifted
	// and nothing has happened. Twice the time that comparing the large objects took before is added. Default: 60 s.
	DrainTimeout time.Duration
	// Force switches in spite of reasons that can be overridden; reverts in spite of rows written on the target.
	Force  bool
	Logger *slog.Logger
	// OnEvent is called for what is waited for.
	OnEvent func(Event)
}

func (c CutoverConfig) withDefaults() CutoverConfig {
	if c.CatchUp <= 0 {
		c.CatchUp = 2 * time.Minute
	}
	if c.FenceTimeout <= 0 {
		c.FenceTimeout = time.Minute
	}
	if c.DrainTimeout <= 0 {
		c.DrainTimeout = time.Minute
	}
	c.Logger = logger(c.Logger)
	return c
}

// SwitchReport is what a switch did.
type SwitchReport struct {
	At time.Time `json:"at"`
	// WithoutWrites is how long nobody could write: from just before the fence was closed until the target was
	// complete.
	WithoutWrites time.Duration `json:"without_writes_ns"`
	FenceAttempts int           `json:"fence_attempts"`
	Fence         time.Duration `json:"fence_ns"`
	Drain         time.Duration `json:"drain_ns"`
	Finish        time.Duration `json:"finish_ns"`
	RowsDrained   int64         `json:"rows_drained"`
	Sequences     int           `json:"sequences"`
	LargeObjects  int64         `json:"large_objects,omitempty"`
}

func (r SwitchReport) encode() (string, error) {
	b, err := json.Marshal(r)
	return string(b), err
}

// Readiness tells what stands in the way of a switch. Reasons in hard cannot be overridden.
func Readiness(ctx context.Context, src Source, dst Target) (hard, soft []string, err error) {
	state, err := dst.Journal().State(ctx)
	if err != nil {
		return nil, nil, err
	}
	if state.Phase != PhaseReplicating {
		return []string{fmt.Sprintf("The migration is in phase %s: the switch comes after the copy, in phase replicating.", state.Phase)}, nil, nil
	}
	tables, err := dst.Journal().Tables(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, t := range tables {
		if t.State != TableLive {
			hard = append(hard, fmt.Sprintf("Table %s is not complete yet (%s).", t.Table, t.State))
		}
	}
	cat, err := src.Catalog(ctx)
	if err != nil {
		return nil, nil, err
	}
	return append(hard, findDrift(cat, tables)...), nil, nil
}

// Cutover makes the target take over: the fence goes up on the source (I5), the last changes are carried
// over, sequences are set, and the phase becomes switched. From then on the application may write to the
// target.
//
// If anything fails before, or the context is done, the fence is lifted, the phase stays replicating and
// the error says why: a [*RefusedError] if a precondition does not hold or transactions were in the way.
func Cutover(ctx context.Context, src Source, dst Target, cfg CutoverConfig) (*SwitchReport, error) {
	cfg = cfg.withDefaults()
	hard, soft, err := Readiness(ctx, src, dst)
	if err == nil && len(hard) == 0 {
		hard, soft, err = schemaDrift(ctx, src, dst)
	}
	if err != nil {
		return nil, err
	}
	if len(hard) > 0 || (len(soft) > 0 && !cfg.Force) {
		return nil, &RefusedError{Action: "switch", Reasons: append(hard, soft...), CanForce: len(hard) == 0}
	}
	r, err := newReplicator(ctx, src, dst, ReplicateConfig{Logger: cfg.Logger, OnEvent: cfg.OnEvent, TrimGrace: time.Hour})
	if err != nil {
		return nil, err
	}
	if err := catchUpBefore(ctx, r, cfg); err != nil {
		return nil, err
	}
	if err := refreshViews(ctx, dst, cfg); err != nil {
		return nil, err
	}
	large, err := prepareLargeObjects(ctx, src, dst, cfg)
	if err != nil {
		return nil, err
	}
	cfg.DrainTimeout += 2 * large.Comparing
	if err := dst.PrepareSwitch(ctx, r.live, src.Touch); err != nil {
		return nil, err
	}
	if err := settleDrift(ctx, src, dst); err != nil {
		return nil, err
	}
	if err := catchUpBefore(ctx, r, cfg); err != nil { // rounds stood still meanwhile
		return nil, err
	}
	if err := dst.Journal().SetPending(ctx, CommandSwitch); err != nil {
		return nil, err
	}
	report, err := switchOver(ctx, src, dst, r, cfg)
	if err == nil {
		return report, nil
	}
	return settle(ctx, src, dst, err)
}

// settle finds out what became of a switch that returned an error, and takes it back if it did not happen. The
// commit may have happened although its answer was lost.
func settle(ctx context.Context, src Source, dst Target, cause error) (*SwitchReport, error) {
	patience := time.Minute
	if ctx.Err() != nil {
		patience = 12 * time.Second // this process is about to end
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	for attempt := 1; ; attempt++ {
		err := Recover(undo, src, dst)
		if err == nil {
			var state *State
			if state, err = dst.Journal().State(undo); err == nil && state.Phase == PhaseSwitched {
				return state.Report, nil
			}
		}
		if err == nil || errors.Is(err, ErrLostLead) { // or the process that leads now settles it
			return nil, cause
		}
		if waitErr := sleep(undo, backoff(attempt, 200*time.Millisecond, 5*time.Second)); waitErr != nil {
			return nil, fmt.Errorf("%w; the fence on the source could not be lifted: run any command again, which tries that first: %w", cause, err)
		}
	}
}

func catchUpBefore(ctx context.Context, r *replicator, cfg CutoverConfig) error {
	limited, cancel := context.WithTimeout(ctx, cfg.CatchUp)
	defer cancel()
	err := r.catchUp(limited, 2*time.Second)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return refuse("switch", "The target did not catch up within %s: wait until the lag is small, or stop some of the writes.", cfg.CatchUp)
	}
	return err
}

// refreshViews brings materialised views up to date, while the application still writes.
func refreshViews(ctx context.Context, dst Target, cfg CutoverConfig) error {
	objects, err := dst.Journal().Objects(ctx)
	if err != nil {
		return err
	}
	var views []SchemaObject
	for _, o := range objects {
		if o.Type == typeViewData {
			o.State = ObjectPending
			views = append(views, o)
		}
	}
	return createObjects(ctx, dst, cfg.Logger, views, StageFinish)
}

func switchOver(ctx context.Context, src Source, dst Target, r *replicator, cfg CutoverConfig) (*SwitchReport, error) {
	report := &SwitchReport{}
	cat, err := src.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	began, err := raiseFence(ctx, src, r, slices.Concat(r.live, cat.Columnless), cfg, report)
	if err != nil {
		return nil, err
	}
	report.Fence = time.Since(began)
	if err := settleDrift(ctx, src, dst); err != nil { // what came since it was looked for before
		return nil, err
	}
	drain, cancel := context.WithTimeout(ctx, cfg.DrainTimeout)
	defer cancel()
	final := Final{Tables: r.live}
	fail := func(err error) (*SwitchReport, error) {
		if drain.Err() != nil && ctx.Err() == nil {
			return nil, refuse("switch", "The last changes could not be carried over within %s; the fence was lifted and nothing has happened. Try again when the lag is small.", cfg.DrainTimeout)
		}
		return nil, err
	}
	for {
		stats, err := r.round(drain)
		if err != nil {
			return fail(err)
		}
		report.RowsDrained += stats.rows
		if stats.rows == 0 {
			break
		}
	}
	large, err := finishLargeObjects(drain, src, dst)
	if err != nil {
		return fail(err)
	}
	report.LargeObjects = large.Objects
	report.Drain = time.Since(began) - report.Fence
	snap, err := src.Snapshot(drain)
	if err != nil {
		return fail(err)
	}
	defer closeSnapshot(ctx, snap)
	if final.Sequences, err = snap.Sequences(drain); err != nil {
		return fail(err)
	}
	final.Snapshot = snap
	if final.Extensions, err = snap.ExtensionTables(drain); err != nil {
		return fail(err)
	}
	objects, err := dst.Journal().Objects(drain)
	if err != nil {
		return fail(err)
	}
	for _, o := range objects {
		if o.Stage == StageSwitch && o.State == ObjectPending {
			final.Objects = append(final.Objects, o)
		}
	}
	report.Sequences = len(final.Sequences)
	report.At = time.Now()
	report.Finish = report.At.Sub(began) - report.Fence - report.Drain
	report.WithoutWrites = report.At.Sub(began)
	final.Report = *report
	if err := dst.Switch(drain, final); err != nil {
		return fail(err)
	}
	report.WithoutWrites = time.Since(began)
	report.Finish = report.WithoutWrites - report.Fence - report.Drain
	return report, dst.Journal().SetReport(ctx, *report)
}

// raiseFence tries until the fence is up. It returns the moment at which the try that succeeded began.
func raiseFence(ctx context.Context, src Source, r *replicator, tables []*Table, cfg CutoverConfig, report *SwitchReport) (time.Time, error) {
	deadline := time.Now().Add(cfg.FenceTimeout)
	for {
		report.FenceAttempts++
		err := src.PrepareFence(ctx, tables)
		began := time.Now()
		if err == nil {
			err = src.Fence(ctx, tables)
		}
		if err == nil || !errors.Is(err, ErrBusy) || ctx.Err() != nil {
			return began, err
		}
		cfg.Logger.WarnContext(ctx, "transactions are in the way of the fence", "attempt", report.FenceAttempts, "error", err)
		notify(cfg.OnEvent, Event{Kind: EventWaiting, Phase: PhaseReplicating, Message: err.Error()})
		pause := backoff(report.FenceAttempts, 500*time.Millisecond, 4*time.Second)
		if time.Now().Add(pause).After(deadline) {
			return began, refuse("switch", "Transactions on the source were in the way for %s, the last time: %v. End them (SELECT pg_terminate_backend(pid)), or try again at a quieter time; nothing has happened.", cfg.FenceTimeout, err)
		}
		if err := sleep(ctx, pause); err != nil {
			return began, err
		}
		if _, err := r.round(ctx); err != nil {
			return began, err
		}
	}
}

// Revert goes back to the source: it takes writes again, exactly as before, and the target follows it
// once more. Rows that were written on the target since the switch stay behind: if there are any, the
// call is refused unless cfg.Force is set, and these rows are brought back to the source's state.
func Revert(ctx context.Context, src Source, dst Target, cfg CutoverConfig) error {
	state, err := dst.Journal().State(ctx)
	if err != nil {
		return err
	}
	if state.Phase != PhaseSwitched {
		return refuse("revert", "The migration is in phase %s: there is no switch to revert.", state.Phase)
	}
	statuses, err := dst.Journal().Tables(ctx)
	if err != nil {
		return err
	}
	tables := make([]*Table, len(statuses))
	for i, s := range statuses {
		tables[i] = s.Table
	}
	if !cfg.Force {
		if err := largeObjectsBlockRevert(ctx, src, dst); err != nil {
			return err
		}
	}
	if err := dst.Journal().SetPending(ctx, CommandRevert); err != nil {
		return err
	}
	revertErr := dst.Revert(ctx, tables, cfg.Force, src.Touch)
	finish, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	if err := Recover(finish, src, dst); err != nil {
		return errors.Join(revertErr, err)
	}
	if state, err := dst.Journal().State(finish); err == nil && state.Phase == PhaseReplicating {
		return nil
	}
	return revertErr
}

// Recover finishes or undoes a switch or a revert that was interrupted: in phase replicating the source
// takes writes, in phase switched it does not. The process that has just taken the lead calls it first.
func Recover(ctx context.Context, src Source, dst Target) error {
	return dst.Journal().settle(ctx, func(phase Phase) error {
		if phase == PhaseSwitched {
			return nil
		}
		return src.Unfence(ctx)
	})
}
