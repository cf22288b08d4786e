package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/heroku-migrator/migrator"
)

// program is one invocation.
type program struct {
	options
	out *output
	m   *migrator.Migrator
	src *migrator.Heroku
	dst *migrator.PlanetScale
	log *slog.Logger
	// drawn tells that somebody looks at a terminal, where progress is drawn.
	drawn bool
}

func (p *program) preflight(ctx context.Context) error {
	report, err := p.m.Preflight(ctx)
	if err != nil {
		return err
	}
	for _, f := range report.Findings {
		p.out.object(struct {
			Type string `json:"type"`
			migrator.Finding
		}{"finding", f})
		p.out.linef("%-8s %s", f.Severity, f.Message)
		if f.Remedy != "" {
			p.out.linef("%-8s   → %s", "", f.Remedy)
		}
	}
	if refused := new(migrator.RefusedError); errors.As(report.Err(), &refused) {
		refused.Action = "preflight"
		return refused
	}
	p.out.result(map[string]any{"ok": true, "message": "Nothing is in the way."}, "\nNothing is in the way.")
	return nil
}

func (p *program) status(ctx context.Context) error {
	home := ""
	if p.drawn {
		home = "\x1b[H\x1b[2J"
	}
	for seen := false; ; seen = true {
		s, err := p.m.Status(ctx)
		if err == nil && p.values {
			s.SetAside, err = p.m.AsideTables(ctx, true)
		}
		if p.watch && ctx.Err() != nil {
			return p.stopped(ctx, nil)
		}
		switch {
		case err != nil && (!p.watch || !seen || !migrator.Retryable(err)):
			return err
		case err != nil:
			p.out.object(map[string]any{"type": migrator.EventWaiting, "at": now(), "message": err.Error()})
			p.out.linef("waiting: %v", err)
		case !p.watch:
			p.out.object(s)
			p.out.linef("%s", describe(s))
			return nil
		default:
			p.out.object(s)
			p.out.linef("%s%s\n", home, describe(s))
		}
		select {
		case <-ctx.Done():
			return p.stopped(ctx, nil)
		case <-time.After(time.Second):
		}
	}
}

