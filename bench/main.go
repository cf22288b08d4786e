// Command bench measures the initial copy of a database, and the capture and replication of its changes, against the other
// tools that can do it, on one pair of throw-away servers. README.md beside it says what is measured and how.
//
//	make bench                           everything, about 1 GB, three rounds
//	SCALE=0.1 ROUNDS=1 ONLY=floor,ours make bench
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cases are what ONLY can name, in the order in which they are measured.
var cases = []string{"floor", "dump", "pgcopydb", "bucardo", "ours", "delay", "kill", "rows", "xmin", "writecost", "alternatives", "drain", "lag"}

// config is what the command line and the environment say.
type config struct {
	scale  float64
	rounds int
	only   []string
	rows   int // changed in the backlog
}

func (c config) wants(name string) bool { return slices.Contains(c.only, name) }

func main() {
	if os.Getenv(childSource) != "" {
		if err := dataPhase(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	cfg, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(64)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err = run(ctx, cfg)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (config, error) {
	var c config
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	scale := fs.String("scale", cmp.Or(os.Getenv("SCALE"), "1"), "size of the database, about 1 GB at 1 ($SCALE)")
	rounds := fs.String("rounds", cmp.Or(os.Getenv("ROUNDS"), "3"), "how often each is measured ($ROUNDS)")
	only := fs.String("only", cmp.Or(os.Getenv("ONLY"), strings.Join(cases, ",")), "what is measured ($ONLY)")
	err := fs.Parse(args)
	if err != nil {
		return c, err
	}
	if c.scale, err = strconv.ParseFloat(*scale, 64); err != nil || c.scale <= 0 || c.scale > 1000 {
		return c, fmt.Errorf("SCALE is %q; it is a number above 0", *scale)
	}
	if c.rounds, err = strconv.Atoi(*rounds); err != nil || c.rounds < 1 {
		return c, fmt.Errorf("ROUNDS is %q; it is 1 or more", *rounds)
	}
	if c.rows, err = strconv.Atoi(cmp.Or(os.Getenv("BACKLOG"), "300000")); err != nil || c.rows < 300 {
		return c, fmt.Errorf("BACKLOG is %q; it is 300 or more", os.Getenv("BACKLOG"))
	}
	for name := range strings.SplitSeq(*only, ",") {
		name = strings.TrimSpace(name)
		if !slices.Contains(cases, name) {
			return c, fmt.Errorf("there is nothing called %q to measure; there is %s", name, strings.Join(cases, ", "))
		}
		c.only = append(c.only, name)
	}
	return c, nil
}

func run(ctx context.Context, cfg config) (err error) {
	if err := adoptOrphans(); err != nil {
		return err
	}
	b, err := newBench(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }() //nolint:contextcheck // it has to happen whatever became of the context
	r := &report{cfg: cfg, facts: b.facts(ctx)}
	defer func() { // what was measured until then is worth having, whatever came after
		fmt.Print("\n", r.markdown())
	}()
	if err := b.contest(ctx, r); err != nil {
		return err
	}
	for _, c := range []struct {
		name    string
		measure func(context.Context, *report) error
	}{
		{"delay", b.delay}, {"kill", b.kill}, {"rows", b.rows}, {"xmin", b.xmin},
		{"writecost", b.writeCost}, {"alternatives", b.alternatives}, {"drain", b.drain}, {"lag", b.lag},
	} {
		if !cfg.wants(c.name) {
			continue
		}
		if err := c.measure(ctx, r); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			b.sayf("%s: FAILED: %v", c.name, err)
			r.failed = append(r.failed, fmt.Sprintf("%s: %v", c.name, err))
		}
	}
	return nil
}

// contest measures the tools that copy a whole database, one after the other, as often as there are rounds: so what
// else the machine does meets all of them.
func (b *bench) contest(ctx context.Context, r *report) error {
	var all []*contender
	for _, c := range b.contenders() {
		if !b.cfg.wants(c.of) {
			continue
		}
		if c.missing != "" {
			b.sayf("%s is left out: %s", c.name, c.missing)
			r.missing = append(r.missing, fmt.Sprintf("%s: %s", c.name, c.missing))
			continue
		}
		all = append(all, c)
	}
	r.contenders = all
	for round := range b.cfg.rounds {
		for _, c := range all {
			if c.err != nil {
				continue // it would fail again
			}
			s, err := b.measure(ctx, b.db, c.run)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				b.sayf("%s: FAILED: %v", c.name, err)
				c.err = err
				continue
			}
			b.sayf("round %d: %-28s %s", round+1, c.name, s)
			c.samples = append(c.samples, s)
		}
	}
	return nil
}

// sayf prints a line of progress.
func (b *bench) sayf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%7.1f s  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}
