package migrator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// IndexConfig configures [BuildIndexes]. The zero value is good.
type IndexConfig struct {
	// Workers is how many indexes are built at once, of one table or of several; each build may have parallel
	// workers of its own. Default: a quarter of the target's max_parallel_workers, 2 to 4.
	Workers int
	Logger  *slog.Logger
	// OnEvent is called when an index is built, and when a table has all of them.
	OnEvent func(Event)
}

// BuildIndexes makes the copied tables whole: indexes, constraints and the planner's statistics, table by table;
// then a round that brings all of them to one snapshot; then foreign keys, triggers and materialised views.
// Repeated, it goes on where it was.
//
// What could not be built does not keep the rest from being built: the error has an [*ObjectError] for each. They are
// in the journal, and are not tried again before [RetryIndexes] is called.
func BuildIndexes(ctx context.Context, src Source, dst Target, cfg IndexConfig) error {
	x, err := newIndexer(ctx, dst, cfg)
	if err != nil {
		return err
	}
	tables, err := dst.Journal().Tables(ctx)
	if err != nil {
		return err
	}
	for _, t := range tables {
		if t.State == TableIndexing || t.State == TableSetAside || x.isUnbuilt(t) {
			x.start(ctx, t)
		}
	}
	if err := x.setWaiting(ctx, x.wait()); err != nil {
		return err
	}
	r, err := newReplicator(ctx, src, dst, ReplicateConfig{Logger: cfg.Logger, OnEvent: cfg.OnEvent})
	if err != nil {
		return err
	}
	stats, err := r.round(ctx)
	if err != nil {
		return err
	}
	if err := x.setWaiting(ctx, x.foreignKeys(ctx)); err != nil {
		return err
	}
	if err := x.analyzeChanged(ctx, tables, stats.changes); err != nil {
		return err
	}
	if err := createObjects(ctx, dst, x.cfg.Logger, x.objects, StageFinish); err != nil {
		return err
	}
	return x.analyzeLate(ctx, tables)
}

