package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"text/tabwriter"
	"time"

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
	if err := report.Err(); err != nil {
		return err
	}
	p.out.result(map[string]any{"ok": true, "command": "preflight"}, "\nNothing is in the way.")
	return nil
}

func (p *program) status(ctx context.Context) error {
	for {
		s, err := p.m.Status(ctx)
		if err != nil && (!p.watch || !migrator.Retryable(err)) {
			return p.stopped(ctx, err, "")
		}
		if err == nil {
			if p.watch && !p.out.json {
				fmt.Print("\x1b[H\x1b[2J") // a clean screen
			}
			p.out.object(s)
			p.out.linef("%s", describe(s))
		}
		if !p.watch {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
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
	fmt.Fprintf(b, "\n          %s\n", s.Message)
	if s.Error != nil {
		fmt.Fprintf(b, "error     %s\n", *s.Error)
	}
	if s.Phase == migrator.PhaseWaiting {
		return strings.TrimRight(b.String(), "\n")
	}
	w := s.ProgressSignals.ByteWeighted
	fmt.Fprintf(b, "copied    %s of %s (%.0f %%)", size(w.CopiedBytes), size(w.TotalBytes), w.Percent)
	if eta := s.ProgressSignals.ThroughputETA; eta.ETASeconds != nil {
		fmt.Fprintf(b, ", %s/s, %s left", size(int64(eta.BytesPerSecond)), (time.Duration(*eta.ETASeconds) * time.Second).String())
	}
	b.WriteString("\n")
	if s.LagSeconds != nil {
		fmt.Fprintf(b, "lag       %.1f s\n", *s.LagSeconds)
	}
	fmt.Fprintf(b, "switch    %s\n", s.CutoverReadiness.Level)
	for _, reason := range append(s.CutoverReadiness.HardBlockers, s.CutoverReadiness.SoftBlockers...) {
		fmt.Fprintf(b, "          - %s\n", reason)
	}
	if s.ProgressSignals.StallDetection.Stalled {
		fmt.Fprintf(b, "stalled   %s\n", s.ProgressSignals.StallDetection.Reason)
	}
	for _, o := range s.Skipped {
		fmt.Fprintf(b, "left out  %s\n", o)
	}
	b.WriteString("\n")
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "table\tstate\trows\tcopied\tof\tformat")
	for _, table := range s.Tables {
		fmt.Fprintf(t, "%s.%s\t%s\t%d\t%s\t%s\t%s\n", table.Schema, table.Name, table.State, table.RowsCopied,
			size(table.BytesCopied), size(table.BytesTotal), table.Format)
	}
	_ = t.Flush() // into memory
	return strings.TrimRight(b.String(), "\n")
}

// command has one of the migration's commands carried out.
func (p *program) command(ctx context.Context, name migrator.CommandName) error {
	result, err := p.m.Do(ctx, name, p.force)
	if err != nil && name == migrator.CommandAbort {
		return p.abortWithoutJournal(ctx, err)
	}
	if err != nil {
		return err
	}
	p.out.result(map[string]any{"ok": true, "command": name, "message": result.Message}, string(name)+": "+result.Message)
	if next := nextSteps[name]; next != "" {
		p.out.linef("\n%s", next)
	}
	return nil
}

// nextSteps is what to do after a command.
var nextSteps = map[migrator.CommandName]string{
	migrator.CommandSwitch: `Now point the application to PlanetScale:

  heroku config:set DATABASE_URL='<your PlanetScale URL>' -a <your app>

If Heroku answers "Cannot overwrite attachment values DATABASE_URL", give the old database another name first:

  heroku addons:attach <your database add-on> --as OLD_DATABASE -a <your app>
  heroku addons:detach DATABASE -a <your app>

Try the application out. Then either

  heroku-migrate complete     # done: removes everything of the migration
  heroku-migrate revert       # back: the Heroku database takes writes again`,
	migrator.CommandComplete: `To prove that nothing is left on the Heroku database, both of these return 0:

  SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'heroku_migrator_%';
  SELECT count(*) FROM pg_namespace WHERE nspname = 'heroku_migrator';`,
}

// abortWithoutJournal cleans a source whose target, and with it the journal, is gone.
func (p *program) abortWithoutJournal(ctx context.Context, cause error) error {
	_, err := p.dst.Journal().State(ctx)
	if !errors.Is(err, migrator.ErrNoMigration) {
		return cause
	}
	if !p.force {
		return &migrator.RefusedError{Action: "abort", CanForce: true, Reasons: []string{
			"No migration is recorded in the target database. If its target is gone, `heroku-migrate abort --force` removes what a migration left on the source.",
		}}
	}
	for deadline := time.Now().Add(time.Minute); ; {
		err := p.src.ReleaseUnclaimed(ctx)
		if err == nil {
			break
		}
		if !errors.Is(err, migrator.ErrBusy) || time.Now().After(deadline) {
			return err
		}
		p.log.WarnContext(ctx, "waiting for a lock", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Second):
		}
	}
	p.out.result(map[string]any{"ok": true, "command": "abort", "message": "nothing is left on the source"}, "abort: nothing is left on the source")
	return nil
}

// stopped turns the end by a signal into a clean one.
func (p *program) stopped(ctx context.Context, err error, message string) error {
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		message, err = "stopped; everything that was committed is kept, and the same command goes on", nil
	}
	if err == nil && message != "" {
		p.out.result(map[string]any{"ok": true, "command": p.options.command, "message": message}, message)
	}
	return err
}
