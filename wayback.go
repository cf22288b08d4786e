package migrator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// WayBackConfig configures [WayBack]. The zero value is good.
type WayBackConfig struct {
	// Disabled leaves what is written on the target after the switch there: a revert then has to be forced to go back
	// without it.
	Disabled bool
	// Interval and TrimGrace are as in [ReplicateConfig].
	Interval  time.Duration
	TrimGrace time.Duration
	Logger    *slog.Logger
	// OnEvent is called for every round that carried something.
	OnEvent func(Event)
}

// WayBack carries what is written on the target after the switch to the source, in rounds, until the context is done,
// whose error it returns then. The source stays fenced for everybody else. Interrupted anywhere and repeated, it loses
// nothing and does nothing twice. It fails with a [*RefusedError] if the target's schema has changed so that rows
// cannot go back.
func WayBack(ctx context.Context, src Source, dst Target, cfg WayBackConfig) error {
	w, err := openWayBack(ctx, src, dst, cfg)
	if err != nil {
		return err
	}
	return w.run(ctx, func(roundStats) bool { return false })
}

// wayBack does rounds from the target to the source. It holds nothing that is not in one of the databases, but for what
// may be trimmed.
type wayBack struct {
	src      Source
	dst      Target
	cfg      WayBackConfig
	tables   []*Table
	all      []*Table    // with those that are held back
	held     []HeldTable // whose rows do not come back for now
	left     bool        // something could not be made on the source, and is tried again
	again    bool        // soon, since rows may have been in its way
	surveyed time.Time
	position Position // of the target, up to which the source has everything
	schema   string   // fingerprint of the target's schema that was found to fit
	trimmer  trimmer
	synced   time.Time
	sized    time.Time // when the logs were measured last
	rounds   int64
	rows     int64
	aside    reverseAside
}

// errOtherSource ends a way back that has to be opened again.
var errOtherSource = fmt.Errorf("the source is not where the way back left it: %w", errPassing)

