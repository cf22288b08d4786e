package dashboard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

func runs(f *fake) int {
	_, n := f.count()
	return n
}

// What is recorded goes on by itself when the process starts; what is not waits to be started.
func TestGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	f := newFake()
	s := newSite(t, f)
	s.waitPhase(t, migrator.PhaseWaiting)
	require.Zero(t, runs(f))

	for _, phase := range []migrator.Phase{migrator.PhaseReadyToCopy, migrator.PhaseCopying, migrator.PhaseSwitched, migrator.PhaseCleaningUp} {
		f := newFake()
		f.set(phase)
		newSite(t, f)
		require.Eventually(t, func() bool { return runs(f) == 1 }, 10*time.Second, 10*time.Millisecond, phase)
	}

	failed := newFake() // a person is needed
	failed.set(migrator.PhaseError, func(st *migrator.Status) { st.FailedPhase = migrator.PhaseCopying })
	s = newSite(t, failed)
	s.waitPhase(t, migrator.PhaseError)
	require.Zero(t, runs(failed))
	require.True(t, s.allowed(t)["retry"])
	require.True(t, s.allowed(t)["abort"])
	require.Equal(t, http.StatusOK, s.post(t, "/retry").status)
	require.Eventually(t, func() bool { return runs(failed) == 1 }, 10*time.Second, 10*time.Millisecond)
	require.Equal(t, "wrong_phase", s.post(t, "/retry").json["code"], "it runs")
}

// The other process of an overlap may have begun what this one finds later.
func TestAdoptsWhatAnotherProcessBegan(t *testing.T) {
	t.Parallel()
	f := newFake()
	s := newSite(t, f)
	s.waitPhase(t, migrator.PhaseWaiting)
	f.set(migrator.PhaseCopying)
	s.waitPhase(t, migrator.PhaseCopying)
	require.Eventually(t, func() bool { return runs(f) == 1 }, 10*time.Second, 10*time.Millisecond)

	// And ended it.
	f.mu.Lock()
	f.run = nil
	f.mu.Unlock()
	hosted := newFake()
	h := newSite(t, hosted, func(cfg *Config, _ *timing) { cfg.HostRuns = true })
	hosted.set(migrator.PhaseSwitched)
	h.waitPhase(t, migrator.PhaseSwitched)
	require.Zero(t, runs(hosted))
	for _, path := range []string{"/start-migration", "/retry", "/reset"} {
		require.Equal(t, "not_driven", h.post(t, path).json["code"], path)
	}
	hosted.mu.Lock()
	hosted.status = emptyStatus()
	hosted.mu.Unlock()
	h.waitPhase(t, migrator.PhaseCompleted)
}

func TestPreflightThatRefuses(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.run = func(context.Context) error {
		f.set(migrator.PhaseStarting)
		f.publish(migrator.Event{Kind: migrator.EventFailure, Phase: migrator.PhaseStarting, Message: "run refused: No postgis."})
		f.mu.Lock()
		f.status = emptyStatus()
		f.mu.Unlock()
		return &migrator.RefusedError{Action: "run", Reasons: []string{"No postgis. Enable it."}}
	}
	to := &receiver{}
	s := newSite(t, f, func(cfg *Config, _ *timing) { cfg.Notifier = to })
	require.Equal(t, http.StatusOK, s.post(t, "/start-migration").status)
	st := s.waitPhase(t, migrator.PhaseError)
	require.Contains(t, st["error"], "No postgis")
	require.Equal(t, []any{"No postgis. Enable it."}, st["reasons"])
	require.NotContains(t, st, "failed_phase")
	allowed := s.allowed(t)
	require.True(t, allowed["start"])
	require.True(t, allowed["retry"])
	require.True(t, allowed["reset"])
	require.False(t, allowed["abort"])
	require.Equal(t, http.StatusOK, s.post(t, "/reset").status)
	s.waitPhase(t, migrator.PhaseWaiting)
	require.Equal(t, "wrong_phase", s.post(t, "/reset").json["code"])
	require.Eventually(t, func() bool { return len(to.milestones()) >= 2 }, 10*time.Second, 20*time.Millisecond)
	require.ElementsMatch(t, []Milestone{MilestoneStarted, MilestoneFailed}, to.milestones())
}

