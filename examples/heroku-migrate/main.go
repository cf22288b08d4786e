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
	"strconv"
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
      --leave-out NAME    for preflight and run: go without this object of the schema, by the name that the
                          rehearsal prints ("view ops.slow"), and without what needs it. Can be repeated
                          (default: $LEAVE_OUT, names separated by ;)
  run                     start the migration, or go on where it stands; SIGINT or SIGTERM stops it with its
                          state kept, a second one kills it. run does not switch by itself
      --until WHERE       stop at in-sync, switched or completed (default: go on until completed)
      --workers N         chunks copied at once (default: 2 to 8, by what both servers allow)
      --schema-changes P  when the source's schema changes meanwhile: forward (default), pause or fail
      --chunk-mb N        size of a chunk, in MiB on disk (default: 8 to 64, by the size of the database)
      --max-mb N          copy no more than N MiB per second (default: no limit)
      --no-throttle       copy at full speed even when the source suffers: by default the copy slows down when
                          sessions pile up on the source, followers lag or a small query gets slow
  copy-worker             share the copy of a run that is alive elsewhere [--workers N, --max-mb N, --no-throttle]
  status [--watch]        phase, tables, bytes, rows, lag; --watch: every second, until interrupted
      --values            with the values for which tables are set aside
  verify [--force]        in sync: compare every row while the application writes; --force sends tables again
                          that differ
  pause, resume           stop and go on; changes are captured meanwhile
  switch [--force]        let the target take over: the source refuses writes
  revert [--force]        let the source take over again, with every row that was written on the target since the
                          switch; --force goes back even if such rows have to stay behind
      for run, switch and revert (the process that carries a command out counts: run, if one is alive):
      --writers POLICY    transactions that do not end in time for the switch: wait (default), give-up or terminate
      --way-back METHOD   how what is written on the target after the switch is captured, to bring it back: triggers,
                          decoding (logical) or off (default: decoding where a slot cannot fill the disk, else triggers)
      --capture METHOD    how changes on the source are captured: triggers (default) or decoding, not on Heroku
      --sequence-margin N set sequences N steps beyond where they are on the side that is left, or 0: exactly there
                          (default: by the rate seen, at least 1000 steps, at most a tenth of the numbers left)
      --hook PROGRAM      run PROGRAM before the fence, before and after the switch, and after a revert, at most once
                          each; $MIGRATOR_HOOK says which: before_fence, before_switch, after_switch, after_revert
      --heroku-app NAME   point this application to PlanetScale after the switch, and back after a revert: maintenance
                          mode, DATABASE_URL, dynos; with an API key in $HEROKU_API_KEY
      --app-url URL       the URL that it gets, PlanetScale's by port 6432 (default: $APP_DATABASE_URL)
                          Without a hook, switch and revert print the commands for it: exact ones, if $HEROKU_APP
                          and $HEROKU_API_KEY are set
  complete                after the switch: remove everything of the migration from both sides
  abort [--force]         before the switch: the same. --force is for a source whose target is gone: with a
                          new, empty database as target, it removes what the lost migration left on the source
  version, help

Commands can be given while a run is alive, which carries them out, and without one.

flags for all commands:
  --source URL            the Heroku database (default: $HEROKU_URL)
  --target URL            the PlanetScale database, direct port (default: $PLANETSCALE_URL)
  --json                  print one JSON object per line, and nothing else, on stdout
  --log-level LEVEL       debug, info, warn (default) or error; logs go to stderr
  --pg-dump PATH          the pg_dump to use (default: the newest found)

Give URLs with a password by the environment. In an argument, it is in your shell's history, and in the list
of processes for the moment until the program has moved it to the environment itself.

With --json, every command but status ends with {"type":"result","ok":true,"command":…,"message":…}, or
"ok":false with "error", and with "refused":true, "reasons" and "can_force" if a precondition does not hold.
Before it, preflight prints {"type":"finding","check":…,"severity":…,"message":…,"remedy":…} and run
{"type":"phase|table|chunk|round|command|waiting|warning|failure|switched","at":…,"message":…,…}; the result
of run says the "phase". status prints the status alone, or a result with "ok":false.