// BuildIndexesMeanwhile builds the indexes of each table as soon as its last chunk is there, while others are
// still copied. It returns when copied is closed and what it had begun is built; [BuildIndexes] does the rest.
func BuildIndexesMeanwhile(ctx context.Context, dst Target, copied <-chan struct{}, cfg IndexConfig) error {
	x, err := newIndexer(ctx, dst, cfg)
	if err != nil {
		return err
	}
	begun := map[uint32]struct{}{}
	for ended := false; ; {
		tables, err := dst.Journal().Tables(ctx)
		if err != nil {
			return errors.Join(err, x.wait())
		}
		// The largest that are there first: the others fill the gaps.
		slices.SortFunc(tables, func(a, b TableStatus) int { return cmp.Compare(b.BytesTotal, a.BytesTotal) })
		for _, t := range tables {
			if _, ok := begun[t.Table.ID]; ok || (t.State != TableIndexing && (t.State != TableCopying ||
				t.Chunks != t.ChunksDone)) {
				continue
			}
			begun[t.Table.ID] = struct{}{}
			x.start(ctx, t)
		}
		if ended {
			return x.wait()
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), x.wait())
		case <-copied:
			ended = true
		case <-x.broken:
			return x.wait()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// indexer builds indexes, a few at once.
type indexer struct {
	dst     Target
	cfg     IndexConfig
	objects []SchemaObject
	byTable map[uint32][]SchemaObject // of StageIndexes
	slots   chan struct{}             // one for each build that is going on
	running sync.WaitGroup

	mu     sync.Mutex
	failed []error       // what cannot be built
	err    error         // what ended the work
	broken chan struct{} // closed with err
}

func newIndexer(ctx context.Context, dst Target, cfg IndexConfig) (*indexer, error) {
	cfg.Logger = logger(cfg.Logger)
	if cfg.Workers <= 0 {
		id, err := dst.Identify(ctx)
		if err != nil {
			return nil, err
		}
		cfg.Workers = min(max(2, id.ParallelWorkers/4), 4)
	}
	objects, err := dst.Journal().Objects(ctx)
	if err != nil {
		return nil, err
	}
	x := &indexer{
		dst: dst, cfg: cfg, objects: objects, byTable: map[uint32][]SchemaObject{},
		slots: make(chan struct{}, cfg.Workers), broken: make(chan struct{}),
	}
	for _, o := range objects {
		if o.Stage == StageIndexes {
			x.byTable[o.Table] = append(x.byTable[o.Table], o)
		}
	}
	return x, nil
}

// start builds the indexes of a table whose rows are there, in the background.
func (x *indexer) start(ctx context.Context, t TableStatus) {
	x.running.Go(func() {
		if err := x.table(ctx, t); err != nil {
			x.fail(err)
		}
	})
}

func (x *indexer) fail(err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if errors.As(err, new(*ObjectError)) {
		x.failed = append(x.failed, err)
	} else if x.err == nil {
		x.err = err
		close(x.broken)
	}
}

// wait returns when everything started is done.
func (x *indexer) wait() error {
	x.running.Wait()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.err != nil {
		return x.err
	}
	return errors.Join(x.failed...)
}

// smallTable is up to where all indexes of a table are built in one transaction, since round trips would take longer
// than the builds.
const smallTable = 16 << 20

// isUnbuilt tells whether a table that takes part in rounds has indexes that were not built yet.
func (x *indexer) isUnbuilt(t TableStatus) bool {
	return (t.State == TableIndexed || t.State == TableLive) &&
		slices.ContainsFunc(x.byTable[t.Table.ID], func(o SchemaObject) bool {
			return o.State == ObjectPending || o.State == ObjectFailed
		})
}

// table builds a table's indexes and collects its statistics.
func (x *indexer) table(ctx context.Context, t TableStatus) error {
	if err := x.dst.Journal().SetTable(ctx, t.Table, TableCopying, TableIndexing); err != nil {
		return err
	}
	objects := x.byTable[t.Table.ID]
	var failed error // it keeps the table from nothing else
	if t.BytesTotal <= smallTable {
		failed = x.slot(ctx, func() error { return x.build(ctx, t, objects) })
	} else {
		failed = x.byGroups(ctx, t, objects)
	}
	if failed != nil && !errors.As(failed, new(*ObjectError)) {
		return failed
	}
	if err := x.slot(ctx, func() error { return x.dst.Analyze(ctx, t.Table) }); err != nil {
		return err
	}
	if err := x.dst.Journal().SetTable(ctx, t.Table, TableIndexing, TableIndexed); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	message := t.Table.String() + ": indexes built"
	notify(x.cfg.OnEvent, Event{Kind: EventTable, Phase: PhaseRebuildingIndexes, Table: t.Table, Message: message})
	return nil
}

// byGroups builds a large table's indexes, each in a transaction of its own if it may take long: first constraints,
// and the like, which take the table for themselves; then indexes, several at once; then what refers to them.
func (x *indexer) byGroups(ctx context.Context, t TableStatus, objects []SchemaObject) error {
	var alone, indexes, rest []SchemaObject
	for _, o := range objects {
		switch {
		case o.Type == "INDEX" && !strings.Contains(o.SQL, "ALTER TABLE "):
			indexes = append(indexes, o)
		// One that marks the table takes a lock that builds beside it hold off.
		case o.Type == "CONSTRAINT", o.Type == "INDEX":
			alone = append(alone, o)
		default:
			rest = append(rest, o)
		}
	}
	// The partitions of a table are about as large as each other, as far as anybody knows here.
	leaf := t.BytesTotal / int64(max(1, len(t.Table.Leaves)))
	small := int(max(1, smallTable/max(1, leaf)))
	var failed []error
	var mu sync.Mutex
	build := func(ctx context.Context, group []SchemaObject) error {
		err := x.slot(ctx, func() error { return x.build(ctx, t, group) })
		if errors.As(err, new(*ObjectError)) {
			mu.Lock()
			defer mu.Unlock()
			failed = append(failed, err)
			return nil
		}
		return err
	}
	for group := range slices.Chunk(alone, small) {
		if err := build(ctx, group); err != nil {
			return err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	for group := range slices.Chunk(indexes, small) {
		g.Go(func() error { return build(gctx, group) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if len(failed) == 0 && len(rest) > 0 { // else what refers to an index would fail only because that one did
		if err := build(ctx, rest); err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}

// analyzeChanged collects the statistics again of tables that the round made others: it may have brought all of their
// rows.
func (x *indexer) analyzeChanged(ctx context.Context, tables []TableStatus, changes []RoundChange) error {
	copied := map[uint32]int64{}
	for _, t := range tables {
		copied[t.Table.ID] = t.RowsCopied
	}
	const tenth = 10 // autovacuum's own measure
	for _, c := range changes {
		if c.Rows*tenth > copied[c.Table.ID] {
			if err := x.dst.Analyze(ctx, c.Table); err != nil {
				return err
			}
		}
	}
	return nil
}

// analyzeLate collects the statistics of tables that got something to collect them for only now: statistics objects and
// expressions of indexes that use functions which depend on keys.
func (x *indexer) analyzeLate(ctx context.Context, tables []TableStatus) error {
	late := map[uint32]struct{}{}
	for _, o := range x.objects {
		if o.Stage == StageFinish && (o.Type == "STATISTICS" || o.Type == "INDEX") {
			late[o.Table] = struct{}{}
		}
	}
	for _, t := range tables {
		if _, ok := late[t.Table.ID]; ok {
			if err := x.dst.Analyze(ctx, t.Table); err != nil {
				return err
			}
		}
	}
	return nil
}

// slot runs fn when fewer than Workers others run.
func (x *indexer) slot(ctx context.Context, fn func() error) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-x.broken:
		return context.Canceled // the cause is known already
	case x.slots <- struct{}{}:
	}
	defer func() { <-x.slots }()
	return fn()
}

// build creates objects, and tells which ones took how long.
func (x *indexer) build(ctx context.Context, t TableStatus, objects []SchemaObject) error {
	for _, o := range objects {
		if o.State == ObjectFailed {
			return &ObjectError{Object: o, Err: errors.New(o.Error)}
		}
	}
	objects = slices.DeleteFunc(slices.Clone(objects), func(o SchemaObject) bool { return o.State != ObjectPending })
	if len(objects) == 0 {
		return nil
	}
	began := time.Now()
	if err := createObjects(ctx, x.dst, x.cfg.Logger, objects, objects[0].Stage); err != nil {
		return err
	}
	message := objects[0].String() + " built"
	switch {
	case objects[0].Type == typeValidation:
		message = strings.TrimPrefix(objects[0].String(), "fk validation ") + " validated"
	case len(objects) > 1:
		message = fmt.Sprintf("%s and %d others built", objects[0], len(objects)-1)
	}
	notify(x.cfg.OnEvent, Event{Kind: EventObject, Phase: PhaseRebuildingIndexes, Table: t.Table,
		Took: time.Since(began), Message: message})
	return nil
}

// foreignKeys adds all foreign keys without looking at the rows, which takes no time, and then has them validated,
// those of several tables at once. Rows cannot come in between that violate them: none are applied meanwhile.
func (x *indexer) foreignKeys(ctx context.Context) error {
	var adding []SchemaObject
	validating := map[uint32][]SchemaObject{}
	for _, o := range x.objects {
		switch {
		case o.Stage == StageForeign && o.Type == typeValidation:
			validating[o.Table] = append(validating[o.Table], o)
		case o.Stage == StageForeign:
			adding = append(adding, o)
		}
	}
	if err := createObjects(ctx, x.dst, x.cfg.Logger, adding, StageForeign); err != nil {
		return err
	}
	tables, err := x.dst.Journal().Tables(ctx)
	if err != nil {
		return err
	}
	for _, t := range tables {
		x.running.Go(func() {
			for _, o := range validating[t.Table.ID] { // a table is locked against more than one at once
				if err := x.slot(ctx, func() error { return x.build(ctx, t, []SchemaObject{o}) }); err != nil {
					x.fail(err)
				}
			}
		})
	}
	return x.wait()
}

// RetryIndexes forgets that objects failed, so that the next [BuildIndexes] tries them again. [Migrator.Run] calls it
// when it is started again after a failure.
func RetryIndexes(ctx context.Context, dst Target) error {
	objects, err := dst.Journal().Objects(ctx)
	if err != nil {
		return err
	}
	var errs error
	for _, o := range objects {
		if o.State == ObjectFailed {
			errs = errors.Join(errs, dst.Journal().MarkObject(ctx, o.ID, ObjectPending, ""))
		}
	}
	return errs
}
