package migrator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
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
	// DrainTime is how long one attempt to raise the fence refuses writes while it waits for transactions that have
	// written. Default: 3 s.
	DrainTime time.Duration
	// LagLimit is how far the target may be behind before readiness calls it a reason to wait. Default: 30 s.
	LagLimit time.Duration
	// Writers says what is done about transactions that are still open then. Default: [WritersWait].
	Writers WriterPolicy
	// SequenceMargin is by how many steps sequences are set beyond where they are on the side that is left, where a
	// client may still draw numbers. 0: what ten minutes take at the rate seen before, and 1,000 at least; never more
	// than a tenth of the numbers left; none for a sequence that was never used. Negative: none.
	SequenceMargin int64
	// Hook is the caller's part. HookTimeout is how long each call may take; before_switch's time is time without
	// writes. Default: 5 minutes.
	Hook        Hook
	HookTimeout time.Duration
	// WayBack is how what was written on the target comes back in a revert.
	WayBack WayBackConfig
	// Force switches in spite of reasons that can be overridden; reverts in spite of rows written on the target.
	Force  bool
	Logger *slog.Logger
	// OnEvent is called for what is waited for.
	OnEvent func(Event)
}

// WriterPolicy says what a switch or a revert does about transactions that have written and do not end in time.
type WriterPolicy string

// The policies. In the meantime between attempts, everybody may write.
const (
	WritersWait      WriterPolicy = "wait"      // try again, with pauses, for the FenceTimeout
	WritersGiveUp    WriterPolicy = "give-up"   // one attempt
	WritersTerminate WriterPolicy = "terminate" // end their sessions; their work is rolled back
)

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
	if c.DrainTime <= 0 {
		c.DrainTime = defaultDrainTime
	}
	if c.LagLimit <= 0 {
		c.LagLimit = 30 * time.Second
	}
	if c.HookTimeout <= 0 {
		c.HookTimeout = 5 * time.Minute
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
	Hook          time.Duration `json:"hook_ns,omitempty"`
	Finish        time.Duration `json:"finish_ns"`
	RowsDrained   int64         `json:"rows_drained"`
	Sequences     int           `json:"sequences"`
	// SequenceMargin is the largest number of steps that a sequence was set ahead.
	SequenceMargin int64 `json:"sequence_margin,omitempty"`
	LargeObjects   int64 `json:"large_objects,omitempty"`
	// LeftOut are the objects of the schema that are not on the target, since they were left out by name or need such
	// an object.
	LeftOut []string `json:"left_out,omitempty"`
}

func (r SwitchReport) encode() (string, error) {
	b, err := json.Marshal(r)
	return string(b), err
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
		var drifted []string
		hard, drifted, err = schemaDrift(ctx, src, dst)
		soft = append(soft, drifted...)
	}
	if err != nil {
		return nil, err
	}
	if len(hard) > 0 || (len(soft) > 0 && !cfg.Force) {
		return nil, &RefusedError{Action: "switch", Reasons: append(hard, soft...), CanForce: len(hard) == 0}
	}
	r, err := newReplicator(ctx, src, dst, ReplicateConfig{Logger: cfg.Logger, OnEvent: cfg.OnEvent})
	if err != nil {
		return nil, err
	}
	watch := watchSequences(ctx, src)
	if err := catchUpBefore(ctx, r.catchUp, "switch", cfg); err != nil {
		return nil, err
	}
	if err := refreshViews(ctx, dst, cfg); err != nil {
		return nil, err
	}
	large, err := prepareLargeObjects(ctx, dst.SyncLargeObjects, src, cfg)
	if err != nil {
		return nil, err
	}
	cfg.DrainTimeout += 2 * large.Comparing
	report, err := prepareAndSwitch(ctx, src, dst, r, watch, cfg)
	if report == nil { // before it would have been settled
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 12*time.Second)
		defer cancel()
		if forgetErr := dst.ForgetWrites(undo); forgetErr != nil && !errors.Is(forgetErr, ErrLostLead) {
			err = errors.Join(err, forgetErr)
		}
	}
	return report, err
}