// Lost connections never end a migration that is recorded; a wrong URL shows at once when one is started.
func TestConnectionsThatFail(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.run = func(context.Context) error { return fmt.Errorf("given up after 30m: %w", io.ErrUnexpectedEOF) }
	s := newSite(t, f)
	s.waitPhase(t, migrator.PhaseWaiting)
	require.Equal(t, http.StatusOK, s.post(t, "/start-migration").status)
	st := s.waitPhase(t, migrator.PhaseError)
	require.Contains(t, st["error"], "given up")
	require.Equal(t, 1, runs(f))

	lasting := newFake()
	lasting.set(migrator.PhaseReplicating)
	lasting.run = func(context.Context) error { return fmt.Errorf("given up after 30m: %w", io.ErrUnexpectedEOF) }
	s = newSite(t, lasting)
	require.Eventually(t, func() bool { return runs(lasting) > 2 }, 20*time.Second, 20*time.Millisecond)
	st = s.get(t, "/status").json
	require.Equal(t, "replicating", st["phase"])
	require.Contains(t, st["waiting"].(map[string]any)["reason"], "given up")
}

// An error that could not be recorded is shown all the same.
func TestErrorOfARun(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.set(migrator.PhaseCopying)
	f.run = func(context.Context) error { return errors.New("something odd") }
	s := newSite(t, f, func(_ *Config, times *timing) { times.rerun = time.Hour })
	st := s.waitPhase(t, migrator.PhaseError)
	require.Equal(t, "something odd", st["error"])
	require.Equal(t, "copying", st["failed_phase"])
	require.True(t, s.allowed(t)["retry"])
}

func TestHowItEnds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err   error
		last  migrator.Phase
		ended migrator.Phase
	}{
		{nil, migrator.PhaseSwitched, migrator.PhaseCompleted},
		{migrator.ErrAborted, migrator.PhaseCopying, migrator.PhaseAborted},
		{migrator.ErrEnded, migrator.PhaseSwitched, migrator.PhaseCompleted},
		{migrator.ErrEnded, migrator.PhaseCopying, migrator.PhaseAborted},
	} {
		f := newFake()
		f.set(c.last)
		end := make(chan struct{})
		f.run = func(ctx context.Context) error {
			select {
			case <-end:
			case <-ctx.Done():
				return ctx.Err()
			}
			f.mu.Lock()
			f.status = emptyStatus()
			f.mu.Unlock()
			return c.err
		}
		s := newSite(t, f)
		s.waitPhase(t, c.last)
		close(end)
		st := s.waitPhase(t, c.ended)
		require.NotNil(t, st["completed_at"])
		require.NotNil(t, st["started_at"], "what was known stays")
		allowed := s.allowed(t)
		require.True(t, allowed["reset"])
		require.False(t, allowed["start"], "reset first")
		require.False(t, allowed["abort"])
		require.Equal(t, "wrong_phase", s.post(t, "/start-migration").json["code"])
		require.Equal(t, http.StatusOK, s.post(t, "/reset").status)
		require.True(t, s.allowed(t)["start"])
	}
}

// A reading that began before the end and comes after it does not bring the migration back.
func TestReadingThatComesLate(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.set(migrator.PhaseSwitched)
	end := make(chan struct{})
	f.run = func(ctx context.Context) error {
		select {
		case <-end:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	reports := make(chan *Report, 10)
	s := newSite(t, f, func(cfg *Config, _ *timing) {
		cfg.OnReport = func(_ context.Context, r *Report) { reports <- r }
	})
	s.waitPhase(t, migrator.PhaseSwitched)
	late := make(chan struct{})
	f.mu.Lock()
	f.late = late
	before := f.reads
	f.mu.Unlock()
	require.Eventually(t, func() bool {
		s.get(t, "/status")
		reads, _ := f.count()
		return reads > before
	}, 10*time.Second, 10*time.Millisecond, "a reading has begun")
	close(end)
	s.waitPhase(t, migrator.PhaseCompleted)
	f.mu.Lock()
	f.status, f.late = emptyStatus(), nil
	f.mu.Unlock()
	close(late)
	var reads int
	require.Eventually(t, func() bool {
		require.Equal(t, "completed", s.get(t, "/status").json["phase"])
		reads, _ = f.count()
		return reads > before+5
	}, 10*time.Second, 10*time.Millisecond)
	require.Equal(t, 1, runs(f))
	require.Len(t, reports, 1)
}
