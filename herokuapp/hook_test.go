package herokuapp_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/herokuapp"
	"github.com/heroku-migrator/migrator/internal/herokutest"
)

const (
	apiKey    = "HRKU-0123-secret-key"
	oldURL    = "postgres://ohmy:old%20secret@ec2-1.example.com:5432/d1"
	pooledURL = "postgresql://app.branch:new-secret@eu.horizon.psdb.cloud:6432/postgres?sslmode=verify-full&sslrootcert=system"
	addon     = "postgresql-cubic-12345"
)

// fixture is an application with a hook, and what the hook logs.
type fixture struct {
	*herokutest.Server

	hook migrator.Hook
	cfg  herokuapp.Config
	log  *bytes.Buffer
}

// newFixture makes an application whose DATABASE_URL is an attachment, or, if plain is true, an ordinary config var.
func newFixture(t *testing.T, plain bool, change ...func(*herokutest.App, *herokuapp.Config)) *fixture {
	t.Helper()
	f := &fixture{log: &bytes.Buffer{}}
	app := herokutest.App{Name: "shop", Token: apiKey, Formation: map[string]int{"web": 2, "worker": 1}, Boot: 40 * time.Millisecond}
	app.Crash = func(_ string, vars map[string]string) bool { return vars["DATABASE_URL"] == "" }
	f.cfg = herokuapp.Config{
		App: "shop", Token: apiKey, URL: pooledURL, Timeout: 10 * time.Second, Poll: 10 * time.Millisecond, Patience: 3 * time.Second,
		Logger: slog.New(slog.NewTextHandler(f.log, nil)),
	}
	for _, c := range change {
		c(&app, &f.cfg)
	}
	f.Server = herokutest.New(t, app)
	f.cfg.API = f.URL
	if plain {
		f.Set(map[string]string{"DATABASE_URL": oldURL, "LANG": "C"})
	} else {
		f.Addon(addon, oldURL, "DATABASE")
		f.Set(map[string]string{"LANG": "C"})
	}
	f.restart(t)
	t.Cleanup(func() { f.noSecret(t, f.log.String()) })
	return f
}

// restart makes a hook as a new process would.
func (f *fixture) restart(t *testing.T) {
	t.Helper()
	hook, err := herokuapp.Hook(f.cfg)
	require.NoError(t, err)
	f.hook = hook
}

func (f *fixture) call(t *testing.T, points ...migrator.HookPoint) {
	t.Helper()
	for _, p := range points {
		require.NoError(t, f.hook(t.Context(), migrator.HookCall{Point: p, Number: 1}), p)
	}
}

// fail calls the hook, which has to fail, and returns what it says.
func (f *fixture) fail(t *testing.T, point migrator.HookPoint) string {
	t.Helper()
	err := f.hook(t.Context(), migrator.HookCall{Point: point, Number: 1})
	require.Error(t, err)
	f.noSecret(t, fmt.Sprintf("%v %+v %#v", err, err, err.Error()))
	return err.Error()
}

func (f *fixture) noSecret(t *testing.T, text string) {
	t.Helper()
	for _, secret := range []string{apiKey, "new-secret", "old%20secret", "old secret"} {
		require.NotContains(t, text, secret)
	}
}

// running requires that every dyno has a value, and nobody sees the maintenance page.
func (f *fixture) running(t *testing.T, url string) {
	t.Helper()
	require.Equal(t, map[string]string{"web.1": url, "web.2": url, "worker.1": url}, f.Running("DATABASE_URL"))
	require.False(t, f.State().Maintenance)
}

var toTarget = []migrator.HookPoint{migrator.HookBeforeFence, migrator.HookBeforeSwitch, migrator.HookAfterSwitch}

