package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/heroku-migrator/migrator"
)

// work shares the copies of whatever migrations run between these databases, until the context is done. Between them it waits: a worker that
// ended would be started again and again.
func work(ctx context.Context, c *config, log *slog.Logger) error {
	databases := c.open(ctx, log)
	if databases == nil {
		log.Error("the configuration is not complete: this worker does nothing until it is started with a complete one")
		<-ctx.Done()
		return nil
	}
	defer databases.close()
	copying := c.copying
	copying.Logger = log
	said := ""
	for {
		err := migrator.CopyWorker(ctx, databases.src, databases.dst, copying)
		if ctx.Err() != nil {
			return nil
		}
		text := "nothing is left to copy; waiting for another migration"
		switch {
		case errors.Is(err, migrator.ErrNoMigration):
			text = "no migration is under way; waiting for one"
		case err != nil:
			text = "the copy cannot be shared now: " + err.Error()
		}
		if text != said {
			log.Info(text)
			said = text
		}
		const pause = 5 * time.Second
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}
