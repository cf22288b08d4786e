package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/heroku-migrator/migrator"
)

// run starts or resumes the migration, and tells what happens.
func (p *program) run(ctx context.Context) error {
	events, unsubscribe := p.m.Subscribe(4096)
	told := make(chan struct{})
	go func() {
		defer close(told)
		p.tell(ctx, events)
	}()
	drawing, stop := context.WithCancel(ctx)
	drawn := make(chan struct{})
	go func() {
		defer close(drawn)
		if p.drawn {
			(&live{program: p}).draw(drawing)
		}
	}()
	err := p.m.Run(ctx, migrator.Until(p.until))
	unsubscribe()
	<-told
	stop()
	<-drawn
	phase := p.phaseAfter(ctx, err)
	var message string
	switch {
	case ctx.Err() != nil:
		if err = p.stopped(ctx, err); err != nil {
			return phaseError{err, phase}
		}
		message = "stopped; everything that was committed is kept, and `heroku-migrate run` goes on from there"
	case err != nil:
		return phaseError{err, phase}
	case phase == migrator.PhaseSwitched:
		message = "switched; then `heroku-migrate complete`, or `heroku-migrate revert`"
	case phase == migrator.PhaseCompleted:
		message = "completed; nothing of the migration is left on either database"
	default:
		message = "in sync; `heroku-migrate run` goes on following the source, `heroku-migrate switch` lets the target take over"
	}
	p.out.result(map[string]any{"ok": true, "phase": phase, "message": message}, message)
	return nil
}

// phaseAfter says where the migration stands when Run has returned; "" if that cannot be told.
func (p *program) phaseAfter(ctx context.Context, result error) migrator.Phase {
	switch {
	case errors.Is(result, migrator.ErrAborted):
		return migrator.PhaseAborted
	case errors.Is(result, migrator.ErrEnded):
		return ""
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	s, err := p.dst.Journal().State(ctx)
	switch {
	case err == nil:
		return s.Phase
	case !errors.Is(err, migrator.ErrNoMigration):
		return ""
	case result == nil:
		return migrator.PhaseCompleted
	}
	return migrator.PhaseWaiting
}

// Lines of progress are no more frequent than this.
const (
	copyEvery  = 5 * time.Second
	roundEvery = 10 * time.Second
	idleEvery  = time.Minute // there was nothing to replicate
)

// teller turns what happens into lines, and remembers what it said.
type teller struct {
	*program

	began   time.Time
	phase   migrator.Phase
	waiting bool // for another process to end
	paused  bool

	lastCopy, lastRound time.Time
	rows                int64
}

// tell prints events, and looks at the journal now and then, until the channel is closed.
func (p *program) tell(ctx context.Context, events <-chan migrator.Event) {
	t := &teller{program: p, began: time.Now()}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case e, open := <-events:
			if !open {
				return
			}
			p.out.object(eventObject(e))
			t.event(e)
		case <-tick.C:
			if s, err := p.dst.Journal().State(ctx); err == nil { // Run says what is wrong, if something is
				t.look(ctx, s)
			}
		}
	}
}

func (t *teller) event(e migrator.Event) {
	switch e.Kind {
	case migrator.EventPhase:
		t.enter(e.Phase)
		if e.Message == "" || e.Message == string(e.Phase) {
			t.out.linef("%s", e.Phase)
		} else {
			t.out.linef("%s: %s", e.Phase, e.Message)
		}
		if e.Phase == migrator.PhaseReplicating && t.until != string(migrator.UntilInSync) {
			t.out.linef("run does not switch by itself: `heroku-migrate switch`, from another terminal")
		}
	case migrator.EventWaiting, migrator.EventWarning, migrator.EventSchema, migrator.EventThrottle:
		t.out.linef("%s: %s", e.Kind, e.Message)
	case migrator.EventCommand:
		if name, refused := strings.CutSuffix(e.Message, ": "); refused {
			t.out.linef("%s: not done; who asked for it has been told why", name)
		} else {
			t.out.linef("%s", e.Message)
		}
	case migrator.EventTable, migrator.EventVerify:
		t.out.linef("  %s", e.Message)
	case migrator.EventObject:
		if e.Took >= time.Second {
			t.out.linef("  %s in %s", e.Message, e.Took.Round(100*time.Millisecond))
		}
	case migrator.EventRound:
		t.rows += e.Rows
	case migrator.EventChunk, migrator.EventSwitched, migrator.EventFailure: // Run returns the failure
	}
}

