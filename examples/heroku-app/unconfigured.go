package main

import (
	"context"

	"github.com/heroku-migrator/migrator"
)

// unconfigured stands where the migration would be when the environment has mistakes: the page is served all the same, and says
// what they are and what to set. An app that ends at once shows nothing.
type unconfigured struct{ problems []problem }

func (u unconfigured) err() error {
	e := &migrator.RefusedError{Action: "the configuration is not complete: start"}
	for _, p := range u.problems {
		e.Reasons = append(e.Reasons, p.message+" "+p.remedy)
	}
	return e
}

// Status implements [dashboard.Migration], as all that follow.
func (u unconfigured) Status(context.Context) (*migrator.Status, error) { return nil, u.err() }

// Subscribe returns a channel on which nothing comes.
func (u unconfigured) Subscribe(int) (events <-chan migrator.Event, unsubscribe func()) {
	none := make(chan migrator.Event)
	return none, func() { close(none) }
}

// Do refuses.
func (u unconfigured) Do(context.Context, migrator.CommandName, bool) (*migrator.Result, error) {
	return nil, u.err()
}

// Preflight has one finding for each mistake.
func (u unconfigured) Preflight(context.Context) (*migrator.Report, error) {
	r := &migrator.Report{}
	for _, p := range u.problems {
		r.Findings = append(r.Findings, migrator.Finding{Check: "configuration", Severity: migrator.SeverityBlocker, Message: p.message, Remedy: p.remedy})
	}
	return r, nil
}

// Run refuses.
func (u unconfigured) Run(context.Context, migrator.Until) error { return u.err() }

// Identify cannot.
func (u unconfigured) Identify(context.Context) (source, target migrator.Identity, err error) {
	return source, target, u.err()
}

// SetIndexWorkers does nothing.
func (u unconfigured) SetIndexWorkers(int) {}