// describe writes a status for people.
func describe(s *migrator.Status) string {
	b := &strings.Builder{}
	fmt.Fprintf(b, "phase     %s", s.Phase)
	if s.State == migrator.StatePaused {
		b.WriteString(" (paused)")
	}
	b.WriteString("\n")
	if s.Message != "" && s.Error == nil {
		fmt.Fprintf(b, "          %s\n", s.Message)
	}
	if s.Error != nil {
		fmt.Fprintf(b, "error     %s\n", *s.Error)
	}
	if s.Phase == migrator.PhaseWaiting {
		return strings.TrimRight(b.String(), "\n")
	}
	if s.Leader != "" {
		fmt.Fprintf(b, "leader    %s (now or last)\n", s.Leader)
	}
	w := s.ProgressSignals.ByteWeighted
	fmt.Fprintf(b, "copied    %s of %s (%.0f %%)", size(w.CopiedBytes), size(w.TotalBytes), w.Percent)
	eta := s.ProgressSignals.ThroughputETA
	fmt.Fprintf(b, "%s\n", speed(eta.BytesPerSecond, eta.AverageBytesPerSecond, eta.ETASeconds))
	if s.Throttle != nil {
		fmt.Fprintf(b, "throttle  at %.0f %% of full speed: %s\n", s.Throttle.Percent, s.Throttle.Reason)
	}
	for _, w := range s.Workers {
		fmt.Fprintf(b, "copying   %s: %d rows, %s in %s (%s)\n", w.Table, w.Rows, size(w.Bytes), duration(w.Seconds),
			w.Process)
	}
	for _, i := range s.Builds {
		fmt.Fprintf(b, "building  %s: %s, %.0f %%, %s\n", i.Object, i.Phase, i.Percent, duration(i.Seconds))
	}
	copied := s.Phase == migrator.PhaseCopying || s.Phase == migrator.PhaseRebuildingIndexes
	if i, f := s.Objects[migrator.StageIndexes], s.Objects[migrator.StageForeign]; copied {
		fmt.Fprintf(b, "objects   %d of %d indexes and constraints, %d of %d foreign keys and validations\n", i.Done,
			i.Total, f.Done, f.Total)
	}
	for _, f := range s.Failed {
		fmt.Fprintf(b, "failed    %s: %s; `heroku-migrate run` tries it again\n", f.Object, f.Error)
	}
	for _, a := range s.SetAside {
		fmt.Fprintf(b, "aside     %s\n", a)
	}
	if s.LagSeconds != nil {
		fmt.Fprintf(b, "lag       %.1f s", *s.LagSeconds)
		if d := s.ProgressSignals.ReplicationDelay; s.Phase == migrator.PhaseReplicating {
			fmt.Fprintf(b, ", %s; %.0f rows/s come in, %.0f rows/s can be applied", d.Trend, d.RowsPerSecondIn,
				d.RowsPerSecondOut)
			if d.RowsWaiting > 0 {
				fmt.Fprintf(b, "; %d wait", d.RowsWaiting)
				if d.CatchUpSeconds != nil {
					fmt.Fprintf(b, ", for %s", duration(*d.CatchUpSeconds))
				}
			}
		}
		b.WriteString("\n")
	}
	if d := s.ProgressSignals.ReplicationDelay; d.Rounds > 0 {
		fmt.Fprintf(b, "changes   %d rows in %d rounds\n", d.RowsApplied, d.Rounds)
	}
	if r := s.Report; r != nil && s.Phase == migrator.PhaseSwitched {
		fmt.Fprintf(b, "switch    done at %s, %d ms without writes\n", r.At.UTC().Format(time.RFC3339),
			r.WithoutWrites.Milliseconds())
	} else {
		fmt.Fprintf(b, "switch    %s\n", strings.ReplaceAll(s.CutoverReadiness.Level, "_", " "))
	}
	describeState(b, s)
	for _, note := range s.CutoverReadiness.Notes {
		fmt.Fprintf(b, "          (%s)\n", note)
	}
	for _, reason := range append(s.CutoverReadiness.HardBlockers, s.CutoverReadiness.SoftBlockers...) {
		fmt.Fprintf(b, "          - %s\n", reason)
	}
	if s.ProgressSignals.StallDetection.Stalled {
		fmt.Fprintf(b, "stalled   %s\n", s.ProgressSignals.StallDetection.Reason)
	}
	for _, o := range s.Skipped {
		fmt.Fprintf(b, "left out  %s\n", o)
	}
	for _, o := range s.NotValid {
		fmt.Fprintf(b, "NOT VALID %s\n", o)
	}
	b.WriteString("\n")
	if len(s.Tables) == 0 {
		return strings.TrimRight(b.String(), "\n")
	}
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "table\tstate\trows\tcopied\tof\tformat")
	for _, table := range s.Tables {
		fmt.Fprintf(t, "%s.%s\t%s\t%d\t%s\t%s\t%s\n", table.Schema, table.Name, table.State, table.RowsCopied,
			size(table.BytesCopied), size(table.BytesTotal), table.Format)
	}
	_ = t.Flush() // into memory
	return strings.TrimRight(b.String(), "\n")
}