func TestAttachment(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	before := f.State()
	f.call(t, migrator.HookBeforeFence)
	require.Equal(t, []string{"Attach MIGRATOR_OLD_DATABASE"}, f.Calls())
	f.running(t, oldURL)
	f.call(t, migrator.HookBeforeFence, migrator.HookBeforeSwitch) // after an attempt that was given up
	require.Empty(t, f.Calls())
	f.call(t, migrator.HookAfterSwitch)
	require.Equal(t, []string{"maintenance true", "Detach DATABASE", "Set DATABASE_URL", "maintenance false"}, f.Calls())
	f.running(t, pooledURL)
	require.Equal(t, []string{"MIGRATOR_OLD_DATABASE of " + addon + "@"}, f.State().Attachments)
	require.Equal(t, oldURL, f.State().Config["MIGRATOR_OLD_DATABASE_URL"])
	f.call(t, migrator.HookAfterSwitch) // nothing is done twice
	require.Equal(t, []string{"maintenance true", "maintenance false"}, f.Calls())

	f.restart(t)
	f.call(t, migrator.HookAfterRevert)
	require.Equal(t, []string{"maintenance true", "remove DATABASE_URL", "Attach DATABASE", "Detach MIGRATOR_OLD_DATABASE", "maintenance false"}, f.Calls())
	f.running(t, oldURL)
	require.Equal(t, before, f.State())
	f.call(t, migrator.HookAfterRevert)
	require.Empty(t, f.Calls())
	f.call(t, toTarget...)
	f.running(t, pooledURL)
	f.call(t, migrator.HookAfterRevert)
	require.Equal(t, before, f.State())
}

func TestOrdinaryConfigVar(t *testing.T) {
	t.Parallel()
	f := newFixture(t, true)
	before := f.State()
	f.call(t, migrator.HookBeforeFence)
	require.Equal(t, []string{"Set MIGRATOR_OLD_DATABASE_URL"}, f.Calls())
	rotated := strings.Replace(oldURL, "ohmy", "ohmy2", 1)
	f.Set(map[string]string{"DATABASE_URL": rotated}) // between fence and switch
	before.Config["DATABASE_URL"] = rotated
	f.call(t, migrator.HookBeforeSwitch, migrator.HookAfterSwitch)
	require.Equal(t, []string{"maintenance true", "Set DATABASE_URL, MIGRATOR_OLD_DATABASE_URL", "maintenance false"}, f.Calls())
	f.running(t, pooledURL)
	f.call(t, toTarget...) // the new URL is never taken for the old one
	f.Calls()
	f.restart(t)
	f.call(t, migrator.HookAfterRevert)
	require.Equal(t, []string{"maintenance true", "Set DATABASE_URL, remove MIGRATOR_OLD_DATABASE_URL", "maintenance false"}, f.Calls())
	f.running(t, rotated)
	require.Equal(t, before, f.State())
	f.call(t, migrator.HookAfterRevert)
	require.Empty(t, f.Calls())
}

// The credential of the attachment comes back, other attachments of the add-on stay, and are told of.
func TestSeveralAttachments(t *testing.T) {
	t.Parallel()
	f := newFixture(t, true, func(_ *herokutest.App, c *herokuapp.Config) { c.Var = "MAIN_URL" })
	f.Addon(addon, oldURL, "HEROKU_POSTGRESQL_RED", "MAIN@credential:writer", "POOL@connection-pooling:default")
	f.Addon("redis-1", "rediss://x", "REDIS")
	f.Share(addon, "shop-reports")
	before := f.State()
	f.call(t, toTarget...)
	require.Equal(t, pooledURL, f.State().Config["MAIN_URL"])
	require.Contains(t, f.State().Attachments, "MIGRATOR_OLD_MAIN of "+addon+"@credential:writer")
	require.Contains(t, f.log.String(), "app=shop-reports addon="+addon)
	require.Contains(t, f.log.String(), "[HEROKU_POSTGRESQL_RED_URL POOL_URL]")
	f.restart(t)
	f.call(t, migrator.HookAfterRevert)
	require.Equal(t, before, f.State())
}

func TestMaintenance(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false, func(_ *herokutest.App, c *herokuapp.Config) { c.NoMaintenance = true })
	f.call(t, toTarget...)
	f.call(t, migrator.HookAfterRevert)
	require.NotContains(t, strings.Join(f.Calls(), " "), "maintenance")

	f = newFixture(t, false)
	f.SetMaintenance(true) // by somebody who does not want it off
	f.call(t, toTarget...)
	require.True(t, f.State().Maintenance)
	require.Contains(t, f.log.String(), "maintenance mode was on before, and is left on")
	require.NotContains(t, strings.Join(f.Calls(), " "), "maintenance")
}

