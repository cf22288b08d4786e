package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/heroku-migrator/migrator"
)

// databases are both ends. Nothing is connected before it is needed.
type databases struct {
	src *migrator.Heroku
	dst *migrator.PlanetScale
}

// open prepares both ends. What is wrong with their URLs becomes a problem.
func (c *config) open(ctx context.Context, log *slog.Logger) *databases {
	if len(c.problems) > 0 {
		return nil
	}
	const least = 16 // copy workers, with those on standby
	conns := max(3*c.copying.Workers, least) + 6
	src, err := migrator.OpenHeroku(ctx, c.source, migrator.HerokuConfig{PgDump: c.pgDump, MaxConns: conns})
	if err != nil {
		c.found(log, problem{"HEROKU_URL", "HEROKU_URL cannot be used: " + err.Error() + ".", "Correct it."})
		return nil
	}
	dst, err := migrator.OpenPlanetScale(ctx, c.target, migrator.PlanetScaleConfig{MaxConns: conns + 2, Capture: c.wayBackCapture})
	if err != nil {
		src.Close()
		c.found(log, problem{"PLANETSCALE_URL", "PLANETSCALE_URL cannot be used: " + err.Error() + ".", "Correct it."})
		return nil
	}
	return &databases{src, dst}
}

// close does not wait long for a server that does not answer: the connections end with the process.
func (d *databases) close() {
	if d == nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.src.Close()
		d.dst.Close()
	}()
	select {
	case <-done:
	case <-time.After(2 * time.Second):
	}
}
