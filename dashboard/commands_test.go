package dashboard

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

func TestEveryCommand(t *testing.T) {
	t.Parallel()
	f := newFake()
	type asked struct {
		name  migrator.CommandName
		force bool
	}
	var got []asked
	f.do = func(_ context.Context, name migrator.CommandName, force bool) (*migrator.Result, error) {
		got = append(got, asked{name, force})
		return &migrator.Result{Command: name, Message: "it is done"}, nil
	}
	f.set(migrator.PhaseReplicating)
	s := newSite(t, f)
	for _, c := range []struct {
		path, body string
		want       asked
	}{
		{"/start-copy", "", asked{migrator.CommandCopy, false}},
		{"/pause-sync", "", asked{migrator.CommandPause, false}},
		{"/resume-sync", "ignored", asked{migrator.CommandResume, false}},
		{"/switch-traffic", "", asked{migrator.CommandSwitch, false}},
		{"/switch-traffic?force=1", "", asked{migrator.CommandSwitch, true}},
		{"/switch-traffic", `{"force": true}`, asked{migrator.CommandSwitch, true}},
		{"/switch-traffic", "force=1", asked{migrator.CommandSwitch, true}},
		{"/revert-switch?force=true", "", asked{migrator.CommandRevert, true}},
		{"/verify", "", asked{migrator.CommandVerify, false}},
		{"/verify?force=1", "", asked{migrator.CommandVerify, true}},
		{"/cleanup", "", asked{migrator.CommandComplete, false}},
	} {
		got = nil
		a := s.ask(t, http.MethodPost, c.path, c.body, func(r *http.Request) {
			switch {
			case strings.HasPrefix(c.body, "{"):
				r.Header.Set("Content-Type", "application/json")
			case strings.Contains(c.body, "="):
				r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			}
		})
		require.Equal(t, http.StatusOK, a.status, "%s: %s", c.path, a.body)
		require.Equal(t, true, a.json["success"])
		require.Equal(t, "it is done", a.json["message"])
		require.Equal(t, string(c.want.name), a.json["command"])
		require.Equal(t, []asked{c.want}, got, c.path)
		last := s.get(t, "/status").json["last_command"].(map[string]any)
		require.Equal(t, string(c.want.name), last["command"])
		require.Equal(t, true, last["success"])
	}
}

