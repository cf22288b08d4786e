package migrator

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"
)

// ReplicateConfig configures [Replicate]. The zero value is good.
type ReplicateConfig struct {
	// Interval is the time from the begin of one round to that of the next, if the round took less.
	// Default: 100 ms while there are changes; when there are none, it grows to 500 ms.
	Interval time.Duration
	// TrimGrace is how long changes stay in the source's log after the target has acknowledged them, in case
	// that the target loses its last commits in a failover. Default: 30 s; negative: none.
	TrimGrace time.Duration
	Logger    *slog.Logger
	// OnEvent is called for every round that carried something.
	OnEvent func(Event)

	// restIsDue tells whether changes of views, functions and the like, which no row depends on, end a round with
	// ErrSchemaChanged, too.
	restIsDue func() bool
}

// restEvery is how often at most views, functions and the like are followed if nothing else changes: some applications
// make them anew all the time.
const restEvery = 30 * time.Second

func (c ReplicateConfig) withDefaults() ReplicateConfig {
	if c.Interval <= 0 {
		c.Interval = 100 * time.Millisecond
	}
	if c.TrimGrace == 0 {
		c.TrimGrace = 30 * time.Second
	}
	c.Logger = logger(c.Logger)
	return c
}

// Replicate carries changes to the target in rounds until the context is done, whose error it returns then.
// Interrupted anywhere and repeated, it loses nothing and does nothing twice.
func Replicate(ctx context.Context, src Source, dst Target, cfg ReplicateConfig) error {
	r, err := newReplicator(ctx, src, dst, cfg)
	if err != nil {
		return err
	}
	return r.run(ctx, func(roundStats) bool { return false })
}

// replicator does rounds. It holds nothing that is not in the journal, but for what may be trimmed.
type replicator struct {
	src     Source
	dst     Target
	cfg     ReplicateConfig
	live    []*Table
	joining []*Table
	// Of joining tables without a key, or that were set aside: from where on their logs count.
	copiedAt map[uint32]Position
	position Position
	captured Position // on which server capture was installed
	schema   string   // fingerprint of the schema that is known
	trimmer  trimmer
	synced   time.Time // when the journal was told last
	lag      lagMeter
	sized    time.Time // when the log was measured last
	// at is called at the end of a round, while the target is what the snapshot shows.
	at func(context.Context, Snapshot) error
}

// acknowledged is a position that is durable on the target, and what changed up to it.
type acknowledged struct {
	at       time.Time
	position Position
	tables   map[*Table]struct{}
}

// roundStats tells what a round did.
type roundStats struct {
	rows    int64 // entries of the change log
	changes []RoundChange
	took    time.Duration
}

func newReplicator(ctx context.Context, src Source, dst Target, cfg ReplicateConfig) (*replicator, error) {
	r := &replicator{src: src, dst: dst, cfg: cfg.withDefaults()}
	r.trimmer = trimmer{log: src, grace: r.cfg.TrimGrace}
	if err := guardIntervals(ctx, src, dst); err != nil {
		return nil, err
	}
	state, err := dst.Journal().State(ctx)
	if err != nil {
		return nil, err
	}
	if state.Emptied {
		return nil, ErrEmptied
	}
	r.position, r.captured, r.schema = state.Position, state.Captured, state.Schema
	tables, err := dst.Journal().Tables(ctx)
	if err != nil {
		return nil, err
	}
	r.copiedAt = map[uint32]Position{}
	for _, t := range tables {
		switch t.State {
		case reverseWaits, reverseResync: // of the other direction
		case TableLive:
			r.live = append(r.live, t.Table)
		case TableIndexed:
			r.joining = append(r.joining, t.Table)
			if t.Table.Keyless() || !t.CopiedAt.IsZero() {
				r.copiedAt[t.Table.ID] = t.CopiedAt
			}
		case TablePending, TableCopying, TableIndexing, TableSetAside:
		}
	}
	if len(r.live) > 0 && !r.position.IsZero() { // what an earlier process acknowledged and did not trim
		// or else, one that never lives long would never trim
		if next := state.LogNext; !next.IsZero() && next.SameServer(r.position) {
			r.trimmer.acknowledge(next, r.live)
			r.trimmer.list[0].at = time.Now().Add(-time.Duration(state.LogAge * float64(time.Second)))
		}
		r.trimmer.acknowledge(r.position, r.live)
	}
	return r, nil
}