func prepareAndSwitch(ctx context.Context, src Source, dst Target, r *replicator, watch sequenceWatch,
	cfg CutoverConfig) (*SwitchReport, error) {
	if err := dst.PrepareSwitch(ctx, r.live, src.Touch); err != nil {
		return nil, err
	}
	if err := settleDrift(ctx, src, dst); err != nil {
		return nil, err
	}
	survey, err := dst.SurveySchema(ctx)
	if err == nil {
		err = dst.Journal().recordSurvey(ctx, survey)
	}
	if err != nil {
		return nil, err
	}
	call := HookCall{Point: HookBeforeFence}
	if cfg.Hook != nil {
		state, err := dst.Journal().State(ctx)
		if err == nil {
			call.Migration = state.ID
			call.Number, err = dst.Journal().beginAttempt(ctx)
		}
		if err == nil {
			err = callHook(ctx, dst.Journal(), cfg, call)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := catchUpBefore(ctx, r.catchUp, "switch", cfg); err != nil { // rounds stood still meanwhile
		return nil, err
	}
	r.trimmer.grace = time.Hour // behind the fence, every moment counts
	if err := dst.Journal().SetPending(ctx, CommandSwitch); err != nil {
		return nil, err
	}
	call.Point = HookBeforeSwitch
	report, err := switchOver(ctx, src, dst, r, watch, cfg, call)
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
			return nil, fmt.Errorf("%w; the fence on the source could not be lifted: run any command again, which "+
				"tries that first: %w", cause, err)
		}
	}
}

func catchUpBefore(ctx context.Context, catchUp func(context.Context, time.Duration) error, action string,
	cfg CutoverConfig) error {
	limited, cancel := context.WithTimeout(ctx, cfg.CatchUp)
	defer cancel()
	err := catchUp(limited, 2*time.Second)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return refuse(action, "The other side did not catch up within %s: wait until the lag is small, or stop some "+
			"of the writes.", cfg.CatchUp)
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
		if o.Type == typeViewData && o.State != ObjectLeftOut {
			o.State = ObjectPending
			views = append(views, o)
		}
	}
	return createObjects(ctx, dst, cfg.Logger, views, StageFinish)
}

func switchOver(ctx context.Context, src Source, dst Target, r *replicator, watch sequenceWatch, cfg CutoverConfig,
	call HookCall) (*SwitchReport, error) {
	report := &SwitchReport{}
	began, err := raiseFence(ctx, "switch", src, r.live, cfg, report, r.round)
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
			return nil, refuse("switch", "The last changes could not be carried over within %s; the fence was lifted "+
				"and nothing has happened. Try again when the lag is small.", cfg.DrainTimeout)
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
	large, err := finishLargeObjects(drain, dst.SyncLargeObjects, src)
	if err != nil {
		return fail(err)
	}
	report.LargeObjects = large.Objects
	report.Drain = time.Since(began) - report.Fence
	if err := callHook(ctx, dst.Journal(), cfg, call); err != nil {
		return nil, err
	}
	report.Hook = time.Since(began) - report.Fence - report.Drain
	drain, cancel = context.WithTimeout(ctx, cfg.DrainTimeout) // the hook has its own time
	defer cancel()
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
	report.Sequences, report.SequenceMargin = len(final.Sequences), watch.margins(final.Sequences, cfg.SequenceMargin)
	report.LeftOut = leftOut(objects)
	report.At = time.Now()
	report.Finish = report.At.Sub(began) - report.Fence - report.Drain - report.Hook
	report.WithoutWrites = report.At.Sub(began)
	final.Report = *report
	if err := dst.Switch(drain, final); err != nil {
		return fail(err)
	}
	report.WithoutWrites = time.Since(began)
	report.Finish = report.WithoutWrites - report.Fence - report.Drain - report.Hook
	return report, dst.Journal().SetReport(ctx, *report)
}

// raiseFence tries until the fence is up, with a round between attempts. It returns the moment at which the try that
// succeeded began.
func raiseFence(ctx context.Context, action string, side Fencer, tables []*Table, cfg CutoverConfig,
	report *SwitchReport,
	round func(context.Context) (roundStats, error),
) (time.Time, error) {
	deadline := time.Now().Add(cfg.FenceTimeout)
	fence := FenceConfig{DrainTime: cfg.DrainTime, Terminate: cfg.Writers == WritersTerminate}
	for {
		report.FenceAttempts++
		err := side.PrepareFence(ctx, tables, fence)
		began := time.Now()
		if err == nil {
			err = side.Fence(ctx, tables, fence)
		}
		if err == nil || !errors.Is(err, ErrBusy) || ctx.Err() != nil {
			return began, err
		}
		cfg.Logger.WarnContext(ctx, "transactions are in the way of the fence", "attempt", report.FenceAttempts,
			"error", err)
		notify(cfg.OnEvent, Event{Kind: EventWaiting, Message: err.Error()})
		pause := backoff(report.FenceAttempts, 500*time.Millisecond, 4*time.Second)
		if time.Now().Add(pause).After(deadline) || cfg.Writers == WritersGiveUp {
			return began, refuse(action, "Transactions were in the way for %s, the last time: %v. End them (SELECT "+
				"pg_terminate_backend(pid); prepared ones with ROLLBACK PREPARED), or try again at a quieter time; "+
				"nothing has happened.", cfg.FenceTimeout, err)
		}
		if err := sleep(ctx, pause); err != nil {
			return began, err
		}
		if _, err := round(ctx); err != nil {
			return began, err
		}
	}
}