// Every request may fail for good. The error says what was done; the commands that it lists do the rest.
func TestErrorAtEveryRequest(t *testing.T) {
	t.Parallel()
	for _, plain := range []bool{false, true} {
		for _, before := range [][]migrator.HookPoint{nil, {}, {migrator.HookBeforeFence}, toTarget} {
			point := migrator.HookAfterSwitch // also without a hook before the fence
			if before == nil {
				point = migrator.HookBeforeFence
			} else if len(before) > 1 {
				point = migrator.HookAfterRevert
			}
			for at := 1; ; at++ {
				f := newFixture(t, plain)
				f.call(t, before...)
				f.Calls()
				writes := 0
				f.Fail(func(method, _ string, _ int) *herokutest.Fault {
					if method == http.MethodGet {
						return nil
					}
					if writes++; writes >= at {
						return &herokutest.Fault{Status: http.StatusUnprocessableEntity, ID: "invalid_params", Message: "No, says " + apiKey}
					}
					return nil
				})
				err := f.hook(t.Context(), migrator.HookCall{Point: point})
				if err == nil {
					require.Greater(t, at, 1)
					break
				}
				f.noSecret(t, err.Error())
				require.ErrorContains(t, err, `heroku answered 422 invalid_params, "No, says ***"`)
				f.Fail(nil)
				done := f.Calls()
				require.Len(t, done, at-1)
				if point == migrator.HookBeforeFence {
					require.NotContains(t, err.Error(), "by hand")
					continue
				}
				if at == 1 {
					require.ErrorContains(t, err, "Nothing was done before.")
				}
				f.byHand(t, err.Error())
				if point == migrator.HookAfterSwitch {
					f.eventually(t, pooledURL)
					require.Equal(t, oldURL, f.State().Config["MIGRATOR_OLD_DATABASE_URL"])
				} else {
					f.eventually(t, oldURL)
					require.NotContains(t, f.State().Config, "MIGRATOR_OLD_DATABASE_URL")
				}
			}
		}
	}
}

// eventually requires that all dynos have a value soon.
func (f *fixture) eventually(t *testing.T, url string) {
	t.Helper()
	require.Eventually(t, func() bool {
		r := f.Running("DATABASE_URL")
		return len(r) == 3 && r["web.1"] == url && r["web.2"] == url && r["worker.1"] == url
	}, 10*time.Second, 5*time.Millisecond)
	f.running(t, url)
}

// byHand does what the commands in a text do, as Heroku's command line would, by its requests.
func (f *fixture) byHand(t *testing.T, text string) {
	t.Helper()
	n := 0
	for line := range strings.Lines(text) {
		command, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "  heroku ")
		if !ok {
			continue
		}
		n++
		f.run(t, command)
	}
	require.Positive(t, n, text)
}

func (f *fixture) run(t *testing.T, command string) {
	t.Helper()
	command, ok := strings.CutSuffix(command, " -a shop")
	require.True(t, ok, command)
	what, rest, _ := strings.Cut(command, " ")
	switch what {
	case "maintenance:on", "maintenance:off":
		f.request(t, http.MethodPatch, "/apps/shop", fmt.Sprintf(`{"maintenance":%t}`, what == "maintenance:on"))
	case "ps:wait":
	case "config:unset":
		f.request(t, http.MethodPatch, "/apps/shop/config-vars", fmt.Sprintf(`{%q:null}`, rest))
	case "config:set":
		name, value, _ := strings.Cut(rest, "=")
		value = strings.Trim(value, `"`)
		if from, ok := strings.CutPrefix(value, "$(heroku config:get "); ok {
			from, _, _ = strings.Cut(from, " ")
			value = f.State().Config[from]
		} else {
			require.Equal(t, herokuapp.Placeholder, value)
			value = pooledURL
		}
		f.request(t, http.MethodPatch, "/apps/shop/config-vars", fmt.Sprintf(`{%q:%q}`, name, value))
	case "addons:attach":
		name, as, ok := strings.Cut(rest, " --as ")
		require.True(t, ok, command)
		f.request(t, http.MethodPost, "/addon-attachments", fmt.Sprintf(`{"addon":%q,"app":"shop","name":%q}`, name, as))
	case "addons:detach":
		f.request(t, http.MethodDelete, "/addon-attachments/"+f.AttachmentID(rest), "")
	default:
		require.Fail(t, "unknown command", command)
	}
}

