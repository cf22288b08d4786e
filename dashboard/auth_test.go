package dashboard

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
)

func noCommand(t *testing.T) func(context.Context, migrator.CommandName, bool) (*migrator.Result, error) {
	t.Helper()
	return func(_ context.Context, name migrator.CommandName, _ bool) (*migrator.Result, error) {
		t.Errorf("%s was carried out", name)
		return nil, errDown
	}
}

func TestEveryPathNeedsALogin(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.do = noCommand(t)
	s := newSite(t, f)
	for path, rt := range s.routes {
		for i, change := range []func(*http.Request){
			func(r *http.Request) { r.Header.Del("Authorization") },
			func(r *http.Request) { r.SetBasicAuth("admin", "wrong") },
		} {
			s.auth.guesses = guesses{}
			a := s.ask(t, rt.methods[0], path, "", change)
			if rt.open {
				require.NotEqual(t, http.StatusUnauthorized, a.status, path)
				continue
			}
			require.Equal(t, http.StatusUnauthorized, a.status, "%s, %d", path, i)
			require.Equal(t, "unauthorized", a.json["code"])
			require.Contains(t, a.header.Get("WWW-Authenticate"), "Basic")
		}
	}
	open := 0
	for _, rt := range s.routes {
		if rt.open {
			open++
		}
	}
	require.Equal(t, 2, open, "health and readyz")
	_, runs := f.count()
	require.Zero(t, runs)
}

func TestWrongPasswordsAreSlowedDown(t *testing.T) {
	t.Parallel()
	s := newSite(t, newFake(), func(cfg *Config, _ *timing) { cfg.ClientIP = ForwardedFor })
	from := func(address, user, pass string) func(*http.Request) {
		return func(r *http.Request) {
			r.SetBasicAuth(user, pass)
			r.Header.Set("X-Forwarded-For", "203.0.113.99, "+address) // the first is what the client says itself
		}
	}
	for i := range freeGuesses {
		a := s.ask(t, http.MethodGet, "/status", "", from("198.51.100.7", "admin", fmt.Sprint("guess", i)))
		require.Equal(t, http.StatusUnauthorized, a.status)
	}
	until := func(when time.Time) { // the machine may be slow: the second that it is by now may have passed
		s.auth.guesses.mu.Lock()
		defer s.auth.guesses.mu.Unlock()
		c := s.auth.guesses.clients["198.51.100.7"]
		require.False(t, c.until.IsZero())
		c.until = when
		s.auth.guesses.clients["198.51.100.7"] = c
	}
	until(time.Now().Add(time.Minute))
	a := s.ask(t, http.MethodGet, "/status", "", from("198.51.100.7", "admin", password))
	require.Equal(t, http.StatusTooManyRequests, a.status, "the right one has to wait, too: else guessing goes on at full speed")
	require.Equal(t, "too_many_failures", a.json["code"])
	require.NotEmpty(t, a.header.Get("Retry-After"))
	require.Equal(t, http.StatusOK, s.ask(t, http.MethodGet, "/status", "", from("198.51.100.8", "admin", password)).status, "others need not wait")
	require.Equal(t, http.StatusUnauthorized, s.ask(t, http.MethodGet, "/status", "", from("198.51.100.8", "root", password)).status)
	until(time.Now())
	require.Equal(t, http.StatusOK, s.ask(t, http.MethodGet, "/status", "", from("198.51.100.7", "admin", password)).status)
	require.NotContains(t, s.auth.guesses.clients, "198.51.100.7", "forgiven")
}

func TestGuesses(t *testing.T) {
	t.Parallel()
	var g guesses
	now := time.Now()
	for range freeGuesses - 1 {
		g.failed("a", now)
	}
	require.LessOrEqual(t, g.wait("a", now), time.Duration(0))
	g.failed("a", now)
	require.Equal(t, time.Second, g.wait("a", now))
	g.failed("a", now)
	require.Equal(t, 2*time.Second, g.wait("a", now))
	for range 100 {
		g.failed("a", now)
	}
	require.Equal(t, longestWait, g.wait("a", now))
	later := now.Add(forgetAfter + time.Second)
	g.failed("a", later)
	require.LessOrEqual(t, g.wait("a", later), time.Duration(0), "long ago")
	for i := range 3 * mostGuessers {
		g.failed(fmt.Sprint(i), later)
	}
	require.LessOrEqual(t, len(g.clients), mostGuessers)
	g.succeeded("a")
	require.Equal(t, "2001:db8:0:1::/64", clientKey("[2001:db8:0:1:aaaa::1]:443"))
	require.Equal(t, "10.1.2.3", clientKey("10.1.2.3:5000"))
	require.Equal(t, "10.1.2.3", clientKey("::ffff:10.1.2.3"))
	require.Len(t, clientKey(strings.Repeat("x", 1000)), 64)
}