// run does rounds until done says so, at once after one that carried much, with pauses when idle.
func (r *replicator) run(ctx context.Context, done func(roundStats) bool) error {
	pause := r.cfg.Interval
	for {
		stats, err := r.round(ctx)
		if err != nil {
			return err
		}
		if done(stats) {
			return nil
		}
		pause = nextPause(pause, r.cfg.Interval, stats)
		if err := sleep(ctx, pause-stats.took); err != nil {
			return err
		}
	}
}

// nextPause grows while nothing happens.
func nextPause(pause, interval time.Duration, stats roundStats) time.Duration {
	if stats.rows > 0 {
		return interval
	}
	return min(pause*3/2, 5*interval)
}

// catchUp does rounds until one begins and ends within the lag given.
func (r *replicator) catchUp(ctx context.Context, lag time.Duration) error {
	return r.run(ctx, func(s roundStats) bool { return s.rows == 0 || s.took <= lag })
}

// round carries everything that is visible on the source now and was not before.
func (r *replicator) round(ctx context.Context) (roundStats, error) {
	var held []*Table
	for attempt := 1; ; attempt++ {
		stats, err := r.try(ctx, held)
		if errors.Is(err, errGaveWay) {
			r.cfg.Logger.InfoContext(ctx, "a round gave way to others, and begins again", "error", err)
			if err := sleep(ctx, backoff(attempt, 200*time.Millisecond, 2*time.Second)); err != nil {
				return stats, err
			}
			continue
		}
		if !errors.Is(err, ErrRewritten) {
			return stats, err
		}
		// A table was rewritten after the snapshot was taken; another one sees it whole. Where a long log is counted,
		// one may be again and again, so the next attempt holds the tables first.
		held = withChanged(held, stats.changes)
		if err := sleep(ctx, r.cfg.Interval); err != nil {
			return stats, err
		}
	}
}

// withChanged adds the tables that have changes.
func withChanged(tables []*Table, changes []RoundChange) []*Table {
	for _, c := range changes {
		if !slices.Contains(tables, c.Table) {
			tables = append(tables, c.Table)
		}
	}
	return tables
}