exit status: 0 done (or run stopped by a signal), 1 failed, 2 refused because a precondition does not hold,
64 usage
`

// options are what the command line says.
type options struct {
	command        string
	source, target string
	json           bool
	watch, force   bool
	values         bool
	until          string
	workers        int
	chunkMiB       int64
	maxMiB         int64
	noThrottle     bool
	pgDump         string
	schemaChanges  string
	writers        string
	hookProgram    string
	herokuApp      string
	appURL         string
	wayBack        string
	capture        string
	sequenceMargin int64
	noMargin       bool
	leaveOut       []string
	logLevel       slog.Level
}

// mostWorkers is how many copy workers there are at most unless told otherwise.
const mostWorkers = 16 // with those on standby

// usageError is a mistake in the command line.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

// parse reads flags and the command, in any order.
func parse(args []string) (options, error) {
	o := options{logLevel: slog.LevelWarn, source: os.Getenv("HEROKU_URL"), target: os.Getenv("PLANETSCALE_URL"),
		appURL: os.Getenv("APP_DATABASE_URL")}
	fs := flag.NewFlagSet("heroku-migrate", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&o.source, "source", o.source, "")
	fs.StringVar(&o.target, "target", o.target, "")
	fs.BoolVar(&o.json, "json", false, "")
	fs.BoolVar(&o.watch, "watch", false, "")
	fs.BoolVar(&o.force, "force", false, "")
	fs.BoolVar(&o.values, "values", false, "")
	fs.StringVar(&o.until, "until", "", "")
	fs.IntVar(&o.workers, "workers", 0, "")
	fs.Int64Var(&o.chunkMiB, "chunk-mb", 0, "")
	fs.Int64Var(&o.maxMiB, "max-mb", 0, "")
	fs.BoolVar(&o.noThrottle, "no-throttle", false, "")
	fs.StringVar(&o.schemaChanges, "schema-changes", string(migrator.SchemaForward), "")
	fs.StringVar(&o.writers, "writers", string(migrator.WritersWait), "")
	fs.StringVar(&o.hookProgram, "hook", "", "")
	fs.StringVar(&o.herokuApp, "heroku-app", "", "")
	fs.StringVar(&o.appURL, "app-url", o.appURL, "")
	fs.StringVar(&o.wayBack, "way-back", "", "")
	fs.StringVar(&o.capture, "capture", "", "")
	fs.Int64Var(&o.sequenceMargin, "sequence-margin", 0, "")
	fs.StringVar(&o.pgDump, "pg-dump", "", "")
	fs.Func("leave-out", "", func(name string) error {
		o.leaveOut = append(o.leaveOut, name)
		return nil
	})
	fs.TextVar(&o.logLevel, "log-level", o.logLevel, "")
	for len(args) > 0 {
		if err := fs.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				o.command = "help"
				return o, nil
			}
			if strings.ContainsAny(err.Error(), "@/") { // as far as it is known, a value that is a URL
				return o, usageError{"a flag has a value that it does not take (not shown, as there may be a " +
					"password in it)"}
			}
			return o, usageError{err.Error()}
		}
		if args = fs.Args(); len(args) > 0 {
			if o.command != "" {
				return o, usageError{fmt.Sprintf("one command at a time: %s or %s", word(o.command), word(args[0]))}
			}
			o.command, args = args[0], args[1:]
		}
	}
	if len(o.leaveOut) == 0 {
		o.leaveOut = names(os.Getenv("LEAVE_OUT"))
	}
	given := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	err := o.check(given)
	return o, err
}

// names takes a list of names apart, in which commas may be a part of one.
func names(list string) (all []string) {
	for name := range strings.SplitSeq(list, ";") {
		if name = strings.TrimSpace(name); name != "" {
			all = append(all, name)
		}
	}
	return all
}

// word quotes an argument, unless it may be a URL that went astray, with a password in it.
func word(arg string) string {
	if strings.ContainsAny(arg, "@:/=") {
		return "(not shown: a URL belongs to --source or --target)"
	}
	return strconv.Quote(arg)
}

// wantsJSON looks for --json even where the rest cannot be parsed.
func wantsJSON(args []string) bool {
	return slices.ContainsFunc(args, func(arg string) bool {
		name, value, given := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		on, err := strconv.ParseBool(value)
		return strings.HasPrefix(arg, "-") && name == "json" && (!given || (on && err == nil))
	})
}

// flagsOf are the flags that only some commands have.
var flagsOf = map[string][]string{
	"run": {"leave-out", "capture", "until", "workers", "chunk-mb", "max-mb", "no-throttle", "writers", "hook",
		"heroku-app", "app-url", "way-back", "sequence-margin"},
	"copy-worker": {"workers", "max-mb", "no-throttle"}, "status": {"watch", "values"},
	"switch": {"capture", "force", "writers", "hook", "heroku-app", "app-url", "way-back", "sequence-margin"},
	"revert": {"force", "writers", "hook", "heroku-app", "app-url", "way-back"},
	"abort":  {"force"}, "verify": {"force"},
	"preflight": {"way-back", "capture", "leave-out"}, "pause": nil, "resume": nil, "complete": nil, "help": nil,
	"version": nil,
}

func (o *options) check(given map[string]bool) error {
	if o.command == "" {
		return usageError{"a command is missing; heroku-migrate help lists them"}
	}
	allowed, ok := flagsOf[o.command]
	if !ok {
		return usageError{fmt.Sprintf("there is no command %s; heroku-migrate help lists them", word(o.command))}
	}
	for _, name := range []string{"until", "workers", "chunk-mb", "max-mb", "no-throttle", "watch", "values", "force",
		"writers", "hook", "heroku-app", "app-url", "way-back", "capture", "sequence-margin", "leave-out"} {
		if given[name] && !slices.Contains(allowed, name) {
			return usageError{fmt.Sprintf("%s has no flag --%s", o.command, name)}
		}
	}
	switch migrator.Until(o.until) {
	case "":
		if given["until"] {
			return usageError{"--until takes in-sync, switched or completed"}
		}
	case migrator.UntilInSync, migrator.UntilSwitched, migrator.UntilCompleted:
	default:
		return usageError{fmt.Sprintf("--until takes in-sync, switched or completed, not %s", word(o.until))}
	}
	switch migrator.WriterPolicy(o.writers) {
	case migrator.WritersWait, migrator.WritersGiveUp, migrator.WritersTerminate:
	default:
		return usageError{fmt.Sprintf("--writers takes wait, give-up or terminate, not %s", word(o.writers))}
	}
	switch o.wayBack {
	case "", "triggers", "decoding", "off":
	default:
		return usageError{fmt.Sprintf("--way-back takes triggers, decoding or off, not %s", word(o.wayBack))}
	}
	switch o.capture {
	case "", "triggers", "decoding":
	default:
		return usageError{fmt.Sprintf("--capture takes triggers or decoding, not %s", word(o.capture))}
	}
	o.noMargin = given["sequence-margin"] && o.sequenceMargin == 0
	if o.sequenceMargin < 0 {
		return usageError{"--sequence-margin takes a number from 0"}
	}
	if o.workers < 0 || o.workers > 100 || (given["workers"] && o.workers == 0) {
		return usageError{"--workers takes a number from 1 to 100"}
	}
	if o.chunkMiB < 0 || o.chunkMiB > 1<<20 || (given["chunk-mb"] && o.chunkMiB == 0) {
		return usageError{"--chunk-mb takes a number from 1 to 1048576"}
	}
	if o.maxMiB < 0 || o.maxMiB > 1<<20 || (given["max-mb"] && o.maxMiB == 0) {
		return usageError{"--max-mb takes a number from 1 to 1048576"}
	}
	return nil
}

func main() {
	hideURLs()
	o, err := parse(os.Args[1:])
	out := &output{w: os.Stdout, json: o.json || wantsJSON(os.Args[1:]), command: o.command}
	if err == nil {
		switch o.command {
		case "help":
			out.result(map[string]any{"ok": true, "message": usage}, strings.TrimSuffix(usage, "\n"))
		case "version":
			out.result(map[string]any{"ok": true, "message": version()}, "heroku-migrate "+version())
		default:
			err = run(o, out)
		}
	}
	os.Exit(out.end(err))
}

// run opens both databases and carries the command out.
func run(o options, out *output) error {
	for _, u := range []struct{ name, flag, env, raw string }{
		{"source", "--source", "HEROKU_URL", o.source}, {"target", "--target", "PLANETSCALE_URL", o.target},
	} {
		if u.raw == "" {
			return usageError{fmt.Sprintf("the URL of the %s is missing: set %s (or give %s)", u.name, u.env, u.flag)}
		}
		url, err := pgurl.Parse(u.raw)
		if err != nil {
			return usageError{fmt.Sprintf("%s (%s or %s): %v", u.name, u.env, u.flag, err)}
		}
		out.secrets = append(out.secrets, url)
	}
	if url, err := pgurl.Parse(o.appURL); err == nil {
		out.secrets = append(out.secrets, url)
	}
	ctx, stop := stoppable(o.command)
	defer stop(nil)
	log := slog.New(slog.NewTextHandler(redacting{os.Stderr, out}, &slog.HandlerOptions{Level: o.logLevel}))
	conns := max(3*o.workers, mostWorkers) + 6
	src, err := migrator.OpenHeroku(ctx, o.source, migrator.HerokuConfig{PgDump: o.pgDump, MaxConns: conns,
		Capture: migrator.CaptureMethod(o.capture)})
	if err != nil {
		return usageError{err.Error()}
	}
	defer closeSoon(src.Close)
	wayBack := migrator.CaptureMethod(o.wayBack)
	if o.wayBack == "off" {
		wayBack = migrator.CaptureTriggers
	}
	dst, err := migrator.OpenPlanetScale(ctx, o.target, migrator.PlanetScaleConfig{MaxConns: conns + 2,
		Capture: wayBack})
	if err != nil {
		return usageError{err.Error()}
	}
	defer closeSoon(dst.Close)
	copying := migrator.CopyConfig{
		Workers: o.workers, ChunkBytes: o.chunkMiB << 20, MaxBytesPerSecond: o.maxMiB << 20,
		Throttle: migrator.ThrottleConfig{Off: o.noThrottle},
	}
	cutover := migrator.CutoverConfig{Writers: migrator.WriterPolicy(o.writers), SequenceMargin: o.sequenceMargin}
	if o.noMargin {
		cutover.SequenceMargin = -1
	}
	if cutover.Hook, err = o.hook(log); err != nil {
		return err
	}
	m, err := migrator.New(migrator.Config{
		Source: src, Target: dst, Logger: log, Copy: copying, SchemaChanges: migrator.SchemaPolicy(o.schemaChanges),
		Cutover: cutover, WayBack: migrator.WayBackConfig{Disabled: o.wayBack == "off"}, LeaveOut: o.leaveOut,
	})
	if err != nil {
		return err
	}
	p := program{options: o, out: out, m: m, src: src, dst: dst, log: log, drawn: !o.json && onTerminal(os.Stdout)}
	switch o.command {
	case "preflight":
		return p.preflight(ctx)
	case "run":
		out.broken = func() { stop(errStdout) }
		return p.run(ctx)
	case "copy-worker":
		copying.Logger = log
		err := migrator.CopyWorker(ctx, src, dst, copying)
		if err == nil {
			out.result(map[string]any{"ok": true, "message": "the copy is done"}, "the copy is done")
		}
		return p.stopped(ctx, err)
	case "status":
		out.broken = func() { stop(errStdout) }
		return p.status(ctx)
	default:
		return p.command(ctx, migrator.CommandName(o.command))
	}
}

// closeSoon does not wait long for a server that does not answer: the connections end with the process.
func closeSoon(end func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		end()
	}()
	select {
	case <-done:
	case <-time.After(2 * time.Second):
	}
}

// errStdout ends what only prints, when nobody reads it any more.
var errStdout = errors.New("stdout was closed: stopped; everything that was committed is kept, and the same command " +
	"goes on")

// patience is how long a signalled program may take to end: a switch that is under way is finished or undone.
const patience = 18 * time.Second

// stoppable returns a context that ends with a signal. A second signal kills at once, and so does time.
func stoppable(command string) (context.Context, context.CancelCauseFunc) {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // by nohup
		signals = append(signals, syscall.SIGHUP)
	}
	// A reader that is gone is an error of Write, not the end: a switch goes on without its audience. It is not
	// ignored but caught, since pg_dump would inherit the former.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	signalled, restore := signal.NotifyContext(context.Background(), signals...)
	context.AfterFunc(signalled, func() {
		restore()
		time.Sleep(patience)
		fmt.Fprintln(os.Stderr, "heroku-migrate: a connection does not end; stopped without waiting. Everything that "+
			"was committed is kept")
		if command == "run" || command == "copy-worker" || command == "status" {
			os.Exit(exitDone)
		}
		os.Exit(exitFailed)
	})
	return context.WithCancelCause(signalled)
}

// hideURLs moves URLs from the arguments, which every user of the machine can read, to the environment, and
// starts the program again. Where that is not possible it goes on as it is.
func hideURLs() {
	names := map[string]string{"source": "HEROKU_URL", "target": "PLANETSCALE_URL", "app-url": "APP_DATABASE_URL"}
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
