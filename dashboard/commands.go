package dashboard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/heroku-migrator/migrator"
)

const mostBody = 64 << 10

// params are what a change can be given, in the query or the body.
type params struct {
	Force   bool `json:"force"`
	Workers int  `json:"workers"`
}

// change checks a request that is to change something, and has it done.
func (d *Dashboard) change(w http.ResponseWriter, r *http.Request, do func(http.ResponseWriter, *http.Request, params)) {
	if err := d.origins.Check(r); err != nil {
		d.fail(w, &apiError{
			status: http.StatusForbidden, Code: "cross_origin",
			Text: "The request comes from a page of another site. If that is yours, name it in the dashboard's trusted origins.",
		})
		return
	}
	p, err := d.readParams(w, r)
	switch {
	case err != nil:
		d.fail(w, err)
	case roleOf(r) != RoleOperator:
		d.fail(w, &apiError{status: http.StatusForbidden, Code: "forbidden", Text: "Your role is viewer: an operator may do this."})
	case d.cfg.ReadOnly:
		d.fail(w, &apiError{status: http.StatusForbidden, Code: "read_only", Text: "This dashboard is read-only."})
	case d.ctx.Err() != nil:
		d.fail(w, closing())
	default:
		do(w, r, p)
	}
}

func closing() *apiError {
	return &apiError{status: http.StatusServiceUnavailable, Code: "closing", Text: "This process is ending: try again.", retryAfter: 5 * time.Second}
}

func (d *Dashboard) readParams(w http.ResponseWriter, r *http.Request) (p params, refused *apiError) {
	control := http.NewResponseController(w)
	// Whoever sends slowly is not waited for. Where deadlines cannot be set, the server's own hold.
	_ = control.SetReadDeadline(time.Now().Add(d.timing.body))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, mostBody))
	if err == nil {
		w.Header().Del("Connection")
		_ = control.SetReadDeadline(time.Time{}) // it would end the command, too
	}
	switch tooLarge := new(http.MaxBytesError); {
	case errors.As(err, &tooLarge):
		return p, &apiError{status: http.StatusRequestEntityTooLarge, Code: "body_too_large", Text: fmt.Sprintf("The body is larger than %d bytes.", mostBody)}
	case err != nil:
		return p, badRequest("the body could not be read")
	}
	q := r.URL.Query()
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err == nil && kind == "application/json" && len(body) > 0 {
		if err := json.Unmarshal(body, &p); err != nil {
			return p, badRequest(`the body is not like {"force": true, "workers": 2}: %v`, err)
		}
	}
	if err == nil && kind == "application/x-www-form-urlencoded" { // curl -d force=1
		form, err := url.ParseQuery(string(body))
		if err != nil {
			return p, badRequest("the body is not like force=1&workers=2")
		}
		for name, values := range form {
			q[name] = append(q[name], values...)
		}
	}
	if text := q.Get("force"); text != "" {
		if p.Force, err = strconv.ParseBool(text); err != nil {
			return p, badRequest("force: %q is neither 1 nor 0", text)
		}
	}
	if text := q.Get("workers"); text != "" {
		if p.Workers, err = strconv.Atoi(text); err != nil {
			return p, badRequest("workers: %q is not a number", text)
		}
	}
	return p, nil
}

// done is the answer to a command that is done, or accepted.
type done struct {
	Success  bool              `json:"success"` // true
	Accepted bool              `json:"accepted,omitempty"`
	Command  string            `json:"command"`
	Message  string            `json:"message"`
	Phase    migrator.Phase    `json:"phase"`
	State    migrator.RunState `json:"state"`
	Workers  int               `json:"workers,omitempty"`
}

func (d *Dashboard) succeed(w http.ResponseWriter, v *view, command, message string) {
	d.answer(w, http.StatusOK, done{Success: true, Command: command, Message: message, Phase: v.status.Phase, State: v.status.State})
}

// call is a command under way.
type call struct {
	name    string
	force   bool
	since   time.Time
	ended   chan struct{}
	result  *LastCommand
	refused *apiError // set with the result if it was not a success
}

