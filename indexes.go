package migrator

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// IndexConfig configures [BuildIndexes]. The zero value is good.
type IndexConfig struct {
	// Workers is how many tables are worked on at once. Default: 2.
	Workers int
	Logger  *slog.Logger
	// OnEvent is called when a table has its indexes.
	OnEvent func(Event)
}

func (c IndexConfig) withDefaults() IndexConfig {
	if c.Workers <= 0 {
		c.Workers = 2
	}
	c.Logger = logger(c.Logger)
	return c
}

// BuildIndexes makes the copied tables whole: indexes and constraints, table by table; then a round that
// brings all of them to one snapshot; then foreign keys, triggers, materialised views and the planner's
// statistics. Repeated, it goes on where it was.
func BuildIndexes(ctx context.Context, src Source, dst Target, cfg IndexConfig) error {
	cfg = cfg.withDefaults()
	log := cfg.Logger
	objects, err := dst.Journal().Objects(ctx)
	if err != nil {
		return err
	}
	tables, err := dst.Journal().Tables(ctx)
	if err != nil {
		return err
	}
	if err := buildTables(ctx, dst, cfg, objects, tables); err != nil {
		return err
	}
	r, err := newReplicator(ctx, src, dst, ReplicateConfig{Logger: cfg.Logger, OnEvent: cfg.OnEvent})
	if err != nil {
		return err
	}
	if _, err := r.round(ctx); err != nil {
		return err
	}
	for _, stage := range []Stage{StageForeign, StageFinish} {
		if err := createObjects(ctx, dst, log, objects, stage); err != nil {
			return err
		}
	}
	return analyze(ctx, dst, tables, cfg.Workers)
}

// buildTables builds the indexes of the tables that are in state indexing, several tables at once.
func buildTables(ctx context.Context, dst Target, cfg IndexConfig, objects []SchemaObject, tables []TableStatus) error {
	byTable := map[uint32][]SchemaObject{}
	for _, o := range objects {
		byTable[o.Table] = append(byTable[o.Table], o)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(cfg.Workers)
	for _, t := range tables {
		if t.State != TableIndexing {
			continue
		}
		g.Go(func() error {
			for _, o := range byTable[t.Table.ID] { // one by one: an index may take an hour
				if err := createObjects(gctx, dst, cfg.Logger, []SchemaObject{o}, StageIndexes); err != nil {
					return err
				}
			}
			notify(cfg.OnEvent, Event{Kind: EventTable, Phase: PhaseRebuildingIndexes, Table: t.Table, Message: t.Table.String() + ": indexes built"})
			return dst.Journal().SetTable(gctx, t.Table, TableIndexing, TableIndexed)
		})
	}
	return g.Wait()
}

// BuildIndexesMeanwhile builds the indexes of each table as soon as its last chunk is there, while others are
// still copied. It returns when copied is closed and what it had begun is built; [BuildIndexes] does the rest.
func BuildIndexesMeanwhile(ctx context.Context, dst Target, copied <-chan struct{}, cfg IndexConfig) error {
	cfg = cfg.withDefaults()
	objects, err := dst.Journal().Objects(ctx)
	if err != nil {
		return err
	}
	for {
		tables, err := dst.Journal().Tables(ctx)
		if err != nil {
			return err
		}
		// The largest that are there first: the others fill the gaps.
		var ready []TableStatus
		for _, t := range tables {
			if t.State == TableIndexing || (t.State == TableCopying && t.Chunks == t.ChunksDone) {
				ready = append(ready, t)
			}
		}
		slices.SortFunc(ready, func(a, b TableStatus) int { return cmp.Compare(b.BytesTotal, a.BytesTotal) })
		ready = ready[:min(len(ready), 2*cfg.Workers)]
		for i := range ready {
			if err := dst.Journal().SetTable(ctx, ready[i].Table, TableCopying, TableIndexing); err != nil {
				return err
			}
			ready[i].State = TableIndexing
		}
		if err := buildTables(ctx, dst, cfg, objects, ready); err != nil {
			return err
		}
		if objects, err = dst.Journal().Objects(ctx); err != nil { // what is done is not done again
			return err
		}
		if len(ready) > 0 {
			select {
			case <-copied:
				return nil
			default:
				continue
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-copied:
			return nil
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func analyze(ctx context.Context, dst Target, tables []TableStatus, workers int) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	for _, t := range tables {
		g.Go(func() error { return dst.Analyze(gctx, t.Table) })
	}
	return g.Wait()
}

// RetryIndexes forgets that objects failed, so that the next [BuildIndexes] tries them again.
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
