package migrator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"
)

// Config configures a [Migrator]. Source and Target are required; the zero values of the rest are good.
type Config struct {
	Source Source
	Target Target
	Logger *slog.Logger

	Preflight PreflightConfig
	Copy      CopyConfig
	Indexes   IndexConfig
	Replicate ReplicateConfig
	Cutover   CutoverConfig
	WayBack   WayBackConfig

	// RetryFor is how long Run tries again when something fails that may go away by itself, such as lost
	// connections, before it gives up. Default: 30 minutes since the last success.
	RetryFor time.Duration
	// HoldBeforeCopy has Run wait in phase ready_to_copy for [CommandCopy].
	HoldBeforeCopy bool
	// LeaveOut names objects of the schema that are not created on the target: views over statistics that only the
	// source has, say. A name is the object's type and name, as findings and the rehearsal print it ("view ops.slow"),
	// or the name alone. What needs such an object is left out, too. Tables and their primary keys cannot be left out.
	LeaveOut []string
	// SchemaChanges says what is done when the source's schema changes meanwhile. Default: [SchemaForward].
	SchemaChanges SchemaPolicy
}

// Migrator composes the phases: it walks them one after the other, as far as the journal says it has not
// come yet, and carries out commands meanwhile. Its methods may be called concurrently, in any number of
// processes; one of them leads.
type Migrator struct {
	cfg     Config
	log     *slog.Logger
	journal *Journal
	events  events
	leading atomic.Bool
	waiting atomic.Pointer[WaitingStatus] // while this process tries again what failed

	followed atomic.Int64 // when the schema was followed last, in nanoseconds

	indexWorkers atomic.Int64 // 0: as configured
	recent       recentCatalog
	dumped       atomic.Pointer[dumpedSchema] // by preflight
}

// New returns a migrator. It does not connect.
func New(cfg Config) (*Migrator, error) {
	switch cfg.SchemaChanges {
	case "":
		cfg.SchemaChanges = SchemaForward
	case SchemaForward, SchemaPause, SchemaFail:
	default:
		return nil, fmt.Errorf("the policy for schema changes is %q; it is forward, pause or fail", cfg.SchemaChanges)
	}
	if cfg.Source == nil || cfg.Target == nil {
		return nil, errors.New("migrator: Config.Source and Config.Target are required")
	}
	if cfg.RetryFor <= 0 {
		cfg.RetryFor = 30 * time.Minute
	}
	m := &Migrator{cfg: cfg, log: logger(cfg.Logger), journal: cfg.Target.Journal()}
	m.chain(&m.cfg.Copy.OnEvent, &m.cfg.Copy.Logger)
	m.chain(&m.cfg.Indexes.OnEvent, &m.cfg.Indexes.Logger)
	m.chain(&m.cfg.Replicate.OnEvent, &m.cfg.Replicate.Logger)
	m.cfg.Replicate.restIsDue = func() bool {
		return m.cfg.SchemaChanges != SchemaFail && m.cfg.SchemaChanges != SchemaPause && time.Since(time.Unix(0,
			m.followed.Load())) > restEvery
	}
	m.chain(&m.cfg.Cutover.OnEvent, &m.cfg.Cutover.Logger)
	m.chain(&m.cfg.WayBack.OnEvent, &m.cfg.WayBack.Logger)
	m.cfg.Cutover.WayBack = m.cfg.WayBack
	return m, nil
}

// chain makes a phase's events and log lines ours too.
func (m *Migrator) chain(on *func(Event), log **slog.Logger) {
	theirs := *on
	*on = func(e Event) {
		m.publish(e)
		notify(theirs, e)
	}
	if *log == nil {
		*log = m.log
	}
}

// Subscribe returns a channel of events with room for buffer of them, and a function that ends the
// subscription and closes the channel. A listener that is slow misses events, and sees how many.
func (m *Migrator) Subscribe(buffer int) (<-chan Event, func()) { return m.events.subscribe(buffer) }

func (m *Migrator) publish(e Event) { m.events.publish(e) }

// Preflight runs [Preflight] with the migrator's configuration.
// While a migration is under way, what it has made on either side is no finding.
func (m *Migrator) Preflight(ctx context.Context) (*Report, error) {
	cfg := m.cfg.Preflight
	cfg.LeaveOut = slices.Concat(cfg.LeaveOut, m.cfg.LeaveOut)
	cfg.dumped = &m.dumped
	report, err := Preflight(ctx, m.cfg.Source, m.cfg.Target, cfg)
	if err != nil {
		return nil, err
	}
	s, err := m.journal.State(ctx)
	if err != nil || s.Phase == PhaseStarting || (s.Phase == PhaseError && s.Resume == PhaseStarting) {
		return report, nil //nolint:nilerr // no journal; an unreachable target is among the findings
	}
	report.Findings = slices.DeleteFunc(report.Findings, func(f Finding) bool {
		return f.Check == "leftovers" ||
			f.Check == "target_empty"
	})
	report.Findings = append(report.Findings, Finding{
		Check: "under_way", Severity: SeverityInfo, Message: fmt.Sprintf("A migration between these databases is "+
			"under way, in phase %s.", s.Phase),
	})
	return report, nil
}

