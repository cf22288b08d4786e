package herokuapp

import (
	"context"
	"fmt"
	"slices"
	"strings"

	heroku "github.com/heroku/heroku-go/v5"
)

// notUpError says which dynos do not run yet with the release that they should.
type notUpError struct {
	text  string
	webUp bool // the dynos that serve requests do
}

func (e *notUpError) Error() string { return e.text }

// wait waits until the latest release has succeeded and every dyno of the formation runs with it, and none with an older one. With
// preboot, old ones go on serving requests for some minutes. A release that comes after ours, by a deploy, is waited for instead.
func (r *run) wait(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	var down *notUpError
	told := map[string]bool{}
	for {
		now, err := r.lookForDynos(limited, told)
		switch {
		case err == nil && now == nil:
			return nil
		case err == nil:
			down = now
		case limited.Err() == nil:
			return r.explain(err)
		}
		if limited.Err() == nil && sleep(limited, r.cfg.Poll) == nil {
			continue
		}
		if down == nil {
			down = &notUpError{text: "it is not known whether the dynos are up"}
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", down, context.Cause(ctx))
		}
		down.text = fmt.Sprintf("after %s, %s: see `heroku ps%s` and `heroku logs%s`", r.cfg.Timeout, down.text, r.setup.app(), r.setup.app())
		return down
	}
}

// lookForDynos returns what is not up; nil if all is. A release that failed is an error.
func (r *run) lookForDynos(ctx context.Context, told map[string]bool) (*notUpError, error) {
	release, err := r.latest(ctx)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("release v%d (%s)", release.Version, release.Description)
	switch {
	case r.released && release.Version <= r.before.release:
		return &notUpError{text: "the change has made no release yet"}, nil
	case release.Status == "failed":
		return nil, fmt.Errorf("%s failed, so that the dynos go on with the release before it: see `heroku releases:output v%d%s`; `heroku releases:retry%s` runs the release command again",
			name, release.Version, r.setup.app(), r.setup.app())
	case release.Status == "pending":
		return &notUpError{text: name + " is pending: its release command has not ended"}, nil
	}
	formation, err := r.api.FormationList(ctx, r.cfg.App, all())
	if err != nil {
		return nil, err
	}
	dynos, err := r.api.DynoList(ctx, r.cfg.App, all())
	if err != nil {
		return nil, err
	}
	missing, web := compare(formation, dynos, release.Version)
	for _, d := range oneOff(formation, dynos, release.Version) {
		if !told[d] {
			told[d] = true
			r.cfg.Logger.WarnContext(ctx, "a one-off dyno goes on with the config vars that it began with, until it ends", "app", r.cfg.App, "dyno", d)
		}
	}
	if len(missing) == 0 {
		return nil, nil
	}
	return &notUpError{text: "not everything runs with " + name + ": " + strings.Join(missing, ", "), webUp: web}, nil
}

// compare lists what is missing until the formation runs with a release, and whether web dynos do.
func compare(formation []heroku.Formation, dynos []heroku.Dyno, version int) (missing []string, web bool) {
	web = true
	lack := func(kind, format string, args ...any) {
		missing = append(missing, fmt.Sprintf(format, args...))
		web = web && kind != "web"
	}
	for _, f := range formation {
		if f.Type == "release" {
			continue
		}
		up := 0
		for _, d := range dynos {
			switch {
			case d.Type != f.Type:
			case d.Release.Version < version:
				lack(f.Type, "%s is of v%d", d.Name, d.Release.Version)
			case d.State == "up" || d.State == "idle": // an eco dyno sleeps until somebody asks for it
				up++
			default:
				lack(f.Type, "%s is %s", d.Name, d.State)
			}
		}
		if up < f.Quantity {
			lack(f.Type, "%d of %d %s dynos are up", up, f.Quantity, f.Type)
		}
	}
	return missing, web
}

// oneOff lists dynos that are not of the formation and began with an older release.
func oneOff(formation []heroku.Formation, dynos []heroku.Dyno, version int) []string {
	var names []string
	for _, d := range dynos {
		ofFormation := slices.ContainsFunc(formation, func(f heroku.Formation) bool { return f.Type == d.Type })
		if !ofFormation && d.Release.Version < version {
			names = append(names, d.Name)
		}
	}
	return names
}
