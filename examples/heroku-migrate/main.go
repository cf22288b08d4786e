// Command heroku-migrate moves a live Heroku Postgres database to PlanetScale Postgres.
//
// Its state is in the target database, so each command works from any terminal: beside a `run` that is alive,
// which carries it out, or by itself. `heroku-migrate help` lists the commands.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/heroku-migrator/migrator"
	"github.com/heroku-migrator/migrator/internal/pgurl"
)

// Exit statuses.
const (
	exitDone    = 0
	exitFailed  = 1
	exitRefused = 2
	exitUsage   = 64
)

const usage = `heroku-migrate moves a live Heroku Postgres database to PlanetScale Postgres.

usage: heroku-migrate [flags] command [flags]

  preflight               print what could be in the way, and what to do about it
  run                     start the migration, or go on where it stands
      --until WHERE       stop at in-sync, switched or completed; without it, go on until
                          completed or signalled. run does not switch by itself
      --workers N         chunks copied at once (default 4)
      --chunk-mb N        size of a chunk, in MiB on disk (default 64)
  copy-worker             share the copy of a run that is alive elsewhere [--workers N]
  status [--watch]        phase, tables, bytes, rows, lag
  pause, resume           stop and go on; changes are captured meanwhile
  switch                  let the target take over: the source refuses writes
  revert [--force]        let the source take over again
  complete                after the switch: remove everything of the migration from both sides
  abort [--force]         before the switch: the same; --force cleans a source whose target is gone
  version, help

flags for all commands:
  --source URL            the Heroku database (default: $HEROKU_URL, which keeps it out of your shell's history)
  --target URL            the PlanetScale database, direct port (default: $PLANETSCALE_URL)
  --json                  print one JSON object per line, and nothing else, on stdout
  --log-level LEVEL       debug, info, warn (default) or error; logs go to stderr
  --pg-dump PATH          the pg_dump to use (default: the newest found)

exit status: 0 done, 1 failed, 2 refused because a precondition does not hold, 64 usage
`

// options are what the command line says.
type options struct {
	command        string
	source, target string
	json           bool
	watch, force   bool
	until          string
	workers        int
	chunkMiB       int64
	pgDump         string
	logLevel       slog.Level
}

// usageError is a mistake in the command line.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

// parse reads flags and the command, in any order.
func parse(args []string) (options, error) {
	o := options{logLevel: slog.LevelWarn, source: os.Getenv("HEROKU_URL"), target: os.Getenv("PLANETSCALE_URL")}
	fs := flag.NewFlagSet("heroku-migrate", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&o.source, "source", o.source, "")
	fs.StringVar(&o.target, "target", o.target, "")
	fs.BoolVar(&o.json, "json", false, "")
	fs.BoolVar(&o.watch, "watch", false, "")
	fs.BoolVar(&o.force, "force", false, "")
	fs.StringVar(&o.until, "until", "", "")
	fs.IntVar(&o.workers, "workers", 0, "")
	fs.Int64Var(&o.chunkMiB, "chunk-mb", 0, "")
	fs.StringVar(&o.pgDump, "pg-dump", "", "")
	fs.TextVar(&o.logLevel, "log-level", o.logLevel, "")
	for len(args) > 0 {
		if err := fs.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				o.command = "help"
				return o, nil
			}
			return o, usageError{err.Error()}
		}
		if args = fs.Args(); len(args) > 0 {
			if o.command != "" {
				return o, usageError{fmt.Sprintf("one command at a time: %s or %s", o.command, args[0])}
			}
			o.command, args = args[0], args[1:]
		}
	}
	given := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	err := o.check(given)
	return o, err
}

// flagsOf are the flags that only some commands have.
var flagsOf = map[string][]string{
	"run": {"until", "workers", "chunk-mb"}, "copy-worker": {"workers"}, "status": {"watch"},
	"switch": {"force"}, "revert": {"force"}, "abort": {"force"},
	"preflight": nil, "pause": nil, "resume": nil, "complete": nil, "help": nil, "version": nil,
}

