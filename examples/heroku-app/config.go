package main

import (
	"log/slog"
	"net/url"
	"strings"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/dashboard"
	"github.com/heroku-migrator/migrator/herokuapp"
	"github.com/heroku-migrator/migrator/internal/pgurl"
)

// config is what the environment says. README.md lists the variables.
type config struct {
	port          string
	password      string
	insecure      bool // no login at all
	readOnly      bool
	origins       []string
	proxied       bool // X-Forwarded-For can be relied on
	source        string
	target        string
	notifications string // where to; empty: nowhere
	level         slog.Level
	pgDump        string

	copying        migrator.CopyConfig
	indexes        migrator.IndexConfig
	cutover        migrator.CutoverConfig
	wayBack        migrator.WayBackConfig
	wayBackCapture migrator.CaptureMethod
	schemaChanges  migrator.SchemaPolicy
	leaveOut       []string

	hookCommand []string
	app         herokuapp.Config // whose database it is; App is empty if nothing is to be done about it

	problems []problem
	settings map[string]string
	names    []string // of all variables
	urls     []*pgurl.URL
	secrets  []string
}

const (
	defaultPort = "8080"
	mostMiB     = 1 << 20
	mostWorkers = 100
)

// readConfig reads the environment. Whatever is wrong with it is among the problems.
func readConfig(get func(string) string) *config {
	e := &environment{get: get, settings: map[string]string{}}
	c := &config{port: defaultPort}
	if port := e.number("PORT", 1, 65535); port > 0 {
		c.port = e.text("PORT")
	}
	c.source = c.databaseURL(e, "HEROKU_URL", "the Heroku database to move: heroku config:get DATABASE_URL -a your-app")
	c.target = c.databaseURL(e, "PLANETSCALE_URL", "the empty PlanetScale database, with the direct port 5432")
	c.password = e.raw("PASSWORD")
	c.insecure = e.yes("DISABLE_AUTH")
	c.readOnly = e.yes("READ_ONLY")
	c.proxied = e.yes("TRUST_PROXY") || get("DYNO") != "" // Heroku's router can be relied on
	if list := e.text("TRUSTED_ORIGINS"); list != "" {
		c.origins = strings.Fields(strings.ReplaceAll(list, ",", " "))
	}
	for _, origin := range c.origins {
		u, err := url.Parse(origin)
		if err != nil || u.Host == "" || origin != u.Scheme+"://"+u.Host {
			e.complain("TRUSTED_ORIGINS", "has an entry that is not like https://admin.example.com",
				"Correct it, or remove it.")
			c.origins = nil
			break
		}
	}
	c.notifications = e.secret("NOTIFICATION_URL")
	if e.yes("DISABLE_NOTIFICATIONS") {
		c.notifications = ""
	} else if c.notifications != "" {
		if _, err := dashboard.NewWebhook(c.notifications); err != nil {
			e.complain("NOTIFICATION_URL", "cannot be used: "+err.Error(), "Correct it, or remove it.")
		}
	}

	c.copying = migrator.CopyConfig{
		Workers:           int(e.number("COPY_WORKERS", 1, mostWorkers)),
		ChunkBytes:        e.number("COPY_CHUNK_MB", 1, mostMiB) << 20,
		MaxBytesPerSecond: e.number("COPY_MAX_MB", 1, mostMiB) << 20,
		Throttle:          migrator.ThrottleConfig{Off: e.yes("DISABLE_THROTTLE")},
	}
	c.indexes.Workers = int(e.number("INDEX_WORKERS", 1, mostWorkers))
	c.schemaChanges = migrator.SchemaPolicy(e.choice("SCHEMA_CHANGES", string(migrator.SchemaForward),
		string(migrator.SchemaPause), string(migrator.SchemaFail)))
	for name := range strings.SplitSeq(e.text("LEAVE_OUT"), ";") {
		if name = strings.TrimSpace(name); name != "" {
			c.leaveOut = append(c.leaveOut, name)
		}
	}
	c.cutover.Writers = migrator.WriterPolicy(e.choice("SWITCH_WRITERS", string(migrator.WritersWait),
		string(migrator.WritersGiveUp), string(migrator.WritersTerminate)))
	c.cutover.SequenceMargin = e.number("SEQUENCE_MARGIN", 0, 1<<40)
	if c.cutover.SequenceMargin == 0 && e.text("SEQUENCE_MARGIN") != "" {
		c.cutover.SequenceMargin = -1 // exactly where they are
	}
	c.wayBack.Disabled = e.yes("DISABLE_WAY_BACK")
	c.wayBackCapture = migrator.CaptureMethod(e.choice("WAY_BACK_CAPTURE", string(migrator.CaptureTriggers),
		string(migrator.CaptureDecoding)))
	c.pgDump = e.text("PG_DUMP")
	if level := e.choice("LOG_LEVEL", "info", "debug", "warn", "error"); level != "" {
		_ = c.level.UnmarshalText([]byte(level)) // one of these is right
	}
	c.readHook(e)

	c.secrets = append(c.secrets, c.password, c.notifications)
	c.problems, c.settings, c.names = e.problems, e.settings, e.names
	return c
}

