package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/heroku-migrator/migrator"
)

// phase is one step, and where the migration has to stand for it. Without that, it needs no lead.
type phase struct {
	name, does string
	in         []migrator.Phase
	run        func(context.Context, migrator.Source, migrator.Target) error
}

var phases = []phase{
	{"preflight", "look whether anything is in the way; changes nothing", nil, preflight},
	{"clone-schema", "create types, functions, tables and views on the target", []migrator.Phase{migrator.PhaseStarting, migrator.PhaseConfiguring}, cloneSchema},
	{"capture", "from now on, every change on the source is noted", []migrator.Phase{migrator.PhaseConfiguring}, capture},
	{"copy", "copy the rows that are there", []migrator.Phase{migrator.PhaseReadyToCopy, migrator.PhaseCopying}, copyRows},
	{"build-indexes", "build indexes and constraints, and bring all tables to one state", []migrator.Phase{migrator.PhaseRebuildingIndexes}, buildIndexes},
	{"replicate", "carry changes to the target, until interrupted", []migrator.Phase{migrator.PhaseReplicating}, replicate},
	{"verify", "compare every row while the application writes", []migrator.Phase{migrator.PhaseReplicating}, verify},
	{"switch", "the source refuses writes, the target has everything and takes over", []migrator.Phase{migrator.PhaseReplicating}, cutover},
	{"way-back", "carry what is written on the target to the source, until interrupted", []migrator.Phase{migrator.PhaseSwitched}, wayBack},
	{"revert", "the source takes over again, with every row", []migrator.Phase{migrator.PhaseSwitched}, revert},
	{"complete", "remove everything of the migration", []migrator.Phase{migrator.PhaseSwitched, migrator.PhaseCleaningUp}, complete},
}

func preflight(ctx context.Context, src migrator.Source, dst migrator.Target) error {
	report, err := migrator.Preflight(ctx, src, dst, migrator.PreflightConfig{})
	if err != nil {
		return err
	}
	for _, f := range report.Findings {
		fmt.Println(f.Severity, f.Message, f.Remedy)
	}
	return report.Err()
}

func cloneSchema(ctx context.Context, src migrator.Source, dst migrator.Target) error {
	if err := advance(ctx, dst, migrator.PhaseStarting, migrator.PhaseConfiguring); err != nil {
		return err
	}
	return migrator.CloneSchema(ctx, src, dst, migrator.CloneSchemaConfig{})
}

func capture(ctx context.Context, src migrator.Source, dst migrator.Target) error {
	if err := migrator.Capture(ctx, src, dst, migrator.CaptureConfig{}); err != nil {
		return err
	}
	return advance(ctx, dst, migrator.PhaseConfiguring, migrator.PhaseReadyToCopy)
}

func copyRows(ctx context.Context, src migrator.Source, dst migrator.Target) error {
	if err := advance(ctx, dst, migrator.PhaseReadyToCopy, migrator.PhaseCopying); err != nil {
		return err
	}
	if err := migrator.Copy(ctx, src, dst, migrator.CopyConfig{}); err != nil {
		return err
	}
	return advance(ctx, dst, migrator.PhaseCopying, migrator.PhaseRebuildingIndexes)
}

func buildIndexes(ctx context.Context, src migrator.Source, dst migrator.Target) error {
	if err := migrator.BuildIndexes(ctx, src, dst, migrator.IndexConfig{}); err != nil {
		return err
	}
	return advance(ctx, dst, migrator.PhaseRebuildingIndexes, migrator.PhaseReplicating)
}

// replicate follows changes of the schema, too.
func replicate(ctx context.Context, src migrator.Source, dst migrator.Target) error {
	for {
		err := migrator.Replicate(ctx, src, dst, migrator.ReplicateConfig{})
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // it was interrupted
		case !errors.Is(err, migrator.ErrSchemaChanged):
			return err
		}
		changes, err := migrator.FollowSchema(ctx, src, dst)
		if err != nil {
			return err
		}
		fmt.Println("followed:", changes)
	}
}

func verify(ctx context.Context, src migrator.Source, dst migrator.Target) error {
	v, err := migrator.VerifyOnline(ctx, src, dst, false, func(table *migrator.Table, rows int64, differs bool) {
		fmt.Println(table, rows, "rows, differs:", differs)
	})
	if err == nil && len(v.Differences) > 0 {
		err = fmt.Errorf("%d tables differ", len(v.Differences))
	}
	return err
}

func cutover(ctx context.Context, src migrator.Source, dst migrator.Target) error {
	report, err := migrator.Cutover(ctx, src, dst, migrator.CutoverConfig{})
	if err == nil {
		fmt.Println("switched;", report.WithoutWrites.Milliseconds(), "ms without writes: point the application to the target")
	}
	return err
}

func wayBack(ctx context.Context, src migrator.Source, dst migrator.Target) error {
	err := migrator.WayBack(ctx, src, dst, migrator.WayBackConfig{})
	if ctx.Err() != nil {
		return nil //nolint:nilerr // it was interrupted
	}
	return err
}

func revert(ctx context.Context, src migrator.Source, dst migrator.Target) error {
	report, err := migrator.Revert(ctx, src, dst, migrator.CutoverConfig{})
	if err == nil {
		fmt.Println("reverted;", report.WithoutWrites.Milliseconds(), "ms without writes: point the application to the source")
	}
	return err
}

func complete(ctx context.Context, src migrator.Source, dst migrator.Target) error {
	state, err := dst.Journal().State(ctx)
	if err == nil && state.Phase != migrator.PhaseCleaningUp {
		err = dst.Journal().SetGoal(ctx, state.Phase, migrator.PhaseCompleted, "cleaning up")
	}
	if err != nil {
		return err
	}
	return migrator.Cleanup(ctx, src, dst, migrator.CleanupConfig{})
}

// advance notes that the next phase has begun, unless it has already.
func advance(ctx context.Context, dst migrator.Target, from, to migrator.Phase) error {
	state, err := dst.Journal().State(ctx)
	if err != nil || state.Phase == to {
		return err
	}
	return dst.Journal().Advance(ctx, from, to, "")
}
