package main

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/herokuapp"
	"github.com/heroku-migrator/migrator/internal/pgurl"
)

// hook is what the command line says about the application's part; nil if it says nothing.
func (o *options) hook(log *slog.Logger) (migrator.Hook, error) {
	switch {
	case o.herokuApp != "" && o.hookProgram != "":
		return nil, usageError{"--hook or --heroku-app, not both"}
	case o.hookProgram != "":
		return migrator.CommandHook(o.hookProgram), nil
	case o.herokuApp == "":
		return nil, nil
	}
	key := os.Getenv("HEROKU_API_KEY")
	switch {
	case key == "":
		return nil, usageError{"--heroku-app needs an API key in HEROKU_API_KEY: heroku authorizations:create -s write-protected"}
	case o.appURL == "":
		return nil, usageError{"--heroku-app needs the application's URL of PlanetScale, with port 6432: set APP_DATABASE_URL (or give --app-url)"}
	}
	hook, err := herokuapp.Hook(herokuapp.Config{App: o.herokuApp, Token: key, URL: o.appURL, API: os.Getenv("HEROKU_API_URL"), Logger: log})
	if err != nil {
		return nil, usageError{err.Error()}
	}
	app, appErr := pgurl.Parse(o.appURL)
	target, targetErr := pgurl.Parse(o.target)
	if appErr == nil && targetErr == nil && (app.Host() != target.Host() || app.Database() != target.Database()) {
		log.Warn("the application's URL and the target's do not name the same host and database", "application", app, "target", target)
	}
	return hook, nil
}

// late tells what became of the hook that follows the last switch or revert, whichever process called it; nil if none has.
func (p *program) late(ctx context.Context, name migrator.CommandName) *migrator.HookStatus {
	point := map[migrator.CommandName]migrator.HookPoint{
		migrator.CommandSwitch: migrator.HookAfterSwitch, migrator.CommandRevert: migrator.HookAfterRevert,
	}[name]
	state, err := p.dst.Journal().State(ctx)
	if point == "" || err != nil {
		return nil
	}
	hooks, err := p.dst.Journal().Hooks(ctx)
	if err != nil {
		return nil
	}
	for _, h := range hooks {
		if h.Point == point && h.Number == state.Switches {
			return &h
		}
	}
	return nil
}

// nextSteps is what to do after a command. Without a hook that did the application's part, that is part of it.
func (p *program) nextSteps(ctx context.Context, name migrator.CommandName, hook *migrator.HookStatus) string {
	part := ""
	switch {
	case hook != nil && hook.State == "failed":
		part = "The hook failed: " + hook.Error + "\n\n"
	case hook == nil || hook.State != "done":
		if hook != nil {
			part = "The hook's outcome is unknown: " + hook.Error + "\n\n"
		}
		part += p.byHand(ctx, name)
	}
	switch name {
	case migrator.CommandSwitch:
		return part + `Test the application. Then either

  heroku-migrate complete     # done: removes everything of the migration
  heroku-migrate revert       # back: the Heroku database takes writes again`
	case migrator.CommandComplete:
		return `To prove that nothing is left: on both databases, each of these returns 0:

  SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'heroku_migrator_%';
  SELECT count(*) FROM pg_namespace WHERE nspname = 'heroku_migrator';

If the application's old URL was kept as MIGRATOR_OLD_DATABASE_URL: an ordinary config var can be removed by "heroku config:unset"; an
add-on stays attached by that name until it is destroyed.`
	default:
		return strings.TrimRight(part, "\n")
	}
}

// byHand is the application's part after a switch or a revert, in commands.
func (p *program) byHand(ctx context.Context, name migrator.CommandName) string {
	switch name {
	case migrator.CommandSwitch:
		return "Now point the application to PlanetScale, with the pooled URL (port 6432) for it in $APP_DATABASE_URL" +
			variants(p.setups(ctx), func(l herokuapp.Lists) []string { return slices.Concat(l.Before, l.Switch) }) + "\n"
	case migrator.CommandRevert:
		return "Now point the application back to the old database" + variants(p.setups(ctx), func(l herokuapp.Lists) []string { return l.Revert })
	default:
		return ""
	}
}

// setups says for which application commands are printed, and what owns its DATABASE_URL. They are for both cases unless
// HEROKU_APP and HEROKU_API_KEY, as Heroku's command line has them, allow to look.
func (p *program) setups(ctx context.Context) []herokuapp.Setup {
	app := cmp.Or(p.herokuApp, os.Getenv("HEROKU_APP"))
	if key := os.Getenv("HEROKU_API_KEY"); app != "" && key != "" {
		limited, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		s, err := herokuapp.Inspect(limited, herokuapp.Config{App: app, Token: key, API: os.Getenv("HEROKU_API_URL"), Logger: p.log})
		if err == nil {
			return []herokuapp.Setup{s}
		}
		p.log.WarnContext(ctx, "the application could not be looked at", "error", err)
	}
	return []herokuapp.Setup{{App: app, Owner: herokuapp.Owner{Addon: "your-database"}}, {App: app}}
}

// variants writes commands for each case.
func variants(setups []herokuapp.Setup, choose func(herokuapp.Lists) []string) string {
	b := &strings.Builder{}
	for i, s := range setups {
		switch {
		case len(setups) == 1:
			b.WriteString(":\n\n")
		case i == 0:
			b.WriteString(". If DATABASE_URL\nis an attachment of the old database (\"heroku addons\" tells its name, here your-database):\n\n")
		default:
			b.WriteString("\nIf it is an ordinary config var:\n\n")
		}
		for _, line := range choose(herokuapp.Commands(s)) {
			b.WriteString("  " + line + "\n")
		}
	}
	return b.String()
}
