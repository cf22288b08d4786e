package dashboard_test

import (
	"context"
	"log/slog"
	"net/http"
	"os"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/dashboard"
)

// A program of its own, as it is deployed.
func ExampleNew() { //nolint:testableexamples // it needs two databases
	ctx := context.Background()
	from, to := os.Getenv("HEROKU_URL"), os.Getenv("PLANETSCALE_URL")
	source, err := migrator.OpenHeroku(ctx, from, migrator.HerokuConfig{})
	if err != nil {
		slog.Error("HEROKU_URL", "error", err)
		return
	}
	defer source.Close()
	target, err := migrator.OpenPlanetScale(ctx, to, migrator.PlanetScaleConfig{})
	if err != nil {
		slog.Error("PLANETSCALE_URL", "error", err)
		return
	}
	defer target.Close()
	log := dashboard.NewLog(slog.NewTextHandler(os.Stderr, nil), 2000)
	m, err := migrator.New(migrator.Config{Source: source, Target: target, Logger: slog.New(log), HoldBeforeCopy: true})
	if err != nil {
		slog.Error("migrator", "error", err)
		return
	}
	d, err := dashboard.New(m, dashboard.Config{Password: os.Getenv("PASSWORD"), SourceURL: from, TargetURL: to, Log: log, ClientIP: dashboard.ForwardedFor})
	if err != nil {
		slog.Error("dashboard", "error", err)
		return
	}
	defer d.Close()
	slog.Error("server", "error", http.ListenAndServe(":"+os.Getenv("PORT"), d))
}

// A part of another program, with that one's login.
func ExampleConfig_authorize() { //nolint:testableexamples // it needs two databases
	mount := func(mux *http.ServeMux, m *migrator.Migrator, login func(*http.Request) (admin bool, err error)) (*dashboard.Dashboard, error) {
		d, err := dashboard.New(m, dashboard.Config{Authorize: func(r *http.Request) (dashboard.Role, error) {
			admin, err := login(r)
			if admin {
				return dashboard.RoleOperator, err
			}
			return dashboard.RoleViewer, err
		}})
		if err != nil {
			return nil, err
		}
		mux.Handle("/migration/", http.StripPrefix("/migration", d))
		return d, nil
	}
	_ = mount
}
