// Package herokuapp is the part of a Heroku application in a switch and a revert, done through Heroku's Platform API: [Hook]
// returns a hook that points the application to PlanetScale and back. [Commands] lists the same as commands for a person.
//
// The config var with the database's URL is either an ordinary one or belongs to the attachment of an add-on, and then cannot be
// overwritten. Either way the old URL is kept in the application itself, under another name (MIGRATOR_OLD_DATABASE_URL for
// DATABASE_URL): an ordinary value in a config var, an add-on by a second attachment. So the way back is known to any process
// that comes later, and the add-on never loses its last attachment.
package herokuapp

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	heroku "github.com/heroku/heroku-go/v5"

	"github.com/heroku-migrator/migrator/internal/pgurl"
)

// Config configures [Hook]. App, Token and URL have to be given.
type Config struct {
	// App is the application's name.
	App string
	// Token is an API key or OAuth token with the scope write-protected ("heroku authorizations:create -s write-protected").
	Token string
	// URL is what the application is to have as its database's URL: PlanetScale's, by PgBouncer (port 6432). It is set exactly
	// as it stands here.
	URL string
	// Var is the config var that holds it. Default: DATABASE_URL.
	Var string
	// NoMaintenance leaves maintenance mode alone. Otherwise it is on from the switch until the dynos run with the new URL.
	NoMaintenance bool
	// Timeout is how long to wait until all dynos are up; release commands and preboot (three minutes) are part of it. The
	// time-out for hooks of the migrator should be longer. Default: 4 minutes.
	Timeout time.Duration
	// Poll is how often it is looked whether they are. Default: 2 s.
	Poll time.Duration
	// Patience is how long a request is repeated that Heroku could not answer or refused because of the rate limit. Default: 1 minute.
	Patience time.Duration
	// API is where the API is. Default: Heroku's.
	API string
	// Client's Transport is used if it is not nil.
	Client *http.Client
	Logger *slog.Logger
}

var (
	appName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)
	varName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	token   = regexp.MustCompile(`^[[:graph:]]+$`)
)

// check completes a configuration and says what is wrong with it, without repeating what may be secret.
func (c Config) check() (Config, error) {
	if c.Var == "" {
		c.Var = defaultVar
	}
	if c.Timeout <= 0 {
		c.Timeout = 4 * time.Minute
	}
	if c.Poll <= 0 {
		c.Poll = 2 * time.Second
	}
	if c.Patience <= 0 {
		c.Patience = time.Minute
	}
	if c.API == "" {
		c.API = heroku.DefaultURL
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.App == "":
		return c, errors.New("herokuapp: the application's name is missing")
	case !appName.MatchString(c.App):
		return c, errors.New("herokuapp: the application's name consists of lower-case letters, digits and dashes, as `heroku apps` lists it")
	case c.Token == "":
		return c, errors.New("herokuapp: the API key is missing: `heroku authorizations:create -s write-protected` makes one")
	case !token.MatchString(c.Token):
		return c, errors.New("herokuapp: the API key has a space, a line break or another character that no key has")
	case !varName.MatchString(c.Var) || strings.HasPrefix(c.Var, oldPrefix):
		return c, fmt.Errorf("herokuapp: %q is not the name of a config var for the application's database", c.Var)
	}
	if c.URL != "" {
		u, err := pgurl.Parse(c.URL)
		if err != nil {
			return c, fmt.Errorf("herokuapp: the application's new URL: %w", err)
		}
		if _, pooled := u.IsPlanetScalePooler(); !pooled {
			c.Logger.Warn("the application's new URL does not lead to PgBouncer (port 6432): every connection of the application is one of Postgres'", "url", u)
		}
	}
	api, err := url.Parse(c.API)
	if err != nil || api.Host == "" || (api.Scheme != "https" && api.Scheme != "http") {
		return c, errors.New("herokuapp: the API's address is not a URL that begins with https://")
	}
	if host := api.Hostname(); api.Scheme == "http" && host != "localhost" && !strings.HasPrefix(host, "127.") && host != "::1" {
		return c, errors.New("herokuapp: the API's address has to begin with https://, since the API key is sent there")
	}
	c.API = strings.TrimSuffix(c.API, "/")
	return c, nil
}