func (f *fixture) request(t *testing.T, method, path, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, f.URL+path, strings.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Accept", "application/vnd.heroku+json; version=3")
	req.Header.Set("Authorization", "Bearer "+apiKey)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Less(t, resp.StatusCode, 300, "%s %s", method, path)
}

// Answers that are lost, a busy API and its rate limit do not matter, whichever request they meet.
func TestTroubleThatPasses(t *testing.T) {
	t.Parallel()
	faults := map[string]herokutest.Fault{
		"lost":         {Applied: true},
		"cut":          {},
		"unavailable":  {Status: http.StatusServiceUnavailable, ID: "service_unavailable", Message: "Please try again later."},
		"done and 503": {Status: http.StatusServiceUnavailable, ID: "service_unavailable", Message: "Please try again later.", Applied: true},
		"rate limit":   {Status: http.StatusTooManyRequests, ID: "rate_limit", Message: "Your account reached the API rate limit\nPlease wait a few minutes before making new requests", RetryAfter: "1"},
	}
	for name, fault := range faults {
		for _, plain := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s %t", name, plain), func(t *testing.T) {
				t.Parallel()
				f := newFixture(t, plain, func(_ *herokutest.App, c *herokuapp.Config) { c.Patience = 30 * time.Second })
				before := f.State()
				trouble := func(method, _ string, n int) *herokutest.Fault {
					write, slow := method != http.MethodGet, fault.RetryAfter != ""
					if (n == 1 && (write || !slow)) || (write && !slow && n%2 == 1) {
						return &fault
					}
					return nil
				}
				f.Fail(trouble)
				f.call(t, toTarget...)
				f.running(t, pooledURL)
				f.Fail(trouble)
				f.call(t, migrator.HookAfterRevert)
				f.running(t, oldURL)
				require.Equal(t, before, f.State())
			})
		}
	}
}

// What is wrong for good is said before the fence, and in words that help.
func TestRefusedBeforeTheFence(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*fixture)
		says   string
	}{
		"wrong key":  {func(f *fixture) { f.Change(func(a *herokutest.App) { a.Token = "another" }) }, "the API key is not valid"},
		"read only":  {func(f *fixture) { f.Change(func(a *herokutest.App) { a.ReadOnly = true }) }, "lacks the scope write-protected"},
		"no app":     {func(f *fixture) { f.Change(func(a *herokutest.App) { a.Name = "other" }) }, `is "shop" the application's name`},
		"rate limit": {func(f *fixture) { f.Fail(func(string, string, int) *herokutest.Fault { return limit }) }, "some minutes without requests help"},
		"no answer": {func(f *fixture) {
			f.Fail(func(string, string, int) *herokutest.Fault { return &herokutest.Fault{} })
		}, "EOF"},
		"release": {func(f *fixture) {
			f.Change(func(a *herokutest.App) { a.Release = func(map[string]string) bool { return false } })
		}, "release v2 (Attach MIGRATOR_OLD_DATABASE (@ref:" + addon + ")) failed"},
		"release without end": {func(f *fixture) {
			f.Change(func(a *herokutest.App) {
				a.Formation, a.Releasing, a.Release = nil, time.Hour, func(map[string]string) bool { return true }
			})
		}, "is pending: its release command has not ended"},
		"crash": {func(f *fixture) {
			f.Change(func(a *herokutest.App) {
				a.Crash = func(kind string, _ map[string]string) bool { return kind == "worker" }
			})
		}, "worker.1 is crashed, 0 of 1 worker dynos are up: see `heroku ps -a shop`"},
		"taken":      {func(f *fixture) { f.Addon("postgresql-other-1", oldURL, "MIGRATOR_OLD_DATABASE") }, "heroku addons:detach MIGRATOR_OLD_DATABASE -a shop"},
		"taken var":  {func(f *fixture) { f.Set(map[string]string{"MIGRATOR_OLD_DATABASE_URL": oldURL}) }, "heroku config:unset MIGRATOR_OLD_DATABASE_URL -a shop"},
		"no var":     {func(f *fixture) { f.cfg.Var = "DB_URL" }, "app shop has no config var DB_URL"},
		"empty name": {func(f *fixture) { f.cfg.Var = "EMPTY" }, "app shop has no config var EMPTY"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, false, func(_ *herokutest.App, c *herokuapp.Config) {
				c.Timeout, c.Patience = time.Second, 500*time.Millisecond
			})
			c.change(f)
			f.restart(t)
			text := f.fail(t, migrator.HookBeforeFence)
			require.Contains(t, text, c.says)
			require.NotContains(t, text, "by hand")
			require.False(t, f.State().Maintenance)
			require.Equal(t, oldURL, f.State().Config["DATABASE_URL"])
		})
	}
}

