// Command phases runs one phase of a migration at a time, by the library's functions: phases.go has them in their order, each in a few lines.
//
//	export HEROKU_URL=… PLANETSCALE_URL=…
//	go run ./examples/phases               # lists them
//	go run ./examples/phases preflight
//	go run ./examples/phases clone-schema  # and so on
//
// Each may be interrupted and repeated: it goes on where it was. A program that wants all of this in one call has [migrator.Migrator.Run].
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/heroku-migrator/migrator"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "phases:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	i := -1
	if len(args) == 1 {
		i = slices.IndexFunc(phases, func(p phase) bool { return p.name == args[0] })
	}
	if i < 0 {
		for _, p := range phases {
			fmt.Printf("%-14s %s\n", p.name, p.does)
		}
		return errors.New("give one of these phases")
	}
	src, err := migrator.OpenHeroku(ctx, os.Getenv("HEROKU_URL"), migrator.HerokuConfig{})
	if err != nil {
		return fmt.Errorf("HEROKU_URL: %w", err)
	}
	defer src.Close()
	dst, err := migrator.OpenPlanetScale(ctx, os.Getenv("PLANETSCALE_URL"), migrator.PlanetScaleConfig{})
	if err != nil {
		return fmt.Errorf("PLANETSCALE_URL: %w", err)
	}
	defer dst.Close()
	p := phases[i]
	if len(p.in) == 0 {
		return p.run(ctx, src, dst)
	}
	return lead(ctx, src, dst, p)
}

// lead runs a phase as the process that leads the migration: one at most does at a time. What another was in the middle of when it died is
// finished or undone first.
func lead(ctx context.Context, src migrator.Source, dst migrator.Target, p phase) error {
	first := slices.Contains(p.in, migrator.PhaseStarting)
	lead, err := dst.Journal().TryLead(ctx, first)
	if err != nil {
		return err
	}
	if lead == nil {
		return errors.New("another process leads this migration: stop it first")
	}
	defer lead.Release() //nolint:contextcheck // it has to happen whatever became of the context
	state, err := dst.Journal().State(ctx)
	if err != nil {
		return err
	}
	if !slices.Contains(p.in, state.Phase) {
		return fmt.Errorf("the migration is in phase %s, and %s belongs to %v", state.Phase, p.name, p.in)
	}
	// The source has to know who leads, too. Capture makes our schema there.
	err = src.Claim(ctx, migrator.Claim{Migration: state.ID, Epoch: lead.Epoch}, p.name == "capture")
	if err != nil {
		return err
	}
	if err := migrator.Recover(ctx, src, dst); err != nil {
		return err
	}
	return p.run(ctx, src, dst)
}