func TestHostsOwnLogin(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.set(migrator.PhaseCopying)
	f.do = noCommand(t)
	s := newSite(t, f, func(cfg *Config, _ *timing) {
		cfg.Authorize = func(r *http.Request) (Role, error) {
			switch r.Header.Get("X-User") {
			case "eve":
				return "", nil
			case "vera":
				return RoleViewer, nil
			case "otto":
				return RoleOperator, nil
			}
			return "", errors.New("nobody")
		}
	})
	as := func(user string) func(*http.Request) { return func(r *http.Request) { r.Header.Set("X-User", user) } }
	for _, user := range []string{"", "eve"} {
		a := s.ask(t, http.MethodGet, "/status", "", as(user))
		require.Equal(t, http.StatusUnauthorized, a.status)
		require.Empty(t, a.header.Get("WWW-Authenticate"), "the browser is not to ask for a password that there is not")
	}
	s.ask(t, http.MethodGet, "/status", "", as("vera"))
	require.Eventually(t, func() bool { return s.ask(t, http.MethodGet, "/status", "", as("vera")).json["phase"] == "copying" }, 10*time.Second, 20*time.Millisecond)
	viewer := s.ask(t, http.MethodGet, "/status", "", as("vera")).json
	require.Equal(t, "viewer", viewer["role"])
	require.Equal(t, false, viewer["commands"].(map[string]any)["pause"].(map[string]any)["allowed"])
	operator := s.ask(t, http.MethodGet, "/status", "", as("otto")).json
	require.Equal(t, "operator", operator["role"])
	require.Equal(t, true, operator["commands"].(map[string]any)["pause"].(map[string]any)["allowed"])
	for path, rt := range s.routes {
		if slices.Contains(rt.methods, http.MethodPost) {
			a := s.ask(t, http.MethodPost, path, "", as("vera"))
			require.Equal(t, http.StatusForbidden, a.status, path)
			require.Equal(t, "forbidden", a.json["code"])
		}
	}
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.do = noCommand(t)
	f.set(migrator.PhaseReplicating)
	s := newSite(t, f, func(cfg *Config, _ *timing) { cfg.ReadOnly = true })
	for path, rt := range s.routes {
		if slices.Contains(rt.methods, http.MethodPost) {
			a := s.post(t, path)
			require.Equal(t, http.StatusForbidden, a.status, path)
			require.Equal(t, "read_only", a.json["code"])
		}
	}
	s.waitPhase(t, migrator.PhaseReplicating)
	for name, allowed := range s.allowed(t) {
		require.False(t, allowed, name)
	}
	require.Equal(t, true, s.get(t, "/status").json["read_only"])
}

func TestForeignOrigins(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.do = noCommand(t)
	s := newSite(t, f, func(cfg *Config, _ *timing) { cfg.TrustedOrigins = []string{"https://admin.example.com"} })
	for path, rt := range s.routes {
		if !slices.Contains(rt.methods, http.MethodPost) {
			continue
		}
		for _, change := range []func(*http.Request){
			func(r *http.Request) { r.Header.Set("Origin", "https://evil.example.com") },
			func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
			func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-site") },
			func(r *http.Request) { r.Header.Set("Origin", "null") },
		} {
			a := s.ask(t, http.MethodPost, path, "", change)
			require.Equal(t, http.StatusForbidden, a.status, path)
			require.Equal(t, "cross_origin", a.json["code"])
		}
	}
	f.do = nil
	for _, change := range []func(*http.Request){
		func(*http.Request) {}, // curl
		func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-origin") },
		func(r *http.Request) { r.Header.Set("Origin", "https://admin.example.com") },
		func(r *http.Request) { r.Header.Set("Origin", "http://"+r.URL.Host) },
	} {
		require.Equal(t, http.StatusOK, s.ask(t, http.MethodPost, "/pause-sync", "", change).status)
	}
}
