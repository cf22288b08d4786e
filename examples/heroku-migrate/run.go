package main

import (
	"context"
	"errors"
	"fmt"
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
	err := p.m.Run(ctx, migrator.Until(p.until))
	unsubscribe()
	<-told
	if errors.Is(err, migrator.ErrEnded) || errors.Is(err, migrator.ErrAborted) {
		return err
	}
	message := map[migrator.Until]string{
		"":                      "completed; nothing of the migration is left on either database",
		migrator.UntilCompleted: "completed; nothing of the migration is left on either database",
		migrator.UntilInSync:    "in sync; `heroku-migrate run` goes on following the source, `heroku-migrate switch` lets the target take over",
		migrator.UntilSwitched:  "switched",
	}
	return p.stopped(ctx, err, message[migrator.Until(p.until)])
}

// Lines of progress are no more frequent than this.
const (
	copyEvery  = 5 * time.Second
	roundEvery = 10 * time.Second
)

// tell prints events until the channel is closed.
func (p *program) tell(ctx context.Context, events <-chan migrator.Event) {
	var lastCopy, lastRound time.Time
	var rows int64
	for e := range events {
		p.out.object(eventObject(e))
		switch e.Kind {
		case migrator.EventPhase:
			p.out.linef("%s: %s", e.Phase, e.Message)
			if e.Phase == migrator.PhaseReplicating && p.until == string(migrator.UntilSwitched) {
				p.out.linef("run does not switch by itself: `heroku-migrate switch`, from another terminal")
			}
		case migrator.EventWaiting, migrator.EventWarning:
			p.out.linef("%s: %s", e.Kind, e.Message)
		case migrator.EventCommand:
			p.out.linef("%s", e.Message)
		case migrator.EventChunk:
			if time.Since(lastCopy) >= copyEvery {
				lastCopy = time.Now()
				p.tellCopy(ctx)
			}
		case migrator.EventRound:
			rows += e.Rows
			if time.Since(lastRound) >= roundEvery {
				if !lastRound.IsZero() {
					p.out.linef("replicating: %.0f changes/s, %.1f s behind", float64(rows)/time.Since(lastRound).Seconds(), e.Took.Seconds())
				}
				lastRound, rows = time.Now(), 0
			}
		case migrator.EventTable, migrator.EventSwitched, migrator.EventFailure: // Run returns the failure
		}
	}
}

func (p *program) tellCopy(ctx context.Context) {
	if p.out.json {
		return
	}
	s, err := p.m.Status(ctx)
	if err != nil || s.Phase != migrator.PhaseCopying {
		return
	}
	w := s.ProgressSignals.ByteWeighted
	line := fmt.Sprintf("copied %s of %s (%.0f %%)", size(w.CopiedBytes), size(w.TotalBytes), w.Percent)
	if eta := s.ProgressSignals.ThroughputETA; eta.ETASeconds != nil {
		line += fmt.Sprintf(", %s/s, %s left", size(int64(eta.BytesPerSecond)), time.Duration(*eta.ETASeconds)*time.Second)
	}
	p.out.linef("%s", line)
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
