package main

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/heroku-migrator/migrator"
)

// unconfigured stands where the migration would be when the environment has mistakes: the page is served all the same, and says
// what they are and what to set. An app that ends at once shows nothing.
type unconfigured struct{ problems []problem }

// reasons are the mistakes, each with what to do about it.
func (u unconfigured) reasons() []string {
	var list []string
	for _, p := range u.problems {
		list = append(list, p.message+" "+p.remedy)
	}
	return list
}

func (u unconfigured) err() error {
	return errors.New("the configuration is not complete. " + strings.Join(u.reasons(), " "))
}

// Status implements [dashboard.Migration], as all that follow. Nothing has begun, and the error says why.
func (u unconfigured) Status(context.Context) (*migrator.Status, error) {
	text := u.err().Error()
	return &migrator.Status{
		Phase: migrator.PhaseWaiting, State: migrator.StateRunning, Error: &text, Message: "see preflight for what to set",
		Tables:           []migrator.TableSummary{},
		CutoverReadiness: migrator.ReadinessStatus{Level: "not_ready", HardBlockers: []string{}, SoftBlockers: []string{}, Notes: []string{}},
		ProgressSignals:  migrator.ProgressSignals{TablePhase: map[migrator.TableState]int{}, EventChecklist: map[string]bool{}},
	}, nil
}

// serve leaves everything to the dashboard but whether this process is ready: it is not.
func (u unconfigured) serve(d http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/readyz" && r.Method == http.MethodGet {
			answerJSON(w, http.StatusServiceUnavailable, `{"ready":false,"reasons":["the configuration is not complete: see /status"]}`)
			return
		}
		d.ServeHTTP(w, r)
	})
}

// Subscribe returns a channel on which nothing comes.
func (u unconfigured) Subscribe(int) (events <-chan migrator.Event, unsubscribe func()) {
	none := make(chan migrator.Event)
	return none, func() { close(none) }
}

// Do refuses.
func (u unconfigured) Do(_ context.Context, name migrator.CommandName, _ bool) (*migrator.Result, error) {
	return nil, &migrator.RefusedError{Action: string(name), Reasons: u.reasons()}
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
func (u unconfigured) Run(context.Context, migrator.Until) error {
	return &migrator.RefusedError{Action: "run", Reasons: u.reasons()}
}

// Identify cannot.
func (u unconfigured) Identify(context.Context) (source, target migrator.Identity, err error) {
	return source, target, u.err()
}

// SetIndexWorkers does nothing.
func (u unconfigured) SetIndexWorkers(int) {}
