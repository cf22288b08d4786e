package migrator

import (
	"context"
	"errors"
	"log/slog"

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

// BuildIndexes makes the copied tables whole: indexes and constraints, table by table; then a round that
// brings all of them to one snapshot; then foreign keys, triggers, materialised views and the planner's
// statistics. Repeated, it goes on where it was.
func BuildIndexes(ctx context.Context, src Source, dst Target, cfg IndexConfig) error {
	if cfg.Workers <= 0 {
		cfg.Workers = 2
	}
	log := logger(cfg.Logger)
	objects, err := dst.Journal().Objects(ctx)
	if err != nil {
		return err
	}
	tables, err := dst.Journal().Tables(ctx)
	if err != nil {
		return err
	}
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
				if err := createObjects(gctx, dst, log, []SchemaObject{o}, StageIndexes); err != nil {
					return err
				}
			}
			notify(cfg.OnEvent, Event{Kind: EventTable, Phase: PhaseRebuildingIndexes, Table: t.Table, Message: t.Table.String() + ": indexes built"})
			return dst.Journal().SetTable(gctx, t.Table, TableIndexed)
		})
	}
	if err := g.Wait(); err != nil {
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