var limit = &herokutest.Fault{Status: http.StatusTooManyRequests, ID: "rate_limit", Message: "Your account reached the API rate limit", RetryAfter: "300"}

// The release of a detachment may fail, since there is no database then: the one after it counts.
func TestReleaseCommand(t *testing.T) {
	t.Parallel()
	needs := func(vars map[string]string) bool { return vars["DATABASE_URL"] != "" }
	for _, releasing := range []time.Duration{0, 100 * time.Millisecond} {
		for _, plain := range []bool{false, true} {
			f := newFixture(t, plain, func(a *herokutest.App, _ *herokuapp.Config) { a.Release, a.Releasing = needs, releasing })
			before := f.State()
			for _, again := range []bool{false, true} {
				if again { // without the rehearsal
					f.call(t, migrator.HookAfterSwitch)
				} else {
					f.call(t, toTarget...)
				}
				f.running(t, pooledURL)
				require.Equal(t, oldURL, f.State().Config["MIGRATOR_OLD_DATABASE_URL"])
				f.call(t, migrator.HookAfterRevert)
				f.running(t, oldURL)
				require.Equal(t, before, f.State())
			}
		}
	}

	f := newFixture(t, false, func(a *herokutest.App, _ *herokuapp.Config) { a.Release = needs })
	before := f.State()
	f.Change(func(a *herokutest.App) {
		a.Release = func(vars map[string]string) bool { return vars["DATABASE_URL"] == oldURL }
	})
	f.call(t, migrator.HookBeforeFence)
	text := f.fail(t, migrator.HookAfterSwitch)
	require.Contains(t, text, "(Set DATABASE_URL config vars) failed, so that the dynos go on with the release before it")
	require.Contains(t, text, "heroku releases:retry -a shop")
	require.Contains(t, text, "Done: maintenance mode is on; DATABASE is detached; DATABASE_URL is PlanetScale's URL.")
	require.Contains(t, text, "\n  heroku ps:wait -a shop\n  heroku maintenance:off -a shop")
	require.NotContains(t, text, "heroku config:set")
	require.True(t, f.State().Maintenance)
	f.call(t, migrator.HookAfterRevert) // in the same process: maintenance mode is known to be ours
	f.running(t, oldURL)
	require.Equal(t, before, f.State())
}

// Old dynos that preboot leaves beside the new ones write nowhere: requests have to wait until they are gone.
func TestPreboot(t *testing.T) {
	t.Parallel()
	const preboot = 300 * time.Millisecond
	f := newFixture(t, true, func(a *herokutest.App, _ *herokuapp.Config) { a.Preboot = preboot })
	f.OneOff("run.7")
	f.call(t, migrator.HookBeforeFence)
	began := time.Now()
	f.call(t, migrator.HookAfterSwitch)
	require.GreaterOrEqual(t, time.Since(began), preboot)
	require.Equal(t, pooledURL, f.Running("DATABASE_URL")["web.1"])
	require.Contains(t, f.log.String(), "dyno=run.7")

	f = newFixture(t, true)
	f.call(t, migrator.HookBeforeFence)
	f.cfg.Timeout = time.Second
	f.restart(t)
	f.Change(func(a *herokutest.App) { a.Preboot = time.Hour })
	require.Contains(t, f.fail(t, migrator.HookAfterSwitch), "web.1 is of v2")
	require.True(t, f.State().Maintenance)
}

