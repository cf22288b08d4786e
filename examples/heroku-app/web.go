package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/dashboard"
)

// logLines is how many lines the page can show.
const logLines = 2000

// web serves the dashboard, and with it the migration, until the context is done. It listens before anything else:
// whatever is wrong is shown on the page.
func web(ctx context.Context, c *config, log *slog.Logger) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort("", c.port))
	if err != nil {
		return fmt.Errorf("listen on port %s (PORT): %w", c.port, err)
	}
	handler, stop, err := c.handler(ctx, log)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: 10 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	log.Info("listening", "port", c.port)
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	stop() // before Shutdown, which waits for streams
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if server.Shutdown(closing) != nil {
		_ = server.Close() // whoever still reads is cut off
	}
	return err
}

// handler returns what is served, and a function that ends the migration's run in this process.
func (c *config) handler(ctx context.Context, log *slog.Logger) (served http.Handler, stop func(), err error) {
	if c.locked() {
		log.Error("PASSWORD is not set: nothing but /health is served")
		return locked(), func() {}, nil
	}
	keep := dashboard.NewLog(log.Handler(), logLines)
	logger := slog.New(keep)
	cfg := dashboard.Config{
		Password: c.password, Insecure: c.insecure, ReadOnly: c.readOnly, TrustedOrigins: c.origins,
		SourceURL: c.source, TargetURL: c.target,
		Secrets: c.secrets, Log: keep, Settings: c.settings, Version: version(),
	}
	if c.insecure {
		logger.Warn("DISABLE_AUTH is set: whoever can reach the port can switch the databases")
		cfg.Password = ""
	}
	if c.proxied {
		cfg.ClientIP = dashboard.ForwardedFor
	}
	if hook, err := dashboard.NewWebhook(c.notifications); err == nil { // a mistake in it is among the problems
		cfg.Notifier = hook
	}
	databases := c.open(ctx, log)
	without := unconfigured{c.problems}
	var m dashboard.Migration = without
	if databases != nil {
		if m, err = c.migrator(databases, logger); err != nil {
			databases.close()
			return nil, nil, err
		}
	}
	d, err := dashboard.New(m, cfg)
	if err != nil {
		databases.close()
		return nil, nil, err
	}
	served = d
	if databases == nil {
		served = without.serve(d)
	}
	return served, func() {
		d.Close()
		databases.close()
	}, nil
}

// migrator puts the migration together.
func (c *config) migrator(d *databases, log *slog.Logger) (*migrator.Migrator, error) {
	cutover := c.cutover
	var err error
	if cutover.Hook, err = c.hook(log); err != nil {
		return nil, err
	}
	return migrator.New(migrator.Config{
		Source: d.src, Target: d.dst, Logger: log, Copy: c.copying, Indexes: c.indexes, Cutover: cutover,
		WayBack:       c.wayBack,
		SchemaChanges: c.schemaChanges, LeaveOut: c.leaveOut, HoldBeforeCopy: true,
	})
}