// do has a command of the migrator's carried out.
func (d *Dashboard) do(w http.ResponseWriter, r *http.Request, name migrator.CommandName, force bool) {
	c, refused := d.begin(name, force) //nolint:contextcheck // it goes on when whoever asked is gone
	if refused != nil {
		d.fail(w, refused)
		return
	}
	patience := time.NewTimer(d.timing.command)
	defer patience.Stop()
	select {
	case <-c.ended:
	case <-r.Context().Done():
		return // it goes on; nobody is there to be told
	case <-patience.C:
		v := d.current(r.Context())
		d.answer(w, http.StatusAccepted, done{
			Success: true, Accepted: true, Command: c.name, Phase: v.status.Phase, State: v.status.State,
			Message: c.name + " is under way; see running and last_command in /status",
		})
		return
	}
	if c.refused != nil {
		d.fail(w, c.refused)
		return
	}
	d.mu.Lock()
	v := d.view
	d.mu.Unlock()
	d.succeed(w, v, c.name, c.result.Message)
}

// begin has a command carried out in the background. One that is under way is joined if it is the same; there is never a second one.
func (d *Dashboard) begin(name migrator.CommandName, force bool) (*call, *apiError) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.known.running; c != nil {
		if c.name == string(name) && c.force == force {
			return c, nil
		}
		return nil, d.busy()
	}
	c := &call{name: string(name), force: force, since: time.Now().UTC(), ended: make(chan struct{})}
	if !d.goOn(func() { d.carryOut(c, name) }) {
		return nil, closing()
	}
	d.known.running = c
	d.compose()
	return c, nil
}

// busy refuses because a command is under way. d.mu is held.
func (d *Dashboard) busy() *apiError {
	c := d.known.running
	return &apiError{
		status: http.StatusConflict, Code: "busy", Running: &Running{Command: c.name, Force: c.force, Since: c.since},
		Text: fmt.Sprintf("A command is under way: %s. Wait until it has ended.", c.name),
	}
}

// commandEnds bounds how long a command's end waits for the state to be read again.
const commandEnds = 5 * time.Second

func (d *Dashboard) carryOut(c *call, name migrator.CommandName) {
	defer close(c.ended)
	if name == migrator.CommandVerify {
		d.verify.begin()
	}
	ctx, cancel := context.WithTimeout(d.ctx, commandEnds)
	d.refresh(ctx) // the final report is made of what is known before the end
	cancel()
	result, err := d.m.Do(d.ctx, name, c.force)
	if err == nil {
		d.after(name, result)
	}
	ctx, cancel = context.WithTimeout(d.ctx, commandEnds)
	v := d.refresh(ctx)
	cancel()
	last := &LastCommand{Running: Running{Command: c.name, Force: c.force, Since: c.since}, Ended: time.Now().UTC(), Success: err == nil}
	if err != nil {
		c.refused = d.classify(name, err, v, c.since)
		last.Message, last.Code, last.Reasons = c.refused.Text, c.refused.Code, c.refused.Reasons
	} else {
		last.Message = result.Message
	}
	c.result = last
	outcome, level := "done", "info"
	switch {
	case err == nil:
		d.say.Info("command done", "command", c.name, "message", last.Message)
	case errors.As(err, new(*migrator.RefusedError)):
		outcome, level = "refused", "warning"
	default:
		outcome, level = "failed", "error"
		d.say.Warn("command failed", "command", c.name, "error", last.Message)
	}
	d.note(level, migrator.Event{Kind: migrator.EventCommand, Phase: v.status.Phase, Message: c.name + ": " + last.Message})
	d.metrics.commands.WithLabelValues(c.name, outcome).Inc()
	if name == migrator.CommandVerify {
		d.verify.end(last.Message)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.known.running, d.known.last = nil, last
	d.compose()
}

// after does what follows a command's success.
func (d *Dashboard) after(name migrator.CommandName, result *migrator.Result) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch name {
	case migrator.CommandComplete:
		d.ended(migrator.PhaseCompleted, result.Message)
	case migrator.CommandAbort:
		d.ended(migrator.PhaseAborted, result.Message)
	case migrator.CommandRevert:
		d.milestone(MilestoneReverted, migrator.PhaseReplicating, result.Message)
	case migrator.CommandCopy, migrator.CommandVerify, migrator.CommandPause, migrator.CommandResume, migrator.CommandSwitch:
	}
}