// A worker that does not come up is no reason to keep the maintenance page; a web dyno is.
func TestDynosThatStayDown(t *testing.T) {
	t.Parallel()
	for kind, on := range map[string]bool{"worker": false, "web": true} {
		f := newFixture(t, false)
		f.call(t, migrator.HookBeforeFence)
		f.cfg.Timeout = time.Second
		f.restart(t)
		f.Change(func(a *herokutest.App) {
			a.Crash = func(k string, vars map[string]string) bool { return k == kind && vars["DATABASE_URL"] == pooledURL }
		})
		text := f.fail(t, migrator.HookAfterSwitch)
		require.Contains(t, text, kind+".1 is crashed")
		require.Equal(t, on, f.State().Maintenance)
		require.Equal(t, on, strings.Contains(text, "\n  heroku maintenance:off -a shop"), text)
		require.Equal(t, !on, strings.Contains(text, "; maintenance mode is off."), text)
	}
}

func TestCancelled(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	f.call(t, migrator.HookBeforeFence)
	f.Change(func(a *herokutest.App) { a.Boot = time.Hour })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	err := f.hook(ctx, migrator.HookCall{Point: migrator.HookAfterSwitch})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "web.1 is starting")
	require.ErrorContains(t, err, "heroku maintenance:off -a shop")

	// Not while the application has no URL at all.
	f = newFixture(t, false)
	f.call(t, migrator.HookBeforeFence)
	ctx, cancel = context.WithCancel(t.Context())
	f.Fail(func(method, _ string, _ int) *herokutest.Fault {
		if method == http.MethodDelete {
			cancel()
		}
		return nil
	})
	err = f.hook(ctx, migrator.HookCall{Point: migrator.HookAfterSwitch})
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "DATABASE_URL is PlanetScale's URL. To be done by hand, when the reason is gone:\n  heroku ps:wait -a shop")
	require.Equal(t, pooledURL, f.State().Config["DATABASE_URL"])

	err = f.hook(ctx, migrator.HookCall{Point: migrator.HookAfterRevert})
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "Nothing was done.")
	require.ErrorContains(t, err, "heroku addons:attach "+addon+" --as DATABASE -a shop")
	f.restart(t) // what owned the config var is not known then
	err = f.hook(ctx, migrator.HookCall{Point: migrator.HookAfterSwitch})
	require.ErrorContains(t, err, "heroku addons:attach YOUR-DATABASE --as MIGRATOR_OLD_DATABASE -a shop")
	require.ErrorContains(t, err, "If it is an ordinary config var:")
}

// A process that was killed at any change is followed by a revert that finds everything it needs in the application.
func TestRevertAfterHalfASwitch(t *testing.T) {
	t.Parallel()
	for _, plain := range []bool{false, true} {
		for at := 1; at <= 4; at++ {
			f := newFixture(t, plain, func(_ *herokutest.App, c *herokuapp.Config) { c.Patience = time.Millisecond })
			before := f.State()
			f.call(t, migrator.HookBeforeFence)
			ctx, kill := context.WithCancel(t.Context())
			writes := 0
			f.Fail(func(method, _ string, _ int) *herokutest.Fault {
				if method != http.MethodGet {
					writes++
				}
				if writes < at {
					return nil
				}
				kill()
				return &herokutest.Fault{Applied: writes == at && method != http.MethodGet}
			})
			_ = f.hook(ctx, migrator.HookCall{Point: migrator.HookAfterSwitch})
			kill()
			f.Fail(nil)
			f.restart(t)
			f.call(t, migrator.HookAfterRevert)
			f.SetMaintenance(false) // of which the new process cannot know whose it is
			require.Equal(t, before, f.State())
			f.running(t, oldURL)
		}
	}
}

