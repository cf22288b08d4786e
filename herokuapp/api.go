package herokuapp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	heroku "github.com/heroku/heroku-go/v5"
	"golang.org/x/sync/errgroup"
)

// app is an application at Heroku.
type app struct {
	cfg  Config
	api  *heroku.Service
	idle func() // closes connections that are not used
}

func open(cfg Config) (*app, error) {
	cfg, err := cfg.check()
	if err != nil {
		return nil, err
	}
	var base http.RoundTripper
	if cfg.Client != nil {
		base = cfg.Client.Transport
	}
	if base == nil {
		base = &http.Transport{
			Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
			TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 30 * time.Second, // Heroku's router gives up after as long
		}
	}
	a := &app{cfg: cfg, idle: (&http.Client{Transport: base}).CloseIdleConnections}
	a.api = heroku.NewService(&http.Client{Transport: &heroku.Transport{
		BearerToken: cfg.Token, UserAgent: "heroku-migrator " + heroku.DefaultUserAgent,
		Transport: &repeating{base: base, patience: cfg.Patience, log: cfg.Logger},
	}})
	a.api.URL = cfg.API
	return a, nil
}

// attachment is an add-on's, by which it gives a config var to the application.
type attachment struct {
	id    string
	owner Owner
}

// state is what matters of an application.
type state struct {
	maintenance bool
	release     int                   // the latest version
	attached    map[string]attachment // by name
	vars        map[string]string
}

// read asks for everything at once: behind the fence, each request is time without writes.
func (a *app) read(ctx context.Context) (*state, error) {
	s := &state{attached: map[string]attachment{}, vars: map[string]string{}}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		app, err := a.api.AppInfo(ctx, a.cfg.App)
		if err == nil {
			s.maintenance = app.Maintenance
		}
		return err
	})
	g.Go(func() error {
		latest, err := a.latest(ctx)
		if err == nil {
			s.release = latest.Version
		}
		return err
	})
	g.Go(func() error {
		list, err := a.api.AddOnAttachmentListByApp(ctx, a.cfg.App, all())
		for _, at := range list {
			it := attachment{id: at.ID, owner: Owner{Addon: at.Addon.Name}}
			if at.Namespace != nil {
				it.owner.Namespace = *at.Namespace
			}
			s.attached[at.Name] = it
		}
		return err
	})
	g.Go(func() error {
		vars, err := a.api.ConfigVarInfoForApp(ctx, a.cfg.App)
		for name, value := range vars {
			if value != nil {
				s.vars[name] = *value
			}
		}
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, a.explain(err)
	}
	return s, nil
}

// all asks for a list in one piece, which Heroku cuts after 200 otherwise.
func all() *heroku.ListRange { return &heroku.ListRange{Field: "id", Max: 1000} }

// latest returns the newest release; one with version 0 if there is none.
func (a *app) latest(ctx context.Context) (heroku.Release, error) {
	list, err := a.api.ReleaseList(ctx, a.cfg.App, &heroku.ListRange{Field: "version", Max: 1, Descending: true})
	if err != nil || len(list) == 0 {
		return heroku.Release{}, err
	}
	return list[0], nil
}

func (a *app) setMaintenance(ctx context.Context, on bool) error {
	_, err := a.api.AppUpdate(ctx, a.cfg.App, heroku.AppUpdateOpts{Maintenance: &on})
	return err
}

func (a *app) setVars(ctx context.Context, vars map[string]*string) error {
	_, err := a.api.ConfigVarUpdate(ctx, a.cfg.App, vars)
	return err
}

// attach returns the ID of the attachment. overwrite allows it to take the place of a config var.
func (a *app) attach(ctx context.Context, owner Owner, name string, overwrite bool) (id string, err error) {
	opts := heroku.AddOnAttachmentCreateOpts{Addon: owner.Addon, App: a.cfg.App, Name: &name}
	if owner.Namespace != "" {
		opts.Namespace = &owner.Namespace
	}
	if overwrite {
		opts.Confirm = &a.cfg.App
	}
	at, err := a.api.AddOnAttachmentCreate(ctx, opts)
	return at.ID, err
}

func (a *app) detach(ctx context.Context, at attachment) error {
	_, err := a.api.AddOnAttachmentDelete(ctx, at.id)
	return err
}

// explain says what an answer of the API means for who has to do something about it.
func (a *app) explain(err error) error {
	refused := heroku.Error{}
	if !errors.As(err, &refused) {
		return err
	}
	advice := ""
	switch refused.StatusCode {
	case http.StatusUnauthorized:
		advice = ": the API key is not valid, or not any more; `heroku authorizations:create -s write-protected` makes one"
	case http.StatusForbidden:
		advice = fmt.Sprintf(": the API key's account may not do that with %s, or the key lacks the scope write-protected", a.cfg.App)
	case http.StatusNotFound:
		advice = fmt.Sprintf(": is %q the application's name, and may the API key's account see it?", a.cfg.App)
	case http.StatusTooManyRequests:
		advice = ": some minutes without requests help"
	}
	return fmt.Errorf("heroku answered %d %s, %q%s", refused.StatusCode, refused.ID, refused.Error(), advice)
}

// repeating repeats requests that were not answered properly. Whatever is asked here may be done twice: who asked looks at what
// it has become.
type repeating struct {
	base     http.RoundTripper
	patience time.Duration
	log      *slog.Logger
}

// RoundTrip implements [http.RoundTripper].
func (r *repeating) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	deadline := time.Now().Add(r.patience)
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 8*time.Second) {
		again := req.Clone(ctx)
		if req.GetBody != nil {
			body, err := req.GetBody()
			if err != nil {
				return nil, err
			}
			again.Body = body
		}
		resp, err := r.base.RoundTrip(again)
		if err == nil && resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode < http.StatusInternalServerError {
			if warning := resp.Header.Get("X-Heroku-Warning"); warning != "" {
				r.log.WarnContext(ctx, "heroku warns", "warning", warning)
				resp.Header.Del("X-Heroku-Warning") // the library would print it
			}
			return resp, nil
		}
		rest := pause
		if err == nil {
			if seconds, parseErr := strconv.Atoi(resp.Header.Get("Retry-After")); parseErr == nil && seconds > 0 {
				rest = time.Duration(seconds) * time.Second
			} else if resp.StatusCode == http.StatusTooManyRequests {
				rest = max(rest, 5*time.Second)
			}
		}
		if ctx.Err() != nil || time.Now().Add(rest).After(deadline) {
			return resp, err
		}
		if err == nil {
			_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16)) // so that the connection can be used again
			_ = resp.Body.Close()
			r.log.WarnContext(ctx, "heroku did not carry out a request; it is repeated", "method", req.Method, "path", req.URL.Path, "status", resp.StatusCode, "pause", rest)
		} else {
			r.log.WarnContext(ctx, "heroku did not answer a request; it is repeated", "method", req.Method, "path", req.URL.Path, "error", err, "pause", rest)
		}
		if err := sleep(ctx, rest); err != nil {
			return nil, err
		}
	}
}

// sleep returns after d, or with the context's error.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