func TestBadParametersAndHugeBodies(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.do = noCommand(t)
	s := newSite(t, f)
	for _, path := range []string{"/switch-traffic?force=perhaps", "/set-rebuild-workers", "/set-rebuild-workers?workers=0", "/set-rebuild-workers?workers=65", "/set-rebuild-workers?workers=x"} {
		a := s.post(t, path)
		require.Equal(t, http.StatusBadRequest, a.status, path)
		require.Equal(t, "bad_request", a.json["code"])
	}
	for _, path := range []string{"/logs?lines=0", "/logs?lines=x", "/logs?level=loud", "/logs?after=-1", "/activity?after=x"} {
		require.Equal(t, http.StatusBadRequest, s.get(t, path).status, path)
	}
	a := s.ask(t, http.MethodPost, "/switch-traffic", `{"force": `, func(r *http.Request) { r.Header.Set("Content-Type", "application/json") })
	require.Equal(t, http.StatusBadRequest, a.status)
	huge := strings.Repeat("x", mostBody+1)
	for path, rt := range s.routes {
		if !slices.Contains(rt.methods, http.MethodPost) {
			continue
		}
		a := s.ask(t, http.MethodPost, path, huge)
		require.Equal(t, http.StatusRequestEntityTooLarge, a.status, path)
		require.Equal(t, "body_too_large", a.json["code"])
		a = s.ask(t, http.MethodPost, path, "", func(r *http.Request) { // of unknown length
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(huge)), -1
		})
		require.Equal(t, http.StatusRequestEntityTooLarge, a.status, path)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	f := newFake()
	s := newSite(t, f)
	refuse := func(action string, can bool) func(context.Context, migrator.CommandName, bool) (*migrator.Result, error) {
		return func(context.Context, migrator.CommandName, bool) (*migrator.Result, error) {
			return nil, &migrator.RefusedError{Action: action, Reasons: []string{"A reason. Do this."}, CanForce: can}
		}
	}
	for _, c := range []struct {
		phase  migrator.Phase
		path   string
		do     func(context.Context, migrator.CommandName, bool) (*migrator.Result, error)
		status int
		code   string
	}{
		{migrator.PhaseReplicating, "/switch-traffic", refuse("switch", false), 409, "cutover_blocked"},
		{migrator.PhaseReplicating, "/switch-traffic", refuse("switch", true), 409, "cutover_override_required"},
		{migrator.PhaseCopying, "/switch-traffic", refuse("switch", false), 409, "wrong_phase"},
		{migrator.PhaseSwitched, "/revert-switch", refuse("revert", true), 409, "revert_override_required"},
		{migrator.PhaseSwitched, "/revert-switch", refuse("revert", false), 409, "revert_blocked"},
		{migrator.PhaseCopying, "/revert-switch", refuse("revert", false), 409, "wrong_phase"},
		{migrator.PhaseCopying, "/verify", refuse("verify", false), 409, "wrong_phase"},
		{migrator.PhaseCopying, "/pause-sync", refuse("pause", false), 409, "refused"},
		{migrator.PhaseCopying, "/cleanup", refuse("complete", false), 409, "wrong_phase"},
		{migrator.PhaseSwitched, "/abort", refuse("abort", false), 409, "wrong_phase"},
		{migrator.PhaseCopying, "/abort", func(context.Context, migrator.CommandName, bool) (*migrator.Result, error) {
			return nil, errors.New("abort: failed: something odd")
		}, 500, "command_failed"},
		{migrator.PhaseCopying, "/abort", func(context.Context, migrator.CommandName, bool) (*migrator.Result, error) {
			return nil, io.ErrUnexpectedEOF
		}, 503, "unreachable"},
	} {
		f.set(c.phase)
		f.do = c.do
		a := s.post(t, c.path)
		require.Equal(t, c.status, a.status, "%s in %s: %s", c.path, c.phase, a.body)
		require.Equal(t, c.code, a.json["code"], "%s in %s", c.path, c.phase)
		require.Equal(t, false, a.json["success"])
		require.Equal(t, string(c.phase), a.json["phase"])
		if c.status == 409 {
			require.Equal(t, []any{"A reason. Do this."}, a.json["reasons"])
		}
		if strings.HasPrefix(c.code, "cutover") {
			r := a.json["cutover_readiness"].(map[string]any)
			require.Equal(t, c.code == "cutover_override_required", r["can_force"])
		}
		last := s.get(t, "/status").json["last_command"].(map[string]any)
		require.Equal(t, false, last["success"])
		require.Equal(t, c.code, last["code"])
	}

	f.set(migrator.PhaseReplicating, func(st *migrator.Status) {
		st.Verification = &migrator.Verification{At: time.Now(), Tables: 3, Differences: []string{"public.a has 1 rows on the source and 2 on the target"}}
	})
	f.do = func(context.Context, migrator.CommandName, bool) (*migrator.Result, error) {
		return nil, errors.New("verify: failed: 1 of 3 tables differ")
	}
	a := s.post(t, "/verify")
	require.Equal(t, http.StatusConflict, a.status)
	require.Equal(t, "rows_differ", a.json["code"])
	require.NotEmpty(t, a.json["verification"].(map[string]any)["differences"])
}

// The dashboard's own commands know where they make sense.
func TestOwnCommandsInWrongPhases(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.set(migrator.PhaseCopying)
	s := newSite(t, f)
	s.waitPhase(t, migrator.PhaseCopying)
	for _, path := range []string{"/start-migration", "/retry", "/reset", "/retry-indexes", "/proceed-after-rebuild"} {
		a := s.post(t, path)
		require.Equal(t, http.StatusConflict, a.status, path)
		require.Equal(t, "wrong_phase", a.json["code"], path)
		require.NotEmpty(t, a.json["error"], path)
	}
	f.set(migrator.PhaseReplicating)
	s.waitPhase(t, migrator.PhaseReplicating)
	require.Equal(t, http.StatusOK, s.post(t, "/proceed-after-rebuild").status)
	a := s.post(t, "/set-rebuild-workers?workers=7")
	require.Equal(t, http.StatusOK, a.status)
	require.Equal(t, 7.0, a.json["workers"]) //nolint:testifylint // a whole number
	require.Equal(t, 7, f.workers)
	require.Equal(t, http.StatusNotFound, s.get(t, "/verify-output").status)
}

