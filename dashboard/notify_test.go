package dashboard

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

func TestMilestones(t *testing.T) {
	t.Parallel()
	f := newFake()
	to := &receiver{}
	s := newSite(t, f, func(cfg *Config, times *timing) {
		cfg.Notifier = to
		times.long = time.Second
	})
	s.waitPhase(t, migrator.PhaseWaiting)
	s.post(t, "/start-migration")
	f.publish(migrator.Event{Kind: migrator.EventPhase, Phase: migrator.PhaseCopying})
	f.publish(migrator.Event{Kind: migrator.EventPhase, Phase: migrator.PhaseRebuildingIndexes})
	f.publish(migrator.Event{Kind: migrator.EventPhase, Phase: migrator.PhaseReplicating})
	f.publish(migrator.Event{Kind: migrator.EventFailure, Phase: migrator.PhaseReplicating, Message: "no such host as " + targetURL})
	f.publish(migrator.Event{Kind: migrator.EventFailure, Phase: migrator.PhaseReplicating, Message: "no such host as " + targetURL})
	f.publish(migrator.Event{Kind: migrator.EventSwitched, Phase: migrator.PhaseSwitched, Report: &migrator.SwitchReport{WithoutWrites: 412 * time.Millisecond}})
	want := []Milestone{MilestoneStarted, MilestoneCopied, MilestoneInSync, MilestoneFailed, MilestoneSwitched}
	require.Eventually(t, func() bool { return len(to.milestones()) == len(want) }, 10*time.Second, 20*time.Millisecond)
	require.Equal(t, want, to.milestones())
	f.set(migrator.PhaseSwitched)
	s.post(t, "/revert-switch")
	f.publish(migrator.Event{Kind: migrator.EventPhase, Phase: migrator.PhaseAborted})
	want = append(want, MilestoneReverted, MilestoneAborted)
	require.Eventually(t, func() bool { return len(to.milestones()) == len(want) }, 10*time.Second, 20*time.Millisecond)
	require.Equal(t, want, to.milestones())
	f.set(migrator.PhaseReplicating, func(st *migrator.Status) {
		st.Waiting = &migrator.WaitingStatus{Since: time.Now(), Reason: "connection refused"}
	})
	want = append(want, MilestoneWaiting)
	require.Eventually(t, func() bool { s.get(t, "/status"); return len(to.milestones()) == len(want) }, 10*time.Second, 20*time.Millisecond)
	require.Equal(t, want, to.milestones())
	to.mu.Lock()
	defer to.mu.Unlock()
	for _, n := range to.got {
		require.NotContains(t, n.Message, "t4rget-secret")
		require.Equal(t, "source.example.com/shop", n.Source)
		require.Equal(t, "v1.2.3", n.Version)
	}
	require.Contains(t, to.got[4].Message, "412 ms")
}

// A receiver that does not answer holds up nobody, and no more than so many wait.
func TestNotificationsDoNotBlock(t *testing.T) {
	t.Parallel()
	f := newFake()
	to := &receiver{hold: make(chan struct{})}
	s := newSite(t, f, func(cfg *Config, _ *timing) { cfg.Notifier = to })
	s.waitPhase(t, migrator.PhaseWaiting)
	for range 200 {
		f.publish(migrator.Event{Kind: migrator.EventPhase, Phase: migrator.PhaseReplicating})
	}
	require.Eventually(t, func() bool {
		return strings.Contains(s.get(t, "/metrics").body, `heroku_migrator_events_total{kind="phase"} 200`)
	}, 10*time.Second, 20*time.Millisecond)
	require.Contains(t, s.get(t, "/metrics").body, `heroku_migrator_notifications_total{result="dropped"}`)
	close(to.hold)
	require.Eventually(t, func() bool { return len(to.milestones()) >= cap(s.notices.queue) }, 10*time.Second, 20*time.Millisecond)
	require.LessOrEqual(t, len(to.milestones()), cap(s.notices.queue)+1)
}

func TestNotificationsAreTriedAgain(t *testing.T) {
	t.Parallel()
	m := newMetrics(&Dashboard{})
	to := &receiver{errs: []error{errors.New("a"), errors.New("b")}}
	n := newNotices(to, quiet(), m)
	n.pause = time.Millisecond
	n.send(t.Context(), Notification{Milestone: MilestoneCopied})
	require.Equal(t, []Milestone{MilestoneCopied}, to.milestones())

	to = &receiver{errs: []error{&PermanentError{errors.New("gone")}}}
	n.to = to
	n.send(t.Context(), Notification{Milestone: MilestoneCopied})
	require.Empty(t, to.milestones(), "trying again is of no use")

	many := make([]error, 100)
	for i := range many {
		many[i] = errors.New("down")
	}
	to = &receiver{errs: many}
	n.to = to
	n.send(t.Context(), Notification{Milestone: MilestoneCopied})
	require.Len(t, to.errs, 100-notifyAttempts)
}

func TestWebhook(t *testing.T) {
	t.Parallel()
	var status atomic.Int32
	status.Store(http.StatusNoContent)
	bodies := make(chan map[string]any, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
			status.Store(http.StatusBadRequest)
		}
		var body map[string]any
		if json.Unmarshal(b, &body) == nil {
			bodies <- body
		}
		w.Header().Set("Retry-After", "2")
		w.Header().Set("Location", "https://elsewhere.example.com/")
		w.WriteHeader(int(status.Load()))
	}))
	defer server.Close()
	hook, err := NewWebhook(server.URL + "/secret-token")
	require.NoError(t, err)
	n := Notification{
		Milestone: MilestoneSwitched, Phase: migrator.PhaseSwitched, Message: "switched " + strings.Repeat("ü", 3000), At: time.Now().UTC(),
		Source: "a/b", Target: "c/d", Version: "v1",
	}
	require.NoError(t, hook.Notify(t.Context(), n))
	body := <-bodies
	require.Equal(t, "switched", body["event"])
	require.Equal(t, "switched", body["phase"])
	require.Contains(t, body["text"], "Heroku migrator: switched")
	require.Len(t, []rune(body["content"].(string)), 2000, "Discord takes no more")
	require.Equal(t, "a/b", body["source"])

	for code, permanent := range map[int]bool{404: true, 400: true, 302: true, 429: false, 500: false, 503: false} {
		status.Store(int32(code))
		err := hook.Notify(t.Context(), n)
		require.Error(t, err, code)
		require.Equal(t, permanent, errors.As(err, new(*PermanentError)), code)
		require.NotContains(t, err.Error(), "secret-token")
		if later := new(retryError); errors.As(err, &later) {
			require.Equal(t, 2*time.Second, later.after)
		}
	}
	server.Close()
	err = hook.Notify(t.Context(), n)
	require.ErrorContains(t, err, "cannot be reached")
	require.NotContains(t, fmt.Sprint(err), "secret-token")
	require.NotErrorAs(t, err, new(*PermanentError))
	for _, bad := range []string{"", "hooks.example.com/x", "ftp://x/y", "https://"} {
		_, err := NewWebhook(bad)
		require.Error(t, err, bad)
	}
}
