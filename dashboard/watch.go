package dashboard

import (
	"context"
	"fmt"
	"time"

	"github.com/heroku-migrator/migrator"
)

// statusTimeout bounds one reading of the state.
const statusTimeout = 10 * time.Second

// watch reads the state: twice a second at most while somebody looks, and seldom if that takes long or nobody does.
func (d *Dashboard) watch() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	last, took := time.Now(), time.Duration(0)
	for {
		var waiting []chan struct{}
		select {
		case <-d.ctx.Done():
			return
		case <-timer.C:
		case <-d.kick:
			timer.Reset(max(0, max(d.timing.least, 4*took)-time.Since(last)))
			continue
		case done := <-d.asked:
			waiting = append(waiting, done)
		}
		for more := true; more; { // whoever asked meanwhile
			select {
			case done := <-d.asked:
				waiting = append(waiting, done)
			default:
				more = false
			}
		}
		last = time.Now()
		d.read()
		for _, done := range waiting {
			close(done)
		}
		took = time.Since(last)
		timer.Reset(d.pause(took))
	}
}

// pause is how long to wait until the state is read again.
func (d *Dashboard) pause(took time.Duration) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.known.watched) > d.timing.most && len(d.streams) == 0 {
		return d.timing.most
	}
	least := d.timing.least
	if st := d.known.status; st != nil && st.Phase == migrator.PhaseReplicating {
		least *= 2 // whether the switch can be made is looked up on the source, which has other work
	}
	return min(max(10*took, least), d.timing.most)
}

// wake has the state read soon.
func (d *Dashboard) wake() {
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

// read reads the state.
func (d *Dashboard) read() {
	ctx, cancel := context.WithTimeout(d.ctx, statusTimeout)
	defer cancel()
	began := time.Now()
	st, err := d.m.Status(ctx)
	if d.ctx.Err() != nil {
		return
	}
	d.metrics.took.Set(time.Since(began).Seconds())
	d.mu.Lock()
	defer d.mu.Unlock()
	if began.Before(d.known.finalAt) { // read before it ended: no longer true
		return
	}
	if err != nil {
		k := &d.known
		if k.unreachable == nil {
			k.unreachable = &Unreachable{Since: began.UTC()}
			d.say.Warn("the migration's state cannot be read", "error", err)
		}
		next := *k.unreachable // views share the old one
		next.Reason = d.redact.text(err.Error())
		k.unreachable = &next
	} else {
		d.observe(st, began)
	}
	d.compose()
}

// observe takes in a state that was read. d.mu is held.
func (d *Dashboard) observe(st *migrator.Status, at time.Time) {
	k := &d.known
	before := k.status
	k.status, k.readAt, k.unreachable = st, at, nil
	if st.Phase == migrator.PhaseWaiting {
		gone := before != nil && before.Phase != migrator.PhaseWaiting && before.Phase != migrator.PhaseStarting
		if gone && !k.run.active && k.running == nil {
			d.ended(outcome(before), "ended by another process")
		}
		return
	}
	k.recorded, k.final = st, nil
	if st.Phase != migrator.PhaseError && k.run.err != nil && !k.run.active && time.Since(k.run.ended) < d.timing.rerun {
		return
	}
	if st.Phase != migrator.PhaseError && !d.cfg.HostRuns && !k.run.active {
		d.say.Info("a migration is recorded; going on with it", "phase", string(st.Phase))
		d.startRun()
	}
	if w := st.Waiting; w != nil && (k.run.active || d.cfg.HostRuns) && time.Since(w.Since) > d.timing.long && !w.Since.Equal(k.longWait) {
		k.longWait = w.Since
		d.milestone(MilestoneWaiting, st.Phase, fmt.Sprintf("waiting for %s: %s", time.Since(w.Since).Round(time.Second), w.Reason))
	}
}

// outcome is how a migration ended of which nothing is recorded any more.
func outcome(last *migrator.Status) migrator.Phase {
	switch {
	case last == nil:
		return migrator.PhaseAborted
	case last.Goal != "":
		return last.Goal
	case last.Phase == migrator.PhaseSwitched:
		return migrator.PhaseCompleted
	}
	return migrator.PhaseAborted
}

// ended remembers how the migration ended: both databases know nothing of it any more. d.mu is held.
func (d *Dashboard) ended(phase migrator.Phase, message string) {
	k := &d.known
	if k.final != nil {
		return
	}
	st := emptyStatus()
	if k.recorded != nil {
		st = *k.recorded
	}
	k.finalAt = time.Now()
	at := k.finalAt.UTC().Format(time.RFC3339Nano)
	st.Phase, st.State, st.Message, st.CompletedAt, st.Goal, st.FailedPhase, st.Error = phase, migrator.StateRunning, message, &at, "", "", nil
	st.Waiting, st.WayBack, st.Workers, st.Builds, st.Throttle, st.Log = nil, nil, nil, nil, nil, nil
	st.CutoverReadiness = emptyStatus().CutoverReadiness
	k.final = &st
	none := emptyStatus()
	k.status, k.readAt = &none, k.finalAt
	d.compose()
	if d.cfg.OnReport != nil && !d.closed {
		report := d.report(d.view.status)
		d.goOn(func() { d.cfg.OnReport(d.ctx, report) })
	}
}

// current returns the state for somebody who looks now. It waits for a reading only if what is known is old, and not for long.
func (d *Dashboard) current(ctx context.Context) *view {
	d.mu.Lock()
	if time.Since(d.known.watched) > d.timing.most { // nobody did, so it is read seldom
		d.wake()
	}
	d.known.watched = time.Now()
	v, fresh := d.view, time.Since(d.known.readAt) < 2*time.Second
	down := d.known.unreachable != nil
	d.mu.Unlock()
	if v != nil && (fresh || down) {
		if down {
			d.wake()
		}
		return v
	}
	limited, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	return d.refresh(limited)
}

// refresh reads the state, and returns it when that is done or the context is.
func (d *Dashboard) refresh(ctx context.Context) *view {
	done := make(chan struct{})
	select {
	case d.asked <- done:
		select {
		case <-done:
		case <-ctx.Done():
		case <-d.ctx.Done():
		}
	case <-ctx.Done():
	case <-d.ctx.Done():
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.view == nil {
		d.compose()
	}
	return d.view
}

// identify asks both databases who they are, until they have said so, and from time to time for their sizes.
func (d *Dashboard) identify() {
	for {
		ctx, cancel := context.WithTimeout(d.ctx, statusTimeout)
		source, target, err := d.m.Identify(ctx)
		cancel()
		d.mu.Lock()
		d.known.source.seen(source)
		d.known.target.seen(target)
		if d.view != nil {
			d.compose()
		}
		d.mu.Unlock()
		pause := 5 * time.Minute
		if err != nil {
			pause = 10 * time.Second
		}
		if !d.sleep(pause) {
			return
		}
	}
}

// sleep returns false if the dashboard was closed meanwhile.
func (d *Dashboard) sleep(pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-d.ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