// openWayBack makes sure that the source is fenced, which a server that took over after a failover may not be, and that
// it takes rows.
func openWayBack(ctx context.Context, src Source, dst Target, cfg WayBackConfig) (*wayBack, error) {
	c := ReplicateConfig{Interval: cfg.Interval, TrimGrace: cfg.TrimGrace, Logger: cfg.Logger}.withDefaults()
	cfg.Interval, cfg.TrimGrace, cfg.Logger = c.Interval, c.TrimGrace, c.Logger
	w := &wayBack{src: src, dst: dst, cfg: cfg, trimmer: trimmer{log: dst, grace: cfg.TrimGrace}}
	state, err := dst.Journal().State(ctx)
	if err != nil {
		return nil, err
	}
	if state.Phase != PhaseSwitched {
		return nil, refuse("way back", "The migration is in phase %s: the way back is open in phase switched.",
			state.Phase)
	}
	statuses, err := dst.Journal().Tables(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range statuses {
		w.tables = append(w.tables, t.Table)
	}
	snap, err := src.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	now := snap.Position()
	closeSnapshot(ctx, snap)
	failedOver := !state.Captured.SameServer(now)
	for i := 0; failedOver && i < len(w.tables); i++ { // capture may be among what the new server never had
		if err := src.Capture(ctx, w.tables[i]); err != nil {
			return nil, err
		}
	}
	if err := src.Fence(ctx, w.tables, FenceConfig{Keep: true}); err != nil {
		return nil, err
	}
	if err := settleSurvey(ctx, src, dst); err != nil {
		return nil, err
	}
	if err := src.OpenWayBack(ctx, w.tables, state.Switches); err != nil {
		return nil, err
	}
	if err := w.reload(ctx, false); err != nil {
		return nil, err
	}
	if w.position, err = src.WayBackPosition(ctx); err != nil {
		return nil, err
	}
	if failedOver && w.position.IsZero() {
		w.warn(ctx, "the source failed over to another server: every table is sent back whole, so that what was "+
			"lost there is there again")
		if err := dst.Resend(ctx, w.tables, true); err != nil {
			return nil, err
		}
	}
	if err := w.readAside(ctx); err != nil {
		return nil, err
	}
	w.aside.joined = true     // whatever was mended meanwhile joins with the first round
	if !w.position.IsZero() { // what an earlier process acknowledged and did not trim
		w.trimmer.acknowledge(w.position, w.active())
	}
	return w, nil
}

// run does rounds until done says so, with pauses when idle.
func (w *wayBack) run(ctx context.Context, done func(roundStats) bool) error {
	for pause := w.cfg.Interval; ; {
		stats, err := w.round(ctx)
		if err != nil {
			return err
		}
		if done(stats) {
			return nil
		}
		pause = nextPause(pause, w.cfg.Interval, stats)
		if err := sleep(ctx, pause-stats.took); err != nil {
			return err
		}
	}
}

// round carries everything that is visible on the target now and was not before.
func (w *wayBack) round(ctx context.Context) (roundStats, error) {
	images, rows := new(ImagesError), new(ApplyError)
	var held []*Table
	ready, err := w.joining(ctx, false)
	if err != nil {
		return roundStats{}, err
	}
	var busy int
	detach := false
	for attempt := 1; ; attempt++ {
		stats, err := w.try(ctx, detach, held, ready)
		switch {
		case errors.Is(err, errFollowed):
			held, err = nil, nil
		case errors.Is(err, ErrBusy) && busy < 10:
			busy++
			err = sleep(ctx, backoff(busy, w.cfg.Interval, time.Second))
		case errors.Is(err, ErrDetach) && !detach:
			detach, err = true, nil
		case errors.Is(err, ErrConstraintTaken):
			w.warn(ctx, err.Error())
			err = nil
		case errors.Is(err, errGaveWay):
			w.cfg.Logger.InfoContext(ctx, "a round of the way back gave way to others, and begins again", "error", err)
			err = sleep(ctx, backoff(attempt, 200*time.Millisecond, 2*time.Second))
		case errors.Is(err, ErrRewritten): // after the snapshot was taken; another one sees the table whole
			held = withChanged(held, stats.changes)
			err = sleep(ctx, w.cfg.Interval)
		case errors.Is(err, ErrSlotLost):
			w.warn(ctx, "the replication slot on the target is gone, and changes with it: every table is sent back "+
				"whole")
			err = w.dst.Resend(ctx, w.tables, true)
		case errors.Is(err, ErrTrimmed): // the source lost what it had acknowledged
			w.warn(ctx, "the source went back to an earlier state than it had acknowledged: the tables concerned "+
				"are sent back whole")
			err = w.dst.Resend(ctx, w.tables, false)
		case errors.As(err, &images):
			w.warn(ctx, fmt.Sprintf("%v: it is sent back whole", images))
			err = w.dst.Resend(ctx, []*Table{images.Table}, true)
		case errors.Is(err, ErrFailedOver):
			w.warn(ctx, "the target failed over to another server: every table is sent back whole, so that what was "+
				"lost there is gone from the source too")
			err = w.dst.Resend(ctx, w.tables, true)
			w.position = Position{}
		case detach && len(w.held) > 0 && (sqlState(err) == "23503" || sqlState(err) == "23001"):
			err = w.holdRelated(ctx, err)
		case errors.As(err, &rows) && !Retryable(err):
			err = w.setAside(ctx, rows)
			ready = slices.DeleteFunc(ready, func(a *aside) bool { return a.table.ID == rows.Table.ID })
			detach, rows = false, new(ApplyError)
		default:
			return stats, err
		}
		if err != nil {
			return stats, err
		}
	}
}

func (w *wayBack) warn(ctx context.Context, message string) {
	w.cfg.Logger.WarnContext(ctx, message)
	notify(w.cfg.OnEvent, Event{Kind: EventWarning, Phase: PhaseSwitched, Message: message})
}

func (w *wayBack) try(ctx context.Context, detach bool, held []*Table, ready []*aside) (stats roundStats,
	err error) {
	began := time.Now()
	snap, err := w.dst.Snapshot(ctx)
	if err != nil {
		return stats, err
	}
	defer closeSnapshot(ctx, snap)
	defer func() { err = gaveWay(snap, err) }()
	if !w.position.IsZero() && !w.position.SameServer(snap.Position()) {
		return stats, ErrFailedOver
	}
	if err := w.checkSchema(ctx, snap); err != nil {
		return stats, err
	}
	if err := snap.Hold(ctx, held); err != nil {
		return stats, err
	}
	active := w.active()
	changes, err := snap.Changes(ctx, active, w.position)
	var round Round
	tables := make([]*Table, len(changes))
	for i, c := range changes {
		tables[i] = c.Table
		round.Changes = append(round.Changes, RoundChange{Change: c, Since: w.position})
		stats.rows += max(c.Rows, int64(len(c.Truncated)))
	}
	stats.changes = round.Changes
	if err == nil {
		err = w.changesOf(ctx, snap, ready, &round)
	}
	if err != nil {
		return stats, err
	}
	if len(round.Changes) > 0 || len(ready) > 0 {
		if err := w.src.ApplyBack(ctx, snap, round, detach); err != nil {
			return stats, err
		}
		w.position = snap.Position()
		w.trimmer.acknowledge(w.position, tables)
		w.rounds, w.rows = w.rounds+1, w.rows+stats.rows
		if err := w.joinedNow(ctx, ready); err != nil {
			return stats, err
		}
	}
	closeSnapshot(ctx, snap)
	stats.took = time.Since(began)
	if stats.rows > 0 {
		notify(w.cfg.OnEvent, Event{Kind: EventRound, Phase: PhaseSwitched, Rows: stats.rows, Took: stats.took})
	}
	if time.Since(w.synced) > time.Second {
		// While nothing is written, nothing else would tell that another server has taken the source's place.
		if there, err := w.src.WayBackPosition(ctx); err != nil || there != w.position {
			return stats, errors.Join(err, errOtherSource)
		}
		if err := w.dst.Journal().wayBackSynced(ctx, stats.took, w.rounds, w.rows); err != nil {
			return stats, err
		}
		w.synced, w.rounds, w.rows = time.Now(), 0, 0
	}
	if err := w.trimmer.trim(ctx); err != nil {
		return stats, err
	}
	return stats, w.measureLogs(ctx)
}

// measureLogs looks at the log's size from time to time. That of the source does not grow, but its slot, if it has one,
// has to go on.
func (w *wayBack) measureLogs(ctx context.Context) error {
	if time.Since(w.sized) < logEvery {
		return nil
	}
	bytes, err := w.dst.LogSize(ctx)
	if err == nil {
		if _, err = w.src.LogSize(ctx); errors.Is(err, ErrSlotLost) {
			err = nil // replication makes another one after a revert, and sends every table whole
		}
	}
	if err != nil {
		return err
	}
	w.sized = time.Now()
	_, age := w.trimmer.next()
	return w.dst.Journal().setLog(ctx, bytes, Position{}, age)
}

// checkSchema makes sure that the rows of the new production database, whose schema goes on changing, still fit the
// source. What was added there is made here first, and a round begins again then.
func (w *wayBack) checkSchema(ctx context.Context, snap Snapshot) error {
	now, err := snap.Fingerprint(ctx)
	if err != nil {
		return err
	}
	after := restEvery
	if w.again {
		after = againEvery
	}
	due := (now != w.schema || w.left) && time.Since(w.surveyed) > after
	if rowsPart(now) == rowsPart(w.schema) && !due {
		return nil
	}
	if err := w.followTarget(ctx); err != nil {
		return err
	}
	return errFollowed
}

// againEvery is how often what could not be made on the source is tried again, since rows that come later may make it
// possible.
const againEvery = 5 * time.Second

// wayBackSynced notes that the source holds everything that was committed on the target age ago.
func (j *Journal) wayBackSynced(ctx context.Context, age time.Duration, rounds, rows int64) error {
	return j.exec(ctx, "note the lag of the way back", `
		UPDATE heroku_migrator.progress SET back_at = greatest(back_at, clock_timestamp() - make_interval(secs => $1)),
			back_rounds = back_rounds + $2, back_rows = back_rows + $3, back_error = ''`, age.Seconds(), rounds, rows)
}

func (j *Journal) wayBackFailed(ctx context.Context, cause error) error {
	return j.exec(ctx, "note that the way back waits", `UPDATE heroku_migrator.progress SET back_error = $1`,
		cause.Error())
}

// wayBack keeps the way back open for as long as the migration is switched. Whatever keeps it from working is told, and
// tried again: production does not depend on it, and what is written meanwhile is in the target's log.
func (m *Migrator) wayBack(ctx context.Context) error {
	if m.cfg.WayBack.Disabled {
		return m.idle(ctx, m.cfg.Target, m.cfg.Source)
	}
	told := ""
	for attempt := 1; ; attempt++ {
		began := time.Now()
		err := WayBack(ctx, m.cfg.Source, m.cfg.Target, m.cfg.WayBack)
		if ctx.Err() != nil || errors.Is(err, ErrLostLead) || errors.Is(err, ErrNoMigration) {
			return errors.Join(err, ctx.Err())
		}
		if time.Since(began) > time.Minute {
			attempt = 1
		}
		if told != err.Error() {
			told = err.Error()
			m.log.WarnContext(ctx, "the way back waits", "error", err)
			m.publish(Event{Kind: EventWarning, Phase: PhaseSwitched, Message: "the way back waits: " + told})
		}
		if err := m.journal.wayBackFailed(ctx, err); err != nil {
			return fmt.Errorf("%w; %w", errors.New(told), err)
		}
		m.measure(ctx, m.cfg.Target) // which has a slot go on: one that nobody reads would fill the disk
		if err := sleep(ctx, backoff(attempt, 500*time.Millisecond, 30*time.Second)); err != nil {
			return err
		}
	}
}