func (o *options) check(given map[string]bool) error {
	if o.command == "" {
		return usageError{"a command is missing; heroku-migrate help lists them"}
	}
	allowed, ok := flagsOf[o.command]
	if !ok {
		return usageError{fmt.Sprintf("there is no command %q; heroku-migrate help lists them", o.command)}
	}
	for _, name := range []string{"until", "workers", "chunk-mb", "watch", "force"} {
		if given[name] && !slices.Contains(allowed, name) {
			return usageError{fmt.Sprintf("%s has no flag --%s", o.command, name)}
		}
	}
	switch migrator.Until(o.until) {
	case "", migrator.UntilInSync, migrator.UntilSwitched, migrator.UntilCompleted:
	default:
		return usageError{fmt.Sprintf("--until takes in-sync, switched or completed, not %q", o.until)}
	}
	if o.workers < 0 || o.workers > 100 || (given["workers"] && o.workers == 0) {
		return usageError{"--workers takes a number from 1 to 100"}
	}
	if o.chunkMiB < 0 || o.chunkMiB > 1<<20 || (given["chunk-mb"] && o.chunkMiB == 0) {
		return usageError{"--chunk-mb takes a number from 1 to 1048576"}
	}
	return nil
}

func main() {
	hideURLs()
	o, err := parse(os.Args[1:])
	out := &output{w: os.Stdout, json: o.json || slices.Contains(os.Args, "--json") || slices.Contains(os.Args, "-json")}
	if err == nil {
		switch o.command {
		case "help":
			fmt.Print(usage)
			os.Exit(exitDone)
		case "version":
			out.result(map[string]any{"ok": true, "version": version()}, "heroku-migrate "+version())
			os.Exit(exitDone)
		}
		err = run(o, out)
	}
	os.Exit(out.end(o, err))
}

// run opens both databases and carries the command out.
func run(o options, out *output) error {
	for _, u := range []struct{ flag, env, raw string }{{"source", "HEROKU_URL", o.source}, {"target", "PLANETSCALE_URL", o.target}} {
		if u.raw == "" {
			return usageError{fmt.Sprintf("set %s, or give --%s", u.env, u.flag)}
		}
		url, err := pgurl.Parse(u.raw)
		if err != nil {
			return usageError{fmt.Sprintf("%s: %v", u.env, err)}
		}
		out.secrets = append(out.secrets, url)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal kills
	log := slog.New(slog.NewTextHandler(redacting{os.Stderr, out}, &slog.HandlerOptions{Level: o.logLevel}))
	conns := max(o.workers, 4) + 4
	src, err := migrator.OpenHeroku(ctx, o.source, migrator.HerokuConfig{PgDump: o.pgDump, MaxConns: conns})
	if err != nil {
		return usageError{err.Error()}
	}
	defer src.Close()
	dst, err := migrator.OpenPlanetScale(ctx, o.target, migrator.PlanetScaleConfig{MaxConns: conns + 2})
	if err != nil {
		return usageError{err.Error()}
	}
	defer dst.Close()
	copying := migrator.CopyConfig{Workers: o.workers, ChunkBytes: o.chunkMiB << 20}
	m, err := migrator.New(migrator.Config{Source: src, Target: dst, Logger: log, Copy: copying})
	if err != nil {
		return err
	}
	p := program{options: o, out: out, m: m, src: src, dst: dst, log: log}
	switch o.command {
	case "preflight":
		return p.preflight(ctx)
	case "run":
		return p.run(ctx)
	case "copy-worker":
		copying.Logger = log
		return p.stopped(ctx, migrator.CopyWorker(ctx, src, dst, copying), "the copy is done")
	case "status":
		return p.status(ctx)
	default:
		return p.command(ctx, migrator.CommandName(o.command))
	}
}

// hideURLs moves URLs from the arguments, which every user of the machine can read, to the environment, and
// starts the program again. Where that is not possible it goes on as it is.
func hideURLs() {
	names := map[string]string{"source": "HEROKU_URL", "target": "PLANETSCALE_URL"}
	var args []string
	env, moved := os.Environ(), false
	for i := 0; i < len(os.Args); i++ {
		name, value, hasValue := strings.Cut(strings.TrimLeft(os.Args[i], "-"), "=")
		variable, ok := names[name]
		if i == 0 || !ok || !strings.HasPrefix(os.Args[i], "-") || (!hasValue && i+1 == len(os.Args)) {
			args = append(args, os.Args[i])
			continue
		}
		if !hasValue {
			i++
			value = os.Args[i]
		}
		env, moved = append(env, variable+"="+value), true
	}
	if !moved {
		return
	}
	if self, err := os.Executable(); err == nil {
		_ = syscall.Exec(self, args, dedupe(env)) //nolint:gosec // this very program; it returns only if it failed
	}
}

// dedupe keeps the last value of each variable.
func dedupe(env []string) []string {
	last := map[string]int{}
	for i, v := range env {
		name, _, _ := strings.Cut(v, "=")
		last[name] = i
	}
	var list []string
	for i, v := range env {
		if name, _, _ := strings.Cut(v, "="); last[name] == i {
			list = append(list, v)
		}
	}
	return list
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

func now() string { return time.Now().UTC().Format(time.RFC3339Nano) }