// When nothing is kept, nothing is guessed.
func TestRevertWithoutMemory(t *testing.T) {
	t.Parallel()
	f := newFixture(t, true)
	f.Set(map[string]string{"DATABASE_URL": strings.Replace(pooledURL, "new-secret", "newer-secret", 1)})
	text := f.fail(t, migrator.HookAfterRevert)
	require.Contains(t, text, "there is neither an attachment MIGRATOR_OLD_DATABASE nor a config var MIGRATOR_OLD_DATABASE_URL")
	require.Contains(t, text, "heroku addons:attach THE-OLD-DATABASE --as DATABASE -a shop")
	require.NotContains(t, text, "newer-secret")
	require.Empty(t, f.Calls())

	// A second attachment that is left of an earlier migration says nothing about an ordinary config var.
	f = newFixture(t, true)
	f.Addon(addon, oldURL, "MIGRATOR_OLD_DATABASE")
	require.Contains(t, f.fail(t, migrator.HookBeforeFence), "is an ordinary config var that leads elsewhere")
}

// What somebody else does meanwhile is noticed.
func TestChangedMeanwhile(t *testing.T) {
	t.Parallel()
	f := newFixture(t, true)
	f.call(t, migrator.HookBeforeFence)
	var once sync.Once
	f.Fail(func(_, path string, _ int) *herokutest.Fault {
		if !strings.HasSuffix(path, "/dynos") {
			return nil
		}
		once.Do(func() {
			go func() { // when this request is answered
				f.Set(map[string]string{"DATABASE_URL": "postgres://else/where"})
				f.Fail(nil)
			}()
		})
		return &herokutest.Fault{Status: http.StatusServiceUnavailable}
	})
	require.Contains(t, f.fail(t, migrator.HookAfterSwitch), "DATABASE_URL is not what it should be")
}

func TestInspect(t *testing.T) {
	t.Parallel()
	for _, plain := range []bool{false, true} {
		f := newFixture(t, plain)
		want := herokuapp.Setup{App: "shop", Var: "DATABASE_URL"}
		if !plain {
			want.Owner.Addon = addon
		}
		inspect := f.cfg
		inspect.URL = ""
		for _, points := range [][]migrator.HookPoint{nil, {migrator.HookBeforeFence}, {migrator.HookAfterSwitch}, {migrator.HookAfterRevert}} {
			f.call(t, points...)
			f.Calls()
			setup, err := herokuapp.Inspect(t.Context(), inspect)
			require.NoError(t, err)
			want.Kept = len(points) > 0 && points[0] != migrator.HookAfterRevert
			require.Equal(t, want, setup)
			require.Equal(t, want.Kept, herokuapp.Commands(setup).Before == nil)
			require.Empty(t, f.Calls())
		}
		f.Change(func(a *herokutest.App) { a.Token = "another" })
		_, err := herokuapp.Inspect(t.Context(), inspect)
		require.ErrorContains(t, err, "the API key is not valid")
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	good := herokuapp.Config{App: "shop", Token: apiKey, URL: pooledURL}
	_, err := herokuapp.Hook(good)
	require.NoError(t, err)
	for says, change := range map[string]func(*herokuapp.Config){
		"application's name is missing":    func(c *herokuapp.Config) { c.App = "" },
		"application's name consists of":   func(c *herokuapp.Config) { c.App = "shop/../other" },
		"the API key is missing":           func(c *herokuapp.Config) { c.Token = "" },
		"the API key has a space":          func(c *herokuapp.Config) { c.Token = apiKey + "\n" },
		"is not the name of a config var":  func(c *herokuapp.Config) { c.Var = "A B" },
		"new URL is missing":               func(c *herokuapp.Config) { c.URL = "" },
		"new URL: ":                        func(c *herokuapp.Config) { c.URL = "mysql://u:new-secret@h/d" },
		"has to begin with https://":       func(c *herokuapp.Config) { c.API = "http://api.example.com" },
		"not a URL that begins with https": func(c *herokuapp.Config) { c.API = "api.heroku.com" },
	} {
		cfg := good
		change(&cfg)
		_, err := herokuapp.Hook(cfg)
		require.ErrorContains(t, err, says)
		require.NotContains(t, err.Error(), "secret")
	}
	log := &bytes.Buffer{}
	good.URL, good.Logger = strings.Replace(pooledURL, "6432", "5432", 1), slog.New(slog.NewTextHandler(log, nil))
	_, err = herokuapp.Hook(good)
	require.NoError(t, err)
	require.Contains(t, log.String(), "does not lead to PgBouncer")
	require.NotContains(t, log.String(), "secret")
}