// databaseURL reads a URL that has to be there.
func (c *config) databaseURL(e *environment, name, what string) string {
	raw := e.secret(name)
	if raw == "" {
		e.complain(name, "is not set", "Set it to the URL of "+what+".")
		return ""
	}
	c.hide(raw)
	u, err := pgurl.Parse(raw)
	if err != nil {
		e.complain(name, "cannot be used: "+err.Error(), "Set it to the URL of "+what+".")
		return ""
	}
	if direct, pooled := u.IsPlanetScalePooler(); pooled {
		e.complain(name, "leads to PgBouncer (port 6432), and the migrator needs sessions of Postgres itself",
			"Use port 5432: "+direct+" (with the password).")
		return ""
	}
	return raw
}

// hide has a URL's password taken out of whatever is printed or sent; of one that cannot be parsed, all of it.
func (c *config) hide(raw string) {
	u, err := pgurl.Parse(raw)
	if err != nil {
		c.secrets = append(c.secrets, raw)
		return
	}
	c.urls = append(c.urls, u)
	if cfg, err := u.ConnConfig(); err == nil {
		c.secrets = append(c.secrets, cfg.Password)
	}
}

// found adds a problem that shows only when a value is used.
func (c *config) found(log *slog.Logger, p problem) {
	c.problems = append(c.problems, p)
	p.tell(log)
}

// readHook reads what is to be done about the application at the switch.
func (c *config) readHook(e *environment) {
	c.hookCommand = strings.Fields(e.text("HOOK_COMMAND"))
	c.app = herokuapp.Config{App: e.text("HEROKU_APP"), Token: e.secret("HEROKU_API_KEY"),
		URL: e.secret("APP_DATABASE_URL"), API: e.get("HEROKU_API_URL")}
	c.secrets = append(c.secrets, c.app.Token)
	c.hide(c.app.URL)
	switch {
	case c.app.App == "":
		return // the other two say nothing then
	case len(c.hookCommand) > 0:
		e.complain("HOOK_COMMAND", "and HEROKU_APP are both set, and only one of them can have its part in the switch",
			"Remove one of them.")
	case c.app.App == e.get("HEROKU_APP_NAME"):
		e.complain("HEROKU_APP", "names this very app, which moves the database", "Set it to the app whose database "+
			"is moved.")
	case c.app.Token == "":
		e.complain("HEROKU_API_KEY", "is not set, and HEROKU_APP needs it", "Set it to what this prints: heroku "+
			"authorizations:create -s write-protected.")
	case c.app.URL == "":
		e.complain("APP_DATABASE_URL", "is not set, and HEROKU_APP needs it", "Set it to the URL that the app is to "+
			"have after the switch: PlanetScale's, with port 6432.")
	default:
		if _, err := herokuapp.Hook(c.app); err != nil {
			e.complain("HEROKU_APP", "cannot be used: "+err.Error(), "Correct HEROKU_APP, HEROKU_API_KEY or "+
				"APP_DATABASE_URL.")
		}
	}
}

// hook is the application's part in the switch; nil if there is none.
func (c *config) hook(log *slog.Logger) (migrator.Hook, error) {
	switch {
	case len(c.hookCommand) > 0:
		return migrator.CommandHook(c.hookCommand[0], c.hookCommand[1:]...), nil
	case c.app.App != "":
		app := c.app
		app.Logger = log
		return herokuapp.Hook(app)
	}
	return nil, nil
}

// locked tells that nobody may see anything, since anybody could.
func (c *config) locked() bool { return strings.TrimSpace(c.password) == "" && !c.insecure }