// Until says where Run stops.
type Until string

// The places to stop at. Run does not switch by itself: that is a command.
const (
	UntilInSync    Until = "in-sync"
	UntilSwitched  Until = "switched"
	UntilCompleted Until = "completed"
)

// ErrEnded is returned by Run when another process completed or aborted the migration meanwhile.
var ErrEnded = errors.New("the migration was completed or aborted by another process")

// ErrAborted is returned by Run when the migration was aborted while it ran.
var ErrAborted = errors.New("the migration was aborted")

// Run starts the migration, or goes on where it stands, and carries out commands, until the migration has
// come to the place given, or was completed or aborted, or the context is done. While another process
// leads, it waits.
//
// What fails and may go away by itself is tried again. What needs a person is recorded as phase error
// and returned: a [*RefusedError] for a precondition that does not hold. Another Run tries it again.
func (m *Migrator) Run(ctx context.Context, until Until) error {
	seen, led := false, false
	defer m.waiting.Store(nil)
	for attempt, since := 1, time.Now(); ; attempt++ {
		began := time.Now()
		err := m.runOnce(ctx, until, &seen, &led)
		switch {
		case err == nil || ctx.Err() != nil:
			return errors.Join(err, ctx.Err())
		case errors.Is(err, ErrNoMigration):
			return ErrEnded
		case !Retryable(err):
			return err
		}
		if time.Since(began) > time.Minute {
			attempt, since = 1, time.Now()
		}
		patience := m.cfg.RetryFor
		if !led { // a mistake in a URL should not take half an hour to show
			patience = min(patience, 5*time.Second)
		}
		if time.Since(since) > patience {
			return fmt.Errorf("given up after %s: %w", time.Since(since).Round(time.Second), err)
		}
		pause := backoff(attempt, 500*time.Millisecond, 30*time.Second)
		m.log.WarnContext(ctx, "trying again", "in", pause.Round(time.Millisecond), "error", err)
		m.publish(Event{Kind: EventWaiting, Message: err.Error()})
		m.waits(ctx, err)
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// waits notes why nothing goes on, where others can see it, if the target can be reached.
func (m *Migrator) waits(ctx context.Context, cause error) {
	w := &WaitingStatus{Since: time.Now(), Reason: cause.Error()}
	if before := m.waiting.Load(); before != nil {
		w.Since = before.Since
	}
	m.waiting.Store(w)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err := m.journal.pool.Exec(ctx, `UPDATE heroku_migrator.progress SET waits_for = $1, waits_since = $2`, w.Reason,
		w.Since)
	if err != nil {
		m.log.DebugContext(ctx, "what is waited for could not be noted", "error", err)
	}
}

// goesOn takes that back.
func (m *Migrator) goesOn(ctx context.Context) error {
	m.waiting.Store(nil)
	return m.journal.exec(ctx, "note that it goes on", `UPDATE heroku_migrator.progress SET waits_for = '', waits_since
		= NULL WHERE waits_for <> ''`)
}

func (m *Migrator) runOnce(ctx context.Context, until Until, seen, led *bool) error {
	lead, err := m.waitForLead(ctx, seen)
	if err != nil {
		return err
	}
	*led = true
	m.leading.Store(true)
	defer m.leading.Store(false)
	defer lead.Release() //nolint:contextcheck // it has to happen whatever became of the context
	if err := m.begin(ctx, lead); err != nil {
		return err
	}
	if err := m.goesOn(ctx); err != nil {
		return err
	}
	return m.loop(ctx, lead, until)
}

// waitForLead takes the lead as soon as no process has it. Only one that never saw a journal makes one: the
// migration of another process may end while this one waits.
func (m *Migrator) waitForLead(ctx context.Context, seen *bool) (*Lead, error) {
	for told := false; ; {
		if !*seen {
			exists, err := m.journal.exists(ctx)
			if err != nil {
				return nil, err
			}
			*seen = exists
		}
		lead, err := m.journal.TryLead(ctx, !*seen)
		if err != nil || lead != nil {
			*seen = *seen || lead != nil
			return lead, err
		}
		*seen = true
		if !told {
			told = true
			m.log.InfoContext(ctx, "another process leads this migration; waiting to take over")
		}
		if err := sleep(ctx, time.Second); err != nil {
			return nil, err
		}
	}
}

// begin is what every leader does first: make its epoch known on the source too, and finish or undo what
// the leader before was in the middle of.
func (m *Migrator) begin(ctx context.Context, lead *Lead) error {
	s, err := m.journal.State(ctx)
	if err != nil {
		return err
	}
	if err := m.cfg.Source.Claim(ctx, Claim{Migration: s.ID, Epoch: lead.Epoch}, false); err != nil {
		tables, tablesErr := m.journal.Tables(ctx)
		if !errors.As(err, new(*RefusedError)) || tablesErr != nil || slices.ContainsFunc(tables,
			func(t TableStatus) bool { return t.Captured }) {
			return errors.Join(err, tablesErr)
		}
		// Another migration has the source, and this one has nothing there. It can still be aborted.
	}
	if err := Recover(ctx, m.cfg.Source, m.cfg.Target); err != nil {
		return err
	}
	return m.tellAbandonedHooks(ctx)
}

// errInterrupted ends a step because a command waits.
var errInterrupted = errors.New("a command waits")

// loop is the state machine: one step at a time, and between steps the commands.
//
//nolint:gocognit // the phases, one after the other
func (m *Migrator) loop(ctx context.Context, lead *Lead, until Until) error {
	s, err := m.journal.State(ctx)
	if err != nil {
		return err
	}
	if s.Phase == PhaseError { // started again: try what failed again
		if err := RetryIndexes(ctx, m.cfg.Target); err != nil {
			return err
		}
		if err := m.journal.Advance(ctx, PhaseError, s.Resume, "trying again"); err != nil {
			return err
		}
	}
	if err := m.leaveOut(ctx); err != nil {
		return err
	}
	for {
		c, err := m.journal.take(ctx, true)
		if err != nil {
			return err
		}
		if c != nil {
			err := m.carryOut(ctx, c)
			switch {
			case errors.Is(err, ErrNoMigration) && c.name == CommandAbort:
				return ErrAborted
			case errors.Is(err, ErrNoMigration):
				return nil
			case err != nil:
				return err
			}
		}
		s, err := m.journal.State(ctx)
		if err != nil {
			return err
		}
		if reached(s, until) {
			return nil
		}
		step, stop := context.WithCancelCause(ctx)
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			m.watch(step, stop, lead)
		}()
		err = m.step(step, s, until)
		stop(nil)
		<-watched
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(context.Cause(step), errInterrupted):
			continue
		case errors.Is(context.Cause(step), ErrLostLead):
			return ErrLostLead
		case errors.Is(err, errInSync):
			return nil
		case errors.Is(err, errCleanedUp):
			if s.Goal == PhaseAborted {
				return ErrAborted
			}
			return nil
		case schemaIsOther(err) && s.Phase != PhaseCleaningUp && s.Phase != PhaseStarting:
			if err := m.followSchema(ctx, s, err); err != nil {
				return err
			}
		case wentBack(err) && s.Phase != PhaseCleaningUp:
			if err := m.rebase(ctx, s, err); err != nil {
				return err
			}
		case isAside(s, err):
			if err := m.setAside(ctx, s, err); err != nil {
				return err
			}
		case errors.As(err, new(*AsideError)):
			return err
		case err != nil && !Retryable(err):
			m.log.InfoContext(ctx, "the step failed", "phase", string(s.Phase), "error", err)
			m.publish(Event{Kind: EventFailure, Phase: s.Phase, Message: err.Error()})
			if s.Phase == PhaseStarting && errors.As(err, new(*RefusedError)) {
				return err // preflight refused, and the journal is gone
			}
			return errors.Join(err, m.journal.Fail(ctx, s.Phase, err))
		case err != nil:
			return err
		}
	}
}

// watch interrupts a step when a command waits that would be carried out, or the lead is lost. A command
// that will be refused does not disturb the step.
func (m *Migrator) watch(ctx context.Context, stop context.CancelCauseFunc, lead *Lead) {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-lead.Lost():
			stop(ErrLostLead)
			return
		case <-tick.C:
		}
		c, err := m.journal.take(ctx, false)
		if err != nil || c == nil {
			continue // an error shows in the step as well
		}
		s, err := m.journal.State(ctx)
		if err != nil {
			continue
		}
		done, refused := c.permit(s)
		if done == "" && refused == nil {
			stop(errInterrupted)
			return
		}
		if c, err = m.journal.claim(ctx, c); err != nil || c == nil {
			continue
		}
		var result error
		if refused != nil {
			result = refused
		}
		if err := m.journal.finish(ctx, c, done, result); err != nil {
			m.log.WarnContext(ctx, "a command could not be answered", "error", err)
		}
	}
}

func reached(s *State, until Until) bool {
	switch until {
	case UntilInSync:
		return s.Phase == PhaseSwitched
	case UntilSwitched:
		return s.Phase == PhaseSwitched
	case UntilCompleted:
	}
	return false
}
