package main_test

import (
	"bytes"
	"errors"
	"net/http"
	neturl "net/url"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator/internal/herokutest"
)

// A migration with the hook for Heroku, to the end, with an application whose DATABASE_URL is an attachment: each command is a process of its
// own, so what the way back needs is in the application.
func TestHerokuApp(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	c.fill(t)
	const key = "HRKU-secret-key"
	app := herokutest.New(t, herokutest.App{Name: "shop", Token: key, Formation: map[string]int{"web": 1}, Boot: time.Second})
	app.Addon("postgresql-cubic-1", c.source.URL, "DATABASE")
	before := app.State()
	pooled, err := neturl.Parse(c.target.URL)
	require.NoError(t, err)
	pooled.Host, pooled.User = pooled.Hostname()+":6432", neturl.UserPassword("app", "pooledsecret")
	named := ""
	run := func(args ...string) (string, int) {
		t.Helper()
		cmd := c.cmd(t, args...)
		cmd.Env = append(cmd.Env, "HEROKU_API_URL="+app.URL, "HEROKU_API_KEY="+key, "APP_DATABASE_URL="+pooled.String(), "HEROKU_APP="+named)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		c.requireNoPassword(t, out.String())
		require.NotContains(t, out.String(), key)
		require.NotContains(t, out.String(), "pooledsecret")
		if exit := new(exec.ExitError); errors.As(err, &exit) {
			return out.String(), exit.ExitCode()
		}
		require.NoError(t, err)
		return out.String(), 0
	}
	out, status := run("run", "--until", "in-sync")
	require.Zero(t, status, out)

	out, status = run("switch", "--heroku-app", "another")
	require.Equal(t, 1, status, out)
	require.Contains(t, out, `is "another" the application's name`)
	require.Equal(t, before, app.State())

	out, status = run("switch", "--heroku-app", "shop")
	require.Zero(t, status, out)
	require.NotContains(t, out, "heroku config:set")
	require.Equal(t, pooled.String(), app.Running("DATABASE_URL")["web.1"])
	require.False(t, app.State().Maintenance)
	require.Equal(t, []string{"Attach MIGRATOR_OLD_DATABASE", "maintenance true", "Detach DATABASE", "Set DATABASE_URL", "maintenance false"}, app.Calls())

	out, status = run("revert", "--heroku-app", "shop")
	require.Zero(t, status, out)
	require.NotContains(t, out, "heroku ")
	require.Equal(t, before, app.State())
	require.Equal(t, c.source.URL, app.Running("DATABASE_URL")["web.1"])
	app.Calls()

	app.Fail(func(method, path string, _ int) *herokutest.Fault {
		if method == http.MethodDelete {
			return &herokutest.Fault{Status: http.StatusForbidden, ID: "forbidden", Message: "You do not have access to the app shop."}
		}
		return nil
	})
	out, status = run("switch", "--heroku-app", "shop", "--log-level", "error")
	require.Zero(t, status, out) // it has switched all the same
	require.Contains(t, out, "The hook failed: herokuapp: detach the attachment: heroku answered 403 forbidden")
	require.Contains(t, out, "\n  heroku addons:detach DATABASE -a shop\n  heroku config:set DATABASE_URL=\"$APP_DATABASE_URL\" -a shop\n")
	app.Fail(nil)
	out, status = run("revert") // by a process without the hook
	require.Zero(t, status, out)
	require.Contains(t, out, "heroku addons:attach your-database --as DATABASE -a your-app")
	require.Contains(t, out, `heroku config:set DATABASE_URL="$(heroku config:get MIGRATOR_OLD_DATABASE_URL -a your-app)" -a your-app`)

	named = "shop" // what owns its DATABASE_URL can be looked up
	_, err = c.target.Connect(t).Exec(t.Context(), `SET heroku_migrator.pass = 'on';
		INSERT INTO heroku_migrator.hooks (number, point, state) VALUES (3, 'after_switch', 'started')`) // by a process that was killed
	require.NoError(t, err)
	out, status = run("switch", "--heroku-app", "shop")
	require.Zero(t, status, out)
	require.Contains(t, out, "The hook's outcome is unknown: ")
	require.Contains(t, out, "$APP_DATABASE_URL:\n\n  heroku maintenance:on -a shop\n  heroku addons:detach DATABASE -a shop\n") // it is kept already
	require.NotContains(t, out, "ordinary")

	for _, args := range [][]string{
		{"switch", "--heroku-app", "shop", "--hook", "true"}, {"status", "--heroku-app", "shop"},
		{"switch", "--heroku-app", "shop", "--app-url", strings.Replace(pooled.String(), "postgres", "mysql", 1)}, {"switch", "--heroku-app", "Shop"},
		{"switch", "--heroku-app", "shop", "--app-url="},
	} {
		out, status = run(args...)
		require.Equal(t, 64, status, "%v: %s", args, out)
	}
}
