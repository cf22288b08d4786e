package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/dashboard"
)

// migration is the part of the program that moves its application's database.
type migration struct {
	admin     *admin
	m         *migrator.Migrator
	dashboard http.Handler
	notBefore time.Time     // when the copy may begin: not in the busiest hours
	moved     atomic.Bool   // the application uses the target
	begun     chan struct{} // somebody said so
	close     func()        // ends all of it; what was committed is kept
}

// newMigration puts everything together. It does not wait for the databases.
func newMigration(ctx context.Context, a *admin, log *dashboard.Log, from, to string, notBefore time.Time) (*migration, error) {
	src, err := migrator.OpenHeroku(ctx, from, migrator.HerokuConfig{})
	if err != nil {
		return nil, fmt.Errorf("HEROKU_URL: %w", err)
	}
	dst, err := migrator.OpenPlanetScale(ctx, to, migrator.PlanetScaleConfig{})
	if err != nil {
		src.Close()
		return nil, fmt.Errorf("PLANETSCALE_URL: %w", err)
	}
	p := &migration{admin: a, notBefore: notBefore, begun: make(chan struct{}, 1)}
	p.m, err = migrator.New(migrator.Config{
		Source: src, Target: dst, Logger: slog.New(log),
		Preflight:      migrator.PreflightConfig{Extra: []func(context.Context, migrator.Source, migrator.Target) ([]migrator.Finding, error){p.check}},
		Cutover:        migrator.CutoverConfig{Hook: p.hook},
		HoldBeforeCopy: true,
	})
	if err != nil {
		return nil, err
	}
	d, err := dashboard.New(p.m, dashboard.Config{Authorize: a.sessions.role, HostRuns: true, SourceURL: from, TargetURL: to, Log: log})
	if err != nil {
		return nil, err
	}
	p.dashboard = d
	background, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { p.run(background) })
	running.Go(func() { p.drive(background) })
	p.close = sync.OnceFunc(func() {
		cancel()
		d.Close()
		running.Wait()
		src.Close()
		dst.Close()
	})
	return p, nil
}

// check is this program's own part of preflight: it knows what no database can tell.
func (p *migration) check(context.Context, migrator.Source, migrator.Target) ([]migrator.Finding, error) {
	f := migrator.Finding{Check: "deploys", Severity: migrator.SeverityOK, Message: "Deploys are frozen."}
	if !p.admin.frozen.Load() {
		f.Severity, f.Message = migrator.SeverityBlocker, "Deploys are not frozen, and one of them may change the schema."
		f.Remedy = "Freeze deploys in the admin."
	}
	return []migrator.Finding{f}, nil
}

// hook is this program's part in a switch and a revert. An error at one of the first two points leaves everything as it was.
func (p *migration) hook(_ context.Context, call migrator.HookCall) error {
	switch call.Point {
	case migrator.HookBeforeFence:
		if !p.admin.frozen.Load() {
			return errors.New("deploys are not frozen: freeze them in the admin first")
		}
	case migrator.HookBeforeSwitch: // nobody can write now: what takes long does not belong here
	case migrator.HookAfterSwitch:
		p.moved.Store(true) // here the application's pool of connections is replaced
		p.admin.log.Info("the application uses the target", "ms_without_writes", call.Report.WithoutWrites.Milliseconds())
	case migrator.HookAfterRevert:
		p.moved.Store(false)
		p.admin.log.Info("the application uses the source")
	}
	return nil
}

// database says which one the application uses. When the migration is completed, nothing of it is recorded any more: by then the program's
// own configuration should name the new one.
func (p *migration) database() string {
	if p.moved.Load() {
		return "PlanetScale"
	}
	return "Heroku"
}

// begin has the migration started, or what failed tried again.
func (p *migration) begin() {
	select {
	case p.begun <- struct{}{}:
	default: // somebody said so already
	}
}

// run runs the migration when somebody has said so, or when one is recorded: this program was restarted then.
func (p *migration) run(ctx context.Context) {
	if !p.recorded(ctx) {
		select {
		case <-ctx.Done():
			return
		case <-p.begun:
		}
	}
	for {
		err := p.m.Run(ctx, migrator.UntilCompleted)
		if ctx.Err() != nil {
			return
		}
		p.admin.log.Info("the migration's run ended", "error", err) // the dashboard shows why
		if migrator.Retryable(err) {
			pause(ctx, 15*time.Second)
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-p.begun:
		}
	}
}

// recorded tells whether a migration is under way. It waits for the databases.
func (p *migration) recorded(ctx context.Context) bool {
	for {
		if st, err := p.m.Status(ctx); err == nil {
			p.moved.Store(st.Phase == migrator.PhaseSwitched)
			return st.Phase != migrator.PhaseWaiting && st.Phase != migrator.PhaseError
		}
		if !pause(ctx, 5*time.Second) {
			return false
		}
	}
}

// drive has the next phase begun when this program's own conditions for it hold. The switch is for a person, on the dashboard.
func (p *migration) drive(ctx context.Context) {
	for pause(ctx, 500*time.Millisecond) {
		st, err := p.m.Status(ctx)
		if err != nil {
			continue
		}
		var next migrator.CommandName
		switch {
		case st.Phase == migrator.PhaseReadyToCopy && p.mayCopy(time.Now()):
			next = migrator.CommandCopy
		case st.Phase == migrator.PhaseReplicating && st.State == migrator.StateRunning && st.Verification == nil:
			next = migrator.CommandVerify // every row is compared before anybody switches
		default:
			continue
		}
		if _, err := p.m.Do(ctx, next, false); err != nil && ctx.Err() == nil {
			p.admin.log.Warn("the next phase did not begin", "command", string(next), "error", err)
			pause(ctx, 10*time.Second)
		}
	}
}

// mayCopy is this program's condition for the copy.
func (p *migration) mayCopy(now time.Time) bool {
	return p.admin.frozen.Load() && !now.Before(p.notBefore)
}

// pause returns false if the context is done meanwhile.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