// classify makes an answer of a command's error.
func (d *Dashboard) classify(name migrator.CommandName, err error, v *view, since time.Time) *apiError {
	st := v.status.Status
	e := &apiError{status: http.StatusConflict, Command: string(name), Phase: st.Phase, State: st.State, Text: err.Error()}
	refused := new(migrator.RefusedError)
	switch {
	case d.ctx.Err() != nil:
		return closing()
	case errors.As(err, &refused):
		e.Reasons = refused.Reasons
		allowed, _ := st.Allowed(name)
		switch {
		case name == migrator.CommandSwitch && (allowed || st.Phase == migrator.PhaseReplicating):
			e.Code, e.CutoverReadiness = overridable("cutover", refused.CanForce), readiness(st, refused)
		case name == migrator.CommandRevert && allowed:
			e.Code = overridable("revert", refused.CanForce)
		case !allowed:
			e.Code = "wrong_phase"
			if name == migrator.CommandSwitch {
				e.CutoverReadiness = readiness(st, refused)
			}
		default:
			e.Code = "refused"
		}
	case name == migrator.CommandVerify && st.Verification != nil && len(st.Verification.Differences) > 0 && st.Verification.At.After(since.Add(-time.Minute)):
		e.Code, e.Verification = "rows_differ", st.Verification
	case migrator.Retryable(err):
		e.status, e.Code, e.retryAfter = http.StatusServiceUnavailable, "unreachable", 5*time.Second
	default:
		e.status, e.Code = http.StatusInternalServerError, "command_failed"
	}
	return e
}

func overridable(what string, can bool) string {
	if can {
		return what + "_override_required"
	}
	return what + "_blocked"
}

// readiness is that of the status, with the reasons of a refusal in it: the switch looks at more than the status does.
func readiness(st migrator.Status, refused *migrator.RefusedError) *migrator.ReadinessStatus {
	r := st.CutoverReadiness
	if st.Phase == migrator.PhaseReplicating {
		switch {
		case refused.CanForce && r.Level != "warning":
			r.Level, r.CanForce, r.SoftBlockers = "warning", true, refused.Reasons
		case !refused.CanForce && r.Level != "blocked":
			r.Level, r.CanForce, r.HardBlockers = "blocked", false, refused.Reasons
		}
	}
	return &r
}

// own tells whether one of the dashboard's own commands may be carried out. It returns with d.mu held if so.
func (d *Dashboard) own(r *http.Request, command string) (refused *apiError) {
	ctx, cancel := context.WithTimeout(r.Context(), commandEnds)
	defer cancel()
	d.refresh(ctx)
	d.mu.Lock()
	v := d.view
	p := v.commands[command]
	e := &apiError{status: http.StatusConflict, Command: command, Phase: v.status.Phase, State: v.status.State, Text: p.Reason}
	switch {
	case d.known.running != nil:
		e = d.busy()
	case v.status.Unreachable != nil:
		e.status, e.Code, e.retryAfter = http.StatusServiceUnavailable, "unreachable", 5*time.Second
		e.Text = "The databases cannot be reached: " + v.status.Unreachable.Reason
	case d.cfg.HostRuns:
		e.Code = "not_driven"
	case !p.Allowed:
		e.Code, e.Reasons = "wrong_phase", []string{p.Reason}
	default:
		return nil
	}
	d.mu.Unlock()
	return e
}

// start begins a migration.
func (d *Dashboard) start(w http.ResponseWriter, r *http.Request, _ params) {
	d.run(w, r, commandStart, "the migration has been started: preflight, schema and capture come first, then ready_to_copy")
}

// retry goes on with what failed.
func (d *Dashboard) retry(w http.ResponseWriter, r *http.Request, _ params) {
	d.run(w, r, commandRetry, "what failed is tried again")
}

