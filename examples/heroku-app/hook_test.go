package main

import (
	neturl "net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator/internal/herokutest"
)

// follow goes up to where the target follows the source.
func (p *process) follow(t *testing.T) {
	t.Helper()
	p.await(t, "waiting")
	p.post(t, "/start-migration")
	p.await(t, "ready_to_copy")
	p.post(t, "/start-copy")
	p.await(t, "replicating")
}

// The application is pointed to the target and back by itself, by whichever process leads then.
func TestHerokuApplication(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	execute(t, p.source, `CREATE TABLE notes (id int PRIMARY KEY); INSERT INTO notes VALUES (1)`)
	const key = "HRKU-secret-key"
	app := herokutest.New(t, herokutest.App{Name: "shop", Token: key, Formation: map[string]int{"web": 1}, Boot: time.Second})
	app.Addon("postgresql-cubic-1", p.source.URL, "DATABASE")
	before := app.State()
	pooled, err := neturl.Parse(p.target.URL)
	require.NoError(t, err)
	pooled.Host, pooled.User = pooled.Hostname()+":6432", neturl.UserPassword("app", "pooled-not-shown")
	env := []string{"HEROKU_APP=shop", "HEROKU_API_KEY=" + key, "APP_DATABASE_URL=" + pooled.String(), "HEROKU_API_URL=" + app.URL}

	first := p.web(t, env...)
	first.follow(t)
	first.post(t, "/switch-traffic")
	first.await(t, "switched")
	require.Eventually(t, func() bool {
		return app.Running("DATABASE_URL")["web.1"] == pooled.String() && !app.State().Maintenance
	}, time.Minute, 50*time.Millisecond)
	first.terminate(t)

	second := p.web(t, env...)
	second.await(t, "switched")
	second.post(t, "/revert-switch")
	second.await(t, "replicating")
	require.Eventually(t, func() bool { return app.Running("DATABASE_URL")["web.1"] == p.source.URL && !app.State().Maintenance }, time.Minute, 50*time.Millisecond)
	require.Equal(t, before, app.State())
	_, diagnostics := second.request(t, "GET", "/export/diagnostics.json")
	second.post(t, "/abort")
	second.await(t, "aborted")
	p.requireNoTrace(t)
	second.terminate(t)
	for _, text := range []string{first.out.String(), second.out.String(), diagnostics} {
		p.requireNoSecret(t, text)
		require.NotContains(t, text, key)
		require.NotContains(t, text, "pooled-not-shown")
	}
}

// A program of the user's is run at each moment. If it fails before the fence, nothing is switched.
func TestHookCommand(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	execute(t, p.source, `CREATE TABLE notes (id int PRIMARY KEY)`)
	dir := t.TempDir()
	script, calls := filepath.Join(dir, "hook.sh"), filepath.Join(dir, "calls")
	require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\necho $1 $MIGRATOR_HOOK >>"+calls+"\n[ ! -e "+dir+"/refuse ] || { echo not today; exit 1; }\n"), 0o755))
	require.NoError(t, os.WriteFile(dir+"/refuse", nil, 0o600))
	s := p.web(t, "HOOK_COMMAND="+script+" argument")
	s.follow(t)
	code, body := s.request(t, "POST", "/switch-traffic")
	require.GreaterOrEqual(t, code, 400)
	require.Contains(t, body, "not today")
	require.Equal(t, "replicating", s.status(t)["phase"])
	require.NoError(t, os.Remove(dir+"/refuse"))
	s.post(t, "/switch-traffic")
	s.await(t, "switched")
	var told []byte
	require.Eventually(t, func() bool {
		var err error
		told, err = os.ReadFile(calls)
		return err == nil && string(told) == "argument before_fence\nargument before_fence\nargument before_switch\nargument after_switch\n"
	}, time.Minute, 50*time.Millisecond, "%s", told)
	s.post(t, "/cleanup")
	s.await(t, "completed")
}