func (r *replicator) try(ctx context.Context, held []*Table) (_ roundStats, err error) {
	began := time.Now()
	snap, err := r.src.Snapshot(ctx)
	if err != nil {
		return roundStats{}, err
	}
	defer closeSnapshot(ctx, snap)
	defer func() { err = gaveWay(snap, err) }()
	if !r.captured.SameServer(snap.Position()) {
		return roundStats{}, ErrFailedOver
	}
	var rest bool // of the schema, what no row depends on, is another one
	if r.schema != "" {
		now, err := snap.Fingerprint(ctx)
		if err != nil {
			return roundStats{}, err
		}
		if rowsPart(now) != rowsPart(r.schema) {
			return roundStats{}, ErrSchemaChanged
		}
		rest = now != r.schema
	}
	if err := snap.Hold(ctx, held); err != nil {
		return roundStats{}, err
	}
	round := Round{Joining: r.joining}
	var stats roundStats
	collect := func(tables []*Table, since Position) error {
		changes, err := snap.Changes(ctx, tables, since)
		for _, c := range changes {
			round.Changes = append(round.Changes, RoundChange{Change: c, Since: since})
			stats.rows += c.Rows
		}
		stats.changes = round.Changes
		return err
	}
	if err := collect(r.live, r.position); err != nil {
		return stats, err
	}
	keyed := make([]*Table, 0, len(r.joining))
	for _, t := range r.joining {
		if at, ok := r.copiedAt[t.ID]; !ok {
			keyed = append(keyed, t)
		} else if err := collect([]*Table{t}, at); err != nil {
			return stats, err
		}
	}
	if err := collect(keyed, Position{}); err != nil {
		return stats, err
	}
	const backlog = 10000
	if stats.rows >= backlog { // others should know while it is worked off
		if err := r.dst.Journal().Synced(ctx, -1, r.lag.lag(stats.rows, false)); err != nil {
			return stats, err
		}
	}
	if len(round.Changes) > 0 || len(round.Joining) > 0 {
		if err := r.dst.Apply(ctx, snap, round); err != nil {
			return stats, err
		}
		r.position = snap.Position()
		r.live, r.joining = append(r.live, r.joining...), nil
		tables := make([]*Table, len(round.Changes))
		for i, c := range round.Changes {
			tables[i] = c.Table
		}
		r.trimmer.acknowledge(r.position, tables)
	}
	if r.at != nil {
		if err := r.at(ctx, snap); err != nil {
			return stats, err
		}
	}
	if rest && r.cfg.restIsDue != nil && r.cfg.restIsDue() {
		return stats, ErrSchemaChanged
	}
	closeSnapshot(ctx, snap) // a trim must not wait for it; closing twice does no harm
	stats.took = time.Since(began)
	r.lag.saw(began, stats.rows, stats.took)
	if len(round.Changes) > 0 {
		notify(r.cfg.OnEvent, Event{Kind: EventRound, Phase: PhaseReplicating, Rows: stats.rows, Took: stats.took})
	}
	if time.Since(r.synced) > time.Second {
		if err := r.dst.Journal().Synced(ctx, time.Since(began), r.lag.lag(0, stats.rows == 0)); err != nil {
			return stats, err
		}
		r.synced = time.Now()
	}
	if err := r.trimmer.trim(ctx); err != nil {
		return stats, err
	}
	return stats, r.measureLog(ctx)
}

// measureLog looks at the log's size from time to time.
func (r *replicator) measureLog(ctx context.Context) error {
	if time.Since(r.sized) < logEvery {
		return nil
	}
	bytes, err := r.src.LogSize(ctx)
	if err != nil {
		return err
	}
	r.sized = time.Now()
	next, age := r.trimmer.next()
	return r.dst.Journal().setLog(ctx, bytes, next, age)
}

// next is what is trimmed next, and how long ago it was acknowledged: no entry of the log is much older.
func (t *trimmer) next() (Position, time.Duration) {
	if len(t.list) == 0 {
		return Position{}, 0
	}
	return t.list[0].position, time.Since(t.list[0].at)
}

// trimmer forgets changes some time after the other side has acknowledged them.
type trimmer struct {
	log   ChangeLog
	grace time.Duration
	list  []acknowledged
}

func (t *trimmer) acknowledge(at Position, tables []*Table) {
	a := acknowledged{at: time.Now(), position: at, tables: map[*Table]struct{}{}}
	for _, table := range tables {
		a.tables[table] = struct{}{}
	}
	// One entry a second at most: what is acknowledged later may only be trimmed later.
	if n := len(t.list); n > 0 && a.at.Sub(t.list[n-1].at) < time.Second && t.grace > 0 {
		last := &t.list[n-1]
		for table := range last.tables {
			a.tables[table] = struct{}{}
		}
		a.at = last.at
		t.list[n-1] = a
		return
	}
	t.list = append(t.list, a)
}

// trim forgets what was acknowledged long enough ago.
func (t *trimmer) trim(ctx context.Context) error {
	n := 0
	due := map[*Table]struct{}{}
	for _, a := range t.list {
		if time.Since(a.at) < t.grace {
			break
		}
		for table := range a.tables {
			due[table] = struct{}{}
		}
		n++
	}
	if n == 0 {
		return nil
	}
	tables := make([]*Table, 0, len(due))
	for table := range due {
		tables = append(tables, table)
	}
	if err := t.log.Trim(ctx, tables, t.list[n-1].position); err != nil {
		return err
	}
	t.list = t.list[n:]
	return nil
}