// describeState writes what a migration has beside its progress.
func describeState(b *strings.Builder, s *migrator.Status) {
	if l := s.Log; l != nil && l.Bytes > 0 {
		fmt.Fprintf(b, "log       %s on the source, %s old\n", size(l.Bytes), duration(l.AgeSeconds))
		if l.Warning != "" {
			fmt.Fprintf(b, "          %s\n", l.Warning)
		}
	}
	if w := s.Waiting; w != nil {
		fmt.Fprintf(b, "waiting   since %s: %s\n", w.Since.UTC().Format(time.RFC3339), w.Reason)
	}
	if w := s.WayBack; w != nil {
		switch {
		case !w.Enabled:
			b.WriteString("way back  off: a revert would leave behind what is written on the target\n")
		case w.Error != "":
			fmt.Fprintf(b, "way back  waits: %s\n", w.Error)
		case w.LagSeconds != nil:
			fmt.Fprintf(b, "way back  the source is %.1f s behind; %d rows in %d rounds\n", *w.LagSeconds, w.Rows,
				w.Rounds)
		default:
			b.WriteString("way back  no process keeps it open; what is written on the target waits in its log\n")
		}
		for _, t := range w.Held {
			fmt.Fprintf(b, "held back %s\n", t)
		}
	}
	if v := s.Verification; v != nil {
		fmt.Fprintf(b, "verified  %d rows in %d tables at %s, %d differ\n", v.Rows, v.Tables,
			v.At.UTC().Format(time.RFC3339), len(v.Differences))
	}
	for _, h := range s.Hooks {
		if h.State != "done" {
			fmt.Fprintf(b, "hook      %s %s %s\n", h.Point, h.State, h.Error)
		}
	}
}

// command has one of the migration's commands carried out.
func (p *program) command(ctx context.Context, name migrator.CommandName) error {
	result, err := p.m.Do(ctx, name, p.force)
	switch {
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("interrupted: %s was withdrawn, or is under way in the process that runs the migration; "+
			"`heroku-migrate status` tells", name)
	case err != nil && name == migrator.CommandAbort:
		return p.abortWithoutJournal(ctx, err)
	case err != nil:
		return err
	}
	fields := map[string]any{"ok": true, "message": result.Message}
	hook := p.late(ctx, name)
	if hook != nil {
		fields["hook"] = hook
	}
	next := p.nextSteps(ctx, name, hook)
	if next != "" {
		fields["next"] = next
	}
	p.out.result(fields, string(name)+": "+result.Message)
	if next != "" {
		p.out.linef("\n%s", next)
	}
	return nil
}

// abortWithoutJournal cleans a source whose target, and with it the journal, is gone.
func (p *program) abortWithoutJournal(ctx context.Context, cause error) error {
	_, err := p.dst.Journal().State(ctx)
	switch {
	case err != nil && !errors.Is(err, migrator.ErrNoMigration) && p.force:
		return fmt.Errorf("%w; --force cleans the source when no migration is recorded on the target, which could "+
			"not be read: if that database is gone for good, give a new, empty one as the target", cause)
	case !errors.Is(err, migrator.ErrNoMigration):
		return cause
	case !p.force:
		return &migrator.RefusedError{Action: "abort", CanForce: true, Reasons: []string{
			"No migration is recorded in the target database. If one was, and its database is gone, --force removes " +
				"what it left on the source. Make sure that none is alive with another target: it would lose changes.",
		}}
	}
	message := "nothing of a migration is left on the source"
	for deadline := time.Now().Add(time.Minute); ; {
		left, err := p.src.ReleaseUnclaimed(ctx)
		for _, reason := range left {
			p.log.WarnContext(ctx, reason)
		}
		// our schema is not there
		if pg := new(pgconn.PgError); err == nil || (errors.As(err, &pg) && pg.Code == "3F000") {
			break
		}
		if !errors.Is(err, migrator.ErrBusy) || time.Now().After(deadline) {
			return err
		}
		p.log.WarnContext(ctx, "waiting for a lock", "error", err)
		select {
		case <-ctx.Done():
			return errors.New("interrupted: something may be left on the source; give the command again")
		case <-time.After(2 * time.Second):
		}
	}
	p.out.result(map[string]any{"ok": true, "message": message}, "abort: "+message)
	return nil
}

// stopped turns the end by a signal into a clean one.
func (p *program) stopped(ctx context.Context, err error) error {
	switch {
	case errors.Is(context.Cause(ctx), errStdout) && p.options.command == "status":
		return nil // it has nothing else to do
	case errors.Is(context.Cause(ctx), errStdout):
		return errStdout
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return nil
	}
	return err
}
