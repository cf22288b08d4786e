package dashboard

import (
	"errors"
	"time"

	"github.com/heroku-migrator/migrator"
)

// runState is where the migration's run in this process stands.
type runState struct {
	active  bool
	err     error // of the last one, if it needs a person
	ended   time.Time
	waiting *migrator.WaitingStatus // between two runs
}

// startRun has the migration run in the background. d.mu is held. It returns false if it runs already, or the dashboard is being closed.
func (d *Dashboard) startRun() bool {
	k := &d.known
	if k.run.active || !d.goOn(d.drive) {
		return false
	}
	k.run = runState{active: true}
	d.notices.forgetFailures()
	return true
}

// drive runs the migration until it has ended, or a person is needed. What may go away by itself never ends it, once a migration is recorded.
func (d *Dashboard) drive() {
	for {
		err := d.m.Run(d.ctx, migrator.UntilCompleted)
		if d.ctx.Err() != nil || !d.afterRun(err) || !d.sleep(d.timing.rerun) {
			return
		}
	}
}

// afterRun takes in how a run ended, and tells whether there is to be another one.
func (d *Dashboard) afterRun(err error) (again bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.compose()
	k := &d.known
	switch {
	case err == nil:
		k.run = runState{}
		d.ended(migrator.PhaseCompleted, completedMessage)
	case errors.Is(err, migrator.ErrAborted):
		k.run = runState{}
		d.ended(migrator.PhaseAborted, abortedMessage)
	case errors.Is(err, migrator.ErrEnded):
		k.run = runState{}
		d.ended(outcome(k.recorded), "ended by another process")
	case migrator.Retryable(err) && k.recorded != nil:
		if k.run.waiting == nil {
			k.run.waiting = &migrator.WaitingStatus{Since: time.Now()}
		}
		next := *k.run.waiting // views share the old one
		next.Reason = err.Error()
		k.run.waiting = &next
		d.say.Warn("the migration's run ended; it is begun again", "in", d.timing.rerun, "error", err)
		return true
	default:
		k.run = runState{err: err, ended: time.Now()}
		if k.recorded != nil && k.recorded.Phase == migrator.PhaseStarting && errors.As(err, new(*migrator.RefusedError)) {
			none := emptyStatus()
			k.recorded, k.status = nil, &none // refused by preflight, which leaves nothing
		}
		d.say.Error("the migration needs a person", "error", err)
		d.failed(err)
		d.wake()
	}
	return false
}

const (
	completedMessage = "completed; nothing of the migration is left on either database. The old database takes writes again: make sure that nothing uses it any more"
	abortedMessage   = "aborted; nothing of the migration is left on the source. What was copied is still on the target: use a fresh one for another try"
)