// run begins the migration's run.
func (d *Dashboard) run(w http.ResponseWriter, r *http.Request, command, message string) {
	if refused := d.own(r, command); refused != nil {
		d.fail(w, refused)
		return
	}
	k := &d.known
	fresh := k.status == nil || k.status.Phase == migrator.PhaseWaiting
	if fresh {
		k.recorded, k.final = nil, nil
	}
	started := d.startRun()
	d.compose()
	v := d.view
	if started {
		now := time.Now().UTC()
		k.last = &LastCommand{Running: Running{Command: command, Since: now}, Ended: now, Success: true, Message: message}
		d.note("info", migrator.Event{Kind: migrator.EventCommand, Phase: v.status.Phase, Message: command + ": " + message})
		if fresh {
			d.milestone(MilestoneStarted, migrator.PhaseStarting, "the migration has been started")
		}
	}
	d.mu.Unlock()
	if !started {
		d.fail(w, closing())
		return
	}
	d.say.Info("command done", "command", command)
	d.metrics.commands.WithLabelValues(command, "done").Inc()
	d.wake()
	d.succeed(w, v, command, message)
}

// reset forgets how a migration ended. It touches no database.
func (d *Dashboard) reset(w http.ResponseWriter, r *http.Request, _ params) {
	if refused := d.own(r, commandReset); refused != nil {
		d.fail(w, refused)
		return
	}
	d.known.final, d.known.recorded, d.known.run, d.known.last = nil, nil, runState{}, nil
	d.compose()
	v := d.view
	d.mu.Unlock()
	d.metrics.commands.WithLabelValues(commandReset, "done").Inc()
	d.succeed(w, v, commandReset, "forgotten; nothing was changed in either database. What was copied is still on the target: another migration needs an empty one")
}

// retryIndexes tries objects again that could not be created.
func (d *Dashboard) retryIndexes(w http.ResponseWriter, r *http.Request, _ params) {
	st := d.current(r.Context()).status
	if st.Phase == migrator.PhaseError && len(st.Failed) > 0 {
		d.run(w, r, commandRetry, fmt.Sprintf("%d objects that could not be created are tried again", len(st.Failed)))
		return
	}
	d.fail(w, &apiError{
		status: http.StatusConflict, Code: "wrong_phase", Command: commandRetry, Phase: st.Phase, State: st.State,
		Text: fmt.Sprintf("In phase %s there are no indexes or constraints to be tried again: that is so in phase error, when some could not be created.", st.Phase),
	})
}

// proceed is there for scripts: the migration goes on by itself when everything is built.
func (d *Dashboard) proceed(w http.ResponseWriter, r *http.Request, _ params) {
	v := d.current(r.Context())
	switch v.status.Phase { //nolint:exhaustive // all others are before
	case migrator.PhaseReplicating, migrator.PhaseSwitched:
		d.succeed(w, v, "proceed-after-rebuild", "nothing to do: everything is built, and the migration went on by itself")
		return
	}
	d.fail(w, &apiError{
		status: http.StatusConflict, Code: "wrong_phase", Command: "proceed-after-rebuild", Phase: v.status.Phase, State: v.status.State,
		Text: fmt.Sprintf("The migration is in phase %s. It goes on by itself when indexes and constraints are built; if some could not be, remove the cause and retry.", v.status.Phase),
	})
}

// setWorkers says how many indexes are built at once.
func (d *Dashboard) setWorkers(w http.ResponseWriter, r *http.Request, p params) {
	const most = 64
	if p.Workers < 1 || p.Workers > most {
		d.fail(w, badRequest("workers: give a number from 1 to %d, as ?workers=4 or {\"workers\": 4}", most))
		return
	}
	d.m.SetIndexWorkers(p.Workers)
	v := d.current(r.Context())
	message := fmt.Sprintf("%d indexes are built at once", p.Workers)
	if v.status.Phase == migrator.PhaseCopying || v.status.Phase == migrator.PhaseRebuildingIndexes {
		message += ", from the next time that building begins: pause and resume to have that at once"
	}
	d.answer(w, http.StatusOK, done{Success: true, Command: "set-rebuild-workers", Message: message, Phase: v.status.Phase, State: v.status.State, Workers: p.Workers})
}