func (t *teller) enter(phase migrator.Phase) {
	t.phase, t.lastCopy, t.lastRound, t.rows = phase, time.Time{}, time.Now(), 0
}

// look tells what no event does: where the migration stood at the start, and how fast it moves.
func (t *teller) look(ctx context.Context, s *migrator.State) {
	if leads := strings.HasSuffix(s.Holder, fmt.Sprintf(" %d", os.Getpid())); !leads {
		if time.Since(t.began) > 3*time.Second && !t.waiting {
			t.waiting = true
			t.say(migrator.EventWaiting, fmt.Sprintf("another process leads this migration (%s); this one takes over when that ends", s.Holder))
		}
		return
	}
	if t.waiting {
		t.waiting = false
		t.say(migrator.EventWarning, "this process leads the migration now")
	}
	paused := s.Run == migrator.StatePaused
	if paused && !t.paused {
		t.say(migrator.EventWaiting, fmt.Sprintf("paused in phase %s; `heroku-migrate resume` goes on", s.Phase))
	}
	t.paused = paused
	if t.phase == "" {
		t.enter(s.Phase)
		if s.Phase == migrator.PhaseStarting {
			t.out.linef("%s: looking whether anything is in the way", s.Phase)
		} else {
			t.out.linef("%s: going on from here", s.Phase)
		}
		if s.Phase == migrator.PhaseSwitched {
			t.out.linef("waiting for `heroku-migrate complete` or `heroku-migrate revert`, from another terminal")
		}
	}
	switch {
	case paused || t.out.json || (t.drawn && s.Phase == migrator.PhaseCopying):
	case s.Phase == migrator.PhaseCopying && time.Since(t.lastCopy) >= copyEvery:
		t.tellCopy(ctx)
	case s.Phase == migrator.PhaseReplicating && s.SyncedAt != nil:
		if took := time.Since(t.lastRound); took >= idleEvery || (took >= roundEvery && t.rows > 0) {
			t.out.linef("replicating: %.1f rows/s, %.1f s behind", float64(t.rows)/took.Seconds(), s.SyncedAge)
			t.lastRound, t.rows = time.Now(), 0
		}
	}
}

// say prints something of this program's own like an event.
func (t *teller) say(kind migrator.EventKind, message string) {
	e := migrator.Event{Kind: kind, At: time.Now(), Message: message}
	t.out.object(eventObject(e))
	t.out.linef("%s", message)
}

func (t *teller) tellCopy(ctx context.Context) {
	st, err := t.m.Status(ctx)
	if err != nil {
		return
	}
	t.lastCopy = time.Now()
	w, eta := st.ProgressSignals.ByteWeighted, st.ProgressSignals.ThroughputETA
	line := fmt.Sprintf("copied %s of %s (%.0f %%)%s", size(w.CopiedBytes), size(w.TotalBytes), w.Percent,
		speed(eta.BytesPerSecond, eta.AverageBytesPerSecond, eta.ETASeconds))
	if n := len(st.Builds); n > 0 {
		line += fmt.Sprintf("; indexes being built: %d", n)
	}
	t.out.linef("%s", line)
}

// duration writes seconds for people.
func duration(seconds float64) string {
	return (time.Duration(min(seconds, 1e9)) * time.Second).String()
}

// eventObject is an event for programs.
func eventObject(e migrator.Event) map[string]any {
	o := map[string]any{"type": e.Kind, "at": e.At.UTC().Format(time.RFC3339Nano), "message": e.Message}
	if e.Phase != "" {
		o["phase"] = e.Phase
	}
	if e.Table != nil {
		o["table"] = e.Table.String()
	}
	if e.Rows != 0 {
		o["rows"] = e.Rows
	}
	if e.Bytes != 0 {
		o["bytes"] = e.Bytes
	}
	if e.Took != 0 {
		o["seconds"] = e.Took.Seconds()
	}
	if e.Report != nil {
		o["switch_report"] = e.Report
	}
	if e.Missed != 0 {
		o["missed"] = e.Missed
	}
	return o
}
