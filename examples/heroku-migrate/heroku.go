package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"

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
func nextSteps(name migrator.CommandName, app string, hook *migrator.HookStatus) string {
	attached, plain := commandsFor(app)
	part := ""
	switch {
	case hook != nil && hook.State == "done":
	case hook != nil:
		part = fmt.Sprintf("The hook %s: %s\n\n", map[bool]string{true: "failed", false: "has an unknown outcome"}[hook.State == "failed"], hook.Error)
	case name == migrator.CommandSwitch:
		part = `Now point the application to PlanetScale, with the pooled URL (port 6432) for it in $APP_DATABASE_URL. If
DATABASE_URL is an attachment of the old database ("heroku addons" tells its name, here your-database):

` + indent(attached.Before, attached.Switch) + "\nIf it is an ordinary config var:\n\n" + indent(plain.Before, plain.Switch) + "\n"
	case name == migrator.CommandRevert:
		part = `Now point the application back to the old database, here your-database, if DATABASE_URL was an attachment of it:

` + indent(attached.Revert) + "\nIf it was an ordinary config var:\n\n" + indent(plain.Revert)
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

What the application kept of the old database, as an ordinary config var or as an attachment:

` + strings.TrimRight(indent(plain.Complete, attached.Complete), "\n")
	default:
		return strings.TrimRight(part, "\n")
	}
}

// commandsFor returns the commands for an application, for both cases.
func commandsFor(app string) (attached, plain herokuapp.Lists) {
	return herokuapp.Commands(herokuapp.Setup{App: app, Owner: herokuapp.Owner{Addon: "your-database"}}), herokuapp.Commands(herokuapp.Setup{App: app})
}

func indent(lists ...[]string) string {
	b := &strings.Builder{}
	for _, list := range lists {
		for _, line := range list {
			b.WriteString("  " + line + "\n")
		}
	}
	return b.String()
}
