// Command heroku-app is the migrator as an app that anyone can deploy: the dashboard, on $PORT, and the migration that it steers.
// README.md lists the environment's variables.
//
// All its state is in the target database. It may be stopped and started at any moment, and another one may run beside it: one leads, the
// others show what it does and take over when it ends.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"
)

const usage = `heroku-app moves a Heroku Postgres database to PlanetScale, steered by its dashboard.

  heroku-app [web]     serve the dashboard on $PORT, and run the migration
  heroku-app worker    share the copy of a web process elsewhere
  heroku-app health    ask the web process on $PORT whether it is alive (for containers)
  heroku-app version

It is configured by its environment: HEROKU_URL, PLANETSCALE_URL, PASSWORD and others; see README.md.
`

// Exit statuses.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 64
)

// memoryLimit is what the garbage collector aims at, unless GOMEMLIMIT says otherwise. Rows flow through bounded buffers whatever the size of
// the database; the limit keeps what is collected late from adding up. The smallest dynos have 512 MB.
const memoryLimit = 256 << 20

func main() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	command := "web"
	if len(os.Args) == 2 {
		command = os.Args[1]
	} else if len(os.Args) > 2 {
		command = ""
	}
	os.Exit(run(command, readConfig(os.Getenv)))
}

func run(command string, c *config) int {
	log := slog.New(slog.NewTextHandler(newRedacting(os.Stdout, c.urls, c.secrets), &slog.HandlerOptions{Level: c.level}))
	var serve func(context.Context, *config, *slog.Logger) error
	switch command {
	case "web":
		serve = web
	case "worker":
		serve = work
	case "health":
		return end(os.Stderr, health(c))
	case "version":
		fmt.Println(version())
		return exitDone
	case "help", "--help", "-h":
		fmt.Print(usage)
		return exitDone
	default:
		fmt.Fprint(os.Stderr, usage)
		return exitUsage
	}
	ctx, stop := stoppable(log)
	defer stop()
	for _, p := range c.problems {
		p.tell(log)
	}
	if err := serve(ctx, c, log); err != nil {
		log.Error("ended", "error", err)
		return exitFailed
	}
	log.Info("ended")
	return exitDone
}

func end(w io.Writer, err error) int {
	if err != nil {
		fmt.Fprintln(w, "heroku-app:", err)
		return exitFailed
	}
	return exitDone
}

// patience is how long a signalled process may take to end: a switch that is under way is finished or undone. Heroku waits for 30 s.
const patience = 18 * time.Second

// stoppable returns a context that ends with a signal. A second signal kills at once, and so does time: everything that was committed is kept
// either way.
func stoppable(log *slog.Logger) (context.Context, context.CancelFunc) {
	ctx, restore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, func() {
		restore()
		log.Info("a signal came: ending")
		time.Sleep(patience)
		log.Warn("a connection does not end; ended without waiting. Everything that was committed is kept")
		os.Exit(exitDone)
	})
	return ctx, restore
}

// health asks the process that serves, for containers without curl.
func health(c *config) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort("127.0.0.1", c.port)+"/health", nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return errors.New("nothing answers on port " + c.port)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return errors.New("/health answered " + answer.Status)
	}
	return nil
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