// A command that takes long is accepted, goes on when whoever asked for it is gone, and is told of at its end.
func TestLongCommands(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.set(migrator.PhaseReplicating)
	release := make(chan struct{})
	var calls atomic.Int32
	f.do = func(ctx context.Context, name migrator.CommandName, _ bool) (*migrator.Result, error) {
		calls.Add(1)
		f.publish(migrator.Event{Kind: migrator.EventVerify, Message: "public.a: 10 rows are the same on both sides"})
		select {
		case <-release:
			return &migrator.Result{Command: name, Message: "10 rows are the same"}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	s := newSite(t, f, func(_ *Config, times *timing) { times.command = 300 * time.Millisecond })
	s.waitPhase(t, migrator.PhaseReplicating)
	first := s.post(t, "/verify")
	require.Equal(t, http.StatusAccepted, first.status)
	require.Equal(t, true, first.json["accepted"])
	require.Equal(t, true, first.json["success"])
	require.Equal(t, "verify", s.get(t, "/status").json["running"].(map[string]any)["command"])
	require.NotContains(t, s.allowed(t), true)

	require.Equal(t, http.StatusAccepted, s.post(t, "/verify").status, "joined")
	for _, path := range []string{"/switch-traffic", "/verify?force=1", "/abort", "/start-migration", "/reset", "/retry"} {
		a := s.post(t, path)
		require.Equal(t, http.StatusConflict, a.status, path)
		require.Equal(t, "busy", a.json["code"], path)
		require.Equal(t, "verify", a.json["running"].(map[string]any)["command"])
	}
	out := s.get(t, "/verify-output")
	require.Equal(t, true, out.json["running"])
	require.Contains(t, out.json["output"], "public.a: 10 rows")

	again := s.later(t, http.MethodPost, "/verify")
	close(release)
	<-again
	require.Eventually(t, func() bool { return s.get(t, "/status").json["running"] == nil }, 10*time.Second, 20*time.Millisecond)
	require.Equal(t, "10 rows are the same", s.get(t, "/status").json["last_command"].(map[string]any)["message"])
	require.Equal(t, false, s.get(t, "/verify-output").json["running"])
	require.LessOrEqual(t, calls.Load(), int32(2))
}

// Close ends what is under way, within seconds, and nothing is left.
func TestCloseEndsEverything(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.set(migrator.PhaseReplicating)
	f.do = func(ctx context.Context, _ migrator.CommandName, _ bool) (*migrator.Result, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	s := newSite(t, f)
	s.waitPhase(t, migrator.PhaseReplicating)
	require.Eventually(t, func() bool { _, runs := f.count(); return runs == 1 }, 10*time.Second, 20*time.Millisecond)
	command := s.later(t, http.MethodPost, "/verify")
	stream := s.followLater(t, func(got string) bool { return strings.Contains(got, `"running":{"command":"verify"`) })
	<-stream
	closed := make(chan struct{})
	go func() {
		s.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(30 * time.Second):
		t.Fatal("it does not end")
	}
	require.Equal(t, http.StatusServiceUnavailable, (<-command).status)
	a := s.post(t, "/pause-sync")
	require.Equal(t, http.StatusServiceUnavailable, a.status)
	require.Equal(t, "closing", a.json["code"])
	require.Equal(t, http.StatusServiceUnavailable, s.get(t, "/readyz").status)
	require.Equal(t, http.StatusOK, s.get(t, "/status").status)
	require.Empty(t, f.subs)
	s.Close() // twice is no mistake
}

// The time that a body may take is not the time that a command may take.
func TestSlowBodies(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.set(migrator.PhaseCopying)
	f.do = func(ctx context.Context, name migrator.CommandName, _ bool) (*migrator.Result, error) {
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return &migrator.Result{Command: name, Message: "done"}, nil
	}
	s := newSite(t, f, func(_ *Config, times *timing) { times.body = 300 * time.Millisecond })
	require.Equal(t, "done", s.ask(t, http.MethodPost, "/pause-sync", "{}").json["message"])

	// A body that never comes holds up nobody, whoever sends it.
	login := newRequest(t, http.MethodPost, "/")
	login.SetBasicAuth("admin", password)
	at, err := url.Parse(s.url)
	require.NoError(t, err)
	for _, c := range []struct {
		method, login string
		status        int
	}{
		{http.MethodPost, login.Header.Get("Authorization"), http.StatusBadRequest},
		{http.MethodPost, "", http.StatusUnauthorized},
		{http.MethodGet, login.Header.Get("Authorization"), http.StatusMethodNotAllowed},
	} {
		conn, err := net.Dial("tcp", at.Host)
		require.NoError(t, err)
		require.NoError(t, conn.SetDeadline(time.Now().Add(30*time.Second)))
		_, err = fmt.Fprintf(conn, "%s %s/pause-sync HTTP/1.1\r\nHost: %s\r\nAuthorization: %s\r\nContent-Length: 10\r\n\r\n", c.method, at.Path, at.Host, c.login)
		require.NoError(t, err)
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err)
		require.Equal(t, c.status, response.StatusCode)
		response.Body.Close()
		conn.Close()
	}
}
